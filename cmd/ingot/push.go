package main

import (
	"slices"

	"github.com/urfave/cli/v2"
)

func conflictFlags() []cli.Flag {
	return append([]cli.Flag{&cli.StringFlag{Name: "dir", Usage: "not nodes but the directory `DIR` of this machine"}}, undoFlags()...)
}

func undoFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "dry-run", Usage: "show what would change, change nothing"},
		&cli.StringSliceFlag{Name: "keep", Usage: "keep local changes of paths like `PATTERN`"},
		&cli.StringSliceFlag{Name: "take", Usage: "give up local changes of paths like `PATTERN`; they stay in the generation"},
		&cli.BoolFlag{Name: "no-reboot", Usage: "of a node with two sides: it starts from the other one the next time, not now"},
		noDrainFlag(), bwlimitFlag(), jsonFlag(),
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

  Several nodes are done at once (--parallel), in waves where --canary or --batch says so. When more fail
  than --max-failures (none), those under way are finished and no further ones are begun; each is reported:
  done, unchanged, drained, reverted, failed, unreachable, not tried. After Ctrl-C no node begins its
  switch, and one that has begun finishes it. ` + "`ingot deployment resume`" + ` goes on, also where we were killed,
  and ` + "`ingot deployment undo`" + ` takes back what was done. While nodes are worked at nobody else is let at them.
  With --json standard output has a line of JSON for each event.

  After its switch a node waits for a confirmation (--confirm): we come back to it over a new
  connection. Where we cannot, since the release broke sshd or the network, the node goes back by
  itself when the time is up. It also goes back when it is booted within that time. Why is recorded:
  ` + "`ingot deployment show`" + ` tells it for each node.

  Where a node's profile has drain: and undrain: (a load balancer, Slurm), a node that has staged
  everything is taken out of service before its switch, and put back once it is confirmed, or is what
  it was before. One of which that is not known stays out, and it is said: see ` + "`ingot drain --help`" + `.

  With --path only that path of the image, and what is in it, is compared and changed.

  With --dir a directory of this machine (a chroot, a mounted disk) becomes exactly IMAGE: no overlay,
  and nothing in it is node-owned. An empty one is written straight, and an interrupted push into it is
  finished by the same command. One that ingot has written gets what changed. One that holds anything
  else is refused unless --force says so: what the image lacks goes, though a rollback brings it back.
  The directories that this machine runs from (/, /usr, /etc ...) and those that hold the site are
  always refused. Who is not root gets what he can have (his own files, no devices) and is told the rest.`,
		examples: []string{"ingot push web:2 n1 --dry-run", "ingot push web:2 n1", "ingot push web:2 @web --canary 1 --batch 25% --max-failures 2 --auto-rollback wave", "ingot push web:2 @web --take '/etc/nginx/**'", "ingot push web:2 @web --path /srv/www",
			"ingot push web:2 --dir /mnt"},
		flags: append([]cli.Flag{
			&cli.StringFlag{Name: "path", Usage: "only `PATH` of the image, such as /srv/www"},
			&cli.BoolFlag{Name: "checksum", Usage: "read every file of the node, also those whose inode did not change: finds what a disk has damaged"},
			&cli.BoolFlag{Name: "force", Usage: "with --dir: also where DIR holds what ingot did not put there"},
			confirmFlag(defaultConfirm), autoBackFlag(),
		}, slices.Concat(waveFlags(), conflictFlags())...), run: p.push}.command()
}

func (p *program) rollbackCommand() *cli.Command {
	return verb{name: "rollback", usage: "take nodes, or a directory, back to an earlier generation", args: "[NODES]",
		about: `Takes each node back to the generation before, or to the one that --to names, from what the node keeps
  itself: no bytes move, unless an undo copy is damaged: then the content comes from the store. The
  rollback is a generation of its own, so it can be rolled back too. With --deployment all nodes go back
  that a deployment has changed, each to what it was before. Nodes are done in waves, and drained, as in a
  push. On the node's console, with no server at all, ` + "`/.ingot/agent rollback`" + ` does the same. With --dir it is a directory that ` + "`ingot push --dir`" + ` has written.`,
		examples: []string{"ingot rollback n1", "ingot rollback @web", "ingot rollback n1 --to 3", "ingot rollback n[01-16] --to web:2026-11-01", "ingot rollback --deployment last", "ingot rollback n1 --dry-run", "ingot rollback --dir /mnt"},
		flags: append([]cli.Flag{
			&cli.StringFlag{Name: "to", Usage: "the generation `N`, or the newest one of an image", DefaultText: "the one before"},
			&cli.StringFlag{Name: "deployment", Usage: "no NODES: take back what the deployment `ID` made of its nodes; last: the newest"},
			confirmFlag(0),
		}, slices.Concat(waveFlags(), conflictFlags())...), run: p.rollback}.command()
}

func (p *program) push(c *cli.Context) error {
	if err := wantNodesOrDir(c, 1); err != nil {
		return err
	}
	if err := p.setLimit(c.String("bwlimit")); err != nil {
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
	ref := c.Args().First()
	id, err := resolveImage(c.Context, w, ref)
	if err != nil {
		return err
	}
	image, err := openRelease(c.Context, w, ref, id)
	if err != nil {
		return err
	}
	if c.IsSet("dir") {
		return p.pushDir(c, w, image)
	}
	x := workOf(c, "push")
	x.Ref, x.Image, x.arch = image.ref, image.id, image.arch
	if c.IsSet("path") {
		m, err := image.load()
		if err == nil {
			x.Path, err = withinOf(c.String("path"), m)
		}
		if err != nil {
			return err
		}
	}
	return p.deploy(c, w, c.Args().Get(1), x, image)
}

func (p *program) rollback(c *cli.Context) error {
	if c.IsSet("deployment") {
		if c.IsSet("to") || c.IsSet("dir") {
			return usagef("%s: --deployment takes each node back to what it was before: neither --to nor --dir goes with it", c.Command.HelpName)
		}
		return p.undo(c, c.String("deployment"), 0)
	}
	if err := wantNodesOrDir(c, 0); err != nil {
		return err
	}
	if c.IsSet("dir") {
		return p.rollbackDir(c)
	}
	if err := p.setLimit(c.String("bwlimit")); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	x := workOf(c, "rollback")
	if err := x.to(c.Context, w, c.String("to")); err != nil {
		return err
	}
	return p.deploy(c, w, c.Args().First(), x, nil)
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
