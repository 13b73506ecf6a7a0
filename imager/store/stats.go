package store

import (
	"context"
	"fmt"
	"time"

	"ingot/internal/digest"
)

// Usage is what an image takes.
type Usage struct {
	Named
	Bytes  int64 // of content, each chunk once
	Stored int64 // of these in the store, compressed
	Unique int64 // of Stored, what no other image uses: what removing it would free
	Err    error // why nothing is known: the manifest, or a NameError, the record of the name cannot be read
}

// Usage returns what each named image takes, in the order of Refs, and then
// the names that cannot be read. Two names of one image have nothing to
// themselves.
func (s *Store) Usage(ctx context.Context) ([]Usage, error) {
	refs, bad, err := s.refs(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.refresh(ctx, 0); err != nil {
		return nil, fmt.Errorf("usage: %w", err)
	}
	users := map[digest.ID]int{}
	chunks := map[digest.ID][]digest.ID{}
	out := make([]Usage, len(refs))
	for i, n := range refs {
		out[i].Named = n
		ids, ok := chunks[n.Digest]
		if !ok {
			m, err := s.Manifest(ctx, n.Digest)
			if err != nil {
				out[i].Err = err
				continue
			}
			ids = Chunks(m)
			chunks[n.Digest] = ids
		}
		for _, id := range ids {
			users[id]++
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range out {
		for _, id := range chunks[out[i].Digest] {
			pl, ok := s.index.chunks[id]
			if !ok {
				continue
			}
			stored := pl.stored()
			out[i].Bytes += int64(pl.pack.frames[pl.frame].chunks[pl.chunk].Size)
			out[i].Stored += stored
			if users[id] == 1 {
				out[i].Unique += stored
			}
		}
	}
	for _, e := range bad {
		out = append(out, Usage{Named: Named{Ref: e.Ref}, Err: e})
	}
	return out, nil
}

// StoredSize returns the compressed bytes of these chunks, each its share of
// its frame. Those that the store does not have count nothing.
func (s *Store) StoredSize(ctx context.Context, ids []digest.ID) (int64, error) {
	if err := s.refresh(ctx, time.Second); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var n int64
	for _, id := range ids {
		if pl, ok := s.index.chunks[id]; ok {
			n += pl.stored()
		}
	}
	return n, nil
}

// stored is the share of a chunk of the compressed bytes of its frame.
func (pl place) stored() int64 {
	f := &pl.pack.frames[pl.frame]
	return int64(f.chunks[pl.chunk].Size) * int64(f.length) / int64(f.raw)
}
