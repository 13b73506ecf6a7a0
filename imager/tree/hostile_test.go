package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ingot/imager/store"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// mapSource gives chunks from memory; before is called first.
type mapSource struct {
	chunks map[digest.ID][]byte
	before func()
}

func (s mapSource) Fetch(_ context.Context, ids []digest.ID, fn func(digest.ID, []byte) error) error {
	if s.before != nil {
		s.before()
	}
	for _, id := range ids {
		if data, ok := s.chunks[id]; ok {
			if err := fn(id, data); err != nil {
				return err
			}
		}
	}
	return nil
}

func dirEntry(p string) entry.Entry { return entry.Entry{Path: p, Type: entry.Dir, Mode: 0755} }

func fileEntry(p string, parts ...string) entry.Entry {
	e := entry.Entry{Path: p, Type: entry.File, Mode: 0644}
	for _, s := range parts {
		e.Size += int64(len(s))
		e.Chunks = append(e.Chunks, entry.Chunk{ID: digest.Of([]byte(s)), Size: uint32(len(s))})
	}
	return e
}

func treeOf(es ...entry.Entry) *manifest.Manifest {
	return &manifest.Manifest{Entries: append([]entry.Entry{dirEntry(".")}, es...)}
}

func chunksOf(parts ...string) map[digest.ID][]byte {
	m := map[digest.ID][]byte{}
	for _, s := range parts {
		m[digest.Of([]byte(s))] = []byte(s)
	}
	return m
}

// arena is a directory to write to, beside one that nobody may touch.
func arena(t *testing.T) (dst, outside string, check func()) {
	t.Helper()
	top := t.TempDir()
	dst, outside = filepath.Join(top, "dst"), filepath.Join(top, "outside")
	must(t, os.Mkdir(dst, 0755))
	must(t, os.Mkdir(outside, 0755))
	must(t, os.WriteFile(filepath.Join(outside, "victim"), []byte("precious"), 0600))
	before, _ := captureDir(t, outside, CaptureOptions{})
	return dst, outside, func() {
		t.Helper()
		if after, _ := captureDir(t, outside, CaptureOptions{}); after.ID() != before.ID() {
			t.Errorf("wrote outside: %+v", manifest.Diff(before, after))
		}
	}
}

func TestHostileManifestsAreRefused(t *testing.T) {
	dst, outside, check := arena(t)
	link := fileEntry("b", "x")
	link.Chunks, link.Link = nil, "../outside/victim"
	for name, m := range map[string]*manifest.Manifest{
		"dot dot":         treeOf(fileEntry("../outside/victim", "x")),
		"absolute":        treeOf(fileEntry(filepath.Join(outside, "victim"), "x")),
		"through symlink": treeOf(entry.Entry{Path: "a", Type: entry.Symlink, Target: outside}, fileEntry("a/victim", "x")),
		"hard link out":   treeOf(link),
		"twice":           treeOf(entry.Entry{Path: "a", Type: entry.Symlink, Target: "../outside/victim"}, fileEntry("a", "x")),
		"NUL":             treeOf(fileEntry("a\x00b", "x")),
	} {
		if err := Write(t.Context(), dst, m, mapSource{chunks: chunksOf("x")}, WriteOptions{}); err == nil {
			t.Errorf("%s: written", name)
		}
	}
	check()
}

