package rollback

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// small is a node on two file systems with a few files, and a target made by change.
func small(t *testing.T, change func(dir string)) *world {
	t.Helper()
	needMounts(t)
	top := scratch(t)
	w := &world{t: t, old: top + "/old", new: top + "/new", dir: top + "/node"}
	plot(t, w.old, map[string]string{"prog": "old prog", "etc/conf": "old conf", "vol/a": "old a", "vol/sub/b": "old b", "vol/sub/c": "old c"})
	copyTree(t, w.old, w.new)
	change(w.new)
	ageSome(&garden{t: t, dir: w.new, r: newRand()}, w.old)
	w.mold, w.mnew, w.target = snapshot(t, w.old), snapshot(t, w.new), snapshot(t, w.new)
	w.src = chunked(t, w.new, w.target, 4)
	w.fill("tmpfs", "vol")
	return w
}

// both changes files on both file systems.
func both(t *testing.T) *world {
	return small(t, func(dir string) {
		write(t, dir+"/prog", "new prog")
		write(t, dir+"/vol/a", "new a, longer")
		ok(t, os.Remove(dir+"/vol/sub/b"))
		ok(t, os.Symlink("a", dir+"/vol/alias"))
	})
}

// TestTwoFileSystems changes two file systems, there and back and there and
// back, judged by rsync and by manifest.
func TestTwoFileSystems(t *testing.T) {
	for _, tt := range []struct {
		kind   string
		seed   uint64
		mounts []string
	}{{"tmpfs", 1, []string{"vol"}}, {"ext4", 2, []string{"vol"}}, {"xfs", 5, []string{"vol"}}, {"tmpfs", 4, []string{"vol", "vol/deep"}}} {
		t.Run(tt.kind+" "+strings.Join(tt.mounts, " "), func(t *testing.T) {
			w := newWorldOn(t, tt.seed, 480, 460, tt.kind, tt.mounts...)
			n := w.node()
			p, err := n.Plan(bg(), w.goal())
			ok(t, err)
			w.spread(p, 300, 60)
			ok(t, n.Stage(bg(), p, w.src))
			g, err := n.Switch(bg(), p)
			ok(t, err)
			if len(g.Volumes) != len(tt.mounts) || string(g.Volumes[0].At) != "vol" || g.Volumes[0].ID == "" {
				t.Errorf("the generation names the volumes %+v", g.Volumes)
			}
			asked := w.src.asked
			w.judge("after the push", w.new, w.mnew)
			w.back(n, 0)
			w.judge("after the rollback", w.old, w.mold)
			w.back(n, 0)
			w.judge("after the rollback of the rollback", w.new, w.mnew)
			w.back(n, 3)
			w.judge("and back again", w.old, w.mold)
			if w.src.asked != asked {
				t.Error("a rollback asked for chunks")
			}
			w.tidy(n)
		})
	}
}

// spread makes sure that a plan is of all kinds of steps, on all file systems.
func (w *world) spread(p *Plan, all, each int) {
	w.t.Helper()
	count := map[int]map[Kind]int{}
	steps := map[int]int{}
	for i := range p.Steps {
		s := &p.Steps[i]
		if count[s.vol] == nil {
			count[s.vol] = map[Kind]int{}
		}
		count[s.vol][s.Kind]++
		steps[s.vol]++
	}
	w.t.Logf("steps by volume: %v", count)
	for v := range len(w.mounts) + 1 {
		if steps[v] < each || len(count[v]) < 5 {
			w.t.Errorf("volume %d has %d steps of the kinds %v", v, steps[v], count[v])
		}
	}
	if len(p.Steps) < all {
		w.t.Errorf("%d steps, want %d", len(p.Steps), all)
	}
}

func (w *world) judge(what, dir string, m *manifest.Manifest) {
	w.t.Helper()
	same(w.t, what, m, snapshot(w.t, w.dir))
	rsyncSame(w.t, what, dir, w.dir, w.mounts...)
}

