package rollback

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
)

// sys makes every change on the disk. Tests put a hook before and after each
// call: an error from it is the call's error, a panic is the process's death.
type sys struct {
	hook func(call, what string, after bool) error
}

func (s *sys) do(call, what string, f func() error) error {
	if s.hook != nil {
		if err := s.hook(call, what, false); err != nil {
			return fmt.Errorf("%s %q: %w", call, what, err)
		}
	}
	err := f()
	if s.hook != nil && err == nil {
		err = s.hook(call, what, true)
	}
	if err != nil {
		return fmt.Errorf("%s %q: %w", call, what, err)
	}
	return nil
}

func (s *sys) mkdir(dir int, name string, mode uint32) error {
	return s.do("mkdir", name, func() error { return unix.Mkdirat(dir, name, mode) })
}

func (s *sys) symlink(target string, dir int, name string) error {
	return s.do("symlink", name, func() error { return unix.Symlinkat(target, dir, name) })
}

func (s *sys) mknod(dir int, name string, mode uint32, dev uint64) error {
	return s.do("mknod", name, func() error { return unix.Mknodat(dir, name, mode, int(dev)) })
}

func (s *sys) link(olddir int, old string, dir int, name string) error {
	return s.do("link", name, func() error { return unix.Linkat(olddir, old, dir, name, 0) })
}

// move renames without replacing anything.
func (s *sys) move(olddir int, old string, dir int, name string) error {
	return s.do("move", old, func() error {
		return unix.Renameat2(olddir, old, dir, name, unix.RENAME_NOREPLACE)
	})
}

// replace renames over what is there.
func (s *sys) replace(olddir int, old string, dir int, name string) error {
	return s.do("rename", old, func() error { return unix.Renameat(olddir, old, dir, name) })
}

func (s *sys) exchange(adir int, a string, bdir int, b string) error {
	return s.do("exchange", b, func() error {
		return unix.Renameat2(adir, a, bdir, b, unix.RENAME_EXCHANGE)
	})
}

func (s *sys) unlink(dir int, name string, flags int) error {
	return s.do("unlink", name, func() error { return unix.Unlinkat(dir, name, flags) })
}

func (s *sys) times(dir int, name string, mtime int64) error {
	return s.do("utimens", name, func() error {
		ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(mtime)}
		return unix.UtimesNanoAt(dir, name, ts, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// setMeta sets metadata. Under a hook it passes through a half-set state, as
// the several system calls of it do in a process that dies among them.
func (s *sys) setMeta(dir int, name string, e *entry.Entry) error {
	if s.hook != nil {
		half := *e
		half.Xattrs, half.ModTime = nil, time.Now().UnixNano()
		if err := s.do("half-meta", name, func() error { return entry.SetMetaAt(dir, name, &half) }); err != nil {
			return err
		}
	}
	return s.do("meta", name, func() error { return entry.SetMetaAt(dir, name, e) })
}

// create opens a file for reading and writing, with O_CREAT in flag a new one,
// and gives it its size, all hole.
func (s *sys) create(dir int, name string, flag int, size int64) (f *os.File, err error) {
	err = s.do("create", name, func() error {
		fd, err := unix.Openat(dir, name, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC|flag, 0o600)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), name)
		if size == 0 {
			return nil
		}
		return unix.Ftruncate(fd, size)
	})
	if err != nil && f != nil {
		f.Close()
	}
	return f, err
}

// setMetaFd sets the metadata of an open file. have is what a new file is like
// and this one is; nil means that it may have anything.
func (s *sys) setMetaFd(f *os.File, have, e *entry.Entry) error {
	return s.do("meta", f.Name(), func() error {
		if have != nil {
			return entry.SetFreshFd(int(f.Fd()), have, e)
		}
		return entry.SetMetaFd(int(f.Fd()), e)
	})
}

func (s *sys) writeAt(f io.WriterAt, what string, b []byte, off int64) error {
	return s.do("write", what, func() error {
		_, err := f.WriteAt(b, off)
		return err
	})
}

func (s *sys) fsync(f *os.File) error {
	return s.do("fsync", f.Name(), func() error { return f.Sync() })
}

func (s *sys) syncfs(fd int) error {
	return s.do("syncfs", "", func() error { return unix.Syncfs(fd) })
}

func (s *sys) fsyncDir(top int, path string) error {
	return s.do("fsync-dir", path, func() error {
		fd, err := entry.OpenBeneath(top, path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		// EINVAL: some file systems cannot sync a directory, and need not (fsync(2)).
		if err := unix.Fsync(fd); err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
		return nil
	})
}

// freeze pushes the file system's journal to its final place: GRUB reads file
// systems without replaying their journals. Freezing needs CAP_SYS_ADMIN.
func (s *sys) freeze(fd int) error {
	return s.do("freeze", "", func() error {
		if err := unix.IoctlSetInt(fd, fiFreeze, 0); err != nil {
			return err
		}
		return unix.IoctlSetInt(fd, fiThaw, 0)
	})
}

// FIFREEZE and FITHAW of include/uapi/linux/fs.h: _IOWR('X', 119, int) and 120.
const (
	fiFreeze = 0xC0045877
	fiThaw   = 0xC0045878
)
