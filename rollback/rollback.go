// Package rollback keeps the generations of a node: what the node was brought
// to, how it is brought to something else, and how it comes back.
//
// A change is planned (Plan, PlanRollback), staged beside the tree on the same
// file systems (Stage) and switched (Switch) under a write-ahead journal. Each
// displaced file is its own undo copy. After a crash at any point Recover makes
// the tree exactly the old or exactly the new generation. Rollback is the same
// switch backwards; it moves no bytes. The package knows no transport: content
// that is not on the node comes from a Source.
//
// The state is in .ingot (mode 0700) at the top of the tree:
//
//	generations/N/meta.json   what generation N is (Generation)
//	generations/N/manifest    the tree as it was made: the base of three-way comparison
//	generations/N/target      what its push was to make: the base of the next manifest on the wire
//	generations/N/left        the tree as it was when N was left, where that differs
//	generations/N/undo/S      what the switch that left N displaced, slot by slot
//	generations/N/steps       the journal of that switch: which slot is which path
//	stage/ID/                 a staged change: slots in undo/, what they are to hold in slots, records in next/ and left
//	journal                   a switch that is not finished
//	statcache                 inode states that are known to hold the manifest's content
//	lock                      flock; says who and since when
//	kept/ID/                  what a recovery could not put back, because someone else changed the path
//
// A tree may be on several file systems (Volume). Each of them but the top's has
// an .ingot at its own top with what cannot be anywhere else:
//
//	volume                    what makes it known again, whatever device it is on
//	stage/ID/undo/S           slots of what goes there
//	generations/N/undo/S      what was displaced there
//	lock, kept/ID/            as above
package rollback

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/slogx"
)

// home is the directory at the top of the tree that holds all state.
const home = ".ingot"

// Kinds of failure, for errors.Is.
var (
	// ErrBusy: another process is changing the tree.
	ErrBusy = errors.New("busy")
	// ErrInterrupted: a switch was interrupted; Recover comes first.
	ErrInterrupted = errors.New("an interrupted switch waits for recovery")
	// ErrNoGeneration: the generation does not exist (any more).
	ErrNoGeneration = errors.New("no such generation")
	// ErrConflict: the node changed files that the plan would change (ConflictError).
	ErrConflict = errors.New("changed on the node")
	// ErrBlocked: the plan cannot be carried out as the tree is (BlockedError).
	ErrBlocked = errors.New("blocked")
	// ErrChanged: the tree changed under the plan; nothing was switched.
	ErrChanged = errors.New("changed meanwhile")
	// ErrStale: the plan was made for another generation, or its stage is gone.
	ErrStale = errors.New("the plan is out of date")
	// ErrDamaged: content kept on the node is not what it was (DamagedError).
	ErrDamaged = errors.New("damaged")
	// ErrNoSpace: staging does not fit (SpaceError).
	ErrNoSpace = errors.New("not enough space")
	// ErrVolume: a file system of the tree is not where it was (VolumeError).
	ErrVolume = errors.New("a file system is not there")
	// ErrCorrupt: a file of .ingot cannot be understood.
	ErrCorrupt = errors.New("corrupt")

	errNoFile = errors.New("not a regular file")
)

// Source delivers chunks that the node does not have. Fetch calls fn once for
// every distinct id, possibly from several goroutines at once; data is valid
// only during fn.
type Source interface {
	Fetch(ctx context.Context, ids []digest.ID, fn func(id digest.ID, data []byte) error) error
}

// Node is a tree with generations. Its methods may be called from several
// processes; those that change something exclude each other (ErrBusy).
type Node struct {
	// config; set before use
	Log       *slog.Logger     // nil discards
	Retention Retention        // of what is switched from now on; the zero value: as the present generation says
	Boots     bool             // the machine boots from this tree: a change of what its boot loader reads is brought to its final place, and the pair before is kept
	Running   string           // release of the kernel that runs from this tree ("": none does): its modules stay where the target has none of it
	Now       func() time.Time // nil means time.Now

	// state
	path string
	top  int // directory descriptors
	sys  sys

	mu   sync.Mutex
	read memo
}

