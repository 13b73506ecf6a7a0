package entry

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sort"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrSocket is returned for a socket: it means nothing without the process
// that listens on it, so trees do not hold sockets.
var ErrSocket = errors.New("is a socket")

// ReadAt reads the metadata of name in the directory dirfd, without following
// a symbolic link: everything but Path, Link, Holes and Chunks. It needs /proc
// (xattrs have no *at calls before Linux 6.13). dirfd may be unix.AT_FDCWD.
// A socket gives ErrSocket; a symbolic link that is replaced while it is read
// is gone (fs.ErrNotExist).
func ReadAt(dirfd int, name string) (Entry, Stat, error) { return ReadKnownAt(dirfd, name, nil) }

// ReadKnownAt is ReadAt where the extended attributes of a regular file may
// be known by its state; known may be nil.
func ReadKnownAt(dirfd int, name string, known func(Stat) ([]Xattr, bool)) (Entry, Stat, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT); err != nil {
		return Entry{}, Stat{}, fmt.Errorf("stat %q: %w", name, err)
	}
	e, err := fromStat(&st)
	if err != nil {
		return Entry{}, Stat{}, fmt.Errorf("read %q: %w", name, err)
	}
	if e.Type == Symlink {
		e.Target, err = readlinkAt(dirfd, name, st.Size)
		if errors.Is(err, unix.EINVAL) { // it is none now (readlink(2))
			err = unix.ENOENT
		}
		if err != nil {
			return Entry{}, Stat{}, fmt.Errorf("read link %q: %w", name, err)
		}
	}
	state := StatOf(&st)
	if e.Type == File && known != nil {
		if xattrs, ok := known(state); ok {
			e.Xattrs = xattrs
			return e, state, nil
		}
	}
	if e.Xattrs, err = xattrsAt(dirfd, name); err != nil {
		return Entry{}, Stat{}, fmt.Errorf("read xattrs of %q: %w", name, err)
	}
	return e, state, nil
}

// ReadFd is ReadAt for an open file (not O_PATH); a symbolic link cannot be one.
func ReadFd(fd int) (Entry, Stat, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Entry{}, Stat{}, fmt.Errorf("stat: %w", err)
	}
	e, err := fromStat(&st)
	if err != nil {
		return Entry{}, Stat{}, err
	}
	names, err := listXattrs(func(b []byte) (int, error) { return unix.Flistxattr(fd, b) })
	if err == nil && len(names) > 0 {
		e.Xattrs, err = readXattrs(names, func(n string, b []byte) (int, error) { return unix.Fgetxattr(fd, n, b) })
	}
	if err != nil {
		return Entry{}, Stat{}, fmt.Errorf("read xattrs: %w", err)
	}
	return e, StatOf(&st), nil
}

// StatOf returns what identifies the state of the inode that st describes.
func StatOf(st *unix.Stat_t) Stat {
	return Stat{
		Dev: uint64(st.Dev), Ino: st.Ino, Size: st.Size, //nolint:unconvert // differs by architecture
		MTime: nanos(st.Mtim), CTime: nanos(st.Ctim), Nlink: uint64(st.Nlink),
	}
}

// StatAt returns the Stat of name in dirfd, not following a symbolic link.
func StatAt(dirfd int, name string) (Stat, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT); err != nil {
		return Stat{}, fmt.Errorf("stat %q: %w", name, err)
	}
	return StatOf(&st), nil
}

func fromStat(st *unix.Stat_t) (Entry, error) {
	e := Entry{Mode: st.Mode & 07777, UID: st.Uid, GID: st.Gid, ModTime: nanos(st.Mtim)}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Type, e.Size = File, st.Size
	case unix.S_IFDIR:
		e.Type = Dir
	case unix.S_IFLNK:
		e.Type = Symlink
	case unix.S_IFIFO:
		e.Type = FIFO
	case unix.S_IFCHR:
		e.Type, e.Major, e.Minor = CharDevice, unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))
	case unix.S_IFBLK:
		e.Type, e.Major, e.Minor = BlockDevice, unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))
	case unix.S_IFSOCK:
		return Entry{}, ErrSocket
	default:
		return Entry{}, fmt.Errorf("unknown file type %#o", st.Mode&unix.S_IFMT)
	}
	return e, nil
}

// nanos saturates: 64 bits of nanoseconds end in the year 2262, inodes later.
func nanos(ts unix.Timespec) int64 {
	const last = math.MaxInt64/1_000_000_000 - 1
	switch sec := int64(ts.Sec); { //nolint:unconvert // 32 bits on some architectures
	case sec > last:
		return math.MaxInt64
	case sec < -last:
		return math.MinInt64
	}
	return ts.Nano()
}

