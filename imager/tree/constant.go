package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ingot/internal/entry"
)

// ErrChanged is what an entry that changes while it is captured gives.
var ErrChanged = errors.New("changes while it is captured")

// ChangedError names what did not hold still. It is an ErrChanged.
type ChangedError struct {
	Paths []string // sorted
}

func (e *ChangedError) Error() string {
	const most = 50
	list := make([]string, 0, most)
	for _, p := range e.Paths[:min(len(e.Paths), most)] {
		list = append(list, strconv.Quote(p))
	}
	text := strings.Join(list, ", ")
	if n := len(e.Paths) - most; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	if len(e.Paths) == 1 {
		return text + " " + ErrChanged.Error()
	}
	return fmt.Sprintf("%d entries change while they are captured: %s", len(e.Paths), text)
}

// Is makes it an ErrChanged.
func (e *ChangedError) Is(err error) bool { return err == ErrChanged }

// tick is how old a change has to be to be told from a later one: both could
// leave the same ctime within a tick of the kernel's clock (CONFIG_HZ is 100
// or more).
const tick = 20 * time.Millisecond

// tickOf is the tick of the file system that has a state: some keep no
// fractions of a second (ext4 in inodes of 128 bytes), or only every other second.
func tickOf(st entry.Stat) time.Duration {
	if st.CTime%int64(time.Second) == 0 {
		return 2*time.Second + tick
	}
	return tick
}

// pauses are what is waited before what has changed is captured again; after
// the last the capture fails.
func pauses() []time.Duration {
	return []time.Duration{tick + 5*time.Millisecond, 250 * time.Millisecond, time.Second, 2 * time.Second}
}

// constant makes sure that there was one moment at which the whole tree was
// as it was captured. Mostly that is the beginning of the scan: see old. Else
// the metadata of all is looked at once more, now that all was read: what is the
// same before and after was the same in between, and the moment before the last
// look is in between for everything. What is not the same is captured again, a
// few times.
func (c *capture) constant(ctx context.Context) error {
	wait := c.o.pauses
	if wait == nil {
		wait = pauses()
	}
	for {
		if c.old() {
			return nil
		}
		bad, allowed, err := c.changes(ctx)
		if err != nil {
			return err
		}
		c.stats.Changed = allowed
		if len(bad) == 0 {
			return nil
		}
		if len(wait) == 0 {
			return &ChangedError{Paths: bad}
		}
		select {
		case <-time.After(wait[0]):
		case <-ctx.Done():
			return ctx.Err()
		}
		wait = wait[1:]
		c.stats.Again++
		if err := c.again(ctx); err != nil {
			return err
		}
	}
}

// again captures what has changed since it was captured.
func (c *capture) again(ctx context.Context) error {
	was, since := c.flat, c.began
	if err := c.look(ctx); err != nil {
		return err
	}
	c.unread = map[int]bool{}
	var files []int
	j := 0
	for _, n := range c.files {
		e := &c.entries[n]
		for j < len(was.entries) && entry.Before(was.entries[j].Path, e.Path) {
			j++
		}
		if j < len(was.entries) && was.entries[j].Path == e.Path && was.states[j] == c.states[n] && !fresh(was.states[j], since) {
			e.Holes, e.Chunks = was.entries[j].Holes, was.entries[j].Chunks
			continue
		}
		files = append(files, n)
	}
	progress := c.o.Progress
	c.o.Progress = nil // it counts from the start
	defer func() { c.o.Progress = progress }()
	return c.contents(ctx, files)
}

// fresh reports whether a state that was seen after since may hide a later
// change. A time in the future says nothing, and would never pass.
func fresh(st entry.Stat, since time.Time) bool {
	return st.CTime >= since.Add(-tickOf(st)).UnixNano() && st.CTime <= time.Now().UnixNano()
}

// old reports whether the states alone prove that the tree was at the beginning
// of the scan as it was captured: nothing in it, the directories included, has
// changed since, by its ctime. That takes a file system that keeps a ctime by
// the clock of this kernel, a clock that was not set back meanwhile, and states
// that are those of the content and of the names that were read.
func (c *capture) old() bool {
	now := time.Now()
	if c.wary || c.o.lookAgain || len(c.unread) > 0 || !keepsCTime(c.root) || setBack(now.Round(0).Sub(c.began.Round(0)), now.Sub(c.began)) {
		return false
	}
	for i, st := range c.states {
		if c.hollow[i] {
			continue // what is mounted there, and what is blanked
		}
		if st.Dev != c.states[0].Dev || st.CTime >= c.began.Add(-tickOf(st)).UnixNano() {
			return false
		}
	}
	return true
}

// setBack reports whether the clock of the day went on by less than has passed,
// and than it may be slewed.
func setBack(clock, passed time.Duration) bool { return clock < passed-tick/4 }

// keepsCTime reports whether a file system moves the ctime of an inode with
// every change of it and of what it holds, by the clock of this kernel.
func keepsCTime(fd int) bool {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return false
	}
	switch int64(st.Type) { //nolint:unconvert // differs by architecture
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC:
		return true
	}
	return false
}

