package rollback

import (
	"context"
	"fmt"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/pattern"
)

// A node may have two trees, of which one runs: its sides. The one that runs is
// never changed. A push plans, in the tree that runs, what would become of that
// (local changes, node-owned files and all), and makes the other one exactly so.

// PlanSide plans what the other side of the node has to become for the node to
// be t when it starts from there. The plan is the side's: it stages and
// switches it. Its conflicts and notes are those of this tree, which is read
// only, and its content comes from both.
//
// Neither tree may have another mount in it: what lies under one belongs to the
// tree. A plan with files to be merged is completed by MergeSide.
func (n *Node) PlanSide(ctx context.Context, t Target, other *Node) (*Plan, error) {
	here, err := n.compareTo(ctx, t, onSide)
	if err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	p, err := n.onto(ctx, here, other, t.Full)
	if err != nil {
		return nil, fmt.Errorf("plan the other side: %w", err)
	}
	return p, nil
}

// MergeSide has the commands of a plan of PlanSide make the files that both the
// node and the target changed, and plans the other side anew with these. A plan
// without such files it returns as it is. src has what the plan needs and what
// these files were; see Merger.
func (n *Node) MergeSide(ctx context.Context, p *Plan, other *Node, src Source) (*Plan, error) {
	here := p.mergesHere
	if here == nil {
		return p, nil
	}
	unlock, err := n.lockIdle("merge")
	if err != nil {
		return nil, fmt.Errorf("merge: %w", err)
	}
	defer unlock()
	if err := n.sources(ctx, here, here.live, here.scan); err != nil {
		return nil, fmt.Errorf("merge: %w", err)
	}
	if err := n.merge(ctx, here, src); err != nil {
		return nil, fmt.Errorf("merge: %w", err)
	}
	here.merges = nil
	if p, err = n.onto(ctx, here, other, p.scan.full); err != nil {
		return nil, fmt.Errorf("plan the other side: %w", err)
	}
	return p, nil
}

// onto plans how the other side becomes what a plan of this tree leads to.
func (n *Node) onto(ctx context.Context, here *Plan, other *Node, full bool) (*Plan, error) {
	goal := here.goals()
	if err := goal.Validate(); err != nil {
		return nil, fmt.Errorf("what it is to be: %w", err)
	}
	merging := len(here.merges) > 0 // then it is planned once more, and nothing recorded yet
	if !merging {
		if err := here.records(); err != nil {
			return nil, fmt.Errorf("what it is to be: %w", err)
		}
	}
	p, err := other.exactly(ctx, goal, full)
	if err != nil {
		return nil, err
	}
	p.Conflicts, p.Blocked, p.Notes = here.Conflicts, append(here.Blocked, p.Blocked...), here.Notes
	p.Repair, p.drift = here.Repair, here.drift
	p.Generation, p.target, p.goal, p.made = here.Generation, here.target, goal, here.made
	p.Generation.Before = nil // of this tree; the plan's own is that of the other one
	p.to, p.Here = max(here.Base, p.Base)+1, here.Empty()
	p.shown = append([]Change{}, here.Changes()...)
	record, done := p.record, here.done
	p.record = func() { record(); p.done = done }
	if merging {
		p.mergesHere, p.merges = here, here.merges
	}
	if err := other.finish(ctx, p, p.live, p.scan); err != nil {
		return nil, err
	}
	p.near(n, here)
	return p, nil
}

// exactly compares the whole tree with what it is to be, whatever anybody
// changed in it.
func (n *Node) exactly(ctx context.Context, goal *manifest.Manifest, full bool) (*Plan, error) {
	g, err := n.idle()
	if err != nil {
		return nil, err
	}
	r := &rules{leaves: leaves{volatile: pattern.Kept()}, policy: Policy{Default: Take}, derived: map[string]bool{}}
	var base *manifest.Manifest
	var cache states
	if g.Number > 0 {
		if base, err = n.Manifest(g.Number); err != nil {
			return nil, err
		}
		cache = n.readCache(g, base)
	}
	s := &scanner{n: n, rules: r, base: indexOf(base), target: indexOf(goal), cache: cache, full: full}
	l, err := s.scan(ctx, nil)
	if err != nil {
		return nil, err
	}
	if g.Number == 0 {
		s.base = adopt(l, s.base, s.target, g.covers())
	}
	p := compare(s.base, l, s.target, r)
	p.Base, p.live, p.scan = g.Number, l, s
	return p, nil
}

// near finds chunks that the plan needs in another tree, as the plan of that saw it.
func (p *Plan) near(in *Node, there *Plan) {
	want := map[digest.ID]uint32{}
	for i := range p.Steps {
		if s := &p.Steps[i]; p.builds(s) {
			for _, c := range s.content.Chunks {
				if _, ok := p.local[c.ID]; !ok {
					want[c.ID] = c.Size
				}
			}
		}
	}
	c := &comparison{base: there.scan.base, target: there.scan.target, live: there.live}
	for _, it := range there.live.items {
		if it.Type == entry.File && it.alone == "" {
			if e := c.contentOf(it); e != nil {
				p.offer(want, in, it.Path, e)
			}
		}
	}
	need := p.Need[:0]
	p.NeedBytes = 0
	for _, id := range p.Need {
		if _, ok := p.local[id]; !ok {
			need = append(need, id)
			p.NeedBytes += int64(want[id])
		}
	}
	p.Need = need
}

