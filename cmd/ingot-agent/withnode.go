package main

import (
	"errors"
	"os"
	"path/filepath"

	"ingot/rollback"
)

// withNode runs fn on the generations of a tree.
func withNode(dir string, fn func(*rollback.Node) error) error {
	n, err := rollback.Open(dir, nil)
	if err != nil {
		return err
	}
	if n.Boots = dir == "/"; n.Boots {
		n.Running = rollback.RunningKernel()
	}
	return errors.Join(underWay(dir, fn(n)), n.Close())
}

// underWay tells a switch of somebody else that is under way, or has just
// ended, from one that was interrupted: both have a journal.
func underWay(dir string, err error) error {
	if !errors.Is(err, rollback.ErrInterrupted) {
		return err
	}
	if who, held := holder(dir); held {
		return &rollback.BusyError{Holder: who}
	}
	if _, statErr := os.Lstat(filepath.Join(dir, ".ingot/journal")); errors.Is(statErr, os.ErrNotExist) {
		return &rollback.BusyError{}
	}
	return err
}
