package rollback

import (
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
)

// looker reads the names in directories, and inodes, one call each. It is for
// one goroutine.
type looker struct {
	entry.Names
	sx unix.Statx_t
}

// stat looks at a name in the directory fd: statx(2) says
// what lstat says, and whether it is the root of a mount (Linux 5.8; before
// that a bind mount of the same file system is not seen) and has a flag of
// chattr(1) that forbids a rename.
func (k *looker) stat(fd int, name entry.Name) error {
	const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	for {
		_, _, errno := unix.Syscall6(unix.SYS_STATX, uintptr(fd), uintptr(unsafe.Pointer(k.C(name))), flags,
			unix.STATX_BASIC_STATS, uintptr(unsafe.Pointer(&k.sx)), 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		case unix.ENOSYS, unix.EPERM: // an old kernel, an old container
			return k.lstat(fd, strings.Clone(k.Text(name)))
		}
		return errno
	}
}

func (k *looker) lstat(fd int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT); err != nil {
		return err
	}
	ts := func(t unix.Timespec) unix.StatxTimestamp {
		return unix.StatxTimestamp{Sec: int64(t.Sec), Nsec: uint32(t.Nsec)} //nolint:unconvert // 32 bits on some architectures
	}
	k.sx = unix.Statx_t{Mode: uint16(st.Mode), Uid: st.Uid, Gid: st.Gid, Nlink: uint32(st.Nlink), Ino: st.Ino, Size: uint64(st.Size),
		Mtime: ts(st.Mtim), Ctime: ts(st.Ctim), Dev_major: unix.Major(uint64(st.Dev)), Dev_minor: unix.Minor(uint64(st.Dev)),
		Rdev_major: unix.Major(uint64(st.Rdev)), Rdev_minor: unix.Minor(uint64(st.Rdev))}
	return nil
}

func (k *looker) has(bit uint64) bool {
	return k.sx.Attributes_mask&bit != 0 && k.sx.Attributes&bit != 0
}

func (k *looker) mount() bool { return k.has(unix.STATX_ATTR_MOUNT_ROOT) }

// mounted reports whether a directory is the root of a mount.
func mounted(dir int) bool {
	k := &looker{}
	k.Set(".")
	return k.stat(dir, k.All[0]) == nil && k.mount()
}

func (k *looker) immutable() bool {
	return k.has(unix.STATX_ATTR_IMMUTABLE) || k.has(unix.STATX_ATTR_APPEND)
}

// state returns what identifies the state of the inode.
func (k *looker) state() entry.Stat {
	st := entry.StatOf(&unix.Stat_t{
		Dev: unix.Mkdev(k.sx.Dev_major, k.sx.Dev_minor), Ino: k.sx.Ino, Size: int64(k.sx.Size),
		Mtim: timespec(k.sx.Mtime), Ctim: timespec(k.sx.Ctime),
	})
	st.Nlink = uint64(k.sx.Nlink)
	return st
}

func timespec(t unix.StatxTimestamp) unix.Timespec {
	return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)}
}

// kind returns the type of the inode; 0 for a socket.
func (k *looker) kind() entry.Type {
	switch k.sx.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return entry.File
	case unix.S_IFDIR:
		return entry.Dir
	case unix.S_IFLNK:
		return entry.Symlink
	case unix.S_IFIFO:
		return entry.FIFO
	case unix.S_IFCHR:
		return entry.CharDevice
	case unix.S_IFBLK:
		return entry.BlockDevice
	}
	return 0
}

// entry returns what the inode shows, without attributes and link target: for
// what is not compared.
func (k *looker) entry(path string) *entry.Entry {
	return &entry.Entry{Path: path, Type: k.kind(), Mode: uint32(k.sx.Mode) & 0o7777, UID: k.sx.Uid, GID: k.sx.Gid, ModTime: k.state().MTime}
}

// shows reports whether the inode has all of e that it shows.
func (k *looker) shows(e *entry.Entry, st entry.Stat) bool {
	return k.kind() == e.Type && uint32(k.sx.Mode)&0o7777 == e.Mode && k.sx.Uid == e.UID && k.sx.Gid == e.GID &&
		st.MTime == e.ModTime && (e.Type != entry.File || st.Size == e.Size) &&
		(e.Type != entry.CharDevice && e.Type != entry.BlockDevice || k.sx.Rdev_major == e.Major && k.sx.Rdev_minor == e.Minor)
}
