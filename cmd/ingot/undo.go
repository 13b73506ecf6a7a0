package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"ingot/fleet"
	"ingot/imager/wire"
	"ingot/inventory"
)

// undoing judges, by what a node keeps, whether what a deployment made of it
// is there to be taken back. nil: go on; *alreadyError: there is nothing to do.
type undoing func(node string, kept []wire.Generation) error

func (w *world) undoing(ctx context.Context, id int64) (undoing, error) {
	dep, err := w.state.Deployment(ctx, id)
	if err != nil {
		return nil, err
	}
	rows := map[string]inventory.DeploymentNode{}
	for _, n := range dep.Nodes {
		rows[n.Node] = n
	}
	return func(node string, kept []wire.Generation) error {
		row, ok := rows[node]
		if !ok {
			return fmt.Errorf("node %q is not in deployment %d: %w", node, id, inventory.ErrNotFound)
		}
		return undoable(dep, row, kept)
	}, nil
}

// undoable reports whether a node, which keeps these generations, is to go
// back to what it was before a deployment: nil. An *alreadyError says that it
// is that already; another error that something else was made of it since.
func undoable(dep inventory.Deployment, row inventory.DeploymentNode, kept []wire.Generation) error {
	if len(kept) == 0 {
		return fmt.Errorf("it keeps no generation: `ingot push IMAGE %s` brings it to one", row.Node)
	}
	now := current(kept)
	since := slices.DeleteFunc(slices.Clone(kept), func(g wire.Generation) bool { return g.Number <= row.Was })
	before := slices.IndexFunc(kept, func(g wire.Generation) bool { return g.Number == row.Was })
	switch {
	case len(since) == 0:
		return &alreadyError{fmt.Sprintf("it is still generation %d", now.Number), now}
	case before < 0:
		return withHint(coded{fmt.Errorf("it does not keep generation %d any more", row.Was), exitNotFound}, "push the image that it is to run")
	case now.Trial == 0 && len(since) > 1 && alike(now, kept[before]) && (now.Kind == "rollback" || now.Kind == "revert"):
		return &alreadyError{fmt.Sprintf("it is %s again, as generation %d", now.Ref, now.Number), now}
	}
	made := since[0]
	switch {
	case made.Kind != dep.Kind || dep.Kind == "push" && made.Image.String() != dep.Image || row.State == stateDone && row.Generation != made.Number:
		return ofOthers(dep, row, made)
	case len(since) > 1:
		return ofOthers(dep, row, now)
	}
	return nil
}

// current is the generation that a node is; kept is not empty. A node with two
// sides may have a newer one, which does not run yet.
func current(kept []wire.Generation) wire.Generation {
	for _, g := range kept {
		if g.Current {
			return g
		}
	}
	return kept[len(kept)-1]
}

// alike reports whether two generations are of the same.
func alike(a, b wire.Generation) bool {
	return a.Image == b.Image && a.Overlay == b.Overlay && a.Within == b.Within
}

func ofOthers(dep inventory.Deployment, row inventory.DeploymentNode, g wire.Generation) error {
	return withHint(fmt.Errorf("generation %d of it, %s of %s by %s, is not of deployment %d: nothing was changed", g.Number, g.Kind, g.Ref, g.By, dep.ID),
		"take that back first, or name the generation: `ingot rollback %s --to %d`", row.Node, row.Was)
}

// undo takes back what a deployment made of its nodes, as a deployment of its own.
func (p *program) undo(c *cli.Context, of string, args int) error {
	if err := wantArgs(c, args, args); err != nil {
		return err
	}
	if err := p.setLimit(c.String("bwlimit")); err != nil {
		return err
	}
	policy, err := policyFlags(c)
	if err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	dep, err := deploymentOf(c, w, of)
	if err != nil {
		return err
	}
	if err := w.notUnderWay(dep); err != nil {
		return err
	}
	x := workOf(c, "rollback")
	d, err := p.undoOf(w, dep, plan{Work: x, Policy: policy, BWLimit: c.String("bwlimit")}, func(n inventory.DeploymentNode) bool { return true })
	if err != nil {
		return err
	}
	if len(d.nodes) == 0 {
		p.say("deployment %d changed no node: there is nothing to take back", dep.ID)
		return nil
	}
	return d.carryOut(c, nil, func(h *hold) (int64, error) {
		id, err := d.begin(c.Context, h)
		if err == nil && dep.Ended.IsZero() { // whoever worked at it was killed
			err = w.state.EndDeployment(c.Context, dep.ID, fmt.Sprintf("taken back by deployment %d", id))
		}
		return id, err
	})
}

// inWork are the nodes that were in work when whoever worked at a deployment was killed.
func inWork(dep inventory.Deployment) map[string]bool {
	nodes := map[string]bool{}
	for _, n := range dep.Nodes {
		nodes[n.Node] = n.State == stateRunning
	}
	return nodes
}

// notUnderWay refuses a deployment that somebody works at.
func (w *world) notUnderWay(dep inventory.Deployment) error {
	if !dep.Ended.IsZero() || !w.holderLives(dep.Holder) {
		return nil
	}
	return withHint(coded{fmt.Errorf("deployment %d is under way, in the hands of %s", dep.ID, dep.By), exitBusy}, "Ctrl-C there stops it; `ingot deployment show %d` tells how far it is", dep.ID)
}