// Verify reads the whole tree and compares it with what the switched plan made
// of it. Who wants to know what is on the disk mounts it anew before. The error
// names what differs; errors.Is(err, ErrDamaged).
func (n *Node) Verify(ctx context.Context, p *Plan) error {
	now, err := n.exactly(ctx, p.goal, true)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	if now.Empty() {
		return nil
	}
	var notes []Note
	for _, s := range now.Steps {
		notes = append(notes, Note{s.Path, "is not what was written: " + s.Kind.String()})
	}
	return fmt.Errorf("verify: %w", &DamagedError{Notes: notes})
}

// carry keeps what is node-owned as it is, for the other side to have it.
func (c *comparison) carry(w *row) {
	w.done = w.t
	w.keep()
	if w.l == nil && w.t != nil && w.b == nil && c.rules.seed.Match(w.path) {
		w.kept, w.goal = false, w.t
	}
}

// sameGiven reports whether base and target have the same at a path.
func (c *comparison) sameGiven(w *row) bool {
	if w.b == nil || w.t == nil {
		return w.b == nil && w.t == nil
	}
	return sameEntry(c.base, w.b, c.target, w.t)
}

// goals is the tree that the comparison leads to. Of what is volatile it has
// the directories that the target wants.
func (c *comparison) goals() *manifest.Manifest {
	return c.recordOf(c.target, func(b *builder, w *row) {
		switch {
		case w.alone == Volatile && w.t != nil && w.t.Type == entry.Dir:
			b.add(w.t, nil, group{})
		case w.alone != "" || w.goal == nil:
		case w.kept:
			b.add(w.goal, c.contentOf(w.l), liveGroup(w.l))
		default:
			b.add(w.goal, c.target.content(w.goal), groupIn(1, w.goal))
		}
	})
}

// PlanSideBack plans what the other side has to become for the node to be what
// that side is: as it was left, and with what is the node's own as it is here
// now. What the node changed here where both sides have the same comes along;
// where they differ the policy says what becomes of it.
func (n *Node) PlanSideBack(ctx context.Context, other *Node, policy Policy, by string) (*Plan, error) {
	p, err := n.sideBack(ctx, other, policy, by)
	if err != nil {
		return nil, fmt.Errorf("plan rollback: %w", err)
	}
	return p, nil
}

func (n *Node) sideBack(ctx context.Context, other *Node, policy Policy, by string) (*Plan, error) {
	g, err := n.Current()
	if err != nil {
		return nil, err
	}
	dest, err := other.Current()
	if err != nil {
		return nil, err
	}
	done, err := other.Manifest(dest.Number)
	if err != nil {
		return nil, err
	}
	is, err := other.exactly(ctx, done, false)
	if err != nil {
		return nil, err
	}
	if err := is.records(); err != nil {
		return nil, err
	}
	t := Target{Manifest: is.left, Policy: policy.unmerged(), By: by, Image: dest.Image, ImageID: dest.ImageID, Overlay: dest.Overlay, Mode: dest.Mode}
	for _, x := range []struct {
		to   *pattern.List
		from []string
	}{{&t.NodeOwned, append(g.Owned, dest.Owned...)}, {&t.Never, g.Never}} {
		if *x.to, err = pattern.Parse(x.from); err != nil {
			return nil, err
		}
	}
	here, err := n.compareTo(ctx, t, back)
	if err != nil {
		return nil, err
	}
	p, err := n.onto(ctx, here, other, false)
	if err != nil {
		return nil, err
	}
	p.target = nil
	x := &p.Generation
	x.Of, x.To, x.Result, x.Note = g.Number, dest.Number, "rolled back", fmt.Sprintf("rollback of %d to %d", g.Number, dest.Number)
	x.Derived = dest.Derived
	x.Local = append(x.Local, is.Generation.Before...)
	p.To = dest.Number
	return p, nil
}

// Again records the present generation once more, under another number: the
// node has come back to it from its other side. edit says why.
func (n *Node) Again(ctx context.Context, number int, edit func(*Generation)) (Generation, error) {
	unlock, err := n.lockIdle("record")
	if err != nil {
		return Generation{}, fmt.Errorf("record generation: %w", err)
	}
	defer unlock()
	g, err := n.Current()
	if err != nil {
		return g, fmt.Errorf("record generation: %w", err)
	}
	m, err := n.Manifest(g.Number)
	if err != nil {
		return g, fmt.Errorf("record generation: %w", err)
	}
	target, _, err := n.Known(g.Target)
	if err != nil {
		return g, fmt.Errorf("record generation: %w", err)
	}
	g.From, g.To, g.Number, g.When = g.Number, g.Number, max(number, g.Number+1), n.now().UTC()
	g.Pinned, g.Trial, g.Health, g.Before = false, nil, nil, nil
	edit(&g)
	if err := ctx.Err(); err != nil {
		return g, err
	}
	if _, err := n.record(g, m, target); err != nil {
		return g, fmt.Errorf("record generation %d: %w", g.Number, err)
	}
	return g, nil
}
