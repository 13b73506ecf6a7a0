// Package torture makes the trees that tests capture, push and restore.
package torture

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Noise returns n bytes that no compressor makes smaller, the same for the same seed.
func Noise(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	return b[:n]
}

// Tree fills dir with all that a Linux tree can have, as far as this user and
// this file system allow: every kind of entry, odd names, odd times, holes,
// hard links, and for root owners, devices, ACLs and other attributes. It is
// the same each time.
func Tree(t testing.TB, dir string) {
	t.Helper()
	write := func(name string, data []byte, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(p), 0755))
		must(t, os.WriteFile(p, data, 0600))
		must(t, os.Chmod(p, mode))
		return p
	}
	for i, n := range []int{0, 1, 100, 16 << 10, 16<<10 + 1, 64 << 10, 300 << 10, 1 << 20, 5 << 20} {
		write(fmt.Sprintf("sizes/%d", n), Noise(uint64(i), n), 0644)
	}
	write("twice", Noise(8, 5<<20), 0444) // the chunks of sizes/5242880
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
	for from, to := range map[string]string{"broken": "links/symlink", "longlink": "zlonglink", "fifo": "links/fifo"} {
		must(t, os.Link(filepath.Join(dir, from), filepath.Join(dir, to))) // linkat(2) does not follow
	}
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
	if os.Geteuid() == 0 {
		asRoot(t, dir)
	}
	times(t, dir)
}

func sparse(t testing.TB, dir string) {
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
			_, err := h.WriteAt(Noise(uint64(i+50), f.n), off)
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

func asRoot(t testing.TB, dir string) {
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
	must(t, os.Link(p("null"), p("links/null")))
	must(t, os.Link(p("disk"), p("links/disk")))
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	must(t, os.Lchown(p("sizes/65536"), 5, 5))
	must(t, unix.Setxattr(p("sizes/65536"), "security.capability", []byte(capability), 0))
	must(t, unix.Setxattr(p("sizes/65536"), "trusted.x", []byte("y"), 0))
	must(t, unix.Lsetxattr(p("broken"), "trusted.link", []byte("y"), 0))
	for _, name := range []string{"broken", "empty", "sizes/1", "fifo", "null", "."} {
		if err := unix.Lsetxattr(p(name), "security.selinux", []byte("system_u:object_r:etc_t:s0\x00"), 0); err != nil {
			t.Logf("no labels here: %v", err)
		}
	}
	// A default ACL, which what is made in the directory must not inherit.
	for _, args := range [][]string{
		{"-m", "u:1000:rwx,d:u:1001:rx,d:g:7:w", p("empty")}, {"-m", "u:1000:r,m::r", p("sizes/1")}, {"-m", "d:u:44:rwx", p("many")},
	} {
		if out, err := exec.Command("setfacl", args...).CombinedOutput(); err != nil {
			t.Logf("no ACLs: %v %s", err, out)
		}
	}
}

func times(t testing.TB, dir string) {
	t.Helper()
	for name, ns := range map[string]int64{
		"sizes/1": 1_700_000_000_123_456_789, "sizes/0": 0, "sizes/100": -1, "sizes/16384": -1_000_000_001, "broken": 5,
		"empty": 999_999_999, "many": 1, "fifo": 4_000_000_000_000_000_001, ".": 1_234_567_890_987_654_321, "modes": -5_000_000_000,
	} {
		ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(ns)}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, name), ts, unix.AT_SYMLINK_NOFOLLOW))
	}
}
