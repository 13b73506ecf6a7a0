package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
)

// found is an entry of a directory and, for a directory, what is in it.
type found struct {
	entry.Entry
	st     entry.Stat
	inside []found
	all    int  // it, and what is in it
	hidden bool // excluded, and only there for what is in it
	hollow bool // recorded without what is in it: a mount point, or blanked
}

// scanner reads the metadata of a tree, several directories at once.
type scanner struct {
	root int
	top  where
	c    *capture
	meta MetaCache // or nil

	mu      sync.Mutex
	more    *sync.Cond
	todo    []*found // directories whose content is to be read
	busy    int      // workers that read one
	idle    int      // workers that wait for one
	err     error
	stats   *Stats
	sockets []string
	mounts  []string
}

// where is a mount and the file system that it shows.
type where struct{ mnt, dev uint64 }

func mountedOn(fd int, dev uint64) where {
	mnt, _ := mountID(fd, "", unix.AT_EMPTY_PATH)
	return where{mnt, dev}
}

// scan returns the entries of the tree in their order, and their states.
func (c *capture) scan(ctx context.Context) (*flat, error) {
	top, st, err := entry.ReadFd(c.root)
	if err != nil {
		return nil, err
	}
	if top.Type != entry.Dir {
		return nil, unix.ENOTDIR
	}
	top.Path = "."
	c.stats.Excluded = 0
	s := &scanner{root: c.root, c: c, stats: &c.stats, top: mountedOn(c.root, st.Dev)}
	s.meta, _ = c.o.Cache.(MetaCache)
	s.more = sync.NewCond(&s.mu)
	all := &found{Entry: top, st: st}
	s.todo = append(s.todo, all)
	stop := context.AfterFunc(ctx, func() { s.fail(ctx.Err()) })
	defer stop()
	var wg sync.WaitGroup
	for range 2 * runtime.GOMAXPROCS(0) {
		wg.Go(s.work)
	}
	wg.Wait()
	if s.err != nil {
		return nil, s.err
	}
	slices.Sort(s.sockets)
	slices.Sort(s.mounts)
	c.stats.Sockets, c.stats.Mounts = s.sockets, s.mounts
	n := all.count()
	f := &flat{entries: make([]entry.Entry, n), states: make([]entry.Stat, n), hollow: make([]bool, n), hidden: make([]bool, n)}
	var parts sync.WaitGroup
	f.add(all, 0, &parts)
	parts.Wait()
	return f, nil
}

// flat is a tree as a scan found it.
type flat struct {
	entries []entry.Entry
	states  []entry.Stat
	hollow  []bool
	hidden  []bool
}

// count returns the number of entries of d and what is in it, and notes it.
func (d *found) count() int {
	d.all = 1
	for i := range d.inside {
		d.all += d.inside[i].count()
	}
	return d.all
}

// add puts d and what is in it at n and behind; large parts by themselves.
func (f *flat) add(d *found, n int, parts *sync.WaitGroup) {
	f.entries[n], f.states[n], f.hollow[n], f.hidden[n] = d.Entry, d.st, d.hollow, d.hidden
	n++
	for i := range d.inside {
		in := &d.inside[i]
		if in.all > 2000 && in.all < d.all/2 {
			at := n
			parts.Go(func() { f.add(in, at, parts) })
		} else {
			f.add(in, n, parts)
		}
		n += in.all
	}
	d.inside = nil
}

// shown returns the entries without the hidden directories that have nothing in them.
func (f *flat) shown() []entry.Entry {
	if !slices.Contains(f.hidden, true) {
		return f.entries
	}
	needed := map[string]bool{}
	drop := make([]bool, len(f.entries))
	for i := range slices.Backward(f.entries) {
		p := f.entries[i].Path
		if drop[i] = f.hidden[i] && !needed[p]; !drop[i] {
			up, _ := splitPath(p)
			needed[up] = true
		}
	}
	out := f.entries[:0]
	for i := range f.entries {
		if !drop[i] {
			out = append(out, f.entries[i])
		}
	}
	return out
}

// leaves reports whether a path is left out.
func (c *capture) leaves(path string, isDir bool) bool {
	return path == own || c.o.Exclude != nil && c.o.Exclude(path, isDir)
}

func join(dir, name string) string {
	if dir == "." {
		return strings.Clone(name) // it may be in a buffer
	}
	return dir + "/" + name
}

func (s *scanner) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	s.more.Broadcast()
}

func (s *scanner) work() {
	names := &entry.Names{}
	for {
		s.mu.Lock()
		for len(s.todo) == 0 && s.busy > 0 && s.err == nil {
			s.idle++
			s.more.Wait()
			s.idle--
		}
		if len(s.todo) == 0 || s.err != nil {
			s.mu.Unlock()
			s.more.Broadcast()
			return
		}
		d := s.todo[len(s.todo)-1]
		s.todo = s.todo[:len(s.todo)-1]
		s.busy++
		s.mu.Unlock()

		err := s.dir(names, d)
		if err != nil {
			s.fail(fmt.Errorf("scan %q: %w", d.Path, err))
		}
		s.mu.Lock()
		s.busy--
		for i := range d.inside {
			if in := &d.inside[i]; in.Type == entry.Dir && !in.hollow {
				s.todo = append(s.todo, in)
			}
		}
		// Every directory would wake everybody, and most are empty.
		if s.idle > 0 && (len(s.todo) > 0 || s.busy == 0) {
			s.more.Broadcast()
		}
		s.mu.Unlock()
	}
}