// memo is the manifest that was read last: a push asks for the same one several times.
type memo struct {
	id digest.ID
	m  *manifest.Manifest
}

// Open opens the tree at top. It changes nothing.
func Open(top string, log *slog.Logger) (*Node, error) {
	fd, err := unix.Open(top, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open tree %q: %w", top, err)
	}
	n := &Node{Log: log, path: top, top: fd}
	if err := n.checkHome(); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open tree %q: %w", top, err)
	}
	return n, nil
}

// Close releases the tree. A second one is an error and closes nothing: the
// number may be that of another file by then.
func (n *Node) Close() error {
	if n.top < 0 {
		return fmt.Errorf("close tree %q: %w", n.path, os.ErrClosed)
	}
	top := n.top
	n.top = -1
	return unix.Close(top)
}

func (n *Node) log() *slog.Logger { return slogx.Or(n.Log) }

func (n *Node) now() time.Time {
	if n.Now != nil {
		return n.Now()
	}
	return time.Now()
}

// checkHome refuses a .ingot that somebody else could have planted.
func (n *Node) checkHome() error {
	var st, top unix.Stat_t
	err := unix.Fstatat(n.top, home, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err == nil {
		err = unix.Fstat(n.top, &top)
	}
	switch {
	case err != nil:
		return fmt.Errorf("stat %q: %w", home, err)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%q is not a directory", home)
	case st.Uid != uint32(os.Geteuid()) || st.Mode&0o022 != 0:
		return fmt.Errorf("%q belongs to uid %d with mode %#o: others may write there", home, st.Uid, st.Mode&0o7777)
	case st.Dev != top.Dev:
		return fmt.Errorf("%q is on another file system than the tree", home)
	}
	return nil
}

// makeHome makes .ingot where there is none, without a trace in the top's times.
func (n *Node) makeHome() error {
	var st unix.Stat_t
	err := unix.Fstatat(n.top, home, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("stat %q: %w", home, err)
	}
	if err := unix.Fstat(n.top, &st); err != nil {
		return fmt.Errorf("stat the top: %w", err)
	}
	if err := n.sys.mkdir(n.top, home, 0o700); err != nil {
		return err
	}
	return n.sys.times(n.top, ".", unix.TimespecToNsec(st.Mtim))
}

// parent opens the directory that holds path, following no symbolic link.
func (n *Node) parent(path string) (dir int, name string, err error) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		fd, err := entry.OpenBeneath(n.top, ".", unix.O_PATH|unix.O_DIRECTORY, 0)
		return fd, path, err
	}
	fd, err := entry.OpenBeneath(n.top, path[:i], unix.O_PATH|unix.O_DIRECTORY, 0)
	return fd, path[i+1:], err
}

// in names a file of .ingot relative to the top.
func in(parts ...string) string { return home + "/" + strings.Join(parts, "/") }

// openFile opens a regular file of the tree (or of .ingot) for reading.
func (n *Node) openFile(path string) (*os.File, error) {
	// O_NONBLOCK: a FIFO put in place of the file must not hang us.
	fd, err := entry.OpenBeneath(n.top, path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, fmt.Errorf("open %q: %w", path, errNoFile)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// noFile reports whether an error of openFile is that of a path at which there
// is none, or something that is no regular file.
func noFile(err error) bool {
	return notThere(err) || errors.Is(err, errNoFile) ||
		errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ENXIO) // a link, or below one; a socket
}

// exists reports whether path is there, whatever it is. Where that cannot be
// found out the answer is yes: a journal that cannot be seen is not absent.
func (n *Node) exists(path string) bool {
	dir, name, err := n.parent(path)
	if err != nil {
		return !notThere(err)
	}
	defer unix.Close(dir)
	_, err = entry.StatAt(dir, name)
	return !notThere(err)
}

// notThere reports whether err says that a path does not exist.
func notThere(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)
}
