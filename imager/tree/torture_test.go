package tree

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
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

func noise(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	return b[:n]
}

// torture makes a tree with all that Linux can have, as far as it is allowed.
func torture(t *testing.T, dir string) {
	t.Helper()
	write := func(name string, data []byte, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(p), 0755))
		must(t, os.WriteFile(p, data, 0600))
		must(t, os.Chmod(p, mode))
		return p
	}
	for i, n := range []int{0, 1, 100, 16 << 10, 16<<10 + 1, 64 << 10, 300 << 10, 1 << 20, 5 << 20} {
		write(fmt.Sprintf("sizes/%d", n), noise(uint64(i), n), 0644)
	}
	write("twice", noise(8, 5<<20), 0444) // the chunks of sizes/5242880
	for _, name := range []string{"with\nnewline", `system-systemd\x2dcryptsetup.slice`, "\xff\xfe latin", " ", "-rf", "*", "~", "a:b", "'\"", "%s", strings.Repeat("n", 255)} {
		write("names/"+name, []byte(name), 0600)
	}
	for mode := range uint32(8) {
		p := write(fmt.Sprintf("modes/%o", mode), nil, 0)
		must(t, unix.Chmod(p, mode<<9|0751))
		d := filepath.Join(dir, fmt.Sprintf("modes/dir%o", mode))
		must(t, os.Mkdir(d, 0700))
		must(t, unix.Chmod(d, mode<<9|0700))
	}
	write("modes/none", []byte("x"), 0)
	must(t, os.MkdirAll(filepath.Join(dir, "empty/er/est"), 0711))
	deep := strings.Repeat("d/", 300) + "bottom"
	write(deep, []byte("deep"), 0644)
	must(t, os.Symlink("../sizes/1", filepath.Join(dir, "names/link")))
	must(t, os.Symlink("/nowhere\xff\n", filepath.Join(dir, "broken")))
	must(t, os.Symlink(strings.Repeat("t", 4000), filepath.Join(dir, "longlink")))
	for _, l := range []string{"links/a", "zlink", "links/b"} {
		must(t, os.MkdirAll(filepath.Join(dir, "links"), 0755))
		must(t, os.Link(filepath.Join(dir, "sizes/307200"), filepath.Join(dir, l)))
	}
	must(t, os.Link(filepath.Join(dir, "sizes/0"), filepath.Join(dir, "links/empty")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0640))
	sparse(t, filepath.Join(dir, "sparse"))
	many := filepath.Join(dir, "many")
	must(t, os.Mkdir(many, 0755))
	for i := range 600 {
		must(t, os.WriteFile(filepath.Join(many, fmt.Sprint(i)), []byte(fmt.Sprint(i%200)), 0644))
	}
	for _, name := range []string{"sizes/1", "empty", "sparse/big"} {
		if err := unix.Setxattr(filepath.Join(dir, name), "user.test", []byte("v\x00\n"), 0); err != nil {
			t.Logf("no user xattrs here: %v", err)
		}
	}
	if isRoot() {
		tortureRoot(t, dir)
	}
	tortureTimes(t, dir)
}

func sparse(t *testing.T, dir string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0755))
	for name, f := range map[string]struct {
		size int64
		at   []int64
		n    int
	}{
		"big":   {100 << 30, []int64{0, 1 << 30, 50<<30 + 12345}, 100_000},
		"hole":  {1 << 20, nil, 0},
		"tail":  {10 << 20, []int64{0}, 300_000},
		"head":  {10 << 20, []int64{9 << 20}, 1 << 20},
		"small": {100, nil, 0},
		"comb":  {32 << 20, []int64{1 << 20, 3 << 20, 5 << 20, 7 << 20, 9 << 20, 20 << 20}, 4096},
	} {
		p := filepath.Join(dir, name)
		h, err := os.Create(p)
		must(t, err)
		for i, off := range f.at {
			_, err := h.WriteAt(noise(uint64(i+50), f.n), off)
			must(t, err)
		}
		must(t, h.Truncate(f.size))
		must(t, h.Close())
	}
	// Reserved but never written: reads as a hole.
	h, err := os.Create(filepath.Join(dir, "reserved"))
	must(t, err)
	if err := unix.Fallocate(int(h.Fd()), 0, 0, 1<<20); err != nil {
		t.Logf("no fallocate here: %v", err)
	}
	must(t, h.Close())
}

func tortureRoot(t *testing.T, dir string) {
	t.Helper()
	p := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.Lchown(p("sizes/100"), 1234, 5678))
	must(t, os.Lchown(p("broken"), 7, 8))
	must(t, os.Lchown(p("fifo"), 9, 10))
	must(t, os.Lchown(p("modes/6"), 33, 33))
	must(t, unix.Chmod(p("modes/6"), 06755)) // chown has cleared it
	must(t, os.Lchown(p("empty/er"), 1<<31, 1<<32-2))
	must(t, unix.Mknod(p("null"), unix.S_IFCHR|0666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(p("disk"), unix.S_IFBLK|0660, int(unix.Mkdev(259, 70000))))
	must(t, unix.Mknod(p("whiteout"), unix.S_IFCHR|0, 0))
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	must(t, os.Lchown(p("sizes/65536"), 5, 5))
	must(t, unix.Setxattr(p("sizes/65536"), "security.capability", []byte(capability), 0))
	must(t, unix.Setxattr(p("sizes/65536"), "trusted.x", []byte("y"), 0))
	must(t, unix.Lsetxattr(p("broken"), "trusted.link", []byte("y"), 0))
	// A default ACL, which what is made in the directory must not inherit.
	for _, args := range [][]string{
		{"-m", "u:1000:rwx,d:u:1001:rx,d:g:7:w", p("empty")}, {"-m", "u:1000:r,m::r", p("sizes/1")}, {"-m", "d:u:44:rwx", p("many")},
	} {
		if out, err := exec.Command("setfacl", args...).CombinedOutput(); err != nil {
			t.Logf("no ACLs: %v %s", err, out)
		}
	}
}

func tortureTimes(t *testing.T, dir string) {
	t.Helper()
	for name, ns := range map[string]int64{
		"sizes/1": 1_700_000_000_123_456_789, "sizes/0": 0, "sizes/100": -1, "sizes/16384": -1_000_000_001, "broken": 5,
		"empty": 999_999_999, "many": 1, "fifo": 4_000_000_000_000_000_001, ".": 1_234_567_890_987_654_321, "modes": -5_000_000_000,
	} {
		ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(ns)}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, name), ts, unix.AT_SYMLINK_NOFOLLOW))
	}
}

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
	torture(t, src)
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
	torture(t, src)
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
}

func TestTreesDeeperThanPathMax(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	at, err := unix.Open(src, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	name := strings.Repeat("n", 200)
	for range 30 {
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
	unix.Close(fd)
	m, s := into(t, src)
	if p := m.Entries[len(m.Entries)-1].Path; len(p) < 5000 {
		t.Fatalf("path of %d bytes", len(p))
	}
	must(t, Write(t.Context(), dst, m, s, WriteOptions{}))
	if again, _ := captureDir(t, dst, CaptureOptions{}); again.ID() != m.ID() {
		t.Error("another tree")
	}
}
