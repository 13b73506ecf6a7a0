package rollback

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
)

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
	is(t, n.Stage(bg(), p, store), ErrStale)
	p, err = n.PlanRollback(bg(), 0, Policy{}, "test")
	ok(t, err)
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
	g, err := n.generation(2)
	ok(t, err)
	m, err := n.Manifest(2)
	ok(t, err)
	cache := n.readCache(g, m)
	cache[indexOf(m).at("etc/passwd")].Stat = entry.StatOf(&cst)
	ok(t, n.writeCache(2, g.Manifest, m, cache))
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

// cached counts the files that are known, and what is known with its metadata.
func cached(t *testing.T, n *Node, num int) (files, meta int) {
	t.Helper()
	g, err := n.generation(num)
	ok(t, err)
	m, err := n.Manifest(num)
	ok(t, err)
	for i, k := range n.readCache(g, m) {
		if k.Ino != 0 && m.Entries[i].Type == entry.File {
			files++
		}
		if k.meta {
			meta++
		}
	}
	return files, meta
}

func TestStatCacheSavesReading(t *testing.T) {
	w := usual(t)
	n := w.node()
	w.push(n)
	files := 0
	for _, e := range w.mnew.Entries {
		if e.Type == entry.File {
			files++
		}
	}
	if got, _ := cached(t, n, 2); got != files {
		t.Errorf("%d of %d files are known after a push", got, files)
	}
	w.back(n, 0)
	if got, meta := cached(t, n, 3); got != 4 || meta != 0 {
		t.Errorf("%d of 4 files are known after a rollback, %d with metadata that changed this second", got, meta)
	}
	if got, _ := cached(t, n, 2); got != 0 {
		t.Error("the stat cache of another generation was used")
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
	ok(t, n.clearStages(""))
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

// TestFailureLeavesNoStage: what did not become a generation takes no room on the node.
func TestFailureLeavesNoStage(t *testing.T) {
	empty := func(w *world, what string) {
		t.Helper()
		if left, err := os.ReadDir(w.at(".ingot/stage")); err != nil || len(left) > 0 {
			t.Errorf("%s: %d stages left, %v", what, len(left), err)
		}
		w.isOld(what)
	}
	w := usual(t)
	n := w.node()
	staged := func() *Plan {
		t.Helper()
		p, err := n.Plan(bg(), w.goal())
		ok(t, err)
		ok(t, n.Stage(bg(), p, w.src))
		return p
	}
	ctx, cancel := context.WithCancel(bg())
	cancel()
	p := staged()
	if _, err := n.Switch(ctx, p); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled switch: %v", err)
	}
	empty(w, "a cancelled switch")

	p = staged()
	ok(t, n.Unstage(p))
	empty(w, "given up")
	if _, err := n.Switch(bg(), p); !errors.Is(err, ErrStale) {
		t.Errorf("switch of what was given up: %v", err)
	}

	p = staged()
	write(t, w.at("prog"), "edited")
	if _, err := n.Switch(bg(), p); !errors.Is(err, ErrChanged) {
		t.Errorf("refused switch: %v", err)
	}
	if left, err := os.ReadDir(w.at(".ingot/stage")); err != nil || len(left) > 0 {
		t.Errorf("a refused switch: %d stages left, %v", len(left), err)
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
	ok(t, n.Record(bg(), Generation{}, m, nil, nil))
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

// Attributes are not listed where the ctime says that they are as they were;
// when it says otherwise they are.
func TestMetadataOfWhatDidNotChange(t *testing.T) {
	w := usual(t)
	n := w.node()
	n.Now = func() time.Time { return time.Now().Add(time.Hour) }
	w.push(n)
	if _, meta := cached(t, n, 2); meta == 0 {
		t.Fatal("the metadata of nothing is trusted")
	}
	ok(t, unix.Setxattr(w.at("etc/passwd"), "user.new", []byte("x"), 0))
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	if len(p.Conflicts) != 1 || p.Conflicts[0].Path != "etc/passwd" || p.Conflicts[0].Kind != LocalMeta {
		t.Errorf("conflicts %v, want the attribute", p.Conflicts)
	}
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
	ok(t, n.Record(bg(), Generation{}, w.mold, nil, nil))
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	for _, within := range []string{"etc/app", "etc/app/passwd"} {
		goal := w.goal()
		goal.Manifest, goal.Within = w.mold, within
		if _, err := n.Plan(bg(), goal); err == nil || !strings.Contains(err.Error(), "mount point") {
			t.Errorf("a part on another file system: %v", err)
		}
	}
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
