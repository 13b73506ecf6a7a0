package site

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"ingot/internal/durable"
	"ingot/internal/problem"
	"ingot/internal/strict"
)

// The ways in which a change of a node can be refused besides Problems.
var (
	ErrExists   = errors.New("it exists already")
	ErrNotFound = errors.New("there is no such node")
)

// AddNode writes nodes/NAME.yaml for a new node. What Load would refuse is refused, and
// nothing is written.
func AddNode(dir string, n Node) error {
	file := filepath.Join(dir, n.File())
	if _, err := os.Lstat(file); err == nil {
		return fmt.Errorf("add node %q: %w", n.Name, ErrExists)
	}
	text, err := marshal(n)
	if err != nil {
		return fmt.Errorf("add node %q: %w", n.Name, err)
	}
	return write(dir, n, text, "add")
}

// SetNode changes the file of a node that exists. Comments, order and layout of what does
// not change are kept. What Load would refuse is refused, and nothing is written.
func SetNode(dir string, n Node) error {
	old, err := os.ReadFile(filepath.Join(dir, n.File()))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set node %q: %w", n.Name, ErrNotFound)
	} else if err != nil {
		return fmt.Errorf("set node %q: %w", n.Name, err)
	}
	text, err := edit(old, n)
	if err != nil {
		return fmt.Errorf("set node %q: %w", n.Name, err)
	}
	if bytes.Equal(text, old) {
		return nil
	}
	return write(dir, n, text, "set")
}

// RemoveNode deletes the file of a node.
func RemoveNode(dir, name string) error {
	file := filepath.Join(dir, nodesDir, name+nodeExt)
	if !isHost(name) {
		return fmt.Errorf("remove node %q: %w", name, ErrNotFound)
	}
	if err := os.Remove(file); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove node %q: %w", name, ErrNotFound)
	} else if err != nil {
		return fmt.Errorf("remove node %q: %w", name, err)
	}
	return durable.SyncDir(filepath.Dir(file))
}

func write(dir string, n Node, text []byte, verb string) error {
	if !isHost(n.Name) {
		return fmt.Errorf("%s node %q: a name has letters a-z, digits and dashes, at most 63", verb, n.Name)
	}
	if _, err := load(dir, overlay{n.File(): text}); err != nil {
		return fmt.Errorf("%s node %q:\n%w", verb, n.Name, err)
	}
	if err := os.MkdirAll(filepath.Join(dir, nodesDir), 0o755); err != nil {
		return fmt.Errorf("%s node %q: %w", verb, n.Name, err)
	}
	if err := durable.WriteFile(filepath.Join(dir, n.File()), text, 0o644); err != nil {
		return fmt.Errorf("%s node %q: %w", verb, n.Name, err)
	}
	return nil
}

// marshal is the text of a node without its name, which is the file's. It fails when the
// text would not mean the same node, as with values that are not UTF-8.
func marshal(n Node) ([]byte, error) {
	text, err := encode(n)
	if err != nil {
		return nil, err
	}
	n = n.clone()
	n.normalize()
	again, _, ok := decodeNode(text)
	if !ok || !sameText(again, n) {
		return nil, errors.New("a value holds characters that YAML cannot")
	}
	return text, nil
}

