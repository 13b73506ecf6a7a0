package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ingot/imager"
	"ingot/imager/snapshot"
	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/steps"
	"ingot/rollback"
)

const asAgent = "as-agent"

// TestMain lets the test binary be the agent that is killed, and who kills it.
func TestMain(m *testing.M) {
	if status, mine := steps.Main(); mine {
		os.Exit(status)
	}
	if len(os.Args) > 1 && os.Args[1] == asAgent {
		out, code := runAgent(os.Args[2:]...)
		fmt.Print(out)
		os.Exit(code)
	}
	if status, done := inOwnMounts(); done {
		os.Exit(status)
	}
	os.Exit(m.Run())
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

func TestParsePartitions(t *testing.T) {
	got := parsePartitions([]byte("major minor  #blocks  name\n\n   8        0  488386584 sda\n   8        1     524288 sda1\n 104        1   10 cciss!c0d0p1\n"))
	if want := []string{"/dev/sda", "/dev/sda1", "/dev/cciss/c0d0p1"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestCandidates(t *testing.T) {
	all := []device{{"/dev/sda1", "ext4", "root"}, {"/dev/sda2", "xfs", "srv"}, {"/dev/sdb1", "ext4", "srv"}, {"/dev/sdc1", "ext4", "moved"}, {"/dev/sdd", "", ""}}
	for _, tt := range []struct {
		v    rollback.Volume
		want string
	}{
		{rollback.Volume{FSType: "ext4", UUID: "srv", Source: "/dev/sdb1"}, "/dev/sdb1 /dev/sda1 /dev/sdc1"},
		{rollback.Volume{FSType: "ext3", UUID: "moved", Source: "/dev/sdb1"}, "/dev/sdc1 /dev/sdb1 /dev/sda1"},
		{rollback.Volume{FSType: "ext4", UUID: "moved", Source: "/dev/mapper/vg-srv"}, "/dev/sdc1 /dev/sda1 /dev/sdb1"},
		{rollback.Volume{FSType: "ext4", Source: "/dev/sdc1"}, "/dev/sdc1 /dev/sda1 /dev/sdb1"},
		{rollback.Volume{FSType: "xfs", UUID: "gone"}, "/dev/sda2"},
		{rollback.Volume{FSType: "btrfs", UUID: "srv"}, ""},
	} {
		if got := strings.Join(candidates(tt.v, all), " "); got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.v, got, tt.want)
		}
	}
}

// loop makes an ext4 on a loop device.
func loop(t *testing.T) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 16<<20); err != nil {
		t.Fatal(err)
	}
	command(t, "mkfs.ext4", "-q", image)
	dev := strings.TrimSpace(command(t, "losetup", "-f", "--show", image))
	t.Cleanup(func() { command(t, "losetup", "-d", dev) })
	return dev
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

func needLoops(t *testing.T) {
	t.Helper()
	_, err := exec.LookPath("mkfs.ext4")
	if err == nil && os.Geteuid() == 0 {
		return
	}
	if os.Getenv("INGOT_NO_SKIP") != "" {
		t.Fatalf("needs root and mkfs.ext4: %v", err)
	}
	t.Skip("needs root and mkfs.ext4")
}

// TestRecoveryMountsWhatItNeeds kills a rollback over three file systems, one
// in another, at points all over it, unmounts all but the top, and recovers as
// before init: with disks of the same type that are something else beside them.
func TestRecoveryMountsWhatItNeeds(t *testing.T) {
	needLoops(t)
	top := t.TempDir()
	other, srv, deep := loop(t), loop(t), loop(t)
	mount := func(dev, at string) {
		t.Helper()
		dir := filepath.Join(top, at)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(dev, dir, "ext4", 0, ""); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(dir + "/lost+found")
	}
	mount(srv, "srv")
	mount(deep, "srv/deep")
	t.Cleanup(func() {
		unix.Unmount(top+"/srv/deep", unix.MNT_DETACH)
		unix.Unmount(top+"/srv", unix.MNT_DETACH)
	})
	for _, text := range []string{"one", "two"} {
		m, src := treeOf(map[string]string{"motd": text, "srv/a": text, "srv/deep/b": text})
		for _, dir := range []string{"srv", "srv/deep"} {
			m.Entries = append(m.Entries, entry.Entry{Path: dir, Type: entry.Dir, Mode: 0o755})
		}
		m.Sort()
		if _, err := pushTo(t, top, wire.Request{Ref: "web:" + text}, m, src, nil); err != nil {
			t.Fatal(err)
		}
	}
	list := func() ([]device, error) {
		var out []device
		for _, path := range []string{other, deep, srv} {
			f, err := os.Open(path)
			if err != nil {
				return nil, err
			}
			fstype, uuid := rollback.Probe(f)
			f.Close()
			out = append(out, device{path, fstype, uuid})
		}
		return out, nil
	}
	all := agentSteps(t, top, 0)
	if all < 40 {
		t.Fatalf("a rollback has %d steps", all)
	}
	recovered, states := 0, map[string]int{}
	for at := 20; at <= all; at += 2 { // staging comes before that
		for _, dir := range []string{top, top + "/srv", top + "/srv/deep"} { // else what dead ones left would be removed first
			if err := os.RemoveAll(dir + "/.ingot/stage"); err != nil {
				t.Fatal(err)
			}
		}
		agentSteps(t, top, at)
		if _, err := os.Lstat(top + "/.ingot/journal"); err == nil {
			recovered++
			unmount(t, top+"/srv/deep")
			unmount(t, top+"/srv")
			if _, err := recoverVolumes(top, disks{list, 0}, false); err != nil {
				t.Fatalf("killed at step %d: %v", at, err)
			}
			if isMounted(top + "/srv") {
				t.Fatal("the recovery left something mounted")
			}
			mount(srv, "srv")
			mount(deep, "srv/deep")
		}
		states[state(t, top)]++
	}
	// The boot entry of the generation before, too, needs all of them.
	was := state(t, top)
	unmount(t, top+"/srv/deep")
	unmount(t, top+"/srv")
	if boot, err := recoverVolumes(top, disks{list, 0}, true); err != nil || !boot {
		t.Fatalf("back to the generation before: %v; boots once more: %v", err, boot)
	}
	mount(srv, "srv")
	mount(deep, "srv/deep")
	if now := state(t, top); now == was {
		t.Errorf("taken back, the tree is still %q", now)
	}
	t.Logf("%d recoveries, %v", recovered, states)
	if recovered < 10 || states["one"] == 0 || states["two"] == 0 {
		t.Errorf("%d recoveries led to %v", recovered, states)
	}
}

