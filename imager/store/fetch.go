package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"ingot/internal/digest"
)

// Fetcher reads chunks out of packs, wherever they are. Packs are read in the
// order of the index, each from end to end as far as it is needed. It may be
// used again, and concurrently.
type Fetcher struct {
	Index *Index
	// Read opens n bytes of a pack at off. It retries what is worth it; a
	// reader that ends early makes Fetch fail.
	Read func(ctx context.Context, pack digest.ID, off, n int64) (io.ReadCloser, error)
	// Parallel is how many frames are decompressed at once; 0: one a processor.
	Parallel int

	// state
	once  sync.Once
	byID  map[digest.ID]uint32 // number in Index.Chunks
	spare *spare               // nil: of its own
}

const (
	maxGap = 256 << 10 // bytes read for nothing rather than asked for apart
	maxRun = 16 << 20  // bytes of one range
	// readers is how many ranges are read at once, so that the round trip of
	// one hides behind the bytes of another.
	readers = 2
)

// want is a frame and which of its chunks are asked for.
type want struct {
	frame  uint32
	chunks []uint32
}

// run is a range of a pack that is read in one go.
type run struct {
	pack   PackRef
	off, n int64
	frames []want
}

// job is a frame that has been read.
type job struct {
	pack PackRef
	want want
	buf  *buffers
}

// spare is what is used again from fetch to fetch.
type spare struct {
	dec     *zstd.Decoder
	buffers sync.Pool // of *buffers
}

func newSpare(parallel int) (*spare, error) {
	dec, err := newDecoder(parallel, maxFrame)
	return &spare{dec: dec, buffers: sync.Pool{New: func() any { return &buffers{} }}}, err
}

// buffers are reused from frame to frame.
type buffers struct{ packed, raw []byte }

