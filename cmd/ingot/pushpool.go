package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/fleet"
	"ingot/imager/remote"
	"ingot/imager/wire"
	"ingot/inventory"
)

// defaultParallel is how many nodes are done at once. Each takes some memory
// (a manifest, chunks on their way) and a share of the line.
const defaultParallel = 8

func parallelFlag() cli.Flag {
	return &cli.IntFlag{Name: "parallel", Usage: "do at most `N` nodes at once", Value: defaultParallel}
}

// inPool runs fn for 0 to n-1, begun in order, at most parallel at once; when
// ctx ends no more are begun.
func inPool(ctx context.Context, n, parallel int, fn func(i int)) {
	fleet.Policy{Parallel: parallel}.Run(ctx, make([]int, n), 0, func(i int) fleet.Result { fn(i); return fleet.Done }, func(int, fleet.WaveDone, time.Duration) {})
}

// The states of an outcome.
const (
	stateDone        = "done"
	stateUnchanged   = "unchanged"
	statePlanned     = "planned"  // --dry-run
	stateDrained     = "drained"  // done, or unchanged, but it could not be put back into service
	stateReverted    = "reverted" // by the node itself, or since it could not be confirmed
	stateFailed      = "failed"
	stateUnreachable = "unreachable" // nothing was asked of it
	stateInterrupted = "interrupted"
	stateNotTried    = "not tried"
	stateRunning     = "running" // in the record
)

// outcome is how one node fared, for the answer.
type outcome struct {
	Node     string    `json:"node,omitempty"`
	Dir      string    `json:"dir,omitempty"`
	Wave     int       `json:"wave,omitempty"` // from 0
	State    string    `json:"state"`
	Error    string    `json:"error,omitempty"`
	Hint     string    `json:"hint,omitempty"`
	Plan     wire.Plan `json:"plan"`
	Done     wire.Done `json:"done"`
	Sent     int64     `json:"sent_bytes"`
	Received int64     `json:"received_bytes"`
	Written  int       `json:"written,omitempty"` // entries, where a directory was empty
	Seconds  float64   `json:"seconds"`

	err error
}

// ending is what the results mean for all nodes together.
func (p *program) ending(ctx context.Context, results []outcome) error {
	n := map[string]int{}
	var failed []string
	for _, r := range results {
		n[r.State]++
		if r.err != nil && (r.State == stateFailed || r.State == stateReverted || r.State == stateUnreachable || r.State == stateDrained) {
			failed = append(failed, r.Node)
		}
	}
	interrupted := ctx.Err() != nil && n[stateInterrupted]+n[stateNotTried] > 0
	switch {
	case len(failed) == 0 && n[stateNotTried] > 0 && !interrupted: // too many had failed before
		return coded{fmt.Errorf("nothing was begun: %s", tally(n)), exitSome}
	case len(results) == 1 && !interrupted:
		return results[0].err
	case interrupted:
		if len(results) > 1 {
			p.say("%s", tally(n))
		}
		return ctx.Err()
	case len(failed) == 0:
		return nil
	}
	return coded{fmt.Errorf("%s failed (%s): %s", count(len(failed), "node"), fold(failed), tally(n)), exitSome}
}

// tally counts the states, best first.
func tally(n map[string]int) string {
	var out []string
	for _, s := range []string{stateDone, stateUndrained, stateUnchanged, statePlanned, stateInterrupted, stateDrained, stateReverted, stateFailed, stateUnreachable, stateNotTried, stateRunning, inventory.NodeWaiting} {
		if n[s] > 0 {
			out = append(out, fmt.Sprintf("%d %s", n[s], s))
		}
	}
	return strings.Join(out, ", ")
}

// ofNode says which node an error is of, once.
func ofNode(name string, err error) error {
	who := fmt.Sprintf("node %q", name)
	if strings.HasPrefix(err.Error(), who) {
		return err
	}
	return fmt.Errorf("%s: %w", who, err)
}

// How long a node may take to say how it ended, once the operator has given
// up: before it has announced its switch, and after.
const (
	lastWords  = 3 * time.Second
	switchWait = time.Minute
)

func (d *deployment) oneNode(ctx context.Context, i int) (out outcome) {
	start := time.Now()
	n := d.nodes[i]
	out = outcome{Node: n.Name, Wave: d.rows[i].Wave, State: stateDone}
	j := &nodeJob{node: n, row: d.rows[i], out: &out, drains: d.drains, bar: d.show.screen.bar(n.Name+": ", i), note: func(plan wire.Plan) error {
		if d.plan.Work.DryRun && d.show.json == nil {
			d.show.screen.answer(itemised(n.Name, plan))
		}
		return d.planned(i, plan)
	}}
	err := d.onNode(ctx, j)
	for d.waits(ctx, j, err, start) {
		err = d.onNode(ctx, j)
	}
	told := j.bar.switching()
	j.bar.end()
	out.end(err, ctx.Err(), told)
	switch {
	case out.State == stateDone && d.plan.Work.DryRun:
		out.State = statePlanned
	case out.State == stateUnchanged && j.row.Was > 0 && out.Done.Generation.Number > j.row.Was:
		out.State = stateDone // by whoever worked at this before us
	}
	out.Seconds = time.Since(start).Seconds()
	return out
}

