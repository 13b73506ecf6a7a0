// Package imager captures trees into images and pushes images to nodes: orchestration only; the agent on the node does the work there.
package imager

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

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
	Lost   Lost // what the node may ask for again, to merge it with its own; nil: nothing
}

// Push makes the tree that the agent at the other end of c sees equal to
// target and returns the plan that was carried out.
func Push(ctx context.Context, c *wire.Conn, req wire.Request, target Target, talk Talk) (wire.Plan, wire.Done, error) {
	req.Verb, req.Manifest = wire.VerbPush, target.ID
	if err := c.Send(wire.KindRequest, req); err != nil {
		return wire.Plan{}, wire.Done{}, err
	}
	kept, err := hear(c, talk)
	if err == nil && !kept.Has {
		err = sendManifest(c, target, kept.Knows)
	}
	if err != nil {
		return wire.Plan{}, wire.Done{}, err
	}
	first, err := c.Next(talk.Progress)
	if err != nil {
		return wire.Plan{}, wire.Done{}, err
	}
	give := giver{c: c, source: target.Source, lost: target.Lost, mayHave: sync.OnceValues(func() (map[digest.ID]bool, error) {
		m, err := target.Manifest()
		if err != nil {
			return nil, err
		}
		return ChunksOf(m, req.Within), nil
	}), has: sync.OnceValue(func() map[digest.ID]bool {
		if kept.Runs == nil || target.Base == nil {
			return nil
		}
		base := target.Base(*kept.Runs)
		if base == nil || base.ID() != kept.Runs.Target {
			return nil
		}
		return ChunksOf(base, req.Within)
	})}
	return carryOut(ctx, c, req, first, talk, func(f wire.Frame) error { return give.answer(ctx, f) })
}

// sendManifest sends the target's manifest, as little of it as can be.
func sendManifest(c *wire.Conn, target Target, knows *wire.Made) error {
	m, err := target.Manifest()
	if err != nil {
		return err
	}
	var base *manifest.Manifest
	if knows != nil && target.Base != nil {
		base = target.Base(*knows)
	}
	// Another version may have made another target of the same two.
	if base == nil || base.ID() != knows.Target {
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

// ChunksOf are the chunks that a node may ask for: those of its own target,
// and of that, what is in within. The store holds other nodes' secrets too.
func ChunksOf(m *manifest.Manifest, within string) map[digest.ID]bool {
	out := map[digest.ID]bool{}
	for i := range m.Entries {
		e := &m.Entries[i]
		if within != "" && e.Path != within && !strings.HasPrefix(e.Path, within+"/") {
			continue
		}
		if holder, ok := m.Lookup(e.Link); ok && e.Link != "" {
			e = holder
		}
		for _, c := range e.Chunks {
			out[c.ID] = true
		}
	}
	return out
}

// giver gives chunks to a node.
type giver struct {
	c       *wire.Conn
	source  Source
	mayHave func() (map[digest.ID]bool, error) // what it may ask for
	lost    Lost                               // what else; nil: nothing
	has     func() map[digest.ID]bool          // what it was given before: nothing else is compared with what it asks for
}

// answer answers one KindWant or KindLike.
func (g *giver) answer(ctx context.Context, f wire.Frame) error {
	theirs, err := g.mayHave()
	if err != nil {
		return err
	}
	if f.Kind == wire.KindLike {
		return g.differences(ctx, f, theirs)
	}
	ids, err := g.c.IDsUpTo(f, len(theirs)+maxLost)
	if err != nil {
		return err
	}
	ours, rest := split(ids, theirs)
	foreign := rest
	if g.lost != nil && len(rest) > 0 {
		if foreign, err = g.lost.Foreign(ctx, rest); err != nil {
			return err
		}
	}
	if err := allowed(foreign, theirs); err != nil {
		return err
	}
	s := g.c.Stream()
	if err := g.source.Fetch(ctx, ours, s.Add); err != nil {
		return fmt.Errorf("read the image: %w", err)
	}
	if len(rest) > 0 {
		if err := fetchLost(ctx, rest, g.lost, s.Add); err != nil {
			return err
		}
	}
	return s.End()
}

// split parts what is in a set from what is not.
func split(ids []digest.ID, set map[digest.ID]bool) (in, out []digest.ID) {
	for _, id := range ids {
		if set[id] {
			in = append(in, id)
		} else {
			out = append(out, id)
		}
	}
	return in, out
}

// maxLost bounds the chunks that a node may ask for again in one question.
const maxLost = 64 << 10

// fetchLost fetches those of ids that src has.
func fetchLost(ctx context.Context, ids []digest.ID, src Store, fn func(digest.ID, []byte) error) error {
	missing, err := src.Missing(ctx, ids)
	if err != nil {
		return err
	}
	lost := map[digest.ID]bool{}
	for _, id := range missing {
		lost[id] = true
	}
	ids = slices.DeleteFunc(ids, func(id digest.ID) bool { return lost[id] })
	if err := src.Fetch(ctx, ids, fn); err != nil {
		return fmt.Errorf("read what the node had: %w", err)
	}
	return nil
}

func allowed(ids []digest.ID, theirs map[digest.ID]bool) error {
	for _, id := range ids {
		if !theirs[id] {
			return fmt.Errorf("push: the agent asks for chunk %s, which is not part of the image", id.Short())
		}
	}
	return nil
}

// differences answers one KindLike. How well something can be compressed tells
// about what it is compared with: that is only ever what the node was given.
func (g *giver) differences(ctx context.Context, f wire.Frame, theirs map[digest.ID]bool) error {
	groups, err := g.c.Groups(f)
	if err != nil {
		return err
	}
	had := g.has()
	for _, group := range groups {
		if err := allowed(group.Wanted, theirs); err != nil {
			return err
		}
	}
	return g.c.SendGroups(groups, func(group wire.Group) (like, wanted []byte, ok bool, err error) {
		for _, id := range group.Like {
			if !had[id] {
				return nil, nil, false, nil
			}
		}
		return g.read(ctx, group)
	})
}

// read reads both sides of a difference; ok is false where one is not all there.
func (g *giver) read(ctx context.Context, group wire.Group) (like, wanted []byte, ok bool, err error) {
	var mu sync.Mutex
	data := map[digest.ID][]byte{}
	for _, id := range slices.Concat(group.Like, group.Wanted) {
		data[id] = nil
	}
	err = g.source.Fetch(ctx, slices.Collect(maps.Keys(data)), func(id digest.ID, b []byte) error {
		mu.Lock()
		defer mu.Unlock()
		data[id] = slices.Clone(b)
		return nil
	})
	if err != nil {
		return nil, nil, false, ctx.Err() // KindWant meets it again, and says it
	}
	join := func(ids []digest.ID) (out []byte) {
		for _, id := range ids {
			out = append(out, data[id]...)
		}
		return out
	}
	return join(group.Like), join(group.Wanted), true, nil
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
