package rollback

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
)

// noOtherNames fails when an undo copy is still another name of a file in the
// tree: writing to the one would change the other.
func noOtherNames(t *testing.T, w *world) {
	t.Helper()
	names := map[string]uint64{}
	for i := range w.mold.Entries {
		names[rootOf(&w.mold.Entries[i])]++
	}
	for i := range w.mold.Entries {
		e := &w.mold.Entries[i]
		st, err := entry.StatAt(unix.AT_FDCWD, filepath.Join(w.dir, e.Path))
		ok(t, err)
		if e.Type == entry.File && st.Nlink != names[rootOf(e)] {
			t.Fatalf("%q has %d names, %d of them in the tree", e.Path, st.Nlink, names[rootOf(e)])
		}
	}
}

func TestPushAndBack(t *testing.T) {
	for seed := range uint64(3) {
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
		noOtherNames(t, w)
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

// A tree that is closed twice leaves the descriptors of others alone.
func TestCloseTwice(t *testing.T) {
	n, err := Open(t.TempDir(), nil)
	ok(t, err)
	ok(t, n.Close())
	f, err := os.Open(t.TempDir()) // mostly with the number that has become free
	ok(t, err)
	defer f.Close()
	is(t, n.Close(), os.ErrClosed)
	if _, err := f.Stat(); err != nil {
		t.Errorf("the descriptor of another file was closed: %v", err)
	}
}
