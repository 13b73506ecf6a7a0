package rollback

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// Of a thousand steps that replace nothing, several are carried out at once; one
// of them finds another inode. What the others did is taken back.
func TestOneOfSeveralStepsFails(t *testing.T) {
	top := scratch(t)
	w := &world{t: t, old: top + "/old", new: top + "/new", dir: top + "/node"}
	g := &garden{t: t, dir: w.old, r: rand.New(rand.NewPCG(5, 5))}
	for i := range 1000 {
		ok(t, os.MkdirAll(filepath.Join(w.old, fmt.Sprint("d", i%20)), 0o755))
		write(t, filepath.Join(w.old, fmt.Sprintf("d%d/f%d", i%20, i)), fmt.Sprint(i))
	}
	g.age()
	copyTree(t, w.old, w.new)
	for i := range 1000 {
		ok(t, os.Chmod(filepath.Join(w.new, fmt.Sprintf("d%d/f%d", i%20, i)), 0o600))
	}
	w.mold, w.mnew, w.target = snapshot(t, w.old), snapshot(t, w.new), snapshot(t, w.new)
	w.src = chunked(t, w.new, w.target, pieceSize)
	copyTree(t, w.old, w.dir)
	n := w.node()
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	ok(t, n.Stage(bg(), p, w.src))
	vols, err := n.openPlan(p)
	ok(t, err)
	defer vols.close()
	r, _, err := vols.prepareSwitch(bg(), p)
	ok(t, err)
	if n := sameInodes(r.j.steps); n < 1000 || n != len(r.j.steps) {
		t.Fatalf("%d of %d steps replace nothing", n, len(r.j.steps))
	}
	ok(t, n.writeState(in("journal"), r.j.encode()))
	ino := &r.j.steps[700].old.ino
	*ino++
	err = r.forward()
	*ino--
	if !errors.Is(err, ErrChanged) {
		t.Fatalf("a step that finds another inode: %v", err)
	}
	if snapshot(t, w.dir).ID() == w.mold.ID() {
		t.Error("no other step was carried out: this proves nothing")
	}
	if err := n.takeBack(r, p, err); !errors.Is(err, ErrChanged) || errors.Is(err, ErrInterrupted) {
		t.Errorf("taking it back: %v", err)
	}
	w.isOld("taken back")
	w.push(n)
	w.isNew("again")
}

// Parts cover each step once, and an error ends them.
func TestInParts(t *testing.T) {
	n := open(t, scratch(t))
	for _, steps := range []int{0, 1, 127, 128, 129, 1000} {
		seen := make([]int, steps)
		ok(t, n.inParts(bg(), steps, func(_ *openDir, i int) error { seen[i]++; return nil }))
		for i, times := range seen {
			if times != 1 {
				t.Fatalf("of %d steps, number %d came %d times", steps, i, times)
			}
		}
	}
	bad := errors.New("bad")
	if err := n.inParts(bg(), 1000, func(_ *openDir, i int) error {
		if i == 300 {
			return bad
		}
		return nil
	}); !errors.Is(err, bad) {
		t.Errorf("an error is lost: %v", err)
	}
	ended, cancel := context.WithCancel(bg())
	cancel()
	if err := n.inParts(ended, 1000, func(*openDir, int) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v", err)
	}
}
