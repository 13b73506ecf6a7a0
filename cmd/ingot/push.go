package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/imager"
	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/manifest"
	"ingot/inventory"
	"ingot/site"
)

func conflictFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "dry-run", Usage: "show what would change, change nothing"},
		&cli.StringSliceFlag{Name: "keep", Usage: "keep local changes of paths like `PATTERN`"},
		&cli.StringSliceFlag{Name: "take", Usage: "give up local changes of paths like `PATTERN`; they stay in the generation"},
		jsonFlag(),
	}
}

func (p *program) pushCommand() *cli.Command {
	return verb{name: "push", usage: "make running nodes equal to an image", args: "IMAGE NODES",
		about: `Makes the tree of each node equal to IMAGE plus the node's overlay, moving only chunks that the
  node lacks. Everything is staged beside the live tree and verified; then one journalled switch
  exchanges the files. Each displaced file is kept: ` + "`ingot rollback`" + ` moves no bytes.

  Node-owned paths (host name, host keys, /home, most of /var/lib, the profile's node_owned) and what
  the installation made on the node (fstab, boot loader, results of scripts) are not touched. Files
  that were changed on the node by hand refuse the push, by name, unless --keep or --take decides.`,
		examples: []string{"ingot push web:2 n1 --dry-run", "ingot push web:2 n1", "ingot push web:2 @web --take '/etc/nginx/**'"},
		flags:    conflictFlags(), run: p.push}.command()
}

func (p *program) rollbackCommand() *cli.Command {
	return verb{name: "rollback", usage: "take nodes back to an earlier generation", args: "NODES",
		about: `Takes each node back to the generation before, or to --to N, from what the node keeps itself: no
  bytes move, unless an undo copy is damaged: then the content comes from the store. The rollback is a
  generation of its own, so it can be rolled back too. On the node's console, with no server at all,
  ` + "`/.ingot/agent rollback`" + ` does the same.`,
		examples: []string{"ingot rollback n1", "ingot rollback @web", "ingot rollback n1 --to 3", "ingot rollback n1 --dry-run"},
		flags:    append([]cli.Flag{&cli.IntFlag{Name: "to", Usage: "the generation `N`", DefaultText: "the one before"}}, conflictFlags()...), run: p.rollback}.command()
}

// outcome is how one node fared, for the answer.
type outcome struct {
	Node     string    `json:"node"`
	State    string    `json:"state"` // done unchanged planned failed
	Error    string    `json:"error,omitempty"`
	Plan     wire.Plan `json:"plan"`
	Done     wire.Done `json:"done"`
	Sent     int64     `json:"sent_bytes"`
	Received int64     `json:"received_bytes"`
	Seconds  float64   `json:"seconds"`

	err error
}

func (p *program) push(c *cli.Context) error {
	if err := wantArgs(c, 2, 2); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	image, err := openRelease(c.Context, w, c.Args().First())
	if err != nil {
		return err
	}
	return p.eachNode(c, w, c.Args().Get(1), func(ctx context.Context, n *site.Node, s *agentSession, bar *bar, out *outcome) error {
		t, err := image.target(ctx, w, n)
		if err != nil {
			return err
		}
		req := wire.Request{Dir: "/", By: operator(), Ref: t.ref, Image: t.image, Overlay: t.overlay, NodeOwned: t.nodeOwned}
		p.policy(c, &req)
		if !req.DryRun {
			if err := w.give(ctx, n.Name, t.image); err != nil {
				return err
			}
		}
		out.Plan, out.Done, err = imager.Push(ctx, s.conn, req, t.manifest, t.source, p.talk(ctx, c, w, n, bar))
		if err != nil || req.DryRun || out.Done.Unchanged {
			return err
		}
		return w.state.AddGeneration(context.WithoutCancel(ctx), inventory.Generation{Node: n.Name, Number: out.Done.Generation.Number, Ref: req.Ref, Image: t.image.String(),
			Overlay: req.Overlay.String(), Mode: "live", Kind: "push", By: req.By})
	})
}

func (p *program) rollback(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	return p.eachNode(c, w, c.Args().First(), func(ctx context.Context, n *site.Node, s *agentSession, bar *bar, out *outcome) error {
		req := wire.Request{Dir: "/", By: operator(), To: c.Int("to")}
		p.policy(c, &req)
		var err error
		out.Plan, out.Done, err = imager.Rollback(ctx, s.conn, req, &lostSource{w: w, node: n}, p.talk(ctx, c, w, n, bar))
		if err != nil || req.DryRun || out.Done.Unchanged {
			return err
		}
		g := out.Done.Generation
		return w.state.AddGeneration(context.WithoutCancel(ctx), inventory.Generation{Node: n.Name, Number: g.Number, Ref: g.Ref, Image: g.Image.String(),
			Overlay: g.Overlay.String(), Mode: g.Mode, Kind: "rollback", By: req.By})
	})
}

func (p *program) policy(c *cli.Context, req *wire.Request) {
	req.DryRun, req.Keep, req.Take = c.Bool("dry-run"), c.StringSlice("keep"), c.StringSlice("take")
}

