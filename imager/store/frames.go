package store

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

// Frames finds the frames of whose content at least half is among ids, and
// returns those chunks of each in their order; rest is those of ids that are in
// no such frame, each once. A chunk that the store lacks gives ErrMissing.
func (s *Store) Frames(ctx context.Context, ids []digest.ID) (frames [][]entry.Chunk, rest []digest.ID, err error) {
	locs, err := s.Locate(ctx, ids)
	if err != nil {
		return nil, nil, fmt.Errorf("find chunks: %w", err)
	}
	x := IndexOf(locs)
	for i := 0; i < len(x.Chunks); {
		var chunks []entry.Chunk
		frame, size := x.Chunks[i].Frame, uint32(0)
		for ; i < len(x.Chunks) && x.Chunks[i].Frame == frame; i++ {
			chunks = append(chunks, entry.Chunk{ID: x.Chunks[i].ID, Size: x.Chunks[i].Size})
			size += x.Chunks[i].Size
		}
		if size >= x.Frames[frame].Raw/2 {
			frames = append(frames, chunks)
			continue
		}
		for _, c := range chunks {
			rest = append(rest, c.ID)
		}
	}
	return frames, rest, nil
}

// Frame appends to into a zstd frame that holds chunks one after another,
// verified: as it is stored, where all of that frame is asked for, or made as
// the store would make it. Damage is a *CorruptError.
func (s *Store) Frame(ctx context.Context, chunks []entry.Chunk, into []byte) ([]byte, error) {
	ids := chunkIDs(chunks)
	locs, err := s.Locate(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("read a frame: %w", err)
	}
	if x := IndexOf(locs); len(x.Frames) == 1 && sizeOf(chunks) == x.Frames[0].Raw && slices.EqualFunc(x.Chunks, chunks, func(a ChunkRef, b entry.Chunk) bool { return a.ID == b.ID && a.Size == b.Size }) {
		return s.stored(ctx, x, into)
	}
	return s.pack(ctx, chunks, into)
}

// stored appends the only frame of x, which it has whole.
func (s *Store) stored(ctx context.Context, x *Index, into []byte) ([]byte, error) {
	fr, pack := x.Frames[0], x.Packs[0].ID
	rc, err := s.ReadPack(ctx, pack, fr.Off, int64(fr.Len))
	if err != nil {
		return nil, fmt.Errorf("read pack %s at %d: %w", pack.Short(), fr.Off, err)
	}
	defer rc.Close()
	at := len(into)
	into = slices.Grow(into, int(fr.Len))[:at+int(fr.Len)]
	if _, err := io.ReadFull(rc, into[at:]); err != nil {
		return nil, cutShort(pack, fr.Off, err)
	}
	b := s.spare.buffers.Get().(*buffers)
	defer s.spare.buffers.Put(b)
	nothing := func(digest.ID, []byte) error { return nil }
	if b.raw, err = unpack(s.spare.dec, fmt.Sprintf("pack %s, frame at %d", pack, fr.Off), into[at:], b.raw, fr.Raw, slices.Values(x.Chunks), nothing); err != nil {
		return nil, err
	}
	return into, nil
}

// pack appends a new frame.
func (s *Store) pack(ctx context.Context, chunks []entry.Chunk, into []byte) ([]byte, error) {
	ids := chunkIDs(chunks)
	var mu sync.Mutex
	data := make(map[digest.ID][]byte, len(ids))
	if err := s.Fetch(ctx, ids, func(id digest.ID, b []byte) error {
		mu.Lock()
		defer mu.Unlock()
		data[id] = slices.Clone(b)
		return nil
	}); err != nil {
		return nil, err
	}
	raw := make([]byte, 0, sizeOf(chunks))
	for _, id := range ids {
		raw = append(raw, data[id]...)
	}
	return s.enc.EncodeAll(raw, into), nil
}

func chunkIDs(chunks []entry.Chunk) []digest.ID {
	ids := make([]digest.ID, len(chunks))
	for i, c := range chunks {
		ids[i] = c.ID
	}
	return ids
}

func sizeOf(chunks []entry.Chunk) (n uint32) {
	for _, c := range chunks {
		n += c.Size
	}
	return n
}
