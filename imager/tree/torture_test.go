package tree

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"ingot/imager/store"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/torture"
)

// skip skips a test, unless the switch is set that CI sets.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("INGOT_NO_SKIP") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func isRoot() bool { return os.Geteuid() == 0 }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func noise(seed uint64, n int) []byte { return torture.Noise(seed, n) }

// rsyncSame lets rsync judge, in both directions.
func rsyncSame(t *testing.T, a, b string) {
	t.Helper()
	if _, err := exec.LookPath("rsync"); err != nil {
		skip(t, "rsync is the judge, and is not installed")
	}
	for _, d := range [][2]string{{a, b}, {b, a}} {
		cmd := exec.Command("rsync", "-aHAXSn", "-@-1", "--numeric-ids", "--checksum", "--delete", "--itemize-changes",
			"--exclude=/sparse/big", "--exclude=/lost+found", d[0]+"/", d[1]+"/") // big: 100 GB of zeros to sum up
		out, err := cmd.CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("rsync %s to %s: %v\n%.3000s", d[0], d[1], err, out)
		}
	}
}

func captureDir(t *testing.T, dir string, o CaptureOptions) (*manifest.Manifest, Stats) {
	t.Helper()
	m, st, err := Capture(t.Context(), dir, o)
	must(t, err)
	return m, st
}

// into captures dir into a new store.
func into(t *testing.T, dir string) (*manifest.Manifest, *store.Store) {
	t.Helper()
	s := store.NewMem()
	w, err := s.NewWriter(t.Context())
	must(t, err)
	defer w.Abort()
	m, st := captureDir(t, dir, CaptureOptions{Sink: w})
	must(t, w.Close())
	if ws := w.Stats(); ws.NewChunks != st.New || st.New > st.Chunks {
		t.Errorf("capture says %+v, the store %+v", st, ws)
	}
	if _, err := s.PutManifest(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	return m, s
}

func TestTorture(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	torture.Tree(t, src)
	m, s := into(t, src)
	got, err := manifest.Decode(m.Encode())
	must(t, err)
	var mu sync.Mutex
	states := map[string]entry.Stat{}
	var bytes, entries int64
	must(t, Write(t.Context(), dst, got, s, WriteOptions{
		OnWritten: func(p string, st entry.Stat) { mu.Lock(); defer mu.Unlock(); states[p] = st },
		Progress:  func(b, n int64) { mu.Lock(); defer mu.Unlock(); bytes, entries = max(bytes, b), max(entries, n) },
	}))
	torture.Same(t, src, dst) // first: what was reserved and then read shows as data
	rsyncSame(t, src, dst)
	again, _ := captureDir(t, dst, CaptureOptions{})
	if again.ID() != m.ID() {
		for _, c := range manifest.Diff(m, again) {
			t.Errorf("%s %s\n%+v\n%+v", c.Path, c.Kind, c.A, c.B)
		}
	}
	if entries != int64(len(m.Entries)) || bytes != m.TotalSize() {
		t.Errorf("progress says %d bytes, %d entries of %d, %d", bytes, entries, m.TotalSize(), len(m.Entries))
	}
	checkStates(t, dst, m, states)
}

// checkStates checks that what OnWritten was told makes the next capture read nothing.
func checkStates(t *testing.T, dir string, m *manifest.Manifest, states map[string]entry.Stat) {
	t.Helper()
	m2, st := captureDir(t, dir, CaptureOptions{Cache: stateCache{m, states}})
	if st.Read != 0 || st.Cached != st.Files || st.Files == 0 {
		t.Errorf("with all states known: %+v", st)
	}
	if m2.ID() != m.ID() {
		t.Error("the cached capture is another")
	}
}

type stateCache struct {
	m      *manifest.Manifest
	states map[string]entry.Stat
}

func (c stateCache) Lookup(p string, st entry.Stat) ([]entry.Extent, []entry.Chunk, bool) {
	if c.states[p] != st {
		return nil, nil, false
	}
	e, ok := c.m.Lookup(p)
	if !ok {
		return nil, nil, false
	}
	return e.Holes, e.Chunks, true
}

func TestCaptureIsTheSameEveryTime(t *testing.T) {
	src := t.TempDir()
	torture.Tree(t, src)
	a, _ := captureDir(t, src, CaptureOptions{Parallel: 1})
	b, _ := captureDir(t, src, CaptureOptions{Parallel: 9})
	if a.ID() != b.ID() {
		t.Error("two captures differ")
	}
}

func TestExcludesSocketsAndOwn(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"keep/a", "drop/b", "part/x/c", "part/y/d", "part/e", "gone/f/g", ".ingot/gen", "sub/.ingot/x"} {
		must(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(f)), 0755))
		must(t, os.WriteFile(filepath.Join(dir, f), nil, 0644))
	}
	l, err := net.Listen("unix", filepath.Join(dir, "keep/sock"))
	must(t, err)
	defer l.Close()
	m, st := captureDir(t, dir, CaptureOptions{
		Exclude: func(p string, isDir bool) bool {
			return strings.HasPrefix(p, "drop") || strings.HasPrefix(p, "gone") || strings.HasPrefix(p, "part") && !strings.HasPrefix(p, "part/x/")
		},
		Within: func(p string) bool { return strings.HasPrefix(p, "part") || strings.HasPrefix(p, "gone") },
	})
	var got []string
	for _, e := range m.Entries {
		got = append(got, e.Path)
	}
	if s := strings.Join(got, " "); s != ". keep keep/a part part/x part/x/c sub sub/.ingot sub/.ingot/x" {
		t.Errorf("captured %s", s)
	}
	if len(st.Sockets) != 1 || st.Sockets[0] != "keep/sock" || st.Excluded == 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestMountPoints(t *testing.T) {
	if !isRoot() {
		skip(t, "needs root: mounts")
	}
	dir := t.TempDir()
	for _, d := range []string{"proc", "bind", "under"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0755))
	}
	must(t, os.WriteFile(filepath.Join(dir, "under/f"), []byte("x"), 0644))
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0644))
	mount := func(from, to, kind string, flags uintptr) {
		t.Helper()
		if err := unix.Mount(from, filepath.Join(dir, to), kind, flags, ""); err != nil {
			skip(t, fmt.Sprintf("mount: %v", err))
		}
		t.Cleanup(func() { must(t, unix.Unmount(filepath.Join(dir, to), unix.MNT_DETACH)) })
	}
	mount("proc", "proc", "proc", 0)
	mount(filepath.Join(dir, "under"), "bind", "", unix.MS_BIND)
	mount("/proc/version", "file", "", unix.MS_BIND)
	m, st := captureDir(t, dir, CaptureOptions{OneFileSystem: true})
	if strings.Join(st.Mounts, " ") != "bind file proc" || len(m.Entries) != 6 {
		t.Errorf("mounts %q, entries %+v", st.Mounts, m.Entries)
	}
	m, _ = captureDir(t, dir, CaptureOptions{Exclude: func(p string, _ bool) bool { return p == "proc" || p == "file" }})
	if _, ok := m.Lookup("bind/f"); !ok {
		t.Error("a bind mount was not crossed, though asked")
	}
	must(t, os.Mkdir(filepath.Join(dir, "under/inner"), 0755))
	mount(filepath.Join(dir, "under"), "bind/inner", "", unix.MS_BIND)
	m, st = captureDir(t, dir, CaptureOptions{OneFileSystem: true, Cross: func(p string) bool { return p == "bind" }})
	_, crossed := m.Lookup("bind/f")
	_, further := m.Lookup("bind/inner/f")
	if !crossed || further || strings.Join(st.Mounts, " ") != "bind/inner file proc" {
		t.Errorf("one mount was to be crossed: %v, one in it %v; kept empty: %q", crossed, further, st.Mounts)
	}
}

