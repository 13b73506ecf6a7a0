package rollback

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/manifest"
	"ingot/internal/pattern"
)

// tiny makes a node with a few files, and a target made by change.
func tiny(t *testing.T, change func(dir string)) *world {
	t.Helper()
	top := scratch(t)
	w := &world{t: t, old: top + "/old", new: top + "/new", dir: top + "/node"}
	ok(t, os.MkdirAll(w.old+"/etc/app", 0o755))
	for _, f := range []string{"etc/passwd", "etc/app/conf", "etc/app/extra", "prog"} {
		write(t, filepath.Join(w.old, f), "old "+f)
	}
	g := &garden{t: t, dir: w.old, r: rand.New(rand.NewPCG(1, 1))}
	g.age()
	copyTree(t, w.old, w.new)
	change(w.new)
	g.dir = w.new
	ageSome(g, w.old)
	w.mold, w.mnew = snapshot(t, w.old), snapshot(t, w.new)
	w.target = snapshot(t, w.new)
	w.src = chunked(t, w.new, w.target, 4)
	copyTree(t, w.old, w.dir)
	return w
}

func usual(t *testing.T) *world {
	return tiny(t, func(dir string) {
		write(t, dir+"/prog", "new prog")
		write(t, dir+"/etc/app/conf", "new conf, longer")
		ok(t, os.Remove(dir+"/etc/app/extra"))
		ok(t, os.Symlink("prog", dir+"/alias"))
	})
}

func (w *world) isOld(what string)     { w.t.Helper(); same(w.t, what, w.mold, snapshot(w.t, w.dir)) }
func (w *world) isNew(what string)     { w.t.Helper(); same(w.t, what, w.mnew, snapshot(w.t, w.dir)) }
func (w *world) at(path string) string { return filepath.Join(w.dir, path) }
func (w *world) back(n *Node, to int) {
	w.t.Helper()
	_, err := n.Rollback(bg(), to, Policy{}, "test")
	ok(w.t, err)
}
func (w *world) push(n *Node)          { w.t.Helper(); _, err := push(n, w.goal(), w.src); ok(w.t, err) }
func bg() context.Context              { return context.Background() }
func is(t *testing.T, err, want error) { t.Helper(); isErr(t, err, want, "") }
func isErr(t *testing.T, err, want error, text string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
		t.Fatalf("got error %v, want %v with %q in it", err, want, text)
	}
}

func TestFirstPush(t *testing.T) {
	w := usual(t)
	write(t, w.at("etc/local"), "found there")
	found := snapshot(t, w.dir)
	n := open(t, w.dir)
	g, err := push(n, w.goal(), w.src)
	ok(t, err)
	if g.Number != 2 || g.From != 1 {
		t.Errorf("got generation %+v", g)
	}
	w.isNew("after the first push")
	w.back(n, 0)
	same(t, "back to what was found", found, snapshot(t, w.dir))
	gens, err := n.Generations()
	ok(t, err)
	if len(gens) != 3 || gens[0].Result != "found" || gens[2].Of != 2 || gens[2].To != 1 {
		t.Errorf("got generations %+v", gens)
	}
}

func TestLocalChanges(t *testing.T) {
	w := usual(t)
	n := w.node()
	write(t, w.at("prog"), "mine")
	write(t, w.at("etc/mine"), "mine too")
	_, err := push(n, w.goal(), w.src)
	isErr(t, err, ErrConflict, `"prog" changed`)
	isErr(t, err, ErrConflict, `"etc/mine" added`)

	goal := w.goal()
	goal.Policy = Policy{Keep: list(t, "/etc/mine"), Take: list(t, "/prog")}
	before := snapshot(t, w.dir)
	g, err := push(n, goal, w.src)
	ok(t, err)
	if read(t, w.at("prog")) != "new prog" || read(t, w.at("etc/mine")) != "mine too" {
		t.Error("the policy was not followed")
	}
	if len(g.Kept) != 1 || g.Kept[0] != "etc/mine" {
		t.Errorf("kept %q", g.Kept)
	}
	// A kept change stays a change: the next push asks again.
	_, err = push(n, w.goal(), w.src)
	isErr(t, err, ErrConflict, `"etc/mine" added by`[:10])

	// The way back brings the local version of what was taken.
	w.back(n, 0)
	same(t, "back with the local change", before, snapshot(t, w.dir))
}

