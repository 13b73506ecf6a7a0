package rollback

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// cover is what a record speaks of. A node that only ever got parts has a
// record of these parts; of the rest nothing is known until it is looked at.
type cover struct {
	all  bool
	tops []string
	but  []string // mount points of what took no part
}

// covers returns what the record of a generation speaks of.
func (g *Generation) covers() cover {
	c := cover{all: g.Number > 0 && len(g.Covers) == 0}
	for _, p := range g.Covers {
		c.tops = append(c.tops, string(p))
	}
	for _, p := range g.Aside {
		c.but = append(c.but, string(p))
	}
	return c
}

func (c cover) has(path string) bool {
	if slices.ContainsFunc(c.but, func(at string) bool { return path == at || under(path, at) }) {
		return false
	}
	return c.all || slices.ContainsFunc(c.tops, func(top string) bool { return path == top || under(path, top) })
}

// with returns the cover as a generation notes it, top added; "" is everything.
func (c cover) with(top string) []Path {
	if c.all || top == "" {
		return nil
	}
	out := []Path{Path(top)}
	for _, t := range c.tops {
		if t != top && !under(t, top) {
			out = append(out, Path(t))
		}
	}
	slices.Sort(out)
	return out
}

// part is the subtree that a push is about.
type part struct {
	within string // as the target names it
	top    string // the highest directory of it that the node lacks, or within
	target *manifest.Manifest
}

// partOf cuts a target down to Within.
func (n *Node) partOf(t Target) (*part, error) {
	within := t.Within
	if !cleanPath(within) {
		return nil, fmt.Errorf("%q is not a clean path below the top", within)
	}
	for up := parentOf(within); up != ""; up = parentOf(up) {
		if e, ok := t.Manifest.Lookup(up); ok && e.Type != entry.Dir {
			return nil, fmt.Errorf("%q: %q is %s in the target; name the directory that it leads to", within, up, typeName(e.Type))
		}
	}
	p := &part{within: within, top: within, target: cut(t.Manifest, within)}
	for up := parentOf(within); up != "." && !n.exists(up); up = parentOf(up) {
		p.top = up
	}
	if _, ok := t.Manifest.Lookup(within); !ok && (p.top != within || !n.exists(within)) {
		return nil, fmt.Errorf("%q is neither in the target nor on the node: %w", within, unix.ENOENT)
	}
	return p, nil
}

// cut returns the entries at, below and above path. Hard links to what is left
// out hold the content themselves.
func cut(m *manifest.Manifest, path string) *manifest.Manifest {
	out := &manifest.Manifest{}
	first := map[string]string{} // by the first name of a group in m
	for i := range m.Entries {
		e := m.Entries[i]
		if e.Path != "." && e.Path != path && !under(e.Path, path) && !under(path, e.Path) {
			continue
		}
		if to := first[rootOf(&e)]; to != "" && e.Link != "" {
			e.Link = to
		} else {
			first[rootOf(&e)] = e.Path
			if holder, ok := m.Lookup(e.Link); ok && e.Link != "" {
				e.Link, e.Holes, e.Chunks = "", holder.Holes, holder.Chunks
			}
		}
		out.Entries = append(out.Entries, e)
	}
	return out
}

// scope is what has to be looked at for the part.
func (p *part) scope() *scope {
	sc := &scope{paths: map[string]bool{}, deep: map[string]bool{p.top: true}}
	for up := p.top; up != ""; up = parentOf(up) {
		sc.paths[up] = true
	}
	return sc
}

// has reports whether path is compared.
func (p *part) has(path string) bool {
	return path == "." || path == p.top || under(path, p.top) || under(p.top, path)
}

// above reports whether path is a directory that the part is in: it stays as it is.
func (p *part) above(path string) bool {
	return path == "." && p.top != "." || under(p.top, path)
}

// above reports whether path is a directory that what is looked at is in: it
// stays as it is.
func (r *rules) above(path string) bool {
	return r.part != nil && r.part.above(path) || r.again != nil && r.again.above(path)
}

// reached refuses a part that is on a file system which a switch does not
// reach. It accepts no part.
func (p *part) reached(l *live, r *rules) error {
	if p == nil {
		return nil
	}
	for up := p.within; up != ""; up = parentOf(up) {
		if it := l.get(up); it != nil && it.alone == Mount {
			return fmt.Errorf("%q: %q is a mount point that takes no part in this tree%s", p.within, up, r.because(up))
		}
	}
	return nil
}

// asLeft returns the tree as it was when generation num was left. What the
// record of num does not speak of was not touched until a later generation
// took it in: there it is as that one found it.
func (n *Node) asLeft(num, current int) (*manifest.Manifest, error) {
	m, err := n.Left(num)
	if err != nil {
		return nil, err
	}
	later, err := n.since(num, current)
	if err != nil {
		return nil, err
	}
	for _, next := range later {
		g, err := n.generation(next)
		if err != nil {
			return nil, err
		}
		c := g.covers()
		if c.all && len(c.but) == 0 || next == current {
			break
		}
		left, err := n.Left(next)
		if err != nil {
			return nil, err
		}
		m = overlaid(m, c, left)
	}
	return m, nil
}

// since lists the generations after num, up to current. Those of a node with
// two sides have gaps: the numbers in between are of the other one.
func (n *Node) since(num, current int) ([]int, error) {
	nums, err := n.numbers()
	return slices.DeleteFunc(nums, func(x int) bool { return x <= num || x > current }), err
}

// overlaid returns what m has within c, and what rest has elsewhere.
func overlaid(m *manifest.Manifest, c cover, rest *manifest.Manifest) *manifest.Manifest {
	b := newBuilder(len(rest.Entries))
	for tree, x := range []*manifest.Manifest{m, rest} {
		at := indexOf(x)
		for i := range x.Entries {
			if e := &x.Entries[i]; c.has(e.Path) == (x == m) {
				b.add(e, at.content(e), groupIn(tree, e))
			}
		}
	}
	return b.build(&live{})
}
