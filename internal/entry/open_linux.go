package entry

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// OpenBeneath opens path, which is relative, below the directory dirfd: no
// symbolic link is followed anywhere in it, and nothing outside dirfd is
// reached, whoever changes the tree meanwhile (openat2(2), Linux 5.6; older
// kernels are served by walking). O_CLOEXEC is always set.
func OpenBeneath(dirfd int, path string, flags int, mode uint32) (int, error) {
	if len(path) < unix.PathMax {
		return openBeneath(dirfd, path, flags, mode)
	}
	// Trees may be deeper than what one call takes.
	cut := strings.LastIndexByte(path[:unix.PathMax-1], '/')
	if cut <= 0 {
		return -1, unix.ENAMETOOLONG
	}
	mid, err := openBeneath(dirfd, path[:cut], unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(mid)
	return OpenBeneath(mid, path[cut+1:], flags, mode)
}

func openBeneath(dirfd int, path string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_LARGEFILE),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&(unix.O_CREAT|unix.O_TMPFILE) != 0 {
		how.Mode = uint64(mode) // anything else with a mode is EINVAL
	}
	for {
		fd, err := unix.Openat2(dirfd, path, &how)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOSYS):
			return openWalking(dirfd, path, flags, mode)
		}
		return fd, err
	}
}

// openWalking is OpenBeneath for kernels without openat2, component by component.
func openWalking(dirfd int, path string, flags int, mode uint32) (int, error) {
	parts := strings.Split(strings.TrimSuffix(path, "/"), "/")
	for _, p := range parts {
		if p == "" || p == ".." {
			return -1, unix.EXDEV // as RESOLVE_BENEATH says it
		}
	}
	at := dirfd
	for i, p := range parts {
		f, m := unix.O_PATH|unix.O_DIRECTORY, uint32(0)
		if i == len(parts)-1 {
			f, m = flags, mode
		}
		fd, err := unix.Openat(at, p, f|unix.O_NOFOLLOW|unix.O_CLOEXEC, m)
		if at != dirfd {
			unix.Close(at)
		}
		if err != nil {
			return -1, err
		}
		at = fd
	}
	return at, nil
}
