package imager

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// ChunksOf are the chunks that a node may ask for: those of its own target,
// and of that, what is in within. The store holds other nodes' secrets too.
func ChunksOf(m *manifest.Manifest, within string) map[digest.ID]bool {
	out := map[digest.ID]bool{}
	for i := range m.Entries {
		e := &m.Entries[i]
		if within != "" && e.Path != within && !strings.HasPrefix(e.Path, within+"/") {
			continue
		}
		if e.Link != "" {
			if holder, ok := m.Lookup(e.Link); ok {
				e = holder
			}
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
	shared  *Shared                            // what is answered as other nodes are; nil: nothing
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
	if ours, err = g.shared.give(ctx, s, ours); err == nil {
		err = g.own(ctx, s, ours)
	}
	if err != nil {
		return fmt.Errorf("read the image: %w", err)
	}
	if len(rest) > 0 {
		if err := fetchLost(ctx, rest, g.lost, s.Add); err != nil {
			return err
		}
	}
	return s.End()
}

// own sends what is not shared.
func (g *giver) own(ctx context.Context, to *wire.Stream, ids []digest.ID) error {
	frames, ids, err := framesOf(ctx, g.source, ids)
	if err == nil {
		err = wire.InOrder(len(frames), func(i int) ([]byte, error) { return packed(ctx, g.source, frames[i], nil) }, to.Splice)
	}
	if err != nil || len(ids) == 0 {
		return err
	}
	return g.shared.few(ctx, to, g.source, ids)
}

// framesOf finds what can be sent as frames of source: see Framed.
func framesOf(ctx context.Context, source Source, ids []digest.ID) (frames [][]entry.Chunk, rest []digest.ID, err error) {
	f, ok := source.(Framed)
	if !ok || len(ids) == 0 {
		return nil, ids, nil
	}
	if frames, rest, err = f.Frames(ctx, ids); err != nil {
		return nil, nil, err
	}
	frames = slices.DeleteFunc(frames, func(chunks []entry.Chunk) bool {
		if len(chunks) <= wire.MaxListed {
			return false
		}
		rest = append(rest, idsOf(chunks)...)
		return true
	})
	return frames, rest, nil
}

// packed appends to into what sends a frame of source.
func packed(ctx context.Context, source Source, chunks []entry.Chunk, into []byte) ([]byte, error) {
	return source.(Framed).Frame(ctx, chunks, wire.Packed(into, chunks))
}

func idsOf(chunks []entry.Chunk) []digest.ID {
	ids := make([]digest.ID, len(chunks))
	for i, c := range chunks {
		ids[i] = c.ID
	}
	return ids
}

// split parts what is in a set from what is not.
func split[T any](ids []digest.ID, set map[digest.ID]T) (in, out []digest.ID) {
	in = make([]digest.ID, 0, len(ids))
	for _, id := range ids {
		if _, ok := set[id]; ok {
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
	return g.c.SendGroups(groups, func(group wire.Group) ([]byte, error) {
		for _, id := range group.Like {
			if !had[id] {
				return nil, nil
			}
		}
		if diff, ok, err := g.shared.difference(ctx, group); ok || err != nil {
			return diff, err
		}
		diff, err := difference(ctx, g.source, group)
		if err != nil {
			return nil, ctx.Err() // KindWant meets it again, and says it
		}
		return diff, nil
	})
}

// difference reads both sides of a group and compresses one against the other.
func difference(ctx context.Context, source Source, group wire.Group) ([]byte, error) {
	var mu sync.Mutex
	data := map[digest.ID][]byte{}
	for _, id := range slices.Concat(group.Like, group.Wanted) {
		data[id] = nil
	}
	err := source.Fetch(ctx, slices.Collect(maps.Keys(data)), func(id digest.ID, b []byte) error {
		mu.Lock()
		defer mu.Unlock()
		data[id] = slices.Clone(b)
		return nil
	})
	if err != nil {
		return nil, err
	}
	join := func(ids []digest.ID) []byte {
		parts := make([][]byte, len(ids))
		for i, id := range ids {
			parts[i] = data[id]
		}
		return slices.Concat(parts...)
	}
	return wire.Difference(join(group.Like), join(group.Wanted))
}
