package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func poolCases() map[string]func(*testing.T, *base) {
	return map[string]func(*testing.T, *base){
		"several nodes at once":        testSeveral,
		"a part of an image":           testPart,
		"interrupted on several nodes": testSeveralInterrupted,
	}
}

// outcomes are the JSON answer of a verb over several nodes.
func (r *rig) outcomes(code int, args ...string) map[string]outcome {
	r.t.Helper()
	res := r.ingot(append(args, "--json")...)
	if res.code != code {
		r.t.Fatalf("ingot %s: want exit %d: %s", strings.Join(args, " "), code, res)
	}
	all := map[string]outcome{}
	for _, o := range nodeLines(r.t, res) {
		all[o.Node] = o
	}
	return all
}

// Of four nodes one refuses and one is not there: the others are pushed to,
// and each is told of as it is.
func testSeveral(t *testing.T, b *base) {
	n1, n2, n3 := b.rig(t, ""), b.rig(t, ""), b.rig(t, "")
	list := strings.Join([]string{n1.name, n2.name, n3.name}, ",")
	for _, o := range n1.outcomes(0, "push", "web:1", list) {
		if o.State != "done" {
			t.Errorf("%s: %s", o.Node, o.State)
		}
	}
	put(t, n2.node.root, "etc/motd", "mine\n")
	gone := "gone" + n1.name
	n1.write(gone, fmt.Sprintf("10.9.%d.77", n1.node.number), 100+n1.node.number)
	n1.pin(gone, n1.node.key)
	defer n1.unwrite(gone)

	begun := time.Now()
	all := n1.outcomes(3, "push", "web:2", list+","+gone, "--parallel", "4", "--max-failures", "2", "--bwlimit", "400k")
	sent := all[n1.name].Sent + all[n3.name].Sent // under one limit
	if took := time.Since(begun).Seconds(); sent < 400_000 || took < float64(sent)/400_000-0.2 {
		t.Errorf("%d bytes at 400 kB/s took %.1f s", sent, took)
	}
	for name, want := range map[string]string{n1.name: "done", n2.name: "failed", n3.name: "done", gone: "unreachable"} {
		if all[name].State != want {
			t.Errorf("%s is %q, want %q: %s", name, all[name].State, want, all[name].Error)
		}
	}
	if !strings.Contains(all[n2.name].Error, "etc/motd") || !strings.Contains(all[gone].Error, "cannot be reached") {
		t.Errorf("why they failed: %q, %q", all[n2.name].Error, all[gone].Error)
	}
	n1.is(b.v2)
	n3.is(b.v2)
	if g := n2.generations(); len(g) != 2 {
		t.Errorf("the node that refused has %d generations", len(g))
	}

	// One after another, the first failure leaves the rest as they are.
	res := n1.fails(3, []string{n2.name + ": failed", "1 not tried"}, "push", "web:1", n2.name+","+n3.name, "--parallel", "1", "--keep", "/nothing")
	if strings.Contains(res.out, n3.name) {
		t.Errorf("a node that was not tried has a result: %s", res)
	}
	n3.is(b.v2)

	back := n1.outcomes(0, "rollback", n1.name+","+n3.name)
	if len(back) != 2 {
		t.Errorf("%d results of a rollback of 2 nodes", len(back))
	}
	n1.is(b.v1)
	n3.is(b.v1)
	if res := n1.must("push", "web:1", n1.name+","+n3.name); strings.Count(res.out, "unchanged, generation") != 2 {
		t.Errorf("nothing to do on two nodes: %s", res)
	}
}

// An operator who gives up while two nodes stage: neither has switched, both
// are told of, the third was not begun.
func testSeveralInterrupted(t *testing.T, b *base) {
	n1, n2, n3 := b.rig(t, ""), b.rig(t, ""), b.rig(t, "")
	n1.must("push", "web:1", n1.name+","+n2.name)
	for _, r := range []*rig{n1, n2} {
		r.node.proxy.reset()
		r.node.proxy.stallUp.Store(400 << 10)
	}
	cmd, ended := n1.start("push", "web:2", strings.Join([]string{n1.name, n2.name, n3.name}, ","), "--parallel", "2")
	for _, r := range []*rig{n1, n2} {
		eventually(t, "the node is staging", func() bool { return r.node.proxy.stalled.Load() && r.node.staging() })
	}
	ok(t, cmd.Process.Signal(os.Interrupt))
	res := <-ended
	if res.code != 130 || !strings.Contains(res.err, "2 interrupted, 1 not tried") {
		t.Errorf("interrupted: %s", res)
	}
	n3.isFound()
	for _, r := range []*rig{n1, n2} {
		r.node.proxy.stalled.Store(false)
		r.node.idle()
		r.is(b.v1)
		if _, err := os.Lstat(filepath.Join(r.node.root, ".ingot/journal")); err == nil {
			t.Errorf("%s has begun to switch", r.name)
		}
	}
}

// A part of an image changes that part alone, moves no other chunk, is told of
// as a part, and can be taken back.
func testPart(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	o := r.mustJSON("push", "web:2", r.name, "--path", "/etc/app.conf")
	if o.State != "done" || len(o.Plan.Changes) != 1 || o.Sent > 20_000 {
		t.Errorf("a part: %s, %d changes, %d bytes sent", o.State, len(o.Plan.Changes), o.Sent)
	}
	if got := read(t, filepath.Join(r.node.root, "etc/app.conf")); got != "level = 20\n" {
		t.Errorf("the part is %q", got)
	}
	if got := read(t, filepath.Join(r.node.root, "etc/motd")); got != "release 1\n" {
		t.Errorf("what is beside it became %q", got)
	}
	if res := r.must("node", "show", r.name); !strings.Contains(res.out, `"/etc/app.conf" of web:2`) {
		t.Errorf("node show: %s", res)
	}
	r.fails(5, []string{"does not have it"}, "push", "web:2", r.name, "--path", "/srv/none")
	r.must("rollback", r.name)
	r.is(b.v1)
}
