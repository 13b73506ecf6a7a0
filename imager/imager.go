// Package imager captures trees into images and pushes images to nodes: orchestration only; the agent on the node does the work there.
package imager

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// Source gives chunks: every distinct ID once, verified, in the source's best
// order, perhaps from several goroutines at once; data is valid during fn only.
type Source interface {
	Fetch(ctx context.Context, ids []digest.ID, fn func(id digest.ID, data []byte) error) error
}

// Framed is a source that has chunks in zstd frames, which can be sent as they are.
type Framed interface {
	Source
	// Frames finds the frames most of which is among ids, and returns those chunks
	// of each; rest is what is in none.
	Frames(ctx context.Context, ids []digest.ID) (frames [][]entry.Chunk, rest []digest.ID, err error)
	// Frame appends to into a frame of such chunks, verified.
	Frame(ctx context.Context, chunks []entry.Chunk, into []byte) ([]byte, error)
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

// Lost is what a node was given before, as far as there still is of it.
type Lost interface {
	Store
	// Foreign lists those of ids that it was never given.
	Foreign(ctx context.Context, ids []digest.ID) ([]digest.ID, error)
}

// Talk is what the caller of a push or a rollback hears, and decides.
type Talk struct {
	Kept     func(wire.Kept) error // what the node keeps, before anything is planned; may be nil
	Decide   func(wire.Plan) error // before anything is staged; an error ends it with nothing changed
	Progress func(wire.Progress)   // may be nil
	// BeforeSwitch is called when a node has staged what it is to become, and
	// may take its time: the node waits. An error ends it with nothing changed.
	// It is not called where there is nothing to switch; may be nil.
	BeforeSwitch func(context.Context) error
}

// Target is what a push brings a node to. Its manifest is made only when the
// node lacks it, or asks for chunks of it.
type Target struct {
	ID       digest.ID // of the manifest
	Manifest func() (*manifest.Manifest, error)
	// Base makes the target again that a node got before; nil, or a nil
	// manifest, where that cannot be done.
	Base   func(wire.Made) *manifest.Manifest
	Source Source
	Shared *Shared // answers that other nodes get too, of the same image; nil: none
	Lost   Lost    // what the node may ask for again, to merge it with its own; nil: nothing
}

// Push makes the tree that the agent at the other end of c sees equal to
// target and returns the plan that was carried out.
func Push(ctx context.Context, c *wire.Conn, req wire.Request, target Target, talk Talk) (wire.Plan, wire.Done, error) {
	req.Verb, req.Manifest = wire.VerbPush, target.ID
	if err := c.Send(wire.KindRequest, req); err != nil {
		return wire.Plan{}, wire.Done{}, err
	}
	kept, err := hear(c, talk)
	base := target.bases()
	if err == nil && !kept.Has {
		err = sendManifest(c, target, base(kept.Knows))
	}
	if err != nil {
		return wire.Plan{}, wire.Done{}, err
	}
	first, err := c.Next(talk.Progress)
	if err != nil {
		return wire.Plan{}, wire.Done{}, err
	}
	give := giver{c: c, source: target.Source, shared: target.Shared, lost: target.Lost, mayHave: sync.OnceValues(func() (map[digest.ID]bool, error) {
		m, err := target.Manifest()
		if err != nil {
			return nil, err
		}
		return ChunksOf(m, req.Within), nil
	}), has: sync.OnceValue(func() map[digest.ID]bool {
		if m := base(kept.Runs); m != nil {
			return ChunksOf(m, req.Within)
		}
		return nil
	})}
	return carryOut(ctx, c, req, first, talk, func(f wire.Frame) error { return give.answer(ctx, f) })
}

// bases returns what makes targets again that a node got before, each once; nil
// for what cannot be, or is another: another version may have made another
// target of the same two.
func (t *Target) bases() func(*wire.Made) *manifest.Manifest {
	made := map[wire.Made]*manifest.Manifest{}
	return func(of *wire.Made) *manifest.Manifest {
		if of == nil || t.Base == nil {
			return nil
		}
		m, ok := made[*of]
		if !ok {
			if m = t.Base(*of); m != nil && m.ID() != of.Target {
				m = nil
			}
			made[*of] = m
		}
		return m
	}
}

// sendManifest sends the target's manifest, as little of it as can be where
// the node has base, which may be nil.
func sendManifest(c *wire.Conn, target Target, base *manifest.Manifest) error {
	m, err := target.Manifest()
	if err != nil {
		return err
	}
	if base == nil {
		if err := c.Send(wire.KindBase, wire.Base{}); err != nil {
			return err
		}
		return c.SendBlob(m.Encode())
	}
	if err := c.Send(wire.KindBase, wire.Base{Delta: true}); err != nil {
		return err
	}
	return c.SendBlob(manifest.Delta(base, m))
}

// carryOut is a push or a rollback from the first frame of its plan on. Once
// ctx has ended the agent is not told to switch.
func carryOut(ctx context.Context, c *wire.Conn, req wire.Request, first wire.Frame, talk Talk, serve func(wire.Frame) error) (plan wire.Plan, done wire.Done, err error) {
	if plan, err = c.PlanAfter(first, talk.Progress); err != nil {
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
		case wire.KindWant, wire.KindLike:
			if err := serve(f); err != nil {
				return plan, done, err
			}
		case wire.KindSwitch:
			if err := agree(ctx, c, talk); err != nil {
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

// agree is the last word before a switch: whoever has given up does not say it.
func agree(ctx context.Context, c *wire.Conn, talk Talk) error {
	if talk.BeforeSwitch != nil {
		if err := talk.BeforeSwitch(ctx); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if talk.Progress != nil {
		talk.Progress(wire.Progress{Task: "switch"})
	}
	return c.SendRaw(wire.KindSwitch, nil)
}

// hear hears what the node keeps.
func hear(c *wire.Conn, talk Talk) (wire.Kept, error) {
	kept, err := c.RecvKept(talk.Progress)
	if err != nil {
		return kept, err
	}
	if talk.Kept == nil {
		return kept, nil
	}
	return kept, talk.Kept(kept)
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
