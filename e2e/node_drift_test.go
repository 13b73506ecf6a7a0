package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/imager/wire"
	"ingot/rollback/sides"
)

func driftCases() map[string]func(*testing.T, *base) {
	return map[string]func(*testing.T, *base){
		"drift, and its repair":             testDrift,
		"drift of a part, and what is kept": testDriftOfParts,
	}
}

// driftView is the JSON answer of drift for one node.
type driftView struct {
	Node, State, Error string
	Generation         int
	Drift              []wire.Drift
}

// drift asks for what a repair puts back, and for what it leaves.
func (r *rig) drift(args ...string) (back, left map[string]string) {
	r.t.Helper()
	res := r.must(append([]string{"drift", r.name, "--json"}, args...)...)
	var list []driftView
	if err := json.Unmarshal([]byte(res.out), &list); err != nil || len(list) != 1 {
		r.t.Fatalf("drift: not one answer: %v: %s", err, res)
	}
	back, left = map[string]string{}, map[string]string{}
	for _, d := range list[0].Drift {
		if d.Left != "" {
			left[wire.PathOf(d.Path)] = d.Left
		} else {
			back[wire.PathOf(d.Path)] = d.Kind
		}
	}
	runs := func(g wire.Generation) bool { return g.Current && g.Number == list[0].Generation }
	if (list[0].State == "differs") != (len(back) > 0) || !slices.ContainsFunc(r.generations(), runs) {
		r.t.Errorf("the answer is %s of generation %d, %d paths", list[0].State, list[0].Generation, len(back))
	}
	return back, left
}

// drifts asserts that drift finds these paths, all of them and no other.
func (r *rig) drifts(what string, want map[string]string, args ...string) {
	r.t.Helper()
	got, left := r.drift(args...)
	if len(left) > 0 {
		r.t.Errorf("%s: left %q", what, left)
	}
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if got[path] != want[path] {
			r.t.Errorf("%s: %q is %q, want %q", what, path, got[path], want[path])
		}
	}
	for path, kind := range got {
		if want[path] == "" {
			r.t.Errorf("%s: %q %s, which nobody changed", what, path, kind)
		}
	}
}

// seeded is what the changes of a drift are made in: files of their own.
type seeded struct {
	files []string // with content and one name, in no order
	dirs  []string
}

func (r *rig) seeded(rnd *rand.Rand) (s seeded) {
	r.t.Helper()
	for _, top := range []string{"usr/share", "usr/bin", "opt", "etc", "srv"} {
		ok(r.t, filepath.WalkDir(filepath.Join(r.node.root, top), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st unix.Stat_t
			rel, err := filepath.Rel(r.node.root, path)
			if err == nil {
				err = unix.Lstat(path, &st)
			}
			switch own := strings.Contains("etc/hostname etc/machine-id etc/hosts etc/resolv.conf", rel) || strings.HasPrefix(rel, "etc/ssh") || strings.HasPrefix(rel, "etc/systemd"); {
			case err != nil || own:
			case d.IsDir():
				s.dirs = append(s.dirs, rel)
			case st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink == 1 && st.Size > 0 && st.Size < 1<<20 && top != "usr/bin" && !strings.Contains(rel, "sparse"):
				s.files = append(s.files, rel)
			}
			return err
		}))
	}
	rnd.Shuffle(len(s.files), func(i, j int) { s.files[i], s.files[j] = s.files[j], s.files[i] })
	return s
}

// change makes 200 changes of seven kinds, and says what is to be found of each.
// Of the files whose content changes, size and mtime stay as they were; the last
// of these are left for the disk to change.
func (r *rig) change(rnd *rand.Rand, s seeded) (want map[string]string, hidden []string) {
	r.t.Helper()
	want = map[string]string{}
	const each = 28
	at := func(path string) string { return filepath.Join(r.node.root, path) }
	take := func(n int, kind string, do func(path string)) {
		for _, path := range s.files[:n] {
			do(path)
			want[path] = kind
		}
		s.files = s.files[n:]
	}
	take(each-8, "changed", func(path string) { r.flip(rnd, path) })
	for _, path := range s.files {
		if st, err := os.Stat(at(path)); err == nil && st.Size() >= 64 && len(hidden) < 12 && strings.HasPrefix(path, "usr/share/doc/") {
			hidden = append(hidden, path)
		}
	}
	s.files = slices.DeleteFunc(s.files, func(path string) bool { return slices.Contains(hidden, path) })
	take(each, "changed in metadata", func(path string) {
		st, err := os.Lstat(at(path))
		ok(r.t, err)
		ok(r.t, os.Chmod(at(path), st.Mode()^0o011))
	})
	take(each, "changed in metadata", func(path string) { ok(r.t, os.Lchown(at(path), 1234, 4321)) })
	take(each, "changed in metadata", func(path string) {
		run(r.t, "setfattr", "-n", "user.drift", "-v", fmt.Sprint(rnd.Uint64()), at(path))
	})
	take(each, "deleted", func(path string) { ok(r.t, os.Remove(at(path))) })
	take(each, "made something else", func(path string) {
		ok(r.t, os.Remove(at(path)))
		ok(r.t, os.Symlink("/etc/passwd", at(path)))
	})
	for i := len(want) + len(hidden); i < 200; i++ {
		path := filepath.Join(s.dirs[rnd.IntN(len(s.dirs))], fmt.Sprintf("added %d\n\xff", i))
		ok(r.t, os.WriteFile(at(path), []byte("nobody was given this\n"), 0o644))
		want[path] = "added"
	}
	return want, hidden
}

