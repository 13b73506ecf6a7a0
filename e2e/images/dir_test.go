//go:build linux && amd64

package images

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ingot/internal/steps"
	"ingot/internal/torture"
)

// nobody is a user that is not root.
const nobody = 65534

// A torture tree that is pushed into an empty directory is the same there, and
// again when another has been there between, whoever judges.
func TestPushDirOfEverything(t *testing.T) {
	need(t, "rsync", "setfacl")
	s := newSite(t)
	src, other, out := filepath.Join(t.TempDir(), "src"), t.TempDir(), t.TempDir()
	torture.Tree(t, src)
	ok(t, os.Remove(filepath.Join(src, "sparse/big"))) // 100 GB take rsync minutes
	ok(t, os.WriteFile(filepath.Join(other, "sizes"), []byte("a file where a directory was"), 0o600))
	ok(t, os.Mkdir(filepath.Join(other, "fifo"), 0o700))
	s.must("image", "capture", src, "all:1")
	s.must("image", "capture", other, "other:1")
	for i, image := range []string{"all:1", "other:1", "all:1"} {
		if r := s.must("push", image, "--dir", out); !strings.Contains(r.out, fmt.Sprintf("generation %d is %s", i+1, image)) {
			t.Errorf("push %s: %s", image, r.said())
		}
		want := map[string]string{"all:1": src, "other:1": other}[image]
		rsyncSame(t, want, out)
		if r := s.must("push", image, "--dir", out); !strings.Contains(r.out, "unchanged") {
			t.Errorf("again: %s", r.said())
		}
	}
	s.must("rollback", "--dir", out)
	rsyncSame(t, other, out)
	s.must("rollback", "--dir", out)
	rsyncSame(t, src, out)
}

// Who is not root gets what he can have, hears of the rest, and has nothing
// to do the second time.
func TestPushDirNotRoot(t *testing.T) {
	need(t, "rsync", "setfacl")
	base, err := os.MkdirTemp("", "ingot-nobody-")
	ok(t, err)
	t.Cleanup(func() { os.RemoveAll(base) })
	ok(t, os.Chmod(base, 0o755))
	bin := filepath.Join(base, "ingot")
	b, err := os.ReadFile(built("ingot"))
	ok(t, err)
	ok(t, os.WriteFile(bin, b, 0o755))
	s, src, src2, out, want := siteIn(t, base), filepath.Join(base, "src"), filepath.Join(base, "src2"), filepath.Join(base, "out"), filepath.Join(base, "want")
	torture.Tree(t, src)
	ok(t, os.Remove(filepath.Join(src, "sparse/big"))) // 100 GB take rsync minutes
	ok(t, os.Remove(filepath.Join(src, "modes/none"))) // 0000: not even its owner reads it
	tinyTree(t, src2)
	s.must("image", "capture", src, "all:1")
	s.must("image", "capture", src2, "tiny:1")
	ok(t, os.Mkdir(out, 0o755))
	for _, args := range [][]string{
		{"chown", "-R", fmt.Sprint(nobody), s.dir, out},
		{"rsync", "-aHAXS", "--numeric-ids", "--no-devices", "-@-1", src + "/", want + "/"},
		{"rsync", "-aHAXS", "--numeric-ids", "-@-1", src2 + "/", want + "2/"},
		{"chown", "-hR", fmt.Sprintf("%d:%d", nobody, nobody), want, want + "2"}, // which takes setuid and capabilities
	} {
		if o, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", args, err, o)
		}
	}
	as := func(args ...string) result {
		return runProgram(t, "setpriv", append([]string{fmt.Sprintf("--reuid=%d", nobody), fmt.Sprintf("--regid=%d", nobody), "--clear-groups", "env", "HOME=" + base, bin, "--site", s.dir}, args...)...)
	}
	// Attributes that only root sees are of what rsync copied as root.
	judge := []string{"--filter=-xr trusted.*", "--filter=-xr security.*"}
	r := as("push", "all:1", "--dir", out)
	if r.code != 0 {
		t.Fatalf("push: %+v", r)
	}
	for _, w := range []string{"device nodes not made: needs root", "owners not restored", "set-group-ID bits not restored", `"security.capability" not restored`, `"trusted.x" not restored`} {
		if !strings.Contains(r.err, w) {
			t.Errorf("does not say %q: %s", w, r.err)
		}
	}
	rsyncSame(t, want, out, judge...)
	if r := as("push", "all:1", "--dir", out); r.code != 0 || !strings.Contains(r.out, "unchanged") {
		t.Errorf("again: %+v", r)
	}
	for _, step := range []struct{ args, want string }{{"push tiny:1", want + "2"}, {"push all:1", want}, {"rollback", want + "2"}} {
		if r := as(append(strings.Fields(step.args), "--dir", out)...); r.code != 0 {
			t.Fatalf("%s: %+v", step.args, r)
		}
		rsyncSame(t, step.want, out, judge...)
	}

	// What it cannot read fails a capture, by name.
	ok(t, os.WriteFile(filepath.Join(src2, "secret"), []byte("x"), 0o600))
	if r := as("image", "capture", src2, "no:1"); r.code != 1 || !strings.Contains(r.err, `"secret"`) && !strings.Contains(r.err, `"large"`) {
		t.Errorf("capture of what cannot be read: %+v", r)
	}
}

