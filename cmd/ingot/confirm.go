package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/imager"
	"ingot/imager/wire"
	"ingot/internal/health"
	"ingot/inventory"
	"ingot/site"
)

// defaultConfirm is how long a node waits for its confirmation: long enough
// for services to start and for a network that is set up anew.
const defaultConfirm = 2 * time.Minute

// How a controller comes back to a node: how often it tries, and how much
// longer than the node waits, to hear what became of it.
const (
	confirmRetry = 500 * time.Millisecond
	confirmAfter = 90 * time.Second
	bootWait     = 12 * time.Minute // for a node that starts from its other side, and perhaps comes back
)

func confirmFlag(usual time.Duration) cli.Flag {
	return &cli.DurationFlag{Name: "confirm", Value: usual,
		Usage: "a node goes back by itself unless it is reached over a new connection within `TIME` of its switch; 0: it stays"}
}

// trial is a generation of a node that waits for its confirmation.
type trial struct {
	node   *site.Node
	number int
	window time.Duration
	begun  time.Time
}

// switched is what follows when a node was asked to switch, which ended with
// err: the generation is recorded, and confirmed where the node waits for that,
// over sessions of their own.
func (p *program) switched(ctx context.Context, w *world, j *nodeJob, req wire.Request, after *aftercare, err error, made inventory.Generation) error {
	begun, n, out := time.Now(), j.node, j.out
	if err := w.learnSides(context.WithoutCancel(ctx), n.Name, out.Done.Sides); err != nil {
		return err
	}
	lost := err != nil && (req.Confirm > 0 || out.Plan.Leaves) && j.bar.switching() && !errors.As(err, new(*wire.Error))
	switch {
	case err != nil && !lost || req.DryRun:
		return j.s.explain(err)
	case out.Plan.Leaves:
		return p.left(ctx, w, j, req, begun)
	case lost: // it may have switched, or not: it is asked
		out.Done.Generation.Number, out.Done.Trial = out.Plan.Next, true
		p.say("%s: the connection broke in the switch: %v", n.Name, err)
	case !out.Done.Unchanged:
		if err := w.recordGeneration(context.WithoutCancel(ctx), n.Name, made, out.Done, req.By); err != nil {
			return err
		}
	}
	switch {
	case out.Done.NextBoot:
		p.say("%s: generation %d is on its other side, and is tried when the machine starts the next time", n.Name, out.Done.Generation.Number)
		return nil
	case out.Done.Reverted != "":
		return &revertedError{out.Done.Reverted, out.Done.Generation}
	case !out.Done.Trial:
		return p.unwell(n, out.Done.Health)
	}
	alive, giveUp := notHalfWay(ctx)
	defer giveUp()
	window := req.Confirm + health.Budget(req.Checks)
	if out.Plan.Boots {
		window += bootWait
	}
	why, said := after.controller(alive)
	done, err := p.confirm(alive, w, trial{n, out.Done.Generation.Number, window, begun}, why, j.bar)
	out.Done.Health = append(orNone(done.Health, out.Done.Health), said...)
	if err == nil {
		out.Done.Generation, out.Done.Trial = done.Generation, false
	}
	return err
}

// notHalfWay is a context for what has switched and is not to be left half way:
// it ends a while after ctx.
func notHalfWay(ctx context.Context) (alive context.Context, giveUp func()) {
	alive, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(switchWait, cancel) })
	return alive, func() { stop(); cancel() }
}

// left waits until a node that leaves what was on trial has come back. Where the
// connection broke before it was told, it is told now.
func (p *program) left(ctx context.Context, w *world, j *nodeJob, req wire.Request, begun time.Time) error {
	alive, giveUp := notHalfWay(ctx)
	defer giveUp()
	out := j.out
	_, err := p.confirm(alive, w, trial{j.node, out.Plan.From, req.Confirm + bootWait, begun}, "taken back by "+req.By, j.bar)
	var back *revertedError
	switch {
	case errors.As(err, &back):
		out.Done.Generation = back.now
		return nil
	case err == nil:
		return errors.New("it was told to start as it was, and has confirmed what it runs")
	}
	return err
}