func TestTreesDeeperThanPathMax(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	at, err := unix.Open(src, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	name := strings.Repeat("n", 200)
	for i := range 30 {
		if i == 20 { // 4,095 bytes below the top, and one more
			must(t, unix.Symlinkat("x", at, strings.Repeat("l", 4095-20*201)))
			must(t, unix.Mknodat(at, strings.Repeat("m", 4096-20*201), unix.S_IFIFO|0640, 0))
		}
		must(t, unix.Mkdirat(at, name, 0700))
		next, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		must(t, err)
		unix.Close(at)
		at = next
	}
	defer unix.Close(at)
	fd, err := unix.Openat(at, "f", unix.O_CREAT|unix.O_WRONLY, 0600)
	must(t, err)
	must(t, pwrite(fd, noise(1, 300<<10), 0))
	must(t, unix.Fsetxattr(fd, "user.deep", []byte("x"), 0))
	unix.Close(fd)
	must(t, unix.Linkat(at, "f", at, "g", 0))
	must(t, unix.Symlinkat("f", at, "s"))
	must(t, unix.Linkat(at, "s", at, "t", 0))
	m, s := into(t, src)
	if p := m.Entries[len(m.Entries)-1].Path; len(p) < 5000 {
		t.Fatalf("path of %d bytes", len(p))
	}
	must(t, Write(t.Context(), dst, m, s, WriteOptions{}))
	torture.Same(t, src, dst)
	if again, _ := captureDir(t, dst, CaptureOptions{}); again.ID() != m.ID() {
		t.Error("another tree")
	}
}