// A rollback of a directory that is broken at any of its steps leaves the old
// tree, the new one, or one that the repeat makes the new one; rsync judges.
// TestBrokenPush does the same to pushes.
func TestBrokenRollback(t *testing.T) {
	need(t, "cp", "rsync")
	s, one, two := siteIn(t, quickDir(t)), t.TempDir(), t.TempDir()
	tinyTree(t, one)
	tinyTree(t, two)
	ok(t, os.WriteFile(filepath.Join(two, "large"), torture.Noise(9, 200<<10), 0o600))
	ok(t, os.Remove(filepath.Join(two, "link")))
	ok(t, os.Mkdir(filepath.Join(two, "link"), 0o711))
	ok(t, os.WriteFile(filepath.Join(two, "link/new"), nil, 0o600))
	s.must("image", "capture", one, "web:1")
	s.must("image", "capture", two, "web:2")
	start := filepath.Join(quickDir(t), "start")
	ok(t, os.Mkdir(start, 0o755))
	for _, image := range []string{"web:1", "web:2"} {
		s.must("push", image, "--dir", start)
	}
	for name, f := range mishaps() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s.everyRollbackStep(t, quickDir(t), start, two, one, f, stride(name, false))
		})
	}
}

func (s site) everyRollbackStep(t *testing.T, scratch, start, before, after string, f steps.Fault, stride int) {
	n := 0
	for f.At = 1; !t.Failed(); f.At += stride {
		dir := filepath.Join(scratch, "dir")
		ok(t, os.RemoveAll(dir))
		copyOf(t, start, dir)
		f.Within, f.Report = []string{dir}, filepath.Join(scratch, "report")
		f.Argv = []string{built("ingot"), "--site", s.dir, "rollback", "--dir", dir}
		cmd, err := steps.Command(f)
		ok(t, err)
		said, _ := cmd.CombinedOutput() // its exit status is in the report
		r, err := f.Read()
		ok(t, err)
		if r.Hit == 0 {
			break
		}
		n++
		step := r.Steps[f.At-1]
		if err := s.rollbackSurvived(dir, r.Code, before, after); err != nil {
			t.Errorf("step %d, %s: %v\nexit %d: %s", f.At, step, err, r.Code, said)
		}
	}
	if t.Logf("%d steps", n); n < 20/stride {
		t.Errorf("only %d steps", n)
	}
}

func (s site) rollbackSurvived(dir string, code int, before, after string) error {
	under := func(name string) bool { _, err := os.Lstat(filepath.Join(dir, ".ingot", name)); return err == nil }
	isOld, isNew := rsyncDiffers(before, dir), rsyncDiffers(after, dir)
	switch {
	case code == 0 && isNew != nil:
		return fmt.Errorf("it said that it had succeeded: %w", isNew)
	case isOld != nil && isNew != nil && !under("journal") && !under("writing"):
		return fmt.Errorf("neither old nor new, and nothing says so: %w; %w", isOld, isNew)
	case isNew == nil:
		return nil // a repeat would go back again
	}
	if r := s.ingot("rollback", "--dir", dir); r.code != 0 {
		return fmt.Errorf("the repeat: exit %d: %s", r.code, r.said())
	}
	if under("journal") || under("writing") {
		return errors.New("after the repeat something is unfinished")
	}
	if isOld, isNew := rsyncDiffers(before, dir), rsyncDiffers(after, dir); isOld != nil && isNew != nil { // it may have finished the first, and gone back again
		return fmt.Errorf("after the repeat: neither old nor new: %w; %w", isOld, isNew)
	}
	return nil
}

// rsyncDiffers is what rsync finds that differs.
func rsyncDiffers(a, b string) error {
	for _, d := range [][2]string{{a, b}, {b, a}} {
		out, err := exec.Command("rsync", "-aHAXSn", "-@-1", "--numeric-ids", "--checksum", "--delete", "--itemize-changes", "--omit-dir-times", "--exclude=/.ingot", d[0]+"/", d[1]+"/").CombinedOutput()
		if err != nil || len(out) > 0 {
			return fmt.Errorf("%s to %s: %w\n%s", d[0], d[1], err, out)
		}
	}
	return nil
}

func copyOf(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
