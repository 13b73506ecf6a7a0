package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/imager/wire"
	"ingot/inventory"
	"ingot/site"
)

// defaultParallel is how many nodes are done at once. Each takes some memory
// (a manifest, chunks on their way) and a share of the line.
const defaultParallel = 8

func parallelFlag() cli.Flag {
	return &cli.IntFlag{Name: "parallel", Usage: "do at most `N` nodes at once", Value: defaultParallel}
}

// The states of an outcome.
const (
	stateDone        = "done"
	stateUnchanged   = "unchanged"
	statePlanned     = "planned"  // --dry-run
	stateReverted    = "reverted" // by the node itself, or since it could not be confirmed
	stateFailed      = "failed"
	stateInterrupted = "interrupted"
	stateNotTried    = "not tried"
	stateRunning     = "running" // in the record
)

// outcome is how one node fared, for the answer.
type outcome struct {
	Node     string    `json:"node,omitempty"`
	Dir      string    `json:"dir,omitempty"`
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

// fleet is what is done to several nodes, for the record.
type fleet struct {
	kind  string // push, rollback, repair
	ref   string // the image as the operator named it
	image string // its digest
	arch  string // of its programs; "" is any
	look  bool   // it only looks: no deployment, one that fails stops no other, and the caller tells of those that do not
}

type nodeAction func(ctx context.Context, n *site.Node, s *agentSession, bar *bar, out *outcome) error

// eachNode does one thing on each node of a NODES expression, several at once,
// and tells the truth about each. After the first failure no further nodes are
// begun: a release that fails on one node is not spread. A dry run spreads
// nothing, goes on, and is not recorded as a deployment. Nodes of another
// architecture are refused.
func (p *program) eachNode(c *cli.Context, w *world, expr string, f fleet, fn nodeAction) error {
	results, recorded, err := p.onNodes(c, w, expr, f, fn)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		if err := p.printJSON(results); err != nil {
			return err
		}
	}
	if err := p.ending(c.Context, results); err != nil {
		return err
	}
	return recorded
}

// onNodes is eachNode without an answer; recorded is what became of the record.
func (p *program) onNodes(c *cli.Context, w *world, expr string, f fleet, fn nodeAction) (results []outcome, recorded, err error) {
	parallel := c.Int("parallel")
	if parallel < 1 {
		return nil, nil, usagef("--parallel: want 1 or more, got %d", parallel)
	}
	nodes, err := selectNodes(w.Site, expr)
	if err != nil {
		return nil, nil, err
	}
	if _, err := w.siteKey(); err != nil { // made at first use, once
		return nil, nil, err
	}
	record, err := p.begin(c, w, f, nodes)
	if err != nil {
		return nil, nil, err
	}
	screen := p.screen()
	defer screen.end()
	results = make([]outcome, len(nodes))
	for i, n := range nodes {
		results[i] = outcome{Node: n.Name, State: stateNotTried}
	}
	inPool(c.Context, len(nodes), parallel, func(i int) (goOn bool) {
		record.started(nodes[i].Name)
		results[i] = p.oneNode(c.Context, w, nodes[i], screen.bar(nodes[i].Name+": ", i), f.arch, fn)
		if results[i].State == stateDone && c.Bool("dry-run") {
			results[i].State = statePlanned
		}
		record.ended(results[i])
		if !f.look || results[i].err != nil {
			p.report(c, screen, results[i], len(nodes) == 1)
		}
		return results[i].err == nil || c.Bool("dry-run") || f.look
	})
	screen.end()
	return results, record.end(results), nil
}

