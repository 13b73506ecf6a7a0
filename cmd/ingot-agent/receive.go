package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"ingot/imager/wire"
	"ingot/internal/entry"
	"ingot/internal/pattern"
	"ingot/rollback"
)

// The agent's heap tries to stay under memory, in bytes: a node has its own
// work to do. Near it the collector runs as often as it can, which is in vain
// where what is needed does not fit: trees of very many entries get perEntry
// of each.
const (
	memory   = 56 << 20
	perEntry = 1500
)

// roomFor makes room for a tree of so many entries.
func roomFor(entries int) { debug.SetMemoryLimit(max(memory, int64(entries)*perEntry)) }

// receive serves one request of a controller. Once a switch has begun it is
// finished whatever becomes of the connection: hanging up and closed pipes are
// ignored, and the generation tells the next controller how it ended.
func receive(c *cli.Context) error {
	if err := isolate(); err != nil {
		return err
	}
	roomFor(0)
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	in, out := pollable(os.Stdin), pollable(os.Stdout)
	conn := wire.New(in, out)
	conn.KeepAlive(c.Context, wire.Ping, wire.Silence, func() { in.Close(); out.Close() })
	if err := conn.Greet(version); err != nil {
		return err
	}
	return answer(c.Context, conn)
}

// answer serves one request.
func answer(ctx context.Context, conn *wire.Conn) error {
	var req wire.Request
	err := conn.Expect(wire.KindRequest, &req, nil)
	if err == nil {
		err = serve(ctx, conn, req)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return errors.Join(err, conn.Send(wire.KindError, describe(err)))
	}
	return nil
}

// pollable returns f such that Close ends a Read or Write that waits.
func pollable(f *os.File) *os.File {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0) // two Files of one descriptor would both close it
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return f
	}
	return os.NewFile(uintptr(fd), f.Name())
}

func serve(ctx context.Context, conn *wire.Conn, req wire.Request) error {
	switch req.Verb {
	case wire.VerbPush:
		return push(ctx, conn, req)
	case wire.VerbRollback:
		if conf, err := sidesOf(req); conf != nil || err != nil {
			if err != nil {
				return err
			}
			return backSide(ctx, conn, conf, req)
		}
		return withNode(req.Dir, func(n *rollback.Node) error { return goBack(ctx, conn, n, req) })
	case wire.VerbDrift:
		return drift(ctx, conn, req)
	case wire.VerbRepair:
		return repair(ctx, conn, req)
	case wire.VerbConfirm:
		return confirm(ctx, conn, req)
	case wire.VerbCapture:
		return capture(ctx, conn, req)
	}
	return fmt.Errorf("the controller asks for %q, which this agent does not know", req.Verb)
}

// policyOf reads patterns as the operator and, for what those do not say, the
// profile gave them.
func policyOf(keep, take []string, usual wire.Local) (rollback.Policy, error) {
	p := rollback.Policy{Usual: &rollback.Policy{}}
	for _, x := range []struct {
		list  *pattern.List
		texts []string
		what  string
	}{{&p.Keep, keep, "--keep"}, {&p.Take, take, "--take"}, {&p.Usual.Keep, usual.Keep, "local_changes: keep"}, {&p.Usual.Take, usual.Take, "local_changes: take"}} {
		var err error
		if *x.list, err = pattern.Parse(x.texts); err != nil {
			return p, usageError{fmt.Sprintf("%s: %v", x.what, err)}
		}
	}
	for _, m := range usual.Merge {
		paths, err := pattern.Parse([]string{m.Path})
		if err != nil {
			return p, usageError{fmt.Sprintf("local_changes: merge: %v", err)}
		}
		p.Usual.Merge = append(p.Usual.Merge, rollback.Merger{Paths: paths, Command: m.Command})
	}
	return p, nil
}

