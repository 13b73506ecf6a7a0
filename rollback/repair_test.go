package rollback

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// seeds makes changes of seven kinds, as many of each, in files of a manifest
// that have content and one name, and returns what of each path is to be found.
func (w *world) seeds(t *testing.T, r *rand.Rand, m *manifest.Manifest, each int) map[string]ConflictKind {
	t.Helper()
	linked := map[string]bool{}
	for i := range m.Entries {
		linked[m.Entries[i].Link] = true
	}
	var files []string
	for i := range m.Entries {
		if e := &m.Entries[i]; e.Type == entry.File && e.Link == "" && !linked[e.Path] && e.Size > 0 && len(e.Holes) == 0 {
			files = append(files, e.Path)
		}
	}
	if len(files) < 6*each {
		t.Fatalf("only %d files to change", len(files))
	}
	r.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	out := map[string]ConflictKind{}
	kinds := []ConflictKind{LocalChange, LocalMeta, LocalMeta, LocalMeta, LocalDelete, LocalType, LocalAdd}
	for i := range 7 * each {
		path := files[i%len(files)]
		if i < 6*each {
			path = files[i]
		}
		at := w.at(path)
		switch i / each {
		case 0:
			rot(t, r, at)
		case 1:
			ok(t, unix.Chmod(at, m.Entries[0].Mode^uint32(1+r.IntN(0o777))))
		case 2:
			st, err := os.Lstat(at)
			ok(t, err)
			ok(t, os.Lchown(at, 3000+r.IntN(1000), -1))
			ok(t, os.Chmod(at, st.Mode()))
		case 3:
			ok(t, unix.Lsetxattr(at, "user.drift", fmt.Append(nil, r.Uint64()), 0))
		case 4:
			ok(t, os.Remove(at))
		case 5:
			ok(t, os.Remove(at))
			ok(t, os.Symlink("elsewhere", at))
		case 6:
			path = filepath.Join(filepath.Dir(files[r.IntN(len(files))]), fmt.Sprintf("added %d\xff", i))
			write(t, w.at(path), "nobody was given this")
		}
		out[path] = kinds[i/each]
	}
	return out
}

// drifted asks what has changed: what is put back, and why other paths are left.
func drifted(t *testing.T, p *Plan) (back map[string]ConflictKind, left map[string]string) {
	t.Helper()
	back, left = map[string]ConflictKind{}, map[string]string{}
	for _, d := range p.Drift() {
		if d.Why == "" {
			t.Errorf("%q %s does not say what differs", d.Path, d.Kind)
		}
		if d.Left != "" {
			left[d.Path] = d.Left
			continue
		}
		back[d.Path] = d.Kind
	}
	return back, left
}

func sameDrift(t *testing.T, what string, want, got map[string]ConflictKind) {
	t.Helper()
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if got[path] != want[path] {
			t.Errorf("%s: %q is %q, want %q", what, path, got[path], want[path])
		}
	}
	for path, kind := range got {
		if want[path] == "" {
			t.Errorf("%s: %q %s, which nobody changed", what, path, kind)
		}
	}
}

// repair brings a node back to what it was given.
func repair(n *Node, r Repair, src Source) (Generation, *Plan, error) {
	p, err := n.PlanRepair(bg(), r)
	if err == nil {
		err = n.Stage(bg(), p, src)
	}
	if err != nil {
		return Generation{}, p, err
	}
	g, err := n.Switch(bg(), p)
	return g, p, err
}

