package rollback

import (
	"os"
	"path/filepath"
	"testing"
)

// toSide brings the other side of n to a target, and returns its generation.
func toSide(t *testing.T, n, other *Node, goal Target, src Source) (Generation, *Plan) {
	t.Helper()
	p, err := n.PlanSide(bg(), goal, other)
	ok(t, err)
	ok(t, p.Err())
	ok(t, other.Stage(bg(), p, src))
	g, err := other.Switch(bg(), p)
	ok(t, err)
	return g, p
}

// An empty side becomes exactly the new tree, and then the next one; the side
// that runs is not touched, and content comes from it where it has that.
func TestSide(t *testing.T) {
	w := newWorld(t, 51, 300, 200)
	n := w.node()
	dir := filepath.Join(filepath.Dir(w.dir), "side")
	ok(t, os.Mkdir(dir, 0o700))
	other := open(t, dir)
	g, p := toSide(t, n, other, w.goal(), w.src)
	if g.Number != 2 || g.Image != "new:2" {
		t.Errorf("the side is generation %d, %s", g.Number, g.Image)
	}
	w.isOld("the side that runs")
	rsyncSame(t, "the other side", w.new, dir)
	same(t, "the other side", w.mnew, snapshot(t, dir))
	ok(t, other.Verify(bg(), p))
	all := int64(0)
	for _, e := range w.target.Entries {
		for _, c := range e.Chunks {
			all += int64(c.Size)
		}
	}
	if p.NeedBytes == 0 || p.NeedBytes >= all {
		t.Errorf("%d of %d bytes were needed: the side that runs has some of them", p.NeedBytes, all)
	}

	// The other way round: back to what the first side still is takes nothing.
	was := snapshot(t, w.old)
	chunked(t, w.old, was, 4)
	g, p = toSide(t, other, n, Target{Manifest: was, Image: "old:1"}, nil)
	if g.Number != 3 || p.NeedBytes != 0 {
		t.Errorf("generation %d, %d bytes needed", g.Number, p.NeedBytes)
	}
	w.isOld("the first side")
	m, err := n.Manifest(3)
	ok(t, err)
	if m.ID() != was.ID() {
		t.Error("the record is not the target")
	}
	// And a push to it is one of nothing.
	p, err = n.Plan(bg(), Target{Manifest: was})
	ok(t, err)
	if !p.Empty() {
		t.Errorf("the same in place does %v", p.Steps)
	}
}

// What is the node's own is on the other side, too, as it is on this one; the
// record says what was given, so that the next push sees the same changes.
func TestSideHasWhatIsTheNodes(t *testing.T) {
	w := tiny(t, func(dir string) {
		write(t, dir+"/prog", "new prog")
		write(t, dir+"/etc/app/extra", "new extra")
		write(t, dir+"/etc/hostname", "of the image")
	})
	n := w.node()
	write(t, w.at("etc/hostname"), "n1")
	write(t, w.at("etc/app/conf"), "the node's")
	ok(t, os.MkdirAll(w.at("home/joe"), 0o750))
	write(t, w.at("home/joe/letter"), "dear")
	ok(t, os.WriteFile(w.at("etc/local"), []byte("added"), 0o640))
	dir := filepath.Join(filepath.Dir(w.dir), "side")
	ok(t, os.Mkdir(dir, 0o700))
	other := open(t, dir)
	p, err := n.PlanSide(bg(), w.goal(), other)
	ok(t, err)
	isErr(t, p.Err(), ErrConflict, "etc/app/conf")

	goal := w.goal()
	goal.Policy = Policy{Keep: must(t, "/etc/app/conf", "/etc/local", "/home")}
	before := snapshot(t, w.dir)
	_, made := toSide(t, n, other, goal, w.src)
	same(t, "the side that runs", before, snapshot(t, w.dir))
	for path, want := range map[string]string{"etc/hostname": "n1", "etc/app/conf": "the node's", "home/joe/letter": "dear", "etc/local": "added", "prog": "new prog", "etc/app/extra": "new extra"} {
		if got := read(t, filepath.Join(dir, path)); got != want {
			t.Errorf("%s holds %q on the other side, want %q", path, got, want)
		}
	}
	if st, err := os.Stat(dir + "/home/joe"); err != nil || st.Mode().Perm() != 0o750 {
		t.Errorf("home/joe: %v, %v", st, err)
	}
	ok(t, other.Verify(bg(), made))

	// From there on it is this tree that the node changed, just so.
	other = open(t, dir)
	p, err = other.Plan(bg(), w.goal())
	ok(t, err)
	isErr(t, p.Err(), ErrConflict, "3 paths")
	p, err = other.Plan(bg(), goal)
	ok(t, err)
	if !p.Empty() {
		t.Errorf("the same push in place does %v", p.Steps)
	}
	write(t, filepath.Join(dir, "prog"), "damaged!")
	isErr(t, other.Verify(bg(), made), ErrDamaged, `"prog"`)
}

