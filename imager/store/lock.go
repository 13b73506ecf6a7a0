package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// BusyError says that others hold the lock of the store.
type BusyError struct {
	Holders []string // command lines with their process IDs, where they can be told
}

func (e *BusyError) Error() string {
	if len(e.Holders) == 0 {
		return "the store is in use"
	}
	return "the store is in use by " + strings.Join(e.Holders, ", ")
}

// Lock keeps others from removing what the caller is about to refer to
// (shared: captures, pushes), or keeps everybody else out (exclusive: prune).
// It waits until ctx ends. A capture holds it from before it asks what is
// missing until its name is set, whoever reads an image from before it looks
// up the name until it has read the last chunk.
func (s *Store) Lock(ctx context.Context, exclusive bool) (release func(), err error) {
	return s.lock(ctx, ctx, exclusive)
}

// lock waits for the lock until within ends, and makes one attempt even then.
// What was removed while others held it must not be relied upon: whoever needs
// the index reads it again. Not everybody does.
func (s *Store) lock(ctx, within context.Context, exclusive bool) (release func(), err error) {
	release, err = s.b.Lock(within, exclusive)
	if err != nil {
		return nil, fmt.Errorf("lock store: %w", err)
	}
	if err := ctx.Err(); err != nil {
		release()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read = time.Time{}
	return release, nil
}

// LockWithin is Lock that waits for a time at most, and then gives a
// *BusyError. When it has to wait it calls waiting, once, with who holds it.
func (s *Store) LockWithin(ctx context.Context, exclusive bool, wait time.Duration, waiting func(*BusyError)) (release func(), err error) {
	now, cancel := context.WithCancel(ctx)
	cancel() // one attempt
	if release, err = s.lock(ctx, now, exclusive); err == nil || ctx.Err() != nil || !errors.Is(err, context.Canceled) {
		return release, err
	}
	busy := &BusyError{}
	if h, ok := s.b.(interface{ Holders() []string }); ok {
		busy.Holders = h.Holders()
	}
	if wait <= 0 {
		return nil, fmt.Errorf("lock store: %w", busy)
	}
	waiting(busy)
	within, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	release, err = s.lock(ctx, within, exclusive)
	if err != nil && within.Err() != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("lock store: waited %s: %w", wait, busy)
	}
	return release, err
}

// Holders names the processes of this machine that hold the lock. It reads
// /proc/locks (proc(5)); those of others it may not see.
func (d *Dir) Holders() []string {
	path, err := filepath.EvalSymlinks(d.path("lock"))
	if err == nil {
		path, err = filepath.Abs(path)
	}
	var st unix.Stat_t
	if err != nil || unix.Stat(path, &st) != nil {
		return nil
	}
	f, err := os.Open("/proc/locks")
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		// 1: FLOCK  ADVISORY  READ  1234 08:01:5678 0 EOF; the device may be another one than stat tells
		w := strings.Fields(sc.Text())
		if len(w) < 6 || w[1] != "FLOCK" || w[5][strings.LastIndexByte(w[5], ':')+1:] != strconv.FormatUint(st.Ino, 10) {
			continue
		}
		if pid, err := strconv.Atoi(w[4]); err == nil && pid != os.Getpid() && hasOpen(pid, path) {
			out = append(out, process(pid))
		}
	}
	return out
}

// hasOpen says whether a process has a file open, as far as that can be seen.
func hasOpen(pid int, path string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	list, err := os.ReadDir(dir)
	if err != nil {
		return errors.Is(err, os.ErrPermission)
	}
	for _, e := range list {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && to == path {
			return true
		}
	}
	return false
}

// process is how people know a process.
func process(pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(raw) == 0 {
		return fmt.Sprintf("process %d", pid)
	}
	words := strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")
	words[0] = filepath.Base(words[0])
	line := strings.Join(words, " ")
	if len(line) > 80 {
		line = line[:80] + "..."
	}
	return fmt.Sprintf("%q (process %d)", line, pid)
}
