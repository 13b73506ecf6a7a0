package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/imager/wire"
	"ingot/internal/health"
	"ingot/internal/units"
	"ingot/rollback"
	"ingot/rollback/sides"
)

// window is how long a request lets its generation be on trial; 0: it is not.
// Checks are a trial, too: where nobody is to confirm it, their success does.
func window(req wire.Request) time.Duration {
	switch {
	case req.Confirm > 0:
		return req.Confirm + health.Budget(req.Checks)
	case req.Verb != wire.VerbRollback && len(req.Checks) > 0:
		return health.Budget(req.Checks) + guardIdle
	}
	return 0
}

// switchTo switches a staged plan and looks at the node afterwards. What is on
// trial is guarded from before the switch on; what is found to be wrong goes
// back at once.
func switchTo(ctx context.Context, conn *wire.Conn, n *rollback.Node, plan *rollback.Plan, req wire.Request) (done wire.Done, err error) {
	// The last word of a living controller: without it nothing is switched. It
	// may take long, as the node is drained first: longer than a guard waits.
	if err := conn.SendRaw(wire.KindSwitch, nil); err != nil {
		return done, err // nobody is there any more; the next push goes on with what is staged
	}
	if err := conn.Expect(wire.KindSwitch, nil, nil); err != nil {
		return done, err
	}
	if window := window(req); window > 0 {
		plan.Try(window, running(ctx, req.Dir)...)
		if err := startGuard(ctx, req.Dir, plan.Next(), window, req.Units); err != nil {
			return done, &asBeforeError{err}
		}
	}
	conn.Send(wire.KindProgress, wire.Progress{Task: "exchange"}) // nobody need be there any more
	start := time.Now()
	g, err := n.Switch(context.WithoutCancel(ctx), plan)
	if err != nil {
		return done, notSwitched(g, err)
	}
	done = wire.Done{Notes: some(notes(plan.Notes)), Reused: plan.Reused, SwitchSeconds: time.Since(start).Seconds()}
	return done, lookAfter(context.WithoutCancel(ctx), conn, n, g, plan.Changes(), req, &done)
}

// lookAfter brings the programs of a node to what its files are, looks at its
// health, and decides what of that is its to decide.
func lookAfter(ctx context.Context, conn *wire.Conn, n *rollback.Node, g rollback.Generation, changes []rollback.Change, req wire.Request, done *wire.Done) error {
	conn.Send(wire.KindProgress, wire.Progress{Task: "units"}) // nobody need be there any more
	found, said := bringUp(ctx, changes, req.Units)
	done.Notes = append(done.Notes, said...)
	if len(req.Checks) > 0 {
		conn.Send(wire.KindProgress, wire.Progress{Task: "checks"})
	}
	found = append(found, look(ctx, req)...)
	done.Health = healthLines(found)
	if g.OnTrial() || len(found) > 0 {
		if err := n.Report(g.Number, found); err != nil {
			return err
		}
	}
	why := failures(found)
	switch {
	case g.OnTrial() && why != "":
		var err error
		if g, err = goBackNow(ctx, n, g.Number, why, req.Units); err != nil {
			return err
		}
		done.Reverted = why
	case g.OnTrial() && req.Confirm == 0:
		if err := n.Confirm(g.Number, "its checks"); err != nil {
			return err
		}
		g.Trial = nil
	}
	done.Generation, done.Trial = generation(g, g.Number), g.OnTrial()
	return nil
}

// bringUp reloads and restarts what a change concerns, as the policy says.
// What failed, and what went well, is found; the rest is said.
func bringUp(ctx context.Context, changes []rollback.Change, policy units.Policy) (found []rollback.Health, said []string) {
	var list []units.Change
	for _, c := range changes {
		list = append(list, units.Change{Path: c.Path, Kind: c.Kind.String(), Dev: c.Dev, Ino: c.Ino})
	}
	s := &units.Survey{}
	report, err := s.Look(ctx, list)
	if err != nil {
		return nil, []string{fmt.Sprintf("which programs the change concerns is not known: %v", err)}
	}
	for _, d := range s.Apply(ctx, report, policy) {
		if d.Skip == "" {
			found = append(found, rollback.Health{What: d.Action.String(), OK: d.OK, Why: d.Why})
		}
	}
	return found, report.Lines()
}

// look runs the checks that are to be run here.
func look(ctx context.Context, req wire.Request) (found []rollback.Health) {
	if len(req.Checks) == 0 {
		return nil
	}
	r := &health.Runner{Env: []string{"INGOT_IMAGE=" + req.Ref}}
	for _, x := range r.Run(ctx, req.Checks) {
		found = append(found, rollback.Health{What: "check " + x.Check.String(), OK: x.OK, Why: x.Why})
	}
	return found
}

