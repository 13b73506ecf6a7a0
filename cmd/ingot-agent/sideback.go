package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"ingot/imager/wire"
	"ingot/rollback"
	"ingot/rollback/sides"
)

// backSide makes the other side what it was, with what is the node's own, and
// starts it.
func backSide(ctx context.Context, conn *wire.Conn, conf *sides.Config, req wire.Request) error {
	policy, err := policyOf(req.Keep, req.Take, req.Usual)
	if err != nil {
		return err
	}
	if t, err := sides.ReadTrial(shared); err == nil && t.Waits() && t.Side != conf.Side {
		return forgo(conn, conf, t, req)
	}
	if on, err := tried(conf); err != nil {
		return err
	} else if on != nil {
		return backTried(conn, on, req)
	}
	return withPair(conf, false, func(p *pair) error {
		p.here.Retention = retention(req)
		if err := conn.SendKept(kept(p.here)); err != nil {
			return err
		}
		if req.ToRef != "" {
			if cur, err := p.other.Current(); err != nil || !isOf(cur, req) {
				return fmt.Errorf("the other side is not of %s: %w", req.ToRef, rollback.ErrNoGeneration)
			}
		}
		plan, err := p.planBack(ctx, req.To, policy, req.By)
		if err != nil {
			return err
		}
		return p.carryOut(ctx, conn, plan, req, source(conn, p.here, req))
	})
}

// forgo is the way back from what was pushed and waits for the next start: the
// machine goes on with what it runs.
func forgo(conn *wire.Conn, conf *sides.Config, t *sides.Trial, req wire.Request) error {
	return withNode("/", func(n *rollback.Node) error {
		cur, err := n.Current()
		if err != nil {
			return err
		}
		if err := conn.SendKept(kept(n)); err != nil {
			return err
		}
		why := fmt.Sprintf("generation %d of side %s is not tried at the next start; the machine goes on with generation %d", t.Generation, t.Side, cur.Number)
		if agreed, err := shown(conn, &rollback.Plan{}, wire.Plan{From: cur.Number, Notes: []string{why}}, req); !agreed {
			return err
		}
		if err := settleSide(conf); err != nil {
			return err
		}
		return conn.Send(wire.KindAnswer, wire.Done{Generation: generation(cur, cur.Number), Unchanged: true, Notes: []string{why}, Sides: sidesNow()})
	})
}

// planBack plans the way back to the other side; to is 0 or what is there.
func (p *pair) planBack(ctx context.Context, to int, policy rollback.Policy, by string) (*rollback.Plan, error) {
	if entries, err := p.here.Entries(); err == nil {
		roomFor(2 * entries)
	}
	cur, err := p.other.Current()
	if errors.Is(err, rollback.ErrNoGeneration) {
		return nil, fmt.Errorf("nothing was pushed to the other side yet: %w", err)
	}
	if err != nil {
		return nil, err
	}
	if to != 0 && to != cur.Number {
		return nil, fmt.Errorf("generation %d: the other side is generation %d: %w", to, cur.Number, rollback.ErrNoGeneration)
	}
	why, err := p.untrusted(cur)
	if err != nil {
		return nil, err
	}
	if why != "" && to == 0 {
		return nil, fmt.Errorf("generation %d of the other side %s: push what the node is to be, or say `--to %[1]d` to start that", cur.Number, why)
	}
	return p.here.PlanSideBack(ctx, p.other, policy, by)
}

// untrusted says why nobody should go back to the other side without meaning
// it: what is there never ran, or did not stay.
func (p *pair) untrusted(there rollback.Generation) (why string, err error) {
	here, err := p.here.Current()
	if err != nil {
		return "", err
	}
	t, err := sides.ReadTrial(shared)
	switch {
	case err != nil:
		return "", err
	case t != nil && !t.Open() && t.Reason != "" && t.Generation == there.Number:
		return "did not stay (" + t.Reason + ")", nil
	case there.Number > here.Number:
		return "was never started", nil
	}
	return "", nil
}

// backHere is `rollback` on the console of a node with two sides.
func backHere(c *cli.Context, conf *sides.Config, policy rollback.Policy) error {
	if t, err := sides.ReadTrial(shared); err == nil && t.Waits() && t.Side != conf.Side {
		if c.Bool("dry-run") {
			return nil
		}
		fmt.Fprintf(c.App.Writer, "generation %d of side %s is not tried at the next start\n", t.Generation, t.Side)
		return settleSide(conf)
	}
	if on, err := tried(conf); err != nil {
		return err
	} else if on != nil {
		return leaveHere(c, on)
	}
	booting := false
	err := withPair(conf, false, func(p *pair) error {
		plan, err := p.planBack(c.Context, c.Int("to"), policy, "console")
		if err != nil {
			return err
		}
		if c.Bool("dry-run") {
			for _, ch := range summary(plan).Changes {
				fmt.Fprintf(c.App.Writer, "%-8s %q  %s\n", ch.Kind, ch.Path, ch.Why)
			}
			return plan.Err()
		}
		if err := plan.Err(); err != nil {
			return err
		}
		cur, err := p.here.Current()
		if err != nil {
			return err
		}
		if err := settleSide(p.conf); err != nil {
			return err
		}
		if err := p.other.Stage(c.Context, plan, nil); err != nil {
			return err
		}
		ctx := context.WithoutCancel(c.Context)
		g, err := p.other.Switch(ctx, plan)
		if err != nil {
			return err
		}
		if err := p.verified(ctx, plan); err != nil {
			return err
		}
		if err := p.tell(g, cur.Number, 0, c.Bool("no-reboot"), asked{Ref: g.Image, By: "console"}); err != nil {
			return err
		}
		booting = true
		fmt.Fprintf(c.App.Writer, "generation %d, %s, starts the next time, from side %s\n", g.Number, g.Image, sides.Other(conf.Side))
		return nil
	})
	if err == nil && booting && !c.Bool("no-reboot") {
		restart()
	}
	return err
}
