package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	c   *capture
	own bool // nobody wants the slabs: one is enough
	j   *job
	s   *slab
	// s.buf[start:end] is read and not cut yet; what comes before is in chunks.
	start, end int
}

// job reads the files of j, or finds them in the cache, and closes j.slabs.
func (r *reader) job(ctx context.Context, j *job) error {
	defer close(j.slabs)
	r.j = j
	for _, n := range j.files {
		if err := r.file(ctx, n); err != nil {
			return err
		}
		for _, k := range r.c.entries[n].Chunks {
			j.bytes += int64(k.Size)
		}
	}
	return r.ship(ctx)
}

func (r *reader) file(ctx context.Context, n int) error {
	c := r.c
	e := &c.entries[n]
	if c.o.Cache != nil {
		if holes, chunks, ok := c.o.Cache.Lookup(e.Path, c.states[n]); ok {
			e.Holes, e.Chunks = holes, chunks
			r.j.cached++
			r.captured(n)
			for _, k := range chunks {
				r.note(piece{id: k.ID, entry: n})
			}
			return nil
		}
	}
	return r.retrying(ctx, n, func(id digest.ID, data []byte) error {
		r.note(piece{id: id, entry: n, data: data})
		return nil
	})
}

// note adds a piece to the slab.
func (r *reader) note(p piece) {
	if r.own {
		return
	}
	if r.s == nil {
		r.s, r.start, r.end = &slab{}, 0, 0
	}
	r.s.pieces = append(r.s.pieces, p)
}

// ship gives the slab to the sink.
func (r *reader) ship(ctx context.Context) error {
	s := r.s
	if r.own || s == nil {
		return nil
	}
	r.s = nil
	select {
	case r.j.slabs <- s:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// room makes sure that n bytes more can be read behind those that are not cut yet.
func (r *reader) room(ctx context.Context, n int) error {
	var tail []byte
	if r.s != nil && r.s.buf != nil {
		if len(r.s.buf)-r.end >= n {
			return nil
		}
		tail = r.s.buf[r.start:r.end]
	}
	s, err := r.another(ctx)
	if err != nil {
		return err
	}
	// First the copy: a slab that is shipped is soon filled by somebody else.
	end := copy(s.buf, tail)
	if s != r.s {
		if err := r.ship(ctx); err != nil {
			return err
		}
	}
	r.s, r.start, r.end = s, 0, end
	return nil
}

// another returns a slab to go on with; the one before is to be shipped unless
// its pieces are in this one.
func (r *reader) another(ctx context.Context) (*slab, error) {
	if r.own {
		if r.s == nil {
			return &slab{buf: make([]byte, slabBytes)}, nil
		}
		return r.s, nil // what was cut has been used
	}
	s, err := r.c.slab(ctx, r.j.seq)
	if err == nil && r.s != nil && r.s.buf == nil { // it has pieces, all from the cache
		s.pieces = append(s.pieces, r.s.pieces...)
		r.s = nil
	}
	return s, err
}

// split reads x to its end and calls emit for each chunk. data stays as it is
// as long as the slab.
func (r *reader) split(ctx context.Context, x *extents, emit func(data []byte) error) error {
	r.start = r.end // what a failed attempt left
	most := chunk.Default().Max
	for {
		for have := r.end - r.start; have < most && len(x.left) > 0; have = r.end - r.start {
			n := int(min(int64(most-have), x.rest()))
			if err := r.room(ctx, n); err != nil {
				return err
			}
			got, err := x.Read(r.s.buf[r.end : r.end+n])
			if err != nil {
				return err
			}
			r.end += got
		}
		if r.start == r.end {
			return nil
		}
		n := chunk.Cut(r.s.buf[r.start:r.end])
		data := r.s.buf[r.start : r.start+n : r.start+n]
		r.start += n
		if err := emit(data); err != nil {
			return err
		}
	}
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
	if replaced(err) || errors.Is(err, unix.ENXIO) {
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
	err = r.split(ctx, &extents{ctx: ctx, fd: fd, left: e.Data(), pad: anyhow}, func(data []byte) error {
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
// tick of its clock: a further change in the same tick would leave
// the same ctime, and go unseen.
func settled(ctx context.Context, fd int) (entry.Stat, error) {
	st, err := stateOf(fd)
	if err != nil {
		return st, err
	}
	age, tick := time.Since(time.Unix(0, st.CTime)), tickOf(st)
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

// rest is how many bytes are left.
func (x *extents) rest() int64 {
	n := int64(0)
	for _, d := range x.left {
		n += d.Len
	}
	return n
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
