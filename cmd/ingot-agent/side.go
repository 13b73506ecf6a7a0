package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ingot/imager/wire"
	"ingot/internal/durable"
	"ingot/internal/health"
	"ingot/rollback"
	"ingot/rollback/sides"
)

// asked is what a trial remembers of the request that made it.
type asked struct {
	Ref    string         `json:"ref,omitempty"`
	By     string         `json:"by,omitempty"`
	Checks []health.Check `json:"checks,omitempty"`
}

// sidesOf returns the sides of the node that a request is about, nil for one
// that is changed in place.
func sidesOf(req wire.Request) (*sides.Config, error) {
	if req.Dir != "/" {
		return nil, nil
	}
	conf, err := sidesHere()
	if err == nil && conf == nil && req.NoReboot {
		err = errors.New("--no-reboot is for nodes with two sides: this one is changed in place, and is not started anew")
	}
	if err == nil && conf != nil {
		err = sharedHere(conf)
	}
	return conf, err
}

// pushSide makes the other side what the node is to be, and starts it once.
func pushSide(ctx context.Context, conn *wire.Conn, conf *sides.Config, t rollback.Target, req wire.Request) error {
	if req.Within != "" {
		return errors.New("a part of an image cannot be pushed to a node with two sides: push all of it")
	}
	if on, err := tried(conf); err != nil {
		return err
	} else if on != nil {
		return pushTried(conn, on, req)
	}
	return withPair(conf, true, func(p *pair) (err error) {
		p.here.Retention = retention(req)
		if t.Manifest, err = targetOf(conn, p.here, req); err != nil {
			return err
		}
		if err := conn.Send(wire.KindProgress, wire.Progress{Task: "compare"}); err != nil {
			return err
		}
		roomFor(2 * len(t.Manifest.Entries))
		plan, err := p.here.PlanSide(ctx, t, p.other)
		t.Manifest = nil
		if err != nil {
			return err
		}
		return p.carryOut(ctx, conn, plan, req, source(conn, p.here, req))
	})
}

// withPair opens both sides for fn, unless one is on trial: with anew to write
// the other one from an image.
func withPair(conf *sides.Config, anew bool, fn func(*pair) error) error {
	if t, err := sides.ReadTrial(shared); err != nil {
		return err
	} else if t.Open() && (!t.Waits() || t.Side == conf.Side) {
		return &sideBusyError{t}
	}
	p, err := openPair(conf, anew)
	if err != nil {
		return err
	}
	return errors.Join(fn(p), p.Close())
}

// sideBusyError says that a side is on trial. errors.Is(err, rollback.ErrOnTrial).
type sideBusyError struct{ t *sides.Trial }

func (e *sideBusyError) Error() string {
	return fmt.Sprintf("side %s, generation %d, waits to be started or confirmed", e.t.Side, e.t.Generation)
}

// busyHint is what can be done about it.
const busyHint = "it ends by itself: confirmed by the push that made it, or by `/.ingot/agent confirm` on the node, else the machine starts anew as it was"

// Is makes it an ErrOnTrial.
func (e *sideBusyError) Is(target error) bool { return target == rollback.ErrOnTrial }

// carryOut shows the plan, and when the controller agrees writes the other side.
func (p *pair) carryOut(ctx context.Context, conn *wire.Conn, plan *rollback.Plan, req wire.Request, src rollback.Source) error {
	cur, err := p.here.Current()
	if err != nil {
		return err
	}
	s := summary(plan)
	s.From, s.Boots = cur.Number, !req.NoReboot
	if agreed, err := shown(conn, plan, s, req); !agreed {
		return err
	}
	if plan.Here && req.Verb != wire.VerbRollback {
		return conn.Send(wire.KindAnswer, wire.Done{Generation: generation(cur, cur.Number), Unchanged: true})
	}
	if err := conn.Send(wire.KindProgress, wire.Progress{Task: "stage", Total: plan.NeedBytes}); err != nil {
		return err
	}
	if err := settleSide(p.conf); err != nil {
		return err
	}
	if plan, err = p.here.MergeSide(ctx, plan, p.other, src); err != nil {
		return err
	}
	if err := p.other.Stage(ctx, plan, src); err != nil {
		return damaged(plan, err)
	}
	if err := conn.SendRaw(wire.KindSwitch, nil); err != nil {
		return err
	}
	if err := conn.Expect(wire.KindSwitch, nil, nil); err != nil {
		return err
	}
	done, err := p.write(ctx, conn, plan, req, cur.Number)
	if err != nil {
		return &asBeforeError{err} // the side that runs was not touched
	}
	err = conn.Send(wire.KindAnswer, done)
	if !req.NoReboot {
		restart()
	}
	return err
}

