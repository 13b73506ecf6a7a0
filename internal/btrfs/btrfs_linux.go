// Package btrfs makes, copies and removes subvolumes.
package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ioctls of include/uapi/linux/btrfs.h; their arguments have 4,096 bytes.
const (
	subvolCreate  = 0x5000940e // _IOW(0x94, 14, struct btrfs_ioctl_vol_args)
	snapDestroy   = 0x5000940f // _IOW(0x94, 15, struct btrfs_ioctl_vol_args)
	snapCreateV2  = 0x50009417 // _IOW(0x94, 23, struct btrfs_ioctl_vol_args_v2)
	subvolRootRef = 0xd000943d // _IOWR(0x94, 61, struct btrfs_ioctl_get_subvol_rootref_args), Linux 4.18

	readOnly = 1 << 1 // BTRFS_SUBVOL_RDONLY
	firstIno = 256    // BTRFS_FIRST_FREE_OBJECTID: the top of every subvolume
)

// ErrNoSubvolume says that a directory is not the top of a subvolume.
var ErrNoSubvolume = errors.New("it is no btrfs subvolume")

// args are the arguments of most of the ioctls.
type args [4096]byte

// named are those of struct btrfs_ioctl_vol_args: name is of a subvolume in a directory.
func named(name string) *args {
	var a args
	copy(a[8:len(a)-1], name)
	return &a
}

func ioctl(f *os.File, req uintptr, a *args) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), req, uintptr(unsafe.Pointer(a))); errno != 0 {
		return errno
	}
	return nil
}

// IsSubvolume reports whether dir is the top of a subvolume: nil or ErrNoSubvolume.
func IsSubvolume(dir string) error {
	var sfs unix.Statfs_t
	var st unix.Stat_t
	if err := unix.Statfs(dir, &sfs); err != nil {
		return err
	}
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	if sfs.Type != unix.BTRFS_SUPER_MAGIC || st.Ino != firstIno {
		return ErrNoSubvolume
	}
	return nil
}

// Create makes an empty subvolume in a directory.
func Create(dir *os.File, name string) error {
	if err := ioctl(dir, subvolCreate, named(name)); err != nil {
		return fmt.Errorf("make the subvolume %q: %w", name, err)
	}
	return nil
}

// Snapshot makes a subvolume in a directory that has what the one whose top is
// src has, without those in it.
func Snapshot(src, dir *os.File, name string, ro bool) error {
	var a args
	binary.NativeEndian.PutUint64(a[0:], uint64(src.Fd()))
	if ro {
		binary.NativeEndian.PutUint64(a[16:], readOnly)
	}
	copy(a[56:], name)
	if err := ioctl(dir, snapCreateV2, &a); err != nil {
		return fmt.Errorf("make a btrfs snapshot: %w", err)
	}
	return nil
}

// Delete removes a subvolume. One that is not there: os.ErrNotExist.
func Delete(dir *os.File, name string) error {
	if err := ioctl(dir, snapDestroy, named(name)); err != nil {
		return fmt.Errorf("remove the subvolume %q: %w", name, err)
	}
	return nil
}

// Exchange exchanges the names of two subvolumes in a directory, in one step.
func Exchange(dir *os.File, x, y string) error {
	if err := unix.Renameat2(int(dir.Fd()), x, int(dir.Fd()), y, unix.RENAME_EXCHANGE); err != nil {
		return fmt.Errorf("exchange the subvolumes %q and %q: %w", x, y, err)
	}
	return nil
}

// Nested counts the subvolumes in the one whose top is top, up to 255.
func Nested(top *os.File) (int, error) {
	var a args
	if err := ioctl(top, subvolRootRef, &a); err != nil && !errors.Is(err, unix.EOVERFLOW) { // there are more
		return 0, err
	}
	return int(a[8+255*16]), nil
}
