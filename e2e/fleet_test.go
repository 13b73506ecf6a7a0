package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestFleet has twenty nodes of one site, of which the tests of deployments
// take what they need.
func TestFleet(t *testing.T) {
	need(t)
	t.Parallel()
	f := newFleet(t, 20)
	t.Run("a release that fails on one in five", f.testBadRelease)
	t.Run("every kind of ending", f.testEndings)
	t.Run("taken back at once", f.testAutoRollback)
	t.Run("two operators", f.testTwoOperators)
	t.Run("the controller is killed", f.testKilled)
}

// fleet are nodes of the class FLEET.
type fleet struct {
	*base
	nodes []*rig
}

func newFleet(t *testing.T, n int) *fleet {
	f := &fleet{base: newBase(t)}
	f.numbers.next.Store(100) // TestNode's are below
	f.profile(t, "")
	for range n {
		r := f.rig(t, "")
		node := filepath.Join(r.site, "nodes", r.name+".yaml")
		ok(t, os.WriteFile(node, []byte("classes: [FLEET]\n"+read(t, node)), 0o644))
		f.nodes = append(f.nodes, r)
	}
	return f
}

func (f *fleet) profile(t *testing.T, text string) {
	t.Helper()
	put(t, f.site, "profile/FLEET.yaml", text)
}

// ingot runs it as the test that asks.
func (f *fleet) ingot(t *testing.T, args ...string) result {
	t.Helper()
	r := *f.nodes[0]
	r.t = t
	return r.ingot(args...)
}

// must runs ingot, which must end with a code.
func (f *fleet) must(t *testing.T, code int, args ...string) result {
	t.Helper()
	res := f.ingot(t, args...)
	if res.code != code {
		t.Fatalf("ingot %s: want exit %d: %s", strings.Join(args, " "), code, res)
	}
	return res
}

// names are those of some nodes, as NODES.
func names(nodes []*rig) string {
	var out []string
	for _, r := range nodes {
		out = append(out, r.name)
	}
	return strings.Join(out, ",")
}

// are asserts that each node's tree is that of an image.
func (f *fleet) are(t *testing.T, nodes []*rig, tree string) {
	t.Helper()
	for _, r := range nodes {
		x := *r
		x.t = t
		x.is(tree)
		if left, _ := filepath.Glob(filepath.Join(r.node.root, ".ingot/journal")); len(left) > 0 {
			t.Errorf("node %s is in between two generations", r.name)
		}
	}
}

// shown is what `deployment show` says.
type shown struct {
	ID      int64
	Stopped string
	Lives   bool  `json:"under_way"`
	Undone  []int `json:"taken_back_by"`
	Nodes   []struct {
		Node, State, Reason   string
		Wave, Was, Generation int
	}
}

func (f *fleet) shown(t *testing.T, id string) (s shown) {
	t.Helper()
	ok(t, json.Unmarshal([]byte(f.must(t, 0, "deployment", "show", id, "--json").out), &s))
	return s
}

// states are those of the nodes of the last deployment, by name.
func (s shown) states() map[string]string {
	out := map[string]string{}
	for _, n := range s.Nodes {
		out[n.Node] = n.State
	}
	return out
}