// tidy checks that each volume has what it should and nothing else.
func (w *world) tidy(n *Node) {
	w.t.Helper()
	nums, err := n.numbers()
	ok(w.t, err)
	for _, at := range w.mounts {
		dir := w.at(at) + "/.ingot/"
		for _, name := range []string{"stage", "kept"} {
			if left, _ := os.ReadDir(dir + name); len(left) > 0 {
				w.t.Errorf("%s has %v", dir+name, left)
			}
		}
		gens, err := n.list(at + "/.ingot/generations")
		ok(w.t, err)
		if len(gens) != len(nums)-1 {
			w.t.Errorf("%s has the generations %v, the tree %v", dir, gens, nums)
		}
		st, err := os.Stat(dir)
		ok(w.t, err)
		if st.Mode().Perm() != 0o700 {
			w.t.Errorf("%s has mode %v", dir, st.Mode())
		}
	}
}

// Undo copies never leave their file system, and go with their generation.
func TestUndoOfVolumes(t *testing.T) {
	w := both(t)
	n := w.node()
	w.push(n)
	if names, _ := n.list("vol/.ingot/generations/1/undo"); len(names) != 2 {
		t.Errorf("the volume keeps %v, want the undo copies of a and b", names)
	}
	for range 4 {
		w.back(n, 0)
	}
	if n.exists("vol/.ingot/generations/1") || n.exists("vol/.ingot/generations/2") {
		t.Error("undo copies of retired generations are still there")
	}
	w.tidy(n)
}

// sameTime gives a directory of the node the time that it has in the old tree.
func (w *world) sameTime(path string) {
	w.t.Helper()
	st, err := os.Stat(filepath.Join(w.old, path))
	ok(w.t, err)
	ok(w.t, os.Chtimes(w.at(path), st.ModTime(), st.ModTime()))
}

// A hard link cannot span file systems: it becomes files, and stays such.
func TestLinkAcross(t *testing.T) {
	w := small(t, func(dir string) {
		write(t, dir+"/linked", "shared by four names")
		for _, name := range []string{"etc/second", "vol/third", "vol/sub/fourth"} {
			ok(t, os.Link(dir+"/linked", dir+"/"+name))
		}
	})
	n := w.node()
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	if !holdsNote(p.Notes, `"vol/sub/fourth": in the target a hard link to "etc/second", which is on another file system`) {
		t.Errorf("notes %v", p.Notes)
	}
	ok(t, n.Stage(bg(), p, w.src))
	_, err = n.Switch(bg(), p)
	ok(t, err)
	ino := func(path string) inode {
		st, err := entry.StatAt(unix.AT_FDCWD, w.at(path))
		ok(t, err)
		if st.Nlink != 2 {
			t.Errorf("%s has %d names", path, st.Nlink)
		}
		return inodeOf(st)
	}
	if ino("linked") != ino("etc/second") || ino("vol/third") != ino("vol/sub/fourth") || ino("linked") == ino("vol/third") {
		t.Error("the groups are not what they should be")
	}
	if read(t, w.at("vol/third")) != "shared by four names" {
		t.Error("the other file has other content")
	}
	p, err = n.Plan(bg(), w.goal())
	ok(t, err)
	if !p.Empty() || len(p.Conflicts) > 0 {
		t.Errorf("pushed again there are %v and %v", p.Changes(), p.Conflicts)
	}
	if m, known, err := n.Known(w.target.ID()); err != nil || !known || m.ID() != w.target.ID() {
		t.Errorf("the target is not kept as it was sent: %v", err)
	}
	w.back(n, 0)
	w.judge("back", w.old, w.mold)
}

// A directory that something is mounted in, or on, cannot go.
func TestMountInTheWay(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(dir string)
		want   string
	}{
		"deleted":       {func(string) {}, `"vol": is a mount point: cannot be deleted`},
		"made a file":   {func(dir string) { write(t, dir+"/vol", "x") }, `"vol": is a mount point: cannot become a file`},
		"made a link":   {func(dir string) { ok(t, os.Symlink("etc", dir+"/vol")) }, `"vol": is a mount point: cannot become a symbolic link`},
		"only emptied":  {func(dir string) { ok(t, os.Mkdir(dir+"/vol", 0o755)) }, ""},
		"given a owner": {func(dir string) { ok(t, os.Mkdir(dir+"/vol", 0o700)); ok(t, os.Chown(dir+"/vol", 7, 8)) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := small(t, func(dir string) { ok(t, os.RemoveAll(dir+"/vol")); tt.change(dir) })
			n := w.node()
			_, err := push(n, w.goal(), w.src)
			if tt.want != "" {
				isErr(t, err, ErrBlocked, tt.want)
				w.judge("refused", w.old, w.mold)
				return
			}
			ok(t, err)
			w.judge("pushed", w.new, w.mnew)
			w.back(n, 0)
			w.judge("and back", w.old, w.mold)
		})
	}
}

