package rollback

import (
	"context"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// long runs every step of the large trees; the short form samples them and
// runs every step of a small tree.
func long() bool { return os.Getenv("INGOT_CAMPAIGN") != "" }

// death is what a killed process panics with.
type death struct{}

// fate lets a process die, or one of its calls fail, at point number at: each
// call that changes something has a point before it and one after it.
type fate struct {
	at   int
	on   func(call, what string, after bool) bool // instead of at
	err  error                                    // nil: die
	then int                                      // after err, die at this point further on
	seen int
	dead bool
	call string
}

func (f *fate) hook(call, what string, after bool) error {
	if f.dead {
		panic(death{})
	}
	f.seen++
	if f.call != "" && f.then > 0 {
		if f.then--; f.then == 0 {
			f.dead = true
			panic(death{})
		}
		return nil
	}
	if f.on == nil && f.seen != f.at || f.on != nil && !f.on(call, what, after) {
		return nil
	}
	f.call = call
	if f.err != nil {
		return f.err
	}
	f.dead = true
	panic(death{})
}

// live runs f under a fate and reports whether it lived through it.
func (f *fate) live(n *Node, run func() error) (lived bool, err error) {
	n.sys.hook = f.hook
	defer func() {
		n.sys.hook = nil
		if r := recover(); r != nil {
			if _, ok := r.(death); !ok {
				panic(r)
			}
			lived = false
		}
	}()
	return true, run()
}

// campaign is one operation that is to be interrupted everywhere. After each
// time that it succeeds a rollback brings the node back.
type campaign struct {
	w      *world
	op     func(n *Node) error
	sparse bool // recoveries are killed at some of their points: TestRecoveryDiesAnywhere does it at all

	points, forward, undone int
}

// state says which of the two trees the node is, exactly.
func (c *campaign) state(what string) (isNew bool) {
	c.w.t.Helper()
	got := snapshot(c.w.t, c.w.dir)
	switch got.ID() {
	case c.w.mold.ID():
		return false
	case c.w.mnew.ID():
		return true
	}
	c.w.t.Fatalf("%s: neither the old nor the new tree.\nagainst old:\n%s\nagainst new:\n%s", what,
		differences(c.w.mold, got), differences(c.w.mnew, got))
	return false
}

// count finds out how many points the operation has, and puts the tree back.
func (c *campaign) count() int {
	n := open(c.w.t, c.w.dir)
	f := &fate{}
	_, err := f.live(n, func() error { return c.op(n) })
	ok(c.w.t, err)
	c.reset(n)
	return f.seen
}

func (c *campaign) reset(n *Node) {
	c.w.t.Helper()
	_, err := n.Rollback(context.Background(), 0, Policy{}, "reset")
	ok(c.w.t, err)
}

// recovered kills recoveries, each one point later than the one before, or
// sparsely a quarter further on, until one comes through.
func (c *campaign) recovered(what string) Outcome {
	c.w.t.Helper()
	for at := 1; ; at++ {
		if c.sparse {
			at += at / 4
		}
		n := open(c.w.t, c.w.dir)
		var out Outcome
		f := &fate{at: at}
		lived, err := f.live(n, func() (err error) {
			out, err = n.Recover(context.Background())
			return err
		})
		n.Close()
		if lived {
			if err != nil {
				c.w.t.Fatalf("%s: recovery %d: %v", what, at, err)
			}
			if len(out.Foreign) > 0 {
				c.w.t.Fatalf("%s: recovery %d found changes of others: %v", what, at, out.Foreign)
			}
			return out
		}
	}
}

// run interrupts the operation at each stride-th point.
func (c *campaign) run(stride int, inject error) {
	c.w.t.Helper()
	was := c.state("before")
	for at := 1; ; at += stride {
		n := open(c.w.t, c.w.dir)
		for _, top := range c.w.tops() { // what dead pushes left would only make the count longer
			b := open(c.w.t, top)
			ok(c.w.t, b.clearStages(""))
			b.Close()
		}
		before, err := n.Current()
		ok(c.w.t, err)
		f := &fate{at: at, err: inject}
		lived, err := f.live(n, func() error { return c.op(n) })
		n.Close()
		what := f.call
		if f.seen < at { // it came through before that point
			ok(c.w.t, err)
			break
		}
		c.points++
		if lived && err != nil && !errors.Is(err, ErrInterrupted) {
			if _, err := os.Lstat(c.w.dir + "/.ingot/journal"); err == nil {
				c.w.t.Fatalf("%s failed at point %d and left a journal", what, at)
			}
			for _, top := range c.w.tops() {
				if left, _ := os.ReadDir(top + "/.ingot/stage"); len(left) > 0 {
					c.w.t.Fatalf("%s failed at point %d and left its stage in %q", what, at, top)
				}
			}
			if _, err := os.Lstat(c.w.dir + "/.ingot/journal.tmp"); err == nil {
				c.w.t.Fatalf("%s failed at point %d and left the beginning of a journal", what, at)
			}
			if c.state("after a failed "+what) != was {
				c.w.t.Fatalf("%s failed at point %d, an error was returned, but the tree changed", what, at)
			}
		}
		if lived && err == nil && c.state("after") == was {
			c.w.t.Fatalf("%s failed at point %d: no error was returned, but the tree did not change", what, at)
		}
		if !lived || errors.Is(err, ErrInterrupted) {
			c.recovered(what)
		}
		c.judge(what, at, was, before)
	}
	c.w.t.Logf("%d points, one in %d: %d forward, %d undone", c.points, stride, c.forward, c.undone)
	if c.forward == 0 && stride == 1 || c.undone == 0 || c.points < 10 {
		c.w.t.Errorf("of %d points %d ended forward and %d back: the campaign does not reach both", c.points, c.forward, c.undone)
	}
}

// judge checks that tree and generation agree, that nothing is left over, and resets.
func (c *campaign) judge(what string, at int, was bool, before Generation) {
	c.w.t.Helper()
	n := open(c.w.t, c.w.dir)
	defer n.Close()
	changed := c.state(what) != was
	g, err := n.Current()
	ok(c.w.t, err)
	if changed != (g.Number == before.Number+1) || !changed && g.Number != before.Number {
		c.w.t.Fatalf("%s at point %d: changed %v, but generation %d became %d", what, at, changed, before.Number, g.Number)
	}
	for _, top := range c.w.tops() {
		if _, err := os.Lstat(top + "/.ingot/kept"); err == nil {
			c.w.t.Fatalf("%s at point %d: something was kept aside in %q", what, at, top)
		}
	}
	if !changed {
		c.undone++
		return
	}
	c.forward++
	c.reset(n)
}

func pushOp(w *world) func(*Node) error {
	return func(n *Node) error {
		_, err := push(n, w.goal(), w.src)
		return err
	}
}

func backOp(n *Node) error {
	_, err := n.Rollback(context.Background(), 0, Policy{}, "test")
	return err
}

// pick chooses the stride that visits about short points, or all in the long
// form, in which several campaigns run at once.
func pick(c *campaign, short int) int {
	if long() {
		return 1
	}
	return max(1, c.count()/short) | 1 // odd: before and after calls in turn
}

// atOnce lets a part of a long campaign run beside others.
func atOnce(t *testing.T) {
	if long() {
		t.Parallel()
	}
}

func TestDeathAnywhere(t *testing.T) {
	for _, size := range []struct {
		name                    string
		entries, changes, short int
		kind                    string
		mounts                  []string
		some                    bool // in the long form, too
	}{
		{name: "small", entries: 30, changes: 25, short: 100000},
		{name: "large", entries: 400, changes: 320, short: 12, some: true},
		{"small on two file systems", 40, 40, 100000, "tmpfs", []string{"vol"}, false},
		{"large on two file systems", 480, 420, 12, "ext4", []string{"vol"}, false},
		{"three file systems, one in another", 60, 60, 60, "tmpfs", []string{"vol", "vol/deep"}, false},
	} {
		stride := func(c *campaign) int {
			c.sparse = size.entries > 100
			if size.some && long() {
				return 31
			}
			return pick(c, size.short)
		}
		t.Run(size.name+" push", func(t *testing.T) {
			atOnce(t)
			w := newWorldOn(t, 7, size.entries, size.changes, size.kind, size.mounts...)
			w.node()
			c := &campaign{w: w, op: pushOp(w)}
			c.run(stride(c), nil)
		})
		t.Run(size.name+" rollback", func(t *testing.T) {
			atOnce(t)
			w := newWorldOn(t, 8, size.entries, size.changes, size.kind, size.mounts...)
			_, err := push(w.node(), w.goal(), w.src)
			ok(t, err)
			c := &campaign{w: w, op: backOp}
			c.run(stride(c), nil)
		})
	}
}

func TestFailureAnywhere(t *testing.T) {
	some := 80
	if long() {
		some = 450
	}
	for _, tt := range []struct {
		name string
		err  error
	}{{"ENOSPC", unix.ENOSPC}, {"EIO", unix.EIO}} {
		t.Run(tt.name+" push", func(t *testing.T) {
			atOnce(t)
			w := newWorld(t, 9, 40, 30)
			w.node()
			c := &campaign{w: w, op: pushOp(w)}
			c.run(pick(c, 60), tt.err)
		})
		t.Run(tt.name+" push on two file systems", func(t *testing.T) {
			atOnce(t)
			w := newWorldOn(t, 9, some, some, "tmpfs", "vol")
			w.node()
			c := &campaign{w: w, op: pushOp(w), sparse: long()}
			c.run(pick(c, 30), tt.err)
		})
		t.Run(tt.name+" rollback on two file systems", func(t *testing.T) {
			atOnce(t)
			w := newWorldOn(t, 10, some, some, "tmpfs", "vol")
			_, err := push(w.node(), w.goal(), w.src)
			ok(t, err)
			c := &campaign{w: w, op: backOp, sparse: long()}
			c.run(pick(c, 30), tt.err)
		})
		t.Run(tt.name+" rollback", func(t *testing.T) {
			atOnce(t)
			w := newWorld(t, 10, 40, 30)
			_, err := push(w.node(), w.goal(), w.src)
			ok(t, err)
			c := &campaign{w: w, op: backOp}
			c.run(pick(c, 60), tt.err)
		})
	}
}

// TestRecoveryDiesAnywhere kills a switch twice: where all is done but the
// commit, and right after the commit; and then the recovery at each of its points.
func TestRecoveryDiesAnywhere(t *testing.T) {
	for _, tt := range []struct {
		name    string
		on      func(call, what string, after bool) bool
		forward bool
		mounts  []string
	}{
		{"before the commit", func(call, what string, after bool) bool { return call == "write" && what == "journal" && !after }, false, nil},
		{"after the commit", func(call, what string, after bool) bool { return call == "write" && what == "journal" && after }, true, nil},
		{"before the commit, three file systems", func(call, what string, after bool) bool { return call == "write" && what == "journal" && !after }, false, []string{"vol", "vol/deep"}},
		{"after the commit, three file systems", func(call, what string, after bool) bool { return call == "write" && what == "journal" && after }, true, []string{"vol", "vol/deep"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			atOnce(t)
			w := newWorldOn(t, 12, 40+40*len(tt.mounts), 30+40*len(tt.mounts), "tmpfs", tt.mounts...)
			w.node()
			c := &campaign{w: w, op: pushOp(w)}
			stride := 1
			if len(tt.mounts) > 0 && !long() {
				stride = 9
			}
			for at := 1; ; at += stride {
				n := open(t, w.dir)
				before, err := n.Current()
				ok(t, err)
				f := &fate{on: tt.on}
				if lived, err := f.live(n, func() error { return c.op(n) }); lived {
					t.Fatalf("the switch came through: %v", err)
				}
				n.Close()
				n = open(t, w.dir)
				f = &fate{at: at}
				lived, err := f.live(n, func() error { _, err := n.Recover(context.Background()); return err })
				n.Close()
				if !lived {
					c.recovered("recovery")
				} else {
					ok(t, err)
				}
				c.judge("recovery", at, false, before)
				if lived {
					if f.seen < 10 || (c.forward > 0) != tt.forward || (c.undone > 0) == tt.forward {
						t.Errorf("%d points, %d forward, %d undone", at, c.forward, c.undone)
					}
					t.Logf("recovery has %d points", f.seen)
					return
				}
			}
		})
	}
}

// TestFailedCommitThenDeath lets the commit record reach the file and its
// fsync fail, and then kills the process at each point of putting things back.
func TestFailedCommitThenDeath(t *testing.T) {
	w := newWorld(t, 13, 40, 30)
	w.node()
	c := &campaign{w: w, op: pushOp(w)}
	for then := 1; ; then++ {
		n := open(t, w.dir)
		before, err := n.Current()
		ok(t, err)
		f := &fate{err: unix.EIO, then: then, on: func(call, what string, after bool) bool {
			return call == "write" && what == "journal" && after
		}}
		lived, err := f.live(n, func() error { return c.op(n) })
		n.Close()
		if lived && err == nil {
			t.Fatal("a failed commit was no error")
		}
		c.recovered("failed commit")
		c.judge("failed commit", then, false, before)
		if lived {
			if then < 20 || c.undone < 10 {
				t.Errorf("%d points, %d undone", then, c.undone)
			}
			return
		}
	}
}
