package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync"
	"time"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/slogx"
)

// Writer adds chunks to a store: in the order of Put they are gathered into
// frames, and frames into packs. Chunks that the store has already, or that
// were put before, are left out. Nothing is durable before Flush or Close has
// returned nil, but packs that are full become so before, and are found by
// the next NewWriter after a crash. It is safe for concurrent use, and
// several Writers of several processes may work on one store.
type Writer struct {
	s     *Store
	again bool // store also what the store has: for a prune, which removes that

	mu     sync.Mutex
	seen   map[digest.ID]struct{}
	cur    *rawFrame
	closed bool
	stats  WriterStats

	queue chan *rawFrame // in order, to the goroutine that writes packs
	slots chan struct{}  // frames being compressed
	free  sync.Pool
	done  chan struct{}

	errMu sync.Mutex
	err   error
}

// WriterStats says what a Writer was given and what it had to store.
type WriterStats struct {
	Chunks, NewChunks int
	Bytes, NewBytes   int64 // raw
	Packs             int
	Stored            int64 // bytes of new packs
}

// rawFrame is a frame on its way: gathered, compressed, written.
type rawFrame struct {
	raw    []byte
	out    []byte
	chunks []entry.Chunk
	ready  chan struct{} // closed when out is there
	flush  chan error    // set: no frame, but the wish that all before be durable
}

// NewWriter starts a Writer. When ctx ends before Close, the Writer fails and
// leaves nothing but complete packs. Close must be called, or Abort.
func (s *Store) NewWriter(ctx context.Context) (*Writer, error) { return s.newWriter(ctx, packAge) }

func (s *Store) newWriter(ctx context.Context, age time.Duration) (*Writer, error) {
	if n, err := s.Reindex(ctx); err != nil {
		return nil, fmt.Errorf("write chunks: %w", err)
	} else if n > 0 {
		slogx.Or(s.Log).Warn("indexed packs that a crash left without an index", "packs", n)
	}
	if d, ok := s.b.(*Dir); ok {
		if n, err := d.Sweep(ctx); err != nil {
			return nil, fmt.Errorf("write chunks: %w", err)
		} else if n > 0 {
			slogx.Or(s.Log).Warn("removed what a crash left in the store", "files", n)
		}
	}
	n := runtime.GOMAXPROCS(0)
	w := &Writer{s: s, seen: map[digest.ID]struct{}{},
		queue: make(chan *rawFrame, n+1), slots: make(chan struct{}, n), done: make(chan struct{})}
	w.free.New = func() any { return &rawFrame{raw: make([]byte, 0, frameTarget+frameTarget/4)} }
	go w.run(ctx, age)
	return w, nil
}

// Missing returns those of ids that neither the store nor w has.
func (w *Writer) Missing(ctx context.Context, ids []digest.ID) ([]digest.ID, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.s.missing(ids, w.seen), nil
}

