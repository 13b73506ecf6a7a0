package tree

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ingot/imager/chunk"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/slogx"
)

const (
	// budgetBytes is what is read ahead of the sink at most.
	budgetBytes = 16 << 20
	// batchBytes is how much is asked of the sink in one question.
	batchBytes = 4 << 20
	ahead      = 256 // files that are read ahead of the sink at most
)

// Capture reads the tree at dir. Files are read in parallel, but what the
// sink gets is in the order of the tree. All that was captured was there at
// one moment: what changes meanwhile is captured again, a few times, and then
// fails the capture by its name (ChangedError).
//
// What cannot be seen are stores through a shared writable mapping: they
// change the times of a file at the first store after the kernel wrote the
// page back, and not again before the next (mmap(2), MAP_SHARED). For files
// that are written so, capture a snapshot.
func Capture(ctx context.Context, dir string, o CaptureOptions) (*manifest.Manifest, Stats, error) {
	c := &capture{o: &o}
	m, err := c.run(ctx, dir)
	if err != nil {
		return nil, c.stats, fmt.Errorf("capture %q: %w", dir, err)
	}
	return m, c.stats, nil
}

type capture struct {
	o      *CaptureOptions
	root   int
	*flat            // as it was found
	began  time.Time // when the scan did
	files  []int     // whose content is to be read
	links  map[int]int
	stats  Stats
	budget *budget
	pool   pool

	mu     sync.Mutex   // guards the numbers of stats that workers change, and
	unread map[int]bool // entries whose content is not known
}

// job is one file: its pieces come in order, and the channel is closed when
// entry and state are final.
type job struct {
	seq    int
	n      int // of the entry
	pieces chan piece
	cached bool
}

// piece is a chunk on its way to the sink; without data when it is known
// from the cache.
type piece struct {
	id   digest.ID
	data []byte
}

func (c *capture) run(ctx context.Context, dir string) (*manifest.Manifest, error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	c.root = root
	c.unread = map[int]bool{}
	if err := c.look(ctx); err != nil {
		return nil, err
	}
	for _, p := range c.stats.Sockets {
		slogx.Or(c.o.Log).Info("skipped a socket", slogx.Path, p)
	}
	if c.o.Scanned != nil {
		total := int64(0)
		for _, n := range c.files {
			total += c.entries[n].Size
		}
		c.o.Scanned(len(c.entries), total)
	}
	if err := c.contents(ctx, c.files); err != nil {
		return nil, err
	}
	if err := c.constant(ctx); err != nil {
		return nil, err
	}
	for n, first := range c.links {
		path := c.entries[n].Path
		c.entries[n] = c.entries[first]
		e := &c.entries[n]
		e.Path, e.Link, e.Holes, e.Chunks = path, c.entries[first].Path, nil, nil
	}
	m := &manifest.Manifest{Entries: c.shown()}
	c.stats.Entries, c.stats.Files = len(m.Entries), len(c.files)
	if err := m.Validate(); err != nil {
		return nil, err
	}
	for i := range m.Entries {
		for _, k := range m.Entries[i].Chunks {
			c.stats.Bytes += int64(k.Size)
		}
	}
	return m, nil
}

// look scans the tree.
func (c *capture) look(ctx context.Context) (err error) {
	c.began = time.Now()
	if c.flat, err = c.scan(ctx); err == nil {
		c.group()
	}
	return err
}

