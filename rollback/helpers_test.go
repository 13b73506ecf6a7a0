package rollback

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/pattern"
)

// scratch returns a directory on a file system that is quick to sync, if there is one.
func scratch(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "rollback-")
	if err != nil || unix.Setxattr(dir, "user.probe", []byte("1"), 0) != nil {
		return t.TempDir()
	}
	unix.Removexattr(dir, "user.probe")
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, dir string) *Node {
	t.Helper()
	n, err := Open(dir, nil)
	ok(t, err)
	t.Cleanup(func() { n.Close() })
	return n
}

// snapshot describes a directory as a manifest, .ingot left out.
func snapshot(t testing.TB, dir string) *manifest.Manifest {
	t.Helper()
	n := open(t, dir)
	defer n.Close()
	only, err := pattern.Parse([]string{"/.ingot"})
	ok(t, err)
	none := indexOf(nil)
	s := &scanner{n: n, rules: &rules{leaves: leaves{volatile: only}}, base: none, target: none}
	crossing(t, s)
	l, err := s.scan(context.Background(), nil)
	ok(t, err)
	m := adopt(l, none, none, cover{}).m
	ok(t, m.Validate())
	return m
}

// chunked cuts the files of a snapshot into chunks of n bytes and returns
// them as a source.
func chunked(t testing.TB, dir string, m *manifest.Manifest, n int64) *memory {
	t.Helper()
	src := &memory{chunks: map[digest.ID][]byte{}}
	for i := range m.Entries {
		e := &m.Entries[i]
		if e.Type != entry.File || e.Link != "" {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Path))
		ok(t, err)
		var stream []byte
		for _, d := range e.Data() {
			stream = append(stream, b[d.Off:d.Off+d.Len]...)
		}
		e.Chunks = nil
		for len(stream) > 0 {
			c := stream[:min(n, int64(len(stream)))]
			id := digest.Of(c)
			src.chunks[id] = c
			e.Chunks = append(e.Chunks, entry.Chunk{ID: id, Size: uint32(len(c))})
			stream = stream[len(c):]
		}
	}
	return src
}

// memory is a source with moods.
type memory struct {
	chunks map[digest.ID][]byte
	asked  int
	lie    bool
}

func (s *memory) Fetch(_ context.Context, ids []digest.ID, fn func(digest.ID, []byte) error) error {
	for _, id := range ids {
		b, found := s.chunks[id]
		if !found {
			return fmt.Errorf("chunk %s: not here", id.Short())
		}
		s.asked++
		if s.lie {
			b = append([]byte("x"), b[1:]...)
		}
		if err := fn(id, b); err != nil {
			return err
		}
	}
	return nil
}

// same fails unless two manifests are the same tree.
func same(t testing.TB, what string, want, got *manifest.Manifest) {
	t.Helper()
	if d := differences(want, got); d != "" {
		t.Fatalf("%s:\n%s", what, d)
	}
}

func differences(want, got *manifest.Manifest) string {
	if want.ID() == got.ID() {
		return ""
	}
	var b strings.Builder
	for i, c := range manifest.Diff(want, got) {
		if i == 20 {
			fmt.Fprintln(&b, "...")
			break
		}
		fmt.Fprintf(&b, "  %v %q", c.Kind, c.Path)
		if c.A != nil && c.B != nil {
			fmt.Fprintf(&b, "\n    want %+v\n    got  %+v", *c.A, *c.B)
		}
		fmt.Fprintln(&b)
	}
	if b.Len() == 0 {
		return "  (in links only)"
	}
	return b.String()
}

// rsyncSame lets rsync judge that two trees are equal, times to the nanosecond.
func rsyncSame(t testing.TB, what, a, b string, mounts ...string) {
	t.Helper()
	if _, err := exec.LookPath("rsync"); err != nil {
		if os.Getenv("INGOT_NO_SKIP") != "" {
			t.Fatal("rsync is not installed")
		}
		t.Log("rsync is not installed: judged by manifest only")
		return
	}
	args := []string{"-aHAXn", "-@-1", "--numeric-ids", "--checksum", "--delete", "--itemize-changes", "--exclude=/.ingot"}
	for _, at := range mounts {
		args = append(args, "--exclude=/"+at+"/.ingot")
	}
	for _, d := range [][2]string{{a, b}, {b, a}} {
		out, err := exec.Command("rsync", append(slices.Clone(args), d[0]+"/", d[1]+"/")...).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Fatalf("%s: rsync sees differences (%v):\n%s", what, err, out)
		}
	}
}

func copyTree(t testing.TB, from, to string) {
	t.Helper()
	out, err := exec.Command("cp", "-a", "--sparse=auto", from, to).CombinedOutput()
	if err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}

