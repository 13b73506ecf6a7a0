package tree

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/slogx"
)

// ErrNotEmpty is what Write says of a directory that has something in it.
var ErrNotEmpty = errors.New("the directory is not empty")

// Write makes the tree m in the directory dir, which has to be empty but for
// the lost+found of a fresh file system, ingot's own state, and the mount points
// of WriteOptions.Mounted. Every chunk is
// asked of src once. A manifest that Validate accepts cannot make it write
// outside dir, whoever wrote it. When it fails, what was written stays.
func Write(ctx context.Context, dir string, m *manifest.Manifest, src Source, o WriteOptions) error {
	if err := m.Validate(); err != nil {
		return fmt.Errorf("write tree to %q: %w", dir, err)
	}
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("write tree to %q: %w", dir, err)
	}
	defer unix.Close(root)
	w := newWriter(root, m, &o)
	defer w.dirs.close()
	if err := w.run(ctx, dir, src); err != nil {
		return fmt.Errorf("write tree to %q: %w", dir, err)
	}
	w.sayLost(slogx.Or(o.Log))
	return nil
}

// writer writes one tree.
type writer struct {
	root int
	m    *manifest.Manifest
	o    *WriteOptions
	me   entry.Entry // owner and mode of what this process makes
	mask uint32      // umask

	dirs   *dirCache
	groups map[string]bool // first names that have hard links: their state is not final before these
	kept   bool            // lost+found was there
	there  map[string]bool // so were these: mount points and what leads to them
	chunks chunkUses
	parts  partSet

	bytes, entries atomic.Int64

	lostMu sync.Mutex
	lost   map[string]*lostKind
	unmade map[string]bool // devices that are not permitted: their further names neither
}

type lostKind struct {
	count   int
	example string
	err     error
}

func newWriter(root int, m *manifest.Manifest, o *WriteOptions) *writer {
	if os.Geteuid() != 0 {
		o.Lossy = true
	}
	w := &writer{root: root, m: m, o: o, mask: umask(), dirs: newDirCache(root),
		groups: map[string]bool{}, there: map[string]bool{}, lost: map[string]*lostKind{}, unmade: map[string]bool{},
		me: entry.Entry{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}}
	for i := range m.Entries {
		if l := m.Entries[i].Link; l != "" {
			w.groups[l] = true
		}
	}
	for _, at := range o.Mounted {
		for ; at != "." && at != "/" && at != ""; at = path.Dir(at) {
			w.there[at] = true
		}
	}
	return w
}

// umask reads the umask without changing it, which would be seen by others.
func umask() uint32 {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0777
	}
	for line := range strings.Lines(string(raw)) {
		var mask uint32
		if n, _ := fmt.Sscanf(line, "Umask: %o", &mask); n == 1 {
			return mask
		}
	}
	return 0777 // every mode is then set by chmod
}

func (w *writer) run(ctx context.Context, dir string, src Source) error {
	if err := w.prepare(); err != nil {
		return err
	}
	if err := w.makeDirs(ctx); err != nil {
		return err
	}
	w.chunks.fill(w.m)
	w.parts.init(w.m)
	defer w.parts.close()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return src.Fetch(gctx, w.chunks.ids, w.chunk)
	})
	w.others(gctx, g)
	if err := g.Wait(); err != nil {
		return err
	}
	if err := w.parts.unfinished(w.m); err != nil {
		return err
	}
	if n := w.chunks.left.Load(); n != 0 {
		return fmt.Errorf("%d chunks did not come", n)
	}
	if err := w.links(ctx); err != nil {
		return err
	}
	if err := w.dirMeta(ctx); err != nil {
		return err
	}
	if w.o.Sync {
		if err := unix.Syncfs(w.root); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
	}
	return nil
}

// prepare refuses what is not empty, and takes from the directory what its
// children would inherit: setgid and default ACLs.
func (w *writer) prepare() error {
	fd, err := entry.OpenBeneath(w.root, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), ".")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		switch n {
		case own: // its caller's; a tree that has it too is refused where it is made
		case "lost+found":
			w.kept = true
		default:
			if !w.there[n] {
				return fmt.Errorf("%w: it has %q", ErrNotEmpty, n)
			}
		}
	}
	plain := w.me
	plain.Type, plain.Mode = entry.Dir, 0700
	if !w.o.Lossy {
		return entry.SetMetaFd(w.root, &plain)
	}
	// Not ours to change, then; what is inherited is removed where it hurts.
	if err := entry.SetMetaFd(w.root, &plain); err != nil {
		slogx.Or(w.o.Log).Debug("could not clear the directory's metadata", slogx.Err, err)
	}
	return nil
}

