package images

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/torture"
)

// python runs testdata/read_image.py, which was written from docs/FORMAT.md
// and shares nothing with our programs. It must not succeed by accident: each
// failure has its exit status 1, a line for each complaint, and no traceback.
func (s site) python(args ...string) result {
	s.t.Helper()
	r := runProgram(s.t, "/usr/bin/python3", append([]string{"-B", "../../testdata/read_image.py", s.store()}, args...)...)
	if r.code > 1 || strings.Contains(r.err, "Traceback") {
		s.t.Fatalf("read_image.py %q: exit %d\n%s", args, r.code, r.said())
	}
	return r
}

func (s site) pythonMust(args ...string) {
	s.t.Helper()
	if r := s.python(args...); r.code != 0 || args[0] != "list" && r.said() != "" {
		s.t.Errorf("read_image.py %q: exit %d\n%.3000s", args, r.code, r.said())
	}
}

// What `ingot image capture` stored, another reader restores to the last bit,
// and finds equal to the tree that was captured.
func TestAnotherReader(t *testing.T) {
	need(t, "/usr/bin/python3", "zstd", "rsync", "setfacl")
	s, src, dst := newSite(t), t.TempDir(), filepath.Join(t.TempDir(), "dst")
	torture.Tree(t, src)
	var first struct{ Digest string }
	ok(t, json.Unmarshal([]byte(s.must("image", "capture", src, "torture:1", "--json").out), &first))
	s.pythonMust("verify")
	s.pythonMust("restore", "torture:1", dst)
	s.pythonMust("compare", "torture:1", src)
	s.pythonMust("compare", "torture:1", dst)
	rsyncSame(t, src, dst, "--exclude=/sparse/big") // 100 GB of zeros to sum up
	s.must("image", "capture", dst, "again:1")
	if again := s.python("list"); strings.Count(again.out, first.Digest) != 2 {
		t.Errorf("what was restored is another image:\n%+v\n%s", first, again.out)
	}
	t.Run("differences", func(t *testing.T) { readerSees(t, s, dst) })
}

// readerSees changes the tree that equals torture:1 in one way after another,
// cumulatively: each must be named, with what differs.
func readerSees(t *testing.T, s site, dir string) {
	in := func(p string) string { return filepath.Join(dir, p) }
	kept := func(p string, change func(path string) error) func() error { // but for the times
		return func() error {
			st, err := os.Lstat(in(p))
			if err == nil {
				err = change(in(p))
			}
			if err != nil {
				return err
			}
			ts := unix.NsecToTimespec(st.ModTime().UnixNano())
			return unix.UtimesNanoAt(unix.AT_FDCWD, in(p), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
		}
	}
	overwrite := func(at int64) func(string) error {
		return func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte("flip"), at)
				f.Close()
			}
			return err
		}
	}
	for _, c := range []struct {
		path, what string
		change     func() error
	}{
		{"sizes/5242880", "content", kept("sizes/5242880", overwrite(3<<20))},
		{"sizes/16384", "size", kept("sizes/16384", func(p string) error { return os.Truncate(p, 16000) })},
		{"sparse/comb", "holes", kept("sparse/comb", overwrite(30<<20))},
		{"many/7", "mtime", func() error { return os.Chtimes(in("many/7"), time.Now(), time.Unix(1, 1)) }},
		{"modes/7", "mode", func() error { return unix.Chmod(in("modes/7"), 0751) }},
		{"broken", "uid", func() error { return os.Lchown(in("broken"), 8, 8) }},
		{"sizes/65536", "xattrs", func() error { return unix.Removexattr(in("sizes/65536"), "security.capability") }},
		{"empty", "xattrs", func() error { return unix.Removexattr(in("empty"), "system.posix_acl_default") }},
		{"links/b", "link", kept("links", func(string) error { return unlinkShared(in("links/b")) })},
		{"null", "minor", func() error {
			os.Remove(in("null"))
			return unix.Mknod(in("null"), unix.S_IFCHR|0666, int(unix.Mkdev(1, 5)))
		}},
		{"fifo", "type", func() error { os.Remove(in("fifo")); return os.WriteFile(in("fifo"), nil, 0640) }},
		{"names/link", "target", func() error { os.Remove(in("names/link")); return os.Symlink("../sizes/0", in("names/link")) }},
		{"names/*", "missing", func() error { return os.Remove(in("names/*")) }},
		{"names/more", "not in the image", func() error { return os.WriteFile(in("names/more"), nil, 0600) }},
	} {
		before := s.python("compare", "torture:1", dir).out
		ok(t, c.change())
		found := false
		for line := range strings.Lines(s.python("compare", "torture:1", dir).out) {
			found = found || strings.HasPrefix(line, "'"+c.path+"': ") && strings.Contains(line, c.what) && !strings.Contains(before, line)
		}
		if !found {
			t.Errorf("%s: the reader does not see that its %s differs", c.path, c.what)
		}
	}
}

// unlinkShared makes a name of a hard link a file of its own.
func unlinkShared(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0644)
}

// The reader needs no more than the program zstd, and refuses what is damaged.
func TestAnotherReaderWithoutItsLibrary(t *testing.T) {
	need(t, "/usr/bin/python3", "zstd")
	s, src := newSite(t), t.TempDir()
	ok(t, os.WriteFile(filepath.Join(src, "file"), torture.Noise(1, 3<<20), 0644))
	ok(t, os.WriteFile(filepath.Join(src, "zeros"), make([]byte, 1<<20), 0644))
	s.must("image", "capture", src, "small:1")
	for _, flags := range [][]string{{"-B"}, {"-B", "-S"}} { // -S: without what Debian adds
		run := func(args ...string) result {
			return runProgram(t, "/usr/bin/python3", append(append(flags, "../../testdata/read_image.py", s.store()), args...)...)
		}
		dst := filepath.Join(t.TempDir(), "dst")
		for _, args := range [][]string{{"verify"}, {"restore", "small:1", dst}, {"compare", "small:1", src}} {
			if r := run(args...); r.code != 0 {
				t.Errorf("%q %q: exit %d\n%s", flags, args, r.code, r.said())
			}
		}
		for _, args := range [][]string{{"restore", "small:1", dst}, {"compare", "none:1", src}, {"compare", "../../x", src}} {
			if r := run(args...); r.code != 1 || !strings.HasPrefix(r.err, "read_image: ") {
				t.Errorf("%q %q: exit %d\n%s", flags, args, r.code, r.said())
			}
		}
	}
}