// dir reads what is in d.
func (s *scanner) dir(names *entry.Names, d *found) error {
	fd, err := openPlain(s.root, d.Path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err == nil {
		defer unix.Close(fd)
		err = names.Read(fd)
	}
	if replaced(err) && d.Path != "." {
		s.c.suspect()
		return nil // since its parent was read; it stays, empty, as it was then, until the second look
	}
	if err != nil {
		return err
	}
	d.inside = make([]found, 0, len(names.All))
	on := s.top
	if s.c.o.Cross != nil {
		on = mountedOn(fd, d.st.Dev)
	}
	for _, de := range names.All {
		path := join(d.Path, names.Text(de))
		hidden := false
		if s.c.leaves(path, de.IsDir()) {
			hidden = path != own && de.IsDir() && s.c.o.Within != nil && s.c.o.Within(path)
			if !hidden {
				s.mu.Lock()
				s.stats.Excluded++
				s.mu.Unlock()
				continue
			}
		}
		in, ok, err := s.one(fd, names.Text(de), path, on)
		if err != nil {
			return err
		}
		if ok {
			in.hidden = hidden
			d.inside = append(d.inside, in)
		}
	}
	if st, err := stateOf(fd); err != nil || st != d.st {
		s.c.suspect() // since its parent was read
	}
	return nil
}

// suspect notes that something changes just now.
func (c *capture) suspect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wary = true
}

// one reads one entry of a directory that is on a mount; ok is false for what
// is not recorded.
func (s *scanner) one(dirfd int, name, path string, on where) (in found, ok bool, err error) {
	var known func(entry.Stat) ([]entry.Xattr, bool)
	if s.meta != nil {
		known = func(st entry.Stat) ([]entry.Xattr, bool) { return s.meta.Xattrs(path, st) }
	}
	e, st, err := entry.ReadKnownAt(dirfd, name, known)
	switch {
	case errors.Is(err, fs.ErrNotExist): // removed since the directory was read
		return in, false, nil
	case errors.Is(err, entry.ErrSocket):
		s.mu.Lock()
		s.sockets = append(s.sockets, path)
		s.mu.Unlock()
		return in, false, nil
	case err != nil:
		return in, false, err
	}
	if e.Type != entry.File && e.Type != entry.Dir {
		// What was read after its state may be another's; files and directories are looked at when they are read.
		if now, err := entry.StatAt(dirfd, name); err != nil || now != st {
			s.c.suspect()
		}
	}
	e.Path = path
	in = found{Entry: e, st: st}
	if e.Type == entry.File && s.c.o.Blank != nil && s.c.o.Blank(path) {
		in.hollow, in.Size = true, 0
		return in, true, nil
	}
	if s.c.o.OneFileSystem && isMount(dirfd, name, &in, on) && (s.c.o.Cross == nil || !s.c.o.Cross(path)) {
		in.hollow = true
		in.Size = 0
		s.mu.Lock()
		s.mounts = append(s.mounts, path)
		s.mu.Unlock()
	}
	return in, true, nil
}

// isMount reports whether something is mounted at name. A device number is
// not enough: a bind mount has the same, and a btrfs subvolume and overlayfs
// files have another without being mounts.
func isMount(dirfd int, name string, in *found, on where) bool {
	if in.Type != entry.Dir && in.st.Dev == on.dev {
		return false
	}
	id, ok := mountID(dirfd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
	if !ok {
		return in.Type == entry.Dir && in.st.Dev != on.dev
	}
	return id != on.mnt
}

// mountID returns the mount that name is on (statx(2), Linux 5.8).
func mountID(dirfd int, name string, flags int) (uint64, bool) {
	var st unix.Statx_t
	if err := unix.Statx(dirfd, name, flags, unix.STATX_MNT_ID, &st); err != nil || st.Mask&unix.STATX_MNT_ID == 0 {
		return 0, false
	}
	return st.Mnt_id, true
}

// replaced reports whether an error of openPlain, or of listing, is that of a path that is gone,
// or of which a directory has become something else.
func replaced(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// openPlain opens path below root for reading. It leaves the access time
// alone where it may, and does not wait for the writer of a FIFO.
func openPlain(root int, path string, flags int) (int, error) {
	flags |= unix.O_NONBLOCK | unix.O_NOFOLLOW
	fd, err := entry.OpenBeneath(root, path, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) { // only owners may ask for it (open(2))
		fd, err = entry.OpenBeneath(root, path, flags, 0)
	}
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}
