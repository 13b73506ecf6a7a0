package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"ingot/imager"
	"ingot/imager/wire"
	"ingot/inventory"
	"ingot/site"
)

func conflictFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "dry-run", Usage: "show what would change, change nothing"},
		&cli.StringFlag{Name: "dir", Usage: "not nodes but the directory `DIR` of this machine"},
		&cli.StringSliceFlag{Name: "keep", Usage: "keep local changes of paths like `PATTERN`"},
		&cli.StringSliceFlag{Name: "take", Usage: "give up local changes of paths like `PATTERN`; they stay in the generation"},
		&cli.BoolFlag{Name: "no-reboot", Usage: "of a node with two sides: it starts from the other one the next time, not now"},
		bwlimitFlag(), parallelFlag(), jsonFlag(),
	}
}

func (p *program) pushCommand() *cli.Command {
	return verb{name: "push", usage: "make running nodes, or a directory, equal to an image", args: "IMAGE [NODES]",
		about: `Makes the tree of each node equal to IMAGE plus the node's overlay, moving only chunks that the
  node lacks. Everything is staged beside the live tree and verified; then one journalled switch
  exchanges the files. Each displaced file is kept: ` + "`ingot rollback`" + ` moves no bytes.

  Node-owned paths (host name, host keys, /home, most of /var/lib, the profile's node_owned) and what
  the installation made on the node (fstab, boot loader, results of scripts) are not touched. Files
  that were changed on the node by hand refuse the push, by name, unless --keep or --take decides.

  Several nodes are done at once (--parallel). When one fails, those under way are finished and no
  further ones are begun; each is reported: done, unchanged, failed, not tried. After Ctrl-C no node
  begins its switch, and one that has begun finishes it.

  After its switch a node waits for a confirmation (--confirm): we come back to it over a new
  connection. Where we cannot, since the release broke sshd or the network, the node goes back by
  itself when the time is up. It also goes back when it is booted within that time. Why is recorded:
  ` + "`ingot deployment show`" + ` tells it for each node.

  With --path only that path of the image, and what is in it, is compared and changed.

  With --dir a directory of this machine (a chroot, a mounted disk) becomes exactly IMAGE: no overlay,
  and nothing in it is node-owned. An empty one is written straight, and an interrupted push into it is
  finished by the same command. One that ingot has written gets what changed. One that holds anything
  else is refused unless --force says so: what the image lacks goes, though a rollback brings it back.
  The directories that this machine runs from (/, /usr, /etc ...) and those that hold the site are
  always refused. Who is not root gets what he can have (his own files, no devices) and is told the rest.`,
		examples: []string{"ingot push web:2 n1 --dry-run", "ingot push web:2 n1", "ingot push web:2 @web --take '/etc/nginx/**'", "ingot push web:2 @web --path /srv/www",
			"ingot push web:2 --dir /mnt"},
		flags: append([]cli.Flag{
			&cli.StringFlag{Name: "path", Usage: "only `PATH` of the image, such as /srv/www"},
			&cli.BoolFlag{Name: "checksum", Usage: "read every file of the node, also those whose inode did not change: finds what a disk has damaged"},
			&cli.BoolFlag{Name: "force", Usage: "with --dir: also where DIR holds what ingot did not put there"},
			confirmFlag(defaultConfirm),
		}, conflictFlags()...), run: p.push}.command()
}

func (p *program) rollbackCommand() *cli.Command {
	return verb{name: "rollback", usage: "take nodes, or a directory, back to an earlier generation", args: "[NODES]",
		about: `Takes each node back to the generation before, or to --to N, from what the node keeps itself: no
  bytes move, unless an undo copy is damaged: then the content comes from the store. The rollback is a
  generation of its own, so it can be rolled back too. On the node's console, with no server at all,
  ` + "`/.ingot/agent rollback`" + ` does the same. With --dir it is a directory that ` + "`ingot push --dir`" + ` has written.`,
		examples: []string{"ingot rollback n1", "ingot rollback @web", "ingot rollback n1 --to 3", "ingot rollback n1 --dry-run", "ingot rollback --dir /mnt"},
		flags:    append([]cli.Flag{&cli.IntFlag{Name: "to", Usage: "the generation `N`", DefaultText: "the one before"}, confirmFlag(0)}, conflictFlags()...), run: p.rollback}.command()
}