func (w *writer) makeDirs(ctx context.Context) error {
	for i := range w.m.Entries {
		e := &w.m.Entries[i]
		if e.Type != entry.Dir || e.Path == "." {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		parent, name, err := w.dirs.parent(e.Path)
		if err != nil {
			return err
		}
		err = unix.Mkdirat(parent.fd, name, 0700)
		w.dirs.put(parent)
		if errors.Is(err, unix.EEXIST) && (w.kept && e.Path == "lost+found" || w.there[e.Path]) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("make directory %q: %w", e.Path, err)
		}
	}
	return nil
}

// others makes what has no chunks, beside the fetching of those that have.
func (w *writer) others(ctx context.Context, g *errgroup.Group) {
	n := w.o.Parallel
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	var next atomic.Int64
	const step = 64
	for range n {
		g.Go(func() error {
			for {
				from := int(next.Add(step)) - step
				if from >= len(w.m.Entries) {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				for i := from; i < min(from+step, len(w.m.Entries)); i++ {
					if err := w.other(&w.m.Entries[i]); err != nil {
						return err
					}
				}
			}
		})
	}
}

func (w *writer) other(e *entry.Entry) error {
	if e.Type == entry.Dir || e.Link != "" || len(e.Chunks) > 0 {
		return nil
	}
	parent, name, err := w.dirs.parent(e.Path)
	if err != nil {
		return err
	}
	defer w.dirs.put(parent)
	switch e.Type {
	case entry.File:
		return w.whole(parent.fd, name, e, nil)
	case entry.Symlink:
		err = unix.Symlinkat(e.Target, parent.fd, name)
	case entry.FIFO:
		err = unix.Mknodat(parent.fd, name, unix.S_IFIFO|0600, 0)
	case entry.CharDevice:
		err = unix.Mknodat(parent.fd, name, unix.S_IFCHR|0600, int(unix.Mkdev(e.Major, e.Minor)))
	case entry.BlockDevice:
		err = unix.Mknodat(parent.fd, name, unix.S_IFBLK|0600, int(unix.Mkdev(e.Major, e.Minor)))
	}
	if err != nil && w.tolerable(err) && (e.Type == entry.CharDevice || e.Type == entry.BlockDevice) {
		w.lostMu.Lock()
		w.unmade[e.Path] = true
		w.lostMu.Unlock()
		return w.meta(e.Path, &entry.MetaError{What: "device", Err: err})
	}
	if err != nil {
		return fmt.Errorf("make %q: %w", e.Path, err)
	}
	if err := w.meta(e.Path, entry.SetMetaAt(parent.fd, name, e)); err != nil {
		return err
	}
	w.done(0)
	return nil
}

// links makes the further names of hard links, and tells the states of groups.
func (w *writer) links(ctx context.Context) error {
	for i := range w.m.Entries {
		e := &w.m.Entries[i]
		if e.Link == "" {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if w.unmade[e.Link] {
			if err := w.meta(e.Path, &entry.MetaError{What: "device", Err: unix.EPERM}); err != nil {
				return err
			}
			continue
		}
		if err := w.link(e); err != nil {
			return fmt.Errorf("link %q to %q: %w", e.Path, e.Link, err)
		}
		w.done(0)
	}
	if w.o.OnWritten == nil {
		return nil
	}
	for i := range w.m.Entries {
		e := &w.m.Entries[i]
		if e.Type != entry.File || e.Link == "" && !w.groups[e.Path] {
			continue
		}
		parent, name, err := w.dirs.parent(e.Path)
		if err != nil {
			return err
		}
		st, err := entry.StatAt(parent.fd, name)
		w.dirs.put(parent)
		if err != nil {
			return err
		}
		w.o.OnWritten(e.Path, st)
	}
	return nil
}

func (w *writer) link(e *entry.Entry) error {
	from, oldName, err := w.dirs.parent(e.Link)
	if err != nil {
		return err
	}
	defer w.dirs.put(from)
	to, newName, err := w.dirs.parent(e.Path)
	if err != nil {
		return err
	}
	defer w.dirs.put(to)
	return unix.Linkat(from.fd, oldName, to.fd, newName, 0) // 0: does not follow
}

// dirMeta sets the metadata of directories, innermost first: nothing is made
// in them any more, so that their times stay.
func (w *writer) dirMeta(ctx context.Context) error {
	have := w.me
	have.Mode = 0700
	for i := range slices.Backward(w.m.Entries) {
		e := &w.m.Entries[i]
		if e.Type != entry.Dir {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		fresh := !w.o.Lossy && e.Path != "." && (!w.kept || e.Path != "lost+found")
		if err := w.oneDir(e, &have, fresh); err != nil {
			return err
		}
		w.done(0)
	}
	return nil
}

func (w *writer) oneDir(e, have *entry.Entry, fresh bool) error {
	fd, err := entry.OpenBeneath(w.root, e.Path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("open directory %q: %w", e.Path, err)
	}
	defer unix.Close(fd)
	if fresh {
		have = &entry.Entry{UID: have.UID, GID: have.GID, Mode: have.Mode &^ w.mask}
		return w.meta(e.Path, entry.SetFreshFd(fd, have, e))
	}
	return w.meta(e.Path, entry.SetMetaFd(fd, e))
}

func (w *writer) done(bytes int64) {
	b, n := w.bytes.Add(bytes), w.entries.Add(1)
	if w.o.Progress != nil {
		w.o.Progress(b, n)
	}
}

// tolerable reports whether an error may be recorded instead of ending it all.
func (w *writer) tolerable(err error) bool {
	return w.o.Lossy && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EINVAL))
}

// meta sorts out what SetMeta says: nil when all of it is tolerable.
func (w *writer) meta(p string, err error) error {
	if err == nil {
		return nil
	}
	list := []error{err}
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		list = j.Unwrap()
	}
	for _, one := range list {
		var me *entry.MetaError
		if !errors.As(one, &me) || !w.tolerable(one) {
			return fmt.Errorf("%q: %w", p, err)
		}
		w.lostMu.Lock()
		k := w.lost[me.What]
		if k == nil {
			k = &lostKind{example: p, err: me.Err}
			w.lost[me.What] = k
		}
		k.count++
		w.lostMu.Unlock()
		if w.o.Lost != nil {
			w.o.Lost(p, one)
		}
	}
	return nil
}

