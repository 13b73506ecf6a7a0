package entry

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNames compares with what os says, for a directory of every type, one of
// many names, and one with nothing in it, one after another.
func TestNames(t *testing.T) {
	top := t.TempDir()
	must(t, os.Mkdir(filepath.Join(top, "all"), 0o700))
	for i, name := range []string{"a", "a b", ".hidden", "new\nline", "\xff\xfe", strings.Repeat("n", 255)} {
		must(t, os.WriteFile(filepath.Join(top, "all", name), make([]byte, i), 0o600))
	}
	must(t, os.Mkdir(filepath.Join(top, "all", "dir"), 0o700))
	must(t, os.Symlink("nowhere", filepath.Join(top, "all", "link")))
	must(t, unix.Mkfifo(filepath.Join(top, "all", "fifo"), 0o600))
	if err := unix.Mknod(filepath.Join(top, "all", "char"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil && !errors.Is(err, unix.EPERM) {
		t.Fatal(err)
	}
	must(t, unix.Mknod(filepath.Join(top, "all", "socket"), unix.S_IFSOCK|0o600, 0))
	must(t, os.Mkdir(filepath.Join(top, "many"), 0o700))
	for i := range 3000 {
		must(t, os.WriteFile(filepath.Join(top, "many", fmt.Sprintf("%032d", i*7919%3000)), nil, 0o600))
	}
	must(t, os.Mkdir(filepath.Join(top, "none"), 0o700))
	l := &Names{}
	for _, dir := range []string{"many", "none", "all", "many", "."} {
		want, err := os.ReadDir(filepath.Join(top, dir))
		must(t, err)
		fd, err := unix.Open(filepath.Join(top, dir), unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		must(t, l.Read(fd))
		got := l.All
		must(t, unix.Close(fd))
		if len(got) != len(want) {
			t.Fatalf("%s: %d names, want %d", dir, len(got), len(want))
		}
		for i, w := range want {
			if l.Text(got[i]) != w.Name() || got[i].IsDir() != w.IsDir() || got[i].IsSocket() != (w.Type() == fs.ModeSocket) {
				t.Errorf("%s: %q of type %o, want %q, %v", dir, l.Text(got[i]), got[i].mode, w.Name(), w.Type())
			}
		}
	}
	f, err := os.Open("names_test.go")
	must(t, err)
	defer f.Close()
	if err := l.Read(int(f.Fd())); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a file: %v", err)
	}
}

// TestNamesWithoutTypes is for file systems that say DT_UNKNOWN: the type is
// that of the inode then, and what is gone since is left out.
func TestNamesWithoutTypes(t *testing.T) {
	top := t.TempDir()
	must(t, os.Mkdir(filepath.Join(top, "dir"), 0o700))
	must(t, os.Symlink("dir", filepath.Join(top, "link")))
	must(t, os.WriteFile(filepath.Join(top, "gone"), nil, 0o600))
	fd, err := unix.Open(top, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Getdents(fd, buf)
	must(t, err)
	for b := buf[:n]; len(b) > 0; b = b[int(b[16])|int(b[17])<<8:] {
		b[18] = unix.DT_UNKNOWN
	}
	must(t, os.Remove(filepath.Join(top, "gone")))
	l := &Names{}
	must(t, l.take(fd, buf[:n]))
	got := map[string]uint16{}
	for _, x := range l.All {
		got[strings.Clone(l.Text(x))] = x.mode
	}
	if len(got) != 2 || got["dir"] != unix.S_IFDIR || got["link"] != unix.S_IFLNK {
		t.Errorf("got %v", got)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