// undoOf is the deployment that takes back what another made of those of its
// nodes that which says.
func (p *program) undoOf(w *world, dep inventory.Deployment, how plan, which func(inventory.DeploymentNode) bool) (*deployment, error) {
	how.Work.Undo = dep.ID
	d := &deployment{p: p, w: w, plan: how, inWork: inWork(dep)}
	for _, n := range dep.Nodes {
		if n.Was == 0 || n.State == stateUnchanged || !which(n) { // nothing was planned for it
			continue
		}
		node := w.Node(n.Node)
		if node == nil {
			return nil, gone(dep, n.Node)
		}
		d.nodes = append(d.nodes, node)
		d.rows = append(d.rows, inventory.DeploymentNode{Node: n.Node, Target: n.Was})
	}
	for i, wave := range how.Policy.Waves(len(d.nodes)) {
		d.rows[i].Wave = wave
	}
	return d, nil
}

func gone(dep inventory.Deployment, node string) error {
	return withHint(coded{fmt.Errorf("deployment %d: node %q is not in the site any more", dep.ID, node), exitNotFound}, "write nodes/%s.yaml again, or go on with the others by name", node)
}

// takeBack takes back the nodes that are done where the policy says so, and
// returns the number of the deployment that did.
func (d *deployment) takeBack(c *cli.Context, results []outcome, stop fleet.Stop) (int64, error) {
	mode := d.plan.Policy.AutoBack
	if d.id == 0 || mode == fleet.BackNone || stop.Reason == "" || c.Context.Err() != nil {
		return 0, nil
	}
	dep, err := d.w.state.Deployment(c.Context, d.id)
	if err != nil {
		return 0, err
	}
	x := d.plan.Work
	back := work{Kind: "rollback", Take: x.Take, Keep: x.Keep, NoReboot: x.NoReboot, NoDrain: x.NoDrain}
	policy := fleet.Policy{Parallel: d.plan.Policy.Parallel, MaxFailures: len(d.nodes)} // what fails stays behind: the others are to be well
	u, err := d.p.undoOf(d.w, dep, plan{Work: back, Policy: policy, BWLimit: d.plan.BWLimit}, func(n inventory.DeploymentNode) bool {
		return n.State == stateDone && (mode == fleet.BackAll || n.Wave == stop.Wave)
	})
	if err != nil || len(u.nodes) == 0 {
		return 0, err
	}
	d.show.screen.say("stopped: %s; taking back %s", stop.Reason, count(len(u.nodes), "node"))
	err = u.carryOut(c, nil, func(h *hold) (int64, error) { return u.begin(c.Context, h) })
	if err != nil {
		err = fmt.Errorf("taken back by deployment %d: %w", u.id, err)
	}
	return u.id, err
}

// resume goes on with a deployment that ended before all its nodes were done.
func (p *program) deploymentResume(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	dep, err := deploymentOf(c, w, c.Args().First())
	if err != nil {
		return err
	}
	if err := w.notUnderWay(dep); err != nil {
		return err
	}
	plan, err := decodePlan(dep)
	if err != nil {
		return err
	}
	if c.IsSet("max-failures") {
		plan.Policy.MaxFailures = c.Int("max-failures")
	}
	if c.IsSet("parallel") {
		plan.Policy.Parallel = c.Int("parallel")
	}
	if err := plan.Policy.Check(); err != nil {
		return usageError{err.Error()}
	}
	if err := p.setLimit(plan.BWLimit); err != nil {
		return err
	}
	d := &deployment{p: p, w: w, id: dep.ID, plan: plan, inWork: inWork(dep)}
	if err := d.left(c.Context, dep, c.Bool("retry-failed")); err != nil {
		return err
	}
	if len(d.nodes) == 0 {
		p.say("deployment %d: nothing is left to do", dep.ID)
		return nil
	}
	var image *release
	if plan.Work.Kind == "push" {
		free, err := p.shareImages(c.Context, w)
		if err != nil {
			return err
		}
		defer free()
		if image, err = openRelease(c.Context, w, plan.Work.Ref, plan.Work.Image); err != nil {
			return err
		}
		d.plan.Work.arch = image.arch
	}
	return d.carryOut(c, image, func(h *hold) (int64, error) {
		return dep.ID, held(w.state.TakeDeployment(c.Context, dep.ID, d.rows, h.name, w.holderLives))
	})
}

// left are the nodes of a deployment that are still to be done; those that
// failed count, unless they are tried again. A node that was changed since is
// not touched: what it is now is somebody's wish, too.
func (d *deployment) left(ctx context.Context, dep inventory.Deployment, again bool) error {
	later, err := d.w.state.Superseded(ctx, dep.ID)
	if err != nil {
		return err
	}
	var changed []string
	for _, n := range dep.Nodes {
		switch n.State {
		case stateDone, stateUnchanged:
			continue
		case stateFailed, stateReverted, stateUnreachable:
			if !again {
				d.failed++
				continue
			}
		}
		if by, ok := later[n.Node]; ok {
			changed = append(changed, fmt.Sprintf("%s (deployment %d)", n.Node, by))
			continue
		}
		node := d.w.Node(n.Node)
		if node == nil {
			return gone(dep, n.Node)
		}
		d.nodes = append(d.nodes, node)
		d.rows = append(d.rows, n)
	}
	if len(changed) > 0 {
		return withHint(fmt.Errorf("deployment %d cannot go on: %s changed since: %s", dep.ID, count(len(changed), "node"), strings.Join(changed, ", ")),
			"begin a new one with the nodes that are to have it")
	}
	return nil
}
