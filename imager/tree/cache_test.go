package tree

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
	"ingot/internal/torture"
)

func TestFileCache(t *testing.T) {
	src, file := t.TempDir(), filepath.Join(t.TempDir(), "cache")
	torture.Tree(t, src)
	run := func(wantRead bool) string {
		t.Helper()
		c, err := OpenCache(file)
		must(t, err)
		m, st := captureDir(t, src, CaptureOptions{Cache: c, Captured: c.Record})
		must(t, c.Save())
		if wantRead != (st.Read > 0) || st.Files == 0 {
			t.Errorf("stats %+v", st)
		}
		return m.ID().String()
	}
	first := run(true)
	if run(false) != first || run(false) != first {
		t.Error("the cache changes the manifest")
	}
	// Same size, same mtime, other content.
	p := filepath.Join(src, "sizes/100")
	st, err := os.Stat(p)
	must(t, err)
	must(t, os.WriteFile(p, noise(99, 100), 0600))
	must(t, os.Chtimes(p, st.ModTime(), st.ModTime()))
	second := run(true)
	if second == first {
		t.Error("a change was not seen")
	}
	// The cache knows extended attributes, and when they are others.
	must(t, unix.Setxattr(p, "user.cached", []byte("1"), 0))
	third := run(true)
	if m, _ := captureDir(t, src, CaptureOptions{}); m.ID().String() != third || third == second {
		t.Error("a changed attribute was not seen")
	}
	if run(false) != third {
		t.Error("attributes are not kept")
	}
	second = third
	good, err := os.ReadFile(file)
	must(t, err)
	for name, bad := range map[string][]byte{
		"empty": nil, "cut": good[:len(good)/2], "other": []byte("INGOTFC9 something"), "flipped": append(bytes.Clone(good[:50]), append([]byte{good[50] ^ 1}, good[51:]...)...),
	} {
		must(t, os.WriteFile(file, bad, 0600))
		if run(true) != second {
			t.Errorf("%s: another manifest", name)
		}
	}
}

// A cache that says all already is not written again; a file less is a change.
func TestFileCacheSavesChangesOnly(t *testing.T) {
	src, file := t.TempDir(), filepath.Join(t.TempDir(), "cache")
	for _, n := range []string{"a", "b"} {
		must(t, os.WriteFile(filepath.Join(src, n), noise(7, 5000), 0600))
	}
	run := func() os.FileInfo {
		t.Helper()
		c, err := OpenCache(file)
		must(t, err)
		captureDir(t, src, CaptureOptions{Cache: c, Captured: c.Record})
		must(t, c.Save())
		st, err := os.Stat(file)
		must(t, err)
		return st
	}
	first := run()
	second := run()
	if !os.SameFile(first, second) {
		t.Error("written again though nothing has changed")
	}
	must(t, os.Remove(filepath.Join(src, "a")))
	if os.SameFile(second, run()) {
		t.Error("keeps a file that is gone")
	}
}

func TestNotes(t *testing.T) {
	s := Stats{Sockets: []string{"run/a\n"}, Mounts: []string{"proc"}}
	if got := s.Notes(); len(got) != 2 || got[0] != `"run/a\n" is a socket: skipped` || got[1] != `"proc" is a mount point: kept empty` {
		t.Errorf("%q", got)
	}
}

func FuzzCache(f *testing.F) {
	good := encodeCache([]*cached{{path: "a", xattrs: []entry.Xattr{{Name: "user.x", Value: "y"}}}, {path: "b/c", chunks: fileEntry("x", "y", "z").Chunks}})
	if len(good) == 0 {
		f.Fatal("empty seed")
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		if files, err := decodeCache(b); err == nil {
			if again, err := decodeCache(encodeCache(pointers(files))); err != nil || len(again) != len(files) {
				t.Fatal(err)
			}
		}
	})
}

func pointers(files []cached) (out []*cached) {
	for i := range files {
		out = append(out, &files[i])
	}
	return out
}
