package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/imager"
	"ingot/imager/wire"
	"ingot/site"
)

func (p *program) driftCommand() *cli.Command {
	return verb{name: "drift", usage: "show what of nodes is not what they were given", args: "NODES",
		about: `Compares each node with the record of its present generation, whoever made that: content, type, mode,
  owner, attributes, hard links, what was added and what is gone. What several nodes have alike is one
  line. Nothing on a node is changed.

  Node-owned and volatile paths are not compared. What the installation made, what is never rolled
  back, what local_changes of the profile keeps, and what was kept when the generation was made and has
  not changed since is shown as left. Times alone are no drift.

  Files whose inode is as it was are not read: a change leaves its mark there, whatever its size and
  time. --checksum reads them too, and finds what a disk has damaged.

  The exit status is 0 whether or not something differs, as that of ` + "`ingot image diff`" + `; with --exit-code
  it is 1 when something does that a repair would put back. A node that cannot be asked is a failure, and
  stops no other.`,
		examples: []string{"ingot drift all", "ingot drift n[01-16] --checksum", "ingot drift @web --path /etc --exit-code", "ingot drift all --json"},
		flags: []cli.Flag{
			&cli.StringFlag{Name: "path", Usage: "only `PATH`, such as /etc, and what is in it"},
			&cli.BoolFlag{Name: "checksum", Usage: "read every file of the node, also those whose inode did not change"},
			&cli.BoolFlag{Name: "exit-code", Usage: "exit with 1 when something differs"},
			parallelFlag(), jsonFlag(),
		}, run: p.drift}.command()
}

func (p *program) repairCommand() *cli.Command {
	return verb{name: "repair", usage: "make nodes again what they were given", args: "NODES",
		about: `Puts back what ` + "`ingot drift`" + ` shows, but for what that calls left. It is a deployment as a push is: staged
  and verified beside the tree, switched at once, looked after by the profile's checks, confirmed over a
  new connection, and taken back by ` + "`ingot rollback`" + `, since what is displaced stays on the node. Content
  that the node lost comes from the images that it was given; nothing else is sent.

  --keep PATTERN leaves files as they are. They then count as kept, for ` + "`ingot drift`" + `, too.

  A node with two sides gets what it was given on the other one, and starts from there.`,
		examples: []string{"ingot repair n1 --dry-run", "ingot repair all", "ingot repair n1 --path /etc", "ingot repair n1 --checksum --keep '/opt/local/**'"},
		flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "dry-run", Usage: "show what would change, change nothing"},
			&cli.StringFlag{Name: "path", Usage: "only `PATH`, such as /etc, and what is in it"},
			&cli.StringSliceFlag{Name: "keep", Usage: "keep local changes of paths like `PATTERN`"},
			&cli.BoolFlag{Name: "checksum", Usage: "read every file of the node, also those whose inode did not change"},
			&cli.BoolFlag{Name: "no-reboot", Usage: "of a node with two sides: it starts from the other one the next time, not now"},
			confirmFlag(defaultConfirm), noDrainFlag(), bwlimitFlag(), jsonFlag(),
		}, waveFlags()...), run: p.repair}.command()
}

// compared is what a drift and a repair ask of a node.
func compared(ctx context.Context, w *world, n *site.Node, x work) (req wire.Request, after *aftercare, err error) {
	r, err := resolveProfile(w.Site, n)
	if err != nil {
		return req, nil, err
	}
	req = x.ask()
	req.NodeOwned, req.Within = r.Profile.NodeOwned, x.Path
	after = afterOf(ctx, w, n, &r.Profile)
	after.ask(&req)
	return req, after, nil
}

// withinTree is --path of a tree that only the node knows.
func withinTree(c *cli.Context) (string, error) {
	path := c.String("path")
	if c.IsSet("path") && (!strings.HasPrefix(path, "/") || filepath.Clean(path) != "/"+strings.Trim(path, "/")) {
		return "", usagef("--path %q: want a clean path from the top of the node, such as /etc", path)
	}
	return strings.Trim(path, "/"), nil
}

func (p *program) drift(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	x := workOf(c, "drift")
	x.look = true
	var err error
	if x.Path, err = withinTree(c); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	results, err := p.look(c, w, c.Args().First(), x)
	if err != nil {
		return err
	}
	views := viewDrift(results)
	if c.Bool("json") {
		err = p.printJSON(views)
	} else {
		_, err = fmt.Fprint(p.Stdout, driftText(views))
	}
	if err != nil {
		return err
	}
	if err := p.ending(c.Context, results); err != nil {
		return err
	}
	if differing := differing(views); len(differing) > 0 && c.Bool("exit-code") {
		return withHint(fmt.Errorf("%s: not what was given", fold(differing)), "`ingot repair %s` puts it back", fold(differing))
	}
	return nil
}

func (p *program) driftNode(w *world, x work) nodeAction {
	return func(ctx context.Context, j *nodeJob) error {
		req, _, err := compared(ctx, w, j.node, x)
		if err != nil {
			return err
		}
		if j.out.Plan, err = imager.Drift(ctx, j.s.conn, req, p.talk(ctx, w, j, nil)); err != nil || req.Within != "" {
			return j.s.explain(err)
		}
		return w.sawDrift(ctx, j.node.Name, lookOf(j.out.Plan.From, j.out.Plan.Drift, req.Full, time.Now()))
	}
}

func (p *program) repair(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	if err := p.setLimit(c.String("bwlimit")); err != nil {
		return err
	}
	x := workOf(c, "repair")
	var err error
	if x.Path, err = withinTree(c); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	return p.deploy(c, w, c.Args().First(), x, nil)
}

func (p *program) repairNode(w *world, x work) nodeAction {
	return func(ctx context.Context, j *nodeJob) error {
		req, after, err := compared(ctx, w, j.node, x)
		if err != nil {
			return err
		}
		err = p.changed(ctx, w, j, req, after, nil, func(talk imager.Talk) (wire.Plan, wire.Done, error) {
			return imager.Repair(ctx, j.s.conn, req, &lostSource{w: w, node: j.node}, talk)
		}, again("repair"))
		if err != nil || req.DryRun || req.Within != "" || j.out.Done.NextBoot {
			return err
		}
		var left []wire.Drift
		for _, d := range j.out.Plan.Drift {
			if d.Left != "" {
				left = append(left, d)
			}
		}
		return w.sawDrift(context.WithoutCancel(ctx), j.node.Name, lookOf(j.out.Done.Generation.Number, left, req.Full, time.Now()))
	}
}
