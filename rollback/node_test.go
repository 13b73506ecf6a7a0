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

	"ingot/internal/entry"
	"ingot/internal/manifest"
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
	ok(t, n.Record(bg(), Generation{Derived: []Path{"etc/passwd", "gone\xff"}}, w.mold, nil))
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

func TestDamage(t *testing.T) {
	w := usual(t)
	n := w.node()
	w.push(n)
	// The same size and time, and even the same inode: only reading finds it.
	dir := w.at(".ingot/generations/1/undo")
	names, err := os.ReadDir(dir)
	ok(t, err)
	hit := 0
	for _, d := range names {
		p := filepath.Join(dir, d.Name())
		if b, err := os.ReadFile(p); err == nil && string(b) == "old prog" {
			st, _ := os.Stat(p)
			write(t, p, "bad prog")
			ok(t, os.Chtimes(p, st.ModTime(), st.ModTime()))
			hit++
		}
	}
	if hit != 1 {
		t.Fatalf("%d undo copies of prog", hit)
	}
	_, err = n.Rollback(bg(), 0, Policy{}, "test")
	isErr(t, err, ErrDamaged, `"prog"`)
	w.isNew("after the refused rollback")

	// The store's copy helps.
	p, err := n.PlanRollback(bg(), 0, Policy{}, "test")
	ok(t, err)
	if len(p.Need) == 0 || len(p.Damaged) != 1 {
		t.Fatalf("need %d, damaged %v", len(p.Need), p.Damaged)
	}
	err = n.Stage(bg(), p, nil)
	is(t, err, ErrDamaged)
	m := snapshot(t, w.old)
	store := chunked(t, w.old, m, pieceSize)
	ok(t, n.Stage(bg(), p, store))
	_, err = n.Switch(bg(), p)
	ok(t, err)
	w.isOld("with the store's copy")
}

func TestHiddenCorruption(t *testing.T) {
	w := usual(t)
	n := w.node()
	w.push(n)
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	if !p.Empty() {
		t.Fatalf("after a push there is still something to do: %v", p.Steps)
	}
	// Same size, same mtime: the ctime gives it away.
	st, err := os.Stat(w.at("etc/passwd"))
	ok(t, err)
	write(t, w.at("etc/passwd"), "OLD etc/passwd")
	ok(t, os.Chtimes(w.at("etc/passwd"), st.ModTime(), st.ModTime()))
	p, err = n.Plan(bg(), w.goal())
	ok(t, err)
	if len(p.Conflicts) != 1 || p.Conflicts[0].Path != "etc/passwd" {
		t.Errorf("conflicts %v", p.Conflicts)
	}
	// A disk that lies does not change the ctime: Full reads everything.
	var cst unix.Stat_t
	ok(t, unix.Stat(w.at("etc/passwd"), &cst))
	cache := n.readCache(2)
	cache["etc/passwd"] = entry.StatOf(&cst)
	ok(t, n.writeCache(2, cache))
	for _, full := range []bool{false, true} {
		goal := w.goal()
		goal.Full = full
		p, err = n.Plan(bg(), goal)
		ok(t, err)
		if (len(p.Conflicts) == 1) != full {
			t.Errorf("full %v: conflicts %v", full, p.Conflicts)
		}
	}
}

