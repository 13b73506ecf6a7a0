package rollback

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// maxState bounds the files of .ingot that are read into memory.
const maxState = 1 << 30

// readState reads one file of .ingot whole.
func (n *Node) readState(path string) ([]byte, error) {
	f, err := n.openFile(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", path, err)
	}
	if st.Size() > maxState {
		return nil, fmt.Errorf("read %q: larger than %d bytes: %w", path, maxState, ErrCorrupt)
	}
	b := make([]byte, st.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("read %q: %w", path, err)
	}
	return b, nil
}

// putState writes a file of .ingot that must not exist, without making it durable.
func (n *Node) putState(path string, b []byte) error {
	f, err := n.createState(path, unix.O_EXCL)
	if err != nil {
		return err
	}
	defer f.Close()
	return n.sys.writeAt(f, path, b, 0)
}

// putManifest is putState of head and the encoding of a manifest, which is
// never in memory whole. It returns the digest of the latter.
func (n *Node) putManifest(path string, head []byte, m *manifest.Manifest) (id digest.ID, err error) {
	f, err := n.createState(path, unix.O_EXCL)
	if err != nil {
		return id, err
	}
	defer f.Close()
	w := bufio.NewWriterSize(&stateWriter{n: n, f: f}, 256<<10)
	h := sha256.New()
	w.Write(head) // like all of bufio it remembers the error
	if _, err := m.WriteTo(io.MultiWriter(w, h)); err != nil {
		return id, err
	}
	return digest.ID(h.Sum(nil)), w.Flush()
}

// stateWriter appends to a file of .ingot.
type stateWriter struct {
	n   *Node
	f   *os.File
	off int64
}

func (w *stateWriter) Write(b []byte) (int, error) {
	if err := w.n.sys.writeAt(w.f, w.f.Name(), b, w.off); err != nil {
		return 0, err
	}
	w.off += int64(len(b))
	return len(b), nil
}

// writeState replaces a file of .ingot durably: temporary, fsync, rename, fsync of the directory.
func (n *Node) writeState(path string, b []byte) error {
	tmp := path + ".tmp"
	f, err := n.createState(tmp, unix.O_TRUNC)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := n.sys.writeAt(f, tmp, b, 0); err != nil {
		return err
	}
	if err := n.sys.fsync(f); err != nil {
		return err
	}
	if err := n.sys.replace(n.top, tmp, n.top, path); err != nil {
		return err
	}
	return n.sys.fsyncDir(n.top, path[:strings.LastIndexByte(path, '/')])
}

func (n *Node) createState(path string, flag int) (*os.File, error) {
	var fd int
	err := n.sys.do("create", path, func() (err error) {
		fd, err = entry.OpenBeneath(n.top, path, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW|flag, 0o600)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// makeDirs makes directories of .ingot, parents first; those that exist are fine.
func (n *Node) makeDirs(paths ...string) error {
	if err := n.makeHome(); err != nil {
		return err
	}
	for _, p := range paths {
		if n.exists(p) {
			continue
		}
		if err := n.sys.mkdir(n.top, p, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return nil
}

// list returns the names in a directory of .ingot; none when it does not exist.
func (n *Node) list(path string) ([]string, error) {
	fd, err := entry.OpenBeneath(n.top, path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if notThere(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %q: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list %q: %w", path, err)
	}
	return names, nil
}

// remove deletes path and what is in it, never leaving the directory tree:
// symbolic links are removed, not followed, and mounts stop it (EBUSY). What
// does not exist is fine.
func (n *Node) remove(path string) error {
	dir, name, err := n.parent(path)
	if notThere(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %q: %w", path, err)
	}
	defer unix.Close(dir)
	return n.removeAt(dir, name)
}

func (n *Node) removeAt(dir int, name string) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return n.sys.unlink(dir, name, 0)
	case err != nil:
		return fmt.Errorf("remove %q: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("remove %q: %w", name, err)
	}
	for _, sub := range names {
		if err := n.removeAt(fd, sub); err != nil {
			return err
		}
	}
	return n.sys.unlink(dir, name, unix.AT_REMOVEDIR)
}

// BusyError says who holds the lock. errors.Is(err, ErrBusy).
type BusyError struct {
	Holder string // what the holder wrote: program, process and time
}

func (e *BusyError) Error() string {
	if e.Holder == "" {
		return "busy: another process is changing this tree"
	}
	return "busy: held by " + e.Holder
}

// Is makes it an ErrBusy.
func (e *BusyError) Is(target error) bool { return target == ErrBusy }

// lock takes the tree for a change, by flock: it ends with the process.
func (n *Node) lock(what string) (unlock func(), err error) {
	if err := n.checkHome(); err != nil {
		return nil, err
	}
	if err := n.makeDirs(home, in("generations"), in("stage")); err != nil {
		return nil, err
	}
	fd, err := entry.OpenBeneath(n.top, in("lock"), unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the tree: %w", err)
	}
	f := os.NewFile(uintptr(fd), "lock")
	if err := flock(fd); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			b, _ := io.ReadAll(io.LimitReader(f, 4096))
			return nil, &BusyError{Holder: strings.TrimSpace(string(b))}
		}
		return nil, fmt.Errorf("lock the tree: %w", err)
	}
	who := fmt.Sprintf("%s, process %d, since %s\n", what, os.Getpid(), n.now().UTC().Format(time.RFC3339))
	if err := f.Truncate(0); err == nil {
		f.WriteAt([]byte(who), 0) // for people only
	}
	return func() { f.Close() }, nil
}

// flock takes a lock, or finds out that somebody keeps it: who only looks
// whether it is taken has it for a moment, too.
func flock(fd int) error {
	for tries := 20; ; tries-- {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || tries == 0 {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// lockIdle is lock, refused while an interrupted switch waits for Recover.
func (n *Node) lockIdle(what string) (unlock func(), err error) {
	unlock, err = n.lock(what)
	if err != nil {
		return nil, err
	}
	if n.exists(in("journal")) {
		unlock()
		return nil, ErrInterrupted
	}
	return unlock, nil
}
