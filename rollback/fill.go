package rollback

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

// stager fills one stage, several slots at once.
type stager struct {
	n     *Node
	r     reach          // with the directories of slots
	fresh []*entry.Entry // what a new file in each of these is like; nil when that is not known

	mu      sync.Mutex
	missing map[digest.ID][]spot
	ids     []digest.ID // of missing
	lacking []Note
}

// spot is a place in the stage that a chunk goes to.
type spot struct {
	slot   *filling
	ranges []entry.Extent
}

// filling is a slot that waits for chunks.
type filling struct {
	step *Step
	left atomic.Int32
}

// build makes the slots: those that the node has the content of at once, the
// others as their chunks come; then further names.
func (st *stager) build(ctx context.Context, p *Plan, src Source) error {
	st.missing = map[digest.ID][]spot{}
	for i := range st.r {
		st.fresh = append(st.fresh, newFile(st.r[i].undo))
	}
	var heads []*Step
	for i := range p.Steps {
		if s := &p.Steps[i]; (s.Kind == Replace || s.Kind == Add) && s.link == s.slot {
			heads = append(heads, s)
		}
	}
	err := st.n.spread(ctx, len(heads), func(r *localReader, i int) error {
		if err := st.node(p, heads[i], r); err != nil {
			return fmt.Errorf("%q: %w", heads[i].Path, err)
		}
		return nil
	})
	if err == nil && len(st.missing) > 0 {
		err = st.fetch(ctx, p, src)
	}
	if err != nil {
		return err
	}
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.Kind != Replace && s.Kind != Add || s.link == s.slot {
			continue
		}
		if err := st.n.sys.link(st.dir(s), strconv.Itoa(s.link), st.dir(s), strconv.Itoa(s.slot)); err != nil {
			return fmt.Errorf("%q: %w", s.Path, err)
		}
	}
	return nil
}

// spread calls fn for each number below count, in several goroutines; under a
// hook, which wants to see one call after the other, in this one.
func (n *Node) spread(ctx context.Context, count int, fn func(r *localReader, i int) error) error {
	var next atomic.Int64
	var once sync.Once
	var failed error
	var stop atomic.Bool
	work := func() {
		r := &localReader{n: n}
		defer r.close()
		for i := int(next.Add(1)) - 1; i < count && !stop.Load(); i = int(next.Add(1)) - 1 {
			err := ctx.Err()
			if err == nil {
				err = fn(r, i)
			}
			if err != nil {
				once.Do(func() { failed = err })
				stop.Store(true)
			}
		}
	}
	if n.sys.hook != nil {
		work()
		return failed
	}
	var wg sync.WaitGroup
	for range min(4, count, runtime.GOMAXPROCS(0)) {
		wg.Go(work)
	}
	wg.Wait()
	return failed
}

// dir returns the directory that the slot of a step is in.
func (st *stager) dir(s *Step) int { return st.r[s.vol].undo }