// write makes the other side what is staged, closes both, and leaves the start
// from there to the caller.
func (p *pair) write(ctx context.Context, conn *wire.Conn, plan *rollback.Plan, req wire.Request, from int) (done wire.Done, err error) {
	begun := time.Now()
	g, err := p.other.Switch(context.WithoutCancel(ctx), plan)
	if err != nil {
		return done, err
	}
	conn.Send(wire.KindProgress, wire.Progress{Task: "verify"}) // nobody need be there any more
	if err := p.verified(ctx, plan); err != nil {
		return done, err
	}
	if err := p.tell(g, from, window(req), req.NoReboot, asked{Ref: g.Image, By: req.By, Checks: req.Checks}); err != nil {
		return done, err
	}
	done = wire.Done{Generation: generation(g, g.Number), Notes: some(notes(plan.Notes)), Reused: plan.Reused,
		SwitchSeconds: time.Since(begun).Seconds(), NextBoot: req.NoReboot, Trial: !req.NoReboot, Sides: sidesNow()}
	if req.NoReboot {
		done.Notes = append(done.Notes, "what changes on the node until it starts from there, outside of what both sides share, stays behind")
	}
	return done, p.Close()
}

// settleSide makes sure that the boot loader starts the side that runs, whatever
// happens from now on: somebody may have chosen it at the boot menu, and a trial
// may wait for the next start, which is given up.
func settleSide(conf *sides.Config) error {
	err := withEnv(conf, 0, func(dir string) error {
		want := sides.Env{Side: conf.Side}
		if is, err := conf.ReadEnv(dir); err == nil && is == want {
			return nil
		}
		return conf.WriteEnv(dir, want)
	})
	if err != nil {
		return err
	}
	_, err = sides.Change(shared, func(t *sides.Trial) error {
		t.Ended, t.Reason = time.Now().UTC(), "given up before the machine was started for it"
		return nil
	})
	if errors.Is(err, sides.ErrOver) {
		return nil
	}
	return err
}

// verified reads the other side from its disk and compares it with what was
// written: only what has passed may be started.
func (p *pair) verified(ctx context.Context, plan *rollback.Plan) error {
	if err := p.again(); err != nil {
		return err
	}
	return p.other.Verify(context.WithoutCancel(ctx), plan)
}

// tell completes the other side and tells the boot loader to start it once:
// the last of all writes.
func (p *pair) tell(g rollback.Generation, from int, window time.Duration, later bool, what asked) error {
	if err := copyAgent(otherDir); err != nil {
		return err
	}
	if err := p.conf.On(sides.Other(p.conf.Side)).Write(otherDir); err != nil {
		return err
	}
	if err := withEnv(p.conf, 0, func(dir string) error { return p.conf.Place(dir, sides.Other(p.conf.Side), otherDir) }); err != nil {
		return err
	}
	if err := errors.Join(saveList(p.here, p.conf.Side), saveList(p.other, sides.Other(p.conf.Side))); err != nil {
		return err
	}
	for _, dir := range []string{otherDir, shared} {
		if err := durable.SyncFS(dir); err != nil {
			return err
		}
	}
	b, err := json.Marshal(what)
	if err != nil {
		return err
	}
	if err := p.adopt(); err != nil {
		return err
	}
	t := &sides.Trial{Side: sides.Other(p.conf.Side), Generation: g.Number, From: from, Window: window, Later: later, Asked: b, Made: time.Now().UTC()}
	if err := t.Write(shared); err != nil {
		return err
	}
	return withEnv(p.conf, 0, func(dir string) error {
		e, err := p.conf.ReadEnv(dir)
		if err != nil {
			return err
		}
		e.Try = t.Side
		return p.conf.WriteEnv(dir, e)
	})
}