// allowed reports whether a path may change.
func (c *capture) allowed(path string) bool {
	return c.o.AllowChanged != nil && path != "." && c.o.AllowChanged(path)
}

// changes looks at the tree once more and returns, sorted, what is not as it
// was captured: what must not be, and what may.
func (c *capture) changes(ctx context.Context) (bad, allowed []string, err error) {
	l := &looker{c: c, inside: map[int][]int{}}
	var dirs []int
	at := map[string]int{}
	for n := range c.entries {
		e := &c.entries[n]
		if e.Path != "." {
			up, _ := splitPath(e.Path)
			l.inside[at[up]] = append(l.inside[at[up]], n)
		}
		if e.Type == entry.Dir && !c.hollow[n] {
			at[e.Path] = n
			dirs = append(dirs, n)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range 2 * runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			names := &entry.Names{}
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(dirs) {
					return nil
				}
				if err := l.dir(names, dirs[i]); err != nil {
					return fmt.Errorf("look again at %q: %w", c.entries[dirs[i]].Path, err)
				}
			}
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	slices.Sort(l.changed)
	for _, p := range slices.Compact(l.changed) {
		if n, ok := c.find(p); c.allowed(p) && !(ok && c.unread[n]) {
			allowed = append(allowed, p)
		} else {
			bad = append(bad, p)
		}
	}
	return bad, allowed, nil
}

// find returns the number of an entry.
func (c *capture) find(path string) (int, bool) {
	return slices.BinarySearchFunc(c.entries, path, func(e entry.Entry, p string) int {
		switch {
		case e.Path == p:
			return 0
		case entry.Before(e.Path, p):
			return -1
		}
		return 1
	})
}

// looker compares a tree with what was captured of it.
type looker struct {
	c      *capture
	inside map[int][]int // of a directory, what was captured in it, in order

	mu      sync.Mutex
	changed []string
}

func (l *looker) differs(path string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed = append(l.changed, path)
}

// dir compares directory n, its names and what is in it.
func (l *looker) dir(names *entry.Names, n int) error {
	c := l.c
	path := c.entries[n].Path
	fd, err := openPlain(c.root, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if replaced(err) {
		l.differs(path)
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = names.Read(fd)
	if replaced(err) { // since it was opened
		l.differs(path)
		return nil
	}
	if err != nil {
		return err
	}
	loose := c.hidden[n] || l.anyLeftOut(path)
	in := l.inside[n]
	for _, de := range names.All {
		name := names.Text(de)
		for len(in) > 0 && l.name(in[0]) < name {
			l.differs(c.entries[in[0]].Path) // gone
			in = in[1:]
		}
		if len(in) > 0 && l.name(in[0]) == name {
			if err := l.one(fd, name, in[0]); err != nil {
				return err
			}
			loose = loose || c.hidden[in[0]] || c.allowed(c.entries[in[0]].Path)
			in = in[1:]
			continue
		}
		switch p := join(path, name); {
		case c.leaves(p, de.IsDir()) || de.IsSocket():
			loose = true
		default:
			l.differs(p)
			loose = loose || c.allowed(p)
		}
	}
	for _, i := range in {
		l.differs(c.entries[i].Path)
	}
	st, err := stateOf(fd)
	if err != nil {
		return err
	}
	if st == c.states[n] && !fresh(st, c.began) {
		return nil
	}
	return l.directory(fd, n, st, loose)
}

// name is the last component of what was captured.
func (l *looker) name(n int) string {
	p := l.c.entries[n].Path
	return p[strings.LastIndexByte(p, '/')+1:]
}

// anyLeftOut reports whether a directory is one in which anything may be left
// out, so that names may come and go there unseen.
func (l *looker) anyLeftOut(path string) bool {
	const some = "\x01" // no pattern names it
	p := join(path, some)
	return l.c.leaves(p, false) || l.c.allowed(p)
}

// directory compares the state of directory n, which is another. Where what
// is left out may come and go, its times mean nothing: they are those of one
// moment during the capture.
func (l *looker) directory(fd, n int, st entry.Stat, loose bool) error {
	e := &l.c.entries[n]
	if was := l.c.states[n]; loose && st.Dev == was.Dev && st.Ino == was.Ino {
		now, _, err := entry.ReadFd(fd)
		if err != nil {
			return err
		}
		now.ModTime = e.ModTime
		if entry.SameMeta(&now, e) {
			return nil
		}
	}
	l.differs(e.Path)
	return nil
}

// one compares what is not a directory; directories are compared by dir.
func (l *looker) one(dirfd int, name string, n int) error {
	c := l.c
	if c.hollow[n] || c.entries[n].Type == entry.Dir {
		return nil
	}
	st, err := entry.StatAt(dirfd, name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil || st != c.states[n] || fresh(st, c.began) {
		l.differs(c.entries[n].Path)
	}
	return nil
}
