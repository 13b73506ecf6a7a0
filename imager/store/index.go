package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/slogx"
)

// index knows where every chunk is. Guarded by Store.mu.
type index struct {
	packs  map[digest.ID]*pack
	chunks map[digest.ID]place
}

// pack is what the index knows of one pack.
type pack struct {
	id     digest.ID
	size   int64
	frames []frame
	offs   []int64 // where each frame begins
}

type place struct {
	pack  *pack
	frame uint32
	chunk uint32 // within the frame
	off   uint32 // within the raw frame
}

func newPack(id digest.ID, frames []frame) *pack {
	p := &pack{id: id, size: packSize(frames), frames: frames, offs: make([]int64, len(frames))}
	off := int64(len(packMagic))
	for i := range frames {
		p.offs[i] = off
		off += int64(frames[i].length)
	}
	return p
}

// count is how many chunks the pack has.
func (p *pack) count() int {
	n := 0
	for i := range p.frames {
		n += len(p.frames[i].chunks)
	}
	return n
}

func (x *index) add(p *pack) {
	if x.packs == nil {
		x.packs, x.chunks = map[digest.ID]*pack{}, map[digest.ID]place{}
	}
	if x.packs[p.id] != nil {
		return
	}
	x.packs[p.id] = p
	for i := range p.frames {
		off := uint32(0)
		for j, c := range p.frames[i].chunks {
			if _, ok := x.chunks[c.ID]; !ok {
				x.chunks[c.ID] = place{pack: p, frame: uint32(i), chunk: uint32(j), off: off}
			}
			off += c.Size
		}
	}
}

// Location is where a chunk is: in which frame of which pack, and where in
// the raw bytes of the frame.
type Location struct {
	Chunk    entry.Chunk
	Pack     digest.ID
	PackSize int64
	FrameOff int64
	FrameLen uint32
	FrameRaw uint32
	RawOff   uint32
}

func (pl place) location() Location {
	f := &pl.pack.frames[pl.frame]
	return Location{
		Chunk: f.chunks[pl.chunk], Pack: pl.pack.id, PackSize: pl.pack.size,
		FrameOff: pl.pack.offs[pl.frame], FrameLen: f.length, FrameRaw: f.raw, RawOff: pl.off,
	}
}

// Refresh compares what is known of the packs with what is there: other
// processes add packs, and prune removes them. A pack of which no index can be
// read is left out with a warning, and is damage to Verify: it must not keep
// anybody from the other packs.
func (s *Store) Refresh(ctx context.Context) error { return s.refresh(ctx, 0) }

// refresh does nothing when the index was compared less than age ago.
func (s *Store) refresh(ctx context.Context, age time.Duration) error {
	s.reading.Lock() // one at a time; s.mu stays free while files are read
	defer s.reading.Unlock()
	s.mu.Lock()
	fresh := !s.read.IsZero() && time.Since(s.read) < age
	known := make(map[digest.ID]*pack, len(s.index.packs))
	for id, p := range s.index.packs {
		known[id] = p
	}
	s.mu.Unlock()
	if fresh {
		return nil
	}
	now := time.Now()
	names, err := s.b.List(ctx, "index")
	if err != nil {
		return fmt.Errorf("list packs: %w", err)
	}
	if len(names) == 0 && len(known) == 0 {
		if _, err := s.reindex(ctx); err != nil { // somebody removed the index
			return err
		}
		if names, err = s.b.List(ctx, "index"); err != nil {
			return fmt.Errorf("list packs: %w", err)
		}
	}
	var unread []digest.ID
	for _, name := range names {
		id, err := digest.Parse(name)
		if err != nil {
			continue
		}
		if known[id] == nil {
			unread = append(unread, id)
		}
		delete(known, id)
	}
	added, unreadable, err := s.loadPacks(ctx, unread)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.merge(added, known, now)
	for id, err := range unreadable {
		if s.unreadable[id] == nil {
			slogx.Or(s.Log).Warn("a pack cannot be used: neither its index nor its own can be read", "pack", id.Short(), slogx.Err, err)
		}
	}
	s.unreadable = unreadable
	return nil
}

// merge adds packs and drops what is gone, except what was written since now.
func (s *Store) merge(added []*pack, gone map[digest.ID]*pack, now time.Time) {
	s.read = now
	if len(gone) > 0 {
		old := s.index.packs
		s.index = index{}
		for id, p := range old {
			if gone[id] == nil {
				s.index.add(p)
			}
		}
	}
	if len(s.index.packs) == 0 { // the table would grow again and again
		n := 0
		for _, p := range added {
			n += p.count()
		}
		s.index.packs, s.index.chunks = make(map[digest.ID]*pack, len(added)), make(map[digest.ID]place, n)
	}
	for _, p := range added {
		s.index.add(p)
	}
}

