package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, d := range list {
		out = append(out, d.Name())
	}
	return out
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "f")
	for _, want := range []string{"one", "", "two two"} {
		if err := WriteFile(p, []byte(want), 0664); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(p)
		if err != nil || string(got) != want {
			t.Errorf("read %q, %v; want %q", got, err, want)
		}
	}
	st, err := os.Stat(p)
	if err != nil || st.Mode().Perm() != 0664 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if n := names(t, dir); len(n) != 1 {
		t.Errorf("left behind: %q", n)
	}
}

func TestFailuresLeaveTheOldFile(t *testing.T) {
	dir := t.TempDir()
	if err := WriteFile(filepath.Join(dir, "gone", "f"), nil, 0600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
	// A directory in the way makes the rename fail, after everything was written.
	p := filepath.Join(dir, "taken")
	if err := os.MkdirAll(filepath.Join(p, "x"), 0700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(p, []byte("x"), 0600); err == nil || !strings.Contains(err.Error(), "taken") {
		t.Errorf("onto a directory: %v", err)
	}
	f, err := Create(filepath.Join(dir, "aborted"), 0600)
	if err != nil {
		t.Fatal(err)
	}
	f.Abort()
	f.Abort()
	if err := f.Commit(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("commit after abort: %v", err)
	}
	if n := names(t, dir); len(n) != 1 || n[0] != "taken" {
		t.Errorf("left behind: %q", n)
	}
}

func TestCommitAs(t *testing.T) {
	dir := t.TempDir()
	if err := MkdirAll(filepath.Join(dir, "a/b"), 0700); err != nil {
		t.Fatal(err)
	}
	f, err := Create(filepath.Join(dir, "x"), 0400)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Abort()
	if _, err := f.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	if err := f.CommitAs(filepath.Join(dir, "a/b/c")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "a/b/c")); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	if n := names(t, dir); len(n) != 1 {
		t.Errorf("left behind: %q", n)
	}
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	busy, err := Create(filepath.Join(dir, "f"), 0600)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{prefix + "dead", "keep"} {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("keep", filepath.Join(dir, prefix+"link")); err != nil {
		t.Fatal(err)
	}
	if n, err := Sweep(dir); n != 1 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	if err := busy.Commit(); err != nil {
		t.Errorf("a file being written was swept: %v", err)
	}
	want := []string{prefix + "link", "f", "keep"}
	if got := names(t, dir); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("left %q, want %q", got, want)
	}
	if _, err := Sweep(filepath.Join(dir, "gone")); err == nil {
		t.Error("swept a directory that is not there")
	}
}

func TestClaimNoticesASweep(t *testing.T) {
	p := filepath.Join(t.TempDir(), prefix+"x")
	f, err := os.Create(p)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if gone, err := sweepOne(p); !gone || err != nil {
		t.Fatalf("sweep: %v, %v", gone, err)
	}
	if alive, err := claim(f, 0600); alive || err != nil {
		t.Errorf("claimed a file without a name: %v, %v", alive, err)
	}
}

func TestCreateWhileSweeping(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := Sweep(dir); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for range 100 {
		f, err := Create(filepath.Join(dir, "f"), 0600)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Access(f.Name(), unix.F_OK); err != nil {
			t.Fatalf("swept while being written: %v", err)
		}
		f.Abort()
	}
	close(stop)
	wg.Wait()
}
