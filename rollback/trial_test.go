package rollback

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// tried pushes the new tree on trial.
func tried(t testing.TB, w *world, n *Node) Generation {
	t.Helper()
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	p.Try(time.Minute)
	ok(t, n.Stage(bg(), p, w.src))
	g, err := n.Switch(bg(), p)
	ok(t, err)
	return g
}

func TestTrial(t *testing.T) {
	w := newWorld(t, 71, 60, 40)
	n := w.node()
	now := time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)
	n.Now = func() time.Time { return now }
	if err := n.Confirm(1, "x"); !errors.Is(err, ErrNoTrial) {
		t.Errorf("confirming what is not on trial: %v", err)
	}
	if _, _, err := n.Revert(bg(), 1, "x"); !errors.Is(err, ErrNoTrial) {
		t.Errorf("reverting what is not on trial: %v", err)
	}
	g := tried(t, w, n)
	if !g.OnTrial() || !g.Trial.Until.Equal(now.Add(time.Minute)) {
		t.Fatalf("the trial is %+v", g.Trial)
	}
	// Another push has to wait; the same one finds nothing to do.
	other := w.goal()
	other.Manifest = w.mold
	if _, err := n.Plan(bg(), other); !errors.Is(err, ErrOnTrial) || !strings.Contains(err.Error(), "generation 2") {
		t.Errorf("another push during a trial: %v", err)
	}
	if p, err := n.Plan(bg(), w.goal()); err != nil || !p.Empty() {
		t.Errorf("the same push during a trial: %v", err)
	}
	if err := n.Confirm(3, "x"); !errors.Is(err, ErrNoTrial) {
		t.Errorf("confirming another generation: %v", err)
	}
	ok(t, n.Report(2, []Health{{What: "unit a.service", OK: true}}))
	ok(t, n.Confirm(2, "root@here"))
	ok(t, n.Confirm(2, "twice")) // is no error
	if g, err := n.Current(); err != nil || g.OnTrial() || g.Trial.By != "root@here" || !g.Trial.Confirmed.Equal(now) || len(g.Health) != 1 {
		t.Errorf("confirmed: %+v, %+v, %v", g, g.Trial, err)
	}
	if _, _, err := n.Revert(bg(), 2, "late"); !errors.Is(err, ErrNoTrial) {
		t.Errorf("reverting what was confirmed: %v", err)
	}
	same(t, "confirmed", w.mnew, snapshot(t, w.dir))
	// A rollback inherits nothing of the trial of where it goes.
	ok(t, errOf(n.Rollback(bg(), 1, Policy{}, "x")))
	back, err := n.Rollback(bg(), 2, Policy{}, "x")
	ok(t, err)
	if back.Trial != nil || back.Health != nil {
		t.Errorf("the rollback to 2 has %+v, %+v", back.Trial, back.Health)
	}
}

func TestRevert(t *testing.T) {
	w := newWorld(t, 72, 60, 40)
	n := w.node()
	tried(t, w, n)
	// What the new release writes must not keep the old one from coming back.
	var touched string
	for i := range w.mnew.Entries {
		if e := &w.mnew.Entries[i]; e.Type == entry.File {
			if st, err := os.Lstat(filepath.Join(w.dir, e.Path)); err == nil && st.Mode().IsRegular() {
				touched = e.Path
				write(t, filepath.Join(w.dir, e.Path), "written by the new release")
			}
		}
	}
	if touched == "" {
		t.Fatal("no file to write to")
	}
	g, p, err := n.Revert(bg(), 2, "check \"web\" failed")
	ok(t, err)
	if len(p.Changes()) == 0 {
		t.Error("the revert does not say what it changed")
	}
	if g.Number != 3 || g.Result != "reverted" || g.Reason != "check \"web\" failed" || g.Of != 2 || g.To != 1 || g.Trial != nil {
		t.Errorf("the revert is %+v", g)
	}
	now := snapshot(t, w.dir)
	for _, c := range manifest.Diff(w.mold, now) { // but for what was only ever in the file that was written to
		if c.A == nil || c.B == nil || read(t, filepath.Join(w.dir, c.Path)) != "written by the new release" {
			t.Errorf("after the revert: %v %q", c.Kind, c.Path)
		}
	}
	if len(manifest.Diff(w.mold, now)) >= len(manifest.Diff(w.mnew, now)) {
		t.Error("that is more like the new release")
	}
	if err := n.Confirm(2, "late"); !errors.Is(err, ErrNoTrial) || !strings.Contains(err.Error(), "check \"web\" failed") {
		t.Errorf("confirming what was reverted: %v", err)
	}
}

