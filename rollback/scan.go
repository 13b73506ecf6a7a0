package rollback

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
)

// item is one live entry as a scan found it.
type item struct {
	*entry.Entry // metadata; of an inode that did not change the as-done manifest's own entry
	stat         entry.Stat

	base   *entry.Entry // what the as-done manifest has at this path
	target *entry.Entry // what the target has

	sameBase   bool // has the content that the as-done manifest says
	sameTarget bool // has the content that the target says
	described  bool // has neither: the entry, which is its own, has holes and chunks
	alone      Leave
	immutable  bool // chattr +i or +a
	anchored   bool // a directory that holds what is left alone

	in []item // what is in a directory that was read, by name
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
type live struct{ items []*item }

func (l *live) get(path string) *item {
	i, ok := slices.BinarySearchFunc(l.items, path, func(it *item, p string) int { return order(it.Path, p) })
	if !ok {
		return nil
	}
	return l.items[i]
}

// flat lists items, and after each directory what is in it.
func (l *live) flat(items []item) {
	for i := range items {
		l.items = append(l.items, &items[i])
		l.flat(items[i].in)
	}
}

// scanner reads the live tree.
type scanner struct {
	n            *Node
	rules        *rules
	base, target *index
	cache        states    // of base
	full         bool      // read every file, whatever its inode says
	when         time.Time // before the first look

	dev uint64 // of the top
}

// devOf returns the number of the file system that path should be on.
func (s *scanner) devOf(path string) uint64 {
	if i := s.rules.vols.of(path); i > 0 {
		return s.rules.vols[i].dev
	}
	return s.dev
}

// crosses reports whether path is a mount point of a file system that takes part.
func (s *scanner) crosses(path string, dev uint64) bool {
	i := s.rules.vols.at(path)
	return i > 0 && s.rules.vols[i].dev == dev
}

// scan walks the whole tree, or what scope names, and finds out which files
// hold what the two manifests say.
func (s *scanner) scan(ctx context.Context, sc *scope) (*live, error) {
	s.when = s.n.now()
	items, err := s.walk(ctx, sc)
	if err != nil {
		return nil, fmt.Errorf("scan the tree: %w", err)
	}
	l := &live{}
	l.flat(items)
	at := cursor{s.target.m.Entries}
	for _, it := range l.items {
		it.target = at.to(it.Path)
	}
	if err := s.contents(ctx, l); err != nil {
		return nil, fmt.Errorf("scan the tree: %w", err)
	}
	l.items = slices.DeleteFunc(l.items, func(it *item) bool { return it.Entry == nil })
	return l, nil
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

// nameOf returns the last component of path.
func nameOf(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// contents finds out what each file holds, reading several at once.
func (s *scanner) contents(ctx context.Context, l *live) error {
	var wg sync.WaitGroup
	var once sync.Once
	var failed error
	todo := make(chan *item)
	for range min(4, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			buf := &readBuf{}
			for it := range todo {
				if err := s.content(it, buf); err != nil {
					once.Do(func() { failed = fmt.Errorf("read %q: %w", it.Path, err) })
				}
			}
		})
	}
	for _, it := range l.items {
		if it.Type == entry.File && it.alone == "" && ctx.Err() == nil && !s.trusted(it) {
			todo <- it
		}
	}
	close(todo)
	wg.Wait()
	if failed == nil {
		failed = ctx.Err()
	}
	return failed
}

// trusted decides by what the inode's state said, where that is enough.
func (s *scanner) trusted(it *item) bool {
	switch {
	case !it.sameBase:
		return false
	case it.target == nil || it.target.Type != entry.File:
		return true
	}
	same, known := sameBytes(s.base.content(it.base), s.target.content(it.target))
	it.sameTarget = same
	return known
}

// sameBytes compares two described contents; known is false when only reading
// can tell, because they were cut differently.
func sameBytes(a, b *entry.Entry) (same, known bool) {
	if a.Size != b.Size {
		return false, true
	}
	if slices.Equal(a.Chunks, b.Chunks) && slices.Equal(a.Holes, b.Holes) {
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

// content reads one file and compares it with both manifests. One that is gone
// by now, or something else, leaves a gap: it might as well have gone before it
// was listed, and the switch sees what is there instead. One that gets shorter
// all the time gives ErrChanged.
func (s *scanner) content(it *item, buf *readBuf) error {
	f, err := s.n.openFile(it.Path)
	if noFile(err) {
		it.Entry = nil
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for try := 0; ; try++ {
		if err := it.refresh(f); err != nil {
			return err
		}
		err := s.compare(f, it, buf)
		switch {
		case !cutShort(err):
			return err
		case try == 3:
			return fmt.Errorf("%w: %w", ErrChanged, err)
		}
	}
}

// refresh makes it what f is, if that is another file than was listed, or in
// another state.
func (it *item) refresh(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || entry.StatOf(&st) == it.stat {
		return err
	}
	e, now, err := entry.ReadFd(int(f.Fd()))
	if err != nil {
		return err
	}
	e.Path = it.Path
	it.Entry, it.stat, it.sameBase, it.sameTarget = &e, now, false, false
	return nil
}

func (s *scanner) compare(f *os.File, it *item, buf *readBuf) (err error) {
	try := func(x *index, e *entry.Entry, known bool) (bool, error) {
		if known || e == nil || e.Type != entry.File {
			return known, nil
		}
		return holds(f, it.stat.Size, x.content(e), buf)
	}
	if it.sameTarget, err = try(s.target, it.target, it.sameTarget); err != nil {
		return err
	}
	if b, t := it.base, it.target; it.sameTarget && b != nil && b.Type == entry.File {
		if same, known := sameBytes(s.base.content(b), s.target.content(t)); known {
			it.sameBase = same
			return nil
		}
	}
	if it.sameBase, err = try(s.base, it.base, it.sameBase); err != nil {
		return err
	}
	if it.sameBase || it.sameTarget {
		return nil
	}
	it.described = true
	return describe(f, it.stat.Size, it.Entry, buf)
}