// flip changes a byte of a file and sets its time back.
func (r *rig) flip(rnd *rand.Rand, path string) {
	r.t.Helper()
	at := filepath.Join(r.node.root, path)
	st, err := os.Stat(at)
	ok(r.t, err)
	b := []byte(read(r.t, at))
	b[rnd.IntN(len(b))] ^= 1
	f, err := os.OpenFile(at, os.O_WRONLY, 0)
	ok(r.t, err)
	_, err = f.WriteAt(b, 0)
	ok(r.t, err)
	ok(r.t, f.Close())
	ok(r.t, os.Chtimes(at, st.ModTime(), st.ModTime()))
}

// rot changes files where their disk has them, behind the back of the file
// system: size, mtime, ctime and inode are what they were.
func (r *rig) rot(disk string, paths []string) {
	r.t.Helper()
	run(r.t, "sync", "-f", r.node.root)
	heads, stats := map[string]string{}, map[string]unix.Stat_t{}
	for _, path := range paths {
		var st unix.Stat_t
		ok(r.t, unix.Stat(filepath.Join(r.node.root, path), &st))
		heads[read(r.t, filepath.Join(r.node.root, path))[:64]], stats[path] = path, st
	}
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	ok(r.t, err)
	defer f.Close()
	hit := map[string]bool{}
	block := make([]byte, 4096)
	for off := int64(0); ; off += int64(len(block)) {
		if off, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA); err != nil {
			break // all the rest is a hole
		}
		off -= off % int64(len(block))
		if _, err := f.ReadAt(block, off); err == io.EOF {
			break
		} else {
			ok(r.t, err)
		}
		if path := heads[string(block[:64])]; path != "" {
			block[63] ^= 1
			_, err := f.WriteAt(block[:64], off)
			ok(r.t, err)
			hit[path] = true
		}
	}
	for _, path := range paths {
		at := filepath.Join(r.node.root, path)
		g, err := os.Open(at)
		ok(r.t, err)
		ok(r.t, unix.Fadvise(int(g.Fd()), 0, 0, unix.FADV_DONTNEED))
		ok(r.t, g.Close())
		var st unix.Stat_t
		ok(r.t, unix.Stat(at, &st))
		was := stats[path]
		if st.Ino != was.Ino || st.Size != was.Size || st.Mtim != was.Mtim || st.Ctim != was.Ctim {
			r.t.Fatalf("%q: its inode tells", path)
		}
		if head := read(r.t, at)[:64]; !hit[path] || heads[head] == path {
			r.t.Fatalf("%q: the disk was not changed: this test does not test", path)
		}
	}
}

// aDay is what a machine writes in a day, and no drift.
func (r *rig) aDay(s seeded) {
	r.t.Helper()
	for path, text := range map[string]string{"var/log/syslog": "more\n", "var/log/apt/term.log": "x\n", "var/log/journal/1/system.journal": "x\n", "var/cache/apt/pkgcache.bin": "x\n",
		"var/lib/app/data": "of today\n", "var/lib/new/db": "x\n", "var/lib/systemd/timers/stamp-x": "", "tmp/t": "x\n", "home/joe/new": "x\n", "home/joe/.bash_history": "ls\n",
		"root/.bash_history": "ls\n", "root/.ssh/known_hosts": "x\n", "etc/machine-id": "ffffffffffffffffffffffffffffffff\n", "etc/hostname": "renamed\n", ".ingot/x": "x"} {
		put(r.t, r.node.root, path, text)
	}
	ok(r.t, os.RemoveAll(filepath.Join(r.node.root, ".ingot/x")))
	ok(r.t, os.Link(filepath.Join(r.node.root, "usr/bin/find"), filepath.Join(r.node.root, "var/lib/new/backup-of-find")))
	now := time.Now()
	for _, path := range s.files[len(s.files)-40:] {
		ok(r.t, os.Chtimes(filepath.Join(r.node.root, path), now, now))
	}
	for _, dir := range []string{"usr/bin", "etc", "opt/deep", "var/log"} {
		ok(r.t, os.Chtimes(filepath.Join(r.node.root, dir), now, now))
	}
	r.node.do("/usr/bin/touch", "/run/pid")
}

