// Package snapshot gives a capture a tree that holds still: a read-only btrfs snapshot, or what a command of the administrator provides.
package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/btrfs"
	"ingot/internal/durable"
)

// How a snapshot is made; anything else is a shell command.
const (
	None  = "none"
	Auto  = "auto" // Btrfs where that is possible, else None
	Btrfs = "btrfs"
)

// Snapshot is a tree to capture.
type Snapshot struct {
	Dir  string // to be captured; the tree itself where there is no snapshot
	Note string // for people: what it is, or why there is none

	release func() error
}

// Taken reports whether Dir is a snapshot rather than the tree itself.
func (s *Snapshot) Taken() bool { return s.release != nil }

// Release removes the snapshot.
func (s *Snapshot) Release() error {
	if s.release == nil {
		return nil
	}
	end := s.release
	s.release = nil
	return end()
}

// ErrBusy says that another capture has a snapshot of the same tree.
var ErrBusy = errors.New("another capture has a snapshot of this tree")

// Take makes a snapshot of the tree at top. how is one of the words above or
// a command, run by sh with INGOT_TREE=top, that prints the directory of a
// snapshot; end is the command that releases it. What a capture that was
// killed has left is removed first.
func Take(ctx context.Context, top, how, end string) (*Snapshot, error) {
	if how == "" || how == None {
		return &Snapshot{Dir: top}, nil
	}
	s, err := take(ctx, top, how, end)
	if how == Auto && err != nil && ctx.Err() == nil {
		s = &Snapshot{Dir: top}
		if !errors.Is(err, btrfs.ErrNoSubvolume) {
			s.Note = fmt.Sprintf("captured without a snapshot: %v", err)
		}
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot of %q: %w", top, err)
	}
	return s, nil
}

func take(ctx context.Context, top, how, end string) (*Snapshot, error) {
	if how == Auto || how == Btrfs {
		if err := btrfs.IsSubvolume(top); err != nil {
			return nil, err
		}
	}
	st, err := openState(ctx, top)
	if err != nil {
		return nil, err
	}
	var s *Snapshot
	if how == Auto || how == Btrfs {
		s, err = st.btrfs(top)
	} else {
		s, err = st.command(ctx, top, how, end)
	}
	if err != nil {
		return nil, errors.Join(err, st.close())
	}
	release := s.release
	s.release = func() error { return errors.Join(release(), st.close()) }
	return s, nil
}

// state is the directory where snapshots of a tree are kept and noted; locked
// while it is open.
type state struct {
	dir string
	f   *os.File
}

const (
	stateDir = ".ingot/snapshots"
	endFile  = "end" // the command that releases what a command has made
)

// openState locks the state and removes what is left from a capture that was killed.
func openState(ctx context.Context, top string) (*state, error) {
	st := &state{dir: filepath.Join(top, stateDir)}
	if err := os.MkdirAll(st.dir, 0o700); err != nil {
		return nil, err
	}
	above, err := openOurs(unix.AT_FDCWD, filepath.Dir(st.dir))
	if err != nil {
		return nil, err
	}
	defer above.Close()
	if st.f, err = openOurs(int(above.Fd()), filepath.Base(st.dir)); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(st.f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		st.f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrBusy
		}
		return nil, fmt.Errorf("lock %q: %w", st.dir, err)
	}
	if err := st.sweep(ctx, top); err != nil {
		return nil, errors.Join(fmt.Errorf("remove what an interrupted capture left: %w", err), st.close())
	}
	return st, nil
}

// openOurs opens a directory or file, and refuses one that somebody else could
// have put there: the tree may be anybody's, and the command in it is run. What
// is judged is what was opened, whatever takes its name meanwhile.
func openOurs(dirfd int, path string) (*os.File, error) {
	fd, err := unix.Openat(dirfd, path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, notOurs(path)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFDIR && kind != unix.S_IFREG || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
			err = notOurs(path)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func notOurs(path string) error {
	return fmt.Errorf("%q is not ingot's: it is a link, or others may write to it", path)
}

func (st *state) close() error { return st.f.Close() }

// sweep removes what a capture that was killed has left. The note is the
// command that releases it and, behind a zero byte, the directory, if one was made.
func (st *state) sweep(ctx context.Context, top string) error {
	switch note, err := st.note(); {
	case err == nil:
		cmd, dir, _ := strings.Cut(string(note), "\x00")
		if _, err := run(ctx, top, dir, cmd); err != nil {
			return err
		}
		if err := unix.Unlinkat(int(st.f.Fd()), endFile, 0); err != nil {
			return fmt.Errorf("remove the note of it: %w", err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if _, err := durable.Sweep(st.dir); err != nil {
		return err
	}
	list, err := os.ReadDir(st.dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.IsDir() {
			if err := st.destroy(e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

func (st *state) note() ([]byte, error) {
	f, err := openOurs(int(st.f.Fd()), endFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// command has a command make a snapshot. The command that releases it is
// noted before, for whoever comes after a crash.
func (st *state) command(ctx context.Context, top, how, end string) (*Snapshot, error) {
	note := filepath.Join(st.dir, endFile)
	if end != "" {
		if err := durable.WriteFile(note, []byte(end), 0o600); err != nil {
			return nil, err
		}
	}
	s := &Snapshot{}
	s.release = func() error {
		if end == "" {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()
		if _, err := run(ctx, top, s.Dir, end); err != nil {
			return fmt.Errorf("release the snapshot: %w", err)
		}
		return os.Remove(note)
	}
	out, err := run(ctx, top, "", how)
	if err == nil {
		dir := strings.TrimSpace(out)
		dir = dir[strings.LastIndexByte(dir, '\n')+1:]
		if err = isTree(dir, top); err == nil {
			s.Dir = dir // else no command that removes it hears of it
		}
	}
	if err == nil && end != "" {
		err = durable.WriteFile(note, []byte(end+"\x00"+s.Dir), 0o600)
	}
	if err != nil {
		return nil, errors.Join(err, s.release())
	}
	s.Note = fmt.Sprintf("captured from the snapshot %q", s.Dir)
	return s, nil
}

func isTree(dir, top string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("the command has to print the directory of the snapshot, an absolute path, as the last line of its standard output; it printed %q", dir)
	}
	a, err := os.Stat(dir)
	if err != nil {
		return err
	}
	b, err := os.Stat(top)
	switch {
	case err != nil:
		return err
	case !a.IsDir():
		return fmt.Errorf("%q, which the command printed, is no directory", dir)
	case os.SameFile(a, b):
		return fmt.Errorf("%q, which the command printed, is the tree itself", dir)
	}
	return nil
}

// run runs a command line; its standard error is part of the error.
func run(ctx context.Context, top, snapshot, command string) (string, error) {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Env = append(os.Environ(), "INGOT_TREE="+top, "INGOT_SNAPSHOT="+snapshot)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("command %q: %w: %s", command, err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}