// loadPacks reads the indexes of packs, several at once: those that can be
// read, and why others cannot.
func (s *Store) loadPacks(ctx context.Context, ids []digest.ID) (added []*pack, unreadable map[digest.ID]error, err error) {
	packs, damage := make([]*pack, len(ids)), make([]error, len(ids))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, id := range ids {
		g.Go(func() (err error) {
			packs[i], err = s.loadPack(ctx, id)
			var corrupt *CorruptError
			switch {
			case errors.As(err, &corrupt):
				damage[i] = err
				return nil
			case errors.Is(err, ErrMissing): // removed meanwhile
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	unreadable = map[digest.ID]error{}
	for i, id := range ids {
		switch {
		case damage[i] != nil:
			unreadable[id] = damage[i]
		case packs[i] != nil:
			added = append(added, packs[i])
		}
	}
	return added, unreadable, nil
}

// loadPack reads the index of one pack: the small file, or else the pack's own.
func (s *Store) loadPack(ctx context.Context, id digest.ID) (*pack, error) {
	raw, err := readAll(ctx, s.b, indexName(id), maxPack)
	if err != nil {
		return nil, err
	}
	frames, err := decodeBlock(raw)
	if err == nil {
		return newPack(id, frames), nil
	}
	slogx.Or(s.Log).Warn("index of a pack is damaged, reading the pack's own", "pack", id.Short(), slogx.Err, err)
	_, frames, err = s.ownBlock(ctx, id)
	if errors.Is(err, ErrMissing) {
		return nil, &CorruptError{ID: id, Where: indexName(id), Err: err}
	}
	if err != nil {
		return nil, err
	}
	return newPack(id, frames), nil
}

// ownBlock reads the index block at the end of a pack, and decodes it.
func (s *Store) ownBlock(ctx context.Context, id digest.ID) ([]byte, []frame, error) {
	o, err := s.b.Open(ctx, packName(id))
	if err != nil {
		return nil, nil, err
	}
	defer o.Close()
	block, err := readBlock(o, id)
	if err != nil {
		return nil, nil, err
	}
	frames, err := decodeBlock(block)
	if err != nil {
		return nil, nil, &CorruptError{ID: id, Where: packName(id) + ", index", Err: err}
	}
	return block, frames, nil
}

func readBlock(o Object, id digest.ID) ([]byte, error) {
	where := packName(id) + ", index"
	if o.Size() < int64(trailerLen) {
		return nil, &CorruptError{ID: id, Where: where, Err: io.ErrUnexpectedEOF}
	}
	trailer := make([]byte, trailerLen)
	if _, err := o.ReadAt(trailer, o.Size()-int64(trailerLen)); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %s: %w", where, err)
	}
	n, err := blockLen(trailer)
	if err == nil && n > o.Size() {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, &CorruptError{ID: id, Where: where, Err: err}
	}
	block := make([]byte, n)
	if _, err := o.ReadAt(block, o.Size()-n); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %s: %w", where, err)
	}
	return block, nil
}

// Reindex writes the small index files that are missing, from the packs, and
// returns how many there were: a crash between a pack and its index leaves
// such a pack. Packs that cannot be read are left out with a warning.
func (s *Store) Reindex(ctx context.Context) (int, error) {
	n, err := s.reindex(ctx)
	if err != nil {
		return n, err
	}
	return n, s.Refresh(ctx)
}

func (s *Store) reindex(ctx context.Context) (int, error) {
	ids, err := walkFan(ctx, s.b, "packs", "")
	if err != nil {
		return 0, fmt.Errorf("rebuild index: %w", err)
	}
	names, err := s.b.List(ctx, "index")
	if err != nil {
		return 0, fmt.Errorf("rebuild index: %w", err)
	}
	there := make(map[string]bool, len(names))
	for _, name := range names {
		there[name] = true
	}
	n := 0
	for _, id := range ids {
		if there[id.String()] {
			continue
		}
		block, _, err := s.ownBlock(ctx, id)
		if err != nil {
			slogx.Or(s.Log).Warn("a pack without a readable index", "pack", id.Short(), slogx.Err, err)
			continue
		}
		if err := s.b.Put(ctx, indexName(id), block); err != nil {
			return n, fmt.Errorf("rebuild index: %w", err)
		}
		n++
	}
	return n, nil
}

// Missing returns those of ids that the store does not have, each once, in order.
func (s *Store) Missing(ctx context.Context, ids []digest.ID) ([]digest.ID, error) {
	if err := s.refresh(ctx, time.Second); err != nil {
		return nil, err
	}
	return s.missing(ids, nil), nil
}

func (s *Store) missing(ids []digest.ID, also map[digest.ID]struct{}) []digest.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []digest.ID
	asked := map[digest.ID]struct{}{} // most are there, so few are noted
	for _, id := range ids {
		if _, ok := s.index.chunks[id]; ok {
			continue
		}
		if _, ok := also[id]; ok {
			continue
		}
		if _, ok := asked[id]; !ok {
			asked[id] = struct{}{}
			out = append(out, id)
		}
	}
	return out
}

func (s *Store) has(id digest.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.index.chunks[id]
	return ok
}

// Locate says where the chunks are, in the order of ids. A chunk that is not
// there gives ErrMissing.
func (s *Store) Locate(ctx context.Context, ids []digest.ID) ([]Location, error) {
	if err := s.refresh(ctx, time.Second); err != nil {
		return nil, err
	}
	out, err := s.locate(ids)
	if !errors.Is(err, ErrMissing) {
		return out, err
	}
	if err := s.Refresh(ctx); err != nil {
		return nil, err
	}
	return s.locate(ids)
}

func (s *Store) locate(ids []digest.ID) ([]Location, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Location, len(ids))
	for i, id := range ids {
		pl, ok := s.index.chunks[id]
		if !ok {
			return nil, fmt.Errorf("chunk %s: %w", id.Short(), ErrMissing)
		}
		out[i] = pl.location()
	}
	return out, nil
}

// OpenPack opens a pack for an HTTP server, which may serve any range of it
// (io.NewSectionReader): whoever reads chunks out of it checks them.
func (s *Store) OpenPack(ctx context.Context, id digest.ID) (Object, error) {
	o, err := s.b.Open(ctx, packName(id))
	if err != nil {
		return nil, fmt.Errorf("open pack: %w", err)
	}
	return o, nil
}