// 203 changes of seven kinds are found, and nothing else is, though files were
// touched and what is the node's own was written; they are undone, and come back
// with the rollback. Content that not even the ctime tells of is found where
// everything is read.
func TestDrift(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("owners of files need root")
	}
	w := newWorld(t, 61, 1100, 300)
	n := w.node()
	w.push(n)
	given := snapshot(t, w.dir)
	p, err := n.Drift(bg(), Repair{})
	ok(t, err)
	sameDrift(t, "after the push", nil, kindsOf(t, p))

	r := rand.New(rand.NewPCG(61, 3))
	want := w.seeds(t, r, w.target, 29)
	for _, dir := range []string{"var/log", "var/cache/apt", "var/lib/app", "home/joe", "tmp"} {
		ok(t, os.MkdirAll(w.at(dir), 0o755))
		write(t, w.at(dir+"/written"), dir)
		for up := dir; up != "."; up = filepath.Dir(up) {
			if _, ok := w.target.Lookup(up); !ok && !strings.HasPrefix(up, "home/") && !strings.HasPrefix(up, "var/lib/") && !strings.HasPrefix(up, "var/cache/") {
				want[up] = LocalAdd // the image has no such directory
			}
		}
	}
	touched := 0
	for i := range w.target.Entries {
		e := &w.target.Entries[i]
		if _, hit := want[e.Path]; e.Type == entry.File && !hit && touched < 50 {
			ok(t, os.Chtimes(w.at(e.Path), n.now(), n.now()))
			touched++
		}
	}
	before := snapshot(t, w.dir)
	if p, err = n.Drift(bg(), Repair{}); err != nil || len(want) < 203 || touched < 50 {
		t.Fatalf("%v; %d changes, %d files touched", err, len(want), touched)
	}
	_, left := drifted(t, p)
	for _, dir := range []string{"home", "var", "var/lib", "var/log", "var/cache", "tmp"} {
		if left[dir] == "" {
			t.Errorf("%q, which holds what is the node's own, is not left", dir)
		}
		delete(want, dir)
	}
	sameDrift(t, "quick", want, kindsOf(t, p))

	g, _, err := repair(n, Repair{By: "me"}, w.src)
	ok(t, err)
	if g.Result != "repaired" || g.Number != 3 || g.Image != "new:2" || g.By != "me" || g.Note != "repair of 2" || g.To != 0 {
		t.Errorf("the repair is recorded as %+v", g)
	}
	if p, err = n.Drift(bg(), Repair{Full: true}); err != nil || len(kindsOf(t, p)) > 0 {
		t.Errorf("after the repair: %v, %v", p.Drift(), err)
	}
	own := func(path string) bool {
		_, was := given.Lookup(path)
		return was && path != "."
	}
	same(t, "what was given", only(given, own), only(snapshot(t, w.dir), own))
	w.back(n, 0)
	same(t, "the rollback of the repair", before, snapshot(t, w.dir))
}

func kindsOf(t *testing.T, p *Plan) map[string]ConflictKind {
	t.Helper()
	back, _ := drifted(t, p)
	return back
}

// Damage that no inode tells of is found by reading, and repaired from the source.
func TestDriftOfDamage(t *testing.T) {
	w := newWorld(t, 62, 900, 300)
	n := w.node()
	w.push(n)
	r := rand.New(rand.NewPCG(62, 1))
	want := map[string]ConflictKind{}
	for _, path := range someFiles(t, r, w.target, func(*entry.Entry) bool { return true }) {
		rot(t, r, w.at(path))
		want[path] = LocalChange
	}
	w.forgetNothing(n)
	if p, err := n.Drift(bg(), Repair{}); err != nil || len(p.Drift()) > 0 {
		t.Fatalf("%v: %v: this test does not test", p.Drift(), err)
	}
	p, err := n.Drift(bg(), Repair{Full: true})
	ok(t, err)
	sameDrift(t, "in full", want, kindsOf(t, p))
	_, p, err = repair(n, Repair{Full: true}, w.src)
	ok(t, err)
	if len(p.Steps) == 0 || len(p.Need) == 0 {
		t.Errorf("%d steps, %d chunks needed", len(p.Steps), len(p.Need))
	}
	w.isNew("after the repair")
}

