// Package modload loads kernel modules on a node that has no udev and no depmod.
//
// The netboot environment carries an index beside its modules (see Index): what each module needs, and
// the aliases of the devices that it drives. Load brings in modules by name, Auto those whose aliases
// match the devices that are present, Watch those of devices that appear later. Dependencies go first;
// independent modules are loaded side by side.
//
// The index is text, one record a line, a keyword and its words:
//
//	ingot-modules 1
//	kernel 6.1.0-56-amd64
//	builtin fuse virtio
//	module virtio_net kernel/drivers/net/virtio_net.ko
//	depends net_failover
//	pre crc32c_generic
//	post mlx5_ib
//	alias virtio:d00000001v*
//
// depends, pre, post and alias lines belong to the module line above them. Paths are relative to the
// directory of the index. Text, because a line scan costs a node under emulation a tenth of what JSON does.
package modload

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// IndexName is the name of the index in /lib/modules/VERSION.
const IndexName = "ingot.index"

const indexMagic = "ingot-modules 1"

// ErrMissing says that a module is neither in the index nor built into the kernel.
var ErrMissing = errors.New("no such kernel module")

// Module is one loadable module. Names have underscores, never dashes, as in /proc/modules.
type Module struct {
	Name    string
	File    string   // relative to the directory of the index
	Depends []string // must be loaded before, or the module does not link
	Pre     []string // softdep: loaded before where possible
	Post    []string // softdep: loaded after where possible
	Aliases []string // glob patterns of modaliases, and plain names such as fs-ext4
}

// Index is everything that is known of the modules of one kernel.
type Index struct {
	Kernel  string
	Builtin []string // names of what is built into the kernel
	Modules []Module
}

// Normal returns a module name as the kernel spells it: modprobe takes dashes for underscores.
func Normal(name string) string { return strings.ReplaceAll(name, "-", "_") }

// Encode returns the text of the index; Decode is its inverse.
func (x *Index) Encode() []byte {
	var b bytes.Buffer
	list := func(key string, words []string) {
		if len(words) > 0 {
			fmt.Fprintf(&b, "%s %s\n", key, strings.Join(words, " "))
		}
	}
	fmt.Fprintln(&b, indexMagic)
	list("kernel", strings.Fields(x.Kernel))
	list("builtin", x.Builtin)
	for _, m := range x.Modules {
		fmt.Fprintf(&b, "module %s %s\n", m.Name, m.File)
		list("depends", m.Depends)
		list("pre", m.Pre)
		list("post", m.Post)
		for _, a := range m.Aliases {
			fmt.Fprintf(&b, "alias %s\n", a)
		}
	}
	return b.Bytes()
}

// Decode parses the text of an index.
func Decode(text []byte) (*Index, error) {
	sc := bufio.NewScanner(bytes.NewReader(text))
	sc.Buffer(nil, 1<<20) // the builtin line is long
	if !sc.Scan() || sc.Text() != indexMagic {
		return nil, fmt.Errorf("module index does not begin with %q", indexMagic)
	}
	x := &Index{}
	for n := 2; sc.Scan(); n++ {
		if err := x.line(sc.Text()); err != nil {
			return nil, fmt.Errorf("module index line %d: %w", n, err)
		}
	}
	return x, sc.Err()
}

// line takes in one record.
func (x *Index) line(text string) error {
	key, rest, ok := strings.Cut(text, " ")
	if !ok || rest == "" || strings.Contains(rest, "\r") {
		return fmt.Errorf("%q has no value", text)
	}
	switch key {
	case "kernel":
		x.Kernel = strings.Join(strings.Fields(rest), " ")
		return nil
	case "builtin":
		x.Builtin = strings.Fields(rest)
		return nil
	case "module":
		name, file, ok := strings.Cut(rest, " ")
		if !ok || name == "" || file == "" || strings.HasPrefix(file, "/") || slices.Contains(strings.Split(file, "/"), "..") {
			return fmt.Errorf("module %q needs a name and a relative file", rest)
		}
		x.Modules = append(x.Modules, Module{Name: name, File: file})
		return nil
	}
	if len(x.Modules) == 0 {
		return fmt.Errorf("%q comes before any module", key)
	}
	return x.Modules[len(x.Modules)-1].line(key, rest)
}

// line takes in one record of the module.
func (m *Module) line(key, rest string) error {
	switch key {
	case "depends":
		m.Depends = strings.Fields(rest)
	case "pre":
		m.Pre = strings.Fields(rest)
	case "post":
		m.Post = strings.Fields(rest)
	case "alias":
		m.Aliases = append(m.Aliases, rest)
	default:
		return fmt.Errorf("unknown key %q", key)
	}
	return nil
}

// Match returns the modules that have an alias matching the modalias, in index order.
func (x *Index) Match(modalias string) []string {
	var names []string
	for i := range x.Modules {
		if x.Modules[i].matches(modalias) {
			names = append(names, x.Modules[i].Name)
		}
	}
	return names
}

func (m *Module) matches(modalias string) bool {
	for _, a := range m.Aliases {
		if glob(a, modalias) {
			return true
		}
	}
	return false
}

// glob reports whether s matches pattern, with *, ? and [a-z] as in fnmatch(3) without flags: a
// slash is an ordinary character, which is why path.Match does not do.
func glob(pattern, s string) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		if p < len(pattern) && pattern[p] == '*' {
			star, mark = p, i
			p++
			continue
		}
		if n, ok := one(pattern[p:], s[i]); ok {
			p += n
			i++
			continue
		}
		if star < 0 {
			return false
		}
		mark++
		p, i = star+1, mark
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// one matches a single character with the head of pattern, and returns the length of that head.
func one(pattern string, c byte) (int, bool) {
	if pattern == "" {
		return 0, false
	}
	if pattern[0] == '?' {
		return 1, true
	}
	end := strings.IndexByte(pattern, ']')
	if pattern[0] != '[' || end < 2 {
		return 1, pattern[0] == c
	}
	set := pattern[1:end]
	for len(set) > 0 {
		if len(set) >= 3 && set[1] == '-' {
			if set[0] <= c && c <= set[2] {
				return end + 1, true
			}
			set = set[3:]
			continue
		}
		if set[0] == c {
			return end + 1, true
		}
		set = set[1:]
	}
	return end + 1, false
}
