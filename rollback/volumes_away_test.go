package rollback

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// interrupted lets a switch die after its first exchange on the volume.
func (w *world) interrupted(n *Node) {
	w.t.Helper()
	f := &fate{on: func(call, what string, after bool) bool { return call == "exchange" && what == "a" && after }}
	if lived, err := f.live(n, func() error { _, err := push(n, w.goal(), w.src); return err }); lived {
		w.t.Fatalf("the switch came through: %v", err)
	}
}

func TestVolumeMissingAtRecovery(t *testing.T) {
	w := both(t)
	w.interrupted(w.node())
	w.detach("vol")
	state := fingerprint(t, w.dir)
	n := open(t, w.dir)
	_, err := n.Recover(bg())
	isErr(t, err, ErrVolume, `"/vol" (tmpfs of`)
	isErr(t, err, ErrVolume, "is not mounted")
	if got := fingerprint(t, w.dir); got != state {
		t.Errorf("a recovery that could not begin changed something:\n%s\n%s", state, got)
	}
	vols, err := Volumes(w.dir, false)
	ok(t, err)
	if len(vols) != 1 || vols[0].At != "vol" || vols[0].FSType != "tmpfs" {
		t.Errorf("the journal names %+v", vols)
	}

	other := filepath.Dir(w.dir) + "/other"
	disk(t, "tmpfs", other, "")
	copyTree(t, w.disks[0]+"/.", other)
	ok(t, os.RemoveAll(other+"/.ingot/volume"))
	w.attach(other, "vol")
	_, err = n.Recover(bg())
	isErr(t, err, ErrVolume, "another file system is mounted there")
	write(t, other+"/.ingot/volume", volumeMagic+"SOMEBODYELSE\n")
	_, err = n.Recover(bg())
	isErr(t, err, ErrVolume, "another file system is mounted there")
	w.detach("vol")

	w.attach(w.disks[0], "vol")
	is, err := vols[0].Is(w.at("vol"))
	if !is || err != nil {
		t.Errorf("the right volume is not known again: %v", err)
	}
	out, err := n.Recover(bg())
	if err != nil || out.Did != PutBack || len(out.Foreign) > 0 {
		t.Errorf("outcome %+v, %v", out, err)
	}
	w.judge("recovered", w.old, w.mold)
	if vols, err := Volumes(w.dir, false); len(vols) > 0 || err != nil {
		t.Errorf("without a journal %v are needed, %v", vols, err)
	}
}

// fingerprint describes all of a directory, .ingot included, but for locks.
func fingerprint(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	ok(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		ok(t, err)
		if d.Name() == "lock" {
			return nil
		}
		st, err := entry.StatAt(unix.AT_FDCWD, p)
		ok(t, err)
		b.WriteString(p + " ")
		for _, v := range []int64{int64(st.Ino), st.Size, st.MTime, int64(st.Nlink)} {
			b.WriteString(" " + itoa(v))
		}
		b.WriteString("\n")
		return nil
	}))
	return b.String()
}

// A volume that the record has something on and that is not there is named,
// where something of it is to change; else it stays the record's.
func TestVolumeAway(t *testing.T) {
	w := both(t)
	n := w.node()
	w.detach("vol")
	_, err := push(n, w.goal(), w.src)
	isErr(t, err, ErrBlocked, `"vol": the file system that generation 1 has there`)
	isErr(t, err, ErrBlocked, "is not mounted")
	if errors.Is(err, ErrConflict) {
		t.Errorf("what is away is called deleted: %v", err)
	}

	elsewhere := &manifest.Manifest{}
	for m, of := range map[*manifest.Manifest]bool{w.target: false, w.mold: true} {
		for _, e := range m.Entries {
			if (e.Path == "vol" || under(e.Path, "vol")) == of {
				elsewhere.Entries = append(elsewhere.Entries, e)
			}
		}
	}
	elsewhere.Sort()
	g, err := push(n, Target{Manifest: elsewhere, Image: "new:2"}, w.src)
	ok(t, err)
	if read(t, w.at("prog")) != "new prog" || len(g.Volumes) != 1 {
		t.Errorf("generation %+v", g)
	}
	if m, err := n.Manifest(g.Number); err != nil || m.ID() != elsewhere.ID() {
		t.Errorf("the record lost what is away: %v\n%s", err, differences(elsewhere, m))
	}
	w.attach(w.disks[0], "vol")
	w.push(n)
	w.judge("mounted again", w.new, w.mnew)
	w.back(n, 1)
	w.judge("back to the first", w.old, w.mold)
}

func TestWrongVolume(t *testing.T) {
	w := both(t)
	n := w.node()
	other := filepath.Dir(w.dir) + "/other"
	disk(t, "tmpfs", other, "")
	copyTree(t, w.disks[0]+"/.", other)
	ok(t, os.RemoveAll(other+"/.ingot"))
	w.detach("vol")
	w.attach(other, "vol")
	_, err := push(n, w.goal(), w.src)
	isErr(t, err, ErrBlocked, `"vol": generation 1 has another file system there`)

	// It takes the place of the other when it is given its identity.
	ok(t, os.Mkdir(other+"/.ingot", 0o700))
	run(t, "cp", w.disks[0]+"/.ingot/volume", other+"/.ingot/volume")
	w.sameTime("vol")
	w.push(n)
	w.judge("on its new disk", w.new, w.mnew)
	w.back(n, 0)
	w.judge("and back", w.old, w.mold)
}

