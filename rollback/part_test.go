package rollback

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/pattern"
)

// plot writes files, name to text, below dir and gives all a time long ago.
func plot(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		ok(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		write(t, filepath.Join(dir, name), text)
	}
	(&garden{t: t, dir: dir, r: rand.New(rand.NewPCG(3, 3))}).age()
}

// parts is a node with one tree, and a target with another.
func parts(t *testing.T) (n *Node, dir string, target *manifest.Manifest, src *memory) {
	t.Helper()
	top := scratch(t)
	dir = top + "/node"
	plot(t, dir, map[string]string{"etc/a": "mine", "srv/www/x": "1", "srv/www/gone": "2", "srv/other": "3"})
	plot(t, top+"/new", map[string]string{"etc/a": "theirs", "etc/b": "b", "srv/www/x": "one", "srv/www/new/y": "y", "srv/other": "III", "opt/app/bin/run": "run"})
	target = snapshot(t, top+"/new")
	src = chunked(t, top+"/new", target, 3000)
	return open(t, dir), dir, target, src
}

// A part is changed, all else stays, directory times included, and the way
// back is exact, whether or not ingot knew the node.
func TestWithin(t *testing.T) {
	for _, known := range []bool{true, false} {
		for _, within := range []string{"srv/www", "opt/app/bin", "srv/www/x", "etc"} {
			t.Run(within, func(t *testing.T) {
				n, dir, target, src := parts(t)
				before := snapshot(t, dir)
				if known {
					ok(t, n.Record(bg(), Generation{Image: "old:1"}, before, nil, nil))
				}
				g, err := push(n, Target{Manifest: target, Image: "new:1", Within: within}, src)
				ok(t, err)
				after := snapshot(t, dir)
				in := func(p string) bool {
					_, was := before.Lookup(p)
					return p == within || under(p, within) || under(within, p) && !was
				}
				out := func(p string) bool { return !in(p) }
				same(t, "the part", only(target, in), only(after, in))
				same(t, "the rest", only(before, out), only(after, out))
				if g.Within != Path(within) || (len(g.Covers) == 0) != known {
					t.Errorf("recorded as %+v", g)
				}
				if p, err := n.Plan(bg(), Target{Manifest: target, Within: within}); err != nil || !p.Empty() {
					t.Errorf("again: %v, %v", p.Steps, err)
				}
				_, err = n.Rollback(bg(), 0, Policy{}, "test")
				ok(t, err)
				same(t, "after the rollback", before, snapshot(t, dir))
			})
		}
	}
}

// After parts, the whole: files that no push has looked at are no conflicts,
// and a rollback leads back over all of it.
func TestWholeAfterParts(t *testing.T) {
	n, dir, target, src := parts(t)
	n.Retention.Keep = 20
	states := []*manifest.Manifest{snapshot(t, dir)}
	for _, within := range []string{"srv/www", "opt/app/bin", ""} {
		_, err := push(n, Target{Manifest: target, Image: "new:1", Within: within}, src)
		ok(t, err)
		states = append(states, snapshot(t, dir))
	}
	same(t, "the whole", target, states[3])
	for _, back := range []int{1, 4, 3, 2, 4, 1} {
		_, err := n.Rollback(bg(), back, Policy{}, "test")
		ok(t, err)
		same(t, "after the rollback", states[back-1], snapshot(t, dir))
	}
}

// A change of the node in the part is a conflict; elsewhere it is nobody's business.
func TestWithinConflicts(t *testing.T) {
	n, dir, target, src := parts(t)
	ok(t, n.Record(bg(), Generation{Image: "old:1"}, snapshot(t, dir), nil, nil))
	write(t, dir+"/etc/a", "changed here")
	_, err := push(n, Target{Manifest: target, Within: "srv/www"}, src)
	ok(t, err)
	write(t, dir+"/srv/www/x", "changed here")
	_, err = push(n, Target{Manifest: target, Within: "srv"}, src)
	is(t, err, ErrConflict)
	p, err := n.Plan(bg(), Target{Manifest: target})
	ok(t, err)
	if len(p.Conflicts) != 2 {
		t.Errorf("the whole tree has conflicts %v, want etc/a and srv/www/x", p.Conflicts)
	}
	for _, within := range []string{"nowhere/at/all", "/srv", "srv/", "..", "srv//www", "./srv"} {
		if _, err := n.Plan(bg(), Target{Manifest: target, Within: within}); err == nil {
			t.Errorf("%q was planned", within)
		}
	}
}

// Known finds a target by its digest, as it was received, and nothing that is
// damaged.
func TestKnown(t *testing.T) {
	w := newWorld(t, 31, 40, 30)
	n := open(t, w.dir)
	a, b, none := digest.Of([]byte("a")), digest.Of([]byte("b")), digest.ID{}
	ok(t, n.Record(bg(), Generation{ImageID: a}, w.mold, w.mold, nil))
	goal := w.goal()
	owned, err := pattern.Parse([]string{"/n1*"})
	ok(t, err)
	goal.ImageID, goal.Overlay, goal.NodeOwned = b, a, owned
	_, err = push(n, goal, w.src)
	ok(t, err)
	check := func(id digest.ID, want bool) {
		t.Helper()
		m, found, err := n.Known(id)
		ok(t, err)
		if found != want || found && m.ID() != id {
			t.Errorf("known: %v, want %v", found, want)
		}
	}
	check(w.mold.ID(), true)
	check(w.target.ID(), true)
	check(a, false)
	check(none, false)
	_, err = n.Rollback(bg(), 0, Policy{}, "test")
	ok(t, err)
	ok(t, n.remove(genDir(1)))
	check(w.mold.ID(), true) // the rollback keeps it, too
	if list, err := n.Targets(); err != nil || len(list) != 2 || list[0] != (Made{w.mold.ID(), a, none}) || list[1] != (Made{w.target.ID(), b, a}) {
		t.Errorf("targets: %v, %v", list, err)
	}
	path := w.dir + "/.ingot/generations/2/target"
	raw, err := os.ReadFile(path)
	ok(t, err)
	raw[len(raw)/2] ^= 1
	ok(t, os.WriteFile(path, raw, 0o600))
	check(w.target.ID(), false)
}

func only(m *manifest.Manifest, keep func(string) bool) *manifest.Manifest {
	out := &manifest.Manifest{}
	for _, e := range m.Entries {
		if keep(e.Path) {
			if e.Type == entry.File { // cut at different places
				e.Chunks = nil
			}
			out.Entries = append(out.Entries, e)
		}
	}
	return out
}
