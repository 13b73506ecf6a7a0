package main

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"ingot/imager/wire"
	"ingot/internal/pattern"
	"ingot/rollback"
)

// repairOf reads what a drift or a repair is about.
func repairOf(req wire.Request) (t rollback.Repair, err error) {
	t = rollback.Repair{Within: req.Within, By: req.By, Full: req.Full}
	if t.Policy, err = policyOf(req.Keep, nil, req.Usual); err != nil {
		return t, err
	}
	if t.NodeOwned, err = pattern.Parse(req.NodeOwned); err != nil {
		return t, fmt.Errorf("node_owned: %w", err)
	}
	if t.Never, err = pattern.Parse(req.Never); err != nil {
		return t, fmt.Errorf("never_roll_back: %w", err)
	}
	return t, nil
}

// drift says what of the node is not what it was given. It changes nothing, and
// of a node with two sides looks at the one that runs.
func drift(ctx context.Context, conn *wire.Conn, req wire.Request) error {
	t, err := repairOf(req)
	if err != nil {
		return err
	}
	look := func(n *rollback.Node) error {
		if err := toCompare(conn, n); err != nil {
			return err
		}
		plan, err := n.Drift(ctx, t)
		if err != nil {
			return err
		}
		s := summary(plan)
		s.Changes = nil // of them nothing is going to be done
		return conn.SendPlan(s)
	}
	conf, err := sidesOf(req)
	switch {
	case err != nil:
		return err
	case conf != nil:
		return withHere(look)
	}
	return withNode(req.Dir, look)
}

// repair makes the node again what it was given.
func repair(ctx context.Context, conn *wire.Conn, req wire.Request) error {
	t, err := repairOf(req)
	if err != nil {
		return err
	}
	conf, err := sidesOf(req)
	if err != nil {
		return err
	}
	if conf == nil {
		return withNode(req.Dir, func(n *rollback.Node) error {
			n.Retention = retention(req)
			if err := toCompare(conn, n); err != nil {
				return err
			}
			plan, err := n.PlanRepair(ctx, t)
			if err != nil {
				return err
			}
			return carryOut(ctx, conn, n, plan, req)
		})
	}
	if req.Within != "" {
		return errors.New("a part of a node with two sides cannot be repaired: repair all of it")
	}
	return withPair(conf, true, func(p *pair) error {
		p.here.Retention = retention(req)
		if err := toCompare(conn, p.here); err != nil {
			return err
		}
		plan, err := p.here.PlanSideRepair(ctx, t, p.other)
		if err != nil {
			return err
		}
		return p.carryOut(ctx, conn, plan, req, source(conn, p.here, req))
	})
}

// toCompare tells the controller what the node keeps, and makes room for it.
func toCompare(conn *wire.Conn, n *rollback.Node) error {
	if err := conn.SendKept(kept(n)); err != nil {
		return err
	}
	if entries, err := n.Entries(); err == nil {
		roomFor(2 * entries) // what was given is read again where something is put back
	}
	return conn.Send(wire.KindProgress, wire.Progress{Task: "compare"})
}

// withHere opens the side that runs without what is mounted in it.
func withHere(fn func(*rollback.Node) error) (err error) {
	p := &pair{}
	defer func() { err = errors.Join(err, p.Close()) }()
	if err := p.mount("/", hereDir, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if p.here, err = rollback.Open(hereDir, nil); err != nil {
		return err
	}
	p.here.Boots = true
	return fn(p.here)
}