func TestRollbackSeesLocalChanges(t *testing.T) {
	w := usual(t)
	n := w.node()
	w.push(n)
	write(t, w.at("prog"), "hot fix")
	write(t, w.at("etc/other"), "not touched by the push")
	_, err := n.Rollback(bg(), 0, Policy{}, "test")
	isErr(t, err, ErrConflict, `"prog" changed`)
	if strings.Contains(err.Error(), "other") {
		t.Errorf("a rollback looks beyond what the push touched: %v", err)
	}
	_, err = n.Rollback(bg(), 0, Policy{Default: Take}, "test")
	ok(t, err)
	if read(t, w.at("prog")) != "old prog" || read(t, w.at("etc/other")) == "" {
		t.Error("the rollback is not what it should be")
	}
	w.back(n, 0) // the hot fix was displaced, not lost
	if got := read(t, w.at("prog")); got != "hot fix" {
		t.Errorf("after the rollback of the rollback prog is %q", got)
	}
}

func TestDerived(t *testing.T) {
	w := tiny(t, func(dir string) {
		write(t, dir+"/etc/passwd", "image's")
		write(t, dir+"/prog", "new prog")
	})
	n := open(t, w.dir)
	ok(t, n.Record(bg(), Generation{Derived: []Path{"etc/passwd", "gone\xff"}}, w.mold, nil, nil))
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	if !holdsNote(p.Notes, `"etc/passwd": made by the installation`) {
		t.Errorf("notes %v", p.Notes)
	}
	ok(t, n.Stage(bg(), p, w.src))
	g, err := n.Switch(bg(), p)
	ok(t, err)
	if len(g.Derived) != 2 || g.Derived[1] != "gone\xff" || read(t, w.at("etc/passwd")) != "old etc/passwd" {
		t.Errorf("derived %q, passwd %q", g.Derived, read(t, w.at("etc/passwd")))
	}
	w.back(n, 0)
	w.isOld("back")
}

func TestNodeOwned(t *testing.T) {
	w := tiny(t, func(dir string) {
		ok(t, os.MkdirAll(dir+"/data/sub", 0o755))
		write(t, dir+"/data/x", "image's")
		write(t, dir+"/prog", "new prog")
	})
	n := w.node()
	ok(t, os.MkdirAll(w.at("data"), 0o755))
	write(t, w.at("data/x"), "the node's")
	goal := w.goal()
	goal.NodeOwned = list(t, "/data", "/data/**")
	_, err := push(n, goal, w.src)
	ok(t, err)
	_, err = push(n, goal, w.src)
	ok(t, err)
	write(t, w.at("data/x"), "the node's, later")
	_, err = n.Rollback(bg(), 1, Policy{}, "test")
	ok(t, err)
	if read(t, w.at("data/x")) != "the node's, later" || read(t, w.at("prog")) != "old prog" {
		t.Error("a rollback touched what is the node's")
	}
}

func TestWriterIsRefused(t *testing.T) {
	for _, tt := range []struct{ name, call, what string }{
		{"before its file is displaced", "move", "extra"},
		{"after, with the time set back", "utimens", "."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := usual(t)
			n := w.node()
			f, err := os.OpenFile(w.at("prog"), os.O_WRONLY, 0)
			ok(t, err)
			defer f.Close()
			st, err := f.Stat()
			ok(t, err)
			p, err := n.Plan(bg(), w.goal())
			ok(t, err)
			if !holdsNote(p.Notes, `"prog": busy`) {
				t.Errorf("the writer was not seen: %v", p.Notes)
			}
			ok(t, n.Stage(bg(), p, w.src))
			wrote := 0
			n.sys.hook = func(call, what string, after bool) error {
				if call != tt.call || what != tt.what || after || wrote > 0 {
					return nil
				}
				wrote++
				time.Sleep(20 * time.Millisecond) // the resolution of the file system's clock
				_, err := f.WriteAt([]byte("OLD"), 0)
				if tt.call == "utimens" {
					ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(st.ModTime().UnixNano())}
					ok(t, unix.UtimesNanoAt(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(f.Fd())), ts, 0))
				}
				return err
			}
			_, err = n.Switch(bg(), p)
			n.sys.hook = nil
			isErr(t, err, ErrChanged, "prog")
			if got := read(t, w.at("prog")); got != "OLD prog" || wrote != 1 {
				t.Errorf("what was written is lost: prog is %q", got)
			}
			if read(t, w.at("etc/app/conf")) != "old etc/app/conf" || n.exists("alias") {
				t.Error("the switch was not put back")
			}
		})
	}
}

func TestChangedBetweenPlanAndSwitch(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"written":           func(w *world) { write(t, w.at("prog"), "mine") },
		"replaced":          func(w *world) { write(t, w.at("x"), "mine"); ok(t, os.Rename(w.at("x"), w.at("prog"))) },
		"deleted":           func(w *world) { ok(t, os.Remove(w.at("prog"))) },
		"made where we add": func(w *world) { write(t, w.at("alias"), "mine") },
		"mode":              func(w *world) { ok(t, os.Chmod(w.at("prog"), 0o700)) },
		"parent became a link": func(w *world) {
			ok(t, os.Rename(w.at("etc"), w.at("elsewhere")))
			ok(t, os.Symlink("elsewhere", w.at("etc")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := usual(t)
			n := w.node()
			p, err := n.Plan(bg(), w.goal())
			ok(t, err)
			ok(t, n.Stage(bg(), p, w.src))
			change(w)
			before := snapshot(t, w.dir)
			_, err = n.Switch(bg(), p)
			is(t, err, ErrChanged)
			same(t, "after the refused switch", before, snapshot(t, w.dir))
		})
	}
}

