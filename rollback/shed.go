package rollback

import (
	"slices"

	"ingot/internal/entry"
)

// Finding out what is to be done takes two manifests, what the scan found and
// what will be recorded, all in memory at once; doing it takes the steps.

// shed lets go of what only the planning of p needed, once the records of the
// old generation are staged. What is left has entries of its own: a pointer
// into a manifest keeps it all.
func (p *Plan) shed() {
	p.known, p.afresh = p.states()
	mine := map[*entry.Entry]*entry.Entry{}
	own := func(e **entry.Entry) {
		if *e == nil {
			return
		}
		if mine[*e] == nil {
			c := **e
			c.Xattrs, c.Holes, c.Chunks = slices.Clone(c.Xattrs), slices.Clone(c.Holes), slices.Clone(c.Chunks)
			mine[*e] = &c
		}
		*e = mine[*e]
	}
	for i := range p.Steps {
		s := &p.Steps[i]
		s.like = p.likeOf(s)
		for _, e := range []**entry.Entry{&s.Old, &s.New, &s.content, &s.like} {
			own(e)
		}
	}
	for i := range p.Conflicts {
		c := &p.Conflicts[i]
		for _, e := range []**entry.Entry{&c.Base, &c.Now, &c.Target} {
			own(e)
		}
	}
	p.target, p.left, p.base, p.live, p.scan, p.undo, p.merges = nil, nil, nil, nil, nil, nil, nil
}

// likeOf returns what a file that is to be built is probably much like: what it
// replaces, unless the node changed that, of which nobody else knows.
func (p *Plan) likeOf(s *Step) *entry.Entry {
	if s.Kind != Replace || !p.builds(s) || s.Old.Type != entry.File {
		return nil
	}
	it := p.live.get(s.Path)
	if it == nil || !it.sameBase || it.base == nil || it.base.Type != entry.File {
		return nil
	}
	return p.base.content(it.base)
}