func TestDirectoryAboveAMountInTheWay(t *testing.T) {
	needMounts(t)
	top := scratch(t)
	w := &world{t: t, old: top + "/old", new: top + "/new", dir: top + "/node"}
	plot(t, w.old, map[string]string{"up/vol/a": "a", "up/b": "b"})
	plot(t, w.new, map[string]string{"up": "a file now"})
	w.mold, w.target = snapshot(t, w.old), snapshot(t, w.new)
	w.src = chunked(t, w.new, w.target, 100)
	w.fill("tmpfs", "up/vol")
	_, err := push(w.node(), w.goal(), w.src)
	isErr(t, err, ErrBlocked, `"up/vol": is a mount point: cannot be deleted`)
	isErr(t, err, ErrBlocked, `"up": cannot become a file: "up/vol" is in it`)
}

// What nothing of the target is in is nobody's business but the node's: also
// when it was found there once.
func TestDataIsLeftAlone(t *testing.T) {
	w := small(t, func(dir string) {
		write(t, dir+"/prog", "new prog")
		ok(t, os.RemoveAll(dir+"/vol"))
		ok(t, os.Mkdir(dir+"/vol", 0o755))
	})
	n := open(t, w.dir)
	n.Retention.Keep = 20
	for range 2 {
		p, err := n.Plan(bg(), w.goal())
		ok(t, err)
		if !holdsNote(p.Notes, `"vol": a mount point: left alone, and all that is in it: neither the target nor the record`) {
			t.Errorf("notes %v", p.Notes)
		}
		ok(t, n.Stage(bg(), p, w.src))
		_, err = n.Switch(bg(), p)
		ok(t, err)
		w.back(n, 1)
	}
	if read(t, w.at("vol/sub/b")) != "old b" || n.exists("vol/.ingot") {
		t.Error("the volume was touched")
	}

	// A push that has something there takes the volume in; when that is rolled
	// back to what was found, the volume is the node's again.
	write(t, w.new+"/vol/from-the-image", "x")
	m := snapshot(t, w.new)
	goal := Target{Manifest: m, Policy: Policy{Default: Keep}}
	_, err := push(n, goal, chunked(t, w.new, m, 4))
	ok(t, err)
	if read(t, w.at("vol/from-the-image")) != "x" || read(t, w.at("vol/a")) != "old a" {
		t.Error("the volume is not what it should be")
	}
	w.back(n, 1)
	if n.exists("vol/from-the-image") || read(t, w.at("vol/a")) != "old a" {
		t.Error("the way back is not exact")
	}
	_, err = push(n, w.goal(), w.src)
	ok(t, err)
	if read(t, w.at("vol/sub/b")) != "old b" {
		t.Error("data that was found was deleted")
	}
	write(t, w.at("vol/sub/b"), "changed since")
	w.back(n, 0)
	if read(t, w.at("vol/sub/b")) != "changed since" {
		t.Error("data that no switch touched was taken back")
	}
}

// A volume with generations of its own is a tree of its own.
func TestTreeInTheTree(t *testing.T) {
	w := both(t)
	inner := open(t, w.at("vol"))
	ok(t, inner.Record(bg(), Generation{Image: "inner:1", Result: "installed"}, snapshot(t, w.at("vol")), nil, nil))
	n := open(t, w.dir)
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	if !holdsNote(p.Notes, "it has generations of its own") {
		t.Errorf("notes %v", p.Notes)
	}
	for _, c := range p.Changes() {
		if under(c.Path, "vol") {
			t.Errorf("%s of %q", c.Kind, c.Path)
		}
	}
}

