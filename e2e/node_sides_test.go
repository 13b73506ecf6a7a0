package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/rollback/sides"
)

func sidesCases() map[string]func(*testing.T, *base) {
	return map[string]func(*testing.T, *base){
		"the other one of two partitions": func(t *testing.T, b *base) { testSides(t, b, false) },
		"the other one of two subvolumes": func(t *testing.T, b *base) { testSides(t, b, true) },
	}
}

// loop is an image of a disk as a block device, with a file system.
func loop(t *testing.T, mkfs ...string) (dev, uuid string) {
	t.Helper()
	img := filepath.Join(t.TempDir(), "img")
	ok(t, os.WriteFile(img, nil, 0o600))
	ok(t, os.Truncate(img, 512<<20))
	dev = strings.TrimSpace(run(t, "losetup", "--find", "--show", img))
	t.Cleanup(func() { run(t, "losetup", "--detach", dev) })
	run(t, mkfs[0], append(mkfs[1:], dev)...)
	return dev, strings.TrimSpace(run(t, "blkid", "-o", "value", "-s", "UUID", dev))
}

// mounted mounts a device for a test, or for fn.
func mounted(t *testing.T, dev, dir string, options ...string) {
	t.Helper()
	ok(t, os.MkdirAll(dir, 0o755))
	run(t, "mount", append(options, dev, dir)...)
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

// sidesRig is a node with two sides, which runs on the first.
type sidesRig struct {
	*rig
	conf   *sides.Config
	shared string   // its device
	env    string   // where that of the boot loader is mounted here
	made   []string // mounts in the root
	option string   // of the mount of the shared one
}

func newSidesRig(t *testing.T, b *base, subvolumes bool) (r *sidesRig, other string) {
	t.Helper()
	r = &sidesRig{env: filepath.Join(t.TempDir(), "env"), option: "defaults"}
	envDev, envUUID := loop(t, "mkfs.ext2", "-q")
	r.conf = &sides.Config{Side: sides.A, Roots: map[string]sides.Device{}, Env: sides.Device{FSType: "ext4", UUID: envUUID},
		Trees: []string{"home", "var/lib", "var/log"}, Own: []string{"var/lib/dpkg"}}
	root := filepath.Join(b.dir, fmt.Sprintf("sides-%v", subvolumes))
	other = filepath.Join(t.TempDir(), "other")
	nodes := []string{envDev}
	if subvolumes {
		dev, uuid := loop(t, "mkfs.btrfs", "-q")
		top := filepath.Join(t.TempDir(), "top")
		mounted(t, dev, top)
		for _, name := range []string{"@a", "@b", sides.SharedSubvol} {
			run(t, "btrfs", "subvolume", "create", filepath.Join(top, name))
		}
		for _, side := range []string{sides.A, sides.B} {
			r.conf.Roots[side] = sides.Device{FSType: "btrfs", UUID: uuid, Subvol: sides.Subvol(side)}
		}
		r.conf.Shared = sides.Device{FSType: "btrfs", UUID: uuid, Subvol: sides.SharedSubvol}
		r.shared, r.option, nodes = dev, "subvol="+sides.SharedSubvol, append(nodes, dev)
		mounted(t, dev, root, "-o", "subvol=@a")
		other = filepath.Join(top, "@b")
	} else {
		for _, side := range []string{sides.A, sides.B} {
			dev, uuid := loop(t, "mkfs.ext4", "-q")
			r.conf.Roots[side] = sides.Device{FSType: "ext4", UUID: uuid}
			nodes = append(nodes, dev)
			at := root
			if side == sides.B {
				at = other
			}
			mounted(t, dev, at)
		}
		var uuid string
		r.shared, uuid = loop(t, "mkfs.ext4", "-q")
		r.conf.Shared = sides.Device{FSType: "ext4", UUID: uuid}
		nodes = append(nodes, r.shared)
	}
	mounted(t, envDev, r.env, "-t", "ext4")
	r.rig = b.rig(t, root)
	r.must("push", "web:1", r.name)
	r.node.off()
	ok(t, r.conf.Write(root))
	ok(t, sides.NewEnv(r.env, sides.Env{Side: sides.A}))
	shared := []string{"home/joe", "var/lib/app", "var/log/syslog"}
	for _, path := range shared { // the root itself has nothing of that
		ok(t, os.RemoveAll(filepath.Join(root, path)))
	}
	r.share()
	for _, path := range shared {
		run(t, "cp", "-a", filepath.Join(b.found, path), filepath.Join(root, path))
	}
	r.node.nodes = nodes
	r.node.on()
	return r, other
}

// share mounts in the root what both sides have, as the agent does at a start.
func (r *sidesRig) share() {
	r.t.Helper()
	at := filepath.Join(r.node.root, sides.SharedDir)
	ok(r.t, os.MkdirAll(at, 0o700))
	run(r.t, "mount", "-o", r.option, r.shared, at)
	made, err := r.conf.MountTrees(r.node.root)
	ok(r.t, err)
	r.made = append([]string{at}, made...)
}

func (r *sidesRig) unshare() {
	r.t.Helper()
	for _, dir := range slices.Backward(r.made) {
		ok(r.t, unix.Unmount(dir, 0))
	}
}

// starts is what the boot loader has been told.
func (r *sidesRig) starts(want sides.Env) {
	r.t.Helper()
	if got, err := sides.ReadEnv(r.env); err != nil || got != want {
		r.t.Errorf("the boot loader was told %+v, %v; want %+v", got, err, want)
	}
}

// runs asserts that the tree that runs is that of an image, with what is shared.
func (r *sidesRig) runs(tree string) {
	r.t.Helper()
	same(r.t, "the side that runs", tree, r.node.root, sidesOwn()...)
	for path, want := range map[string]string{"var/lib/app/data": "the node's own\n", "home/joe/letter": "dear ann\n"} {
		if got := read(r.t, filepath.Join(r.node.root, path)); got != want {
			r.t.Errorf("%q, which both sides share, is %q", path, got)
		}
	}
}

// sidesOwn are the paths where a side differs from its image.
func sidesOwn() []string {
	return append(nodeOwned(), "--exclude=/var/lib", "--exclude=/home", "--exclude=/var/log")
}

// A push writes the other side and leaves alone the one that runs; it can be
// given up, or replaced. The node that starts on the side of before says that
// the other one did not come up, and is pushed to again.
func testSides(t *testing.T, b *base, subvolumes bool) {
	r, other := newSidesRig(t, b, subvolumes)
	r.runs(b.v1)
	out := r.pushBesideAnother(other, subvolumes)
	if !strings.Contains(strings.Join(out.Done.Notes, "\n"), "stays behind") {
		t.Errorf("the notes of a push for later: %q", out.Done.Notes)
	}
	if !out.Done.NextBoot || out.Done.Trial || out.Done.Sides == nil || out.Done.Sides.Tries != sides.B {
		t.Errorf("the push says %+v", out.Done)
	}
	r.runs(b.v1)
	same(t, "the other side", b.v2, other, sidesOwn()...)
	if got := read(t, filepath.Join(other, "var/lib/dpkg/status")); got != "Package: new-2\n" {
		t.Errorf("the packages of the other side: %q", got)
	}
	if _, err := os.Stat(filepath.Join(other, "home/joe/letter")); err == nil {
		t.Error("what is shared is on the other side, too")
	}
	r.starts(sides.Env{Side: sides.A, Try: sides.B})
	if res := r.must("node", "show", r.name); !strings.Contains(res.out, "side b is tried at the next start") {
		t.Errorf("node show: %s", res)
	}
	if c, err := sides.Read(other); err != nil || c.Side != sides.B {
		t.Errorf("the other side is %+v, %v", c, err)
	}

	r.must("rollback", r.name)
	r.starts(sides.Env{Side: sides.A})

	r.testRepairOfASide(other)
	put(t, r.node.root, "etc/motd", "ours\n")
	r.fails(1, []string{"etc/motd"}, "push", "web:2", r.name, "--no-reboot")
	r.starts(sides.Env{Side: sides.A})
	r.must("push", "web:2", r.name, "--no-reboot", "--keep", "/etc/motd")
	if got := read(t, filepath.Join(other, "etc/motd")); got != "ours\n" {
		t.Errorf("the node's own file on the other side is %q", got)
	}

	// The boot loader tried b, which died.
	ok(t, sides.WriteEnv(r.env, sides.Env{Side: sides.A}))
	r.node.off()
	r.unshare()
	r.node.first = agentFirst
	r.node.on()
	if g := r.last(); g.Kind != "revert" || !strings.Contains(g.Reason, "side b did not come as far as its init") {
		t.Errorf("the start on the side of before recorded %+v", g)
	}
	if text := r.node.do("/bin/busybox", "cat", "/var/lib/app/data", "/home/joe/letter"); text != "the node's own\ndear ann\n" {
		t.Errorf("what both sides share is %q", text)
	}
	r.fails(1, []string{"did not stay", "push what the node is to be", "--to"}, "rollback", r.name)
	r.must("rollback", r.name, "--dry-run", "--to", fmt.Sprint(r.last().Number-1))
	out = r.mustJSON("push", "web:2", r.name, "--no-reboot", "--keep", "/etc/motd")
	if s := out.Done.Sides; s == nil || !s.Open || s.Started != 0 || s.Tries != sides.B {
		t.Errorf("the next push says %+v", s)
	}
	r.starts(sides.Env{Side: sides.A, Try: sides.B})

	r.testTried()

	r.node.do("/bin/busybox", "umount", "-l", "/"+sides.SharedDir)
	r.fails(1, []string{"what both sides share", "it is not mounted"}, "push", "web:2", r.name, "--no-reboot", "--keep", "/etc/motd")
	r.fails(1, []string{"what both sides share"}, "image", "capture", "root@"+r.name+":/", "without:1")
}

// pushBesideAnother pushes web:2. While that stages a second operator comes, who
// is told so and does no harm.
func (r *sidesRig) pushBesideAnother(other string, subvolumes bool) outcome {
	r.t.Helper()
	stage := other
	if subvolumes {
		stage = filepath.Join(filepath.Dir(other), sides.NextSubvol)
	}
	r.node.proxy.reset()
	r.node.proxy.stallUp.Store(400 << 10)
	_, ended := r.start("push", "web:2", r.name, "--no-reboot", "--json")
	eventually(r.t, "the push is staging", func() bool {
		slots, _ := filepath.Glob(stage + "/.ingot/stage/*/undo/*")
		return r.node.proxy.stalled.Load() && len(slots) > 0
	})
	second := r.direct()
	for _, args := range [][]string{{"push", "web:1", second, "--no-reboot", "--dry-run"}, {"rollback", second}} {
		r.fails(4, []string{"busy", "the other side, process"}, args...)
	}
	r.unwrite(second)
	r.node.proxy.reset()
	r.node.proxy.stalled.Store(false)
	res := <-ended
	list := nodeLines(r.t, res)
	if len(list) != 1 || res.code != 0 {
		r.t.Fatalf("the push that was first: %s", res)
	}
	return list[0]
}

// testTried has the side that runs be on trial, as after a start that the
// controller did not live to see: the same push confirms it, another one is
// refused, and a rollback has the machine start as it was.
func (r *sidesRig) testTried() {
	r.t.Helper()
	r.must("rollback", r.name) // what waits for the next start
	dir := filepath.Join(r.t.TempDir(), "shared")
	mounted(r.t, r.shared, dir, "-o", r.option)
	ok(r.t, os.Remove(filepath.Join(dir, "ingot/generations-b.json"))) // this is the newest side
	now := time.Now()
	try := &sides.Trial{Side: sides.A, Generation: r.last().Number, From: r.last().Number - 1, Window: time.Hour, Made: now, Starts: []time.Time{now}, Up: now, Looked: now}
	ok(r.t, try.Write(dir))
	ok(r.t, sides.WriteEnv(r.env, sides.Env{Side: sides.B}))
	busy := fmt.Sprintf("generation %d, waits to be started or confirmed", try.Generation)
	for _, args := range [][]string{{"push", "web:2", r.name}, {"push", "web:1", r.name, "--no-reboot"}, {"rollback", r.name, "--to", "1000"}, {"rollback", r.name, "--no-reboot"}} {
		r.fails(4, []string{busy}, args...)
	}
	if out := r.mustJSON("push", "web:1", r.name, "--dry-run"); len(out.Plan.Changes) > 0 || !strings.Contains(strings.Join(out.Plan.Notes, ""), "is to be confirmed") {
		r.t.Errorf("a dry run of what is on trial: %+v", out.Plan)
	}
	r.starts(sides.Env{Side: sides.B})
	r.must("push", "web:1", r.name)
	r.starts(sides.Env{Side: sides.A})
	if t, err := sides.ReadTrial(dir); err != nil || t.Open() || t.By == "" {
		r.t.Errorf("confirmed by the same push: %+v, %v", t, err)
	}

	ok(r.t, try.Write(dir))
	ok(r.t, sides.WriteEnv(r.env, sides.Env{Side: sides.B}))
	if out := r.must("rollback", r.name, "--dry-run"); !strings.Contains(out.out+out.err, "it is given up") {
		r.t.Errorf("a dry run of leaving: %s", out)
	}
	r.fails(5, []string{"the other side is not of web:2"}, "rollback", r.name, "--to", "web:2")
	for _, args := range [][]string{{"--to", "1000"}, {"--no-reboot"}} {
		if out, err := r.node.command(append([]string{"/.ingot/agent", "rollback"}, args...)...).CombinedOutput(); err == nil || !strings.Contains(string(out), busy) {
			r.t.Errorf("on the console, %q: %v, %s", args, err, out)
		}
	}
	if out := r.node.do("/.ingot/agent", "rollback", "--dry-run"); !strings.Contains(out, "it is given up") {
		r.t.Errorf("a dry run on the console: %s", out)
	}
	r.starts(sides.Env{Side: sides.B})
	// down waits until the node has gone down for a reason, and has the other side
	// start: here that has the same disk, and another name.
	down := func(why string) {
		r.t.Helper()
		eventually(r.t, "the node goes down", func() bool {
			t, err := sides.ReadTrial(dir)
			return err == nil && strings.HasPrefix(t.Reason, why)
		})
		r.node.cmd.Wait() // it ends by itself
		t, err := sides.ReadTrial(dir)
		ok(r.t, err)
		t.Side = sides.B
		ok(r.t, t.Write(dir))
		ok(r.t, sides.WriteEnv(r.env, sides.Env{Side: sides.A}))
		r.node.on()
	}
	_, ended := r.start("rollback", r.name)
	down("taken back by ")
	if res := <-ended; res.code != 0 || !strings.Contains(res.out, fmt.Sprintf("generation %d is web:1", try.Generation+1)) {
		r.t.Errorf("the rollback of what is on trial: %s", res)
	}
	if g := r.last(); g.Kind != "revert" || !strings.HasPrefix(g.Reason, "taken back by ") {
		r.t.Errorf("the generation after it: %+v", g)
	}

	// On the console, while a controller waits for the checks.
	try.Generation, try.From, try.Looked = r.last().Number, try.Generation, time.Time{}
	ok(r.t, try.Write(dir))
	ok(r.t, sides.WriteEnv(r.env, sides.Env{Side: sides.B}))
	_, ended = r.start("push", "web:1", r.name)
	select {
	case res := <-ended:
		r.t.Fatalf("nothing had been looked at: %s", res)
	case <-time.After(3 * time.Second):
	}
	try.Looked, try.Reason = now, "taken back elsewhere" // and on its way down
	ok(r.t, try.Write(dir))
	select {
	case res := <-ended:
		r.t.Fatalf("it was on its way down: %s", res)
	case <-time.After(3 * time.Second):
	}
	try.Reason = ""
	try.Looked = time.Time{}
	ok(r.t, try.Write(dir))
	_ = r.node.command("/.ingot/agent", "rollback").Run() // the machine takes it along
	down("taken back on the console")
	if res := <-ended; res.code != 1 || !strings.Contains(res.err, "reverted") || !strings.Contains(res.err, "taken back on the console") {
		r.t.Errorf("the push of what was taken back on the console: %s", res)
	}
	ok(r.t, unix.Unmount(dir, 0))
}