// Every fifth node fails the check of a release: with --max-failures 2 the
// third one stops it, and one command takes back what was done.
func (f *fleet) testBadRelease(t *testing.T) {
	f.must(t, 0, "push", "web:1", names(f.nodes), "--parallel", "4")
	f.are(t, f.nodes, f.v1)
	f.profile(t, `check: [{name: smoke, exec: "test $INGOT_IMAGE != web:2 || test ! -e /var/lib/app/frail", retry_for: 1ms}]`+"\n")
	defer f.profile(t, "")
	for i, r := range f.nodes {
		if i%5 == 4 {
			put(t, r.node.root, "var/lib/app/frail", "")
			defer os.Remove(filepath.Join(r.node.root, "var/lib/app/frail"))
		}
	}
	res := f.must(t, 3, "push", "web:2", "@fleet", "--order", names(f.nodes), "--canary", "1", "--batch", "25%", "--max-failures", "2", "--parallel", "3", "--pause", "1s", "--confirm", "60s")
	for _, words := range []string{"on 20 nodes in 5 waves", "wave 1 of 5 (canary): 1 done", "wave 2 of 5: 4 done, 1 failed", "wave 3 of 5: 4 done, 1 failed", "stopped: 3 failed, --max-failures is 2",
		f.nodes[4].name + ": reverted: reverted, as generation", "check smoke"} {
		if !strings.Contains(res.err, words) {
			t.Errorf("it does not say %q: %s", words, res)
		}
	}
	if res.took < 3*time.Second {
		t.Errorf("three pauses of a second took %s", res.took)
	}
	s := f.shown(t, "last")
	n := map[string]int{}
	for i, x := range s.Nodes {
		r := f.nodes[i]
		if n[x.State]++; x.Node != r.name || x.Wave != (i+4)/5 {
			t.Errorf("place %d has %s in wave %d", i, x.Node, x.Wave)
		}
		tree := f.v2
		switch {
		case i > 15 && x.State != "not tried" || i < 15 && (x.State == "reverted") != (i%5 == 4) || x.State == "reverted" && x.Reason == "":
			t.Errorf("%s: %s: %s", x.Node, x.State, x.Reason)
		case x.State != "done":
			tree = f.v1
		}
		f.are(t, []*rig{r}, tree)
	}
	if n["reverted"] != 3 || n["not tried"] < 4 || n["done"] < 12 || s.Stopped == "" {
		t.Errorf("%v, stopped: %q", n, s.Stopped)
	}
	res = f.must(t, 0, "rollback", "--deployment", fmt.Sprint(s.ID), "--parallel", "4")
	if got := strings.Count(res.out, "switched in"); got != n["done"] {
		t.Errorf("%d nodes went back, %d were done: %s", got, n["done"], res)
	}
	f.are(t, f.nodes, f.v1)
	if undone := f.shown(t, fmt.Sprint(s.ID)).Undone; len(undone) != 1 {
		t.Errorf("taken back by %v", undone)
	}
	// Once more there is nothing to do, and by the name of the image neither.
	if res = f.must(t, 0, "deployment", "undo", fmt.Sprint(s.ID)); strings.Count(res.out, "unchanged") != len(f.nodes)-n["not tried"] {
		t.Errorf("taken back twice: %s", res)
	}
	if res = f.must(t, 0, "rollback", "@fleet", "--to", "web:1"); strings.Count(res.out, "unchanged") != len(f.nodes) {
		t.Errorf("back to what they are: %s", res)
	}
	f.must(t, 0, "push", "web:2", names(f.nodes[:2]))
	f.must(t, 0, "rollback", names(f.nodes[:2]), "--to", "web:1")
	f.are(t, f.nodes[:2], f.v1)
	if code := f.ingot(t, "rollback", names(f.nodes[:1]), "--to", "web:9").code; code != 5 {
		t.Errorf("to an image that no generation is of: exit %d", code)
	}
}

// One has no sshd, one has a full disk, one hangs, one is booted in the middle,
// one has been changed by hand, one is right already, and the rest are done:
// each is told of as it is, by the report, the record and the exit status.
func (f *fleet) testEndings(t *testing.T) {
	full := f.full(t)
	nodes := append(slices.Clone(f.nodes[:7]), full)
	f.must(t, 0, "push", "web:1", names(nodes), "--parallel", "4")
	f.must(t, 0, "push", "web:2", nodes[5].name)
	deaf, hangs, boots, changed := nodes[1], nodes[2], nodes[3], nodes[4]
	deaf.node.stopSSHD()
	put(t, changed.node.root, "etc/motd", "mine\n")
	fat := copyTree(t, f.v2, filepath.Join(f.dir, "fat"))
	put(t, fat, "usr/share/fat", noise(rand.New(rand.NewPCG(9, 9)), 14<<20))
	f.must(t, 0, "image", "capture", fat, "web:fat")
	f.must(t, 0, "push", "web:fat", nodes[6].name)
	for _, r := range []*rig{hangs, boots} {
		r.node.proxy.reset()
		r.node.proxy.stallUp.Store(400 << 10)
	}
	r := *f.nodes[0]
	r.t = t
	_, ended := r.start("push", "web:fat", names(nodes), "--parallel", "8", "--max-failures", "7", "--json")
	for _, r := range []*rig{hangs, boots} {
		eventually(t, "the node is staging", func() bool { return r.node.proxy.stalled.Load() && r.node.staging() })
	}
	boots.node.off()
	boots.node.proxy.stalled.Store(false)
	boots.node.proxy.cut()
	boots.node.on()
	res := <-ended
	hangs.node.proxy.stalled.Store(false)
	if res.code != 3 {
		t.Errorf("exit %d", res.code)
	}
	want := map[string][2]string{
		nodes[0].name: {"done", ""}, deaf.name: {"unreachable", "cannot be reached"}, hangs.name: {"failed", "silent"}, boots.name: {"failed", "connection"},
		changed.name: {"failed", "etc/motd"}, nodes[5].name: {"done", ""}, nodes[6].name: {"unchanged", ""}, full.name: {"failed", "not enough space"},
	}
	told := map[string]outcome{}
	for _, o := range nodeLines(t, res) {
		told[o.Node] = o
	}
	for _, x := range f.shown(t, "last").Nodes {
		w, o := want[x.Node], told[x.Node]
		if x.State != w[0] || o.State != w[0] || !strings.Contains(x.Reason, w[1]) || !strings.Contains(o.Error, w[1]) {
			t.Errorf("%s: recorded as %s (%s), reported as %s (%s), want %v", x.Node, x.State, x.Reason, o.State, o.Error, w)
		}
	}
	f.are(t, []*rig{nodes[0], nodes[5], nodes[6]}, fat)
	for _, r := range []*rig{hangs, boots, full} {
		f.are(t, []*rig{r}, f.v1)
	}
	// What stood in the way is put right, and it goes on.
	run(t, "cp", "-p", filepath.Join(f.v1, "etc/motd"), filepath.Join(changed.node.root, "etc/motd"))
	deaf.node.sshd()
	run(t, "mount", "-o", "remount,size=200m", full.node.root)
	hangs.node.proxy.cut()
	hangs.node.idle()
	f.must(t, 0, "deployment", "resume", "last", "--retry-failed", "--parallel", "4")
	f.are(t, nodes, fat)
	f.must(t, 0, "rollback", "--deployment", "last", "--parallel", "8")
	f.are(t, slices.Concat(nodes[:5], nodes[7:]), f.v1)
	f.are(t, nodes[5:6], f.v2)
	f.are(t, nodes[6:7], fat)
	f.must(t, 0, "push", "web:1", names(nodes), "--parallel", "4")
}

