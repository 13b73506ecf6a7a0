// Package imager captures trees into images and pushes images to nodes: orchestration only; the agent on the node does the work there.
package imager

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/manifest"
)

// Source gives chunks: every distinct ID once, verified, in the source's best
// order, perhaps from several goroutines at once; data is valid during fn only.
type Source interface {
	Fetch(ctx context.Context, ids []digest.ID, fn func(id digest.ID, data []byte) error) error
}

// Sink takes chunks.
type Sink interface {
	Missing(ctx context.Context, ids []digest.ID) ([]digest.ID, error)
	Put(ctx context.Context, id digest.ID, data []byte) error
}

// Store is a source that knows what it lacks.
type Store interface {
	Source
	Missing(ctx context.Context, ids []digest.ID) ([]digest.ID, error)
}

// Talk is what the caller of a push or a rollback hears, and decides.
type Talk struct {
	Kept     func([]wire.Generation) error // what the node keeps, before anything is planned; may be nil
	Decide   func(wire.Plan) error         // before anything is staged; an error ends it with nothing changed
	Progress func(wire.Progress)           // may be nil
}

// Push makes the tree that the agent at the other end of c sees equal to
// target and returns the plan that was carried out.
func Push(ctx context.Context, c *wire.Conn, req wire.Request, target *manifest.Manifest, src Source, talk Talk) (wire.Plan, wire.Done, error) {
	req.Verb = wire.VerbPush
	if err := c.Send(wire.KindRequest, req); err != nil {
		return wire.Plan{}, wire.Done{}, err
	}
	if err := c.SendBlob(target.Encode()); err != nil {
		return wire.Plan{}, wire.Done{}, err
	}
	theirs := chunksOf(target)
	return carryOut(c, req, talk, func(f wire.Frame) error { return serveChunks(ctx, c, f, src, theirs) })
}

// carryOut is a push or a rollback from its request on.
func carryOut(c *wire.Conn, req wire.Request, talk Talk, serve func(wire.Frame) error) (plan wire.Plan, done wire.Done, err error) {
	if err := kept(c, talk); err != nil {
		return plan, done, err
	}
	if plan, err = c.RecvPlan(talk.Progress); err != nil {
		return plan, done, err
	}
	if err := talk.Decide(plan); err != nil || req.DryRun {
		return plan, done, errors.Join(err, c.SendRaw(wire.KindEnd, nil))
	}
	if err := c.SendRaw(wire.KindRequest, nil); err != nil {
		return plan, done, err
	}
	for {
		f, err := c.Next(talk.Progress)
		if err != nil {
			return plan, done, err
		}
		switch f.Kind {
		case wire.KindWant:
			if err := serve(f); err != nil {
				return plan, done, err
			}
		case wire.KindAnswer:
			err := f.Unmarshal(&done)
			done.Clean()
			return plan, done, err
		default:
			return plan, done, fmt.Errorf("%s: unexpected frame %q from the agent", req.Verb, byte(f.Kind))
		}
	}
}

// kept hears what the node keeps.
func kept(c *wire.Conn, talk Talk) error {
	var list []wire.Generation
	if err := c.Expect(wire.KindAnswer, &list, talk.Progress); err != nil {
		return err
	}
	for i := range list {
		list[i].Clean()
	}
	if talk.Kept == nil {
		return nil
	}
	return talk.Kept(list)
}

// chunksOf are the chunks that a node may ask for: those of its own target.
// The store holds other nodes' secrets too.
func chunksOf(m *manifest.Manifest) map[digest.ID]bool {
	out := map[digest.ID]bool{}
	for i := range m.Entries {
		for _, c := range m.Entries[i].Chunks {
			out[c.ID] = true
		}
	}
	return out
}

// serveChunks answers one KindWant.
func serveChunks(ctx context.Context, c *wire.Conn, f wire.Frame, src Source, theirs map[digest.ID]bool) error {
	ids, err := c.IDsUpTo(f, len(theirs))
	if err != nil {
		return err
	}
	for _, id := range ids {
		if !theirs[id] {
			return fmt.Errorf("push: the agent asks for chunk %s, which is not part of the image", id.Short())
		}
	}
	return sendChunks(ctx, c, ids, src)
}

func sendChunks(ctx context.Context, c *wire.Conn, ids []digest.ID, src Source) error {
	b := c.NewBatch()
	if err := src.Fetch(ctx, ids, b.Add); err != nil {
		return fmt.Errorf("read the image: %w", err)
	}
	if err := b.Flush(); err != nil {
		return err
	}
	return c.SendRaw(wire.KindEnd, nil)
}

// Rollback takes the node back to generation req.To, or to the one before.
// Chunks that the node lost come from src; those that src lacks are not sent,
// and the node says what that means.
func Rollback(ctx context.Context, c *wire.Conn, req wire.Request, src Store, talk Talk) (wire.Plan, wire.Done, error) {
	req.Verb = wire.VerbRollback
	if err := c.Send(wire.KindRequest, req); err != nil {
		return wire.Plan{}, wire.Done{}, err
	}
	return carryOut(c, req, talk, func(f wire.Frame) error {
		ids, err := c.IDs(f)
		if err != nil {
			return err
		}
		missing, err := src.Missing(ctx, ids)
		if err != nil {
			return err
		}
		lost := map[digest.ID]bool{}
		for _, id := range missing {
			lost[id] = true
		}
		ids = slices.DeleteFunc(ids, func(id digest.ID) bool { return lost[id] })
		return sendChunks(ctx, c, ids, src)
	})
}

// Capture receives the tree below req.Dir: chunks that sink lacks cross the
// stream and are put into it. The manifest is for the caller to publish, once
// the sink's chunks are durable.
func Capture(ctx context.Context, c *wire.Conn, req wire.Request, sink Sink, progress func(wire.Progress)) (*manifest.Manifest, wire.Captured, error) {
	req.Verb = wire.VerbCapture
	var stats wire.Captured
	asked := map[digest.ID]bool{}
	if err := c.Send(wire.KindRequest, req); err != nil {
		return nil, stats, err
	}
	for {
		f, err := c.Next(progress)
		if err != nil {
			return nil, stats, err
		}
		switch f.Kind {
		case wire.KindHave:
			if err := answerHave(ctx, c, f, sink, asked); err != nil {
				return nil, stats, err
			}
		case wire.KindChunks:
			err := c.Chunks(f, func(id digest.ID, data []byte) error {
				if !asked[id] {
					return fmt.Errorf("capture: the agent sent chunk %s unasked", id.Short())
				}
				return sink.Put(ctx, id, data)
			})
			if err != nil {
				return nil, stats, err
			}
		case wire.KindAnswer:
			if err := f.Unmarshal(&stats); err != nil {
				return nil, stats, err
			}
			stats.Clean()
			b, err := c.RecvBlob(progress)
			if err != nil {
				return nil, stats, err
			}
			m, err := manifest.Decode(b)
			return m, stats, err
		default:
			return nil, stats, fmt.Errorf("capture: unexpected frame %q from the agent", byte(f.Kind))
		}
	}
}

// answerHave says which chunks the sink lacks, and notes that they were asked for.
func answerHave(ctx context.Context, c *wire.Conn, f wire.Frame, sink Sink, asked map[digest.ID]bool) error {
	ids, err := c.IDs(f)
	if err != nil {
		return err
	}
	missing, err := sink.Missing(ctx, ids)
	if err != nil {
		return err
	}
	for _, id := range missing {
		asked[id] = true
	}
	return c.SendIDs(wire.KindMissing, missing)
}