// recordGeneration notes the generation that a node was brought to. One that the node
// took back at once is the one before the revert.
func (w *world) recordGeneration(ctx context.Context, node string, made inventory.Generation, done wire.Done, by string) error {
	g := done.Generation
	made.Node, made.Number, made.By = node, g.Number, by
	if g.Mode != "" { // what the node says
		made.Mode = g.Mode
	}
	if done.Reverted == "" {
		return w.state.AddGeneration(ctx, made)
	}
	made.Number--
	return errors.Join(w.state.AddGeneration(ctx, made), w.state.AddGeneration(ctx, inventory.Generation{Node: node, Number: g.Number, Ref: g.Ref,
		Image: g.Image.String(), Overlay: g.Overlay.String(), Within: g.Within, Mode: g.Mode, Kind: "revert", By: by, Reason: done.Reverted}))
}

// orNone is a, or b where there is nothing in a.
func orNone(a, b []string) []string {
	if len(a) > 0 {
		return a
	}
	return b
}

// notTrial reports whether a node says that there is nothing to confirm.
func notTrial(err error) bool {
	var peer *wire.Error
	return errors.As(err, &peer) && peer.Kind == "notrial"
}

// busyPeer reports whether a node says that it is at work.
func busyPeer(err error) bool {
	var peer *wire.Error
	return errors.As(err, &peer) && peer.Kind == "busy"
}

// confirm comes back to a node over a new connection and tells it to stay as
// it is, or for a reason to go back. Where the node cannot be reached, or has
// gone back itself, the error is a *revertedError as soon as the node can tell.
func (p *program) confirm(ctx context.Context, w *world, t trial, reason string, bar *bar) (done wire.Done, err error) {
	bar.show(wire.Progress{Task: "confirm"})
	deadline := t.begun.Add(t.window)
	req := wire.Request{Dir: "/", By: operator(), To: t.number, Reason: reason}
	for {
		var kept []wire.Generation
		done, kept, err = p.confirmOnce(ctx, w, t.node, req)
		switch {
		case err == nil && done.Reverted != "":
			return done, &revertedError{done.Reverted, done.Generation}
		case err == nil:
			return done, nil
		case notTrial(err):
			return done, whatBecame(kept, t, err)
		case ctx.Err() != nil:
			return done, err
		case time.Now().After(deadline.Add(confirmAfter)):
			return done, fmt.Errorf("it could not be reached after its switch to generation %d, and goes back by itself unless it is confirmed: %w", t.number, err)
		}
		bar.show(wire.Progress{Task: waiting(err, deadline)})
		select {
		case <-time.After(confirmRetry):
		case <-ctx.Done():
		}
	}
}

func waiting(err error, deadline time.Time) string {
	switch {
	case busyPeer(err): // its checks run, or it goes down
		return "confirm: " + brief(err.Error())
	case time.Now().Before(deadline):
		return "confirm: cannot reach it, until " + deadline.Format(time.TimeOnly)
	}
	return "not reached in time: it goes back by itself"
}

// confirmOnce connects anew and says what is to be said. kept is what the node
// keeps, where it said so.
func (p *program) confirmOnce(ctx context.Context, w *world, n *site.Node, req wire.Request) (done wire.Done, kept []wire.Generation, err error) {
	ctx, cancel := context.WithTimeout(ctx, greetWait)
	defer cancel()
	s, err := p.dialAgent(ctx, w, "root", n.Name, "")
	if err != nil {
		return done, nil, err
	}
	defer s.Close()
	done, err = imager.Confirm(ctx, s.conn, req, imager.Talk{Kept: func(k wire.Kept) error {
		kept = k.Generations
		return w.learn(ctx, n.Name, k)
	}})
	return done, kept, errors.Join(s.explain(err), w.learnSides(ctx, n.Name, done.Sides))
}

// whatBecame explains a generation that waits for nothing, by what the node keeps.
func whatBecame(kept []wire.Generation, t trial, err error) error {
	if len(kept) == 0 {
		return err
	}
	now := kept[len(kept)-1]
	switch {
	case now.Number > t.number && now.Kind == "revert":
		return &revertedError{now.Reason, now}
	case now.Number < t.number:
		return &unswitchedError{now.Number}
	case now.Number > t.number:
		return fmt.Errorf("somebody else made generation %d of it meanwhile: %s of %s", now.Number, now.Kind, now.Ref)
	}
	return err
}

// revertedError says that a node has gone back to the generation before.
type revertedError struct {
	reason string
	now    wire.Generation
}

func (e *revertedError) Error() string {
	return fmt.Sprintf("reverted, as generation %d: %s", e.now.Number, e.reason)
}

// unswitchedError says that a node has not switched, though it may have been told to.
type unswitchedError struct{ now int } // generation

func (e *unswitchedError) Error() string {
	return fmt.Sprintf("the connection broke before its switch: it is still generation %d", e.now)
}
