package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"ingot/rollback"
)

// startSystem is init= of an installed node: it recovers an interrupted
// change before any program of the tree runs, and then becomes the real init.
// Without a journal it costs one open(2). Whatever goes wrong, init is started:
// a machine that boots can be repaired.
func startSystem(args []string) {
	if err := recoverRoot(); err != nil {
		fmt.Fprintf(os.Stderr, "ingot-agent: recovery: %v\n", err)
		time.Sleep(3 * time.Second) // long enough to be read
	}
	var errs []error
	for _, path := range []string{"/sbin/init", "/etc/init", "/bin/init", "/bin/sh"} { // as the kernel tries them
		errs = append(errs, unix.Exec(path, append([]string{path}, args[1:]...), os.Environ()))
	}
	fmt.Fprintf(os.Stderr, "ingot-agent: no init: %v\n", errors.Join(errs...))
	for {
		time.Sleep(time.Hour) // process 1 must not end
	}
}

// recoverRoot recovers / when a journal lies there. The root is mounted
// read-only at this time, and is again afterwards, for init to check it.
func recoverRoot() error {
	f, err := os.Open("/.ingot/journal")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	f.Close()
	if err := mountProc(); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT, ""); err != nil {
		return fmt.Errorf("make / writable: %w", err)
	}
	err = recoverTree("/", os.Stderr)
	unix.Sync()
	return errors.Join(err, unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
}

// mountProc makes /proc, which metadata is set through; init mounts it again where it is missing.
func mountProc() error {
	if _, err := os.Stat("/proc/self"); err == nil {
		return nil
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

func recoverTree(top string, say io.Writer) error {
	n, err := rollback.Open(top, nil)
	if err != nil {
		return err
	}
	defer n.Close()
	n.Freeze = top == "/"
	out, err := n.Recover(context.Background())
	if err != nil {
		return err
	}
	fmt.Fprintf(say, "ingot-agent: %v\n", out)
	return nil
}