// A tree without drift has nothing to be repaired, even where times differ.
func TestRepairOfNothing(t *testing.T) {
	w := usual(t)
	n := open(t, w.dir)
	_, err := n.Drift(bg(), Repair{})
	isErr(t, err, ErrNoGeneration, "nothing was given")
	n = w.node()
	w.push(n)
	ok(t, os.Chtimes(w.at("prog"), n.now(), n.now()))
	p, err := n.PlanRepair(bg(), Repair{})
	if err != nil || !p.Empty() || len(p.Drift()) > 0 {
		t.Errorf("%v, %v, %v", p.Steps, p.Drift(), err)
	}
	write(t, w.at("prog"), "mine")
	_, _, err = repair(n, Repair{}, w.src)
	ok(t, err)
	w.isNew("times, too")
}

// The record of a generation is what counts, whoever made it: a rollback, a
// revert and a repair are repaired to what they brought back, local changes included.
func TestRepairOfARollback(t *testing.T) {
	w := usual(t)
	n := w.node()
	write(t, w.at("etc/mine"), "mine")
	goal := w.goal()
	goal.Policy.Default = Take
	_, err := push(n, goal, w.src)
	ok(t, err)
	w.back(n, 0) // brings etc/mine back
	before := snapshot(t, w.dir)
	write(t, w.at("etc/mine"), "changed since")
	ok(t, os.Remove(w.at("prog")))
	p, err := n.Drift(bg(), Repair{})
	ok(t, err)
	sameDrift(t, "after a rollback", map[string]ConflictKind{"etc/mine": LocalChange, "prog": LocalDelete}, kindsOf(t, p))
	src := chunked(t, w.old, w.mold, pieceSize)
	src.chunks[digest.Of([]byte("mine"))] = []byte("mine")
	g, _, err := repair(n, Repair{}, src)
	ok(t, err)
	same(t, "repaired", before, snapshot(t, w.dir))
	if !slices.Equal(g.Local, []Path{"etc/mine"}) {
		t.Errorf("the node's own changes are %q", g.Local)
	}
	_, err = push(n, w.goal(), w.src) // it is still the node's
	isErr(t, err, ErrConflict, `"etc/mine"`)
}

// What somebody decided to keep is no drift until it changes again, whatever
// else was pushed or taken back meanwhile.
func TestDriftOfKept(t *testing.T) {
	w := usual(t)
	n := w.node()
	n.Retention.Keep = 20
	write(t, w.at("prog"), "mine")
	write(t, w.at("etc/mine"), "mine too")
	ok(t, os.Remove(w.at("etc/app/conf")))
	ok(t, os.Chmod(w.at("etc/passwd"), 0o600))
	goal := w.goal()
	goal.Policy.Default = Keep
	g, err := push(n, goal, w.src)
	ok(t, err)
	if len(g.Kept) != 4 || len(g.KeptAs) != 4 {
		t.Fatalf("kept %q, %+v", g.Kept, g.KeptAs)
	}
	kept := func(what string, want ...string) {
		t.Helper()
		p, err := n.PlanRepair(bg(), Repair{})
		ok(t, err)
		back, left := drifted(t, p)
		if got := slices.Sorted(maps.Keys(left)); !slices.Equal(got, want) || len(back) > 0 || !p.Empty() {
			t.Errorf("%s: left %q, to be put back %v", what, left, back)
		}
	}
	all := []string{"etc/app/conf", "etc/mine", "etc/passwd", "prog"}
	kept("after the push", all...)
	part := w.goal()
	part.Within = "etc/app/extra"
	write(t, w.new+"/etc/app/extra", "extra")
	part.Manifest = snapshot(t, w.new)
	src := chunked(t, w.new, part.Manifest, 4)
	_, err = push(n, part, src)
	ok(t, err)
	kept("after a part", all...)
	w.back(n, 0)
	kept("after its rollback", all...)

	ok(t, os.Chtimes(w.at("prog"), n.now(), n.now()))
	write(t, w.at("etc/mine"), "mine anew")
	write(t, w.at("etc/app/conf"), "back")
	ok(t, os.Chmod(w.at("etc/passwd"), 0o640))
	p, err := n.Drift(bg(), Repair{})
	ok(t, err)
	back, left := drifted(t, p)
	sameDrift(t, "changed again", map[string]ConflictKind{"etc/app/conf": LocalChange, "etc/mine": LocalAdd, "etc/passwd": LocalMeta}, back)
	if len(left) != 1 || !strings.Contains(left["prog"], "kept when") {
		t.Errorf("left %q", left)
	}
	if g, _, err = repair(n, Repair{}, src); err != nil || !slices.Equal(g.Kept, []Path{"prog"}) || len(g.KeptAs) != 1 {
		t.Errorf("kept %q, %v", g.Kept, err)
	}
	if read(t, w.at("prog")) != "mine" {
		t.Error("what was kept was taken")
	}
	kept("after the repair", "prog")

	g.KeptAs = nil // as an older ingot recorded it
	ok(t, n.writeState(genDir(g.Number, "meta.json"), encodeMeta(g)))
	write(t, w.at("prog"), "mine, later")
	kept("of an older ingot", "prog")
}