// Fetch calls fn once for each distinct one of ids, from several goroutines
// at once; data is verified, and valid only until fn returns. A chunk that
// the index does not have gives ErrMissing before anything is read; a damaged
// one a *CorruptError that names pack and offset.
func (f *Fetcher) Fetch(ctx context.Context, ids []digest.ID, fn func(id digest.ID, data []byte) error) error {
	runs, err := f.plan(ids)
	if err != nil {
		return fmt.Errorf("fetch chunks: %w", err)
	}
	workers := f.Parallel
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	spare := f.spare
	if spare == nil {
		if spare, err = newSpare(workers); err != nil {
			return fmt.Errorf("fetch chunks: %w", err)
		}
		defer spare.dec.Close()
	}
	todo, jobs := make(chan run), make(chan job, workers)

	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error {
		defer close(todo)
		for _, r := range runs {
			select {
			case todo <- r:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	all.Go(func() error {
		defer close(jobs)
		reading, ctx := errgroup.WithContext(ctx)
		for range min(readers, len(runs)) {
			reading.Go(func() error {
				for r := range todo {
					if err := f.readRun(ctx, r, spare, jobs); err != nil {
						return err
					}
				}
				return nil
			})
		}
		return reading.Wait()
	})
	for range workers {
		all.Go(func() error {
			for j := range jobs {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := f.unpack(spare.dec, j, fn); err != nil {
					return err
				}
				spare.buffers.Put(j.buf)
			}
			return nil
		})
	}
	return all.Wait()
}

// plan groups ids by frame and frames by range.
func (f *Fetcher) plan(ids []digest.ID) ([]run, error) {
	f.once.Do(func() {
		f.byID = make(map[digest.ID]uint32, len(f.Index.Chunks))
		for i, c := range f.Index.Chunks {
			f.byID[c.ID] = uint32(i)
		}
	})
	nums := make([]uint32, 0, len(ids))
	for _, id := range ids {
		n, ok := f.byID[id]
		if !ok {
			return nil, fmt.Errorf("chunk %s: %w", id.Short(), ErrMissing)
		}
		nums = append(nums, n)
	}
	slices.Sort(nums)
	nums = slices.Compact(nums)
	var runs []run
	for i := 0; i < len(nums); {
		w := want{frame: f.Index.Chunks[nums[i]].Frame}
		j := i
		for j < len(nums) && f.Index.Chunks[nums[j]].Frame == w.frame {
			j++
		}
		w.chunks = nums[i:j]
		i = j
		runs = f.extend(runs, w)
	}
	return runs, nil
}

// extend puts a frame into the last run, or begins another.
func (f *Fetcher) extend(runs []run, w want) []run {
	fr := f.Index.Frames[w.frame]
	pack := f.Index.Packs[fr.Pack]
	if n := len(runs); n > 0 {
		r := &runs[n-1]
		end := fr.Off + int64(fr.Len)
		if r.pack.ID == pack.ID && fr.Off-(r.off+r.n) <= maxGap && end-r.off <= maxRun {
			r.n = end - r.off
			r.frames = append(r.frames, w)
			return runs
		}
	}
	return append(runs, run{pack: pack, off: fr.Off, n: int64(fr.Len), frames: []want{w}})
}

func (f *Fetcher) readRun(ctx context.Context, r run, spare *spare, jobs chan<- job) error {
	rc, err := f.Read(ctx, r.pack.ID, r.off, r.n)
	if err != nil {
		return fmt.Errorf("read pack %s at %d: %w", r.pack.ID.Short(), r.off, err)
	}
	defer rc.Close()
	pos := r.off
	for _, w := range r.frames {
		fr := f.Index.Frames[w.frame]
		b := spare.buffers.Get().(*buffers)
		_, err := io.CopyN(io.Discard, rc, fr.Off-pos)
		if err == nil {
			b.packed = slices.Grow(b.packed[:0], int(fr.Len))[:fr.Len]
			_, err = io.ReadFull(rc, b.packed)
		}
		if err != nil {
			return cutShort(r.pack.ID, fr.Off, err)
		}
		pos = fr.Off + int64(fr.Len)
		select {
		case jobs <- job{r.pack, w, b}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (f *Fetcher) unpack(dec *zstd.Decoder, j job, fn func(digest.ID, []byte) error) (err error) {
	fr := f.Index.Frames[j.want.frame]
	wanted := func(yield func(ChunkRef) bool) {
		for _, n := range j.want.chunks {
			if !yield(f.Index.Chunks[n]) {
				return
			}
		}
	}
	j.buf.raw, err = unpack(dec, fmt.Sprintf("pack %s, frame at %d", j.pack.ID, fr.Off), j.buf.packed, j.buf.raw, fr.Raw, wanted, fn)
	return err
}

func cutShort(pack digest.ID, off int64, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("the pack ends early: %w", io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("read pack %s, frame at %d: %w", pack.Short(), off, err)
}

// unpack decompresses a frame of size bytes into buf, which it may grow and
// returns, and calls fn for chunks in it, verified.
func unpack(dec *zstd.Decoder, where string, packed, buf []byte, size uint32, chunks iter.Seq[ChunkRef], fn func(digest.ID, []byte) error) ([]byte, error) {
	raw, err := inflate(dec, packed, buf, size)
	for c := range chunks {
		if err != nil {
			return buf, &CorruptError{ID: c.ID, Where: where, Err: err}
		}
		data := raw[c.Off : c.Off+c.Size : c.Off+c.Size]
		if got := digest.Of(data); got != c.ID {
			return raw, &CorruptError{ID: c.ID, Got: got, Where: fmt.Sprintf("%s, chunk at %d", where, c.Off)}
		}
		if err := fn(c.ID, data); err != nil {
			return raw, err
		}
	}
	return raw, err
}

// Fetch calls fn for each distinct one of ids as Fetcher.Fetch does, from the
// packs of the store.
func (s *Store) Fetch(ctx context.Context, ids []digest.ID, fn func(id digest.ID, data []byte) error) error {
	locs, err := s.Locate(ctx, ids)
	if err != nil {
		return fmt.Errorf("fetch chunks: %w", err)
	}
	f := Fetcher{Index: IndexOf(locs), Read: s.ReadPack, spare: s.spare}
	return f.Fetch(ctx, ids, fn)
}

// ReadPack opens n bytes of a pack at off: the Read of a Fetcher on this store.
func (s *Store) ReadPack(ctx context.Context, id digest.ID, off, n int64) (io.ReadCloser, error) {
	o, err := s.b.Open(ctx, packName(id))
	if err != nil {
		return nil, err
	}
	return section{io.NewSectionReader(o, off, n), o}, nil
}

type section struct {
	io.Reader
	io.Closer
}