func TestPlantedSymlinksAreNotFollowed(t *testing.T) {
	for _, kind := range []string{"absolute", "relative"} {
		for _, what := range []string{"directory", "file", "part"} {
			t.Run(kind+" "+what, func(t *testing.T) {
				dst, outside, check := arena(t)
				target := outside
				if kind == "relative" {
					target = "../outside"
				}
				m := treeOf(dirEntry("d"), dirEntry("d/e"), fileEntry("d/e/victim", "x"), fileEntry("victim", "x", "y"))
				plant := map[string]func(){
					"directory": func() {
						must(t, os.RemoveAll(filepath.Join(dst, "d")))
						must(t, os.Symlink(target, filepath.Join(dst, "d")))
					},
					"file": func() { must(t, os.Symlink(target+"/victim", filepath.Join(dst, "victim"))) },
					"part": func() {
						must(t, os.RemoveAll(filepath.Join(dst, "d/e")))
						must(t, os.Symlink("../"+strings.TrimPrefix(target, "/"), filepath.Join(dst, "d/e")))
					},
				}[what]
				err := Write(t.Context(), dst, m, mapSource{chunksOf("x", "y"), plant}, WriteOptions{})
				if err == nil {
					t.Error("nothing was noticed")
				}
				check()
			})
		}
	}
}

func TestBadSources(t *testing.T) {
	long := fileEntry("a", "x")
	long.Size, long.Chunks[0].Size = 2, 2
	for name, tt := range map[string]struct {
		m   *manifest.Manifest
		src Source
	}{
		"a chunk does not come": {treeOf(fileEntry("a", "x"), fileEntry("b", "y")), mapSource{chunks: chunksOf("x")}},
		"half a file":           {treeOf(fileEntry("a", "x", "y")), mapSource{chunks: chunksOf("x")}},
		"another size":          {treeOf(long), mapSource{chunks: chunksOf("x")}},
		"unasked":               {treeOf(fileEntry("a", "x")), sourceFunc(func(fn func(digest.ID, []byte) error) error { return fn(digest.ID{1}, nil) })},
		"fails":                 {treeOf(fileEntry("a", "x")), sourceFunc(func(func(digest.ID, []byte) error) error { return errors.New("boom") })},
	} {
		if err := Write(t.Context(), t.TempDir(), tt.m, tt.src, WriteOptions{}); err == nil {
			t.Errorf("%s: written", name)
		}
	}
}

type sourceFunc func(fn func(digest.ID, []byte) error) error

func (f sourceFunc) Fetch(_ context.Context, _ []digest.ID, fn func(digest.ID, []byte) error) error {
	return f(fn)
}

func TestOnlyEmptyDirectories(t *testing.T) {
	dst := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dst, "lost+found"), 0700))
	m := treeOf(fileEntry("a", "x"), dirEntry("lost+found"))
	must(t, Write(t.Context(), dst, m, mapSource{chunks: chunksOf("x")}, WriteOptions{}))
	if got, _ := captureDir(t, dst, CaptureOptions{}); got.Entries[2].Path != "lost+found" || got.Entries[2].Mode != 0755 {
		t.Errorf("lost+found: %+v", got.Entries)
	}
	if err := Write(t.Context(), dst, m, mapSource{chunks: chunksOf("x")}, WriteOptions{}); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("onto a tree: %v", err)
	}
	if err := Write(t.Context(), filepath.Join(dst, "a"), m, mapSource{}, WriteOptions{}); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("onto a file: %v", err)
	}
}

// A directory that hands its group and an ACL down must not change the tree.
func TestNothingIsInherited(t *testing.T) {
	if !isRoot() {
		skip(t, "needs root: groups")
	}
	dst := t.TempDir()
	must(t, os.Chown(dst, 0, 4242))
	must(t, unix.Chmod(dst, 02777))
	if out, err := exec.Command("setfacl", "-m", "d:u:7:rwx", dst).CombinedOutput(); err != nil {
		skip(t, fmt.Sprintf("setfacl: %v %s", err, out))
	}
	m := treeOf(dirEntry("d"), fileEntry("d/f", "x"), fileEntry("d/g", "x", "y"), entry.Entry{Path: "p", Type: entry.FIFO, Mode: 0640})
	must(t, Write(t.Context(), dst, m, mapSource{chunks: chunksOf("x", "y")}, WriteOptions{}))
	got, _ := captureDir(t, dst, CaptureOptions{})
	for _, c := range manifest.Diff(m, got) {
		if c.Kind != manifest.Content { // the chunks are cut otherwise
			t.Errorf("%s %s: %+v", c.Path, c.Kind, c.B)
		} else if !entry.SameMeta(c.A, c.B) {
			t.Errorf("%s: %+v", c.Path, c.B)
		}
	}
}

