package rollback

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/command"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/pattern"
)

// Merger makes of a file that the node and the target changed, both, one that
// has both changes.
//
// Command is run by /bin/sh -c on the node. BASE, LOCAL and NEW in its
// environment name files: what the node was given, what it made of it, and what
// the target has; INGOT_PATH is the path, from the top. What it prints is the
// file. Another exit status than 0 refuses the switch. `diff3 -m "$LOCAL"
// "$BASE" "$NEW"` is such a command.
type Merger struct {
	Paths   pattern.List
	Command string
}

const (
	mergeLimit = time.Minute // for one command
	mergeBytes = 16 << 20    // of each file: they are held in memory
)

// merging is one file to be merged, with its three contents.
type merging struct {
	path              string
	command           string
	base, now, target *entry.Entry
	goal              *entry.Entry // what it becomes: its content is filled in
}

// gave looks up what the target of a generation gave where the record is what
// the node made: there every difference to it is the node's.
func (r *rules) gave(n *Node, g *Generation) error {
	if len(g.Local) == 0 {
		return nil
	}
	m, known, err := n.Known(g.Target)
	if err != nil {
		return err
	}
	x, out := indexOf(m), make(map[string]*entry.Entry, len(g.Local))
	r.given, r.unknown = out, !known
	for _, path := range g.Local {
		out[string(path)] = nil
		if e := x.get(string(path)); e != nil {
			own := *e
			own.Link, own.Holes, own.Chunks = "", slices.Clone(x.content(e).Holes), slices.Clone(x.content(e).Chunks)
			out[string(path)] = &own
		}
	}
	return nil
}

// localIn lists where the tree as generation g was left is what the node had
// made of it, not what it was given.
func (n *Node) localIn(g Generation, current int, never pattern.List) ([]Path, error) {
	out := slices.Clone(g.Local)
	later, err := n.since(g.Number, current)
	if err != nil {
		return nil, err
	}
	for _, num := range later {
		next, err := n.generation(num)
		if err != nil {
			return nil, err
		}
		out = append(out, next.Before...)
		if c := next.covers(); c.all && len(c.but) == 0 {
			break // as in asLeft
		}
	}
	out = slices.DeleteFunc(out, func(p Path) bool { return never.Match(string(p)) })
	slices.Sort(out)
	return slices.Compact(out), nil
}

// mergeOf plans the merge of a row, or says why it cannot be one.
func (c *comparison) mergeOf(w *row, base *entry.Entry, command string) (m *merging, why string) {
	if base == nil || w.l == nil || w.t == nil || base.Type != entry.File || w.l.Type != entry.File || w.t.Type != entry.File {
		return nil, "not all three are files"
	}
	linked := func(e entry.Entry) bool { return e.Link == w.path }
	if w.l.stat.Nlink > 1 || w.t.Link != "" || slices.ContainsFunc(c.target.m.Entries, linked) {
		return nil, "it has several names"
	}
	m = &merging{path: w.path, command: command, base: c.base.content(base), now: c.contentOf(w.l), target: w.t}
	for _, e := range []*entry.Entry{m.base, m.now, m.target} {
		if e.Size > mergeBytes {
			return nil, fmt.Sprintf("it has more than %d bytes", mergeBytes)
		}
	}
	goal := *w.t
	m.goal = &goal
	ok := threeWay(&goal.Mode, base.Mode, w.l.Mode, w.t.Mode)
	ok = threeWay(&goal.UID, base.UID, w.l.UID, w.t.UID) && ok
	ok = threeWay(&goal.GID, base.GID, w.l.GID, w.t.GID) && ok
	switch same := func(a, b *entry.Entry) bool { return slices.Equal(a.Xattrs, b.Xattrs) }; {
	case same(w.l.Entry, base), same(w.l.Entry, w.t):
	case same(w.t, base):
		goal.Xattrs = w.l.Xattrs
	default:
		ok = false
	}
	if !ok {
		return nil, "both sides changed its metadata"
	}
	return m, ""
}

// threeWay merges one value of three into to; false says that both changed it.
func threeWay[T comparable](to *T, base, now, target T) bool {
	*to = target
	if now == base || now == target {
		return true
	}
	*to = now
	return target == base
}

// merge runs the commands of a plan, and enters what they made of the files.
// It comes before anything is staged.
func (n *Node) merge(ctx context.Context, p *Plan, src Source) error {
	if len(p.merges) == 0 {
		return nil
	}
	have, err := n.mergeInputs(ctx, p, src)
	if err != nil {
		return err
	}
	dir := in("stage", "merge")
	if err := n.remove(dir); err != nil { // of a process that died
		return err
	}
	made, err := n.mergeIn(ctx, p, dir, have)
	removed := n.remove(dir) // where it fails the stage takes it along: clearStages
	if err != nil {
		return errors.Join(err, removed)
	}
	for i, m := range p.merges {
		p.merged(m, made[i], n.now())
	}
	return nil
}

// mergeIn makes the files of a plan, with their sides in a directory.
func (n *Node) mergeIn(ctx context.Context, p *Plan, dir string, have map[digest.ID][]byte) ([][]byte, error) {
	if err := n.makeDirs(in("stage"), dir); err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(filepath.Join(n.path, dir)) // commands run in /
	if err != nil {
		return nil, err
	}
	var made [][]byte
	failed := &MergeError{}
	for _, m := range p.merges {
		out, err := n.mergeOne(ctx, m, abs, have)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			failed.Notes = append(failed.Notes, Note{m.path, err.Error()})
		}
		made = append(made, out)
	}
	if len(failed.Notes) > 0 {
		return nil, failed
	}
	return made, nil
}

