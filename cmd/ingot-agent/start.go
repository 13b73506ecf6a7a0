package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"ingot/rollback"
)

// startSystem is init= of an installed node: it recovers an interrupted
// change before any program of the tree runs, takes back a generation that was
// on trial when the machine went down, and then becomes the real init. Where
// there is neither it costs a few system calls. Whatever goes wrong, init is
// started: a machine that boots can be repaired.
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

// recoverRoot recovers / and the other file systems of the switch, when that
// is needed. The root is mounted read-only at this time, and is again
// afterwards, for init to check it; the others are not mounted.
func recoverRoot() error {
	if need, err := unsettled("/"); !need {
		return err
	}
	if err := mountProc(); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT, ""); err != nil {
		return fmt.Errorf("make / writable: %w", err)
	}
	err := recoverVolumes("/", disks{devices, 20 * time.Second})
	unix.Sync()
	return errors.Join(err, unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
}

// unsettled reports whether a switch was interrupted, or a generation waits
// for its confirmation.
func unsettled(top string) (bool, error) {
	if _, err := os.Lstat(filepath.Join(top, ".ingot/journal")); !errors.Is(err, os.ErrNotExist) {
		return true, err
	}
	n, err := rollback.Open(top, nil)
	if err != nil {
		return false, err
	}
	defer n.Close()
	g, err := n.Current()
	if errors.Is(err, rollback.ErrNoGeneration) {
		return false, nil
	}
	return g.OnTrial(), err
}

// revertTree takes back a generation that nobody confirmed before the machine
// went down: whatever it did, the machine did not stay up with it.
func revertTree(top string, say io.Writer) error {
	n, err := rollback.Open(top, nil)
	if err != nil {
		return err
	}
	defer n.Close()
	g, err := n.Current()
	if err != nil || !g.OnTrial() {
		return err
	}
	if g, _, err = n.Revert(context.Background(), g.Number, "the machine was booted before it was confirmed"); err != nil {
		return err
	}
	fmt.Fprintf(say, "ingot-agent: generation %d: %s\n", g.Number, g.Note)
	return nil
}

// recoverVolumes mounts what else the switch, or the generation on trial, is
// about, recovers, takes back what is on trial, and leaves all of it to init.
func recoverVolumes(top string, d disks) error {
	vols, err := rollback.Volumes(top)
	if err != nil {
		return err
	}
	if len(vols) > 0 {
		if err := mountDev(); err != nil {
			return err
		}
	}
	leave, err := d.mount(top, vols)
	if err == nil {
		err = errors.Join(recoverTree(top, os.Stderr), revertTree(top, os.Stderr))
		unix.Sync()
	}
	return errors.Join(err, leave())
}

// mountDev makes /dev where no initramfs did.
func mountDev() error {
	if _, err := os.Stat("/dev/null"); err == nil {
		return nil
	}
	if err := unix.Mount("devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755"); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	return nil
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
