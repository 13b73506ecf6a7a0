package rollback

import (
	"context"
	"slices"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

// place is where a chunk is found on the node.
type place struct {
	in      *Node        // whose tree; nil: the one that is planned for
	path    string       // relative to the top
	content *entry.Entry // whose data stream it is in
	off     int64        // in the stream
	size    uint32
}

// sources finds the chunks of what is to be staged on the node; what is left is Need.
func (n *Node) sources(ctx context.Context, p *Plan, l *live, s *scanner) error {
	want := map[digest.ID]uint32{}
	for i := range p.Steps {
		if st := &p.Steps[i]; p.builds(st) {
			for _, c := range st.content.Chunks {
				want[c.ID] = c.Size
			}
		}
	}
	for id := range p.made {
		delete(want, id)
	}
	for _, m := range p.merges {
		for _, c := range m.base.Chunks {
			want[c.ID] = c.Size
		}
	}
	p.local = map[digest.ID]place{}
	lives := l.items
	for i := range s.base.m.Entries {
		e := &s.base.m.Entries[i]
		for len(lives) > 0 && entry.Before(lives[0].Path, e.Path) {
			lives = lives[1:]
		}
		looked := len(lives) > 0 && lives[0].Path == e.Path
		if !looked && s.rules.only == nil || looked && !lives[0].sameBase || e.Link != "" || len(want) == 0 {
			continue
		}
		p.offer(want, nil, e.Path, e)
	}
	if len(p.local) < len(want) {
		if err := n.offerUndo(ctx, p, want); err != nil {
			return err
		}
	}
	if err := n.offerStages(ctx, p, want); err != nil {
		return err
	}
	need := func(e *entry.Entry) {
		for _, c := range e.Chunks {
			if _, ok := p.local[c.ID]; !ok && want[c.ID] != 0 {
				p.Need = append(p.Need, c.ID)
				p.NeedBytes += int64(c.Size)
				delete(want, c.ID)
			}
		}
	}
	for i := range p.Steps {
		if st := &p.Steps[i]; p.builds(st) {
			need(st.content)
		}
	}
	for _, m := range p.merges {
		need(m.base)
	}
	return nil
}

// builds reports whether a step's file is put together from chunks.
func (p *Plan) builds(s *Step) bool {
	if s.content == nil || s.Kind > Add || s.link != s.slot {
		return false
	}
	_, linked := p.links[s.slot]
	return !linked
}

// offer notes which wanted chunks a file holds, in what tree.
func (p *Plan) offer(want map[digest.ID]uint32, in *Node, path string, e *entry.Entry) {
	off := int64(0)
	var content *entry.Entry // of its own: e would keep its whole manifest in memory
	for _, c := range e.Chunks {
		if want[c.ID] == c.Size {
			if content == nil {
				content = &entry.Entry{Type: e.Type, Size: e.Size, Holes: slices.Clone(e.Holes), Chunks: slices.Clone(e.Chunks)}
			}
			if _, ok := p.local[c.ID]; !ok {
				p.local[c.ID] = place{in: in, path: path, content: content, off: off, size: c.Size}
			}
		}
		off += int64(c.Size)
	}
}

// offerUndo looks for chunks in what the generations keep.
func (n *Node) offerUndo(ctx context.Context, p *Plan, want map[digest.ID]uint32) error {
	var err error
	if p.undo == nil {
		if p.undo, err = n.undoCopies(ctx, p.vols); err != nil {
			return err
		}
	}
	for gen, copies := range p.undo.gens {
		paths := make(map[string]bool, len(copies))
		for _, u := range copies {
			paths[u.of] = true
		}
		m, err := n.leftPart(gen, paths)
		if err != nil {
			return err
		}
		left := indexOf(m)
		for _, u := range copies {
			if e := left.get(u.of); e != nil && e.Type == entry.File && !p.undo.bad[u.undoFile] {
				p.offer(want, nil, p.vols.in(u.vol, u.path()), left.content(e))
			}
		}
	}
	return nil
}
