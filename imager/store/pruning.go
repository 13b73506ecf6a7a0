package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"ingot/internal/digest"
)

// Pruned says what a prune has done.
type Pruned struct {
	Manifests int   // removed
	Packs     int   // removed, those that were rewritten too
	New       int   // packs written
	Free      int64 // bytes of packs fewer than before
}

// copyWindow is how many bytes are held in memory while packs are rewritten.
const copyWindow = 64 << 20

// Run carries out what was planned. The order makes it safe to stop anywhere:
// manifests go before the chunks that they need, new packs are durable before
// the old ones go, and what is left over is what the next prune begins with.
// progress hears how many bytes have been rewritten; it may be nil.
func (p *Prune) Run(ctx context.Context, progress func(done, total int64)) (Pruned, error) {
	var out Pruned
	if err := p.run(ctx, progress, &out); err != nil {
		return out, fmt.Errorf("prune: %w", err)
	}
	return out, nil
}

func (p *Prune) run(ctx context.Context, progress func(done, total int64), out *Pruned) error {
	s := p.s
	if _, err := s.Reindex(ctx); err != nil { // what stays has to be found
		return err
	}
	if err := p.check(ctx); err != nil {
		return err
	}
	for _, id := range p.Manifests {
		if err := s.b.Remove(ctx, manifestName(id)); err != nil {
			return fmt.Errorf("manifest %s: %w", id.Short(), err)
		}
		out.Manifests++
	}
	if err := p.drop(ctx, p.Packs, out); err != nil {
		return err
	}
	if len(p.order) > 0 {
		if err := p.rewriteAll(ctx, progress, out); err != nil {
			return err
		}
	}
	for _, id := range p.Strays {
		if err := s.b.Remove(ctx, indexName(id)); err != nil {
			return fmt.Errorf("index of pack %s: %w", id.Short(), err)
		}
	}
	if d, ok := s.b.(*Dir); ok {
		if _, err := d.Sweep(ctx); err != nil {
			return err
		}
	}
	return s.Refresh(ctx)
}

// check reads the copies that stay where others go: one that is damaged must
// not be the last.
func (p *Prune) check(ctx context.Context) error {
	if len(p.doubles) == 0 {
		return nil
	}
	f := Fetcher{Index: IndexOf(p.doubles), Read: p.s.ReadPack}
	return f.Fetch(ctx, idsOf(p.doubles), func(digest.ID, []byte) error { return nil })
}

func idsOf(locs []Location) []digest.ID {
	ids := make([]digest.ID, len(locs))
	for i, l := range locs {
		ids[i] = l.Chunk.ID
	}
	return ids
}

// drop removes packs, the index file of each first: what an index file says
// must be there. A pack without one is no part of the store.
func (p *Prune) drop(ctx context.Context, packs []PackRef, out *Pruned) error {
	for _, pack := range packs {
		err := p.s.b.Remove(ctx, indexName(pack.ID))
		if err == nil || errors.Is(err, ErrMissing) {
			err = p.s.b.Remove(ctx, packName(pack.ID))
		}
		if err != nil {
			return fmt.Errorf("pack %s: %w", pack.ID.Short(), err)
		}
		out.Packs++
		out.Free += pack.Size
	}
	return nil
}

// rewriteAll replaces packs by new ones.
func (p *Prune) rewriteAll(ctx context.Context, progress func(done, total int64), out *Pruned) error {
	before := p.s.known()
	if err := p.copy(ctx, progress, out); err != nil {
		return err
	}
	if err := p.s.Refresh(ctx); err != nil {
		return err
	}
	// A new pack may be an old one again, to the byte: that one stays.
	copied := map[digest.ID]bool{}
	for id, f := range p.s.known() {
		if before[id] == nil {
			f.chunks(func(_ place, c digest.ID, _ int64) { copied[c] = true })
		}
	}
	same := map[digest.ID]bool{}
	for _, l := range p.order {
		if !copied[l.Chunk.ID] {
			same[l.Pack] = true
		}
	}
	return p.drop(ctx, slices.DeleteFunc(slices.Clone(p.Rewrite), func(r PackRef) bool { return same[r.ID] }), out)
}

// known returns the packs that the index has.
func (s *Store) known() map[digest.ID]*pack {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.index.packs)
}

// copy writes what is needed of the packs that go into new ones.
func (p *Prune) copy(ctx context.Context, progress func(done, total int64), out *Pruned) error {
	w, err := p.s.NewWriter(ctx)
	if err != nil {
		return err
	}
	defer w.Abort()
	w.again = true
	f := Fetcher{Index: IndexOf(p.order), Read: p.s.ReadPack}
	var done, total int64
	for _, l := range p.order {
		total += int64(l.Chunk.Size)
	}
	for rest := p.order; len(rest) > 0; {
		n, size := 0, int64(0)
		for n < len(rest) && (n == 0 || size+int64(rest[n].Chunk.Size) <= copyWindow) {
			size += int64(rest[n].Chunk.Size)
			n++
		}
		if err := copyChunks(ctx, &f, w, rest[:n]); err != nil {
			return err
		}
		rest, done = rest[n:], done+size
		if progress != nil {
			progress(done, total)
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	stats := w.Stats()
	out.New += stats.Packs
	out.Free -= stats.Stored
	return nil
}

func copyChunks(ctx context.Context, f *Fetcher, w *Writer, locs []Location) error {
	var mu sync.Mutex
	data := make(map[digest.ID][]byte, len(locs))
	err := f.Fetch(ctx, idsOf(locs), func(id digest.ID, b []byte) error {
		mu.Lock()
		defer mu.Unlock()
		data[id] = bytes.Clone(b)
		return nil
	})
	if err != nil {
		return err
	}
	for _, l := range locs {
		if err := w.Put(ctx, l.Chunk.ID, data[l.Chunk.ID]); err != nil {
			return err
		}
	}
	return nil
}
