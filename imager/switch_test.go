package imager

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"

	"ingot/imager/wire"
	"ingot/internal/digest"
)

// nothing is a store that has nothing.
type nothing struct{}

func (nothing) Fetch(context.Context, []digest.ID, func(digest.ID, []byte) error) error { return nil }
func (nothing) Missing(_ context.Context, ids []digest.ID) ([]digest.ID, error)         { return ids, nil }

// What is to be done before a switch is done when all is staged and before the
// node is told; where it fails, or the caller gives up in it, the node never is.
func TestBeforeSwitch(t *testing.T) {
	broke := errors.New("the load balancer does not answer")
	for name, tc := range map[string]struct {
		unchanged, gaveUp bool
		fails             error
		err               error
		steps             []string
	}{
		"well":            {steps: []string{"staged", "before", "switch", "told"}},
		"it fails":        {fails: broke, err: broke, steps: []string{"staged", "before"}},
		"the caller goes": {gaveUp: true, err: context.Canceled, steps: []string{"staged", "before"}},
		"nothing to do":   {unchanged: true},
	} {
		ctx, giveUp := context.WithCancel(t.Context())
		down, up := pipes()
		var steps []string
		agent := make(chan error, 1)
		go func() { agent <- pretend(up, tc.unchanged, func(s string) { steps = append(steps, s) }) }()
		_, _, err := Rollback(ctx, down.Conn, wire.Request{}, nothing{}, Talk{
			Decide: func(wire.Plan) error { return nil },
			Progress: func(p wire.Progress) {
				if p.Task == "switch" {
					steps = append(steps, "switch")
				}
			},
			BeforeSwitch: func(context.Context) error {
				steps = append(steps, "before")
				if tc.gaveUp {
					giveUp()
				}
				return tc.fails
			},
		})
		down.close()
		if ended := <-agent; ended != nil && !errors.Is(ended, io.EOF) {
			t.Errorf("%s: the agent: %v", name, ended)
		}
		if !errors.Is(err, tc.err) || !slices.Equal(steps, tc.steps) {
			t.Errorf("%s: %v, %v; want %v, %v", name, err, steps, tc.err, tc.steps)
		}
		giveUp()
	}
}

// end is one end of a wire.
type end struct {
	*wire.Conn
	close func() error
}

func pipes() (a, b end) {
	fromA, toB := io.Pipe()
	fromB, toA := io.Pipe()
	return end{wire.New(fromB, toB), toB.Close}, end{wire.New(fromA, toA), toA.Close}
}

// pretend is an agent that is asked to go back.
func pretend(c end, unchanged bool, step func(string)) error {
	defer c.close()
	if err := c.Expect(wire.KindRequest, nil, nil); err != nil {
		return err
	}
	if err := errors.Join(c.SendKept(wire.Kept{}), c.SendPlan(wire.Plan{})); err != nil {
		return err
	}
	if err := c.Expect(wire.KindRequest, nil, nil); err != nil {
		return err
	}
	if unchanged {
		return c.Send(wire.KindAnswer, wire.Done{Unchanged: true})
	}
	step("staged")
	if err := c.SendRaw(wire.KindSwitch, nil); err != nil {
		return err
	}
	if err := c.Expect(wire.KindSwitch, nil, nil); err != nil {
		return err
	}
	step("told")
	return c.Send(wire.KindAnswer, wire.Done{})
}