// full is a node of the fleet whose disk holds its tree and little more.
func (f *fleet) full(t *testing.T) *rig {
	root := filepath.Join(t.TempDir(), "root")
	ok(t, os.Mkdir(root, 0o755))
	size := atoi(t, strings.Fields(run(t, "du", "-sm", f.found))[0])
	run(t, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("mode=755,size=%dm", size+26), "full", root)
	t.Cleanup(func() { run(t, "umount", "-l", root) })
	r := f.rig(t, root)
	node := filepath.Join(r.site, "nodes", r.name+".yaml")
	ok(t, os.WriteFile(node, []byte("classes: [FLEET]\n"+read(t, node)), 0o644))
	t.Cleanup(func() { os.Remove(node) })
	return r
}

// What is done is taken back without another command: of the wave that
// failed, or all.
func (f *fleet) testAutoRollback(t *testing.T) {
	nodes := f.nodes[:6]
	f.must(t, 0, "push", "web:1", names(nodes), "--parallel", "4")
	f.profile(t, `check: [{name: smoke, exec: "test $INGOT_IMAGE != web:2 || test ! -e /var/lib/app/frail", retry_for: 1ms}]`+"\n")
	defer f.profile(t, "")
	put(t, nodes[5].node.root, "var/lib/app/frail", "")
	defer os.Remove(filepath.Join(nodes[5].node.root, "var/lib/app/frail"))
	for _, mode := range []string{"wave", "all"} {
		res := f.must(t, 3, "push", "web:2", names(nodes), "--order", names(nodes), "--batch", "3", "--parallel", "3", "--auto-rollback", mode)
		first := f.v2
		if mode == "all" {
			first = f.v1
		}
		f.are(t, nodes[:3], first)
		f.are(t, nodes[3:], f.v1)
		if !strings.Contains(res.err, "taking back") {
			t.Errorf("it does not say so: %s", res)
		}
		f.must(t, 0, "push", "web:1", names(nodes), "--parallel", "4")
	}
}

