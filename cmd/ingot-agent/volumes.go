package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ingot/rollback"
)

// device is a block device and what its superblock says.
type device struct{ path, fstype, uuid string }

// parsePartitions lists the devices of /proc/partitions (proc(5)): a head, an
// empty line, and lines of major, minor, size and name.
func parsePartitions(b []byte) []string {
	var out []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 4 && f[0] != "major" {
			out = append(out, "/dev/"+strings.ReplaceAll(f[3], "!", "/")) // as sysfs writes a slash
		}
	}
	return out
}

// candidates lists the devices on which a volume may be, the likeliest first:
// the one that it was on, those with its UUID, all others of its type.
func candidates(v rollback.Volume, devices []device) []string {
	const never = 4
	rank := func(d device) int {
		switch {
		case d.fstype != family(v.FSType):
			return never
		case d.path == v.Source && d.uuid == v.UUID:
			return 0
		case v.UUID != "" && d.uuid == v.UUID:
			return 1
		case d.path == v.Source:
			return 2
		}
		return 3
	}
	list := slices.Clone(devices)
	slices.SortStableFunc(list, func(a, b device) int { return rank(a) - rank(b) })
	var out []string
	for _, d := range list {
		if rank(d) < never {
			out = append(out, d.path)
		}
	}
	return out
}

// family is the type that rollback.Probe has for a type of mount(8).
func family(fstype string) string {
	if fstype == "ext2" || fstype == "ext3" {
		return "ext4"
	}
	return fstype
}

// devices looks at all block devices.
func devices() ([]device, error) {
	b, err := os.ReadFile("/proc/partitions")
	if err != nil {
		return nil, err
	}
	var out []device
	for _, path := range parsePartitions(b) {
		f, err := os.Open(path)
		if err != nil {
			continue // a drive without a disk
		}
		d := device{path: path}
		d.fstype, d.uuid = probe(f)
		f.Close()
		out = append(out, d)
	}
	return out, nil
}

// disks are where volumes are looked for.
type disks struct {
	list     func() ([]device, error)
	patience time.Duration // for a disk to appear: init runs before all are there
}

// mount mounts what an interrupted switch of top needs, and returns how to
// leave it as it was.
func (d disks) mount(top string, vols []rollback.Volume) (leave func() error, err error) {
	var undo []func() error
	leave = func() error {
		var errs []error
		for _, f := range slices.Backward(undo) {
			errs = append(errs, f())
		}
		undo = nil
		return errors.Join(errs...)
	}
	for _, v := range vols { // parents first
		f, err := d.mountOne(filepath.Join(top, string(v.At)), v)
		if err != nil {
			return leave, fmt.Errorf("mount %q: %w", "/"+string(v.At), err)
		}
		undo = append(undo, f)
	}
	return leave, nil
}

// mountOne mounts one volume, wherever it is, or makes it writable where it is
// mounted already, as an initramfs does with /usr.
func (d disks) mountOne(dir string, v rollback.Volume) (undo func() error, err error) {
	if isMounted(dir) {
		if is, err := v.Is(dir); !is {
			return nil, errors.Join(errors.New("another file system is mounted there"), err)
		}
		return writable(dir)
	}
	for end := time.Now().Add(d.patience); ; time.Sleep(200 * time.Millisecond) {
		all, err := d.list()
		if err != nil {
			return nil, err
		}
		var tried []error
		for _, dev := range candidates(v, all) {
			err := tryMount(dev, dir, v)
			if err == nil {
				return func() error { return unix.Unmount(dir, 0) }, nil
			}
			tried = append(tried, fmt.Errorf("%s: %w", dev, err))
		}
		if time.Now().After(end) {
			return nil, errors.Join(append([]error{fmt.Errorf("no device has the file system (%s)", v)}, tried...)...)
		}
	}
}

// quiet are the flags of a mount that nothing is run from.
const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// tryMount mounts a device read-only, looks whether it is the volume, and only
// then makes it writable.
func tryMount(dev, dir string, v rollback.Volume) error {
	data := ""
	if v.Root != "" && v.Root != "/" {
		data = "subvol=" + v.Root
	}
	if err := unix.Mount(dev, dir, v.FSType, quiet|unix.MS_RDONLY, data); err != nil {
		return err
	}
	is, err := v.Is(dir)
	if is {
		err = unix.Mount("", dir, "", quiet|unix.MS_REMOUNT, "")
	} else if err == nil {
		err = errors.New("is another file system")
	}
	if err != nil {
		return errors.Join(err, unix.Unmount(dir, 0))
	}
	return nil
}

// writable makes a mounted file system writable until undo is called.
func writable(dir string) (undo func() error, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, err
	}
	if st.Flags&unix.ST_RDONLY == 0 {
		return func() error { return nil }, nil
	}
	flags := uintptr(st.Flags) & (unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC | unix.ST_NOATIME) // have the values of MS_* (statfs(2))
	if err := unix.Mount("", dir, "", flags|unix.MS_REMOUNT, ""); err != nil {
		return nil, err
	}
	return func() error { return unix.Mount("", dir, "", flags|unix.MS_REMOUNT|unix.MS_RDONLY, "") }, nil
}

// isMounted reports whether dir is on another file system than what it is in.
func isMounted(dir string) bool {
	var st, up unix.Stat_t
	return unix.Stat(dir, &st) == nil && unix.Stat(filepath.Join(dir, ".."), &up) == nil && st.Dev != up.Dev
}