// Put adds a chunk; data may be reused afterwards. The caller has made sure
// that id is the digest of data: a chunk that came over a wire is checked there.
func (w *Writer) Put(ctx context.Context, id digest.ID, data []byte) error {
	if len(data) == 0 || len(data) > manifest.MaxChunk {
		return fmt.Errorf("put chunk %s: %d bytes", id.Short(), len(data))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.failed(ctx); err != nil {
		return err
	}
	w.stats.Chunks++
	w.stats.Bytes += int64(len(data))
	if _, ok := w.seen[id]; ok || !w.again && w.s.has(id) {
		return nil
	}
	w.seen[id] = struct{}{}
	w.stats.NewChunks++
	w.stats.NewBytes += int64(len(data))
	if w.cur == nil {
		w.cur = w.free.Get().(*rawFrame)
		w.cur.ready = make(chan struct{})
	}
	w.cur.raw = append(w.cur.raw, data...)
	w.cur.chunks = append(w.cur.chunks, entry.Chunk{ID: id, Size: uint32(len(data))})
	if len(w.cur.raw) < frameTarget {
		return nil
	}
	return w.send(ctx)
}

func (w *Writer) failed(ctx context.Context) error {
	if w.closed {
		return errors.New("put chunk: the writer is closed")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	w.errMu.Lock()
	defer w.errMu.Unlock()
	return w.err
}

// fail records the first error.
func (w *Writer) fail(err error) {
	w.errMu.Lock()
	defer w.errMu.Unlock()
	if w.err == nil {
		w.err = fmt.Errorf("write chunks: %w", err)
	}
}

// send has the current frame compressed and written. w.mu is held.
func (w *Writer) send(ctx context.Context) error {
	f := w.cur
	if f == nil {
		return nil
	}
	select {
	case w.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	w.cur = nil
	go func() {
		f.out = w.s.enc.EncodeAll(f.raw, f.out[:0])
		<-w.slots
		close(f.ready)
	}()
	w.queue <- f // run empties it whatever happens
	return nil
}

// Flush makes all that was put durable.
func (w *Writer) Flush(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.failed(ctx); err != nil {
		return err
	}
	if err := w.send(ctx); err != nil {
		return err
	}
	f := &rawFrame{flush: make(chan error, 1)}
	w.queue <- f
	return <-f.flush
}

// Close makes all that was put durable and ends w.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	err := w.failed(context.Background())
	if err == nil {
		err = w.send(context.Background())
	}
	if err != nil {
		w.fail(err)
	}
	w.end()
	return w.err
}

// Abort ends w and forgets what is not durable yet. After Close it does nothing.
func (w *Writer) Abort() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	w.fail(errors.New("aborted"))
	w.end()
}

func (w *Writer) end() {
	w.closed = true
	close(w.queue)
	<-w.done
}

// Stats may be called at any time; Packs and Stored are final after Close.
func (w *Writer) Stats() WriterStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

// run writes frames to packs, in order. A pack that is full is made durable
// while the next is written.
func (w *Writer) run(ctx context.Context, age time.Duration) {
	defer close(w.done)
	p := &packWriter{s: w.s, age: age}
	for f := range w.queue {
		if f.flush != nil {
			f.flush <- w.settle(ctx, p)
			continue
		}
		<-f.ready
		if w.broken() == nil {
			if err := p.add(ctx, f); err != nil {
				w.fail(err)
			}
		}
		f.raw, f.chunks = f.raw[:0], nil
		w.free.Put(f)
	}
	if err := w.settle(ctx, p); err != nil {
		p.abort()
	}
	w.stats.Packs, w.stats.Stored = p.packs, p.stored
}

func (w *Writer) broken() error {
	w.errMu.Lock()
	defer w.errMu.Unlock()
	return w.err
}

// settle finishes the current pack and waits until all are durable.
func (w *Writer) settle(ctx context.Context, p *packWriter) error {
	if err := w.broken(); err != nil {
		return errors.Join(err, p.wait())
	}
	err := p.finish(ctx)
	if werr := p.wait(); err == nil {
		err = werr
	}
	if err != nil {
		w.fail(err)
		return w.broken()
	}
	return nil
}

// packAge is after how long a pack is ended that is not full: what arrives
// slowly, over a wire, took long to come and is not to be lost in a crash.
const packAge = 30 * time.Second

// packWriter writes one pack after another. Only run uses it.
type packWriter struct {
	s *Store

	up     Upload
	sum    hash.Hash
	size   int64
	frames []frame
	since  time.Time
	age    time.Duration
	last   chan error // of the pack that is being made durable

	packs  int
	stored int64
}

func (p *packWriter) add(ctx context.Context, f *rawFrame) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.up == nil {
		up, err := p.s.b.Create(ctx)
		if err != nil {
			return err
		}
		p.up, p.sum, p.size, p.frames, p.since = up, sha256.New(), 0, nil, time.Now()
		if err := p.write([]byte(packMagic)); err != nil {
			return err
		}
	}
	if err := p.write(f.out); err != nil {
		return err
	}
	p.frames = append(p.frames, frame{length: uint32(len(f.out)), raw: uint32(len(f.raw)), chunks: f.chunks})
	if p.size >= packTarget || p.age > 0 && time.Since(p.since) >= p.age {
		return p.finish(ctx)
	}
	return nil
}

func (p *packWriter) write(b []byte) error {
	n, err := p.up.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return err
	}
	p.sum.Write(b)
	p.size += int64(n)
	return nil
}

// finish ends the current pack and has it made durable, one at a time.
func (p *packWriter) finish(ctx context.Context) error {
	if p.up == nil {
		return nil
	}
	block := appendBlock(nil, p.frames)
	if err := p.write(block); err != nil {
		return err
	}
	if err := p.wait(); err != nil {
		return err
	}
	up, pk := p.up, newPack(digest.ID(p.sum.Sum(nil)), p.frames)
	p.up = nil
	p.packs++
	p.stored += p.size
	p.last = make(chan error, 1)
	go func() { p.last <- p.s.publish(ctx, up, pk, block) }()
	return nil
}

func (p *packWriter) wait() error {
	if p.last == nil {
		return nil
	}
	err := <-p.last
	p.last = nil
	return err
}

func (p *packWriter) abort() {
	if p.up != nil {
		p.up.Abort()
		p.up = nil
	}
}

// publish makes a pack durable, then its index, which is what others look for.
func (s *Store) publish(ctx context.Context, up Upload, p *pack, block []byte) error {
	defer up.Abort()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := up.Commit(packName(p.id)); err != nil {
		return err
	}
	if err := s.b.Put(ctx, indexName(p.id), block); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index.add(p)
	return nil
}