func push(ctx context.Context, conn *wire.Conn, req wire.Request) error {
	t := rollback.Target{ID: req.Manifest, Within: req.Within, Image: req.Ref, ImageID: req.Image, Overlay: req.Overlay, Mode: "live", By: req.By, Full: req.Full}
	var err error
	if t.Policy, err = policyOf(req.Keep, req.Take, req.Usual); err != nil {
		return err
	}
	if t.NodeOwned, err = pattern.Parse(req.NodeOwned); err != nil {
		return fmt.Errorf("node_owned: %w", err)
	}
	if t.Never, err = pattern.Parse(req.Never); err != nil {
		return fmt.Errorf("never_roll_back: %w", err)
	}
	derived := pattern.Derived().Strings()
	for _, p := range req.Laid {
		derived = append(derived, "!"+p)
	}
	if t.Derived, err = pattern.Parse(derived); err != nil {
		return fmt.Errorf("laid: %w", err)
	}
	if conf, err := sidesOf(req); conf != nil || err != nil {
		if err != nil {
			return err
		}
		if t.Mode = "slots"; conf.Subvolumes() {
			t.Mode = "btrfs"
		}
		return pushSide(ctx, conn, conf, t, req)
	}
	return withNode(req.Dir, func(n *rollback.Node) error {
		n.Retention = retention(req)
		if t.Manifest, err = targetOf(conn, n, req); err != nil {
			return err
		}
		if err := conn.Send(wire.KindProgress, wire.Progress{Task: "compare"}); err != nil {
			return err
		}
		roomFor(len(t.Manifest.Entries))
		plan, err := n.Plan(ctx, t)
		t.Manifest = nil // the plan has it for as long as it is needed
		if err != nil {
			return err
		}
		return carryOut(ctx, conn, n, plan, req)
	})
}

// retention is what the profile says, or that it says nothing: that is not to
// be taken from the generation before.
func retention(req wire.Request) rollback.Retention {
	return rollback.Retention{Keep: cmp.Or(req.Retention.Generations, rollback.UsualKeep), Space: req.Retention.Bytes}
}

func goBack(ctx context.Context, conn *wire.Conn, n *rollback.Node, req wire.Request) error {
	policy, err := policyOf(req.Keep, req.Take, req.Usual)
	if err != nil {
		return err
	}
	n.Retention = retention(req)
	if err := conn.SendKept(kept(n)); err != nil {
		return err
	}
	if entries, err := n.Entries(); err == nil {
		roomFor(entries)
	}
	list, err := n.Generations()
	if err == nil {
		req.To, err = destination(list, req)
	}
	if err != nil {
		return err
	}
	plan, err := n.PlanRollback(ctx, req.To, policy, req.By)
	if err != nil {
		return err
	}
	return carryOut(ctx, conn, n, plan, req)
}

// shown shows a plan, and reports whether the controller agrees. One that must
// not be carried out is shown to who only looks.
func shown(conn *wire.Conn, plan *rollback.Plan, s wire.Plan, req wire.Request) (agreed bool, err error) {
	if err := plan.Err(); err != nil && !req.DryRun {
		return false, err
	} else if err != nil {
		e := describe(err)
		s.Refused = &e
	}
	if err := conn.SendPlan(s); err != nil {
		return false, err
	}
	f, err := conn.Next(nil)
	return err == nil && f.Kind == wire.KindRequest, err // or it has seen enough, or is gone
}

// carryOut shows the plan, and when the controller agrees stages and switches.
func carryOut(ctx context.Context, conn *wire.Conn, n *rollback.Node, plan *rollback.Plan, req wire.Request) error {
	if agreed, err := shown(conn, plan, summary(plan), req); !agreed {
		return err
	}
	if plan.Empty() && plan.Base != 0 {
		cur, err := n.Current()
		if err != nil {
			return err
		}
		n.Remember(plan)
		done := wire.Done{Generation: generation(cur, cur.Number), Unchanged: true}
		if cur.OnTrial() && !plan.Repair { // whoever switched was lost on the way
			if err := lookAfter(ctx, conn, n, cur, nil, req, &done); err != nil {
				return err
			}
		}
		return conn.Send(wire.KindAnswer, done)
	}
	if err := conn.Send(wire.KindProgress, wire.Progress{Task: "stage", Total: plan.NeedBytes}); err != nil {
		return err
	}
	if err := n.Stage(ctx, plan, source(conn, n, req)); err != nil {
		return damaged(plan, err)
	}
	done, err := switchTo(ctx, conn, n, plan, req)
	if err != nil {
		return err
	}
	return conn.Send(wire.KindAnswer, done)
}