// failures says what was found to be wrong, "" for nothing.
func failures(found []rollback.Health) string {
	var out []string
	for _, h := range found {
		if !h.OK {
			out = append(out, fmt.Sprintf("%s: %s", h.What, h.Why))
		}
	}
	return strings.Join(out, "; ")
}

// running lists the services that run before a switch. Where that is not
// known, a revert starts none of them again.
func running(ctx context.Context, dir string) []string {
	if _, err := os.Stat("/run/systemd/system"); err != nil || dir != "/" { // sd_booted(3)
		return nil
	}
	list, _ := (&units.Survey{}).Running(ctx)
	return list
}

// goBackNow reverts a generation, brings up what the way back concerns, and
// starts what ran before and did not outlive what is taken back.
func goBackNow(ctx context.Context, n *rollback.Node, num int, why string, policy units.Policy) (rollback.Generation, error) {
	var ran []string
	if g, err := n.Current(); err == nil && g.Number == num && g.OnTrial() {
		ran = g.Trial.Ran
	}
	g, plan, err := n.Revert(ctx, num, why)
	if err != nil {
		return g, err
	}
	found, _ := bringUp(ctx, plan.Changes(), policy)
	for _, d := range (&units.Survey{}).Restore(ctx, ran) {
		found = append(found, rollback.Health{What: d.Action.String(), OK: d.OK, Why: d.Why})
	}
	if len(found) > 0 && n.Report(g.Number, found) == nil { // it has gone back, whether or not that can be recorded
		g.Health = found
	}
	return g, nil
}

// confirm ends a trial, one way or the other. It is asked for over a
// connection that was made after the switch.
func confirm(ctx context.Context, conn *wire.Conn, req wire.Request) error {
	if conf, err := sidesHere(); conf != nil || err != nil {
		if t, terr := sides.ReadTrial(shared); err == nil && terr == nil && t != nil && t.Generation >= req.To {
			return confirmSide(conn, conf, req)
		}
		if err != nil {
			return err
		}
	}
	return withNode(req.Dir, func(n *rollback.Node) error {
		if err := conn.SendKept(kept(n)); err != nil {
			return err
		}
		if err := settle(context.WithoutCancel(ctx), n, req); err != nil {
			return err
		}
		g, err := n.Current()
		if err != nil {
			return err
		}
		return conn.Send(wire.KindAnswer, wire.Done{Generation: generation(g, g.Number), Reverted: g.Reason, Health: healthLines(g.Health)})
	})
}

func settle(ctx context.Context, n *rollback.Node, req wire.Request) error {
	if req.Reason != "" {
		_, err := goBackNow(ctx, n, req.To, req.Reason, req.Units)
		return err
	}
	if g, err := n.Current(); err == nil && g.Number == req.To && g.OnTrial() && g.Trial.Reported.IsZero() {
		return errUnchecked
	}
	return n.Confirm(req.To, req.By)
}

// errUnchecked: whoever confirms has to wait for the checks, which run in
// another process.
var errUnchecked = errors.New("its checks run")

// leavingError says that a side is on its way down: whoever confirms it has to
// wait for what comes up.
type leavingError struct{ why string }

func (e *leavingError) Error() string { return "it goes down, since: " + e.why }

func healthLines(list []rollback.Health) []string {
	var out []string
	for _, h := range list {
		line := "ok      " + h.What
		if !h.OK {
			line = fmt.Sprintf("failed  %s: %s", h.What, h.Why)
		}
		out = append(out, line)
	}
	return out
}

// confirmHere confirms on the node's console whatever is on trial.
func confirmHere(c *cli.Context) error {
	if conf, err := sidesOf(wire.Request{Dir: c.String("dir")}); err != nil {
		return err
	} else if conf != nil {
		if err := stay(conf, "console"); err != nil {
			return err
		}
		fmt.Fprintf(c.App.Writer, "side %s stays\n", conf.Side)
		return nil
	}
	return withNode(c.String("dir"), func(n *rollback.Node) error {
		g, err := n.Current()
		if err != nil {
			return err
		}
		if !g.OnTrial() {
			return fmt.Errorf("generation %d: %w", g.Number, rollback.ErrNoTrial)
		}
		if err := n.Confirm(g.Number, "console"); err != nil {
			return err
		}
		fmt.Fprintf(c.App.Writer, "generation %d stays\n", g.Number)
		return nil
	})
}

// policyText is a policy as the guard's command line carries it.
func policyText(p units.Policy) string {
	b, err := json.Marshal(p)
	if err != nil {
		panic("BUG: encode policy: " + err.Error())
	}
	return string(b)
}

func policyFrom(text string) (p units.Policy, err error) {
	if text == "" {
		return p, nil
	}
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return p, usageError{fmt.Sprintf("--units: %v", err)}
	}
	return p, nil
}