// end is how it ended: with err, perhaps as the operator gave up, and perhaps
// after the node was told to switch.
func (out *outcome) end(err, gaveUp error, told bool) {
	if out.Done.Unchanged {
		out.State = stateUnchanged
	}
	var already *alreadyError
	switch {
	case err == nil:
	case errors.As(err, &already):
		out.State, out.Done.Unchanged, out.Done.Generation = stateUnchanged, true, already.now
		out.Done.Notes = append(out.Done.Notes, already.why)
	case gaveUp != nil && !told:
		out.State, out.Error, out.err = stateInterrupted, "interrupted before its switch: nothing was changed", ofNode(out.Node, gaveUp)
	case errors.As(err, new(*revertedError)):
		out.State, out.Error, out.err = stateReverted, err.Error(), ofNode(out.Node, err)
	case errors.Is(err, errSilent):
		out.State, out.Error, out.err = stateInterrupted, err.Error(), ofNode(out.Node, err)
	default:
		out.err = ofNode(out.Node, err)
		switch out.State = stateFailed; {
		case errors.As(err, new(*outOfServiceError)):
			out.State = stateDrained
		case !told && errors.Is(err, remote.ErrReach):
			out.State = stateUnreachable
		}
		_, out.Hint, _ = diagnose(out.err)
		out.Error = err.Error()
	}
}

var errSilent = errors.New("interrupted, and the node did not say how it ended: `--dry-run` tells what it is now")

// onNode does one thing on one node. When ctx ends, the agent's input is
// closed and its last words are awaited: what has begun to switch is finished,
// and known to be.
func (d *deployment) onNode(ctx context.Context, j *nodeJob) error {
	alive, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	stop := context.AfterFunc(ctx, giveUp) // while nothing has been asked of the node
	s, err := d.p.dialAgent(alive, d.w, "root", j.node.Name, d.plan.Work.arch)
	if err != nil {
		return err
	}
	j.s = s
	defer s.Close()
	if !stop() {
		return ctx.Err()
	}
	defer context.AfterFunc(ctx, func() {
		s.hangUp()
		time.AfterFunc(lastWords, func() {
			if !j.bar.switching() {
				giveUp()
			}
		})
		time.AfterFunc(switchWait, giveUp)
	})()
	err = d.action(ctx, j)
	if err == nil && j.out.Plan.Refused != nil {
		err = s.explain(j.out.Plan.Refused)
	}
	j.out.Sent, j.out.Received = s.conn.Sent(), s.conn.Received()
	if err != nil && alive.Err() != nil {
		return errSilent
	}
	return err
}

// waits reports whether a node that could not be asked is asked again: one with
// two sides that was in work when its controller was killed may be starting anew.
func (d *deployment) waits(ctx context.Context, j *nodeJob, err error, begun time.Time) bool {
	if !d.inWork[j.node.Name] || ctx.Err() != nil || j.bar.switching() || time.Since(begun) > bootWait ||
		!errors.Is(err, remote.ErrReach) && !errors.As(err, new(*startError)) && !errors.Is(err, errBroke) && !busyPeer(err) {
		return false
	}
	if two, err := d.w.sidesOfNode(ctx, j.node.Name); err != nil || two == nil {
		return false
	}
	j.bar.show(wire.Progress{Task: "it may be starting: wait until " + begun.Add(bootWait).Format(time.TimeOnly) + ": " + brief(err.Error())})
	select {
	case <-time.After(confirmRetry):
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// reporting says to whom an outcome is reported, and when.
type reporting struct {
	json, dry bool
	only      bool // its error is left for the end
}

// report says how one node fared, as soon as it is known. The error of the
// only one is left for the end.
func (p *program) report(screen *screen, out outcome, to reporting) {
	who := orElse(out.Node, out.Dir)
	if n := out.Done.Reused; n > 0 {
		screen.say("%s: note: %s of an interrupted push reused", who, size(n))
	}
	switch {
	case out.err != nil && to.only:
	case out.err != nil:
		screen.say("%s: %s: %s", who, out.State, out.Error)
		if out.Hint != "" {
			screen.say("%s: hint: %s", who, out.Hint)
		}
	case to.json || to.dry:
	case out.State == stateUnchanged:
		for _, n := range folded(out.Done.Notes) {
			screen.say("%s: note: %s", who, n)
		}
		screen.answer(fmt.Sprintf("%s: unchanged, generation %d (%.1f s)\n", who, out.Done.Generation.Number, out.Seconds))
	case out.Dir != "":
		for _, n := range folded(out.Done.Notes) {
			screen.say("note: %s", n)
		}
		g, what := out.Done.Generation, count(len(out.Plan.Changes), "change")
		if out.Written > 0 {
			what = fmt.Sprintf("%d entries written", out.Written)
		}
		screen.answer(fmt.Sprintf("%s: generation %d is %s: %s (%.1f s)\n", who, g.Number, g.Ref, what, out.Seconds))
	default:
		for _, n := range folded(out.Done.Notes) {
			screen.say("%s: note: %s", who, n)
		}
		screen.answer(fmt.Sprintf("%s: generation %d is %s: %s, %s sent, switched in %.2f s (%.1f s in all)\n", who, out.Done.Generation.Number,
			out.Done.Generation.Ref, count(len(out.Plan.Changes), "change"), size(out.Sent), out.Done.SwitchSeconds, out.Seconds))
	}
}
