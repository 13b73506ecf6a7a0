package rollback

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// seeded is how many files are corrupted.
const seeded = 100

// rot flips a bit of a file and sets its time back: size and mtime are what they were.
func rot(t *testing.T, r *rand.Rand, path string) {
	t.Helper()
	st, err := os.Lstat(path)
	ok(t, err)
	b, err := os.ReadFile(path)
	ok(t, err)
	b[r.IntN(len(b))] ^= 1 << r.IntN(8)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	ok(t, err)
	_, err = f.WriteAt(b, 0)
	ok(t, err)
	ok(t, f.Close())
	ts := unix.NsecToTimespec(st.ModTime().UnixNano())
	ok(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, 0))
}

// someFiles picks files of a manifest that have content and no other names, so
// that each that is corrupted is one path.
func someFiles(t *testing.T, r *rand.Rand, m *manifest.Manifest, fits func(*entry.Entry) bool) []string {
	t.Helper()
	linked := map[string]bool{}
	for i := range m.Entries {
		linked[m.Entries[i].Link] = true
	}
	var out []string
	for i := range m.Entries {
		if e := &m.Entries[i]; e.Type == entry.File && len(e.Holes) == 0 && e.Size > 0 && e.Link == "" && !linked[e.Path] && fits(e) {
			out = append(out, e.Path)
		}
	}
	if len(out) < seeded {
		t.Fatalf("only %d files to corrupt", len(out))
	}
	r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	out = out[:seeded]
	sort.Strings(out)
	return out
}

func changedPaths(p *Plan) (out []string) {
	for _, c := range p.Conflicts {
		out = append(out, c.Path)
	}
	sort.Strings(out)
	return out
}

// forgetNothing makes the stat cache say that the tree, as it is, holds what
// its generation says: the disk has changed bytes, and no inode knows of it.
func (w *world) forgetNothing(n *Node) {
	w.t.Helper()
	cur, err := n.Current()
	ok(w.t, err)
	m, err := n.Manifest(cur.Number)
	ok(w.t, err)
	ok(w.t, n.writeCache(cur.Number, cur.Manifest, m, trustable(m, statsOf(w.t, w.dir, m), time.Now().Add(time.Hour))))
}

// A hundred files of the node are damaged without a trace in size or time: the
// next plan names them all, and only them. Where not even the ctime tells, a
// plan that reads everything does; and whatever is made of such files is made
// of the source's content, so that the damage is never spread.
func TestSeededCorruption(t *testing.T) {
	w := newWorld(t, 41, 900, 500)
	r := rand.New(rand.NewPCG(41, 2))
	n := w.node()
	_, err := push(n, w.goal(), w.src)
	ok(t, err)
	w.isNew("after the push")
	hit := someFiles(t, r, w.target, func(*entry.Entry) bool { return true })
	for _, path := range hit {
		rot(t, r, w.at(path))
	}
	p, err := n.Plan(bg(), w.goal())
	ok(t, err)
	if got := changedPaths(p); !slices.Equal(got, hit) {
		t.Errorf("the plan names %d files, want %d", len(got), len(hit))
	}
	isErr(t, p.Err(), ErrConflict, strconv.Quote(p.Conflicts[0].Path))

	w.forgetNothing(n)
	if p, err = n.Plan(bg(), w.goal()); err != nil || !p.Empty() {
		t.Fatalf("%v: a plan that trusts inodes does %d steps: this test does not test", err, len(p.Steps))
	}
	full := w.goal()
	full.Full = true
	p, err = n.Plan(bg(), full)
	ok(t, err)
	if got := changedPaths(p); !slices.Equal(got, hit) {
		t.Errorf("the full plan names %d files, want %d", len(got), len(hit))
	}

	// A target that has the damaged files elsewhere.
	moved := &manifest.Manifest{Entries: slices.Clone(w.target.Entries)}
	moved.Entries = append(moved.Entries, entry.Entry{Path: "moved", Type: entry.Dir, Mode: 0o755, ModTime: 1e18})
	for i, path := range hit {
		e, _ := w.target.Lookup(path)
		x := *e
		x.Path = "moved/" + strconv.Itoa(i)
		moved.Entries = append(moved.Entries, x)
	}
	moved.Sort()
	w.src.asked = 0
	_, err = push(n, Target{Manifest: moved, Image: "moved:3"}, w.src)
	ok(t, err)
	if w.src.asked == 0 {
		t.Error("nothing was asked of the source")
	}
	for i, path := range hit {
		e, _ := w.target.Lookup(path)
		if got, err := os.ReadFile(w.at("moved/" + strconv.Itoa(i))); err != nil || string(got) != w.content(e) {
			t.Errorf("%q was spread: %v", path, err)
		}
	}
}

// content is what the source has for an entry without holes.
func (w *world) content(e *entry.Entry) string {
	var b strings.Builder
	for _, c := range e.Chunks {
		b.Write(w.src.chunks[c.ID])
	}
	return b.String()
}

// A hundred undo copies are damaged, without a trace in size or time: a
// rollback refuses, names all of them, and changes nothing; with the store's
// copies it makes exactly the old tree.
func TestSeededCorruptionOfUndoCopies(t *testing.T) {
	w := newWorld(t, 43, 1200, 1500)
	r := rand.New(rand.NewPCG(43, 2))
	n := w.node()
	_, err := push(n, w.goal(), w.src)
	ok(t, err)
	x, err := n.undoCopies(bg(), nil)
	ok(t, err)
	of := map[string]undoCopy{}
	for _, u := range x.gens[1] {
		of[u.of] = u
	}
	wanted := map[digest.ID]int{} // how many files have it: of one that has a twin that is well, nothing is lacking
	for i := range w.mold.Entries {
		for _, c := range w.mold.Entries[i].Chunks {
			wanted[c.ID]++
		}
	}
	hit := someFiles(t, r, w.mold, func(e *entry.Entry) bool {
		_, kept := of[e.Path]
		return kept && wanted[e.Chunks[0].ID] == 1
	})
	for _, path := range hit {
		rot(t, r, filepath.Join(w.dir, of[path].path()))
	}
	p, err := n.PlanRollback(bg(), 0, Policy{}, "test")
	ok(t, err)
	var got []string
	for _, note := range p.Damaged {
		got = append(got, note.Path)
	}
	sort.Strings(got)
	if !slices.Equal(got, hit) {
		t.Errorf("the plan names %d damaged files, want %d", len(got), len(hit))
	}
	_, err = n.Rollback(bg(), 0, Policy{}, "test")
	isErr(t, err, ErrDamaged, "and 95 more")
	w.isNew("after the refused rollback")
	store := chunked(t, w.old, snapshot(t, w.old), pieceSize)
	p, err = n.PlanRollback(bg(), 0, Policy{}, "test")
	ok(t, err)
	ok(t, n.Stage(bg(), p, store))
	_, err = n.Switch(bg(), p)
	ok(t, err)
	w.isOld("with the store's copies")
}
