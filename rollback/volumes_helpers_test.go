package rollback

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// needMounts skips a test where nothing can be mounted.
func needMounts(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("INGOT_NO_SKIP") != "" {
		t.Fatal("only root can mount")
	}
	t.Skip("only root can mount")
}

// crossing lets a scan enter everything that is mounted and may take part.
func crossing(t testing.TB, s *scanner) {
	t.Helper()
	top, mounts, err := s.n.mounts()
	ok(t, err)
	s.rules.vols = volumes{top}
	for _, m := range mounts {
		if m.why == "" {
			s.rules.vols = append(s.rules.vols, m.volume)
		}
	}
	s.rules.volatile = s.rules.volatile.With(tended(s.rules.vols.described()))
}

// disk makes an empty file system and mounts it at dir for the time of the test.
func disk(t testing.TB, kind, dir, options string) {
	t.Helper()
	needMounts(t)
	ok(t, os.MkdirAll(dir, 0o755))
	if kind == "tmpfs" {
		ok(t, unix.Mount("ingot-test", dir, "tmpfs", 0, options))
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		ok(t, os.Chmod(dir, 0o755)) // the top of a tmpfs is sticky
		return
	}
	mkfs, err := exec.LookPath("mkfs." + kind)
	if err != nil {
		if os.Getenv("INGOT_NO_SKIP") != "" {
			t.Fatalf("mkfs.%s is not installed", kind)
		}
		t.Skipf("mkfs.%s is not installed", kind)
	}
	image := dir + ".img"
	ok(t, os.WriteFile(image, nil, 0o600))
	ok(t, os.Truncate(image, 320<<20))                   // the smallest xfs has 300 MiB
	block := map[string][]string{"ext4": {"-b", "4096"}} // holes are of blocks: as large as those of the other trees
	run(t, mkfs, append(block[kind], "-q", image)...)
	run(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	os.Remove(dir + "/lost+found")
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

// attach mounts a disk at a directory of the node, as a whole.
func (w *world) attach(disk, at string) {
	w.t.Helper()
	ok(w.t, os.MkdirAll(w.at(at), 0o755))
	ok(w.t, unix.Mount(disk, w.at(at), "", unix.MS_BIND, ""))
}

func (w *world) detach(at string) { w.t.Helper(); ok(w.t, unix.Unmount(w.at(at), 0)) }

// fill makes the node the old tree, on several file systems where mounts are named.
func (w *world) fill(kind string, mounts ...string) {
	w.t.Helper()
	if len(mounts) == 0 {
		copyTree(w.t, w.old, w.dir)
		return
	}
	ok(w.t, os.Mkdir(w.dir, 0o755))
	w.mounts = mounts
	for i, at := range mounts {
		d := filepath.Join(filepath.Dir(w.dir), "disk"+strconv.Itoa(i))
		disk(w.t, kind, d, "")
		w.disks = append(w.disks, d)
		w.attach(d, at)
		w.t.Cleanup(func() { unix.Unmount(w.at(at), unix.MNT_DETACH) })
	}
	copyTree(w.t, w.old+"/.", w.dir)
}

// holdsMount reports whether a path is, or is above, a directory that stays one.
func (g *garden) holdsMount(p string) bool {
	for _, at := range g.mounts {
		if p == at || under(at, p) {
			return true
		}
	}
	return false
}

// tops lists where an .ingot may be.
func (w *world) tops() []string {
	out := []string{w.dir}
	for _, at := range w.mounts {
		out = append(out, w.at(at))
	}
	return out
}

const ownMounts = "INGOT_TEST_OWN_MOUNTS"

// inOwnMounts runs the tests in a mount namespace of their own: what they mount
// goes with them, and nobody's namespace keeps it busy. Where there can be none
// they run as they are.
func inOwnMounts() (status int, done bool) {
	if os.Getenv(ownMounts) != "" || os.Geteuid() != 0 {
		return 0, false
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), ownMounts+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if cmd.Start() != nil {
		return 0, false
	}
	if err := cmd.Wait(); err != nil {
		return max(1, cmd.ProcessState.ExitCode()), true
	}
	return 0, true
}
