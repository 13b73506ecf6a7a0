package btrfs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Subvolumes are made, copied, renamed and removed; btrfs(8) sees them as they are.
func TestSubvolumes(t *testing.T) {
	for _, p := range []string{"mkfs.btrfs", "btrfs"} {
		if _, err := exec.LookPath(p); err != nil || os.Geteuid() != 0 {
			if os.Getenv("INGOT_NO_SKIP") != "" {
				t.Fatalf("root and %s are needed", p)
			}
			t.Skipf("root and %s are needed", p)
		}
	}
	img, top := filepath.Join(t.TempDir(), "img"), t.TempDir()
	ok(t, os.WriteFile(img, nil, 0o600))
	ok(t, os.Truncate(img, 128<<20))
	for _, argv := range [][]string{{"mkfs.btrfs", "-q", img}, {"mount", "-o", "loop", img, top}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v %s", argv, err, out)
		}
	}
	t.Cleanup(func() { ok(t, unix.Unmount(top, 0)) })
	dir, err := os.Open(top)
	ok(t, err)
	defer dir.Close()
	list := func(want string) {
		t.Helper()
		out, err := exec.Command("btrfs", "subvolume", "list", top).CombinedOutput()
		ok(t, err)
		var names []string
		for line := range strings.Lines(string(out)) {
			names = append(names, line[strings.LastIndex(line, " ")+1:len(line)-1])
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("btrfs lists %q, want %q", got, want)
		}
	}
	ok(t, Create(dir, "@a"))
	ok(t, Create(dir, "@b"))
	if err := Create(dir, "@a"); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second @a: %v", err)
	}
	ok(t, os.WriteFile(top+"/@a/file", []byte("a"), 0o600))
	a, err := os.Open(top + "/@a")
	ok(t, err)
	defer a.Close()
	ok(t, Snapshot(a, dir, "@next", false))
	list("@a @b @next")
	ok(t, os.WriteFile(top+"/@next/file", []byte("next"), 0o600))
	if b, err := os.ReadFile(top + "/@a/file"); err != nil || string(b) != "a" {
		t.Errorf("the original has %q, %v", b, err)
	}
	ok(t, Exchange(dir, "@next", "@b"))
	if b, err := os.ReadFile(top + "/@b/file"); err != nil || string(b) != "next" {
		t.Errorf("after the exchange @b has %q, %v", b, err)
	}
	ok(t, Delete(dir, "@next"))
	list("@a @b")
	if err := Delete(dir, "@next"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("removing what is gone: %v", err)
	}
	ok(t, Snapshot(a, dir, "@ro", true))
	if err := os.WriteFile(top+"/@ro/file", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("a write to a read-only snapshot: %v", err)
	}
	if n, err := Nested(dir); err != nil || n != 3 {
		t.Errorf("%d subvolumes, %v", n, err)
	}
	for path, want := range map[string]error{top: nil, top + "/@a": nil, t.TempDir(): ErrNoSubvolume} {
		if err := IsSubvolume(path); !errors.Is(err, want) {
			t.Errorf("%q: %v", path, err)
		}
	}
}