func unmount(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatalf("unmount %q: %v", dir, err)
	}
}

// agentSteps runs a rollback of top and kills it at one step; 0: at none. It
// returns how many there were.
func agentSteps(t *testing.T, top string, at int) int {
	t.Helper()
	f := steps.Fault{Within: []string{top}, At: at, Do: steps.Kill, Report: filepath.Join(t.TempDir(), "report"),
		Argv: []string{os.Args[0], asAgent, "rollback", "--dir", top}}
	cmd, err := steps.Command(f)
	if err != nil {
		t.Fatal(err)
	}
	out, runErr := cmd.CombinedOutput()
	r, err := f.Read()
	if err != nil || at == 0 && runErr != nil {
		t.Fatalf("%v, %v: %s", err, runErr, out)
	}
	return len(r.Steps)
}

// state returns the one text that all files have.
func state(t *testing.T, top string) string {
	t.Helper()
	var text string
	for i, name := range []string{"motd", "srv/a", "srv/deep/b"} {
		b, err := os.ReadFile(filepath.Join(top, name))
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 && string(b) != text {
			t.Fatalf("%s is %q, others are %q", name, b, text)
		}
		text = string(b)
	}
	return text
}

// A disk that is not there is named, and nothing stays mounted.
func TestRecoveryWithoutTheDisk(t *testing.T) {
	needLoops(t)
	top := t.TempDir()
	if err := os.Mkdir(top+"/srv", 0o755); err != nil {
		t.Fatal(err)
	}
	dev := loop(t)
	list := func() ([]device, error) { return []device{{dev, "ext4", "x"}}, nil }
	v := rollback.Volume{At: "srv", ID: "GONE", FSType: "ext4", UUID: "1-2-3", Source: "/dev/nowhere"}
	leave, err := disks{list, 0}.mount(top, []rollback.Volume{v})
	if err == nil || !strings.Contains(err.Error(), `mount "/srv": no device has the file system (ext4 of /dev/nowhere, UUID 1-2-3)`) || !strings.Contains(err.Error(), dev+": is another file system") {
		t.Errorf("got %v", err)
	}
	if err := leave(); err != nil || isMounted(top+"/srv") {
		t.Errorf("something is still mounted: %v", err)
	}
}

// taken is a store that takes everything.
type taken struct{ chunks }

func (s taken) Put(_ context.Context, id digest.ID, data []byte) error {
	s.chunks[id] = bytes.Clone(data)
	return nil
}

// A capture of a node takes the file systems that its record is about, but not
// ingot's own directories there, nor what else is mounted; a part of a node's
// tree would be taken away where it is pushed.
func TestCaptureOfVolumes(t *testing.T) {
	needLoops(t)
	top := t.TempDir()
	for _, at := range []string{"srv", "data"} {
		dir := filepath.Join(top, at)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(loop(t), dir, "ext4", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		if err := os.RemoveAll(dir + "/lost+found"); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(top+"/data/own", []byte("the node's"), 0o644); err != nil {
		t.Fatal(err)
	}
	m, src := treeOf(map[string]string{"motd": "one", "srv/a": "two"})
	for _, dir := range []string{"srv", "data"} {
		m.Entries = append(m.Entries, entry.Entry{Path: dir, Type: entry.Dir, Mode: 0o755})
	}
	m.Sort()
	if _, err := pushTo(t, top, wire.Request{Ref: "web:1"}, m, src, nil); err != nil {
		t.Fatal(err)
	}
	var paths []string
	session(t, func(c *wire.Conn) {
		got, _, err := imager.Capture(t.Context(), c, wire.Request{Dir: top, Snapshot: snapshot.Auto}, taken{chunks{}}, nil)
		if err != nil {
			t.Error(err)
			return
		}
		for _, e := range got.Entries {
			paths = append(paths, e.Path)
		}
	})
	if want := []string{".", "data", "motd", "srv", "srv/a"}; !slices.Equal(paths, want) {
		t.Errorf("captured %q, want %q", paths, want)
	}
}
