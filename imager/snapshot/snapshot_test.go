package snapshot

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ingot/internal/btrfs"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("INGOT_NO_SKIP") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// btrfsTop mounts a new file system.
func btrfsTop(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "needs root: mounts")
	}
	if _, err := exec.LookPath("mkfs.btrfs"); err != nil {
		skip(t, "needs mkfs.btrfs")
	}
	dir := t.TempDir()
	img, top := filepath.Join(dir, "img"), filepath.Join(dir, "top")
	must(t, os.WriteFile(img, nil, 0o600))
	must(t, os.Truncate(img, 128<<20))
	must(t, os.Mkdir(top, 0o755))
	for _, argv := range [][]string{{"mkfs.btrfs", "-q", img}, {"mount", "-o", "loop", img, top}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			skip(t, fmt.Sprintf("%q: %v %s", argv, err, out))
		}
	}
	t.Cleanup(func() { must(t, unix.Unmount(top, 0)) })
	return top
}

func snapshots(t *testing.T, top string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(filepath.Join(top, stateDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestBtrfs(t *testing.T) {
	top := btrfsTop(t)
	must(t, os.WriteFile(top+"/f", []byte("old"), 0o600))
	for _, how := range []string{Auto, Btrfs} {
		s, err := Take(t.Context(), top, how, "")
		must(t, err)
		if !s.Taken() || !strings.HasPrefix(s.Dir, top+"/.ingot/snapshots/") {
			t.Fatalf("%s: %+v", how, s)
		}
		must(t, os.WriteFile(top+"/f", []byte("new"), 0o600))
		if b, err := os.ReadFile(s.Dir + "/f"); err != nil || string(b) != "old" {
			t.Errorf("%s: the snapshot has %q, %v", how, b, err)
		}
		if err := os.WriteFile(s.Dir+"/f", nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: it can be written to: %v", how, err)
		}
		if _, err := Take(t.Context(), top, Btrfs, ""); !errors.Is(err, ErrBusy) {
			t.Errorf("%s: a second one: %v", how, err)
		}
		if second, err := Take(t.Context(), top, Auto, ""); err != nil || second.Taken() || second.Note == "" {
			t.Errorf("%s: a second one, if possible: %+v, %v", how, second, err)
		}
		must(t, s.Release())
		must(t, s.Release())
		if left := snapshots(t, top); left != nil {
			t.Errorf("%s: left %q", how, left)
		}
		must(t, os.WriteFile(top+"/f", []byte("old"), 0o600))
	}
}

// A capture that was killed leaves its snapshot; the next one removes it.
func TestBtrfsAfterAKill(t *testing.T) {
	top := btrfsTop(t)
	st, err := openState(t.Context(), top)
	must(t, err)
	_, err = st.btrfs(top)
	must(t, err)
	must(t, st.close()) // as the kernel does when a process ends
	if left := snapshots(t, top); len(left) != 1 {
		t.Fatalf("left %q", left)
	}
	s, err := Take(t.Context(), top, Btrfs, "")
	must(t, err)
	if left := snapshots(t, top); len(left) != 1 || filepath.Base(s.Dir) != left[0] {
		t.Errorf("%q, and now it is %q", left, s.Dir)
	}
	must(t, s.Release())
}

func TestBtrfsThatASnapshotWouldCutShort(t *testing.T) {
	top := btrfsTop(t)
	if out, err := exec.Command("btrfs", "subvolume", "create", top+"/var").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if _, err := Take(t.Context(), top, Btrfs, ""); err == nil || !strings.Contains(err.Error(), "1 subvolumes") {
		t.Errorf("asked for: %v", err)
	}
	s, err := Take(t.Context(), top, Auto, "")
	if err != nil || s.Dir != top || !strings.Contains(s.Note, "without a snapshot") {
		t.Errorf("if possible: %+v, %v", s, err)
	}
	if _, err := Take(t.Context(), top+"/.ingot", Btrfs, ""); !errors.Is(err, btrfs.ErrNoSubvolume) {
		t.Errorf("of a directory: %v", err)
	}
}

func TestCommand(t *testing.T) {
	top, other := t.TempDir(), t.TempDir()
	log := filepath.Join(t.TempDir(), "log")
	start := fmt.Sprintf(`echo start "$INGOT_TREE" >>%s; echo noise; echo %s`, log, other)
	end := fmt.Sprintf(`echo end "$INGOT_SNAPSHOT" >>%s`, log)
	s, err := Take(t.Context(), top, start, end)
	must(t, err)
	if s.Dir != other {
		t.Errorf("%+v", s)
	}
	must(t, s.Release())
	if b, _ := os.ReadFile(log); string(b) != "start "+top+"\nend "+other+"\n" {
		t.Errorf("ran %q", b)
	}
	if left := snapshots(t, top); left != nil {
		t.Errorf("left %q", left)
	}
	for what, how := range map[string]string{"fails": "echo oh >&2; exit 3", "no path": "echo x", "nothing": "true", "the tree": "echo " + top, "a file": "echo " + log, "not there": "echo /nowhere/at/all"} {
		must(t, os.WriteFile(log, nil, 0o600))
		if _, err := Take(t.Context(), top, how, end); err == nil {
			t.Errorf("%s: taken", what)
		}
		if b, _ := os.ReadFile(log); string(b) != "end \n" { // and no word of a directory that is none
			t.Errorf("%s: ran %q", what, b)
		}
	}
	if _, err := Take(t.Context(), top, "echo "+other, ""); err != nil {
		t.Errorf("without an end: %v", err)
	}
}

func TestCommandAfterAKill(t *testing.T) {
	top, other := t.TempDir(), t.TempDir()
	log := filepath.Join(t.TempDir(), "log")
	st, err := openState(t.Context(), top)
	must(t, err)
	_, err = st.command(t.Context(), top, "echo "+other, "echo released $INGOT_SNAPSHOT >>"+log)
	must(t, err)
	must(t, st.close())
	s, err := Take(t.Context(), top, "cat "+log+"; echo "+other, "true")
	must(t, err)
	if b, _ := os.ReadFile(log); string(b) != "released "+other+"\n" {
		t.Errorf("ran %q", b)
	}
	must(t, s.Release())
}

// The tree may be anybody's: what is planted in it is not run.
func TestPlantedCommand(t *testing.T) {
	if os.Geteuid() != 0 {
		skip(t, "needs root: owners")
	}
	for what, plant := range map[string]func(dir string){
		"somebody's file":      func(d string) { must(t, os.Chown(d+"/.ingot/snapshots/end", 1000, 1000)) },
		"somebody's directory": func(d string) { must(t, os.Chown(d+"/.ingot", 1000, 1000)) },
		"all may write":        func(d string) { must(t, os.Chmod(d+"/.ingot/snapshots", 0o777)) },
		"a linked file": func(d string) {
			must(t, os.Rename(d+"/.ingot/snapshots/end", d+"/x"))
			must(t, os.Symlink("../../x", d+"/.ingot/snapshots/end"))
		},
		"a link": func(d string) {
			must(t, os.Rename(d+"/.ingot", d+"/x"))
			must(t, os.Symlink("x", d+"/.ingot"))
		},
	} {
		top, proof := t.TempDir(), filepath.Join(t.TempDir(), "proof")
		must(t, os.MkdirAll(top+"/.ingot/snapshots", 0o700))
		must(t, os.WriteFile(top+"/.ingot/snapshots/end", []byte("touch "+proof), 0o600))
		plant(top)
		_, err := Take(t.Context(), top, "echo "+t.TempDir(), "true")
		if _, there := os.Stat(proof); err == nil || there == nil {
			t.Errorf("%s: %v, ran: %v", what, err, there == nil)
		}
	}
}