// More files on their way than may be open, their chunks coming in the worst order.
func TestManyFilesOnTheirWay(t *testing.T) {
	const n = openParts + 50
	var es []entry.Entry
	chunks := map[digest.ID][]byte{}
	var first, second []string
	for i := range n {
		a, b := fmt.Sprintf("first %d", i), fmt.Sprintf("second %d", i)
		first, second = append(first, a), append(second, b)
		es = append(es, dirEntry(fmt.Sprintf("d%05d", i)), fileEntry(fmt.Sprintf("d%05d/f", i), a, b))
		chunks[digest.Of([]byte(a))], chunks[digest.Of([]byte(b))] = []byte(a), []byte(b)
	}
	src := sourceFunc(func(fn func(digest.ID, []byte) error) error {
		var wg sync.WaitGroup
		errs := make(chan error, 4)
		for w := range 4 {
			wg.Go(func() {
				for _, list := range [][]string{second, first} {
					for i := w; i < n; i += 4 {
						if err := fn(digest.Of([]byte(list[i])), []byte(list[i])); err != nil {
							errs <- err
							return
						}
					}
				}
			})
		}
		wg.Wait()
		close(errs)
		return <-errs
	})
	dst := t.TempDir()
	must(t, Write(t.Context(), dst, treeOf(es...), src, WriteOptions{}))
	for i := range n {
		got, err := os.ReadFile(filepath.Join(dst, fmt.Sprintf("d%05d/f", i)))
		if want := first[i] + second[i]; err != nil || string(got) != want {
			t.Fatalf("%d: %q, %v", i, got, err)
		}
	}
	if left := openFDs(t); left > 64 {
		t.Errorf("%d descriptors are open", left)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	l, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(l)
}

// small mounts a file system of a few megabytes.
func small(t *testing.T, bytes int) string {
	t.Helper()
	if !isRoot() {
		skip(t, "needs root: mounts")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		skip(t, fmt.Sprintf("mount tmpfs: %v", err))
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

func TestNoSpaceLeft(t *testing.T) {
	src := t.TempDir()
	must(t, os.WriteFile(filepath.Join(src, "big"), noise(1, 8<<20), 0644))
	m, s := into(t, src)
	err := Write(t.Context(), small(t, 4<<20), m, s, WriteOptions{})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), `"big"`) {
		t.Errorf("write: %v", err)
	}

	full := small(t, 4<<20)
	st, err := store.Init(filepath.Join(full, "store"))
	must(t, err)
	try := func() error {
		w, err := st.NewWriter(t.Context())
		if err != nil {
			return err
		}
		defer w.Abort()
		if _, _, err := Capture(t.Context(), src, CaptureOptions{Sink: w}); err != nil {
			return err
		}
		return w.Close()
	}
	if err := try(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("capture: %v", err)
	}
	must(t, unix.Mount("", full, "", unix.MS_REMOUNT, fmt.Sprintf("size=%d", 32<<20)))
	if err := try(); err != nil {
		t.Errorf("with space again: %v", err)
	}
	if r, err := st.Verify(t.Context(), store.VerifyOptions{}); err != nil || r.Err() != nil || r.Packs != 1 {
		t.Errorf("verify: %v, %v, %d packs", err, r.Err(), r.Packs)
	}
}

// TestAsNobody runs itself again without root.
func TestAsNobody(t *testing.T) {
	if dir := os.Getenv("INGOT_TEST_NOBODY"); dir != "" {
		asNobody(t, dir)
		return
	}
	if !isRoot() {
		dir := t.TempDir()
		asNobody(t, dir)
		return
	}
	dir, err := os.MkdirTemp("", "ingot-nobody")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chown(dir, 65534, 65534))
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestAsNobody$", "-test.v")
	cmd.Env = append(os.Environ(), "INGOT_TEST_NOBODY="+dir, "TMPDIR="+dir)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestAsNobody") {
		t.Errorf("%v\n%s", err, out)
	}
}

