package tree

import (
	"container/list"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
	"ingot/internal/manifest"
)

const (
	openDirs  = 256 // directories that are kept open
	openParts = 256 // files that are kept open while they are not complete
)

const newFile = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC

// whole makes a file of at most one chunk: everything at once.
func (w *writer) whole(dirfd int, name string, e *entry.Entry, data []byte) error {
	// Nobody can open it meanwhile: the directories above are 0700 until the end.
	mode := uint32(0600)
	if e.Mode&^0777 == 0 && e.Mode&w.mask == 0 && len(e.Xattrs) == 0 { // user.* wants write permission (xattr(7))
		mode = e.Mode
	}
	fd, err := unix.Openat(dirfd, name, newFile, mode)
	if err != nil {
		return fmt.Errorf("make %q: %w", e.Path, err)
	}
	defer unix.Close(fd)
	if err := pwrite(fd, data, 0); err != nil {
		return fmt.Errorf("write %q: %w", e.Path, err)
	}
	if len(e.Holes) > 0 {
		if err := unix.Ftruncate(fd, e.Size); err != nil {
			return fmt.Errorf("write %q: %w", e.Path, err)
		}
	}
	return w.finish(fd, e, mode&^w.mask, int64(len(data)))
}

// finish gives a complete file its metadata.
func (w *writer) finish(fd int, e *entry.Entry, mode uint32, bytes int64) error {
	var err error
	if w.o.Lossy {
		// The directory may not be ours, and have made the file what it likes.
		err = entry.SetMetaFd(fd, e)
	} else {
		have := w.me
		have.Mode = mode
		err = entry.SetFreshFd(fd, &have, e)
	}
	if err := w.meta(e.Path, err); err != nil {
		return err
	}
	if w.o.OnWritten != nil && !w.groups[e.Path] {
		st, err := stateOf(fd)
		if err != nil {
			return fmt.Errorf("%q: %w", e.Path, err)
		}
		w.o.OnWritten(e.Path, st)
	}
	w.done(bytes)
	return nil
}

func pwrite(fd int, data []byte, off int64) error {
	for len(data) > 0 {
		n, err := unix.Pwrite(fd, data, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		data, off = data[n:], off+int64(n)
	}
	return nil
}

// part is a file of several chunks, or of chunks and holes, on its way.
type part struct {
	mu    sync.Mutex
	fd    int
	made  bool
	left  int // chunks
	data  []entry.Extent
	ends  []int64       // of data, counted in bytes of data
	where *list.Element // in partSet.open; guarded by partSet.mu
}

// partSet are the files on their way. Few of them are open at a time.
type partSet struct {
	of   map[int]*part // by number of the entry; not changed after init
	mu   sync.Mutex
	open list.List // of *part, last used last
}

func (s *partSet) init(m *manifest.Manifest) {
	s.of = map[int]*part{}
	for i := range m.Entries {
		if e := &m.Entries[i]; len(e.Chunks) > 1 || len(e.Chunks) == 1 && len(e.Holes) > 0 {
			p := &part{fd: -1, left: len(e.Chunks), data: e.Data()}
			end := int64(0)
			for _, d := range p.data {
				end += d.Len
				p.ends = append(p.ends, end)
			}
			s.of[i] = p
		}
	}
}

func (s *partSet) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for el := s.open.Front(); el != nil; el = el.Next() {
		unix.Close(el.Value.(*part).fd)
	}
	s.open.Init()
}

func (s *partSet) unfinished(m *manifest.Manifest) error {
	for i, p := range s.of {
		if p.left > 0 {
			return fmt.Errorf("write %q: %d of its chunks did not come", m.Entries[i].Path, p.left)
		}
	}
	return nil
}

// part writes one chunk of entry n; pos is where it is in the file's data.
func (w *writer) part(n int, pos int64, data []byte) error {
	p := w.parts.of[n]
	e := &w.m.Entries[n]
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := w.openPart(p, e); err != nil {
		return err
	}
	if err := p.write(data, pos); err != nil {
		return fmt.Errorf("write %q: %w", e.Path, err)
	}
	if p.left--; p.left > 0 {
		w.bytes.Add(int64(len(data)))
		return nil
	}
	w.parts.forget(p)
	defer func() { unix.Close(p.fd); p.fd = -1 }()
	return w.finish(p.fd, e, 0600&^w.mask, int64(len(data)))
}

