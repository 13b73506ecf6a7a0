package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"ingot/imager/wire"
	"ingot/rollback"
	"ingot/rollback/sides"
)

// tried returns the trial that the side that runs is on, nil where it is on none.
func tried(conf *sides.Config) (*sides.Trial, error) {
	t, err := sides.ReadTrial(shared)
	if err != nil || !t.Open() || t.Side != conf.Side {
		return nil, err
	}
	return t, nil
}

// reading runs fn on the side that runs, which its guard may be at, too.
func reading(fn func(*rollback.Node) error) error {
	n, err := rollback.Open("/", nil)
	if err != nil {
		return err
	}
	n.Boots = true
	return errors.Join(fn(n), n.Close())
}

// pushTried answers a push while the side that runs is on trial. Of what that
// was made by: whoever pushed it was lost on the way, and it is to be confirmed.
func pushTried(conn *wire.Conn, t *sides.Trial, req wire.Request) error {
	return reading(func(n *rollback.Node) error {
		cur, err := n.Current()
		if err != nil {
			return err
		}
		if cur.Number != t.Generation || cur.ImageID != req.Image || cur.Overlay != req.Overlay || t.Reason != "" || req.NoReboot {
			return &sideBusyError{t}
		}
		if _, err := targetOf(conn, n, req); err != nil {
			return err
		}
		s := wire.Plan{From: cur.Number, Next: cur.Number, Boots: true, Notes: []string{fmt.Sprintf("generation %d is on trial already, and is to be confirmed", cur.Number)}}
		if agreed, err := shown(conn, &rollback.Plan{}, s, req); !agreed {
			return err
		}
		return conn.Send(wire.KindAnswer, wire.Done{Generation: generation(cur, cur.Number), Unchanged: true, Trial: true, Notes: s.Notes, Sides: sidesNow()})
	})
}

// backTried goes back from the side that runs while it is on trial: it is given
// up, and the machine starts anew as it was.
func backTried(conn *wire.Conn, t *sides.Trial, req wire.Request) error {
	return reading(func(n *rollback.Node) error {
		list, err := allGenerations(n)
		if err != nil {
			return err
		}
		if err := conn.SendKept(kept(n)); err != nil {
			return err
		}
		if err := canLeave(t, req.To, req.NoReboot); err != nil {
			return err
		}
		i := slices.IndexFunc(list, func(g wire.Generation) bool { return g.Number == t.From })
		if req.ToRef != "" && (i < 0 || list[i].Within != "" || !isOf(rollback.Generation{Image: list[i].Ref, ImageID: list[i].Image}, req)) {
			return fmt.Errorf("the other side is not of %s: %w", req.ToRef, rollback.ErrNoGeneration)
		}
		s := wire.Plan{From: t.Generation, To: t.From, Boots: true, Leaves: true, Notes: []string{leaves(t)}}
		if agreed, err := shown(conn, &rollback.Plan{}, s, req); !agreed {
			return err
		}
		if err := conn.SendRaw(wire.KindSwitch, nil); err != nil {
			return err
		}
		if err := conn.Expect(wire.KindSwitch, nil, nil); err != nil {
			return err
		}
		if err := noteReason("taken back by " + req.By); errors.Is(err, sides.ErrOver) {
			return &asBeforeError{err} // it was confirmed, or goes back by itself
		} else if err != nil {
			return err
		}
		err = conn.Send(wire.KindAnswer, wire.Done{Notes: s.Notes, Sides: sidesNow()})
		restart()
		return err
	})
}

// canLeave says why what is on trial is not given up for a generation; 0 is the
// one before.
func canLeave(t *sides.Trial, to int, noReboot bool) error {
	if noReboot || t.Reason != "" || to != 0 && to != t.From {
		return &sideBusyError{t}
	}
	return nil
}

// leaves tells what giving up a trial means.
func leaves(t *sides.Trial) string {
	return fmt.Sprintf("generation %d is on trial: it is given up, and the machine starts anew as generation %d", t.Generation, t.From)
}

// leaveHere is backTried on the node's console.
func leaveHere(c *cli.Context, t *sides.Trial) error {
	if err := canLeave(t, c.Int("to"), c.Bool("no-reboot")); err != nil {
		return err
	}
	fmt.Fprintln(c.App.Writer, leaves(t))
	if c.Bool("dry-run") {
		return nil
	}
	if err := noteReason("taken back on the console"); err != nil {
		return err
	}
	restart()
	return nil
}

// onTrial marks the generation that is on trial in a list, with the latest time
// at which that ends. Where that cannot be known it marks none: the list comes first.
func onTrial(conf *sides.Config, list []wire.Generation) {
	t, err := tried(conf)
	for i := range list {
		if err == nil && t != nil && list[i].Number == t.Generation {
			list[i].Trial = t.Made.Add(startWait + t.Window).Unix()
		}
	}
}
