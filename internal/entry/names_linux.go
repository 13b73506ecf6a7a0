package entry

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Names are the names in a directory. Its buffers serve one directory after
// another, where os.ReadDir makes a file, a finalizer and several objects a
// name; it is for one goroutine.
type Names struct {
	All []Name // in order, without "." and ".."

	buf  [32 << 10]byte
	text []byte // each ends in NUL
}

// Name is one of Names. It is good until the next Read.
type Name struct {
	at   int32
	mode uint16 // S_IFMT
}

// IsDir reports whether it is that of a directory.
func (n Name) IsDir() bool { return n.mode == unix.S_IFDIR }

// IsSocket reports whether it is that of a socket.
func (n Name) IsSocket() bool { return n.mode == unix.S_IFSOCK }

// Text returns a name; the string is good until the next Read.
func (n *Names) Text(x Name) string {
	return unsafe.String(&n.text[x.at], bytes.IndexByte(n.text[x.at:], 0))
}

// C returns a name as system calls want it.
func (n *Names) C(x Name) *byte { return &n.text[x.at] }

// Set makes one name the whole list.
func (n *Names) Set(s string) {
	n.text, n.All = append(append(n.text[:0], s...), 0), append(n.All[:0], Name{})
}

// Read reads the names in the directory that is open at fd (getdents64(2)).
// One that was removed since it was opened gives ENOENT.
func (n *Names) Read(fd int) error {
	n.text, n.All = n.text[:0], n.All[:0]
	for {
		got, err := unix.Getdents(fd, n.buf[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if got <= 0 {
			break
		}
		if err := n.take(fd, n.buf[:got]); err != nil {
			return err
		}
	}
	slices.SortFunc(n.All, func(a, b Name) int { return strings.Compare(n.Text(a), n.Text(b)) })
	return nil
}

// take reads what one call has given: struct linux_dirent64, which is ino,
// off, reclen at 16, type at 18, name at 19.
func (n *Names) take(fd int, b []byte) error {
	for len(b) > 0 {
		size := int(binary.NativeEndian.Uint16(b[16:]))
		mode := uint16(b[18]) << 12 // DT_DIR and the like are the bits of S_IFMT
		name := b[19:size]
		name = name[:bytes.IndexByte(name, 0)+1]
		b = b[size:]
		if s := string(name); s == ".\x00" || s == "..\x00" {
			continue
		}
		n.All = append(n.All, Name{int32(len(n.text)), mode})
		n.text = append(n.text, name...)
		if mode != 0 {
			continue
		}
		// DT_UNKNOWN: the file system does not say.
		last := &n.All[len(n.All)-1]
		var st unix.Stat_t
		switch err := unix.Fstatat(fd, n.Text(*last), &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT); {
		case errors.Is(err, unix.ENOENT): // any more
			n.All = n.All[:len(n.All)-1]
		case err != nil:
			return err
		default:
			last.mode = uint16(st.Mode & unix.S_IFMT)
		}
	}
	return nil
}