// A revert that cannot be done is noted, stays on trial, and is done later.
func TestStuckRevert(t *testing.T) {
	w := newWorld(t, 73, 60, 40)
	n := w.node()
	g := tried(t, w, n)
	hidden := filepath.Join(w.dir, ".ingot/generations/1/undo")
	ok(t, os.Rename(hidden, hidden+".away"))
	if _, _, err := n.Revert(bg(), g.Number, "why"); !errors.Is(err, ErrDamaged) {
		t.Fatalf("a revert without undo copies: %v", err)
	}
	if g, err := n.Current(); err != nil || !g.OnTrial() || g.Trial.Stuck == "" {
		t.Errorf("after it: %+v, %v", g.Trial, err)
	}
	same(t, "stuck", w.mnew, snapshot(t, w.dir))
	ok(t, os.Rename(hidden+".away", hidden))
	ok(t, errOf2(n.Revert(bg(), g.Number, "why")))
	same(t, "reverted", w.mold, snapshot(t, w.dir))
}

// A revert, and the confirmation, that die anywhere leave a node that is on
// trial or is done with it; whoever comes next finishes it.
func TestRevertDiesAnywhere(t *testing.T) {
	w := newWorld(t, 74, 16, 12)
	n := w.node()
	g := tried(t, w, n)
	c := &campaign{w: w}
	reverted, onTrial := 0, 0
	for at := 1; ; at++ {
		n := open(t, w.dir)
		lived, err := (&fate{at: at}).live(n, func() error { return errOf2(n.Revert(bg(), g.Number, "died")) })
		n.Close()
		if lived && err != nil {
			t.Fatalf("point %d: %v", at, err)
		}
		c.recovered("revert")
		n = open(t, w.dir)
		now, err := n.Current()
		ok(t, err)
		switch isNew := c.state("after a revert that died"); {
		case isNew && now.Number == g.Number && now.OnTrial():
			onTrial++
			ok(t, errOf2(n.Revert(bg(), g.Number, "again")))
		case !isNew && now.Number == g.Number+1 && now.Reason != "":
			reverted++
		default:
			t.Fatalf("point %d: new %v, but the node says %+v", at, isNew, now)
		}
		if c.state("reverted") {
			t.Fatalf("point %d: not reverted", at)
		}
		g = tried(t, w, n)
		n.Close()
		if lived {
			break
		}
	}
	if reverted == 0 || onTrial == 0 {
		t.Errorf("%d reverted, %d on trial: one of them never happened", reverted, onTrial)
	}
	t.Logf("%d points: %d reverted, %d on trial", reverted+onTrial, reverted, onTrial)
}

// What a process left that died while it wrote about a generation goes.
func TestTornRecordGoes(t *testing.T) {
	w := newWorld(t, 75, 20, 10)
	n := w.node()
	torn := filepath.Join(w.dir, ".ingot/generations/1/meta.json.tmp")
	write(t, torn, "{")
	ok(t, errOf3(n.Recover(bg())))
	if _, err := os.Lstat(torn); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}

func errOf3(_ Outcome, err error) error { return err }

func errOf2(_ Generation, _ *Plan, err error) error { return err }
