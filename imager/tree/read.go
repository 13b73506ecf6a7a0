package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ingot/imager/chunk"
	"ingot/internal/digest"
	"ingot/internal/entry"
)

// retries is how often a file that changes while it is read is read again at
// once. Later it is read again with all else that has changed.
const retries = 1

// reader reads files, one after another.
type reader struct {
	c       *capture
	chunker *chunk.Chunker
}

// file reads one file, or finds it in the cache, and closes j.pieces.
func (r *reader) file(ctx context.Context, j *job) error {
	defer close(j.pieces)
	c := r.c
	e := &c.entries[j.n]
	send := func(p piece) error {
		select {
		case j.pieces <- p:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if c.o.Cache != nil {
		if holes, chunks, ok := c.o.Cache.Lookup(e.Path, c.states[j.n]); ok {
			e.Holes, e.Chunks, j.cached = holes, chunks, true
			r.captured(j.n)
			if c.o.Sink == nil {
				return nil
			}
			for _, k := range chunks {
				if err := send(piece{id: k.ID}); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return r.retrying(ctx, j.n, func(id digest.ID, data []byte) error {
		if c.o.Sink == nil {
			return nil
		}
		if err := c.budget.acquire(ctx, j.seq, len(data)); err != nil {
			return err
		}
		return send(piece{id: id, data: append(c.pool.get(len(data)), data...)})
	})
}

func (r *reader) captured(n int) {
	if r.c.o.Captured != nil {
		r.c.o.Captured(r.c.entries[n].Path, r.c.states[n], &r.c.entries[n])
	}
}

// retrying reads entry n. One that does not hold still is noted as unread,
// or, where it may change, taken as it came. emit sees the chunks of failed
// attempts too: they do no harm in a store.
func (r *reader) retrying(ctx context.Context, n int, emit func(digest.ID, []byte) error) error {
	for try := 0; ; try++ {
		last := try > retries
		read, err := r.once(ctx, n, last && r.c.allowed(r.c.entries[n].Path), emit)
		r.c.mu.Lock()
		r.c.stats.Read += read
		r.c.mu.Unlock()
		switch {
		case err == nil:
			if !last {
				r.captured(n)
			}
			return nil
		case !errors.Is(err, ErrChanged):
			return fmt.Errorf("read %q: %w", r.c.entries[n].Path, err)
		case last || try == retries && !r.c.allowed(r.c.entries[n].Path):
			r.c.gaveUp(n)
			return nil
		}
		r.c.mu.Lock()
		r.c.stats.Retried++
		r.c.mu.Unlock()
		select {
		case <-time.After(10 * time.Millisecond << (2 * try)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// gaveUp notes that the content of entry n is not known.
func (c *capture) gaveUp(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unread[n] = true
	c.states[n] = entry.Stat{} // which no entry has
	c.entries[n].Holes, c.entries[n].Chunks = nil, nil
}

// once reads entry n and brings its metadata up to date. A file whose state
// after reading is not the one before gives ErrChanged, unless anyhow is set:
// then what is missing at its end is filled with zeros.
func (r *reader) once(ctx context.Context, n int, anyhow bool, emit func(digest.ID, []byte) error) (int64, error) {
	c := r.c
	e := &c.entries[n]
	fd, err := openPlain(c.root, e.Path, unix.O_RDONLY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return 0, fmt.Errorf("%w: it is gone or something else", ErrChanged)
	}
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	before, err := settled(ctx, fd)
	if err != nil && !(anyhow && errors.Is(err, ErrChanged)) {
		return 0, err
	}
	if before != c.states[n] { // since it was scanned
		now, st, err := entry.ReadFd(fd)
		if err != nil {
			return 0, err
		}
		if now.Type != entry.File {
			return 0, fmt.Errorf("%w: it became something else", ErrChanged)
		}
		now.Path = e.Path
		*e, c.states[n], before = now, st, st
	}
	e.Holes, e.Chunks = nil, nil
	if e.Size == 0 {
		return 0, nil
	}
	if e.Holes, err = entry.HolesOfFd(fd, e.Size); err != nil {
		return 0, fmt.Errorf("find holes: %w", err)
	}
	read := int64(0)
	err = r.chunker.Split(&extents{ctx: ctx, fd: fd, left: e.Data(), pad: anyhow}, func(data []byte) error {
		id := digest.Of(data)
		read += int64(len(data))
		e.Chunks = append(e.Chunks, entry.Chunk{ID: id, Size: uint32(len(data))})
		return emit(id, data)
	})
	if err != nil {
		return read, err
	}
	after, err := stateOf(fd)
	if err != nil {
		return read, err
	}
	if after != before && !anyhow {
		return read, ErrChanged
	}
	return read, nil
}

// settled returns the state of a file that has not changed within the last
// tick of the kernel's clock: a further change in the same tick would leave
// the same ctime, and go unseen.
func settled(ctx context.Context, fd int) (entry.Stat, error) {
	st, err := stateOf(fd)
	if err != nil {
		return st, err
	}
	age := time.Since(time.Unix(0, st.CTime))
	if age < 0 || age > tick {
		return st, nil
	}
	select {
	case <-time.After(tick - age):
	case <-ctx.Done():
		return st, ctx.Err()
	}
	again, err := stateOf(fd)
	if err == nil && again != st {
		err = ErrChanged
	}
	return again, err
}

func stateOf(fd int) (entry.Stat, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return entry.Stat{}, fmt.Errorf("stat: %w", err)
	}
	return entry.StatOf(&st), nil
}

// extents reads the given parts of a file, one after another. A file that
// ends before they do has changed.
type extents struct {
	ctx  context.Context // ends long reads; the reader lives no longer than one call
	fd   int
	left []entry.Extent
	pad  bool // zeros for what is not there any more
}

func (x *extents) Read(p []byte) (int, error) {
	if len(x.left) == 0 {
		return 0, io.EOF
	}
	if err := x.ctx.Err(); err != nil {
		return 0, err
	}
	d := &x.left[0]
	p = p[:min(int64(len(p)), d.Len)]
	n, err := unix.Pread(x.fd, p, d.Off)
	switch {
	case errors.Is(err, unix.EINTR):
		return 0, nil
	case err != nil:
		return 0, err
	case n == 0 && x.pad:
		clear(p)
		n = len(p)
	case n == 0:
		return 0, fmt.Errorf("%w: it became shorter", ErrChanged)
	}
	if d.Off, d.Len = d.Off+int64(n), d.Len-int64(n); d.Len == 0 {
		x.left = x.left[1:]
	}
	return n, nil
}

// budget bounds the bytes that are read ahead. The file whose turn it is may
// always go on, or else files that come later could keep it waiting for ever.
type budget struct {
	mu     sync.Mutex
	freed  *sync.Cond
	used   int
	limit  int
	turn   int
	closed bool
}

func newBudget(limit int) *budget {
	b := &budget{limit: limit}
	b.freed = sync.NewCond(&b.mu)
	return b
}

func (b *budget) acquire(ctx context.Context, seq, n int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.used+n > b.limit && seq > b.turn && !b.closed {
		b.freed.Wait()
	}
	if b.closed {
		return ctx.Err()
	}
	b.used += n
	return nil
}

func (b *budget) release(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
	b.freed.Broadcast()
}

// advance says whose turn it is.
func (b *budget) advance(seq int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turn = seq
	b.freed.Broadcast()
}

func (b *budget) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.freed.Broadcast()
}

// pool keeps buffers by the power of two that they hold.
type pool [32]sync.Pool

func (p *pool) get(n int) []byte {
	class := bits.Len(uint(n - 1))
	if b, ok := p[class].Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return make([]byte, 0, 1<<class)
}

func (p *pool) put(b []byte) {
	if class := bits.Len(uint(cap(b) - 1)); cap(b) == 1<<class {
		p[class].Put(&b)
	}
}
