package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func pushCases() map[string]func(*testing.T, *base) {
	return map[string]func(*testing.T, *base){
		"first push and the way back": testFirstPush,
		"conflicts":                   testConflicts,
		"dry run":                     testDryRun,
	}
}

// A node that ingot did not install, with nothing but sshd: pushed to twice,
// and all the ways back.
func testFirstPush(t *testing.T, b *base) {
	r := b.rig(t, "")
	one := r.mustJSON("push", "web:1", r.name)
	r.is(b.v1)
	if g := r.generations(); len(g) != 2 || g[0].Kind != "found" || g[1].Ref != "web:1" || !g[1].Current {
		t.Errorf("generations after the first push: %+v", g)
	}
	t.Logf("first push: %d changes, %d chunk bytes needed, %d sent, %d received; wire %d up, %d down", len(one.Plan.Changes), one.Plan.NeedBytes, one.Sent, one.Received, r.node.proxy.up.Load(), r.node.proxy.down.Load())

	r.node.proxy.reset()
	again := r.mustJSON("push", "web:1", r.name)
	up, down := r.node.proxy.up.Load(), r.node.proxy.down.Load()
	t.Logf("unchanged push: %d bytes sent, %d received; wire %d up, %d down", again.Sent, again.Received, up, down)
	if again.State != "unchanged" || up+down > 150_000 {
		t.Errorf("an unchanged push is %q and costs %d bytes", again.State, up+down)
	}
	r.must("rollback", r.name, "--to", "1")
	r.isFound()
	r.must("rollback", r.name)
	r.is(b.v1)
	r.must("push", "web:2", r.name)
	r.is(b.v2)
	if _, err := os.Lstat(filepath.Join(r.node.root, "srv/extra")); err == nil {
		t.Error("what no image has is still there")
	}

	r.node.proxy.reset()
	back := r.mustJSON("rollback", r.name)
	r.is(b.v1)
	if back.Sent > 2000 {
		t.Errorf("a rollback sent %d bytes", back.Sent)
	}
	r.must("rollback", r.name)
	r.is(b.v2) // the rollback of a rollback
	r.fails(5, []string{"generation", "99"}, "rollback", r.name, "--to", "99")

	r.node.stopSSHD() // nothing and nobody but the node itself
	r.node.do("/.ingot/agent", "rollback")
	r.is(b.v1)
}

func testConflicts(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	put(t, r.node.root, "etc/app.conf", "level = mine\n")
	put(t, r.node.root, "etc/motd", "mine\n")
	put(t, r.node.root, "opt/local-only", "nobody planned this\n")
	before := copyTree(t, r.node.root, filepath.Join(b.dir, r.name+"-before"))

	r.fails(1, []string{"etc/app.conf", "etc/motd", "hint:", "--keep"}, "push", "web:2", r.name)
	same(t, "after a refused push", before, r.node.root)
	dry := r.must("push", "web:2", r.name, "--dry-run")
	for _, w := range []string{`conflict "/etc/app.conf"`, `conflict "/etc/motd"`, "opt/local-only"} {
		if !strings.Contains(dry.out, w) {
			t.Errorf("--dry-run does not show %q:\n%s", w, dry.out)
		}
	}
	same(t, "after a dry run", before, r.node.root)

	r.must("push", "web:2", r.name, "--keep", "/etc/app.conf", "--keep", "/opt/local-only", "--take", "/etc/motd")
	for path, want := range map[string]string{"etc/app.conf": "level = mine\n", "etc/motd": "release 2\n", "opt/local-only": "nobody planned this\n"} {
		if got := read(t, filepath.Join(r.node.root, path)); got != want {
			t.Errorf("%q is %q, want %q", path, got, want)
		}
	}
	r.must("rollback", r.name)
	same(t, "what was taken came back", before, r.node.root)
}

func testDryRun(t *testing.T, b *base) {
	r := b.rig(t, "")
	o := r.mustJSON("push", "web:1", r.name, "--dry-run")
	if len(o.Plan.Changes) < 40 || o.Plan.NeedBytes < 700<<10 || o.Plan.From != 0 {
		t.Errorf("the plan shows %d changes, %d bytes, from %d", len(o.Plan.Changes), o.Plan.NeedBytes, o.Plan.From)
	}
	r.isFound()
	if g := r.generations(); len(g) != 0 {
		t.Errorf("a dry run made generations: %+v", g)
	}
}
