package rollback

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What the operator says comes before what the profile says, and both before the default.
func TestPolicyOrder(t *testing.T) {
	usual := &Policy{Keep: must(t, "/etc/keep/**"), Take: must(t, "/etc/take/**")}
	p := Policy{Keep: must(t, "/etc/take/mine"), Take: must(t, "/etc/keep/theirs"), Usual: usual}
	for path, want := range map[string]Action{"etc/keep/x": Keep, "etc/take/x": Take, "etc/take/mine": Keep, "etc/keep/theirs": Take, "etc/other": Refuse} {
		if got, _ := p.decide(path); got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	usual.Merge = []Merger{{must(t, "/etc/**"), "cat"}}
	if got, command := p.decide("etc/other"); got != Merge || command != "cat" {
		t.Errorf("what is to be merged: %v, %q", got, command)
	}
	if got, _ := p.unmerged().decide("etc/other"); got != Refuse {
		t.Errorf("on the way back: %v", got)
	}
	usual.Merge, usual.Default = nil, Take
	if got, _ := p.decide("etc/other"); got != Take {
		t.Errorf("the default of the profile: %v", got)
	}
}

// What is never rolled back stays as it is, the plan says so, the record says
// what is there, and the next push compares with that.
func TestNeverRollBack(t *testing.T) {
	w := tiny(t, func(dir string) {
		write(t, dir+"/etc/app/a", "new password")
		write(t, dir+"/etc/app/conf", "new")
	})
	n := w.node()
	goal := w.goal()
	goal.Never = must(t, "/etc/app/a", "/etc/app/rotated")
	ok(t, errOf(push(n, goal, w.src)))
	write(t, filepath.Join(w.dir, "etc/app/rotated"), "added by the node")
	p, err := n.PlanRollback(bg(), 0, Policy{}, "x")
	ok(t, err)
	said := ""
	for _, note := range p.Notes {
		said += note.String() + "\n"
	}
	if !strings.Contains(said, `"etc/app/a": never rolled back`) {
		t.Errorf("the plan does not say so: %s", said)
	}
	ok(t, n.Stage(bg(), p, nil))
	ok(t, errOf(n.Switch(bg(), p)))
	for name, want := range map[string]string{"a": "new password", "rotated": "added by the node"} {
		if got := read(t, filepath.Join(w.dir, "etc/app", name)); got != want {
			t.Errorf("%s holds %q after the rollback, want %q", name, got, want)
		}
	}
	if got := read(t, filepath.Join(w.dir, "etc/app/conf")); got == "new" {
		t.Error("nothing was rolled back")
	}
	m, err := n.Manifest(3)
	ok(t, err)
	now := snapshot(t, w.dir)
	a, _ := m.Lookup("etc/app/a")
	b, found := now.Lookup("etc/app/a")
	if !found || a.Size != b.Size || a.ModTime != b.ModTime {
		t.Errorf("the record says %+v, there is %+v", a, b)
	}
	// A rollback of the rollback leaves it, too; and a push sees no local change in it.
	ok(t, errOf(n.Rollback(bg(), 0, Policy{}, "x")))
	if got := read(t, filepath.Join(w.dir, "etc/app/a")); got != "new password" {
		t.Errorf("after the rollback of the rollback: %q", got)
	}
	ok(t, os.Remove(filepath.Join(w.dir, "etc/app/rotated")))
	if _, err := push(n, Target{Manifest: w.mold}, w.src); errors.Is(err, ErrConflict) {
		t.Errorf("what was never rolled back counts as changed by the node: %v", err)
	}
}