// todays are the paths that a day changes on a node, for a judge.
func todays() []string {
	return []string{"--exclude=/var/lib/app", "--exclude=/var/lib/new", "--exclude=/var/lib/systemd", "--exclude=/home/joe", "--exclude=/root/.ssh", "--exclude=/etc/machine-id", "--exclude=/etc/hostname"}
}

// Two hundred seeded changes of seven kinds are all found, by path, and no other
// is, on a node that has written its logs, caches and data for a day; the repair
// undoes all of them, and its rollback brings them back.
func testDrift(t *testing.T, b *base) {
	root := filepath.Join(t.TempDir(), "root")
	img, _ := loop(t, "mkfs.ext4", "-q", "-b", "4096")
	mounted(t, img, root)
	ok(t, os.Remove(filepath.Join(root, "lost+found")))
	r := b.rig(t, root)
	r.fails(5, []string{"nothing was given", "hint:"}, "drift", r.name)
	r.must("push", "web:1", r.name)
	r.drifts("after the push", nil)
	given := copyTree(t, root, filepath.Join(b.dir, r.name+"-given"))

	rnd := rand.New(rand.NewPCG(200, 1))
	s := r.seeded(rnd)
	want, hidden := r.change(rnd, s)
	r.aDay(s)
	disk := strings.TrimSpace(run(t, "losetup", "--noheadings", "--output", "BACK-FILE", img))
	r.rot(disk, hidden)
	r.drifts("quick", want)
	for _, path := range hidden {
		want[path] = "changed"
	}
	if len(want) != 200 || len(hidden) != 12 {
		t.Fatalf("%d changes, %d of them hidden", len(want), len(hidden))
	}
	r.drifts("--checksum", want, "--checksum")
	changed := copyTree(t, root, filepath.Join(b.dir, r.name+"-changed"))
	r.fails(1, []string{"not what was given", "ingot repair"}, "drift", r.name, "--exit-code")
	if out := r.must("node", "show", r.name).out; !strings.Contains(out, "188 paths, looked at 20") {
		t.Errorf("node show after a quick look: %s", out)
	}
	if out := r.must("drift", r.name, "--path", "/"+filepath.Dir(hidden[0]), "--checksum").out; !strings.Contains(out, fmt.Sprintf("changed  %q  content, ", "/"+hidden[0])) || strings.Contains(out, `"/etc`) {
		t.Errorf("drift --path: %s", out)
	}
	dry := r.must("repair", r.name, "--dry-run", "--checksum")
	if !strings.Contains(dry.out, fmt.Sprintf("replace  %q", "/"+hidden[0])) || r.last().Number != 2 {
		t.Errorf("a dry run: %s", dry)
	}
	same(t, "after looking", changed, root)

	r.node.proxy.reset()
	out := r.mustJSON("repair", r.name, "--checksum", "--confirm", "20s")
	t.Logf("repair: %d drifted, %d changes, %d bytes of chunks needed, %d sent", len(out.Plan.Drift), len(out.Plan.Changes), out.Plan.NeedBytes, out.Sent)
	if out.State != "done" || out.Done.Trial || len(out.Plan.Drift) != 200 {
		t.Errorf("the repair is %q with %d paths, on trial: %v", out.State, len(out.Plan.Drift), out.Done.Trial)
	}
	if g := r.last(); g.Kind != "repair" || g.Number != 3 || g.Ref != "web:1" || g.Trial != 0 {
		t.Errorf("recorded on the node as %+v", g)
	}
	if d := r.deployed(); d.State != "done" || d.Was != 2 || d.Generation != 3 {
		t.Errorf("recorded as %+v", d)
	}
	if out := r.must("deployment", "list", "--last", "0").out; !strings.Contains(out, "  repair  ") {
		t.Errorf("deployment list: %s", out)
	}
	same(t, "the repaired node against what it was given", given, root, todays()...)
	r.drifts("after the repair", nil, "--checksum")
	r.drifts("after the repair, quick", nil)
	r.must("drift", r.name, "--exit-code")
	if again := r.mustJSON("repair", r.name, "--checksum"); again.State != "unchanged" || r.last().Number != 3 {
		t.Errorf("a repair of nothing is %q", again.State)
	}
	if out := r.must("node", "show", r.name).out; !strings.Contains(out, "none, looked at 20") {
		t.Errorf("node show after the repair: %s", out)
	}
	if got := read(t, filepath.Join(root, "var/lib/app/data")); got != "of today\n" {
		t.Errorf("the repair changed what is the node's own: %q", got)
	}

	r.must("rollback", r.name)
	same(t, "the rollback of the repair", changed, root)
	r.drifts("after the rollback", nil) // it is what the node was brought to
}