func sameText(a, b Node) bool {
	x, err1 := encode(a)
	y, err2 := encode(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

func encode(n Node) ([]byte, error) {
	n.Name = ""
	if emptyNode(n) {
		return []byte("# A node without a card's MAC, serial or UUID is never recognised.\n{}\n"), nil
	}
	return yaml.MarshalWithOptions(n, yaml.IndentSequence(true))
}

func emptyNode(n Node) bool {
	text, err := yaml.Marshal(n)
	return err == nil && strings.TrimSpace(string(text)) == "{}"
}

// change replaces Len bytes at Off.
type change struct {
	off, len int
	text     string
}

// edit changes the text of a node file so that it says n. Only what differs between the
// node that the text means and n is touched.
func edit(text []byte, n Node) ([]byte, error) {
	n = n.clone()
	n.normalize()
	want, err := marshal(n)
	if err != nil {
		return nil, err
	}
	have, root, ok := decodeNode(text)
	if !ok || root.Kind != strict.Map || root.Flow {
		return want, nil
	}
	now, err := encode(have)
	if err != nil {
		return nil, err
	}
	if bytes.Equal(now, want) {
		return text, nil
	}
	out := apply(text, differences(root, parse(now), parse(want)))
	if again, _, ok := decodeNode(out); ok {
		if sameText(again, n) {
			return out, nil
		}
	}
	return want, nil // comments are lost, the meaning is not
}

func decodeNode(text []byte) (n Node, root *strict.Node, ok bool) {
	var probs problem.List
	root = strict.Parse("", text, &probs)
	strict.Decode(root, &n, &probs)
	n.Name = ""
	n.normalize()
	return n, root, len(probs) == 0
}

func parse(text []byte) *strict.Node {
	var probs problem.List
	return strict.Parse("", text, &probs)
}

// differences are the changes of a file's text that lead from what it means (now) to want.
func differences(file, now, want *strict.Node) []change {
	var out []change
	for _, f := range now.Fields {
		if want.Field(f.Key) == nil {
			out = append(out, block(file, f.Key, ""))
		}
	}
	for _, f := range want.Fields {
		old := now.Field(f.Key)
		if old != nil && same(old, f.Node) {
			continue
		}
		if old != nil {
			if fine, ok := splice(file.Field(f.Key), old, f.Node); ok {
				out = append(out, fine...)
				continue
			}
		}
		c := block(want, f.Key, "")
		out = append(out, block(file, f.Key, string(want.Source.Data[c.off:c.off+c.len])))
	}
	return out
}

// same compares two values by their meaning.
func same(a, b *strict.Node) bool {
	if a.Kind != b.Kind || a.Text != b.Text || len(a.Items) != len(b.Items) || len(a.Fields) != len(b.Fields) {
		return false
	}
	for i := range a.Items {
		if !same(a.Items[i], b.Items[i]) {
			return false
		}
	}
	for _, f := range a.Fields {
		if o := b.Field(f.Key); o == nil || !same(f.Node, o) {
			return false
		}
	}
	return true
}

// splice changes single values where the shape stays; ok is false where it does not.
func splice(file, now, want *strict.Node) (out []change, ok bool) {
	if same(now, want) {
		return nil, true
	}
	if file == nil || file.Kind != now.Kind || now.Kind != want.Kind {
		return nil, false
	}
	switch now.Kind {
	case strict.Scalar:
		if file.Off < 0 || want.Off < 0 {
			return nil, false
		}
		return []change{{file.Off, file.Len, want.Text}}, true
	case strict.List:
		if len(file.Items) != len(want.Items) || len(now.Items) != len(want.Items) {
			return nil, false
		}
		for i := range want.Items {
			more, ok := splice(file.Items[i], now.Items[i], want.Items[i])
			if !ok {
				return nil, false
			}
			out = append(out, more...)
		}
		return out, true
	case strict.Map:
		if len(now.Fields) != len(want.Fields) {
			return nil, false
		}
		for _, f := range want.Fields {
			old := now.Field(f.Key)
			if old == nil {
				return nil, false
			}
			more, ok := splice(file.Field(f.Key), old, f.Node)
			if !ok {
				return nil, false
			}
			out = append(out, more...)
		}
		return out, true
	}
	return nil, false
}

// block replaces the lines of a top-level key, or appends text when the key is not there.
// Comments right before the next key belong to that.
func block(file *strict.Node, key, text string) change {
	lines := strings.SplitAfter(string(file.Source.Data), "\n")
	first, next := 0, len(lines)+1
	for _, f := range file.Fields {
		if f.Key == key {
			first = f.Line
		} else if first > 0 && f.Line > first {
			next = min(next, f.Line)
		}
	}
	if first == 0 {
		if n := len(file.Source.Data); n > 0 && file.Source.Data[n-1] != '\n' {
			text = "\n" + text
		}
		return change{len(file.Source.Data), 0, text}
	}
	for next > first+1 && isComment(lines[next-2]) {
		next--
	}
	off := len(strings.Join(lines[:first-1], ""))
	return change{off, len(strings.Join(lines[first-1:next-1], "")), text}
}

func isComment(line string) bool {
	line = strings.TrimSpace(line)
	return line == "" || strings.HasPrefix(line, "#")
}

// apply makes the changes from the end to the beginning, so that offsets stay true.
func apply(text []byte, changes []change) []byte {
	slices.SortStableFunc(changes, func(a, b change) int { return cmp.Compare(b.off, a.off) })
	out := string(text)
	var tail strings.Builder
	for _, c := range changes {
		if c.off == len(text) {
			tail.WriteString(c.text)
			continue
		}
		out = out[:c.off] + c.text + out[c.off+c.len:]
	}
	if tail.Len() > 0 && out != "" && !strings.HasSuffix(out, "\n") {
		out += "\n"
	}
	return []byte(out + strings.TrimPrefix(tail.String(), "\n"))
}
