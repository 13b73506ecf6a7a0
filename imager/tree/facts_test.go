package tree

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/imager/store"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/torture"
)

// TestTheJudgeSees breaks each fact once.
func TestTheJudgeSees(t *testing.T) {
	breaks := map[string]func(dir string) error{
		"time": func(d string) error { return os.Chtimes(d+"/f", time.Unix(5, 0), time.Unix(5, 0)) },
		"mode": func(d string) error { return os.Chmod(d+"/f", 0o604) },
		"hole": func(d string) error {
			h, _ := os.OpenFile(d+"/s", os.O_WRONLY, 0)
			defer h.Close()
			_, err := h.WriteAt(make([]byte, 4096), 1<<20)
			return err
		},
		"xattr": func(d string) error { return unix.Setxattr(d+"/f", "user.k", []byte("w"), 0) },
		"links": func(d string) error { must(t, os.Remove(d+"/m")); return os.Symlink("x", d+"/m") },
		"gone":  func(d string) error { return os.Remove(d + "/f") },
		"extra": func(d string) error { return os.WriteFile(d+"/x", nil, 0o600) },
	}
	for name, fn := range breaks {
		dir := t.TempDir()
		must(t, os.WriteFile(dir+"/f", []byte("x"), 0o600))
		must(t, os.Symlink("x", dir+"/l"))
		must(t, os.Link(dir+"/l", dir+"/m"))
		must(t, os.WriteFile(dir+"/s", nil, 0o600))
		must(t, os.Truncate(dir+"/s", 4<<20))
		was := torture.FactsOf(t, dir)
		must(t, fn(dir))
		if len(torture.Differences(was, torture.FactsOf(t, dir))) == 0 {
			t.Errorf("%s: not seen", name)
		}
	}
}

// TestTortureAsNobody writes root's tree as somebody else, who must say
// exactly what is not as it was.
func TestTortureAsNobody(t *testing.T) {
	if dir := os.Getenv("INGOT_TEST_NOBODY_TORTURE"); dir != "" {
		writeAsNobody(t, dir)
		return
	}
	if !isRoot() {
		skip(t, "needs root: an image of root's tree")
	}
	dir, err := os.MkdirTemp("", "ingot-nobody")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	src := t.TempDir()
	torture.Tree(t, src)
	s, err := store.Init(filepath.Join(dir, "store"))
	must(t, err)
	w, err := s.NewWriter(t.Context())
	must(t, err)
	m, _ := captureDir(t, src, CaptureOptions{Sink: w})
	must(t, w.Close())
	id, err := s.PutManifest(t.Context(), m)
	must(t, err)
	must(t, s.SetRef(t.Context(), store.Ref{Name: "torture", Tag: "1"}, store.Image{Digest: id}))
	must(t, filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error { must(t, err); return os.Chown(p, 65534, 65534) }))
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestTortureAsNobody$", "-test.v")
	cmd.Env = append(os.Environ(), "INGOT_TEST_NOBODY_TORTURE="+dir, "TMPDIR="+dir)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestTortureAsNobody") {
		t.Fatalf("%v\n%s", err, out)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "lost"))
	must(t, err)
	var lost map[string][]string // what, by digest of the path, which need not be UTF-8
	must(t, json.Unmarshal(raw, &lost))
	a, b := torture.FactsOf(t, src), torture.FactsOf(t, filepath.Join(dir, "dst"))
	forgive(a, b, lost)
	for _, d := range torture.Differences(a, b) {
		t.Errorf("not said: %s", d)
	}
	said := map[string]bool{}
	for _, list := range lost {
		for _, what := range list {
			said[what] = true
		}
	}
	for _, want := range []string{"device", "owner", `xattr "trusted.x"`, `xattr "security.capability"`} {
		if !said[want] {
			t.Errorf("%q was not said: %v", want, slices.Collect(maps.Keys(said)))
		}
	}
}

// forgive makes a what b should be, given what was said to be lost.
func forgive(a, b map[string]*torture.Facts, lost map[string][]string) {
	of := map[string][]string{}
	for p := range a {
		of[p] = lost[digest.Of([]byte(p)).String()]
	}
	for p, f := range a {
		for _, what := range slices.Concat(of[p], of[f.Group]) { // one inode, said once
			switch x, isXattr := strings.CutPrefix(what, "xattr "); {
			case what == "device":
				delete(a, p)
			case what == "owner":
				f.UID, f.GID = 65534, 65534
				f.Mode &^= unix.S_ISUID | unix.S_ISGID
			case isXattr:
				delete(f.Xattrs, strings.Trim(x, `"`))
			}
		}
	}
}

func writeAsNobody(t *testing.T, dir string) {
	t.Helper()
	s, err := store.Open(filepath.Join(dir, "store"))
	must(t, err)
	id, err := s.Resolve(t.Context(), "torture:1")
	must(t, err)
	m, err := s.Manifest(t.Context(), id)
	must(t, err)
	dst := filepath.Join(dir, "dst")
	must(t, os.Mkdir(dst, 0o700))
	lost := map[string][]string{}
	var mu sync.Mutex
	must(t, Write(t.Context(), dst, m, s, WriteOptions{Lost: func(p string, err error) {
		mu.Lock()
		defer mu.Unlock()
		var me *entry.MetaError
		if errors.As(err, &me) {
			key := digest.Of([]byte(p)).String()
			lost[key] = append(lost[key], me.What)
		}
	}}))
	raw, err := json.Marshal(lost)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "lost"), raw, 0o600))
}

// quick returns a directory in memory, where there is such a place.
func quick(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "ingot-test")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestADirectoryOf100000 is about a directory, not about files.
func TestADirectoryOf100000(t *testing.T) {
	src, dst := quick(t), quick(t)
	fd, err := unix.Open(src, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(fd)
	const n = 100_000
	for i := range n {
		must(t, unix.Symlinkat("x", fd, fmt.Sprintf("entry-%d", i*7919%n)))
	}
	m, s := into(t, src)
	if len(m.Entries) != n+1 {
		t.Fatalf("%d entries", len(m.Entries))
	}
	must(t, Write(t.Context(), dst, m, s, WriteOptions{}))
	again, _ := captureDir(t, dst, CaptureOptions{})
	if again.ID() != m.ID() {
		t.Errorf("%d differences", len(manifest.Diff(m, again)))
	}
}