func TestNewFileInDeletedDirectory(t *testing.T) {
	w := tiny(t, func(dir string) { ok(t, os.RemoveAll(dir+"/etc/app")) })
	n := w.node()
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	ok(t, n.Stage(bg(), p, w.src))
	write(t, w.at("etc/app/new"), "made after the plan")
	_, err = n.Switch(bg(), p)
	is(t, err, ErrChanged)
	if read(t, w.at("etc/app/new")) == "" || read(t, w.at("etc/app/conf")) != "old etc/app/conf" {
		t.Error("the directory did not come back whole")
	}
}

func TestStagedPlans(t *testing.T) {
	w := usual(t)
	n := w.node()
	w.push(n)
	write(t, w.new+"/prog", "third prog")
	m3 := snapshot(t, w.new)
	src3 := chunked(t, w.new, m3, 4)
	p, err := n.Plan(bg(), Target{Manifest: m3})
	ok(t, err)
	ok(t, n.Stage(bg(), p, src3))
	w.back(n, 0) // while another push is staged
	w.isOld("rolled back beside a staged push")
	_, err = n.Switch(bg(), p)
	is(t, err, ErrStale)
	w.isOld("after the stale switch")

	// A push that stopped between stage and switch is superseded by another.
	p1, err := n.Plan(bg(), w.goal())
	ok(t, err)
	ok(t, n.Stage(bg(), p1, w.src))
	p2, err := n.Plan(bg(), w.goal())
	ok(t, err)
	ok(t, n.Stage(bg(), p2, w.src))
	_, err = n.Switch(bg(), p1)
	is(t, err, ErrStale)
	_, err = n.Switch(bg(), p2)
	ok(t, err)
	w.isNew("the later plan")
}

func TestBusyAndInterrupted(t *testing.T) {
	w := usual(t)
	n := w.node()
	unlock, err := n.lock("another push")
	ok(t, err)
	_, err = push(open(t, w.dir), w.goal(), w.src)
	isErr(t, err, ErrBusy, "another push, process ")
	unlock()

	f := &fate{on: func(call, _ string, after bool) bool { return call == "exchange" && after }}
	f.live(n, func() error { _, err := push(n, w.goal(), w.src); return err })
	n = open(t, w.dir)
	_, err = push(n, w.goal(), w.src)
	is(t, err, ErrInterrupted)
	_, err = n.Rollback(bg(), 0, Policy{}, "test")
	is(t, err, ErrInterrupted)
	is(t, n.Record(bg(), Generation{}, w.mold, nil, nil), ErrInterrupted)
	is(t, n.Pin(1, true), ErrInterrupted)
	out, err := n.Recover(bg())
	ok(t, err)
	if out.Did != PutBack || out.From != 1 || out.To != 2 {
		t.Errorf("outcome %+v", out)
	}
	w.isOld("recovered")
	if out, err := n.Recover(bg()); err != nil || out.Did != Nothing {
		t.Errorf("second recovery: %+v, %v", out, err)
	}
}

func TestRetention(t *testing.T) {
	w := usual(t)
	n := w.node()
	w.push(n)
	for range 4 {
		w.back(n, 0)
	}
	numbers := func(want ...int) {
		t.Helper()
		got, err := n.numbers()
		ok(t, err)
		if len(got) != len(want) || got[0] != want[0] {
			t.Fatalf("generations %v, want %v", got, want)
		}
	}
	numbers(4, 5, 6)
	is(t, n.Pin(1, true), ErrNoGeneration)
	ok(t, n.Pin(4, true))
	for range 2 {
		w.back(n, 0)
	}
	numbers(4, 5, 6, 7, 8)
	w.back(n, 4)
	w.isNew("back at 4, which like 2 is the new tree")
	ok(t, n.Pin(4, false))
	w.back(n, 0)
	numbers(8, 9, 10)
	_, err := n.Rollback(bg(), 4, Policy{}, "test")
	is(t, err, ErrNoGeneration)
	_, err = n.Rollback(bg(), 10, Policy{}, "test")
	is(t, err, ErrNoGeneration)
}