// group finds the files whose content is to be read, in order, and for the
// further names of hard links the number of the first.
func (c *capture) group() {
	type inode struct{ dev, ino uint64 }
	first := map[inode]int{}
	c.files, c.links = nil, map[int]int{}
	for i := range c.entries {
		if !c.entries[i].Type.Linkable() || c.hollow[i] {
			continue
		}
		if st := &c.states[i]; st.Nlink > 1 {
			k := inode{st.Dev, st.Ino}
			if n, ok := first[k]; ok {
				c.links[i] = n
				continue
			}
			first[k] = i
		}
		if c.entries[i].Type == entry.File {
			c.files = append(c.files, i)
		}
	}
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
	work, order := make(chan *job, ahead), make(chan *job, ahead)
	g.Go(func() error {
		defer close(work)
		defer close(order)
		for seq, n := range files {
			j := &job{seq: seq, n: n, pieces: make(chan piece, 4)}
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
			r := &reader{c: c, chunker: chunk.New()}
			for j := range work {
				if err := r.file(ctx, j); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error { return c.drain(ctx, order) })
	return g.Wait()
}

// drain gives pieces to the sink, file by file.
func (c *capture) drain(ctx context.Context, order <-chan *job) error {
	b := &batch{c: c, asked: map[digest.ID]struct{}{}}
	var bytes, files int64
	for j := range order {
		c.budget.advance(j.seq)
		for {
			var p piece
			var ok bool
			select {
			case p, ok = <-j.pieces:
			case <-ctx.Done():
				return ctx.Err()
			}
			if !ok {
				break
			}
			if err := b.add(ctx, j, p); err != nil {
				return err
			}
		}
		files++
		for _, k := range c.entries[j.n].Chunks {
			bytes += int64(k.Size)
		}
		if j.cached {
			c.stats.Cached++
		}
		if c.o.Progress != nil {
			c.o.Progress(bytes, files)
		}
	}
	return b.flush(ctx)
}

// batch gathers pieces until it is worth to ask the sink.
type batch struct {
	c      *capture
	pieces []piece
	from   []*job
	bytes  int
	asked  map[digest.ID]struct{} // by earlier batches: the sink has these
	reader *reader                // for files of the cache that have to be read after all
}

func (b *batch) add(ctx context.Context, j *job, p piece) error {
	if _, ok := b.asked[p.id]; ok {
		b.c.release(p)
		return nil
	}
	b.pieces = append(b.pieces, p)
	b.from = append(b.from, j)
	b.bytes += len(p.data)
	if b.bytes < batchBytes && len(b.pieces) < 4096 {
		return nil
	}
	return b.flush(ctx)
}

func (b *batch) flush(ctx context.Context) error {
	if len(b.pieces) == 0 {
		return nil
	}
	ids := make([]digest.ID, 0, len(b.pieces))
	for _, p := range b.pieces {
		if _, ok := b.asked[p.id]; !ok {
			b.asked[p.id] = struct{}{}
			ids = append(ids, p.id)
		}
	}
	missing, err := b.c.o.Sink.Missing(ctx, ids)
	if err != nil {
		return err
	}
	need := make(map[digest.ID]struct{}, len(missing))
	for _, id := range missing {
		need[id] = struct{}{}
	}
	b.c.stats.Chunks += len(ids)
	for i, p := range b.pieces {
		if _, ok := need[p.id]; ok {
			if err := b.put(ctx, i, need); err != nil {
				return err
			}
		}
		b.c.release(p)
	}
	for id := range need {
		delete(b.asked, id) // its file has changed: nobody has put it
	}
	b.pieces, b.from, b.bytes = b.pieces[:0], b.from[:0], 0
	return nil
}

// put gives piece i to the sink, or, where only its name is known, all that
// is needed of its file.
func (b *batch) put(ctx context.Context, i int, need map[digest.ID]struct{}) error {
	send := func(id digest.ID, data []byte) error {
		delete(need, id)
		b.c.stats.New++
		b.c.stats.NewBytes += int64(len(data))
		return b.c.o.Sink.Put(ctx, id, data)
	}
	p := b.pieces[i]
	if p.data != nil {
		return send(p.id, p.data)
	}
	if b.reader == nil {
		b.reader = &reader{c: b.c, chunker: chunk.New()}
	}
	n := b.from[i].n
	return b.reader.retrying(ctx, n, func(id digest.ID, data []byte) error {
		if _, ok := need[id]; ok {
			return send(id, data)
		}
		if _, ok := b.asked[id]; ok {
			return nil
		}
		// The cache was wrong about this file: nobody has asked for this chunk.
		b.asked[id] = struct{}{}
		if miss, err := b.c.o.Sink.Missing(ctx, []digest.ID{id}); err != nil || len(miss) == 0 {
			return err
		}
		return send(id, data)
	})
}

func (c *capture) release(p piece) {
	if p.data != nil {
		c.budget.release(len(p.data))
		c.pool.put(p.data)
	}
}