// damaged names the files of a plan that the chunks are of which neither the
// node nor the controller has.
func damaged(p *rollback.Plan, err error) error {
	var unsent *wire.UnsentError
	if !errors.As(err, &unsent) {
		return err
	}
	why := "the undo copy is not what it was, and the store has no other"
	if p.Repair {
		why = "what it was given is not on the node, and the store does not have it any more (--keep leaves such a file as it is)"
	}
	var lost []rollback.Note
	for _, s := range p.Steps {
		if s.New != nil && slices.ContainsFunc(s.New.Chunks, func(c entry.Chunk) bool { return unsent.IDs[c.ID] }) {
			lost = append(lost, rollback.Note{Path: s.Path, Why: why})
		}
	}
	if len(lost) == 0 {
		return err
	}
	return &rollback.DamagedError{Notes: lost}
}

// some is a list that fits a frame.
func some(list []string) []string {
	const most = 1000
	if len(list) <= most {
		return list
	}
	return append(slices.Clone(list[:most]), fmt.Sprintf("and %d more", len(list)-most))
}

func summary(p *rollback.Plan) wire.Plan {
	out := wire.Plan{Need: len(p.Need), NeedBytes: p.NeedBytes, LocalBytes: p.Local(), From: p.Base, To: p.To, Next: p.Next(), Notes: notes(slices.Concat(p.Notes, p.Blocked))}
	for _, c := range p.Changes() {
		out.Changes = append(out.Changes, wire.Change{Path: c.Path, Kind: c.Kind.String(), Why: c.Why, OldSize: c.OldSize, NewSize: c.NewSize})
	}
	for _, d := range p.Drift() {
		out.Drift = append(out.Drift, wire.Drift{Path: wire.PathText(d.Path), Kind: string(d.Kind), Why: d.Why, Left: d.Left})
	}
	for _, c := range p.Conflicts {
		if p.Repair {
			break // all of them are drift, and decided
		}
		out.Conflicts = append(out.Conflicts, wire.Change{Path: c.Path, Kind: string(c.Kind), Why: c.Does()})
	}
	return out
}

func notes(list []rollback.Note) []string {
	var out []string
	for _, n := range list {
		out = append(out, n.String())
	}
	return out
}

func rollbackHere(c *cli.Context) error {
	policy, err := policyOf(c.StringSlice("keep"), c.StringSlice("take"), wire.Local{})
	if err != nil {
		return err
	}
	if conf, err := sidesOf(wire.Request{Dir: c.String("dir"), NoReboot: c.Bool("no-reboot")}); conf != nil || err != nil {
		if err == nil {
			err = isolate()
		}
		if err == nil {
			err = backHere(c, conf, policy)
		}
		return err
	}
	return withNode(c.String("dir"), func(n *rollback.Node) error {
		plan, err := n.PlanRollback(c.Context, c.Int("to"), policy, "console")
		if err != nil {
			return err
		}
		s := summary(plan)
		if c.Bool("dry-run") {
			for _, ch := range s.Changes {
				fmt.Fprintf(c.App.Writer, "%-8s %q  %s\n", ch.Kind, ch.Path, ch.Why)
			}
			return plan.Err()
		}
		if err := plan.Err(); err != nil {
			return err
		}
		if err := n.Stage(c.Context, plan, nil); err != nil { // no source: what is damaged here is named
			return err
		}
		g, err := n.Switch(context.WithoutCancel(c.Context), plan)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.App.Writer, "rolled back: generation %d is %s again, %d changes\n", g.Number, g.Image, len(s.Changes))
		return nil
	})
}

func recoverHere(c *cli.Context) error {
	_, err := recoverTree(c.String("dir"), c.App.Writer)
	return err
}