func (w *writer) sayLost(log *slog.Logger) {
	for what, k := range w.lost {
		log.Warn("could not restore everything", "what", what, "entries", k.count, slogx.Path, k.example, slogx.Err, k.err)
	}
}

// chunkUses says for each chunk where it belongs.
type chunkUses struct {
	ids  []digest.ID // distinct, in tree order
	no   map[digest.ID]int32
	size []uint32
	head []int32 // first use; a chain through next
	uses []use
	left atomic.Int64
}

type use struct {
	entry int32
	next  int32
	pos   int64 // in the data of the file, holes left out
}

func (c *chunkUses) fill(m *manifest.Manifest) {
	total := 0
	for i := range m.Entries {
		total += len(m.Entries[i].Chunks)
	}
	c.no = make(map[digest.ID]int32, total)
	c.uses = make([]use, 0, total)
	for i := range m.Entries {
		pos := int64(0)
		for _, k := range m.Entries[i].Chunks {
			n, ok := c.no[k.ID]
			if !ok {
				n = int32(len(c.ids))
				c.no[k.ID] = n
				c.ids = append(c.ids, k.ID)
				c.size = append(c.size, k.Size)
				c.head = append(c.head, -1)
			}
			c.uses = append(c.uses, use{entry: int32(i), next: c.head[n], pos: pos})
			c.head[n] = int32(len(c.uses) - 1)
			pos += int64(k.Size)
		}
	}
	c.left.Store(int64(len(c.ids)))
}

// chunk puts one chunk wherever it belongs.
func (w *writer) chunk(id digest.ID, data []byte) error {
	n, ok := w.chunks.no[id]
	if !ok {
		return fmt.Errorf("chunk %s came unasked", id.Short())
	}
	if int(w.chunks.size[n]) != len(data) {
		return fmt.Errorf("chunk %s has %d bytes, the manifest says %d", id.Short(), len(data), w.chunks.size[n])
	}
	for u := w.chunks.head[n]; u >= 0; u = w.chunks.uses[u].next {
		use := &w.chunks.uses[u]
		e := &w.m.Entries[use.entry]
		var err error
		if len(e.Chunks) == 1 && len(e.Holes) == 0 {
			err = w.wholeAt(e, data)
		} else {
			err = w.part(int(use.entry), use.pos, data)
		}
		if err != nil {
			return err
		}
	}
	w.chunks.left.Add(-1)
	return nil
}

func (w *writer) wholeAt(e *entry.Entry, data []byte) error {
	parent, name, err := w.dirs.parent(e.Path)
	if err != nil {
		return err
	}
	defer w.dirs.put(parent)
	return w.whole(parent.fd, name, e, data)
}

func splitPath(p string) (dir, name string) {
	dir, name = path.Split(p)
	if dir == "" {
		return ".", name
	}
	return dir[:len(dir)-1], name
}
