package rollback

import (
	"os"
	"testing"
)

// A generation on trial can be looked at; its repair has to wait.
func TestRepairWaitsForATrial(t *testing.T) {
	w := usual(t)
	n := w.node()
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	p.Try(1e12)
	ok(t, n.Stage(bg(), p, w.src))
	_, err = n.Switch(bg(), p)
	ok(t, err)
	write(t, w.at("prog"), "mine")
	if p, err = n.PlanRepair(bg(), Repair{}); err != nil || len(p.Drift()) != 1 {
		t.Fatalf("%v, %v", p, err)
	}
	is(t, p.Err(), ErrOnTrial)
	is(t, n.Stage(bg(), p, w.src), ErrOnTrial)
}

// A repair that dies anywhere leaves the tree as it had become, or as it was given.
func TestRepairDiesAnywhere(t *testing.T) {
	w := usual(t)
	n := w.node()
	w.push(n)
	given := snapshot(t, w.dir)
	write(t, w.at("prog"), "mine")
	write(t, w.at("added"), "mine")
	ok(t, os.Remove(w.at("etc/passwd")))
	ok(t, os.Chmod(w.at("etc/app"), 0o700))
	w.mold, w.mnew = snapshot(t, w.dir), given
	ok(t, n.Close())
	drifted := w.dir + ".drifted"
	ok(t, os.Rename(w.dir, drifted))
	c := &campaign{w: w, sparse: true}
	for lived := false; !lived; {
		c.points++
		ok(t, os.RemoveAll(w.dir))
		copyTree(t, drifted, w.dir)
		n := open(t, w.dir)
		f := &fate{at: c.points}
		lived, _ = f.live(n, func() error { _, _, err := repair(n, Repair{}, w.src); return err })
		n.Close()
		if !lived {
			c.recovered(f.call)
		}
		n = open(t, w.dir)
		g, err := n.Current()
		ok(t, err)
		n.Close()
		isGiven := c.state(f.call)
		if isGiven != (g.Number == 3) || isGiven != (g.Result == "repaired") {
			t.Fatalf("%s at point %d: what was given is there: %v; generation %d, %s", f.call, c.points, isGiven, g.Number, g.Result)
		}
		if isGiven {
			c.forward++
		} else {
			c.undone++
		}
	}
	t.Logf("%d points: %d forward, %d undone", c.points, c.forward, c.undone)
	if c.points < 50 || c.forward < 2 || c.undone < 2 {
		t.Error("the campaign does not reach both")
	}
}
