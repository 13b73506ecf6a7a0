// Package durable writes files that are complete or not there, whatever the
// power does: a temporary file in the same directory, fsync, rename, fsync of
// the directory.
package durable

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// prefix begins the names of files that are not finished.
const prefix = ".tmp-"

// File is a file that has no name yet. It is locked (flock) while it is open,
// which is how Sweep tells it from what a crash left behind. Either Commit or
// Abort must be called; Abort after Commit does nothing.
type File struct {
	*os.File
	path string
	done bool
}

// Create begins a file that Commit will put at path, replacing what is there.
// Its permissions are exactly perm.
func Create(path string, perm os.FileMode) (*File, error) {
	dir := filepath.Dir(path)
	for {
		f, err := os.OpenFile(filepath.Join(dir, prefix+rand.Text()), os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
		if err != nil {
			return nil, fmt.Errorf("create %q: %w", path, err)
		}
		alive, err := claim(f, perm)
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			return nil, fmt.Errorf("create %q: %w", path, err)
		}
		if alive {
			return &File{File: f, path: path}, nil
		}
		f.Close() // swept between open and flock
	}
}

// claim locks f and reports whether it still has its name.
func claim(f *os.File, perm os.FileMode) (bool, error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return false, fmt.Errorf("lock: %w", err)
	}
	if err := f.Chmod(perm); err != nil {
		return false, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false, err
	}
	return st.Nlink > 0, nil
}

// Commit makes the file durable and gives it its name.
func (f *File) Commit() error { return f.CommitAs(f.path) }

// CommitAs is Commit under another name of the same file system, for names
// that are known only when the content is.
func (f *File) CommitAs(path string) error {
	if f.done {
		return fmt.Errorf("commit %q: %w", path, os.ErrClosed)
	}
	err := f.Sync()
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		f.Abort()
		return fmt.Errorf("commit %q: %w", path, err)
	}
	f.done = true
	if err := f.Close(); err != nil {
		return fmt.Errorf("commit %q: %w", path, err)
	}
	return SyncDir(filepath.Dir(path))
}

// Abort forgets the file. It may be deferred: after Commit it does nothing.
func (f *File) Abort() {
	if f.done {
		return
	}
	f.done = true
	os.Remove(f.Name())
	f.Close()
}

// WriteFile writes data to path: after a crash path holds either what it held
// before or all of data, and once WriteFile has returned nil, data.
func WriteFile(path string, data []byte, perm os.FileMode) error {
	f, err := Create(path, perm)
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("write %q: %w", path, err)
	}
	return f.Commit()
}

// SyncFS makes durable all that is on the file system of dir: syncfs(2). FAT has
// no other way for names.
func SyncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync file system: %w", err)
	}
	if err := errors.Join(unix.Syncfs(int(d.Fd())), d.Close()); err != nil {
		return fmt.Errorf("sync the file system of %q: %w", dir, err)
	}
	return nil
}

// SyncDir makes the names in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer d.Close()
	// EINVAL: some file systems cannot sync a directory, and need not (fsync(2)).
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("sync directory %q: %w", dir, err)
	}
	return nil
}

// MkdirAll makes path and its missing parents durably.
func MkdirAll(path string, perm os.FileMode) error {
	path = filepath.Clean(path)
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return SyncDir(parent)
}

// IsTemp reports whether name is that of an unfinished file.
func IsTemp(name string) bool { return strings.HasPrefix(name, prefix) }

// Sweep removes from dir the unfinished files of processes that are gone, and
// returns how many there were. Files being written now are left alone.
func Sweep(dir string) (int, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("sweep: %w", err)
	}
	n := 0
	for _, d := range names {
		if !IsTemp(d.Name()) || !d.Type().IsRegular() {
			continue
		}
		gone, err := sweepOne(filepath.Join(dir, d.Name()))
		if err != nil {
			return n, fmt.Errorf("sweep: %w", err)
		}
		if gone {
			n++
		}
	}
	return n, nil
}

func sweepOne(path string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return false, nil // somebody is writing it
	}
	// Renamed into place while we looked? Then path is gone and stays so.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, nil
}