// A mount that is exchanged for another between plan and switch is noticed.
func TestVolumeChangesUnderThePlan(t *testing.T) {
	w := both(t)
	n := w.node()
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	other := filepath.Dir(w.dir) + "/other"
	disk(t, "tmpfs", other, "")
	copyTree(t, w.disks[0]+"/.", other)
	w.attach(other, "vol")
	is(t, n.Stage(bg(), p, w.src), ErrChanged)
	w.detach("vol")
	ok(t, n.Stage(bg(), p, w.src))
	w.attach(other, "vol")
	_, err = n.Switch(bg(), p)
	is(t, err, ErrChanged)
	w.detach("vol")
	w.judge("nothing was switched", w.old, w.mold)
}

func TestReadOnlyVolume(t *testing.T) {
	w := both(t)
	n := w.node()
	ok(t, unix.Mount("", w.at("vol"), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	_, err := push(n, w.goal(), w.src)
	isErr(t, err, ErrBlocked, `"vol": its file system is mounted read-only`)
	goal := w.goal()
	goal.Within = "prog"
	_, err = push(n, goal, w.src)
	ok(t, err)
	ok(t, unix.Mount("", w.at("vol"), "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	w.push(n)
	w.judge("writable again", w.new, w.mnew)
}

func TestFullVolume(t *testing.T) {
	w := small(t, func(dir string) { write(t, dir+"/vol/big", strings.Repeat("0123456789abcdef", 1<<18)) })
	w.src = chunked(t, w.new, w.target, 1<<20)
	disk(t, "tmpfs", w.at("vol"), "size=2m") // over the other one
	copyTree(t, w.old+"/vol/.", w.at("vol"))
	n := w.node()
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	err = n.Stage(bg(), p, w.src)
	var full *SpaceError
	if !errors.As(err, &full) || full.Path != w.at("vol") || full.Bytes < 4<<20 || full.FreeBytes > 2<<20 {
		t.Fatalf("got %v", err)
	}
	if left, _ := os.ReadDir(w.at("vol") + "/.ingot/stage"); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// What somebody else changed on a volume during a crash is left alone, and what
// was displaced there is kept there, wherever the recovery itself dies.
func TestForeignChangeOnVolume(t *testing.T) {
	for at := 1; ; at++ {
		w := both(t)
		w.interrupted(w.node())
		ok(t, os.Remove(w.at("vol/a")))
		write(t, w.at("vol/a"), "somebody else's")
		n := open(t, w.dir)
		f := &fate{at: at}
		lived, err := f.live(n, func() error { _, err := n.Recover(bg()); return err })
		if !lived {
			n = open(t, w.dir)
			_, err = n.Recover(bg())
		}
		ok(t, err)
		if read(t, w.at("vol/a")) != "somebody else's" {
			t.Fatalf("point %d: somebody's file is gone", at)
		}
		held, err := filepath.Glob(w.at("vol/.ingot/kept/*/undo/*"))
		ok(t, err)
		if len(held) == 0 || !slices.ContainsFunc(held, func(p string) bool { return read(t, p) == "old a" }) {
			t.Fatalf("point %d: what was displaced is not kept: %q", at, held)
		}
		if left, _ := os.ReadDir(w.at("vol/.ingot/stage")); len(left) > 0 {
			t.Fatalf("point %d: left %v", at, left)
		}
		if lived {
			if at < 10 {
				t.Errorf("only %d points", at)
			}
			return
		}
	}
}

// Each file system is synced before the journal has its name, before the
// commit, and before the journal goes.
func TestEveryVolumeIsSynced(t *testing.T) {
	w := both(t)
	n := w.node()
	synced, seen := 0, map[string]int{}
	n.sys.hook = func(call, what string, after bool) error {
		switch {
		case !after:
		case call == "syncfs":
			synced++
		case call == "exchange", call == "move", call == "meta", call == "utimens", call == "unlink", call == "link":
			synced = 0
		case call == "rename" && what == ".ingot/journal.tmp":
			seen["name"], synced = synced, 0
		case call == "write" && what == "journal":
			seen["commit"], synced = synced, 0
		case call == "rename" && what == ".ingot/journal":
			seen["end"] = synced
		}
		return nil
	}
	w.push(n)
	n.sys.hook = nil
	for _, what := range []string{"name", "commit", "end"} {
		if seen[what] != 2 {
			t.Errorf("%d file systems are synced before the %s, want 2", seen[what], what)
		}
	}
}

// The stat cache knows what is on a volume, also when that has got another number.
func TestStatCacheOfVolumes(t *testing.T) {
	w := both(t)
	n := w.node()
	w.push(n)
	g, err := n.Current()
	ok(t, err)
	m, err := n.Manifest(g.Number)
	ok(t, err)
	top, err := entry.StatAt(unix.AT_FDCWD, w.dir)
	ok(t, err)
	on := func(p string) uint64 {
		st, err := entry.StatAt(unix.AT_FDCWD, w.at(p))
		ok(t, err)
		return st.Dev
	}
	s := n.readCache(g, m)
	for i := range s {
		if s[i].Ino != 0 && s[i].Dev != top.Dev {
			s[i].Dev += 7
		} else if s[i].Ino != 0 {
			s[i].Dev = on("vol") // the two have changed places
		}
	}
	ok(t, n.writeCache(g.Number, g.Manifest, m, s))
	known := 0
	for i, k := range n.readCache(g, m) {
		if k.Ino == 0 {
			continue
		}
		if m.Entries[i].Type == entry.File && under(m.Entries[i].Path, "vol") {
			known++
		}
		if k.Dev != on(m.Entries[i].Path) {
			t.Errorf("%q is taken to be on device %d", m.Entries[i].Path, k.Dev)
		}
	}
	if known < 2 {
		t.Errorf("%d files of the volume are known", known)
	}
}