// garden makes and changes trees at random.
type garden struct {
	t   testing.TB
	dir string
	r   *rand.Rand
	n   int

	mounts []string // directories that stay directories, and are planted like the top
}

func (g *garden) path(p string) string { return filepath.Join(g.dir, p) }

func (g *garden) bytes() []byte {
	b := make([]byte, []int{0, 1, 100, 5000, 20000}[g.r.IntN(5)])
	for i := range b {
		b[i] = byte(g.r.Uint32())
	}
	return b
}

func (g *garden) name() string {
	g.n++
	odd := []string{"", " with space", "\nnewline", "\xff\xfe", "'quote\"", "-dash"}
	return fmt.Sprintf("n%d%s", g.n, odd[g.r.IntN(len(odd))])
}

// file makes a file with random content, mode, owner and attributes.
func (g *garden) file(p string) {
	ok(g.t, os.WriteFile(g.path(p), g.bytes(), 0o600))
	g.dress(p)
}

func (g *garden) dress(p string) {
	if os.Geteuid() == 0 && g.r.IntN(3) == 0 {
		ok(g.t, os.Lchown(g.path(p), g.r.IntN(2000), g.r.IntN(2000)))
	}
	if g.r.IntN(4) == 0 {
		ok(g.t, unix.Lsetxattr(g.path(p), fmt.Sprintf("user.k%d", g.r.IntN(3)), g.bytes()[:0], 0))
		ok(g.t, unix.Lsetxattr(g.path(p), "user.v", fmt.Append(nil, g.r.Uint64()), 0))
	}
	modes := []os.FileMode{0o644, 0o600, 0o755, 0o4755, 0o2750, 0o440}
	if os.Geteuid() != 0 {
		modes[5] = 0o640 // only root can write to the other again
	}
	ok(g.t, unix.Chmod(g.path(p), uint32(modes[g.r.IntN(len(modes))])))
}

func (g *garden) mkdir(p string) {
	ok(g.t, os.Mkdir(g.path(p), 0o755))
	if g.r.IntN(3) == 0 {
		ok(g.t, unix.Setxattr(g.path(p), "user.d", []byte("dir"), 0))
	}
}

func (g *garden) sparse(p string) {
	f, err := os.Create(g.path(p))
	ok(g.t, err)
	defer f.Close()
	ok(g.t, f.Truncate(1<<20))
	_, err = f.WriteAt(g.bytes(), 256<<10)
	ok(g.t, err)
}

// any makes an entry of any type.
func (g *garden) any(p string, depth int) {
	switch k := g.r.IntN(12); {
	case k < 6:
		g.file(p)
	case k == 6:
		ok(g.t, os.Symlink(g.name(), g.path(p)))
	case k == 7:
		ok(g.t, unix.Mkfifo(g.path(p), 0o640))
	case k == 8 && g.r.IntN(3) == 0:
		g.sparse(p)
	case k == 9:
		g.file(p)
		for range 1 + g.r.IntN(3) {
			ok(g.t, os.Link(g.path(p), g.path(filepath.Join(filepath.Dir(p), g.name()))))
		}
	case depth < 3:
		g.mkdir(p)
		for range g.r.IntN(4) {
			g.any(filepath.Join(p, g.name()), depth+1)
		}
	default:
		g.file(p)
	}
}

// plant fills an empty directory with about n entries.
func (g *garden) plant(n int) {
	dirs := append([]string{"."}, g.mounts...)
	for range n / 12 {
		d := filepath.Join(dirs[g.r.IntN(len(dirs))], g.name())
		g.mkdir(d)
		dirs = append(dirs, d)
	}
	for len(g.all()) < n {
		g.any(filepath.Join(dirs[g.r.IntN(len(dirs))], g.name()), 2)
	}
}

// all lists the paths below the top, parents first.
func (g *garden) all() []string {
	var out []string
	ok(g.t, filepath.WalkDir(g.dir, func(p string, _ os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(g.dir, p); rel != "." {
			out = append(out, rel)
		}
		return err
	}))
	return out
}

// shake makes n changes of all kinds.
func (g *garden) shake(n int) {
	for range n {
		paths := g.all()
		p := paths[g.r.IntN(len(paths))]
		st, err := os.Lstat(g.path(p))
		ok(g.t, err)
		k := g.r.IntN(8)
		if k < 2 && g.holdsMount(p) {
			continue
		}
		switch k {
		case 0:
			ok(g.t, os.RemoveAll(g.path(p)))
		case 1: // another type in its place
			ok(g.t, os.RemoveAll(g.path(p)))
			g.any(p, 1)
		case 2, 3: // new content, by a new file
			if st.Mode().IsRegular() {
				ok(g.t, os.Remove(g.path(p)))
				g.file(p)
			}
		case 4: // new content, in all names of the file
			if st.Mode().IsRegular() {
				ok(g.t, os.WriteFile(g.path(p), g.bytes(), 0o600))
			}
		case 5:
			if st.Mode().IsRegular() || st.IsDir() {
				g.dress(p)
			}
			if st.IsDir() {
				ok(g.t, unix.Chmod(g.path(p), 0o750))
			}
		case 6: // link it somewhere
			if !st.IsDir() {
				ok(g.t, os.Link(g.path(p), g.path(filepath.Join(filepath.Dir(p), g.name()))))
			}
		default:
			d := filepath.Dir(p)
			g.any(filepath.Join(d, g.name()), 1)
		}
	}
}

