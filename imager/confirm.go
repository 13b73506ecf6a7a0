package imager

import (
	"context"

	"ingot/imager/wire"
)

// Confirm tells a node, over a connection that was made after its switch,
// that the generation req.To may stay, or with req.Reason that it has to go
// back and why. Done says what the node is then.
func Confirm(ctx context.Context, c *wire.Conn, req wire.Request, talk Talk) (done wire.Done, err error) {
	req.Verb = wire.VerbConfirm
	if err := c.Send(wire.KindRequest, req); err != nil {
		return done, err
	}
	if _, err := hear(c, talk); err != nil {
		return done, err
	}
	if err := c.Expect(wire.KindAnswer, &done, talk.Progress); err != nil {
		return done, err
	}
	done.Clean()
	return done, ctx.Err()
}
