package entry

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MetaError is a piece of metadata that could not be set.
type MetaError struct {
	What string // "owner", "mode", "times" or `xattr "name"`
	Err  error
}

func (e *MetaError) Error() string { return fmt.Sprintf("set %s: %v", e.What, e.Err) }

func (e *MetaError) Unwrap() error { return e.Err }

// SetMetaAt gives name in the directory dirfd the owner, extended attributes,
// mode and modification time of e, in this order, which is the only one that
// keeps all of them: chown clears capabilities and setuid, setting an ACL
// changes the mode, and everything may touch the times. Values are absolute:
// attributes that e does not have are removed. It never follows a symbolic
// link, and does not check that the type is e's. It needs /proc.
//
// Every step is tried; the error joins a *MetaError for each that failed.
// When the owner could not be set, setuid and setgid are not either.
func SetMetaAt(dirfd int, name string, e *Entry) error {
	fd, err := unix.Openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set metadata of %q: %w", name, err)
	}
	defer unix.Close(fd)
	// One inode from here on, whatever happens to its name: the links of
	// /proc/self/fd lead to it, even where it is itself a symbolic link.
	proc := "/proc/self/fd/" + strconv.Itoa(fd)
	return apply(e, setter{
		chown: func(uid, gid int) error { return unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH) },
		list:  func(b []byte) (int, error) { return unix.Listxattr(proc, b) },
		get:   func(n string, b []byte) (int, error) { return unix.Getxattr(proc, n, b) },
		set:   func(n string, v []byte) error { return unix.Setxattr(proc, n, v, 0) },
		rm:    func(n string) error { return unix.Removexattr(proc, n) },
		chmod: func(mode uint32) error { return unix.Chmod(proc, mode) },
		times: func(ts *[2]unix.Timespec) error { return unix.UtimesNanoAt(unix.AT_FDCWD, proc, ts[:], 0) },
	})
}

// SetMetaFd is SetMetaAt on an open file (not O_PATH); it needs no /proc.
func SetMetaFd(fd int, e *Entry) error {
	return apply(e, setter{
		chown: func(uid, gid int) error { return unix.Fchown(fd, uid, gid) },
		list:  func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		get:   func(n string, b []byte) (int, error) { return unix.Fgetxattr(fd, n, b) },
		set:   func(n string, v []byte) error { return unix.Fsetxattr(fd, n, v, 0) },
		rm:    func(n string) error { return unix.Fremovexattr(fd, n) },
		chmod: func(mode uint32) error { return unix.Fchmod(fd, mode) },
		times: func(ts *[2]unix.Timespec) error { return futimens(fd, ts) },
	})
}

// SetFreshFd is SetMetaFd for a file or directory that was just made and is
// known to have no attributes, and the owner and mode of have: what is right
// already costs no call.
func SetFreshFd(fd int, have, e *Entry) error {
	var errs []error
	mode := e.Mode
	owner := have.UID == e.UID && have.GID == e.GID
	if !owner {
		if err := unix.Fchown(fd, int(e.UID), int(e.GID)); err != nil {
			errs = append(errs, &MetaError{What: "owner", Err: err})
			mode &^= unix.S_ISUID | unix.S_ISGID
		}
	}
	for _, x := range e.Xattrs {
		if err := unix.Fsetxattr(fd, x.Name, []byte(x.Value), 0); err != nil {
			errs = append(errs, &MetaError{What: fmt.Sprintf("xattr %q", x.Name), Err: err})
		}
	}
	if !owner || len(e.Xattrs) > 0 || have.Mode != mode {
		if err := unix.Fchmod(fd, mode); err != nil {
			errs = append(errs, &MetaError{What: "mode", Err: err})
		}
	}
	ts := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(e.ModTime)}
	if err := futimens(fd, &ts); err != nil {
		errs = append(errs, &MetaError{What: "times", Err: err})
	}
	return errors.Join(errs...)
}

// setter are the calls that change one inode.
type setter struct {
	chown func(uid, gid int) error
	list  func([]byte) (int, error)
	get   func(string, []byte) (int, error)
	set   func(string, []byte) error
	rm    func(string) error
	chmod func(uint32) error
	times func(*[2]unix.Timespec) error
}

func apply(e *Entry, s setter) error {
	var errs []error
	fail := func(what string, err error) {
		if err != nil {
			errs = append(errs, &MetaError{What: what, Err: err})
		}
	}
	mode := e.Mode
	if err := s.chown(int(e.UID), int(e.GID)); err != nil {
		fail("owner", err)
		mode &^= unix.S_ISUID | unix.S_ISGID
	}
	applyXattrs(e, s, fail)
	if e.Type != Symlink { // the mode of a link means nothing and cannot be set
		fail("mode", s.chmod(mode))
	}
	ts := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(e.ModTime)}
	fail("times", s.times(&ts))
	return errors.Join(errs...)
}

func applyXattrs(e *Entry, s setter, fail func(string, error)) {
	names, err := listXattrs(s.list)
	if err != nil {
		fail("xattrs", err)
		return
	}
	for _, name := range names {
		has := func(x Xattr) bool { return x.Name == name }
		if slices.ContainsFunc(e.Xattrs, has) {
			continue
		}
		err := s.rm(name)
		if name == "security.selinux" && errors.Is(err, unix.EACCES) {
			continue // with a policy loaded every file has a label (selinux_inode_removexattr)
		}
		fail(fmt.Sprintf("xattr %q", name), err)
	}
	for _, x := range e.Xattrs {
		if slices.Contains(names, x.Name) {
			if v, err := readXattr(x.Name, s.get); err == nil && v == x.Value {
				continue
			}
		}
		fail(fmt.Sprintf("xattr %q", x.Name), s.set(x.Name, []byte(x.Value)))
	}
}

// futimens is utimensat(2) without a path, which x/sys does not offer.
func futimens(fd int, ts *[2]unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