// What was pushed as a part is looked at and put back, from the store where the
// node lost it; what a person keeps is told, and stays.
func testDriftOfParts(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:2", r.name, "--path", "/opt")
	put(t, r.node.root, "etc/motd", "not looked at\n")
	put(t, r.node.root, "opt/same/in-both", "changed\n")
	put(t, r.node.root, "opt/mine", "mine\n")
	r.drifts("a part", map[string]string{"opt/same/in-both": "changed", "opt/mine": "added"})
	out := r.must("drift", r.name).out
	if want := r.name + `: added    "/opt/mine"  file of 5 bytes` + "\n"; !strings.Contains(out, want) {
		t.Errorf("drift does not say %q: %s", want, out)
	}
	nobody := "x" + r.name // whose host key nobody knows
	r.write(nobody, r.node.addr, 200+r.node.number)
	if res := r.fails(3, []string{nobody + ": failed"}, "drift", nobody+","+r.name, "--parallel", "1"); !strings.Contains(res.out, r.name+": 2 paths differ from generation 2\n") {
		t.Errorf("one that cannot be asked stops another: %s", res)
	}
	r.unwrite(nobody)
	r.must("repair", r.name, "--keep", "/opt/mine")
	if got := read(t, filepath.Join(r.node.root, "opt/same/in-both")) + read(t, filepath.Join(r.node.root, "opt/mine")); got != "same\nmine\n" {
		t.Errorf("repaired, with a file kept: %q", got)
	}
	if back, left := r.drift(); len(back) > 0 || len(left) != 1 || !strings.Contains(left["opt/mine"], "kept") {
		t.Errorf("to be put back %v, left %v", back, left)
	}
	if out := r.must("node", "show", r.name).out; !strings.Contains(out, "none, 1 left on purpose, looked at 20") {
		t.Errorf("node show: %s", out)
	}
	put(t, r.node.root, "opt/mine", "mine, later\n")
	r.drifts("changed again", map[string]string{"opt/mine": "added"})
	r.must("repair", r.name, "--path", "/opt/mine")
	if _, err := os.Lstat(filepath.Join(r.node.root, "opt/mine")); err == nil {
		t.Error("what changed again is still there")
	}
	r.drifts("all is put back", nil)
	if b, err := os.ReadFile(filepath.Join(r.node.root, "etc/motd")); err != nil || !bytes.Equal(b, []byte("not looked at\n")) {
		t.Errorf("outside of the part: %q, %v", b, err)
	}
}

// The side that runs is compared with what it was given, and what both sides
// share is not; the other one becomes what this one was given.
func (r *sidesRig) testRepairOfASide(other string) {
	r.t.Helper()
	r.drifts("a side", nil)
	motd := read(r.t, filepath.Join(r.node.root, "etc/motd"))
	put(r.t, r.node.root, "etc/motd", "drifted\n")
	put(r.t, r.node.root, "var/lib/dpkg/added", "x\n")
	put(r.t, r.node.root, "home/joe/shared", "x\n")
	want := map[string]string{"etc/motd": "changed", "var/lib/dpkg/added": "added"}
	r.drifts("a side that drifted", want)
	r.fails(1, []string{"two sides", "repair all of it"}, "repair", r.name, "--path", "/etc")
	if out := r.must("repair", r.name, "--dry-run").out; !strings.Contains(out, `replace  "/etc/motd"`) {
		r.t.Errorf("the dry run of a repair: %s", out)
	}
	out := r.mustJSON("repair", r.name, "--no-reboot")
	if !out.Done.NextBoot || out.Done.Generation.Kind != "repair" || len(out.Plan.Drift) != 2 {
		r.t.Errorf("the repair says %+v", out.Done)
	}
	r.starts(sides.Env{Side: sides.A, Try: sides.B})
	same(r.t, "the other side", r.base.v1, other, sidesOwn()...)
	r.drifts("the side that runs", want)
	r.must("rollback", r.name)
	r.starts(sides.Env{Side: sides.A})
	put(r.t, r.node.root, "etc/motd", motd)
	ok(r.t, os.Remove(filepath.Join(r.node.root, "var/lib/dpkg/added")))
	if out := r.mustJSON("repair", r.name, "--no-reboot"); out.State != "unchanged" {
		r.t.Errorf("a repair of nothing: %+v", out.Done)
	}
	r.starts(sides.Env{Side: sides.A})
}