// A second operator is told who has which node in hand, and since when.
func (f *fleet) testTwoOperators(t *testing.T) {
	one, two := f.nodes[0], f.nodes[1]
	f.must(t, 0, "push", "web:1", names(f.nodes[:2]))
	three := copyTree(t, f.v2, filepath.Join(f.dir, "three"))
	put(t, three, "usr/share/three", noise(rand.New(rand.NewPCG(3, 3)), 2<<20))
	f.must(t, 0, "image", "capture", three, "web:3")
	r := *one
	r.t = t
	r.node.proxy.reset()
	r.node.proxy.stallUp.Store(400 << 10)
	_, ended := r.start("push", "web:3", names(f.nodes[:2]), "--parallel", "1")
	eventually(t, "the node is staging", func() bool { return r.node.proxy.stalled.Load() && r.node.staging() })
	s := f.shown(t, "last")
	for _, args := range [][]string{{"push", "web:1", two.name}, {"rollback", one.name}, {"deployment", "undo", fmt.Sprint(s.ID)}, {"deployment", "resume", fmt.Sprint(s.ID)}} {
		res := f.must(t, 4, args...)
		if !strings.Contains(res.err, fmt.Sprintf("deployment %d", s.ID)) || !strings.Contains(res.err, "in the hands of") {
			t.Errorf("%v: %s", args, res)
		}
	}
	if !s.Lives || !strings.Contains(f.must(t, 4, "push", "web:1", two.name).err, "since "+time.Now().Format(time.DateOnly)) {
		t.Errorf("it does not say since when, or that it is under way: %+v", s)
	}
	f.must(t, 0, "push", "web:1", f.nodes[2].name) // of nobody's
	f.must(t, 0, "push", "web:1", two.name, "--dry-run")
	r.node.proxy.reset()
	r.node.proxy.stalled.Store(false)
	if res := <-ended; res.code != 0 {
		t.Errorf("the first: %s", res)
	}
	f.are(t, f.nodes[:2], three)

	// What one left undone is not done over what another has done since.
	f.must(t, 0, "push", "web:2", names(f.nodes[:3]), "--parallel", "3")
	put(t, two.node.root, "etc/motd", "mine\n")
	f.must(t, 3, "push", "web:1", names(f.nodes[:3]), "--order", names(f.nodes[:3]), "--parallel", "1")
	left := fmt.Sprint(f.shown(t, "last").ID)
	f.must(t, 0, "push", "web:3", f.nodes[2].name)
	if res := f.must(t, 1, "deployment", "resume", left); !strings.Contains(res.err, f.nodes[2].name+" (deployment ") {
		t.Errorf("resumed over another deployment: %s", res)
	}
	f.are(t, f.nodes[2:3], three)
	if res := f.must(t, 0, "deployment", "undo", left); strings.Count(res.out, "switched in") != 1 {
		t.Errorf("of it one node was done: %s", res)
	}
	f.are(t, f.nodes[:1], f.v2)
	f.must(t, 0, "push", "web:2", two.name, "--take", "/etc/motd")
}

// The controller is killed at moments spread over a deployment. Each time it is
// resumed or undone to the end, and no node is left in between.
func (f *fleet) testKilled(t *testing.T) {
	nodes := f.nodes[:6]
	moments := 4
	if campaign() {
		moments = 20
	}
	f.must(t, 0, "push", "web:1", names(nodes), "--parallel", "4")
	args := []string{"push", "web:2", names(nodes), "--order", names(nodes), "--canary", "1", "--batch", "50%", "--parallel", "2", "--confirm", "40s"}
	whole := f.must(t, 0, args...).took
	f.must(t, 0, "rollback", "--deployment", "last", "--parallel", "4")
	f.are(t, nodes, f.v1)
	r := *f.nodes[0]
	r.t = t
	for i := range moments {
		at := whole * time.Duration(2*i+1) / time.Duration(2*moments)
		before := f.shown(t, "last").ID
		cmd, ended := r.start(args...)
		time.Sleep(at)
		_ = cmd.Process.Signal(syscall.SIGKILL) // it may have ended just now
		<-ended
		s := f.shown(t, "last")
		if s.ID == before { // it had not come to its record, and so to no node
			t.Logf("killed after %s: nothing was recorded", at.Round(time.Millisecond))
			f.are(t, nodes, f.v1)
			continue
		}
		id := strconv.FormatInt(s.ID, 10)
		n := map[string]int{}
		for _, x := range s.Nodes {
			n[x.State]++
		}
		verb, tree := "resume", f.v2
		if i%2 == 1 {
			verb, tree = "undo", f.v1
		}
		t.Logf("killed after %s of %s with %v: %s", at.Round(time.Millisecond), whole.Round(time.Millisecond), n, verb)
		f.must(t, 0, "deployment", verb, id)
		f.are(t, nodes, tree)
		for _, x := range nodes {
			x := *x
			x.t = t
			if g := x.last(); g.Trial != 0 {
				t.Errorf("%s still waits for a confirmation: %+v", x.name, g)
			}
		}
		if s = f.shown(t, id); s.Lives || verb == "resume" && s.Stopped != "" {
			t.Errorf("moment %d: %+v", i, s)
		}
		if verb == "resume" {
			f.must(t, 0, "rollback", "--deployment", id, "--parallel", "4")
		}
		f.are(t, nodes, f.v1)
	}
	for _, x := range nodes { // one whose switch never came waits for it half a minute
		for end := time.Now().Add(time.Minute); len(x.node.processes("agent")) > 0; time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("on %s an agent is left", x.name)
			}
		}
	}
}
