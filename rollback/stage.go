package rollback

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"

	"ingot/internal/digest"
)

// Stage writes everything that the plan puts into the tree beside it: each
// chunk verified, metadata set, and all of it durable. It replaces what was
// staged before. When it fails it leaves nothing, unless it was ctx or src that
// failed: then what arrived stays for the next plan. A plan can be staged once.
// src may be nil when the plan needs no chunks.
func (n *Node) Stage(ctx context.Context, p *Plan, src Source) error {
	if err := p.Err(); err != nil {
		return fmt.Errorf("stage: %w", err)
	}
	unlock, err := n.lockIdle("stage")
	if err != nil {
		return fmt.Errorf("stage: %w", err)
	}
	defer unlock()
	if err := n.stage(ctx, p, src); err != nil {
		return fmt.Errorf("stage: %w", err)
	}
	return nil
}

func (n *Node) stage(ctx context.Context, p *Plan, src Source) error {
	if err := n.isBase(p); err != nil {
		return err
	}
	if p.live == nil {
		return fmt.Errorf("the plan was staged before: make it again: %w", ErrStale)
	}
	r, err := n.openPlan(p)
	if err != nil {
		return err
	}
	defer r.close()
	if err := r.fits(p); err != nil {
		return err
	}
	if err := n.merge(ctx, p, src); err != nil {
		return err
	}
	if err := p.records(); err != nil {
		return err
	}
	if err := r.begin(p); err != nil {
		return err
	}
	if p.Base == 0 {
		g := Generation{Image: asFound, Mode: "live", By: p.Generation.By, Result: "found", Volumes: p.Generation.Volumes}
		g.Number, g.Covers, g.Exact = 1, p.Generation.Covers, p.Generation.Exact
		if _, err := n.record(g, p.left, nil); err != nil {
			return err
		}
		p.Base = 1
	}
	id := rand.Text()
	if err := r.fill(ctx, p, src, in("stage", id)); err != nil {
		if ctx.Err() != nil || errors.As(err, new(*sourceError)) {
			return err
		}
		return errors.Join(err, r.clear(in("stage", id)))
	}
	// Nothing of these must be left when what is in them comes into the tree.
	if err := r.clearStages(id); err != nil {
		return err
	}
	p.id = id
	return nil
}

// Unstage removes what Stage wrote for a plan that nobody will switch: the
// caller has lost its controller, or its patience.
func (n *Node) Unstage(p *Plan) error {
	unlock, err := n.lockIdle("unstage")
	if err == nil {
		defer unlock()
		var r reach
		if r, err = n.open(p.vols.described()); err == nil {
			defer r.close()
			err = r.unstage(p)
		}
	}
	if err != nil {
		return fmt.Errorf("unstage: %w", err)
	}
	return nil
}

// begin takes the volumes of a plan, and removes from them what is of other
// generations than those of this tree: of one that was installed anew, say.
func (r reach) begin(p *Plan) error {
	n := r[0].Node
	list := p.vols.described()
	if err := r.claim(list, "stage"); err != nil {
		return err
	}
	nums, err := n.numbers()
	if err != nil {
		return err
	}
	for i := range list {
		p.vols[i+1].ID = list[i].ID
		for j := range p.Generation.Volumes {
			if v := &p.Generation.Volumes[j]; v.At == list[i].At {
				v.ID = list[i].ID
			}
		}
		if err := n.disown(string(list[i].At), func(num int) bool { return num < p.Base && slices.Contains(nums, num) }); err != nil {
			return err
		}
	}
	return nil
}

// fill makes the stage dir.
func (r reach) fill(ctx context.Context, p *Plan, src Source, dir string) error {
	n := r[0].Node
	if err := r.each(func(b *branch) error { return b.makeDirs(dir, dir+"/undo") }); err != nil {
		return err
	}
	if err := n.listSlots(p, dir); err != nil {
		return err
	}
	if err := n.stageLeft(p, dir); err != nil {
		return err
	}
	if err := n.stageTarget(p, dir+"/next"); err != nil {
		return err
	}
	p.shed()
	n.forget()
	if err := r.openSlots(dir); err != nil {
		return err
	}
	st := &stager{n: n, r: r}
	if err := st.build(ctx, p, src); err != nil {
		return err
	}
	return r.sync()
}

// stageLeft writes what the old generation is left with, where it is not what it was given.
func (n *Node) stageLeft(p *Plan, dir string) error {
	g, err := n.generation(p.Base)
	if err != nil {
		return err
	}
	if p.left == p.base.m && g.covers().all {
		return nil
	}
	id := p.left.ID()
	if id == g.Manifest {
		return nil
	}
	_, err = n.putManifest(dir+"/left", id[:], p.left)
	return err
}

// stageTarget begins the record of the new generation with its target. A
// rollback takes that of the generation it goes back to: as it is, which is a
// delta to what that one keeps, or anew where the next push cannot do without.
func (n *Node) stageTarget(p *Plan, dir string) error {
	err := n.sys.mkdir(n.top, dir, 0o700)
	if err == nil && p.To != 0 && len(p.Generation.Local) > 0 {
		if p.target, _, err = n.Known(p.Generation.Target); err != nil {
			return err
		}
	}
	switch {
	case err != nil:
	case p.target != nil:
		p.Generation.Target, err = n.putTarget(dir, p.done, p.target)
	case p.To != 0 && n.exists(genDir(p.To, "target")):
		err = n.sys.link(n.top, genDir(p.To, "target"), n.top, dir+"/target")
	default:
		p.Generation.Target = digest.ID{}
	}
	return err
}

// isBase refuses a plan that was made for another generation.
func (n *Node) isBase(p *Plan) error {
	g, err := n.idle()
	if err != nil {
		return err
	}
	if g.Number != p.Base {
		return fmt.Errorf("made for generation %d, the node is at %d: %w", p.Base, g.Number, ErrStale)
	}
	return nil
}

// clearStages removes what earlier plans staged and never switched, but for one.
func (n *Node) clearStages(but string) error {
	names, err := n.list(in("stage"))
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == but {
			continue
		}
		if err := n.remove(in("stage", name)); err != nil {
			return err
		}
	}
	return nil
}

// clearStages is Node.clearStages on every volume.
func (r reach) clearStages(but string) error {
	return r.each(func(b *branch) error { return b.Node.clearStages(but) })
}