// The way back to the other side takes along what the node changed meanwhile
// where that is not in question, asks where it is, and never takes back what
// is never to be.
func TestSideBack(t *testing.T) {
	w := tiny(t, func(dir string) {
		write(t, dir+"/prog", "new prog")
		write(t, dir+"/etc/app/conf", "new conf")
		write(t, dir+"/etc/shadow", "new password")
	})
	write(t, w.at("etc/shadow"), "old password")
	n := w.node()
	dir := filepath.Join(filepath.Dir(w.dir), "side")
	ok(t, os.Mkdir(dir, 0o700))
	other := open(t, dir)
	goal := Target{Manifest: snapshot(t, w.new), Image: "new:2"} // cut as the record of the old tree is
	goal.Never = must(t, "/etc/shadow")
	goal.Policy.Default = Take
	toSide(t, n, other, goal, chunked(t, w.new, snapshot(t, w.new), 1<<20))

	// The node runs on the other side, and changes things there.
	write(t, filepath.Join(dir, "etc/passwd"), "with joe")
	write(t, filepath.Join(dir, "etc/shadow"), "of joe")
	write(t, filepath.Join(dir, "etc/new"), "made here")
	before := snapshot(t, dir)
	p, err := other.PlanSideBack(bg(), n, Policy{}, "x")
	ok(t, err)
	ok(t, p.Err())
	ok(t, n.Stage(bg(), p, nil))
	g, err := n.Switch(bg(), p)
	ok(t, err)
	if g.Number != 3 || g.Of != 2 || g.To != 1 {
		t.Errorf("generation %+v", g)
	}
	same(t, "the side that runs", before, snapshot(t, dir))
	for path, want := range map[string]string{"prog": "old prog", "etc/app/conf": "old etc/app/conf", "etc/passwd": "with joe", "etc/shadow": "of joe", "etc/new": "made here"} {
		if got := read(t, w.at(path)); got != want {
			t.Errorf("%s holds %q after the way back, want %q", path, got, want)
		}
	}
	ok(t, n.Verify(bg(), p))

	// What both changed is asked about.
	write(t, filepath.Join(dir, "etc/app/conf"), "the node's")
	p, err = other.PlanSideBack(bg(), n, Policy{}, "x")
	ok(t, err)
	isErr(t, p.Err(), ErrConflict, "etc/app/conf")

	again, err := n.Again(bg(), 7, func(g *Generation) { g.Result, g.Reason = "reverted", "it did not start" })
	ok(t, err)
	if again.Number != 7 || again.From != 3 || again.Image != g.Image {
		t.Errorf("recorded again: %+v", again)
	}
	first, err := n.Manifest(3)
	ok(t, err)
	second, err := n.Manifest(7)
	ok(t, err)
	if first.ID() != second.ID() {
		t.Error("the record of it is another one")
	}
	_, err = n.Rollback(bg(), 3, Policy{}, "x")
	ok(t, err)
}
