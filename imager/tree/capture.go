package tree

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/slogx"
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
	slabs  sync.Pool // of *slab

	mu     sync.Mutex   // guards the numbers of stats that workers change, and
	unread map[int]bool // entries whose content is not known
	wary   bool         // something was seen to change: its states prove nothing
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
	c.began, c.wary = time.Now(), false
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
