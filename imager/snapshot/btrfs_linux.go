package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ioctls of include/uapi/linux/btrfs.h; their arguments have 4,096 bytes.
const (
	btrfsSnapCreateV2 = 0x50009417 // _IOW(0x94, 23, struct btrfs_ioctl_vol_args_v2)
	btrfsSnapDestroy  = 0x5000940f // _IOW(0x94, 15, struct btrfs_ioctl_vol_args)
	btrfsRootRef      = 0xd000943d // _IOWR(0x94, 61, struct btrfs_ioctl_get_subvol_rootref_args), Linux 4.18

	btrfsReadOnly = 1 << 1 // BTRFS_SUBVOL_RDONLY
	btrfsFirstIno = 256    // BTRFS_FIRST_FREE_OBJECTID: the top of every subvolume
)

var errNoSubvolume = errors.New("it is no btrfs subvolume")

// isSubvolume reports whether dir is the top of a btrfs subvolume.
func isSubvolume(dir string) error {
	var sfs unix.Statfs_t
	var st unix.Stat_t
	if err := unix.Statfs(dir, &sfs); err != nil {
		return err
	}
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	if sfs.Type != unix.BTRFS_SUPER_MAGIC || st.Ino != btrfsFirstIno {
		return errNoSubvolume
	}
	return nil
}

// btrfs makes a read-only snapshot of the subvolume top.
func (st *state) btrfs(top string) (*Snapshot, error) {
	src, err := os.Open(top)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	if n, err := nested(src); err != nil {
		return nil, fmt.Errorf("list subvolumes: %w", err)
	} else if n > 0 {
		return nil, fmt.Errorf("it has %d subvolumes of its own, which a snapshot leaves out (`btrfs subvolume list -o`)", n)
	}
	name := fmt.Sprintf("capture-%d-%d", os.Getpid(), time.Now().UnixNano())
	var arg [4096]byte
	binary.NativeEndian.PutUint64(arg[0:], uint64(src.Fd()))
	binary.NativeEndian.PutUint64(arg[16:], btrfsReadOnly)
	copy(arg[56:], name)
	if err := st.ioctl(btrfsSnapCreateV2, &arg); err != nil {
		return nil, fmt.Errorf("make a btrfs snapshot: %w", err)
	}
	return &Snapshot{Dir: filepath.Join(st.dir, name), Note: "captured from a btrfs snapshot", release: func() error { return st.destroy(name) }}, nil
}

// nested counts the subvolumes in a subvolume, up to 255.
func nested(top *os.File) (int, error) {
	var arg [4096]byte
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, top.Fd(), btrfsRootRef, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 && errno != unix.EOVERFLOW { // there are more
		return 0, errno
	}
	return int(arg[8+255*16]), nil
}

// destroy removes one snapshot.
func (st *state) destroy(name string) error {
	var arg [4096]byte
	copy(arg[8:4095], name)
	if err := st.ioctl(btrfsSnapDestroy, &arg); err != nil {
		return fmt.Errorf("remove the snapshot %q: %w", filepath.Join(st.dir, name), err)
	}
	return nil
}

func (st *state) ioctl(req uintptr, arg *[4096]byte) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, st.f.Fd(), req, uintptr(unsafe.Pointer(arg))); errno != 0 {
		return errno
	}
	return nil
}
