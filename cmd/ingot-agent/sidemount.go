package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ingot/rollback"
	"ingot/rollback/sides"
)

// Where this process mounts the parts of a node with two sides, for itself alone.
const (
	hereDir  = "/.ingot/sides/here"  // the side that runs, without what is mounted in it
	otherDir = "/.ingot/sides/other" // the other one
	envDir   = "/.ingot/sides/env"   // the boot loader's environment
)

// shared is where both sides have what they share.
const shared = "/" + sides.SharedDir

// sidesHere returns the configuration of a node with two sides, nil for others.
func sidesHere() (*sides.Config, error) {
	c, err := sides.Read("/")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return c, err
}

// isolate gives this process mounts of its own where the node has two sides:
// what it mounts is gone with it. The process begins anew in them, since a
// thread cannot take the others along.
func isolate() error {
	const word = "INGOT_ISOLATED"
	if c, err := sidesHere(); c == nil || err != nil || os.Getenv(word) != "" {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mounts of our own: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("mounts of our own: %w", err)
	}
	return syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), word+"=1"))
}

// pair is both sides of a node, mounted and open.
type pair struct {
	conf        *sides.Config
	here, other *rollback.Node
	mounts      []string
}

// openPair opens both sides. A switch of the other one that was interrupted is
// finished or undone first.
func openPair(conf *sides.Config) (p *pair, err error) {
	p = &pair{conf: conf}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if err := p.mount("/", hereDir, "", unix.MS_BIND, ""); err != nil {
		return p, err
	}
	if p.here, err = rollback.Open(hereDir, nil); err != nil {
		return p, err
	}
	p.here.Boots = true
	if err := p.mountOther(); err != nil {
		return p, err
	}
	if p.other, err = rollback.Open(otherDir, nil); err != nil {
		return p, err
	}
	_, err = p.other.Recover(context.Background())
	return p, err
}

// mount makes the directory and mounts there.
func (p *pair) mount(source, dir, fstype string, flags uintptr, data string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(source, dir, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s at %s: %w", source, dir, err)
	}
	p.mounts = append(p.mounts, dir)
	return nil
}

func (p *pair) mountOther() error {
	if err := os.MkdirAll(otherDir, 0o700); err != nil {
		return err
	}
	if err := mountDevice(p.conf.Roots[sides.Other(p.conf.Side)], otherDir, 0, 0); err != nil {
		return fmt.Errorf("the other side: %w", err)
	}
	p.mounts = append(p.mounts, otherDir)
	return nil
}

// again mounts the other side anew: what is read then comes from the disk.
func (p *pair) again() (err error) {
	if err := p.other.Close(); err != nil {
		return err
	}
	p.other = nil
	if err := unix.Unmount(otherDir, 0); err != nil {
		return fmt.Errorf("unmount the other side: %w", err)
	}
	p.mounts = slices.DeleteFunc(p.mounts, func(m string) bool { return m == otherDir })
	if err := p.mountOther(); err != nil {
		return err
	}
	p.other, err = rollback.Open(otherDir, nil)
	return err
}

// Close closes and unmounts both.
func (p *pair) Close() error {
	var errs []error
	for _, n := range []*rollback.Node{p.here, p.other} {
		if n != nil {
			errs = append(errs, n.Close())
		}
	}
	for _, dir := range slices.Backward(p.mounts) {
		errs = append(errs, unix.Unmount(dir, 0))
	}
	p.here, p.other, p.mounts = nil, nil, nil
	return errors.Join(errs...)
}

// withEnv mounts the file system of the boot loader's environment for fn.
func withEnv(conf *sides.Config, patience time.Duration, fn func(dir string) error) error {
	if err := os.MkdirAll(envDir, 0o700); err != nil {
		return err
	}
	if err := mountDevice(conf.Env, envDir, quiet, patience); err != nil {
		return fmt.Errorf("the boot loader's environment: %w", err)
	}
	return errors.Join(fn(envDir), unix.Unmount(envDir, 0))
}

// mountDevice finds a file system by its UUID and mounts it.
func mountDevice(d sides.Device, dir string, flags uintptr, patience time.Duration) error {
	data := ""
	if d.Subvol != "" {
		data = "subvol=" + d.Subvol
	}
	for end := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		all, err := devices()
		if err != nil {
			return err
		}
		for _, dev := range all {
			if dev.uuid != d.UUID {
				continue
			}
			if err := unix.Mount(dev.path, dir, d.FSType, flags, data); err != nil {
				return fmt.Errorf("mount %s (%s) at %s: %w", dev.path, d.FSType, dir, err)
			}
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("no device has the file system %s (%s)", d.UUID, d.FSType)
		}
	}
}

// probe is rollback.Probe, and tells FAT, too (Microsoft's FAT specification,
// 3.1 to 3.3: BS_FilSysType and BS_VolID).
func probe(r io.ReaderAt) (fstype, uuid string) {
	if fstype, uuid = rollback.Probe(r); fstype != "" {
		return fstype, uuid
	}
	b := make([]byte, 512)
	if _, err := r.ReadAt(b, 0); err != nil {
		return "", ""
	}
	for text, id := range map[int]int{0x36: 0x27, 0x52: 0x43} {
		if string(b[text:text+3]) == "FAT" {
			v := binary.LittleEndian.Uint32(b[id:])
			return "vfat", fmt.Sprintf("%04X-%04X", v>>16, v&0xffff)
		}
	}
	return "", ""
}

// syncAt makes durable what is on the file system of a directory.
func syncAt(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// copyAgent puts this program onto the other side.
func copyAgent(dir string) error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, ".ingot/agent")
	if err := os.WriteFile(path+".new", self, 0o700); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
