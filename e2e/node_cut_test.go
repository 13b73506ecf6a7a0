package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func cutCases() map[string]func(*testing.T, *base) {
	return map[string]func(*testing.T, *base){
		"cut at any byte":            testCutAnywhere,
		"cut the first upload":       testCutUpload,
		"silent in the first upload": testSilentUpload,
		"agent killed in staging":    testKilledStaging,
		"agent killed in the switch": testKilledSwitching,
		"power cut in staging":       testPowerCut,
		"session ended in staging":   testSessionEnds,
		"operator interrupts":        testInterrupt,
		"cable pulled and put back":  testCable,
		"two pushes at once":         testTwoPushes,
		"controller gone for good":   testControllerGone,
		"disk full":                  testDiskFull,
	}
}

// campaign says whether the long forms run.
func campaign() bool { return os.Getenv("INGOT_CAMPAIGN") != "" }

// again asserts that the node is whole and can be pushed to, by the ordinary way.
func (r *rig) again() {
	r.t.Helper()
	r.node.proxy.reset()
	r.node.proxy.stalled.Store(false)
	r.must("push", "web:2", r.name)
	r.is(r.base.v2)
	if left, _ := filepath.Glob(r.node.root + "/.ingot/journal"); len(left) > 0 {
		r.t.Error("a journal is left")
	}
}

func testCutAnywhere(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	points := 6
	if campaign() {
		points = 80
	}
	// As long as no cut leaves the node new, all of web:2 has to travel each time.
	const about = 790 << 10
	rnd := rand.New(rand.NewPCG(3, 3))
	old := 0
	for i := range points {
		if now, _ := r.cutAt(about*int64(i)/int64(points) + 1 + rnd.Int64N(about/int64(points))); now {
			break
		}
		old++
	}
	if old < points/2 {
		t.Errorf("only %d of %d cuts came while content travelled", old, points)
	}
	// Now the node has the content, and the end, where the switch is, can be cut finely.
	r.must("push", "web:2", r.name)
	r.must("rollback", r.name)
	r.node.proxy.reset()
	r.must("push", "web:2", r.name)
	total := r.node.proxy.up.Load()
	r.must("rollback", r.name)
	newer := 0
	for i := range points {
		limit := total - int64(i)*1500/int64(points)
		if now, _ := r.cutAt(limit); now {
			newer++
			r.must("rollback", r.name)
			r.is(b.v1)
		}
	}
	t.Logf("%d cuts while content travelled, %d at the end, %d of these left the node new", old, points, newer)
	r.again()
}

// cutAt pushes web:2 to a node of web:1 over a connection that breaks after
// some bytes and says whether the node is new then.
func (r *rig) cutAt(limit int64) (bool, result) {
	r.t.Helper()
	r.node.proxy.reset()
	r.node.proxy.cutUp.Store(limit)
	res := r.ingot("push", "web:2", r.name)
	r.node.idle()
	now := r.oneOf(r.base.v1, r.base.v2)
	if res.code == 0 && !now || res.code != 0 && res.code != 1 {
		r.t.Errorf("cut after %d bytes: the node is new: %v, but ingot says: %s", limit, now, res)
	}
	if res.code == 1 && !strings.Contains(res.err, fmt.Sprintf("node %q", r.name)) {
		r.t.Errorf("cut after %d bytes: the node is not named: %s", limit, res)
	}
	if r.t.Failed() {
		r.t.FailNow()
	}
	r.node.proxy.reset()
	return now, res
}

func testCutUpload(t *testing.T, b *base) {
	r := b.rig(t, "")
	for _, limit := range []int64{500, 2000, 5000, 100_000, 6 << 20} {
		r.node.proxy.reset()
		r.node.proxy.cutUp.Store(limit)
		res := r.ingot("push", "web:1", r.name)
		if res.code != 1 {
			t.Errorf("cut after %d bytes: %s", limit, res)
		}
		r.isFound()
	}
	r.node.proxy.reset()
	r.must("push", "web:1", r.name)
	r.is(b.v1)
	r.must("rollback", r.name)
	r.isFound()
}

