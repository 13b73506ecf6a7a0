package torture

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
)

// Facts are what the kernel says of one entry, read without the code that is judged.
type Facts struct {
	Mode             uint32
	UID, GID         uint32
	Rdev, Size, Link uint64
	Sec, Nsec        int64
	Target           string
	Xattrs           map[string]string
	Data             []int64 // offsets where data and holes begin, in turn
	Group            string  // the first name of the inode
	Sum              digest.ID
}

// FactsOf reads a tree however deep it is.
func FactsOf(t testing.TB, dir string) map[string]*Facts {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	out, groups := map[string]*Facts{}, map[[2]uint64]string{}
	out["."] = factsAt(t, fd, ".", ".", groups)
	walkFacts(t, fd, "", out, groups)
	return out
}

func walkFacts(t testing.TB, fd int, prefix string, out map[string]*Facts, groups map[[2]uint64]string) {
	t.Helper()
	d := os.NewFile(uintptr(fd), fmt.Sprintf("/proc/self/fd/%d", fd))
	defer d.Close()
	names, err := d.Readdirnames(-1)
	must(t, err)
	slices.Sort(names)
	for _, name := range names {
		if prefix == "" && name == "lost+found" {
			continue
		}
		f := factsAt(t, fd, name, prefix+name, groups)
		out[prefix+name] = f
		if f.Mode&unix.S_IFMT == unix.S_IFDIR {
			sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
			must(t, err)
			walkFacts(t, sub, prefix+name+"/", out, groups)
		}
	}
}

func factsAt(t testing.TB, fd int, name, path string, groups map[[2]uint64]string) *Facts {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW))
	f := &Facts{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Rdev: st.Rdev, Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec, Xattrs: map[string]string{}}
	proc := fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR {
		f.Link = uint64(st.Nlink)
		key := [2]uint64{st.Dev, st.Ino}
		if groups[key] == "" {
			groups[key] = path
		}
		f.Group = groups[key]
	}
	buf := make([]byte, 70_000)
	if kind == unix.S_IFLNK {
		n, err := unix.Readlinkat(fd, name, buf)
		must(t, err)
		f.Target = string(buf[:n])
	}
	n, err := unix.Llistxattr(proc, buf)
	must(t, err)
	for _, x := range strings.Split(string(buf[:n]), "\x00") {
		if x != "" {
			v := make([]byte, 70_000)
			n, err := unix.Lgetxattr(proc, x, v)
			must(t, err)
			f.Xattrs[x] = string(v[:n])
		}
	}
	if kind == unix.S_IFREG {
		f.Size = uint64(st.Size)
		f.Data, f.Sum = dataOf(t, fd, name, st.Size)
	}
	return f
}

// dataOf returns the map of data and holes and the digest of the data.
func dataOf(t testing.TB, dir int, name string, size int64) (turns []int64, sum digest.ID) {
	t.Helper()
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	must(t, err)
	defer unix.Close(fd)
	var all []byte
	for pos := int64(0); pos < size; {
		from, err := unix.Seek(fd, pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		must(t, err)
		to, err := unix.Seek(fd, from, unix.SEEK_HOLE)
		must(t, err)
		turns = append(turns, from, to)
		part := make([]byte, to-from)
		for at := 0; at < len(part); {
			n, err := unix.Pread(fd, part[at:], from+int64(at))
			must(t, err)
			at += n
		}
		all = append(all, part...)
		pos = to
	}
	return turns, digest.Of(all)
}

// Same fails t for every difference between two trees.
func Same(t testing.TB, a, b string) {
	t.Helper()
	for _, d := range Differences(FactsOf(t, a), FactsOf(t, b)) {
		t.Errorf("%s", d)
	}
}

// Differences lists what differs between two trees.
func Differences(a, b map[string]*Facts) (out []string) {
	for p, fa := range a {
		ja, _ := json.Marshal(fa)
		jb, _ := json.Marshal(b[p])
		if string(ja) != string(jb) {
			out = append(out, fmt.Sprintf("%.200q:\n%.600s\n%.600s", p, ja, jb))
		}
	}
	for p := range b {
		if a[p] == nil {
			out = append(out, fmt.Sprintf("%.200q is too much", p))
		}
	}
	return out
}