func (p *program) push(c *cli.Context) error {
	if err := wantNodesOrDir(c, 1); err != nil {
		return err
	}
	if err := p.setLimit(c); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	release, err := p.shareImages(c.Context, w)
	if err != nil {
		return err
	}
	defer release()
	image, err := openRelease(c.Context, w, c.Args().First())
	if err != nil {
		return err
	}
	if c.IsSet("dir") {
		return p.pushDir(c, w, image)
	}
	var within string
	if c.IsSet("path") {
		m, err := image.load()
		if err == nil {
			within, err = withinOf(c.String("path"), m)
		}
		if err != nil {
			return err
		}
	}
	nodes, err := selectNodes(w.Site, c.Args().Get(1))
	if err != nil {
		return err
	}
	shared := image.share(len(nodes))
	defer func() {
		if err := shared(); err != nil {
			p.say("note: %v", err)
		}
	}()
	fleet := fleet{kind: "push", ref: image.ref, image: image.id.String(), arch: image.arch}
	return p.eachNode(c, w, c.Args().Get(1), fleet, func(ctx context.Context, n *site.Node, s *agentSession, bar *bar, out *outcome) error {
		t, err := image.target(ctx, w, n)
		if err != nil {
			return err
		}
		req := wire.Request{Dir: "/", By: operator(), Ref: t.ref, Image: t.image, Overlay: t.overlay, NodeOwned: t.nodeOwned, Laid: t.laid, Within: within}
		p.policy(c, &req)
		t.after.ask(&req)
		t.Lost = &lostSource{w: w, node: n}
		if !req.DryRun && within == "" { // who gets a part may not ask for the rest
			if err := w.give(ctx, n.Name, t.image); err != nil {
				return err
			}
		}
		out.Plan, out.Done, err = imager.Push(ctx, s.conn, req, t.Target, p.talk(ctx, c, w, n, bar))
		return p.switched(ctx, w, n, bar, out, req, t.after, err, inventory.Generation{Ref: req.Ref, Image: t.image.String(),
			Overlay: req.Overlay.String(), Within: within, Mode: "live", Kind: "push"})
	})
}

func (p *program) rollback(c *cli.Context) error {
	if err := wantNodesOrDir(c, 0); err != nil {
		return err
	}
	if c.IsSet("dir") {
		return p.rollbackDir(c)
	}
	if err := p.setLimit(c); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	return p.eachNode(c, w, c.Args().First(), fleet{kind: "rollback"}, func(ctx context.Context, n *site.Node, s *agentSession, bar *bar, out *outcome) error {
		req := wire.Request{Dir: "/", By: operator(), To: c.Int("to")}
		p.policy(c, &req)
		r, err := resolveProfile(w.Site, n)
		if err != nil {
			return err
		}
		after := afterOf(ctx, w, n, &r.Profile)
		after.ask(&req)
		out.Plan, out.Done, err = imager.Rollback(ctx, s.conn, req, &lostSource{w: w, node: n}, p.talk(ctx, c, w, n, bar))
		g := out.Done.Generation
		return p.switched(ctx, w, n, bar, out, req, after, err, inventory.Generation{Ref: g.Ref, Image: g.Image.String(),
			Overlay: g.Overlay.String(), Within: g.Within, Mode: g.Mode, Kind: "rollback"})
	})
}

func (p *program) policy(c *cli.Context, req *wire.Request) {
	req.DryRun, req.Keep, req.Take, req.Confirm = c.Bool("dry-run"), c.StringSlice("keep"), c.StringSlice("take"), c.Duration("confirm")
	req.Full, req.NoReboot = c.Bool("checksum"), c.Bool("no-reboot")
}

func (p *program) talk(ctx context.Context, c *cli.Context, w *world, n *site.Node, bar *bar) imager.Talk {
	return imager.Talk{Decide: p.decide(c, bar.screen, n.Name), Progress: bar.show,
		Kept: func(kept wire.Kept) error { return w.learn(ctx, n.Name, kept) }}
}

// wantNodesOrDir checks the arguments: so many, and NODES or --dir.
func wantNodesOrDir(c *cli.Context, before int) error {
	if !c.IsSet("dir") {
		return wantArgs(c, before+1, before+1)
	}
	if c.IsSet("confirm") {
		return usagef("%s: --confirm is for nodes: a directory of this machine can be rolled back in any case", c.Command.HelpName)
	}
	if c.Args().Len() > before {
		return usagef("%s: NODES or --dir, not both", c.Command.HelpName)
	}
	return wantArgs(c, before, before)
}

// decide shows a plan that is only to be looked at.
func (p *program) decide(c *cli.Context, screen *screen, who string) func(wire.Plan) error {
	return func(plan wire.Plan) error {
		if !c.Bool("dry-run") || c.Bool("json") {
			return nil
		}
		screen.answer(itemised(who, plan))
		return nil
	}
}
