// Package imager captures trees into images and pushes images to nodes: orchestration only; the agent on the node does the work there.
package imager

import (
	"context"
	"errors"
	"fmt"

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

// Push makes the tree that the agent at the other end of c sees equal to
// target and returns the plan that was carried out. decide sees the plan
// before anything is staged; its error ends the push with nothing changed.
func Push(ctx context.Context, c *wire.Conn, req wire.Request, target *manifest.Manifest, src Source,
	decide func(wire.Plan) error, progress func(wire.Progress)) (wire.Plan, wire.Done, error) {
	req.Verb = wire.VerbPush
	var plan wire.Plan
	var done wire.Done
	if err := c.Send(wire.KindRequest, req); err != nil {
		return plan, done, err
	}
	if err := c.SendBlob(target.Encode()); err != nil {
		return plan, done, err
	}
	if err := expect(c, &plan, progress); err != nil {
		return plan, done, err
	}
	if err := decide(plan); err != nil || req.DryRun {
		return plan, done, errors.Join(err, c.SendRaw(wire.KindEnd, nil))
	}
	if err := c.SendRaw(wire.KindRequest, nil); err != nil {
		return plan, done, err
	}
	theirs := chunksOf(target)
	for {
		f, err := c.Next(progress)
		if err != nil {
			return plan, done, err
		}
		switch f.Kind {
		case wire.KindWant:
			if err := serveChunks(ctx, c, f, src, theirs); err != nil {
				return plan, done, err
			}
		case wire.KindAnswer:
			err := f.Unmarshal(&done)
			done.Clean()
			return plan, done, err
		default:
			return plan, done, fmt.Errorf("push: unexpected frame %q from the agent", byte(f.Kind))
		}
	}
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
func Rollback(c *wire.Conn, req wire.Request, decide func(wire.Plan) error, progress func(wire.Progress)) (wire.Plan, wire.Done, error) {
	req.Verb = wire.VerbRollback
	var plan wire.Plan
	var done wire.Done
	if err := c.Send(wire.KindRequest, req); err != nil {
		return plan, done, err
	}
	if err := expect(c, &plan, progress); err != nil {
		return plan, done, err
	}
	if err := decide(plan); err != nil || req.DryRun {
		return plan, done, errors.Join(err, c.SendRaw(wire.KindEnd, nil))
	}
	if err := c.SendRaw(wire.KindRequest, nil); err != nil {
		return plan, done, err
	}
	return plan, done, expect(c, &done, progress)
}

// Generations lists what the node keeps.
func Generations(c *wire.Conn, dir string) ([]wire.Generation, error) {
	var out []wire.Generation
	if err := c.Send(wire.KindRequest, wire.Request{Verb: wire.VerbGenerations, Dir: dir}); err != nil {
		return nil, err
	}
	if err := c.Expect(wire.KindAnswer, &out, nil); err != nil {
		return nil, err
	}
	for i := range out {
		out[i].Clean()
	}
	return out, nil
}

// expect receives an answer whose texts will be shown to people.
func expect(c *wire.Conn, v interface{ Clean() }, progress func(wire.Progress)) error {
	err := c.Expect(wire.KindAnswer, v, progress)
	v.Clean()
	return err
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
