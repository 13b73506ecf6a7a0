package rollback

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sort"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// item is one live entry as a scan found it.
type item struct {
	entry.Entry // metadata; Holes and Chunks only when described is set
	stat        entry.Stat

	sameBase   bool // has the content that the as-done manifest says
	sameTarget bool // has the content that the target says
	described  bool // has neither: the entry describes what it has
	alone      Leave
	immutable  bool // chattr +i or +a
	anchored   bool // a directory that holds what is left alone
}

// Leave says why something is left alone; empty for what is not.
type Leave string

// The reasons.
const (
	NodeOwned Leave = "node-owned"
	Volatile  Leave = "volatile"
	Mount     Leave = "mount point"
	Socket    Leave = "socket"
)

// live is the tree as a scan found it, in tree order.
type live struct {
	items []item
	at    map[string]int
}

func (l *live) get(path string) *item {
	if i, ok := l.at[path]; ok {
		return &l.items[i]
	}
	return nil
}

// sorted puts items in tree order and makes them findable.
func sorted(items []item) *live {
	sort.Slice(items, func(i, j int) bool { return entry.Before(items[i].Path, items[j].Path) })
	l := &live{items: items, at: make(map[string]int, len(items))}
	for i := range items {
		l.at[items[i].Path] = i
	}
	return l
}

// index is a manifest by path.
type index struct {
	m  *manifest.Manifest
	at map[string]*entry.Entry
}

func indexOf(m *manifest.Manifest) *index {
	x := &index{m: m, at: map[string]*entry.Entry{}}
	if m == nil {
		x.m = &manifest.Manifest{}
		return x
	}
	for i := range m.Entries {
		x.at[m.Entries[i].Path] = &m.Entries[i]
	}
	return x
}

func (x *index) get(path string) *entry.Entry { return x.at[path] }

// content returns the entry that holds e's holes and chunks.
func (x *index) content(e *entry.Entry) *entry.Entry {
	if e.Link == "" {
		return e
	}
	if to := x.at[e.Link]; to != nil {
		return to
	}
	return e
}

// scanner reads the live tree.
type scanner struct {
	n            *Node
	rules        *rules
	base, target *index
	cache        map[string]entry.Stat
	full         bool // read every file, whatever its inode says

	items []item
}

// scan walks the whole tree, or what scope names, and finds out which files
// hold what the two manifests say.
func (s *scanner) scan(ctx context.Context, sc *scope) (*live, error) {
	var err error
	if sc == nil {
		err = s.whole(ctx)
	} else {
		err = s.scoped(ctx, sc)
	}
	if err != nil {
		return nil, fmt.Errorf("scan the tree: %w", err)
	}
	if err := s.contents(ctx); err != nil {
		return nil, fmt.Errorf("scan the tree: %w", err)
	}
	return sorted(s.items), nil
}

func (s *scanner) whole(ctx context.Context) error {
	top, err := s.read(s.n.top, ".", ".")
	if err != nil {
		return err
	}
	s.items = append(s.items, top)
	fd, err := unix.Openat(s.n.top, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return s.dir(ctx, fd, 0)
}

// dir reads what is in the directory fd, whose item is s.items[at], and closes fd.
func (s *scanner) dir(ctx context.Context, fd, at int) error {
	path := s.items[at].Path
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.rules.covers(path) {
		names, _ := f.Readdirnames(1)
		s.items[at].anchored = len(names) > 0
		return nil
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list %q: %w", path, err)
	}
	for _, name := range names {
		if err := s.child(ctx, fd, name, at); err != nil {
			return err
		}
	}
	return nil
}

func (s *scanner) child(ctx context.Context, fd int, name string, at int) error {
	path := join(s.items[at].Path, name)
	it, err := s.read(fd, name, path)
	if notThere(err) {
		return nil // gone since it was listed
	}
	if err != nil {
		return err
	}
	if it.alone != "" {
		s.items[at].anchored = true
	}
	s.items = append(s.items, it)
	if it.Type != entry.Dir || it.alone == Mount {
		return nil
	}
	sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if notThere(err) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %q: %w", path, err)
	}
	return s.dir(ctx, sub, len(s.items)-1)
}

func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// parentOf returns the directory of path; "" for the top.
func parentOf(path string) string {
	if path == "." {
		return ""
	}
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return "."
}