// What is to be kept is part of the record: a revert or a console, which
// nobody tells what the profile says, keeps no less.
func TestRetentionIsRemembered(t *testing.T) {
	w := usual(t)
	n := w.node()
	n.Retention.Keep = 5
	w.push(n)
	n.Retention = Retention{}
	for range 6 {
		w.back(n, 0)
	}
	gens, err := n.Generations()
	ok(t, err)
	if len(gens) != 5 {
		t.Errorf("%d generations are kept, want the five that the push asked for", len(gens))
	}
	n.Retention.Keep = UsualKeep // the profile says nothing any more
	w.back(n, 0)
	gens, err = n.Generations()
	ok(t, err)
	if len(gens) != UsualKeep {
		t.Errorf("%d generations are kept, want %d", len(gens), UsualKeep)
	}
}

// TestRetentionBySpace: of the generations that are to be kept, those go whose undo copies
// do not fit, but never the one before the present.
func TestRetentionBySpace(t *testing.T) {
	w := usual(t)
	n := w.node()
	n.Retention.Keep = 10
	count := func(want int) {
		t.Helper()
		gens, err := n.Generations()
		ok(t, err)
		if len(gens) != want {
			t.Errorf("%d generations are kept, want %d", len(gens), want)
		}
	}
	w.push(n)
	for range 3 {
		w.back(n, 0)
	}
	count(5)
	undo := 0
	for i := 1; i <= 4; i++ {
		names, err := os.ReadDir(w.at(".ingot/generations/" + strconv.Itoa(i) + "/undo"))
		ok(t, err)
		undo += len(names)
	}
	if undo == 0 {
		t.Fatal("there are no undo copies: this test does not test")
	}
	n.Retention.Space = 1 << 40
	w.back(n, 0)
	count(6)
	n.Retention.Space = 1
	w.back(n, 0)
	count(2)
	w.back(n, 0)
	count(2)
	ok(t, n.Pin(7, true))
	w.back(n, 0)
	w.back(n, 0)
	count(4)
}

// TestSeveralBack goes back over generations that changed the same and other files.
func TestSeveralBack(t *testing.T) {
	w := newWorld(t, 21, 120, 60)
	n := w.node()
	n.Retention.Keep = 10
	trees := []*manifest.Manifest{nil, w.mold}
	g := &garden{t: t, dir: w.new, r: rand.New(rand.NewPCG(5, 5)), n: 100000}
	for range 4 {
		m := snapshot(t, w.new)
		trees = append(trees, snapshot(t, w.new))
		src := chunked(t, w.new, m, 2000)
		_, err := push(n, Target{Manifest: m}, src)
		ok(t, err)
		g.shake(40)
		ageSome(g, "")
	}
	for _, to := range []int{2, 4, 1, 5, 3, 1, 2} {
		w.back(n, to)
		same(t, "back to "+strconv.Itoa(to), trees[to], snapshot(t, w.dir))
	}
}

// The first push of a node that ingot did not install leaves what was made for
// its machine, makes nothing of the kind that is of another, and remembers it.
func TestFirstPushLeavesTheMachine(t *testing.T) {
	w := newWorld(t, 77, 20, 10)
	for _, d := range []string{"etc", "boot/grub"} {
		ok(t, os.MkdirAll(filepath.Join(w.dir, d), 0o755))
	}
	write(t, w.dir+"/etc/fstab", "UUID=mine / ext4")
	write(t, w.dir+"/boot/grub/grub.cfg", "root mine")
	write(t, w.dir+"/etc/hosts", "127.0.0.1 mine")
	target := func(version string) *manifest.Manifest {
		dir := filepath.Join(scratch(t), version)
		copyTree(t, w.new, dir)
		ok(t, os.MkdirAll(dir+"/etc", 0o755))
		for _, name := range []string{"etc/fstab", "etc/crypttab", "etc/hosts", "etc/motd"} {
			write(t, filepath.Join(dir, name), version+" of another machine")
		}
		m := snapshot(t, dir)
		for id, data := range chunked(t, dir, m, 3000).chunks {
			w.src.chunks[id] = data
		}
		return m
	}
	derived := pattern.Derived().With(must(t, "!/etc/hosts")) // that is of the overlay
	n := open(t, w.dir)
	for _, version := range []string{"one", "two"} {
		_, err := push(n, Target{Manifest: target(version), Derived: derived}, w.src)
		ok(t, err)
		for name, want := range map[string]string{"etc/fstab": "UUID=mine / ext4", "boot/grub/grub.cfg": "root mine",
			"etc/hosts": version + " of another machine", "etc/motd": version + " of another machine"} {
			if got := read(t, filepath.Join(w.dir, name)); got != want {
				t.Errorf("%s: %q holds %q, want %q", version, name, got, want)
			}
		}
		if _, err := os.Lstat(w.dir + "/etc/crypttab"); !os.IsNotExist(err) {
			t.Errorf("%s: the crypttab of another machine: %v", version, err)
		}
	}
}

func must(t *testing.T, texts ...string) pattern.List {
	t.Helper()
	l, err := pattern.Parse(texts)
	ok(t, err)
	return l
}
