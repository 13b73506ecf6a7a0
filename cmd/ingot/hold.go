package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A process that works at a deployment holds a lock of the kernel's on a file
// of its own, which the record names. Whoever finds the lock free knows that the
// process has ended, however it did.
type hold struct {
	name string
	file *os.File
}

func (w *world) holds(name string) string { return w.private("deployments", filepath.Base(name)) }

// hold begins to hold; Release ends it.
func (w *world) hold() (*hold, error) {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	h := &hold{name: hex.EncodeToString(b[:])}
	path := w.holds(h.name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("hold the nodes: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("hold the nodes: %w", err)
	}
	h.file = f
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("hold the nodes: lock %q: %w", path, err), f.Close())
	}
	return h, nil
}

// Release lets go.
func (h *hold) Release() error {
	if h == nil {
		return nil
	}
	return errors.Join(os.Remove(h.file.Name()), h.file.Close())
}

// holderLives reports whether the process that has a hold is still there. What
// cannot be found out counts as yes.
func (w *world) holderLives(name string) bool {
	if name == "" {
		return false
	}
	f, err := os.Open(w.holds(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err != nil {
		return true
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil {
		return true
	}
	_ = os.Remove(f.Name()) // nobody holds it any more
	return false
}