func TestStatCacheSavesReading(t *testing.T) {
	w := usual(t)
	n := w.node()
	w.push(n)
	cache := n.readCache(2)
	files := 0
	for _, e := range w.mnew.Entries {
		if e.Type == entry.File {
			files++
		}
	}
	if len(cache) != files {
		t.Errorf("%d of %d files are known after a push", len(cache), files)
	}
	w.back(n, 0)
	if got := len(n.readCache(3)); got != 4 {
		t.Errorf("%d of 4 files are known after a rollback", got)
	}
	if n.readCache(2) != nil {
		t.Error("the stat cache of another generation was used")
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

func TestForeignChangeDuringCrash(t *testing.T) {
	w := usual(t)
	n := w.node()
	f := &fate{on: func(call, what string, after bool) bool { return call == "write" && what == "journal" && !after }}
	if lived, _ := f.live(n, func() error { _, err := push(n, w.goal(), w.src); return err }); lived {
		t.Fatal("the switch came through")
	}
	write(t, w.at("x"), "edited while the node was half new")
	ok(t, os.Rename(w.at("x"), w.at("prog")))
	out, err := open(t, w.dir).Recover(bg())
	ok(t, err)
	if len(out.Foreign) != 1 || out.Foreign[0].Path != "prog" || out.Did != PutBack {
		t.Errorf("outcome %+v", out)
	}
	if read(t, w.at("prog")) != "edited while the node was half new" || read(t, w.at("etc/app/conf")) != "old etc/app/conf" {
		t.Error("the foreign change is lost, or the rest did not come back")
	}
	kept, err := filepath.Glob(w.at(".ingot/kept/*/undo/*"))
	ok(t, err)
	if !containsFile(t, kept, "old prog") {
		t.Error("the displaced prog was not kept")
	}
}

func TestStageRemovedDuringCrash(t *testing.T) {
	w := usual(t)
	n := w.node()
	f := &fate{on: func(call, what string, after bool) bool { return call == "write" && what == "journal" && !after }}
	if lived, _ := f.live(n, func() error { _, err := push(n, w.goal(), w.src); return err }); lived {
		t.Fatal("the switch came through")
	}
	ok(t, n.clearStages())
	out, err := open(t, w.dir).Recover(bg())
	ok(t, err)
	if len(out.Foreign) != 3 { // extra, prog and conf are lost, and said to be
		t.Errorf("outcome %+v", out)
	}
}

func containsFile(t *testing.T, paths []string, text string) bool {
	for _, p := range paths {
		if b, err := os.ReadFile(p); err == nil && string(b) == text {
			return true
		}
	}
	return false
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
	is(t, n.Record(bg(), Generation{}, w.mold, nil), ErrInterrupted)
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

func TestBadSource(t *testing.T) {
	w := usual(t)
	n := w.node()
	w.src.lie = true
	_, err := push(n, w.goal(), w.src)
	is(t, err, ErrDamaged)
	_, err = push(n, w.goal(), &memory{})
	if err == nil {
		t.Error("a source without chunks was enough")
	}
	w.isOld("after bad sources")
	ctx, cancel := context.WithCancel(bg())
	cancel()
	if _, err := n.Plan(ctx, w.goal()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled plan: %v", err)
	}
}

func TestNeedIsOnlyWhatIsMissing(t *testing.T) {
	w := tiny(t, func(dir string) {
		ok(t, os.Rename(dir+"/prog", dir+"/moved"))
		write(t, dir+"/etc/passwd", "old etc/pass****")
	})
	// The node's generation is cut like the target: its chunks are found.
	n := open(t, w.dir)
	m := snapshot(t, w.old)
	chunked(t, w.old, m, 4)
	ok(t, n.Record(bg(), Generation{}, m, nil))
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	if len(p.Need) != 1 || p.NeedBytes != 4 {
		t.Errorf("need %d chunks, %d bytes; want the one new chunk", len(p.Need), p.NeedBytes)
	}
	ok(t, n.Stage(bg(), p, w.src))
	_, err = n.Switch(bg(), p)
	ok(t, err)
	w.isNew("with local chunks")
	// Back by a push, not a rollback: the undo copies have the chunks.
	p, err = n.Plan(bg(), Target{Manifest: m})
	ok(t, err)
	if len(p.Need) != 0 {
		t.Errorf("need %d chunks that are in the undo copies", len(p.Need))
	}
}

func TestSpace(t *testing.T) {
	w := usual(t)
	n := w.node()
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	p.Bytes = 1 << 60
	is(t, n.Stage(bg(), p, w.src), ErrNoSpace)
	p.Bytes, p.Inodes = 0, 1<<60
	is(t, n.Stage(bg(), p, w.src), ErrNoSpace)
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

// TestSeveralBack goes back over generations that changed the same and other files.
func TestSeveralBack(t *testing.T) {
	w := newWorld(t, 21, 120, 60)
	n := w.node()
	n.Keep = 10
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

func TestPlantedHome(t *testing.T) {
	for name, plant := range map[string]func(dir string) error{
		"a link":   func(dir string) error { return os.Symlink("/tmp", dir+"/.ingot") },
		"a file":   func(dir string) error { return os.WriteFile(dir+"/.ingot", nil, 0o600) },
		"writable": func(dir string) error { os.Mkdir(dir+"/.ingot", 0o700); return os.Chmod(dir+"/.ingot", 0o777) },
	} {
		dir := scratch(t)
		ok(t, plant(dir))
		if _, err := Open(dir, nil); err == nil || !strings.Contains(err.Error(), ".ingot") {
			t.Errorf("%s: Open = %v", name, err)
		}
	}
}

func TestCorruptState(t *testing.T) {
	for name, spoil := range map[string]func(w *world){
		"manifest":  func(w *world) { flip(t, w.at(".ingot/generations/2/manifest"), 60) },
		"meta":      func(w *world) { write(t, w.at(".ingot/generations/2/meta.json"), "{") },
		"undo list": func(w *world) { flip(t, w.at(".ingot/generations/1/steps"), 40) },
	} {
		w := usual(t)
		n := w.node()
		w.push(n)
		spoil(w)
		_, err := n.Rollback(bg(), 1, Policy{}, "test")
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		w.isNew("after " + name)
	}
	w := usual(t)
	n := w.node()
	flip(t, w.at(".ingot/statcache"), 30) // costs time, nothing else
	w.push(n)
	w.isNew("without a stat cache")
}

func flip(t *testing.T, path string, at int) {
	t.Helper()
	b, err := os.ReadFile(path)
	ok(t, err)
	b[at] ^= 0x40
	ok(t, os.WriteFile(path, b, 0o600))
}

func TestMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	w := tiny(t, func(dir string) {
		write(t, dir+"/prog", "new prog")
		ok(t, os.RemoveAll(dir+"/etc/app"))
	})
	if err := unix.Mount(w.at("etc"), w.at("etc/app"), "", unix.MS_BIND, ""); err != nil {
		t.Skipf("cannot bind mount here: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(w.at("etc/app"), unix.MNT_DETACH) })
	n := open(t, w.dir)
	ok(t, n.Record(bg(), Generation{}, w.mold, nil))
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	if !holdsNote(p.Notes, `"etc/app": a mount point`) || len(p.Conflicts) != 0 {
		t.Errorf("notes %v, conflicts %v", p.Notes, p.Conflicts)
	}
	ok(t, n.Stage(bg(), p, w.src))
	_, err = n.Switch(bg(), p)
	ok(t, err)
	if read(t, w.at("etc/app/passwd")) != "old etc/passwd" || read(t, w.at("prog")) != "new prog" {
		t.Error("the mount was touched")
	}
}

func TestImmutable(t *testing.T) {
	w := usual(t)
	f, err := os.Open(w.at("prog"))
	ok(t, err)
	defer f.Close()
	const flag = 0x10 // FS_IMMUTABLE_FL
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flag); err != nil {
		t.Skipf("cannot set the immutable flag here: %v", err)
	}
	t.Cleanup(func() { unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0) })
	_, err = push(w.node(), w.goal(), w.src)
	isErr(t, err, ErrBlocked, `"prog": is immutable`)
	unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0)
}