// restart starts the machine anew: in order where that is possible.
func restart() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if exec.CommandContext(ctx, "systemctl", "reboot", "--no-block").Run() == nil {
		return
	}
	unix.Sync()
	fmt.Fprintln(os.Stderr, unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
}

// confirmSide ends the trial of a side, one way or the other.
func confirmSide(conn *wire.Conn, conf *sides.Config, req wire.Request) error {
	return reading(func(n *rollback.Node) error {
		if err := conn.SendKept(kept(n)); err != nil {
			return err
		}
		cur, err := n.Current()
		if err != nil {
			return err
		}
		t, err := sides.ReadTrial(shared)
		switch {
		case err != nil:
			return err
		case t.Open() && t.Side != conf.Side:
			return &sideBusyError{t}
		case t.Open() && t.Generation == req.To && req.Reason != "":
			giveUp(req.Reason)
			return &leavingError{req.Reason}
		case t.Open() && t.Reason != "":
			return &leavingError{t.Reason}
		case t.Open() && t.Looked.IsZero():
			return errUnchecked
		case t.Open() && t.Generation == req.To:
			if err := stay(conf, req.By); err != nil {
				return err
			}
		case t == nil || t.Generation != req.To || t.Open():
			return fmt.Errorf("generation %d: %w", req.To, rollback.ErrNoTrial)
		case t.Reason != "":
			return fmt.Errorf("generation %d: %w", req.To, rollback.ErrNoTrial) // the list says why
		}
		return conn.Send(wire.KindAnswer, wire.Done{Generation: generation(cur, cur.Number), Health: healthLines(cur.Health), Sides: sidesNow()})
	})
}

// stay makes the side that runs, and is on trial, the one that is started. The
// boot loader is told first: when that is done it is true.
func stay(conf *sides.Config, by string) error {
	_, err := sides.Change(shared, func(t *sides.Trial) error {
		if t.Side != conf.Side || t.Reason != "" {
			return sides.ErrOver
		}
		if err := withEnv(conf, 0, func(dir string) error { return conf.WriteEnv(dir, sides.Env{Side: conf.Side}) }); err != nil {
			return err
		}
		t.Ended, t.By = time.Now().UTC(), by
		return nil
	})
	return err
}

// giveUp notes why the side that runs does not stay, and starts the machine anew.
func giveUp(why string) {
	if errors.Is(noteReason(why), sides.ErrOver) {
		return
	}
	restart()
}

// noteReason notes why the side that runs does not stay: its guard starts the machine anew.
func noteReason(why string) error {
	_, err := sides.Change(shared, func(t *sides.Trial) error {
		if t.Reason == "" {
			t.Reason = why
		}
		return nil
	})
	return err
}

// sideList is where a side leaves the list of its generations for the other one.
func sideList(side string) string { return filepath.Join(shared, "ingot/generations-"+side+".json") }

func saveList(n *rollback.Node, side string) error {
	list, err := generations(n)
	if err != nil {
		return err
	}
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(sideList(side)), 0o700); err != nil {
		return err
	}
	return os.WriteFile(sideList(side), b, 0o600)
}

// allGenerations adds to those of the tree those of the node's other side. What
// was found on a side before the first push is not one.
func allGenerations(n *rollback.Node) ([]wire.Generation, error) {
	list, err := generations(n)
	if err != nil {
		return nil, err
	}
	if !n.Boots {
		return list, nil
	}
	conf, err := sidesHere()
	if conf == nil || err != nil {
		return list, err
	}
	b, err := os.ReadFile(sideList(sides.Other(conf.Side)))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var more []wire.Generation
	if err == nil {
		if err := json.Unmarshal(b, &more); err != nil {
			return nil, err
		}
	}
	for i := range more {
		more[i].Current = false
	}
	list = slices.DeleteFunc(append(list, more...), func(g wire.Generation) bool { return g.Kind == "found" })
	slices.SortStableFunc(list, func(a, b wire.Generation) int { return a.Number - b.Number })
	list = slices.CompactFunc(list, func(a, b wire.Generation) bool { return a.Number == b.Number }) // a side that began as a snapshot has those of the other one
	onTrial(conf, list)
	return list, nil
}