// What a repair leaves: what the installation made, what is never rolled back,
// what the policy keeps, the modules that are in use, and directories of such.
func TestRepairLeaves(t *testing.T) {
	w := usual(t)
	n := open(t, w.dir)
	n.Running = "6.1"
	ok(t, os.MkdirAll(w.old+"/lib/modules", 0o755))
	ok(t, os.MkdirAll(w.at("lib/modules"), 0o755))
	m := snapshot(t, w.dir)
	ok(t, n.Record(bg(), Generation{Image: "old:1", Result: "installed", Derived: []Path{"etc/app/conf"}, Owned: []string{"/srv/data/**"}, Never: []string{"/etc/passwd"}}, m, m, nil))
	write(t, w.at("etc/app/conf"), "the machine's")
	write(t, w.at("etc/passwd"), "rotated")
	write(t, w.at("prog"), "kept by the policy")
	write(t, w.at("etc/app/extra"), "named now")
	for _, path := range []string{"lib/modules/6.1/a.ko", "lib/modules/5.9/b.ko", "srv/data/x", "opt/own/x"} {
		ok(t, os.MkdirAll(filepath.Dir(w.at(path)), 0o755))
		write(t, w.at(path), path)
	}
	r := Repair{Policy: Policy{Usual: &Policy{Keep: list(t, "/prog")}}, Never: list(t, "/etc/app/extra"), NodeOwned: list(t, "/opt/own/**")}
	p, err := n.PlanRepair(bg(), r)
	ok(t, err)
	back, left := drifted(t, p)
	sameDrift(t, "put back", map[string]ConflictKind{"lib/modules/5.9": LocalAdd, "lib/modules/5.9/b.ko": LocalAdd}, back)
	for path, why := range map[string]string{"etc/app/conf": "installation", "etc/passwd": "never", "etc/app/extra": "never", "prog": "policy", "lib/modules/6.1": "running kernel",
		"srv": "holds", "srv/data": "holds", "opt": "holds", "opt/own": "holds"} {
		if !strings.Contains(left[path], why) {
			t.Errorf("%q is left since %q, want %q", path, left[path], why)
		}
		delete(left, path)
	}
	if len(left) > 0 {
		t.Errorf("left, too: %q", left)
	}
	ok(t, n.Stage(bg(), p, nil))
	_, err = n.Switch(bg(), p)
	ok(t, err)
	if read(t, w.at("lib/modules/6.1/a.ko")) == "" || read(t, w.at("etc/passwd")) != "rotated" || n.exists("lib/modules/5.9") {
		t.Error("the repair did something else than it said")
	}
	// The next push asks about a rotated password.
	_, err = push(n, Target{Manifest: w.target, Image: "new:2", Policy: Policy{Keep: list(t, "/prog", "/lib/**", "/srv/**", "/opt/**", "/etc/app/**", "/lib", "/opt", "/srv")}}, w.src)
	isErr(t, err, ErrConflict, "")
	isErr(t, err, ErrConflict, "etc/passwd")
}

