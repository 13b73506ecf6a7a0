package rollback

import (
	"context"
	"testing"
)

func TestPushAndBack(t *testing.T) {
	for seed := range uint64(4) {
		w := newWorld(t, seed, 400, 320)
		n := w.node()
		g, err := push(n, w.goal(), w.src)
		ok(t, err)
		if g.Number != 2 || g.Changes < 300 {
			t.Errorf("generation %d with %d changes, want generation 2 with 300 or more", g.Number, g.Changes)
		}
		same(t, "after the push", w.mnew, snapshot(t, w.dir))
		rsyncSame(t, "after the push", w.new, w.dir)

		asked := w.src.asked
		g, err = n.Rollback(context.Background(), 0, Policy{}, "test")
		ok(t, err)
		if g.Number != 3 || g.Note != "rollback of 2 to 1" || g.Image != "old:1" {
			t.Errorf("got generation %+v", g)
		}
		same(t, "after the rollback", w.mold, snapshot(t, w.dir))
		rsyncSame(t, "after the rollback", w.old, w.dir)

		_, err = n.Rollback(context.Background(), 0, Policy{}, "test")
		ok(t, err)
		rsyncSame(t, "after the rollback of the rollback", w.new, w.dir)
		_, err = n.Rollback(context.Background(), 3, Policy{}, "test")
		ok(t, err)
		rsyncSame(t, "and back", w.old, w.dir)
		if w.src.asked != asked {
			t.Errorf("the rollbacks fetched %d chunks", w.src.asked-asked)
		}
	}
}
