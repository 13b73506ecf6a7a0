package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ingot/imager/store"
)

func pushCases() map[string]func(*testing.T, *base) {
	return map[string]func(*testing.T, *base){
		"first push and the way back": testFirstPush,
		"conflicts":                   testConflicts,
		"a damaged undo copy":         testDamagedUndo,
		"dry run":                     testDryRun,
		"merged by a command":         testMerged,
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

	r.node.sshd()
	latest := r.generations()
	last := latest[len(latest)-1]
	if res := r.must("node", "show", r.name); strings.Contains(res.out, fmt.Sprintf("\n%d ", last.Number)) {
		t.Errorf("the server knows what nobody told it: %s", res)
	}
	r.must("push", "web:1", r.name, "--dry-run")
	if res := r.must("node", "show", r.name); !strings.Contains(res.out, fmt.Sprintf("\n%d ", last.Number)) {
		t.Errorf("the server has not learned of generation %d, which the console made: %s", last.Number, res)
	}
}

// An undo copy that is not what it was is healed from the store; where the
// image is gone, the file is named and nothing is switched.
func testDamagedUndo(t *testing.T, b *base) {
	r := b.rig(t, "")
	tree := copyTree(t, b.v1, filepath.Join(b.dir, r.name+"-image"))
	put(t, tree, "etc/motd", "only "+r.name+" has this\n")
	name := "only-" + r.name + ":1"
	r.must("image", "capture", tree, name)
	r.must("push", name, r.name)
	r.must("push", "web:2", r.name)
	r.damageMotd(2)
	healed := r.mustJSON("rollback", r.name)
	if healed.Plan.Need != 1 {
		t.Errorf("the store had to give %d chunks", healed.Plan.Need)
	}
	r.is(tree)

	r.must("push", "web:2", r.name)
	r.damageMotd(4)
	id := healed.Done.Generation.Image.String()
	s, err := store.OpenOrInit(filepath.Join(r.site, ".ingot/store"))
	ok(t, err)
	ref, err := store.ParseRef(name)
	ok(t, err)
	ok(t, s.RemoveRef(t.Context(), ref))
	ok(t, os.Remove(filepath.Join(r.site, ".ingot/store/manifests", id[:2], id+".zst")))
	r.fails(6, []string{`"etc/motd"`, "damaged", "hint:"}, "rollback", r.name)
	r.is(b.v2)
	if out, err := r.node.command("/.ingot/agent", "rollback").CombinedOutput(); err == nil || !strings.Contains(string(out), `"etc/motd"`) {
		t.Errorf("the console: %v: %s", err, out)
	}
	r.is(b.v2)
	r.must("rollback", r.name, "--to", "3") // what is whole is not hindered
	r.is(b.v2)
}

// damageMotd changes what a generation keeps of etc/motd, size and time as they were.
func (r *rig) damageMotd(generation int) {
	r.t.Helper()
	copies, err := filepath.Glob(filepath.Join(r.node.root, ".ingot/generations", fmt.Sprint(generation), "undo/*"))
	ok(r.t, err)
	for _, path := range copies {
		st, err := os.Lstat(path)
		ok(r.t, err)
		if st.Mode().IsRegular() && read(r.t, path) == "only "+r.name+" has this\n" {
			ok(r.t, os.WriteFile(path, []byte("evil "+r.name+" has this\n"), st.Mode().Perm()))
			ok(r.t, os.Chtimes(path, st.ModTime(), st.ModTime()))
			return
		}
	}
	r.t.Fatalf("generation %d keeps no etc/motd", generation)
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
	dry := r.fails(1, []string{"etc/app.conf", "etc/motd", "--keep"}, "push", "web:2", r.name, "--dry-run")
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
	if o.State != "planned" || len(o.Plan.Changes) < 40 || o.Plan.NeedBytes < 700<<10 || o.Plan.From != 0 {
		t.Errorf("the plan shows %d changes, %d bytes, from %d", len(o.Plan.Changes), o.Plan.NeedBytes, o.Plan.From)
	}
	r.isFound()
	if g := r.generations(); len(g) != 0 {
		t.Errorf("a dry run made generations: %+v", g)
	}
}

// A file that the node and the image changed, both, gets both changes where the
// profile says by what command: with what the store has of the file before.
func testMerged(t *testing.T, b *base) {
	r := b.rig(t, "")
	class := strings.ToUpper(r.name)
	node := filepath.Join(r.site, "nodes", r.name+".yaml")
	ok(t, os.WriteFile(node, []byte("classes: ["+class+"]\n"+read(t, node)), 0o644))
	profile := func(command string) {
		put(t, r.site, "profile/"+class+".yaml", "local_changes:\n  merge:\n  - {path: /etc/app.conf, command: '"+command+"'}\n")
	}
	profile(`diff3 -m "$LOCAL" "$BASE" "$NEW"`)
	const given, mine, newer, both = "a\nb\nc\nd\ne\n", "A\nb\nc\nd\ne\n", "a\nb\nc\nd\nE\n", "A\nb\nc\nd\nE\n"
	tree := copyTree(t, b.v1, filepath.Join(b.dir, r.name+"-image"))
	image := func(tag, text string) string {
		put(t, tree, "etc/app.conf", text)
		name := "merge-" + r.name + ":" + tag
		r.must("image", "capture", tree, name)
		return name
	}
	one, two := image("1", given), image("2", newer)
	three := image("3", "a\nb\nc\nD\nE\n")
	conf := filepath.Join(r.node.root, "etc/app.conf")
	r.must("push", one, r.name)
	put(t, r.node.root, "etc/app.conf", mine)
	dry := r.must("push", two, r.name, "--dry-run")
	if want := `conflict "/etc/app.conf": changed on the node: merge`; !strings.Contains(dry.out, want) || read(t, conf) != mine {
		t.Errorf("--dry-run does not show %q: %s", want, dry)
	}
	profile("echo here they are; exit 3")
	r.fails(1, []string{`"etc/app.conf"`, "exit status 3", "hint:", "--keep"}, "push", two, r.name)
	if got := read(t, conf); got != mine {
		t.Errorf("after a merge that failed: %q", got)
	}
	profile(`diff3 -m "$LOCAL" "$BASE" "$NEW"`)
	r.must("push", two, r.name)
	if got := read(t, conf); got != both {
		t.Errorf("merged: %q", got)
	}
	r.must("rollback", r.name)
	if got := read(t, conf); got != mine {
		t.Errorf("rolled back: %q", got)
	}
	r.must("push", three, r.name) // what the rollback brought back is still the node's own
	if got, want := read(t, conf), "A\nb\nc\nD\nE\n"; got != want {
		t.Errorf("merged after a rollback: %q, want %q", got, want)
	}
	// Where the store has lost what the file was nothing is merged, and it is said.
	id := r.last().Image.String()
	four := image("4", "a\nb\nc\nd\nF\n")
	r.must("image", "rm", three)
	ok(t, os.Remove(filepath.Join(r.site, ".ingot/store/manifests", id[:2], id+".zst")))
	r.fails(1, []string{`"etc/app.conf"`, "what was given"}, "push", four, r.name)
	if got, want := read(t, conf), "A\nb\nc\nD\nE\n"; got != want {
		t.Errorf("after a merge without the file before: %q, want %q", got, want)
	}
	r.must("push", four, r.name, "--take", "/etc/app.conf")
}
