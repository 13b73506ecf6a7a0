package rollback

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
)

var errCut = errors.New("the connection is cut")

// broken is a source that breaks after some chunks.
type broken struct {
	*memory
	after int
}

func (s broken) Fetch(ctx context.Context, ids []digest.ID, fn func(digest.ID, []byte) error) error {
	if s.after >= len(ids) {
		return s.memory.Fetch(ctx, ids, fn)
	}
	if err := s.memory.Fetch(ctx, ids[:s.after], fn); err != nil {
		return err
	}
	return errCut
}

func stages(t *testing.T, w *world) int {
	t.Helper()
	left, err := os.ReadDir(w.at(".ingot/stage"))
	ok(t, err)
	return len(left)
}

// A cut connection costs nothing that arrived: each chunk is asked for once,
// however often it is tried, and what was staged before is gone in the end.
func TestResume(t *testing.T) {
	whole := newWorld(t, 41, 200, 160)
	whole.push(whole.node())
	w := newWorld(t, 41, 200, 160)
	n := w.node()
	tries := 0
	for {
		p, err := n.Plan(bg(), w.goal())
		ok(t, err)
		if tries > 0 && p.Reused == 0 {
			t.Fatalf("try %d reuses nothing", tries)
		}
		err = n.Stage(bg(), p, broken{w.src, 15})
		if tries++; err == nil {
			_, err := n.Switch(bg(), p)
			ok(t, err)
			break
		}
		is(t, err, errCut)
		if tries > 100 {
			t.Fatal("no end of it")
		}
		if p2, err := n.Plan(bg(), w.goal()); err != nil || len(p2.Need) > len(p.Need)-10 || p2.Bytes >= p.Bytes {
			t.Fatalf("after %d of %d bytes %d are needed, and %d instead of %d of disk: %v", p.NeedBytes-p2.NeedBytes, p.NeedBytes, p2.NeedBytes, p2.Bytes, p.Bytes, err)
		}
	}
	w.isNew("after many tries")
	if tries < 5 || w.src.asked > whole.src.asked || stages(t, w) != 0 {
		t.Errorf("%d tries asked for %d chunks, at once it is %d; %d stages left", tries, w.src.asked, whole.src.asked, stages(t, w))
	}
	w.back(n, 0)
	w.isOld("and back")
}

// What an interrupted stage holds is not believed.
func TestResumeOfDamage(t *testing.T) {
	w := newWorld(t, 42, 200, 160)
	n := w.node()
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	is(t, n.Stage(bg(), p, broken{w.src, len(p.Need) - 1}), errCut)
	id, err := n.list(in("stage"))
	ok(t, err)
	undo := w.at(in("stage", id[0], "undo"))
	files, err := os.ReadDir(undo)
	ok(t, err)
	for _, f := range files {
		if st, err := f.Info(); err == nil && f.Type().IsRegular() && st.Size() > 0 {
			flip(t, undo+"/"+f.Name(), int(st.Size()/2))
		}
	}
	_, err = push(n, w.goal(), w.src)
	ok(t, err)
	w.isNew("over a damaged stage")
}

// Processes that die anywhere leave stages that the next one goes on with.
func TestResumeAfterDeath(t *testing.T) {
	w := newWorld(t, 43, 40, 30)
	w.node().Close()
	for at := 1; ; at += 7 {
		n := open(t, w.dir)
		f := &fate{at: at}
		lived, err := f.live(n, func() error {
			p, err := n.Plan(bg(), w.goal())
			if err == nil {
				err = n.Stage(bg(), p, w.src)
			}
			return err
		})
		n.Close()
		w.isOld("after a death while staging")
		if lived {
			ok(t, err)
			break
		}
	}
	n := open(t, w.dir)
	_, err := push(n, w.goal(), w.src)
	ok(t, err)
	w.isNew("after many deaths")
	w.back(n, 0)
	w.isOld("and back")
	if stages(t, w) != 0 {
		t.Error("stages are left")
	}
}

// A stage that nobody goes on with is removed: by what needs its room, by the
// next one that is whole, and at last by a recovery.
func TestLeftoverGoes(t *testing.T) {
	w := usual(t)
	n := w.node()
	leave := func() {
		t.Helper()
		p, err := n.Plan(bg(), w.goal())
		ok(t, err)
		is(t, n.Stage(bg(), p, broken{w.src, 1}), errCut)
		if stages(t, w) == 0 {
			t.Fatal("nothing was left")
		}
	}
	leave()
	_, err := n.Recover(bg())
	ok(t, err)
	if stages(t, w) == 0 {
		t.Error("a recovery took a stage of this minute")
	}
	n.Now = func() time.Time { return time.Now().Add(8 * 24 * time.Hour) }
	_, err = n.Recover(bg())
	ok(t, err)
	if stages(t, w) != 0 {
		t.Error("a recovery left a stage of last week")
	}
	n.Now = nil

	leave()
	p, err := n.Plan(bg(), Target{Manifest: w.mold})
	ok(t, err)
	p.Bytes = 1 << 60
	err = n.Stage(bg(), p, nil)
	var space *SpaceError
	if !errors.As(err, &space) || space.Path != w.dir || space.Bytes != 1<<60 || space.FreeBytes <= 0 {
		t.Errorf("no room: %v", err)
	}
	if stages(t, w) != 0 {
		t.Error("a stage was left where room was short")
	}
	w.isOld("after all of this")
}

// ENOSPC is the node's failure, not the source's: nothing stays.
func TestFullDiskLeavesNothing(t *testing.T) {
	w := usual(t)
	n := w.node()
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	f := &fate{err: unix.ENOSPC, on: func(call, _ string, after bool) bool { return call == "write" && !after && p.id == "" }}
	_, err = f.live(n, func() error { return n.Stage(bg(), p, w.src) })
	is(t, err, unix.ENOSPC)
	if stages(t, w) != 0 {
		t.Error("a stage that does not fit was left")
	}
	w.isOld("after ENOSPC")
}