func readlinkAt(dirfd int, name string, size int64) (string, error) {
	for n := max(int(size), 128) + 1; ; n *= 2 {
		buf := make([]byte, n)
		got, err := unix.Readlinkat(dirfd, name, buf)
		if err != nil {
			return "", err
		}
		if got < n {
			return string(buf[:got]), nil
		}
	}
}

// procPath names dirfd/name for calls that take only a path. The last
// component is not followed by the l*xattr calls that it is meant for.
func procPath(dirfd int, name string) string {
	if dirfd == unix.AT_FDCWD {
		return name
	}
	return "/proc/self/fd/" + strconv.Itoa(dirfd) + "/" + name
}

func xattrsAt(dirfd int, name string) ([]Xattr, error) {
	names, err := listXattrs(func(b []byte) (int, error) { return listXattrAt(dirfd, name, b) })
	if err != nil || len(names) == 0 {
		return nil, err
	}
	path := procPath(dirfd, name)
	return readXattrs(names, func(name string, b []byte) (int, error) { return unix.Lgetxattr(path, name, b) })
}

// listXattrAt is listxattrat(2) of Linux 6.13, which spares most entries, as
// they have no attributes, the way through /proc; older kernels take that way.
func listXattrAt(dirfd int, name string, b []byte) (int, error) {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	n, _, errno := unix.Syscall6(unix.SYS_LISTXATTRAT, uintptr(dirfd), uintptr(unsafe.Pointer(p)), unix.AT_SYMLINK_NOFOLLOW,
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.ENOSYS, unix.EPERM: // a seccomp filter says EPERM of what it does not know
		return unix.Llistxattr(procPath(dirfd, name), b)
	}
	return 0, errno
}

// listXattrs returns the sorted names of the attributes that trees hold.
func listXattrs(list func([]byte) (int, error)) ([]string, error) {
	var small [512]byte
	buf := small[:]
	n, err := list(buf)
	for tries := 0; errors.Is(err, unix.ERANGE) && tries < 8; tries++ {
		if n, err = list(nil); err != nil {
			break
		}
		buf = make([]byte, n+256)
		n, err = list(buf)
	}
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, name := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if held(name) {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names, nil
}

// held reports whether an attribute belongs to the entry rather than to the
// file system it is on: of system.* only POSIX ACLs (others are views of NFS
// or CIFS servers), no btrfs.* properties, no EVM signature (it covers the
// inode number).
func held(name string) bool {
	switch {
	case strings.HasPrefix(name, "system."):
		return name == "system.posix_acl_access" || name == "system.posix_acl_default"
	case strings.HasPrefix(name, "btrfs."):
		return false
	}
	return name != "security.evm"
}

func readXattrs(names []string, get func(string, []byte) (int, error)) ([]Xattr, error) {
	out := make([]Xattr, 0, len(names))
	for _, name := range names {
		v, err := readXattr(name, get)
		if errors.Is(err, unix.ENODATA) { // gone since it was listed
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		out = append(out, Xattr{Name: name, Value: v})
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

func readXattr(name string, get func(string, []byte) (int, error)) (string, error) {
	var small [256]byte
	buf := small[:]
	for {
		n, err := get(name, buf)
		if err == nil {
			return string(buf[:n]), nil
		}
		if !errors.Is(err, unix.ERANGE) || len(buf) > 1<<16 {
			return "", err
		}
		buf = make([]byte, 1<<16+1) // XATTR_SIZE_MAX, include/uapi/linux/limits.h
	}
}

// HolesOf returns the holes of f in [0,size), as SEEK_HOLE and SEEK_DATA show
// them (lseek(2)); none where the file system cannot tell. It moves f's offset.
func HolesOf(f *os.File, size int64) ([]Extent, error) {
	holes, err := HolesOfFd(int(f.Fd()), size)
	if err != nil {
		return nil, fmt.Errorf("find holes of %q: %w", f.Name(), err)
	}
	return holes, nil
}

// HolesOfFd is HolesOf for a bare descriptor.
func HolesOfFd(fd int, size int64) ([]Extent, error) {
	var holes []Extent
	for pos := int64(0); pos < size; {
		data, err := unix.Seek(fd, pos, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO):
			data = size
		case errors.Is(err, unix.EINVAL) && pos == 0:
			return nil, nil
		case err != nil:
			return nil, err
		}
		data = min(data, size)
		if data > pos {
			holes = append(holes, Extent{Off: pos, Len: data - pos})
		}
		if data >= size {
			break
		}
		pos, err = unix.Seek(fd, data, unix.SEEK_HOLE)
		if errors.Is(err, unix.ENXIO) { // truncated meanwhile: the caller notices by its size
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return holes, nil
}
