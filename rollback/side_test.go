package rollback

import (
	"os"
	"path/filepath"
	"strings"
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

// A file that the node and the target changed has both changes on the other
// side, and is the node's own there; the side that runs keeps what it has. Where
// the command fails nothing is done to either.
func TestSideMerges(t *testing.T) {
	w, n, goal := mergeWorld(t)
	dir := filepath.Join(filepath.Dir(w.dir), "side")
	ok(t, os.Mkdir(dir, 0o700))
	other := open(t, dir)
	plan := func(n, other *Node, goal Target) *Plan {
		t.Helper()
		p, err := n.PlanSide(bg(), goal, other)
		ok(t, err)
		ok(t, p.Err())
		if len(p.Conflicts) != 1 || p.Conflicts[0].Action != Merge {
			t.Fatalf("conflicts %v", p.Conflicts)
		}
		return p
	}
	bad := goal
	bad.Policy.Usual = &Policy{Merge: []Merger{{list(t, "/etc/app/*"), "exit 3"}}}
	_, err := n.MergeSide(bg(), plan(n, other, bad), other, w.src)
	isErr(t, err, ErrConflict, "exit status 3")
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("the other side has %v, %v", list, err)
	}

	before := snapshot(t, w.dir)
	p, err := n.MergeSide(bg(), plan(n, other, goal), other, w.src)
	ok(t, err)
	ok(t, other.Stage(bg(), p, w.src))
	g, err := other.Switch(bg(), p)
	ok(t, err)
	same(t, "the side that runs", before, snapshot(t, w.dir))
	if got := read(t, dir+"/etc/app/conf"); got+"\n" != mergedText {
		t.Errorf("merged: %q", got)
	}
	if read(t, dir+"/prog") != "new prog" || len(g.Local) != 1 || g.Local[0] != "etc/app/conf" {
		t.Errorf("generation %+v", g)
	}
	ok(t, other.Verify(bg(), p))
	if n.exists(in("stage", "merge")) || other.exists(in("stage", "merge")) {
		t.Error("the files of the merge were left")
	}

	// From there the same is nothing to do, in place.
	other = open(t, dir)
	if p, err = other.Plan(bg(), goal); err != nil || !p.Empty() || p.Err() != nil {
		t.Errorf("the same in place does %v, %v, %v", p.Steps, err, p.Err())
	}
	// And a merge onto a side that has the file: the first one, from the other.
	write(t, dir+"/etc/app/conf", "ONE\ntwo\nTHREE\nfour\nFIVE\n")
	write(t, w.new+"/etc/app/conf", "one\ntwo\nthree\nfour\nFIVE\nsix\n")
	next := snapshot(t, w.new)
	for id, b := range chunked(t, w.new, next, 7).chunks {
		w.src.chunks[id] = b
	}
	goal.Manifest = next
	q, err := other.MergeSide(bg(), plan(other, n, goal), n, w.src)
	ok(t, err)
	ok(t, n.Stage(bg(), q, w.src))
	_, err = n.Switch(bg(), q)
	ok(t, err)
	if got := read(t, w.at("etc/app/conf")); strings.TrimSpace(got) != "ONE\ntwo\nTHREE\nfour\nFIVE\nsix" {
		t.Errorf("merged onto the first side: %q", got)
	}
	ok(t, n.Verify(bg(), q))
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