// inPool runs fn for 0 to n-1, begun in order, at most parallel at once. Once
// one of them says no, or ctx ends, no more are begun; it returns when those
// that were have ended.
func inPool(ctx context.Context, n, parallel int, fn func(i int) (goOn bool)) {
	var mu sync.Mutex
	next := 0
	take := func() int {
		mu.Lock()
		defer mu.Unlock()
		if next >= n || ctx.Err() != nil {
			return -1
		}
		next++
		return next - 1
	}
	var wg sync.WaitGroup
	for range min(n, parallel) {
		wg.Go(func() {
			for i := take(); i >= 0; i = take() {
				if !fn(i) {
					mu.Lock()
					next = n
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
}

// ending is what the results mean for all nodes together.
func (p *program) ending(ctx context.Context, results []outcome) error {
	n := map[string]int{}
	var failed []string
	for _, r := range results {
		n[r.State]++
		if r.err != nil && (r.State == stateFailed || r.State == stateReverted) {
			failed = append(failed, r.Node)
		}
	}
	interrupted := ctx.Err() != nil && n[stateInterrupted]+n[stateNotTried] > 0
	switch {
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
	return coded{fmt.Errorf("%s failed (%s): %s", count(len(failed), "node"), strings.Join(failed, ", "), tally(n)), exitSome}
}

// tally counts the states, best first.
func tally(n map[string]int) string {
	var out []string
	for _, s := range []string{stateDone, stateUnchanged, statePlanned, stateInterrupted, stateReverted, stateFailed, stateNotTried, stateRunning, inventory.NodeWaiting} {
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

func (p *program) oneNode(ctx context.Context, w *world, n *site.Node, bar *bar, arch string, fn nodeAction) (out outcome) {
	start := time.Now()
	out = outcome{Node: n.Name, State: stateDone}
	err := p.onNode(ctx, w, n, bar, &out, arch, fn)
	told := bar.switching()
	bar.end()
	out.end(err, ctx.Err(), told)
	out.Seconds = time.Since(start).Seconds()
	return out
}

// end is how it ended: with err, perhaps as the operator gave up, and perhaps
// after the node was told to switch.
func (out *outcome) end(err, gaveUp error, told bool) {
	if out.Done.Unchanged {
		out.State = stateUnchanged
	}
	switch {
	case err == nil:
	case gaveUp != nil && !told:
		out.State, out.Error, out.err = stateInterrupted, "interrupted before its switch: nothing was changed", ofNode(out.Node, gaveUp)
	case errors.As(err, new(*revertedError)):
		out.State, out.Error, out.err = stateReverted, err.Error(), ofNode(out.Node, err)
	case errors.Is(err, errSilent):
		out.State, out.Error, out.err = stateInterrupted, err.Error(), ofNode(out.Node, err)
	default:
		out.err = ofNode(out.Node, err)
		out.State = stateFailed
		_, out.Hint, _ = diagnose(out.err)
		out.Error = err.Error()
	}
}

var errSilent = errors.New("interrupted, and the node did not say how it ended: `--dry-run` tells what it is now")

// onNode does one thing on one node. When ctx ends, the agent's input is
// closed and its last words are awaited: what has begun to switch is finished,
// and known to be.
func (p *program) onNode(ctx context.Context, w *world, n *site.Node, bar *bar, out *outcome, arch string, fn nodeAction) error {
	alive, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	stop := context.AfterFunc(ctx, giveUp) // while nothing has been asked of the node
	s, err := p.dialAgent(alive, w, "root", n.Name, arch)
	if err != nil {
		return err
	}
	defer s.Close()
	if !stop() {
		return ctx.Err()
	}
	defer context.AfterFunc(ctx, func() {
		s.hangUp()
		time.AfterFunc(lastWords, func() {
			if !bar.switching() {
				giveUp()
			}
		})
		time.AfterFunc(switchWait, giveUp)
	})()
	err = s.explain(fn(ctx, n, s, bar, out))
	if err == nil && out.Plan.Refused != nil {
		err = s.explain(out.Plan.Refused)
	}
	out.Sent, out.Received = s.conn.Sent(), s.conn.Received()
	if err != nil && alive.Err() != nil {
		return errSilent
	}
	return err
}

// report says how one node fared, as soon as it is known. The error of the
// only one is left for the end.
func (p *program) report(c *cli.Context, screen *screen, out outcome, only bool) {
	who := orElse(out.Node, out.Dir)
	if n := out.Done.Reused; n > 0 {
		screen.say("%s: note: %s of an interrupted push reused", who, size(n))
	}
	switch {
	case out.err != nil && only:
	case out.err != nil:
		screen.say("%s: %s: %s", who, out.State, out.Error)
		if out.Hint != "" {
			screen.say("%s: hint: %s", who, out.Hint)
		}
	case c.Bool("json") || c.Bool("dry-run"):
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
