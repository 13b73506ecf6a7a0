package imager

import (
	"context"
	"fmt"

	"ingot/imager/wire"
)

// Rollback takes the node back to generation req.To, or to the one before.
// Chunks that the node lost come from src; those that src lacks are not sent,
// and the node says what that means.
func Rollback(ctx context.Context, c *wire.Conn, req wire.Request, src Store, talk Talk) (wire.Plan, wire.Done, error) {
	req.Verb = wire.VerbRollback
	return withLost(ctx, c, req, src, talk)
}

// Repair makes the node again what it was given; src is as that of Rollback.
func Repair(ctx context.Context, c *wire.Conn, req wire.Request, src Store, talk Talk) (wire.Plan, wire.Done, error) {
	req.Verb = wire.VerbRepair
	return withLost(ctx, c, req, src, talk)
}

// withLost asks for what needs no chunks but those that the node lost.
func withLost(ctx context.Context, c *wire.Conn, req wire.Request, src Store, talk Talk) (wire.Plan, wire.Done, error) {
	if err := c.Send(wire.KindRequest, req); err != nil {
		return wire.Plan{}, wire.Done{}, err
	}
	if _, err := hear(c, talk); err != nil {
		return wire.Plan{}, wire.Done{}, err
	}
	first, err := c.Next(talk.Progress)
	if err != nil {
		return wire.Plan{}, wire.Done{}, err
	}
	return carryOut(ctx, c, req, first, talk, func(f wire.Frame) error {
		if f.Kind == wire.KindLike {
			return fmt.Errorf("%s: unexpected frame %q from the agent", req.Verb, byte(f.Kind))
		}
		ids, err := c.IDs(f)
		if err != nil {
			return err
		}
		s := c.Stream()
		if err := fetchLost(ctx, ids, src, s.Add); err != nil {
			return err
		}
		return s.End()
	})
}

// Drift hears what of the node is not what it was given.
func Drift(ctx context.Context, c *wire.Conn, req wire.Request, talk Talk) (wire.Plan, error) {
	req.Verb = wire.VerbDrift
	if err := c.Send(wire.KindRequest, req); err != nil {
		return wire.Plan{}, err
	}
	if _, err := hear(c, talk); err != nil {
		return wire.Plan{}, err
	}
	first, err := c.Next(talk.Progress)
	if err != nil {
		return wire.Plan{}, err
	}
	plan, err := c.PlanAfter(first, talk.Progress)
	if err != nil {
		return plan, err
	}
	return plan, ctx.Err()
}
