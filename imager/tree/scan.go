package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
)

// found is an entry of a directory and, for a directory, what is in it.
type found struct {
	entry.Entry
	st      entry.Stat
	inside  []found
	hidden  bool // excluded, and only there for what is in it
	mounted bool // what is there is of another file system
}

// scanner reads the metadata of a tree, several directories at once.
type scanner struct {
	root int
	mnt  uint64
	dev  uint64
	o    *CaptureOptions

	mu      sync.Mutex
	more    *sync.Cond
	todo    []*found // directories whose content is to be read
	busy    int
	err     error
	stats   *Stats
	sockets []string
	mounts  []string
}

// scan returns the entries below root in tree order, and their states.
func scan(ctx context.Context, root int, o *CaptureOptions, stats *Stats) ([]entry.Entry, []entry.Stat, []bool, error) {
	top, st, err := entry.ReadFd(root)
	if err != nil {
		return nil, nil, nil, err
	}
	if top.Type != entry.Dir {
		return nil, nil, nil, unix.ENOTDIR
	}
	top.Path = "."
	s := &scanner{root: root, o: o, stats: stats, dev: st.Dev}
	s.more = sync.NewCond(&s.mu)
	s.mnt, _ = mountID(root, "", unix.AT_EMPTY_PATH)
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
		return nil, nil, nil, s.err
	}
	slices.Sort(s.sockets)
	slices.Sort(s.mounts)
	stats.Sockets, stats.Mounts = s.sockets, s.mounts
	f := &flat{}
	f.add(all)
	return f.entries, f.stats, f.mounted, nil
}

type flat struct {
	entries []entry.Entry
	stats   []entry.Stat
	mounted []bool
}

// add appends d and what is in it, but not a hidden directory without content.
func (f *flat) add(d *found) {
	at := len(f.entries)
	f.entries = append(f.entries, d.Entry)
	f.stats = append(f.stats, d.st)
	f.mounted = append(f.mounted, d.mounted)
	for i := range d.inside {
		f.add(&d.inside[i])
	}
	if d.hidden && len(f.entries) == at+1 {
		f.entries, f.stats, f.mounted = f.entries[:at], f.stats[:at], f.mounted[:at]
	}
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
	for {
		s.mu.Lock()
		for len(s.todo) == 0 && s.busy > 0 && s.err == nil {
			s.more.Wait()
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

		err := s.dir(d)
		if err != nil {
			s.fail(fmt.Errorf("scan %q: %w", d.Path, err))
		}
		s.mu.Lock()
		s.busy--
		for i := range d.inside {
			if in := &d.inside[i]; in.Type == entry.Dir && !in.mounted {
				s.todo = append(s.todo, in)
			}
		}
		s.more.Broadcast()
		s.mu.Unlock()
	}
}

// dir reads what is in d.
func (s *scanner) dir(d *found) error {
	fd, err := openPlain(s.root, d.Path, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) && d.Path != "." {
		return nil // removed since its parent was read; it stays, empty, as it was then
	}
	if err != nil {
		return err
	}
	// The name is what os uses where the file system tells no types.
	f := os.NewFile(uintptr(fd), "/proc/self/fd/"+strconv.Itoa(fd))
	defer f.Close()
	list, err := f.ReadDir(-1)
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	prefix := d.Path + "/"
	if d.Path == "." {
		prefix = ""
	}
	d.inside = make([]found, 0, len(list))
	for _, de := range list {
		path := prefix + de.Name()
		hidden := false
		if path == own || s.o.Exclude != nil && s.o.Exclude(path, de.IsDir()) {
			hidden = path != own && de.IsDir() && s.o.Within != nil && s.o.Within(path)
			if !hidden {
				s.mu.Lock()
				s.stats.Excluded++
				s.mu.Unlock()
				continue
			}
		}
		in, ok, err := s.one(fd, de.Name(), path)
		if err != nil {
			return err
		}
		if ok {
			in.hidden = hidden
			d.inside = append(d.inside, in)
		}
	}
	return nil
}

// one reads one entry; ok is false for what is not recorded.
func (s *scanner) one(dirfd int, name, path string) (in found, ok bool, err error) {
	e, st, err := entry.ReadAt(dirfd, name)
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
	e.Path = path
	in = found{Entry: e, st: st}
	if s.o.OneFileSystem && s.isMount(dirfd, name, &in) {
		in.mounted = true
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
func (s *scanner) isMount(dirfd int, name string, in *found) bool {
	if in.Type != entry.Dir && in.st.Dev == s.dev {
		return false
	}
	id, ok := mountID(dirfd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
	if !ok {
		return in.Type == entry.Dir && in.st.Dev != s.dev
	}
	return id != s.mnt
}

// mountID returns the mount that name is on (statx(2), Linux 5.8).
func mountID(dirfd int, name string, flags int) (uint64, bool) {
	var st unix.Statx_t
	if err := unix.Statx(dirfd, name, flags, unix.STATX_MNT_ID, &st); err != nil || st.Mask&unix.STATX_MNT_ID == 0 {
		return 0, false
	}
	return st.Mnt_id, true
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