// newFile says what a file that is made in a directory of slots is like, where
// that is sure: default ACLs and setgid directories give it more.
func newFile(fd int) *entry.Entry {
	dir, _, err := entry.ReadFd(fd)
	if err != nil || dir.Mode&unix.S_ISGID != 0 || len(dir.Xattrs) > 0 {
		return nil
	}
	return &entry.Entry{Type: entry.File, Mode: 0o600, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
}

// node makes one entry. Of a file it writes what the node has; the rest is
// noted as missing.
func (st *stager) node(p *Plan, s *Step, r *localReader) error {
	name, sys, dir := strconv.Itoa(s.slot), &st.n.sys, st.dir(s)
	var err error
	switch s.New.Type {
	case entry.File:
		if u, ok := p.links[s.slot]; ok {
			return st.undoCopy(s, u, name)
		}
		return st.file(p, s, r)
	case entry.Dir:
		err = sys.mkdir(dir, name, 0o700)
	case entry.Symlink:
		err = sys.symlink(s.New.Target, dir, name)
	case entry.FIFO:
		err = sys.mknod(dir, name, unix.S_IFIFO|0o600, 0)
	case entry.CharDevice:
		err = sys.mknod(dir, name, unix.S_IFCHR|0o600, unix.Mkdev(s.New.Major, s.New.Minor))
	case entry.BlockDevice:
		err = sys.mknod(dir, name, unix.S_IFBLK|0o600, unix.Mkdev(s.New.Major, s.New.Minor))
	default:
		err = fmt.Errorf("unknown type %d", s.New.Type)
	}
	if err != nil {
		return err
	}
	return sys.setMeta(dir, name, s.New)
}

// undoCopy makes an undo copy the file. It mostly has its metadata already.
func (st *stager) undoCopy(s *Step, u undoFile, name string) error {
	if err := st.n.sys.link(st.r[u.vol].top, u.path(), st.dir(s), name); err != nil {
		return err
	}
	if e, _, err := entry.ReadAt(st.dir(s), name); err == nil && entry.SameMeta(&e, s.New) {
		return nil
	}
	return st.n.sys.setMeta(st.dir(s), name, s.New)
}

// file makes a file, or goes on with one of an interrupted stage.
func (st *stager) file(p *Plan, s *Step, r *localReader) error {
	f, adopted, err := st.open(p, s)
	if err != nil {
		return err
	}
	defer f.Close()
	wait := &filling{step: s}
	var lack []spot
	var ids []digest.ID
	data, off := s.content.Data(), int64(0)
	for _, c := range s.content.Chunks {
		to := pieces(data, off, int64(c.Size))
		off += int64(c.Size)
		if adopted && r.holds(f, to, c) {
			continue
		}
		b := r.chunk(p, c)
		if b == nil {
			lack, ids = append(lack, spot{wait, to}), append(ids, c.ID)
			continue
		}
		if err := st.n.put(f, to, b); err != nil {
			return err
		}
	}
	if len(lack) == 0 {
		return st.dress(p, f, s)
	}
	wait.left.Store(int32(len(lack)))
	st.mu.Lock()
	defer st.mu.Unlock()
	for i, id := range ids {
		if st.missing[id] == nil {
			st.ids = append(st.ids, id)
			st.lacking = append(st.lacking, Note{s.Path, "chunk " + id.Short() + " is not on the node"})
		}
		st.missing[id] = append(st.missing[id], lack[i])
	}
	return nil
}

// open makes the file, or takes over what an interrupted stage left of it,
// where the holes are what they should be.
func (st *stager) open(p *Plan, s *Step) (f *os.File, adopted bool, err error) {
	name, sys, dir := strconv.Itoa(s.slot), &st.n.sys, st.dir(s)
	// Moved, not linked: what is written to must have no other name.
	if old, ok := p.adopt[s.slot]; ok && sys.move(st.r[s.vol].top, old.path, dir, name) == nil {
		if f, err = sys.create(dir, name, 0, s.New.Size); err != nil {
			return nil, false, err
		}
		clean := true
		for _, h := range s.content.Holes {
			zero, err := zeros(f, h)
			clean = clean && zero && err == nil
		}
		if clean {
			return f, true, nil
		}
		f.Close()
		if err := sys.unlink(dir, name, 0); err != nil {
			return nil, false, err
		}
	}
	f, err = sys.create(dir, name, unix.O_CREAT|unix.O_EXCL, s.New.Size)
	return f, false, err
}

// dress sets the metadata of a file whose content is there.
func (st *stager) dress(p *Plan, f *os.File, s *Step) error {
	have := st.fresh[s.vol]
	if _, ok := p.adopt[s.slot]; ok {
		have = nil // it may have been dressed before
	}
	return st.n.sys.setMetaFd(f, have, s.New)
}

// fetch gets the missing chunks. They are verified and written by others than
// who receives them.
func (st *stager) fetch(ctx context.Context, p *Plan, src Source) error {
	if src == nil {
		return &DamagedError{Notes: st.lacking}
	}
	var mu sync.Mutex
	got := map[digest.ID]bool{}
	q := st.n.newQueue(func(id digest.ID, data []byte) error {
		if digest.Of(data) != id {
			return fmt.Errorf("chunk %s: the source delivered something else: %w", id.Short(), ErrDamaged)
		}
		for _, to := range st.missing[id] {
			if err := st.arrived(p, to, data); err != nil {
				return err
			}
		}
		mu.Lock()
		defer mu.Unlock()
		got[id] = true
		return nil
	})
	err := st.ask(ctx, p, src, q.put)
	if failed := q.close(); failed != nil {
		return fmt.Errorf("fetch %d chunks: %w", len(st.ids), failed)
	}
	if err != nil {
		return &sourceError{fmt.Errorf("fetch %d chunks: %w", len(st.ids), err)}
	}
	for _, id := range st.ids {
		if !got[id] {
			return &sourceError{fmt.Errorf("chunk %s: the source did not deliver it", id.Short())}
		}
	}
	return nil
}

// ask asks the source for what is missing: first, where it can make use of
// that, together with what the node has of the kind.
func (st *stager) ask(ctx context.Context, p *Plan, src Source, put func(digest.ID, []byte) error) error {
	rest := st.ids
	if with, ok := src.(AlikeSource); ok {
		var mu sync.Mutex
		came := map[digest.ID]bool{}
		err := with.FetchAlike(ctx, st.alike(p), func(id digest.ID, data []byte) error {
			mu.Lock()
			came[id] = true
			mu.Unlock()
			return put(id, data)
		})
		if err != nil {
			return err
		}
		rest = slices.DeleteFunc(slices.Clone(rest), func(id digest.ID) bool { return came[id] })
	}
	if len(rest) == 0 {
		return nil
	}
	return src.Fetch(ctx, rest, put)
}

// arrived writes one chunk to its place, and after the last one the metadata.
func (st *stager) arrived(p *Plan, to spot, b []byte) error {
	s := to.slot.step
	name := strconv.Itoa(s.slot)
	fd, err := unix.Openat(st.dir(s), name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open slot %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	err = st.n.put(f, to.ranges, b)
	if err == nil && to.slot.left.Add(-1) == 0 {
		err = st.dress(p, f, s)
	}
	if err != nil {
		return fmt.Errorf("%q: %w", s.Path, err)
	}
	return nil
}

// put writes a chunk to its ranges of f.
func (n *Node) put(f *os.File, ranges []entry.Extent, b []byte) error {
	total := int64(0)
	for _, r := range ranges {
		total += r.Len
	}
	if total != int64(len(b)) {
		return fmt.Errorf("a chunk of %d bytes where %d belong: %w", len(b), total, ErrDamaged)
	}
	for _, r := range ranges {
		if err := n.sys.writeAt(f, f.Name(), b[:r.Len], r.Off); err != nil {
			return err
		}
		b = b[r.Len:]
	}
	return nil
}

// localReader reads chunks from the node itself. It is for one goroutine.
type localReader struct {
	n    *Node
	from *os.File // the file that was read last
	of   *Node    // whose it is
	buf  readBuf
	got  []byte // the chunk that was read last, in buf
}

// chunk returns a chunk, nil when it is not there (any more). It is good until
// the next call.
func (r *localReader) chunk(p *Plan, c entry.Chunk) []byte {
	if b, ok := p.made[c.ID]; ok {
		return b
	}
	at, ok := p.local[c.ID]
	if !ok || at.size != c.Size {
		return nil
	}
	of := cmp.Or(at.in, r.n)
	if r.from == nil || r.of != of || r.from.Name() != at.path {
		r.close()
		f, err := of.openFile(at.path)
		if err != nil {
			return nil
		}
		r.from, r.of = f, of
	}
	if !r.holds(r.from, pieces(at.content.Data(), at.off, int64(c.Size)), c) {
		return nil
	}
	return r.got
}

// holds reads ranges of f and reports whether they are the chunk.
func (r *localReader) holds(f *os.File, ranges []entry.Extent, c entry.Chunk) bool {
	r.got = r.buf.of(int64(c.Size))
	return readPieces(f, ranges, r.got) == nil && digest.Of(r.got) == c.ID
}

func (r *localReader) close() {
	if r.from != nil {
		r.from.Close()
		r.from = nil
	}
}
