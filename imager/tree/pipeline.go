package tree

import (
	"context"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"ingot/internal/digest"
)

const (
	// budgetBytes is what is read ahead of the sink at most.
	budgetBytes = 12 << 20
	// slabBytes is what is read into one buffer: several small files, or a
	// part of a large one.
	slabBytes = 1 << 20
	// batchBytes is how much is asked of the sink in one question.
	batchBytes = 1 << 20
	batchMost  = 4096 // chunks in one question
	inFlight   = 4    // questions that wait for their answer or its chunks
	jobFiles   = 128  // files that are read as one job at most
)

// job is some files one after another, which are read as one: a hand-over
// for each small file would cost more than reading it. Its slabs come in
// order, and the channel is closed when entries and states are final.
type job struct {
	seq    int
	files  []int // numbers of entries
	slabs  chan *slab
	cached int   // files known from the cache
	bytes  int64 // of content
}

// slab is content that was read, in pieces.
type slab struct {
	buf    []byte // nil where all pieces are known from the cache
	pieces []piece
}

// piece is a chunk on its way to the sink; without data when it is known
// from the cache.
type piece struct {
	id    digest.ID
	entry int
	data  []byte // a part of the slab
}

// contents reads the files and gives their chunks to the sink.
func (c *capture) contents(ctx context.Context, files []int) error {
	workers := c.o.Parallel
	if workers <= 0 {
		workers = 2 * runtime.GOMAXPROCS(0)
	}
	g, ctx := errgroup.WithContext(ctx)
	c.budget = newBudget(budgetBytes)
	stop := context.AfterFunc(ctx, c.budget.close)
	defer stop()
	work, order := make(chan *job, 2*workers), make(chan *job, 2*workers)
	g.Go(func() error {
		defer close(work)
		defer close(order)
		for seq := 0; len(files) > 0; seq++ {
			n := c.some(files)
			j := &job{seq: seq, files: files[:n], slabs: make(chan *slab, 2)}
			files = files[n:]
			for _, ch := range []chan *job{order, work} {
				select {
				case ch <- j:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			r := &reader{c: c, own: c.o.Sink == nil}
			for j := range work {
				if err := r.job(ctx, j); err != nil {
					return err
				}
			}
			return nil
		})
	}
	b := &batch{c: c, asked: map[digest.ID]struct{}{}, lost: map[digest.ID]struct{}{}, questions: make(chan question, inFlight-1)}
	g.Go(func() error {
		defer close(b.questions)
		return c.drain(ctx, order, b)
	})
	g.Go(func() error { return b.settle(ctx) })
	if err := g.Wait(); err != nil {
		return err
	}
	c.forget(b.lost)
	return nil
}

// forget has the files read again of which the sink did not get a chunk.
func (c *capture) forget(lost map[digest.ID]struct{}) {
	if len(lost) == 0 {
		return
	}
	for _, n := range c.files {
		for _, k := range c.entries[n].Chunks {
			if _, ok := lost[k.ID]; ok {
				c.gaveUp(n)
				break
			}
		}
	}
}

// some returns how many of the files are worth a job: what fills a slab.
func (c *capture) some(files []int) int {
	bytes := int64(0)
	for i, n := range files[:min(len(files), jobFiles)] {
		if bytes += c.entries[n].Size; bytes > slabBytes {
			return max(i, 1)
		}
	}
	return min(len(files), jobFiles)
}

// slab returns an empty one, when the budget allows it.
func (c *capture) slab(ctx context.Context, seq int) (*slab, error) {
	if err := c.budget.acquire(ctx, seq, slabBytes); err != nil {
		return nil, err
	}
	if s, ok := c.slabs.Get().(*slab); ok {
		return s, nil
	}
	return &slab{buf: make([]byte, slabBytes)}, nil
}

func (c *capture) release(s *slab) {
	if s.buf != nil {
		c.budget.release(slabBytes)
		clear(s.pieces)
		s.pieces = s.pieces[:0]
		c.slabs.Put(s)
	}
}

// drain asks the sink about pieces, job by job.
func (c *capture) drain(ctx context.Context, order <-chan *job, b *batch) error {
	var bytes, files int64
	for j := range order {
		c.budget.advance(j.seq)
		for open := true; open; {
			select {
			case s, ok := <-j.slabs:
				if open = ok; !ok {
					break
				}
				if err := b.add(ctx, s); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		files += int64(len(j.files))
		bytes += j.bytes // entries of the cache may be read again just now
		c.stats.Cached += j.cached
		if c.o.Progress != nil {
			c.o.Progress(bytes, files)
		}
	}
	return b.flush(ctx)
}

// batch gathers slabs until it is worth to ask the sink. Questions do not
// wait for the answers of those before.
type batch struct {
	c      *capture
	slabs  []*slab
	pieces int
	bytes  int
	reader *reader // for files of the cache that have to be read after all

	questions chan question // in order

	mu    sync.Mutex
	asked map[digest.ID]struct{} // the sink has these, or is about to get them
	lost  map[digest.ID]struct{} // or not: their file had changed. Only settle uses it.
}

// question is one to the sink; its answer comes by itself.
type question struct {
	slabs  []*slab
	ids    []digest.ID
	answer chan answer
}

type answer struct {
	missing []digest.ID
	err     error
}

func (b *batch) add(ctx context.Context, s *slab) error {
	b.slabs = append(b.slabs, s)
	b.pieces += len(s.pieces)
	b.bytes += len(s.buf)
	if b.bytes < batchBytes && b.pieces < batchMost {
		return nil
	}
	return b.flush(ctx)
}

func (b *batch) flush(ctx context.Context) error {
	if len(b.slabs) == 0 {
		return nil
	}
	ids := make([]digest.ID, 0, b.pieces)
	for _, s := range b.slabs {
		for i := range s.pieces {
			if id := s.pieces[i].id; b.first(id) {
				ids = append(ids, id)
			}
		}
	}
	q := question{slabs: b.slabs, ids: ids, answer: make(chan answer, 1)}
	b.slabs, b.pieces, b.bytes = nil, 0, 0
	go func() {
		var a answer
		if len(ids) > 0 {
			a.missing, a.err = b.c.o.Sink.Missing(ctx, ids)
		}
		q.answer <- a
	}()
	select {
	case b.questions <- q:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// first reports whether nobody has asked for id yet; now somebody has.
func (b *batch) first(id digest.ID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, known := b.asked[id]
	b.asked[id] = struct{}{}
	return !known
}

// settle gives to the sink what it misses, question by question.
func (b *batch) settle(ctx context.Context) error {
	for q := range b.questions {
		var a answer
		select {
		case a = <-q.answer:
		case <-ctx.Done():
			return ctx.Err()
		}
		if a.err != nil {
			return a.err
		}
		if err := b.give(ctx, q, a.missing); err != nil {
			return err
		}
		for _, s := range q.slabs {
			b.c.release(s)
		}
	}
	return nil
}

// give gives to the sink what a question has shown to be missing.
func (b *batch) give(ctx context.Context, q question, missing []digest.ID) error {
	b.c.stats.Chunks += len(q.ids)
	need := make(map[digest.ID]struct{}, len(missing))
	for _, id := range missing {
		need[id] = struct{}{}
	}
	for _, s := range q.slabs {
		for i := range s.pieces {
			if len(need) == 0 {
				return nil
			}
			if _, ok := need[s.pieces[i].id]; !ok {
				continue
			}
			if err := b.put(ctx, s.pieces[i], need); err != nil {
				return err
			}
		}
	}
	for id := range need {
		b.lost[id] = struct{}{}
	}
	return nil
}

// put gives a piece to the sink, or, where only its name is known, all that
// is needed of its file.
func (b *batch) put(ctx context.Context, p piece, need map[digest.ID]struct{}) error {
	send := func(id digest.ID, data []byte) error {
		delete(need, id)
		delete(b.lost, id)
		b.c.stats.New++
		b.c.stats.NewBytes += int64(len(data))
		return b.c.o.Sink.Put(ctx, id, data)
	}
	if p.data != nil {
		return send(p.id, p.data)
	}
	if b.reader == nil {
		b.reader = &reader{c: b.c, own: true}
	}
	return b.reader.retrying(ctx, p.entry, func(id digest.ID, data []byte) error {
		if _, ok := need[id]; ok {
			return send(id, data)
		}
		if !b.first(id) {
			return nil
		}
		// The cache was wrong about this file: nobody has asked for this chunk.
		if miss, err := b.c.o.Sink.Missing(ctx, []digest.ID{id}); err != nil || len(miss) == 0 {
			return err
		}
		return send(id, data)
	})
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
