package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/btrfs"
	"ingot/internal/durable"
	"ingot/rollback"
	"ingot/rollback/sides"
)

// Where this process mounts the parts of a node with two sides, for itself alone.
const (
	hereDir  = "/.ingot/sides/here"  // the side that runs, without what is mounted in it
	otherDir = "/.ingot/sides/other" // the other one
	envDir   = "/.ingot/sides/env"   // the boot loader's environment
	topDir   = "/.ingot/sides/top"   // a btrfs that has the sides as subvolumes
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

// sharedHere says that what both sides share is not there: nothing may be made
// of the node then, as its homes and data would not be seen.
func sharedHere(conf *sides.Config) error {
	var top, at unix.Stat_t
	err := errors.Join(unix.Stat("/", &top), unix.Stat(shared, &at))
	if err == nil && top.Dev == at.Dev {
		err = errors.New("it is not mounted")
	}
	if err != nil {
		return fmt.Errorf("what both sides share (%s, UUID %s, at %s): %w: mend it, and start the machine anew", conf.Shared.FSType, conf.Shared.UUID, shared, err)
	}
	return nil
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
	next        bool // other is a subvolume that will be the other side
	mounts      []string
	lock        *os.File // nobody else works at the other side
}

// openPair opens both sides. A switch of the other one that was interrupted is
// finished or undone first. With anew the other one will be written from an
// image: where it is a subvolume, it is a new one, and begins as a snapshot of
// the side that runs; adopt makes it the other side.
func openPair(conf *sides.Config, anew bool) (p *pair, err error) {
	p = &pair{conf: conf}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if p.lock, err = lockPair(pairLock); err != nil {
		return p, err
	}
	if err := p.mount("/", hereDir, "", unix.MS_BIND, ""); err != nil {
		return p, err
	}
	if p.here, err = rollback.Open(hereDir, nil); err != nil {
		return p, err
	}
	p.here.Boots = true
	if anew && conf.Subvolumes() {
		if err := p.snapshot(); err != nil {
			return p, err
		}
	}
	if err := p.mountOther(); err != nil {
		return p, err
	}
	if p.other, err = rollback.Open(otherDir, nil); err != nil {
		return p, err
	}
	_, err = p.other.Recover(context.Background())
	return p, err
}

// pairLock is held, by flock, by who works at the other side: from the plan on,
// since the subvolume that a push prepares has one name.
const pairLock = "/.ingot/sides/lock"

// lockPair takes the lock, or says who has it.
func lockPair(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		who, _ := lockHolder(path)
		return nil, errors.Join(&rollback.BusyError{Holder: who}, f.Close())
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = fmt.Fprintf(f, "the other side, process %d, since %s\n", os.Getpid(), time.Now().UTC().Format(time.RFC3339)) // for people only
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the sides: %w", err), f.Close())
	}
	return f, nil
}

// snapshot makes the subvolume that will be the other side.
func (p *pair) snapshot() error {
	if err := os.MkdirAll(topDir, 0o700); err != nil {
		return err
	}
	whole := p.conf.Shared
	whole.Subvol = "/"
	if err := mountDevice(whole, topDir, 0, 0); err != nil {
		return err
	}
	p.mounts = append(p.mounts, topDir)
	p.next = true
	here, err := os.Open(hereDir)
	if err != nil {
		return err
	}
	defer here.Close()
	return withTop(func(top *os.File) error {
		if err := btrfs.Delete(top, sides.NextSubvol); err != nil && !errors.Is(err, os.ErrNotExist) { // of a push that was cut off
			return err
		}
		return btrfs.Snapshot(here, top, sides.NextSubvol, false)
	})
}

// adopt makes what was written the other side, in one step, where it is not
// that already. What the side was is then called as the new one was until now.
func (p *pair) adopt() error {
	if !p.next {
		return nil
	}
	return withTop(func(top *os.File) error {
		side := p.conf.Roots[sides.Other(p.conf.Side)].Subvol
		if err := btrfs.Exchange(top, sides.NextSubvol, side); err != nil {
			return err
		}
		return unix.Syncfs(int(top.Fd()))
	})
}

func withTop(fn func(top *os.File) error) error {
	top, err := os.Open(topDir)
	if err != nil {
		return err
	}
	return errors.Join(fn(top), top.Close())
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
	side := sides.Other(p.conf.Side)
	d := p.conf.Roots[side]
	if p.next {
		d.Subvol = sides.NextSubvol
	}
	if err := mountDevice(d, otherDir, 0, 0); err != nil {
		return &sideGoneError{side, d, err}
	}
	p.mounts = append(p.mounts, otherDir)
	return nil
}

// sideGoneError says that the root file system of a side cannot be mounted.
type sideGoneError struct {
	side   string
	device sides.Device
	err    error
}

func (e *sideGoneError) Error() string { return fmt.Sprintf("side %s: %v", e.side, e.err) }
func (e *sideGoneError) Unwrap() error { return e.err }

// hint is how to make it again: a push writes all of it.
func (e *sideGoneError) hint() string {
	mkfs := "mkfs." + e.device.FSType + " -U " + e.device.UUID
	switch e.device.FSType {
	case "btrfs": // it runs from another subvolume of the same
		return "push an image: that makes the subvolume anew"
	case "xfs":
		mkfs = "mkfs.xfs -f -m uuid=" + e.device.UUID
	}
	return fmt.Sprintf("check the disk; `%s PARTITION` on the node makes an empty file system for this side, and the next push fills it", mkfs)
}

// again mounts the other side anew: what is read then comes from the disk. A
// subvolume is of a file system that stays mounted: of that the pages are let go.
func (p *pair) again() (err error) {
	if p.conf.Subvolumes() {
		return errors.Join(durable.SyncFS(otherDir), forget(otherDir))
	}
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
		if dir == topDir {
			errs = append(errs, withTop(func(top *os.File) error {
				err := btrfs.Delete(top, sides.NextSubvol)
				if errors.Is(err, os.ErrNotExist) {
					return nil
				}
				return err
			}))
		}
		errs = append(errs, unix.Unmount(dir, 0))
	}
	if p.lock != nil {
		errs = append(errs, p.lock.Close())
	}
	p.here, p.other, p.mounts, p.lock = nil, nil, nil, nil
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
	path, err := findDevice(d, patience)
	if err != nil {
		return err
	}
	data := ""
	if d.Subvol != "" {
		data = "subvol=" + d.Subvol
	}
	if err := unix.Mount(path, dir, d.FSType, flags, data); err != nil {
		return fmt.Errorf("mount %s (%s) at %s: %w", path, d.FSType, dir, err)
	}
	return nil
}

// findDevice finds a file system by its UUID, and waits for it.
func findDevice(d sides.Device, patience time.Duration) (path string, err error) {
	for end := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		all, err := devices()
		if err != nil {
			return "", err
		}
		for _, dev := range all {
			if dev.uuid == d.UUID {
				return dev.path, nil
			}
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("no device has the file system %s (%s)", d.UUID, d.FSType)
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

// forget makes the kernel give up what it has in memory of the files of a tree
// that are on its disk already: posix_fadvise(2).
func forget(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NOATIME|unix.O_CLOEXEC, 0)
		if err != nil {
			return &fs.PathError{Op: "open", Path: path, Err: err}
		}
		return errors.Join(unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED), unix.Close(fd))
	})
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
