package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ingot/rollback"
)

// startSystem is init= of an installed node: it recovers an interrupted
// change before any program of the tree runs, takes back a generation that was
// on trial when the machine went down, and then becomes the real init. Where
// there is neither it costs a few system calls. Whatever goes wrong, init is
// started: a machine that boots can be repaired.
//
// Where that changed the kernel, the one that runs may be of the generation
// that was left: the machine is booted once more.
func startSystem(args []string) {
	args, back := cutWord(args[1:], backWord)
	boot, err := recoverRoot(back)
	if err != nil {
		fmt.Fprintf(os.Stderr, "ingot-agent: recovery: %v\n", err)
		time.Sleep(3 * time.Second) // long enough to be read
	} else if boot {
		fmt.Fprintln(os.Stderr, "ingot-agent: the kernel has changed: the machine boots again")
		unix.Sync()
		fmt.Fprintln(os.Stderr, unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
	}
	if err := startSide(); err != nil {
		fmt.Fprintf(os.Stderr, "ingot-agent: %v\n", err)
		time.Sleep(10 * time.Second)
	}
	var errs []error
	for _, path := range []string{"/sbin/init", "/etc/init", "/bin/init", "/bin/sh"} { // as the kernel tries them
		errs = append(errs, unix.Exec(path, append([]string{path}, args...), os.Environ()))
	}
	fmt.Fprintf(os.Stderr, "ingot-agent: no init: %v\n", errors.Join(errs...))
	for {
		time.Sleep(time.Hour) // process 1 must not end
	}
}

// backWord is what the boot entry of the generation before tells the kernel,
// which hands words that it does not know to init.
const backWord = "ingot-rollback"

func cutWord(args []string, word string) (rest []string, found bool) {
	i := slices.Index(args, word)
	if i < 0 {
		return args, false
	}
	return slices.Delete(slices.Clone(args), i, i+1), true
}

// recoverRoot recovers / and the other file systems of the switch, when that
// is needed; back says that somebody chose the generation before. The root is
// mounted read-only at this time, and is again afterwards, for init to check
// it; the others are not mounted. boot reports that what the loader reads changed.
func recoverRoot(back bool) (boot bool, err error) {
	if need, err := unsettled("/"); !need && !back {
		return false, err
	}
	if err := mountProc(); err != nil {
		return false, err
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT, ""); err != nil {
		return false, fmt.Errorf("make / writable: %w", err)
	}
	boot, err = recoverVolumes("/", disks{devices, 20 * time.Second}, back)
	unix.Sync()
	return boot, errors.Join(err, unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
}

// unsettled reports whether a switch was interrupted, a generation waits for
// its confirmation, or the loader has not been told of it.
func unsettled(top string) (bool, error) {
	for _, sign := range []string{".ingot/journal", ".ingot/boot/trial"} {
		if _, err := os.Lstat(filepath.Join(top, sign)); !errors.Is(err, os.ErrNotExist) {
			return true, err
		}
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
// went down: whatever it did, the machine did not stay up with it. With back
// it goes to the generation before in any case, and the kernel that runs is the
// one before the last other one, which need not be that generation's.
func revertTree(top string, back bool, say io.Writer) (boot bool, err error) {
	n, err := rollback.Open(top, nil)
	if err != nil {
		return false, err
	}
	defer n.Close()
	n.Boots = top == "/"
	g, err := n.Current()
	if err != nil || !g.OnTrial() && !back {
		return false, err
	}
	var plan *rollback.Plan
	if g.OnTrial() {
		g, plan, err = n.Revert(context.Background(), g.Number, "the machine was booted before it was confirmed")
	} else {
		g, plan, err = n.TakeBack(context.Background(), "boot entry of the generation before")
	}
	if err != nil {
		return false, err
	}
	fmt.Fprintf(say, "ingot-agent: generation %d: %s\n", g.Number, g.Note)
	return plan.TouchesBoot() || back, nil
}

// recoverVolumes mounts what else the switch, or the generation on trial, is
// about, recovers, takes back what is on trial, and leaves all of it to init.
func recoverVolumes(top string, d disks, back bool) (boot bool, err error) {
	vols, err := rollback.Volumes(top, back)
	if err != nil {
		return false, err
	}
	if len(vols) > 0 {
		if err := mountDev(); err != nil {
			return false, err
		}
	}
	leave, err := d.mount(top, vols)
	if err == nil {
		var first, second bool
		first, err = recoverTree(top, os.Stderr)
		if err == nil {
			second, err = revertTree(top, back, os.Stderr)
		}
		boot = first || second
		unix.Sync()
	}
	return boot, errors.Join(err, leave())
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

func recoverTree(top string, say io.Writer) (boot bool, err error) {
	n, err := rollback.Open(top, nil)
	if err != nil {
		return false, err
	}
	defer n.Close()
	n.Boots = top == "/"
	out, err := n.Recover(context.Background())
	if err != nil {
		return false, err
	}
	fmt.Fprintf(say, "ingot-agent: %v\n", out)
	return out.Boot, nil
}