func asNobody(t *testing.T, dir string) {
	src, dst, hostile := filepath.Join(dir, "src"), filepath.Join(dir, "dst"), filepath.Join(dir, "hostile")
	for _, d := range []string{src, dst, hostile} {
		must(t, os.Mkdir(d, 0755))
	}
	// What is one's own comes back whole, setuid included.
	must(t, os.WriteFile(filepath.Join(src, "f"), noise(1, 200<<10), 0400))
	must(t, unix.Chmod(filepath.Join(src, "f"), 04500))
	must(t, os.Mkdir(filepath.Join(src, "d"), 0555))
	must(t, os.Symlink("f", filepath.Join(src, "l")))
	m, s := into(t, src)
	lost := map[string]int{}
	var mu sync.Mutex
	o := WriteOptions{Lost: func(p string, err error) {
		mu.Lock()
		defer mu.Unlock()
		var me *entry.MetaError
		if errors.As(err, &me) {
			lost[p+" "+me.What]++
		}
	}}
	must(t, Write(t.Context(), dst, m, s, o))
	if again, _ := captureDir(t, dst, CaptureOptions{}); again.ID() != m.ID() || len(lost) > 0 {
		t.Errorf("lost %v, %+v", lost, manifest.Diff(m, again))
	}
	rsyncSame(t, src, dst)

	root := fileEntry("suid", "x")
	root.Mode, root.UID = 06755, 0
	root.Xattrs = []entry.Xattr{{Name: "trusted.x", Value: "y"}}
	hm := treeOf(entry.Entry{Path: "dev", Type: entry.CharDevice, Major: 1, Minor: 3, Mode: 0666}, root)
	must(t, Write(t.Context(), hostile, hm, mapSource{chunks: chunksOf("x")}, o))
	for _, want := range []string{"dev device", "suid owner", `suid xattr "trusted.x"`, ". owner"} {
		if lost[want] != 1 {
			t.Errorf("%q was lost and not said: %v", want, lost)
		}
	}
	st, err := os.Stat(filepath.Join(hostile, "suid"))
	must(t, err)
	if st.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0 {
		t.Errorf("setuid for somebody else: %v", st.Mode())
	}
	must(t, unix.Chmod(filepath.Join(src, "d"), 0))
	if _, _, err := Capture(t.Context(), src, CaptureOptions{}); !errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), `"d"`) {
		t.Errorf("a directory that cannot be read: %v", err)
	}
}

// A tree is written over file systems that are mounted in it; whatever else is
// there is refused.
func TestWriteOverMountPoints(t *testing.T) {
	dst := t.TempDir()
	www := dirEntry("srv/www")
	www.Mode = 0o2775
	m := treeOf(dirEntry("home"), fileEntry("home/letter", "x"), dirEntry("srv"), www, fileEntry("srv/www/index", "x"))
	for _, dir := range []string{"srv/www", "home", "data"} {
		must(t, os.MkdirAll(filepath.Join(dst, dir), 0o755))
	}
	write := func(at ...string) error {
		return Write(t.Context(), dst, m, mapSource{chunks: chunksOf("x")}, WriteOptions{Mounted: at})
	}
	if err := write("srv/www", "data"); !errors.Is(err, ErrNotEmpty) || !strings.Contains(err.Error(), `"home"`) {
		t.Errorf("over a directory that is no mount point: %v", err)
	}
	must(t, write("srv/www", "data", "home"))
	got, err := os.ReadFile(filepath.Join(dst, "srv/www/index"))
	if st, serr := os.Stat(filepath.Join(dst, "srv/www")); err != nil || serr != nil || string(got) != "x" || st.Mode()&os.ModeSetgid == 0 {
		t.Errorf("%q, %v; %v, %v", got, err, st, serr)
	}
}