// write puts data, which is at pos of the file's data, between the holes.
func (p *part) write(data []byte, pos int64) error {
	i, _ := slices.BinarySearch(p.ends, pos+1)
	for ; i < len(p.data) && len(data) > 0; i++ {
		d := p.data[i]
		into := pos - (p.ends[i] - d.Len)
		n := min(int64(len(data)), d.Len-into)
		if err := pwrite(p.fd, data[:n], d.Off+into); err != nil {
			return err
		}
		data, pos = data[n:], pos+n
	}
	if len(data) == 0 {
		return nil
	}
	return fmt.Errorf("BUG: %d bytes belong nowhere", len(data))
}

// openPart opens p, making the file if it is the first time, and closes
// another when too many are open. p.mu is held.
func (w *writer) openPart(p *part, e *entry.Entry) error {
	if p.fd >= 0 {
		w.parts.touch(p)
		return nil
	}
	parent, name, err := w.dirs.parent(e.Path)
	if err != nil {
		return err
	}
	defer w.dirs.put(parent)
	flags := newFile
	if p.made {
		flags = unix.O_WRONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	}
	fd, err := unix.Openat(parent.fd, name, flags, 0600)
	if err != nil {
		return fmt.Errorf("make %q: %w", e.Path, err)
	}
	if !p.made && len(e.Holes) > 0 {
		if err := unix.Ftruncate(fd, e.Size); err != nil {
			unix.Close(fd)
			return fmt.Errorf("write %q: %w", e.Path, err)
		}
	}
	p.fd, p.made = fd, true
	w.parts.remember(p)
	return nil
}

func (s *partSet) touch(p *part) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.where != nil {
		s.open.MoveToBack(p.where)
	}
}

func (s *partSet) forget(p *part) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.where != nil {
		s.open.Remove(p.where)
		p.where = nil
	}
}

func (s *partSet) remember(p *part) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.where = s.open.PushBack(p)
	for el := s.open.Front(); el != nil && s.open.Len() > openParts; {
		old, next := el.Value.(*part), el.Next()
		// One that is being written now is not the one to close.
		if old != p && old.mu.TryLock() {
			unix.Close(old.fd)
			old.fd, old.where = -1, nil
			s.open.Remove(el)
			old.mu.Unlock()
		}
		el = next
	}
}

// dirCache keeps directories of the tree open: resolving the whole path of
// every file would take longer than making it.
type dirCache struct {
	root *dirRef
	mu   sync.Mutex
	open map[string]*dirRef
	idle list.List // of *dirRef without users, last used last
}

type dirRef struct {
	path  string
	fd    int
	users int
	where *list.Element
}

func newDirCache(root int) *dirCache {
	return &dirCache{root: &dirRef{path: ".", fd: root}, open: map[string]*dirRef{}}
}

// parent opens the directory that p is in; put gives it back.
func (c *dirCache) parent(p string) (*dirRef, string, error) {
	dir, name := splitPath(p)
	if dir == "." {
		return c.root, name, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.open[dir]
	if d == nil {
		fd, err := entry.OpenBeneath(c.root.fd, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, "", fmt.Errorf("open directory %q: %w", dir, err)
		}
		d = &dirRef{path: dir, fd: fd}
		c.open[dir] = d
	}
	if d.where != nil {
		c.idle.Remove(d.where)
		d.where = nil
	}
	d.users++
	return d, name, nil
}

func (c *dirCache) put(d *dirRef) {
	if d == c.root {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.users--; d.users > 0 {
		return
	}
	d.where = c.idle.PushBack(d)
	if c.idle.Len() > openDirs {
		old := c.idle.Remove(c.idle.Front()).(*dirRef)
		delete(c.open, old.path)
		unix.Close(old.fd)
	}
}

func (c *dirCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.open {
		unix.Close(d.fd)
	}
	c.open = map[string]*dirRef{}
}
