package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/fleet"
	"ingot/imager"
	"ingot/imager/store"
	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/inventory"
	"ingot/site"
)

// work is what a deployment asks of each of its nodes. It is part of the
// record, so that another process can go on with it.
type work struct {
	Kind  string    `json:"kind"`             // push, rollback, repair
	Ref   string    `json:"ref,omitempty"`    // push: the image as the operator named it; rollback: to the newest generation of it
	Image digest.ID `json:"image,omitzero"`   // of its manifest; of a rollback zero where the store does not know the name
	To    int       `json:"to,omitempty"`     // rollback: the generation; 0: the one before, unless Ref is set
	Path  string    `json:"path,omitempty"`   // push, repair: that alone
	Undo  int64     `json:"undoes,omitempty"` // rollback: of what this deployment made

	Keep     []string      `json:"keep,omitempty"`
	Take     []string      `json:"take,omitempty"`
	Confirm  time.Duration `json:"confirm"`
	Full     bool          `json:"checksum,omitempty"`
	NoReboot bool          `json:"no_reboot,omitempty"`
	NoDrain  bool          `json:"no_drain,omitempty"`

	DryRun bool   `json:"-"` // such work is not recorded
	look   bool   // nothing is to be changed, nor recorded; who asks tells
	arch   string // of the image's programs; "" is any
}

// plan is what is recorded of a deployment besides its nodes.
type plan struct {
	Work    work         `json:"work"`
	Policy  fleet.Policy `json:"policy"`
	BWLimit string       `json:"bwlimit,omitempty"`
}

func (p plan) encode() string {
	b, err := json.Marshal(p)
	if err != nil {
		panic("BUG: encode a plan: " + err.Error())
	}
	return string(b)
}

func decodePlan(dep inventory.Deployment) (p plan, err error) {
	if err = json.Unmarshal([]byte(dep.Plan), &p); err != nil || p.Work.Kind == "" {
		return p, fmt.Errorf("deployment %d: what was asked of its nodes is not recorded: it was made by another version of ingot", dep.ID)
	}
	return p, nil
}

// workOf is what the flags of a verb ask for.
func workOf(c *cli.Context, kind string) work {
	return work{Kind: kind, Keep: c.StringSlice("keep"), Take: c.StringSlice("take"), Confirm: c.Duration("confirm"), Full: c.Bool("checksum"),
		NoReboot: c.Bool("no-reboot"), NoDrain: c.Bool("no-drain"), DryRun: c.Bool("dry-run")}
}

// to reads --to: a generation, or an image.
func (x *work) to(ctx context.Context, w *world, text string) error {
	if text == "" {
		return nil
	}
	if _, err := strconv.Atoi(text); err == nil {
		x.To, err = generationNumber(text)
		return err
	}
	id, err := resolveImage(ctx, w, text)
	if err != nil && !errors.Is(err, store.ErrMissing) { // nodes may keep what the store does not
		return err
	}
	x.Ref, x.Image = text, id
	return nil
}

// generationNumber reads the number of a generation; "" is 0.
func generationNumber(text string) (int, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, usagef("--to %q: want the number of a generation, or of nodes an image", text)
	}
	return n, nil
}

// ask is the part of a request that all kinds of work have.
func (x *work) ask() wire.Request {
	return wire.Request{Dir: "/", By: operator(), DryRun: x.DryRun, Keep: x.Keep, Take: x.Take, Confirm: x.Confirm, Full: x.Full, NoReboot: x.NoReboot}
}

// String says what is done to nodes, for people.
func (x *work) String() string {
	switch {
	case x.Kind == "push":
		return "push " + x.Ref
	case x.Undo != 0:
		return fmt.Sprintf("rollback of deployment %d", x.Undo)
	case x.Ref != "":
		return "rollback to " + x.Ref
	case x.To != 0:
		return fmt.Sprintf("rollback to generation %d", x.To)
	}
	return x.Kind
}

// nodeJob is one node of a deployment that is being worked at.
type nodeJob struct {
	node   *site.Node
	row    inventory.DeploymentNode // as recorded
	s      *agentSession
	bar    *bar
	out    *outcome
	note   func(wire.Plan) error // records what is about to be changed
	drains *drainage
}

// nodeAction does what is asked of a node.
type nodeAction func(ctx context.Context, j *nodeJob) error

// action makes what is asked of each node something to do; image is that of a push.
func (p *program) action(ctx context.Context, w *world, x work, image *release) (nodeAction, error) {
	switch x.Kind {
	case "push":
		return p.pushNode(w, x, image), nil
	case "rollback":
		var undone undoing
		if x.Undo != 0 {
			var err error
			if undone, err = w.undoing(ctx, x.Undo); err != nil {
				return nil, err
			}
		}
		return p.rollbackNode(w, x, undone), nil
	case "repair":
		return p.repairNode(w, x), nil
	case "drift":
		return p.driftNode(w, x), nil
	}
	return nil, fmt.Errorf("%q is nothing that this ingot does to nodes", x.Kind)
}