// The cable is pulled while the agent is uploaded: nobody tells the controller.
func testSilentUpload(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.node.proxy.stallUp.Store(100_000)
	r.fails(1, []string{"fell silent", "hint: is it alive?"}, "push", "web:1", r.name)
	r.node.proxy.stalled.Store(false)
	r.isFound()
	r.must("push", "web:1", r.name)
	r.is(b.v1)
}

func testKilledStaging(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	_, ended := r.stuck("web:2")
	if r.node.kill("agent", syscall.SIGKILL) == 0 {
		t.Fatal("no agent is running")
	}
	r.node.proxy.stalled.Store(false)
	if res := <-ended; res.code != 1 {
		t.Errorf("the controller: %s", res)
	}
	r.is(b.v1)
	r.node.do("/.ingot/agent", "recover")
	r.is(b.v1)
	r.again()
}

func testKilledSwitching(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	tries := 10
	if campaign() {
		tries = 100
	}
	journals, newer := 0, 0
	for i := range tries {
		_, ended := r.start("push", "web:2", r.name)
		var res result
		for done := false; !done; {
			select {
			case res = <-ended:
				done = true
			default:
				if _, err := os.Lstat(r.node.root + "/.ingot/journal"); err == nil {
					time.Sleep(time.Duration(i%12) * 300 * time.Microsecond)
					r.node.kill("agent", syscall.SIGKILL)
					res, done = <-ended, true
				}
			}
		}
		r.node.idle()
		if _, err := os.Lstat(r.node.root + "/.ingot/journal"); err == nil {
			journals++
			if refused := r.ingot("push", "web:2", r.name); refused.code == 0 || !strings.Contains(refused.err, "recover") {
				t.Errorf("a push over an interrupted switch: %s", refused)
			}
			r.node.do("/.ingot/agent", "recover")
		}
		now := r.oneOf(b.v1, b.v2)
		if res.code == 0 && !now {
			t.Errorf("ingot said done, the node is old: %s", res)
		}
		if now {
			newer++
			r.must("rollback", r.name)
			r.is(b.v1)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d kills: %d left a journal, %d ended with the new tree", tries, journals, newer)
	r.again()
}

func testPowerCut(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	_, ended := r.stuck("web:2")
	r.node.off()
	r.node.proxy.stalled.Store(false)
	r.node.proxy.cut()
	if res := <-ended; res.code != 1 {
		t.Errorf("the controller: %s", res)
	}
	r.node.on()
	r.is(b.v1)
	r.again()
}

func testSessionEnds(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	_, ended := r.stuck("web:2")
	listener := strings.TrimSpace(read(t, fmt.Sprintf("/proc/%d/root/run/sshd.pid", r.node.pid())))
	for _, pid := range r.node.processes("sshd") {
		if !strings.HasSuffix(strings.Join(strings.Fields(nspid(t, pid)), " "), " "+listener) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	r.node.idle()
	r.node.proxy.stalled.Store(false)
	if res := <-ended; res.code != 1 || !strings.Contains(res.err, "broke") {
		t.Errorf("the controller: %s", res)
	}
	r.is(b.v1)
	r.again()
}

// nspid returns the NSpid line of a process, proc(5).
func nspid(t *testing.T, pid int) string {
	t.Helper()
	for line := range strings.Lines(read(t, fmt.Sprintf("/proc/%d/status", pid))) {
		if strings.HasPrefix(line, "NSpid:") {
			return line
		}
	}
	return ""
}

func testInterrupt(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	cmd, ended := r.stuck("web:2")
	ok(t, cmd.Process.Signal(os.Interrupt))
	start := time.Now()
	res := <-ended
	if res.code != 130 || time.Since(start) > 5*time.Second {
		t.Errorf("interrupted, ended after %s: %s", time.Since(start), res)
	}
	r.node.proxy.stalled.Store(false)
	r.node.idle()
	r.is(b.v1)
	r.again()
}

// A cable that is pulled for two seconds costs two seconds.
func testCable(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	_, ended := r.stuck("web:2")
	run(t, "ip", "link", "set", r.node.link, "down")
	r.node.proxy.stalled.Store(false)
	time.Sleep(2 * time.Second)
	run(t, "ip", "link", "set", r.node.link, "up")
	if res := <-ended; res.code != 0 {
		t.Errorf("the push did not go on: %s", res)
	}
	r.is(b.v2)
}

func testTwoPushes(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	d := r.direct()
	_, ended := r.stuck("web:2")
	r.fails(4, []string{"busy", "since", "hint:"}, "push", "web:2", d)
	r.fails(4, []string{"busy"}, "rollback", d)
	r.is(b.v1)
	r.node.proxy.stalled.Store(false)
	if res := <-ended; res.code != 0 {
		t.Errorf("the first push: %s", res)
	}
	r.is(b.v2)

	// Without the halt: whoever wins, both tell the truth.
	r.must("rollback", r.name)
	_, one := r.start("push", "web:2", r.name)
	_, two := r.start("push", "web:2", r.name)
	a, c := <-one, <-two
	for _, res := range []result{a, c} {
		if res.code != 0 && res.code != 4 {
			t.Errorf("one of two pushes at once: %s", res)
		}
	}
	if a.code != 0 && c.code != 0 {
		t.Errorf("both lost:\n%s\n%s", a, c)
	}
	r.is(b.v2)
}

// The controller vanishes and nobody tells the node.
func testControllerGone(t *testing.T, b *base) {
	if !campaign() {
		t.Skip("INGOT_CAMPAIGN is not set: it takes over a minute")
	}
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	d := r.direct()
	cmd, ended := r.stuck("web:2")
	ok(t, cmd.Process.Kill())
	<-ended
	start := time.Now()
	for res := r.ingot("push", "web:2", d); res.code != 0; res = r.ingot("push", "web:2", d) {
		if res.code != 4 || time.Since(start) > 90*time.Second {
			t.Fatalf("after %s: %s", time.Since(start), res)
		}
		time.Sleep(2 * time.Second)
	}
	t.Logf("free again after %s", time.Since(start))
}

func testDiskFull(t *testing.T, b *base) {
	root := filepath.Join(t.TempDir(), "root")
	ok(t, os.Mkdir(root, 0o755))
	size := strings.Fields(run(t, "du", "-sm", b.found))[0]
	run(t, "mount", "-t", "tmpfs", "-o", "mode=755,size="+size+"m", "full", root)
	t.Cleanup(func() { run(t, "umount", "-l", root) })
	run(t, "mount", "-o", "remount,size="+fmt.Sprint(atoi(t, size)+6)+"m", root)
	r := b.rig(t, root)
	r.isFound()
	res := r.fails(1, []string{r.name, "upload the agent", "space"}, "push", "web:1", r.name)
	t.Logf("no room for the agent: %s", res.err)
	if left, _ := filepath.Glob(root + "/.ingot/*"); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	r.isFound()

	fat := copyTree(t, b.v1, filepath.Join(b.dir, r.name+"-fat"))
	put(t, fat, "usr/share/fat", noise(rand.New(rand.NewPCG(9, 9)), 14<<20))
	r.must("image", "capture", fat, "web:fat")
	run(t, "mount", "-o", "remount,size="+fmt.Sprint(atoi(t, size)+21)+"m", root)
	res = r.fails(1, []string{"not enough space", "bytes", "free", "hint:"}, "push", "web:fat", r.name)
	t.Logf("no room for the image: %s", res.err)
	r.isFound()
	if r.node.staging() || len(r.generations()) != 0 {
		t.Errorf("something was staged: generations %+v", r.generations())
	}
	r.must("push", "web:1", r.name)
	r.is(b.v1)
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	var n int
	_, err := fmt.Sscan(s, &n)
	ok(t, err)
	return n
}