// age gives everything a random time long ago, directories last.
func (g *garden) age() {
	paths := append([]string{"."}, g.all()...)
	sort.Sort(sort.Reverse(sort.StringSlice(paths)))
	for _, p := range paths {
		ts := []unix.Timespec{{Sec: 1e9}, {Sec: 1e9 + g.r.Int64N(1e8), Nsec: g.r.Int64N(1e9)}}
		ok(g.t, unix.UtimesNanoAt(unix.AT_FDCWD, g.path(p), ts, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// world is an old tree, a new one made of it, and a node that has the old one.
type world struct {
	t             testing.TB
	old, new, dir string
	mold, mnew    *manifest.Manifest // as snapshots
	target        *manifest.Manifest // new, in small chunks
	src           *memory
	mounts        []string // of the node: where another file system is
	disks         []string // these, where they are always mounted
}

func newWorld(t testing.TB, seed uint64, entries, changes int) *world {
	t.Helper()
	return newWorldOn(t, seed, entries, changes, "")
}

// newWorldOn is newWorld with other file systems of a kind mounted in the node.
func newWorldOn(t testing.TB, seed uint64, entries, changes int, kind string, mounts ...string) *world {
	t.Helper()
	t.Logf("seed %d, %d entries, %d changes", seed, entries, changes)
	top := scratch(t)
	w := &world{t: t, old: top + "/old", new: top + "/new", dir: top + "/node"}
	ok(t, os.Mkdir(w.old, 0o755))
	g := &garden{t: t, dir: w.old, r: rand.New(rand.NewPCG(seed, 1)), mounts: mounts}
	for _, at := range mounts {
		g.mkdir(at)
	}
	g.plant(entries)
	g.age()
	copyTree(t, w.old, w.new)
	g.dir = w.new
	g.shake(changes)
	ageSome(g, w.old)
	w.mold, w.mnew = snapshot(t, w.old), snapshot(t, w.new)
	w.target = snapshot(t, w.new)
	w.src = chunked(t, w.new, w.target, 3000)
	w.fill(kind, mounts...)
	return w
}

// ageSome gives new times to what the shaking left with the time of today.
func ageSome(g *garden, _ string) {
	paths := append([]string{"."}, g.all()...)
	sort.Sort(sort.Reverse(sort.StringSlice(paths)))
	for _, p := range paths {
		st, err := os.Lstat(g.path(p))
		ok(g.t, err)
		if st.ModTime().Unix() < 1.2e9 {
			continue
		}
		ts := []unix.Timespec{{Sec: 1e9}, {Sec: 1e9 + g.r.Int64N(1e8), Nsec: g.r.Int64N(1e9)}}
		ok(g.t, unix.UtimesNanoAt(unix.AT_FDCWD, g.path(p), ts, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// node opens the world's node and records its tree as generation 1.
func (w *world) node() *Node {
	w.t.Helper()
	n := open(w.t, w.dir)
	ok(w.t, n.Record(context.Background(), Generation{Image: "old:1", Result: "installed"}, w.mold, nil, statsOf(w.t, w.dir, w.mold)))
	return n
}

func statsOf(t testing.TB, dir string, m *manifest.Manifest) map[string]entry.Stat {
	out := map[string]entry.Stat{}
	for i := range m.Entries {
		st, err := entry.StatAt(unix.AT_FDCWD, filepath.Join(dir, m.Entries[i].Path))
		ok(t, err)
		out[m.Entries[i].Path] = st
	}
	return out
}

func (w *world) goal() Target { return Target{Manifest: w.target, Image: "new:2", By: "test"} }

// push brings the node to a target.
func push(n *Node, t Target, src Source) (Generation, error) {
	ctx := context.Background()
	p, err := n.Plan(ctx, t)
	if err != nil {
		return Generation{}, err
	}
	if err := n.Stage(ctx, p, src); err != nil {
		return Generation{}, err
	}
	return n.Switch(ctx, p)
}

func write(t testing.TB, path, text string) {
	t.Helper()
	ok(t, os.WriteFile(path, []byte(text), 0o644))
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	ok(t, err)
	return string(bytes.TrimSpace(b))
}
