package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ingot/imager/tree"
	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/rollback"
)

// An empty directory is written straight, without a stage. While that goes on
// .ingot/writing says of which image; whoever finds it, and nobody who holds
// its lock, removes what is of that image and begins again.
const writing = ".ingot/writing"

// marker is the content of .ingot/writing.
type marker struct {
	Ref   string    `json:"ref"`
	Image digest.ID `json:"image"`
	By    string    `json:"by"`
	Time  time.Time `json:"time"`
}

// write fills the empty directory and records it as generation 1.
func (d *dirPush) write(out *outcome) error {
	if err := fits(d.top, d.manifest); err != nil {
		return err
	}
	done, err := d.mark()
	if err != nil {
		return err
	}
	defer done()
	total := d.manifest.TotalSize()
	var mu sync.Mutex
	stats := make(map[string]entry.Stat, len(d.manifest.Entries))
	var lost []string
	o := tree.WriteOptions{
		OnWritten: func(path string, st entry.Stat) { mu.Lock(); defer mu.Unlock(); stats[path] = st },
		Lost: func(path string, err error) {
			mu.Lock()
			defer mu.Unlock()
			lost = append(lost, fmt.Sprintf("%q: %v", path, err))
		},
		Progress: every(1<<20, func(bytes int64) { d.bar.show(wire.Progress{Task: "write", Done: bytes, Total: total}) }),
	}
	d.bar.show(wire.Progress{Task: "write", Total: total})
	if err := tree.Write(d.c.Context, d.top, d.manifest, d.source.(counted).Source, o); err != nil {
		return withHint(err, "the same command again begins anew")
	}
	d.bar.show(wire.Progress{Task: "record"})
	g := rollback.Generation{Image: d.image.ref, ImageID: d.image.id, Mode: "live", By: operator(), Result: "switched", Exact: true}
	if err := d.n.Record(d.c.Context, g, d.manifest, d.manifest, stats); err != nil {
		return err
	}
	if g, err = d.n.Current(); err != nil {
		return err
	}
	out.Done = wire.Done{Generation: generationOf(g), Notes: lost}
	out.Plan = wire.Plan{Need: 0, NeedBytes: total}
	out.Written = len(d.manifest.Entries)
	return os.Remove(filepath.Join(d.top, writing))
}

// every calls fn when another so many bytes are done.
func every(step int64, fn func(bytes int64)) func(bytes, entries int64) {
	var mu sync.Mutex
	var next int64
	return func(bytes, _ int64) {
		mu.Lock()
		defer mu.Unlock()
		if bytes >= next {
			next = bytes + step
			fn(bytes)
		}
	}
}

// mark says that the directory is being written. Nobody else takes it until
// done, or the end of this process.
func (d *dirPush) mark() (done func(), err error) {
	if err := os.Mkdir(filepath.Join(d.top, ".ingot"), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(d.top, writing), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(marker{d.image.ref, d.image.id, operator(), time.Now().UTC()})
	if err == nil {
		err = busy(f)
	}
	if err == nil {
		err = errors.Join(f.Truncate(0), unix.Fsync(int(f.Fd())))
	}
	if err == nil {
		_, err = f.WriteAt(text, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { f.Close() }, nil
}

// busy locks the marker, or says that somebody else is writing.
func busy(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return &rollback.BusyError{Holder: "another push that writes this directory"}
	}
	return err
}

// cleared removes what a push that was interrupted has written.
func (d *dirPush) cleared(manifestOf func(digest.ID) (*manifest.Manifest, error)) error {
	path := filepath.Join(d.top, writing)
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := busy(f); err != nil {
		return err
	}
	gens, err := d.n.Generations()
	if err != nil {
		return err
	}
	if len(gens) > 0 { // it was recorded: nothing but the marker was left to remove
		return os.Remove(path)
	}
	text, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return err
	}
	var was marker
	if json.Unmarshal(text, &was) == nil { // else it ended before the marker was whole, and so before it wrote anything
		d.bar.screen.say("note: a push of %s was interrupted here: begun anew", was.Ref)
		m, err := manifestOf(was.Image)
		if err != nil {
			return withHint(fmt.Errorf("remove what the interrupted push of %s wrote: %w", was.Ref, err), "empty the directory, %q included", path)
		}
		if err := removeEntries(d.top, m); err != nil {
			return fmt.Errorf("remove what the interrupted push of %s wrote: %w", was.Ref, err)
		}
	}
	name, err := firstName(d.top)
	if err == nil && name != "" {
		err = fmt.Errorf("it holds %q, which is not of the image %s whose push was interrupted: take it away", name, was.Ref)
	}
	if err != nil {
		return err
	}
	return os.Remove(path)
}

// removeEntries removes from a directory what is in a manifest, following no
// link. What is not there is fine; directories that hold something else stay.
func removeEntries(top string, m *manifest.Manifest) error {
	root, err := os.OpenRoot(top)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, e := range slices.Backward(m.Entries) {
		if e.Path == "." || e.Path == "lost+found" {
			continue
		}
		err := root.Remove(e.Path)
		if errors.Is(err, fs.ErrPermission) { // not root, and the directory has its final mode
			if root.Chmod(filepath.Dir(e.Path), 0o700) == nil {
				err = root.Remove(e.Path)
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.ENOTDIR) {
			return err
		}
	}
	return nil
}

// fits checks that a tree has room in the file system of a directory.
func fits(top string, m *manifest.Manifest) error {
	var st unix.Statfs_t
	if err := unix.Statfs(top, &st); err != nil {
		return fmt.Errorf("statfs %q: %w", top, err)
	}
	need := rollback.SpaceError{Path: top, FreeBytes: int64(st.Bavail) * st.Bsize, FreeInodes: int64(st.Ffree)}
	for i := range m.Entries {
		e := &m.Entries[i]
		if e.Link != "" {
			continue
		}
		need.Inodes++
		var data int64
		for _, c := range e.Chunks {
			data += int64(c.Size)
		}
		need.Bytes += (data + st.Bsize - 1) / st.Bsize * st.Bsize
		if e.Type == entry.Dir {
			need.Bytes += st.Bsize
		}
	}
	need.Bytes += int64(len(m.Entries)) * 300 // the record
	if need.Bytes > need.FreeBytes || st.Files != 0 && need.Inodes > need.FreeInodes {
		return &need
	}
	return nil
}