// A volume may come from a node that was installed anew: what its generations
// displaced is in nobody's way.
func TestVolumeOfAnotherLife(t *testing.T) {
	w := both(t)
	for _, f := range []string{"generations/1/undo/0", "generations/2/undo/0", "generations/7/undo/5"} {
		path := w.at("vol/.ingot/" + f)
		ok(t, os.MkdirAll(filepath.Dir(path), 0o700))
		write(t, path, "of another life")
	}
	w.sameTime("vol")
	n := w.node()
	w.push(n)
	w.judge("pushed", w.new, w.mnew)
	w.back(n, 0)
	w.judge("and back", w.old, w.mold)
	w.tidy(n)
}

// A bind mount of a part, and a second look at the same file system, are left alone.
func TestMountsThatTakeNoPart(t *testing.T) {
	w := both(t)
	for _, d := range []string{"bound", "twice", "pseudo"} {
		ok(t, os.Mkdir(w.at(d), 0o755))
	}
	ok(t, unix.Mount(w.at("vol/sub"), w.at("bound"), "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(w.at("bound"), unix.MNT_DETACH) })
	ok(t, unix.Mount(w.disks[0], w.at("twice"), "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(w.at("twice"), unix.MNT_DETACH) })
	ok(t, unix.Mount("proc", w.at("pseudo"), "proc", 0, ""))
	t.Cleanup(func() { unix.Unmount(w.at("pseudo"), unix.MNT_DETACH) })
	n := open(t, w.dir)
	_, mounts, err := n.mounts()
	ok(t, err)
	for at, why := range map[string]string{"bound": "a bind mount of a part", "vol": "", "pseudo": "proc is not a file system", "twice": ""} {
		i := slices.IndexFunc(mounts, func(m mountPoint) bool { return string(m.At) == at })
		if i < 0 || !strings.Contains(mounts[i].why, why) || why == "" && mounts[i].why != "" {
			t.Errorf("%q: %+v", at, mounts)
		}
	}
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	if len(p.Generation.Volumes) != 1 || p.Generation.Volumes[0].At != "vol" {
		t.Errorf("takes part: %+v", p.Generation.Volumes)
	}
}

// What was staged on a volume before the process died is gone on with.
func TestResumeOnVolume(t *testing.T) {
	w := both(t)
	n := w.node()
	f := &fate{on: func(call, what string, after bool) bool { return call == "syncfs" && !after }}
	if lived, err := f.live(n, func() error { _, err := push(n, w.goal(), w.src); return err }); lived {
		t.Fatalf("the stage came through: %v", err)
	}
	asked := w.src.asked
	n = open(t, w.dir)
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	if len(p.Need) > 0 || p.Reused == 0 {
		t.Errorf("%d chunks are asked for again, %d bytes are not", len(p.Need), p.Reused)
	}
	w.push(n)
	w.judge("pushed", w.new, w.mnew)
	if w.src.asked != asked {
		t.Error("chunks were asked for again")
	}
	w.tidy(n)
}

// An undo copy on another file system is copied, where that of the path itself is damaged.
func TestUndoCopyFromAnotherVolume(t *testing.T) {
	w := small(t, func(dir string) {
		ok(t, os.Remove(dir+"/vol/a"))
	})
	for _, name := range []string{"vol/a", "zz"} { // what prog holds, on both file systems; zz is nobody's undo copy before vol/a looks for one
		write(t, w.at(name), "old prog")
		w.sameFile(name, "prog")
	}
	before := snapshot(t, w.dir)
	n := open(t, w.dir)
	ok(t, n.Record(bg(), Generation{Image: "old:1", Result: "installed"}, before, nil, nil))
	w.push(n)
	copies, err := filepath.Glob(w.at("vol/.ingot/generations/1/undo/*"))
	ok(t, err)
	if len(copies) != 1 {
		t.Fatalf("undo copies %q", copies)
	}
	st, err := os.Stat(copies[0])
	ok(t, err)
	write(t, copies[0], "bad prog")
	ok(t, os.Chtimes(copies[0], st.ModTime(), st.ModTime()))
	w.back(n, 0)
	same(t, "back", before, snapshot(t, w.dir))
}

// sameFile gives a file of the node the time of another one.
func (w *world) sameFile(path, as string) {
	w.t.Helper()
	st, err := os.Stat(w.at(as))
	ok(w.t, err)
	ok(w.t, os.Chtimes(w.at(path), st.ModTime(), st.ModTime()))
}
