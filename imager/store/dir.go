package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/durable"
	"ingot/internal/entry"
)

// Dir is a Backend in a local directory. Packs hold password hashes: nobody
// but the owner may read them.
type Dir struct {
	root string
}

// NewDir returns the Backend in the directory root, which need not exist.
func NewDir(root string) *Dir { return &Dir{root: root} }

func (d *Dir) path(name string) string { return filepath.Join(d.root, filepath.FromSlash(name)) }

// Put implements Backend.
func (d *Dir) Put(ctx context.Context, name string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p := d.path(name)
	if err := durable.MkdirAll(filepath.Dir(p), 0700); err != nil {
		return err
	}
	return durable.WriteFile(p, data, 0600)
}

// Create implements Backend.
func (d *Dir) Create(ctx context.Context) (Upload, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	tmp := d.path("packs")
	if err := durable.MkdirAll(tmp, 0700); err != nil {
		return nil, err
	}
	f, err := durable.Create(filepath.Join(tmp, "new"), 0600)
	if err != nil {
		return nil, err
	}
	return &dirUpload{File: f, d: d}, nil
}

type dirUpload struct {
	*durable.File
	d *Dir
}

func (u *dirUpload) Commit(name string) error {
	p := u.d.path(name)
	if err := durable.MkdirAll(filepath.Dir(p), 0700); err != nil {
		u.Abort()
		return err
	}
	return u.CommitAs(p)
}

// Open implements Backend.
func (d *Dir) Open(ctx context.Context, name string) (Object, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := os.Open(d.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", name, ErrMissing)
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("stat %q: %w", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close()
		return nil, fmt.Errorf("open %q: not a file", name)
	}
	return &dirObject{File: f, st: entry.StatOf(&st)}, nil
}

type dirObject struct {
	*os.File
	st entry.Stat
}

func (o *dirObject) Size() int64 { return o.st.Size }

func (o *dirObject) ModTime() time.Time { return time.Unix(0, o.st.MTime) }

// Stamp implements Object. Two writes within one tick of the kernel's clock
// leave the same ctime, so a file that has just changed has no stamp yet.
func (o *dirObject) Stamp() string {
	if age := time.Since(time.Unix(0, o.st.CTime)); age < 100*time.Millisecond {
		return ""
	}
	return fmt.Sprintf("%d:%d:%d:%d:%d", o.st.Dev, o.st.Ino, o.st.Size, o.st.MTime, o.st.CTime)
}

// List implements Backend. It leaves out unfinished files.
func (d *Dir) List(ctx context.Context, dir string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	list, err := os.ReadDir(d.path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range list {
		switch {
		case durable.IsTemp(e.Name()):
		case e.IsDir():
			names = append(names, e.Name()+"/")
		default:
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Remove implements Backend.
func (d *Dir) Remove(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p := d.path(name)
	err := os.Remove(p)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", name, ErrMissing)
	}
	if err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(p))
}

// Move gives an object another name. It needs no room, nor that the object can be read.
func (d *Dir) Move(ctx context.Context, from, to string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	src, dst := d.path(from), d.path(to)
	if err := durable.MkdirAll(filepath.Dir(dst), 0700); err != nil {
		return err
	}
	err := os.Rename(src, dst)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", from, ErrMissing)
	}
	if err != nil {
		return err
	}
	return errors.Join(durable.SyncDir(filepath.Dir(dst)), durable.SyncDir(filepath.Dir(src)))
}

// Sweep removes what crashed writers left, in every directory of a store
// (docs/FORMAT.md, section 1).
func (d *Dir) Sweep(ctx context.Context) (int, error) {
	n, err := durable.Sweep(d.root)
	if err != nil {
		return n, err
	}
	for _, top := range []string{"packs", "index", "manifests", "names", "cache", "damaged"} {
		err := filepath.WalkDir(d.path(top), func(path string, e fs.DirEntry, err error) error {
			if err == nil {
				err = ctx.Err()
			}
			if err == nil && e.IsDir() {
				var k int
				k, err = durable.Sweep(path)
				n += k
			}
			if errors.Is(err, fs.ErrNotExist) { // nothing there yet, or not any more
				return nil
			}
			return err
		})
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Lock implements Backend with flock(2).
func (d *Dir) Lock(ctx context.Context, exclusive bool) (func(), error) {
	f, err := os.OpenFile(d.path("lock"), os.O_RDWR|os.O_CREATE, 0600)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}