// A hard link that is none any more is drift; one that was added is told by its
// own name, and one from what is the node's own is nobody's business.
func TestDriftOfLinks(t *testing.T) {
	top := scratch(t)
	dir := top + "/node"
	plot(t, dir, map[string]string{"a": "linked", "c": "alone", "d": "alone too"})
	ok(t, os.Link(dir+"/a", dir+"/b"))
	n := open(t, dir)
	m := snapshot(t, dir)
	ok(t, n.Record(bg(), Generation{Image: "x:1"}, m, m, nil))
	copyTree(t, dir+"/b", dir+"/new")
	ok(t, os.Rename(dir+"/new", dir+"/b"))
	ok(t, os.Link(dir+"/c", dir+"/e"))
	ok(t, os.MkdirAll(dir+"/home/joe", 0o755))
	ok(t, os.Link(dir+"/d", dir+"/home/joe/d"))
	p, err := n.PlanRepair(bg(), Repair{})
	ok(t, err)
	back, left := drifted(t, p)
	sameDrift(t, "links", map[string]ConflictKind{"a": LocalLink, "b": LocalLink, "e": LocalAdd}, back)
	if len(left) != 1 || left["home"] == "" {
		t.Errorf("left %q", left)
	}
	ok(t, n.Stage(bg(), p, nil))
	_, err = n.Switch(bg(), p)
	ok(t, err)
	if p, err = n.Drift(bg(), Repair{}); err != nil || len(kindsOf(t, p)) > 0 {
		t.Errorf("after the repair: %v, %v", p.Drift(), err)
	}
}

// One path alone is compared and put back, with what shares an inode with it;
// where only parts were pushed nothing else is looked at.
func TestRepairWithin(t *testing.T) {
	n, dir, target, src := parts(t)
	_, err := push(n, Target{Manifest: target, Image: "new:1", Within: "srv/www"}, src)
	ok(t, err)
	_, err = push(n, Target{Manifest: target, Image: "new:1", Within: "etc"}, src)
	ok(t, err)
	given := snapshot(t, dir)
	write(t, dir+"/srv/other", "not looked at")
	write(t, dir+"/srv/www/x", "changed")
	write(t, dir+"/etc/a", "changed")
	ok(t, os.RemoveAll(dir+"/srv/www/new"))
	p, err := n.Drift(bg(), Repair{})
	ok(t, err)
	www := map[string]ConflictKind{"srv/www/x": LocalChange, "srv/www/new": LocalDelete, "srv/www/new/y": LocalDelete}
	all := maps.Clone(www)
	all["etc/a"] = LocalChange
	sameDrift(t, "parts", all, kindsOf(t, p))
	for _, within := range []string{"srv", "srv/www"} {
		p, err = n.Drift(bg(), Repair{Within: within})
		ok(t, err)
		sameDrift(t, within, www, kindsOf(t, p))
	}
	_, err = n.Drift(bg(), Repair{Within: "opt"})
	isErr(t, err, unix.ENOENT, "")
	g, _, err := repair(n, Repair{Within: "srv/www"}, src)
	ok(t, err)
	if len(g.Covers) != 2 || read(t, dir+"/etc/a") != "changed" || read(t, dir+"/srv/other") != "not looked at" {
		t.Errorf("a part was repaired, and more: %+v", g)
	}
	in := func(path string) bool { return under(path, "srv/www") }
	same(t, "the part", only(given, in), only(snapshot(t, dir), in))
	if p, err = n.Drift(bg(), Repair{}); err != nil {
		t.Fatal(err)
	}
	sameDrift(t, "the rest", map[string]ConflictKind{"etc/a": LocalChange}, kindsOf(t, p))
}