// MergeError lists files that both sides changed and whose commands did not
// make one of them. errors.Is(err, ErrConflict).
type MergeError struct{ Notes []Note }

func (e *MergeError) Error() string {
	return "changed by the node and by the target, and not to be merged: " + some(e.Notes, Note.String)
}

// Is makes it an ErrConflict.
func (e *MergeError) Is(target error) bool { return target == ErrConflict }

// merged enters the result of a merge.
func (p *Plan) merged(m *merging, content []byte, when time.Time) {
	if p.made == nil {
		p.made = map[digest.ID][]byte{}
	}
	m.goal.Size, m.goal.Holes, m.goal.Chunks = int64(len(content)), nil, nil
	m.goal.ModTime = when.UnixNano()
	for b := content; len(b) > 0; {
		piece := b[:min(len(b), pieceSize)]
		id := digest.Of(piece)
		p.made[id] = piece
		m.goal.Chunks = append(m.goal.Chunks, entry.Chunk{ID: id, Size: uint32(len(piece))})
		b = b[len(piece):]
	}
	for i := range p.Steps {
		if p.Steps[i].Path == m.path {
			delete(p.adopt, p.Steps[i].slot) // it holds what the target has
		}
	}
}

// mergeOne runs one command.
func (n *Node) mergeOne(ctx context.Context, m *merging, dir string, have map[digest.ID][]byte) ([]byte, error) {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "INGOT_PATH=/" + m.path}
	for _, x := range []struct {
		name string
		e    *entry.Entry
	}{{"BASE", m.base}, {"LOCAL", m.now}, {"NEW", m.target}} {
		path := filepath.Join(dir, x.name)
		if err := os.WriteFile(path, whole(x.e, have), 0o600); err != nil {
			return nil, err
		}
		env = append(env, x.name+"="+path)
	}
	out, said := &atMost{left: mergeBytes}, &command.Ends{}
	err := command.Run(ctx, command.Command{Argv: []string{"/bin/sh", "-c", m.command}, Env: env, Limit: mergeLimit, Out: out, Err: said})
	switch {
	case out.over:
		return nil, fmt.Errorf("`%s` prints more than %d bytes", command.Line(m.command), mergeBytes)
	case err != nil:
		return nil, fmt.Errorf("`%s`: %w%s", command.Line(m.command), err, after(command.LastLine(said.Bytes())))
	}
	return out.b, nil
}

func after(line string) string {
	if line == "" {
		return ""
	}
	return ": " + line
}

// whole puts the content of a file together.
func whole(e *entry.Entry, have map[digest.ID][]byte) []byte {
	out := make([]byte, e.Size)
	data, off := e.Data(), int64(0)
	for _, c := range e.Chunks {
		b := have[c.ID]
		for _, x := range pieces(data, off, int64(c.Size)) {
			b = b[copy(out[x.Off:x.Off+x.Len], b):]
		}
		off += int64(c.Size)
	}
	return out
}

// mergeInputs gets the chunks of all files that are to be merged: from the node
// where it has them, else from the source.
func (n *Node) mergeInputs(ctx context.Context, p *Plan, src Source) (map[digest.ID][]byte, error) {
	have := map[digest.ID][]byte{}
	r := &localReader{n: n}
	defer r.close()
	var lack []digest.ID
	var of []string
	for _, m := range p.merges {
		f, err := n.openFile(m.path)
		if err != nil {
			return nil, fmt.Errorf("merge %q: %w: %w", m.path, ErrChanged, err)
		}
		data, off := m.now.Data(), int64(0)
		for _, c := range m.now.Chunks {
			if !r.holds(f, pieces(data, off, int64(c.Size)), c) {
				f.Close()
				return nil, fmt.Errorf("merge %q: %w", m.path, ErrChanged)
			}
			have[c.ID] = slices.Clone(r.got)
			off += int64(c.Size)
		}
		f.Close()
		for _, c := range slices.Concat(m.base.Chunks, m.target.Chunks) {
			if have[c.ID] != nil || slices.Contains(lack, c.ID) {
				continue
			}
			if b := r.chunk(p, c); b != nil {
				have[c.ID] = slices.Clone(b)
				continue
			}
			lack = append(lack, c.ID)
			of = append(of, fmt.Sprintf("%q", m.path))
		}
	}
	if len(lack) == 0 {
		return have, nil
	}
	of = slices.Compact(of)
	if src == nil {
		return nil, fmt.Errorf("merge %s: what it was given is not on the node any more, and there is nobody to ask: %w", strings.Join(of, ", "), ErrDamaged)
	}
	err := src.Fetch(ctx, lack, func(id digest.ID, data []byte) error {
		if digest.Of(data) != id {
			return fmt.Errorf("chunk %s: the source delivered something else: %w", id.Short(), ErrDamaged)
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		have[id] = slices.Clone(data)
		return nil
	})
	if err == nil && slices.ContainsFunc(lack, func(id digest.ID) bool { return have[id] == nil }) {
		err = errors.New("it did not come")
	}
	if err != nil {
		return nil, &sourceError{fmt.Errorf("merge %s: fetch what was given and is to come: %w", strings.Join(of, ", "), err)}
	}
	return have, nil
}

// atMost keeps what is written to it, up to a limit.
type atMost struct {
	b    []byte
	left int
	over bool
}

func (a *atMost) Write(b []byte) (int, error) {
	if len(b) > a.left {
		a.over = true
		return 0, unix.EFBIG
	}
	a.b, a.left = append(a.b, b...), a.left-len(b)
	return len(b), nil
}