func (p *program) pushNode(w *world, x work, image *release) nodeAction {
	return func(ctx context.Context, j *nodeJob) error {
		t, err := image.target(ctx, w, j.node)
		if err != nil {
			return err
		}
		req := x.ask()
		req.Ref, req.Image, req.Overlay, req.NodeOwned, req.Laid, req.Within = t.ref, t.image, t.overlay, t.nodeOwned, t.laid, x.Path
		t.after.ask(&req)
		t.Lost = &lostSource{w: w, node: j.node}
		if !req.DryRun {
			if err := w.give(ctx, j.node.Name, t.image, x.Path); err != nil {
				return err
			}
		}
		return p.changed(ctx, w, j, req, t.after, nil, func(talk imager.Talk) (wire.Plan, wire.Done, error) {
			return imager.Push(ctx, j.s.conn, req, t.Target, talk)
		}, func(wire.Generation) inventory.Generation {
			return inventory.Generation{Ref: req.Ref, Image: t.image.String(), Overlay: req.Overlay.String(), Within: x.Path, Mode: "live", Kind: "push"}
		})
	}
}

// changed asks a node to change, drained for its switch, and follows what
// becomes of it; made is what its new generation is recorded as.
func (p *program) changed(ctx context.Context, w *world, j *nodeJob, req wire.Request, after *aftercare, is func([]wire.Generation) error,
	ask func(imager.Talk) (wire.Plan, wire.Done, error), made func(wire.Generation) inventory.Generation) error {
	talk := p.talk(ctx, w, j, is)
	settle, err := j.drains.around(ctx, j, &talk)
	if err != nil {
		return err
	}
	j.out.Plan, j.out.Done, err = ask(talk)
	return settle(p.switched(ctx, w, j, req, after, err, made(j.out.Done.Generation)))
}

// again records a generation that is of what the node had before.
func again(kind string) func(wire.Generation) inventory.Generation {
	return func(g wire.Generation) inventory.Generation {
		return inventory.Generation{Ref: g.Ref, Image: g.Image.String(), Overlay: g.Overlay.String(), Within: g.Within, Mode: g.Mode, Kind: kind}
	}
}

func (p *program) rollbackNode(w *world, x work, undone undoing) nodeAction {
	return func(ctx context.Context, j *nodeJob) error {
		req := x.ask()
		req.To, req.ToImage, req.ToRef = x.To, x.Image, x.Ref
		if j.row.Target != 0 { // found out before
			req.To, req.ToImage, req.ToRef = j.row.Target, digest.ID{}, ""
		}
		r, err := resolveProfile(w.Site, j.node)
		if err != nil {
			return err
		}
		after := afterOf(ctx, w, j.node, &r.Profile)
		after.ask(&req)
		var is func([]wire.Generation) error
		switch {
		case undone != nil:
			is = func(kept []wire.Generation) error { return undone(j.node.Name, kept) }
		case x.Ref != "":
			is = func(kept []wire.Generation) error { return runsAlready(kept, x) }
		}
		return p.changed(ctx, w, j, req, after, is, func(talk imager.Talk) (wire.Plan, wire.Done, error) {
			return imager.Rollback(ctx, j.s.conn, req, &lostSource{w: w, node: j.node}, talk)
		}, again("rollback"))
	}
}

// talk is what is heard of a node; is, where it is not nil, judges what the
// node keeps before anything is planned.
func (p *program) talk(ctx context.Context, w *world, j *nodeJob, is func([]wire.Generation) error) imager.Talk {
	return imager.Talk{
		Decide:   j.note,
		Progress: j.bar.show,
		Kept: func(kept wire.Kept) error {
			if err := w.learn(ctx, j.node.Name, kept); err != nil || is == nil {
				return err
			}
			return is(kept.Generations)
		},
	}
}

// alreadyError says that a node is what it is to become: nothing is asked of it.
type alreadyError struct {
	why string
	now wire.Generation
}

func (e *alreadyError) Error() string { return e.why }

// runsAlready tells whether a node runs the image that it is to go back to.
func runsAlready(kept []wire.Generation, x work) error {
	if len(kept) == 0 {
		return nil
	}
	now := current(kept)
	if now.Within == "" && now.Trial == 0 && (now.Image == x.Image || x.Image == digest.ID{} && now.Ref == x.Ref) {
		return &alreadyError{fmt.Sprintf("it is %s already, as generation %d", x.Ref, now.Number), now}
	}
	return nil
}