// read reads one entry.
func (s *scanner) read(dir int, name, path string) (item, error) {
	it := item{alone: s.rules.left(path)}
	var err error
	it.Entry, it.stat, err = entry.ReadAt(dir, name)
	if errors.Is(err, entry.ErrSocket) {
		it.Entry, it.alone = entry.Entry{}, Socket
		it.stat, err = entry.StatAt(dir, name)
	}
	if err != nil {
		return it, fmt.Errorf("%q: %w", path, err)
	}
	it.Path = path
	mount, immutable := attributes(dir, name)
	it.immutable = immutable
	if path != "." && (mount || it.stat.Dev != s.topDev() && s.topDev() != 0) {
		it.alone = Mount
	}
	return it, nil
}

func (s *scanner) topDev() uint64 {
	if len(s.items) == 0 {
		return 0
	}
	return s.items[0].stat.Dev
}

// attributes asks statx(2) what lstat does not say: the root of a mount (Linux
// 5.8; before that a bind mount of the same file system is not seen) and the
// flags of chattr(1) that forbid a rename.
func attributes(dir int, name string) (mount, immutable bool) {
	var sx unix.Statx_t
	if unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &sx) != nil {
		return false, false
	}
	has := func(bit uint64) bool { return sx.Attributes_mask&bit != 0 && sx.Attributes&bit != 0 }
	return has(unix.STATX_ATTR_MOUNT_ROOT), has(unix.STATX_ATTR_IMMUTABLE) || has(unix.STATX_ATTR_APPEND)
}

// contents finds out what each file holds, reading several at once.
func (s *scanner) contents(ctx context.Context) error {
	var wg sync.WaitGroup
	var once sync.Once
	var failed error
	todo := make(chan *item)
	for range min(4, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for it := range todo {
				if err := s.content(it); err != nil {
					once.Do(func() { failed = fmt.Errorf("read %q: %w", it.Path, err) })
				}
			}
		})
	}
	for i := range s.items {
		it := &s.items[i]
		if it.Type != entry.File || it.alone != "" || ctx.Err() != nil || s.trusted(it) {
			continue
		}
		todo <- it
	}
	close(todo)
	wg.Wait()
	if failed == nil {
		failed = ctx.Err()
	}
	return failed
}

// trusted decides by the inode's state alone, where that is enough.
func (s *scanner) trusted(it *item) bool {
	st, ok := s.cache[it.Path]
	if s.full || !ok || st != it.stat {
		return false
	}
	b := s.base.get(it.Path)
	if b == nil || b.Type != entry.File {
		return false
	}
	it.sameBase = true
	t := s.target.get(it.Path)
	if t == nil || t.Type != entry.File {
		return true
	}
	same, known := sameBytes(s.base.content(b), s.target.content(t))
	it.sameTarget = same
	return known
}

// sameBytes compares two described contents; known is false when only reading
// can tell, because they were cut differently.
func sameBytes(a, b *entry.Entry) (same, known bool) {
	if a.Size != b.Size {
		return false, true
	}
	if contentKey(a) == contentKey(b) {
		return true, true
	}
	if len(a.Holes) != 0 || len(b.Holes) != 0 || len(a.Chunks) != len(b.Chunks) {
		return false, false
	}
	for i := range a.Chunks {
		if a.Chunks[i].Size != b.Chunks[i].Size {
			return false, false
		}
	}
	return false, true
}

// content reads one file and compares it with both manifests.
func (s *scanner) content(it *item) error {
	f, err := s.n.openFile(it.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	try := func(x *index, known *bool) (bool, error) {
		e := x.get(it.Path)
		if *known || e == nil || e.Type != entry.File {
			return *known, nil
		}
		return holds(f, it.stat.Size, x.content(e))
	}
	if it.sameTarget, err = try(s.target, &it.sameTarget); err != nil {
		return err
	}
	if b, t := s.base.get(it.Path), s.target.get(it.Path); it.sameTarget && b != nil && b.Type == entry.File {
		if same, known := sameBytes(s.base.content(b), s.target.content(t)); known {
			it.sameBase = same
			return nil
		}
	}
	if it.sameBase, err = try(s.base, &it.sameBase); err != nil {
		return err
	}
	if it.sameBase || it.sameTarget {
		return nil
	}
	it.described = true
	return describe(f, it.stat.Size, &it.Entry)
}