func (p *program) talk(ctx context.Context, c *cli.Context, w *world, n *site.Node, bar *bar) imager.Talk {
	return imager.Talk{Decide: p.decide(c, n.Name), Progress: bar.show,
		Kept: func(list []wire.Generation) error { return w.learn(ctx, n.Name, list) }}
}

// decide shows a plan that is only to be looked at.
func (p *program) decide(c *cli.Context, node string) func(wire.Plan) error {
	return func(plan wire.Plan) error {
		if !c.Bool("dry-run") || c.Bool("json") {
			return nil
		}
		for _, ch := range plan.Changes {
			fmt.Fprintf(p.Stdout, "%s: %-8s %q  %s\n", node, ch.Kind, "/"+ch.Path, ch.Why)
		}
		for _, ch := range plan.Conflicts {
			fmt.Fprintf(p.Stdout, "%s: conflict %q: %s on the node: %s\n", node, "/"+ch.Path, ch.Kind, ch.Why)
		}
		for _, n := range plan.Notes {
			fmt.Fprintf(p.Stdout, "%s: note     %s\n", node, n)
		}
		fmt.Fprintf(p.Stdout, "%s: %d changes, %d chunks (%s) to send\n", node, len(plan.Changes), plan.Need, size(plan.NeedBytes))
		return nil
	}
}

type nodeAction func(ctx context.Context, n *site.Node, s *agentSession, bar *bar, out *outcome) error

// eachNode does one thing on each node of a NODES expression, one after
// another, and tells the truth about each. It stops at the first failure: a
// release that fails on one node is not spread further.
func (p *program) eachNode(c *cli.Context, w *world, expr string, fn nodeAction) error {
	nodes, err := selectNodes(w.Site, expr)
	if err != nil {
		return err
	}
	var results []outcome
	for _, n := range nodes {
		out := p.oneNode(c.Context, w, n, fn)
		if out.State == "done" && c.Bool("dry-run") {
			out.State = "planned"
		}
		results = append(results, out)
		if !c.Bool("json") {
			p.report(c, out)
		}
		if out.err != nil {
			break
		}
	}
	if c.Bool("json") {
		if err := p.printJSON(results); err != nil {
			return err
		}
	}
	return p.ending(c.Context, results, len(nodes))
}

// ending is what the last result means for all of so many nodes.
func (p *program) ending(ctx context.Context, results []outcome, all int) error {
	last := results[len(results)-1]
	switch {
	case last.err == nil:
		return nil
	case all == 1:
		return last.err
	case ctx.Err() != nil:
		p.say("interrupted at %v; %d of %s done before, %d not tried", last.err, len(results)-1, count(all, "node"), all-len(results))
		return ctx.Err()
	}
	return coded{fmt.Errorf("%w; %d of %d nodes were not tried", last.err, all-len(results), all), exitSome}
}

// ofNode says which node an error is of, once.
func ofNode(name string, err error) error {
	who := fmt.Sprintf("node %q", name)
	if strings.HasPrefix(err.Error(), who) {
		return err
	}
	return fmt.Errorf("%s: %w", who, err)
}

func (p *program) oneNode(ctx context.Context, w *world, n *site.Node, fn nodeAction) (out outcome) {
	start := time.Now()
	out = outcome{Node: n.Name, State: "done"}
	bar := p.barOf(n.Name)
	s, err := p.dialAgent(ctx, w, "root", n.Name)
	if err == nil {
		err = s.explain(fn(ctx, n, s, bar, &out))
		if err == nil && out.Plan.Refused != nil {
			err = s.explain(out.Plan.Refused)
		}
		out.Sent, out.Received = s.conn.Sent(), s.conn.Received()
		s.Close()
	}
	bar.end()
	if out.Done.Unchanged {
		out.State = "unchanged"
	}
	if err != nil {
		out.State, out.err, out.Error = "failed", ofNode(n.Name, err), err.Error()
	}
	out.Seconds = time.Since(start).Seconds()
	return out
}

func (p *program) report(c *cli.Context, out outcome) {
	switch {
	case out.err != nil || c.Bool("dry-run"):
	case out.State == "unchanged":
		fmt.Fprintf(p.Stdout, "%s: unchanged, generation %d (%.1f s)\n", out.Node, out.Done.Generation.Number, out.Seconds)
	default:
		for _, n := range out.Done.Notes {
			p.say("%s: note: %s", out.Node, n)
		}
		fmt.Fprintf(p.Stdout, "%s: generation %d is %s: %d changes, %s sent, switched in %.2f s (%.1f s in all)\n", out.Node, out.Done.Generation.Number,
			out.Done.Generation.Ref, len(out.Plan.Changes), size(out.Sent), out.Done.SwitchSeconds, out.Seconds)
	}
}

// target is what a push brings a node to.
type target struct {
	ref       string
	image     digest.ID
	overlay   digest.ID
	nodeOwned []string
	manifest  *manifest.Manifest
	source    imager.Source
}
