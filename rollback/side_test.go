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
