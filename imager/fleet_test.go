package imager

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/imager/chunk"
	"ingot/imager/store"
	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// cpu is what this process has used, user and system.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measuredTree puts about 200 MB of this machine's files into a store, or all
// of INGOT_BENCH_TREE, and a later version of each third of them.
func measuredTree(t *testing.T) (before, after *manifest.Manifest, s *store.Store) {
	t.Helper()
	top, every := os.Getenv("INGOT_BENCH_TREE"), 1
	if top == "" {
		top = "/usr"
		var size int64
		walkFiles(t, top, func(_ string, n int64) { size += n })
		every = max(1, int(size/200_000_000))
	}
	s, err := store.Init(t.TempDir() + "/store")
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.NewWriter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	put := func(path string, b []byte) entry.Entry {
		e := entry.Entry{Path: path, Type: entry.File, Mode: 0o644, Size: int64(len(b))}
		for len(b) > 0 {
			n := chunk.Cut(b)
			id := digest.Of(b[:n])
			e.Chunks = append(e.Chunks, entry.Chunk{ID: id, Size: uint32(n)})
			if missing, err := w.Missing(t.Context(), []digest.ID{id}); err != nil {
				t.Fatal(err)
			} else if len(missing) > 0 {
				if err := w.Put(t.Context(), id, bytes.Clone(b[:n])); err != nil {
					t.Fatal(err)
				}
			}
			b = b[n:]
		}
		return e
	}
	root := entry.Entry{Path: ".", Type: entry.Dir, Mode: 0o755}
	before, after = &manifest.Manifest{Entries: []entry.Entry{root}}, &manifest.Manifest{Entries: []entry.Entry{root}}
	i := 0
	walkFiles(t, top, func(path string, n int64) {
		if i++; i%every != 0 {
			return
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return
		}
		name := fmt.Sprintf("%06d", i)
		e := put(name, b)
		before.Entries = append(before.Entries, e)
		if i/every%3 == 0 && len(b) > 0 {
			b = slices.Clone(b)
			for at := 100; at < len(b); at += 20_000 {
				copy(b[at:], "changed")
			}
			e = put(name, append(b, "longer"...))
		}
		after.Entries = append(after.Entries, e)
	})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return before, after, s
}

func walkFiles(t *testing.T, top string, fn func(path string, size int64)) {
	t.Helper()
	if err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if st, err := d.Info(); err == nil && st.Size() <= 32<<20 {
			fn(path, st.Size())
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// changedGroups are groups as a node makes them: a MiB of what is wanted.
func changedGroups(before, after *manifest.Manifest) (out []wire.Group) {
	var g wire.Group
	size := 0
	for i := range after.Entries {
		e, old := &after.Entries[i], &before.Entries[i]
		for j, c := range e.Chunks {
			if j >= len(old.Chunks) || slices.Contains(old.Chunks, c) {
				continue
			}
			if size += int(c.Size); size > 1<<20 {
				out, g, size = append(out, g), wire.Group{}, int(c.Size)
			}
			g.Wanted, g.Like = append(g.Wanted, c.ID), append(g.Like, old.Chunks[j].ID)
		}
	}
	return append(out, g)
}

// serveFleet pushes to n nodes, eight at once, and returns the CPU of it and
// the bytes that each got.
func serveFleet(t *testing.T, n int, questions []byte, targetOf func(i int) Target) (used time.Duration, sent int64) {
	t.Helper()
	file := t.TempDir() + "/questions"
	if err := os.WriteFile(file, questions, 0o600); err != nil {
		t.Fatal(err)
	}
	nodes := exec.Command(os.Args[0], strconv.Itoa(n))
	nodes.Env = append(os.Environ(), fleetNodes+"="+file)
	nodes.Stderr = os.Stderr
	var ours []*os.File
	for range n {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours = append(ours, os.NewFile(uintptr(fds[0]), "node"))
		nodes.ExtraFiles = append(nodes.ExtraFiles, os.NewFile(uintptr(fds[1]), "its end"))
	}
	if err := nodes.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range nodes.ExtraFiles {
		f.Close()
	}
	before := cpu(t)
	var pushes sync.WaitGroup
	room := make(chan struct{}, 8)
	for i, f := range ours {
		pushes.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			defer f.Close()
			c := wire.New(f, &sealed{w: f, aead: fleetCipher()})
			if _, _, err := Push(t.Context(), c, wire.Request{}, targetOf(i), Talk{Decide: func(wire.Plan) error { return nil }}); err != nil {
				t.Errorf("node %d: %v", i, err)
			}
			if i == 0 {
				sent = c.Sent()
			}
		})
	}
	pushes.Wait()
	used = cpu(t) - before
	if err := nodes.Wait(); err != nil {
		t.Errorf("the nodes: %v", err)
	}
	return used, sent
}

// TestTwentyForTheCPUOfOne measures a push of one image to twenty nodes, and
// an update of them, beside compressing it once and encrypting it for each.
// The differences of an update are found faster than what they are made of can
// be read: there, the bar is reading and compressing once.
// INGOT_BENCH_PROFILE names a directory for the profiles.
func TestTwentyForTheCPUOfOne(t *testing.T) {
	if os.Getenv("INGOT_BENCH") == "" {
		t.Skip("INGOT_BENCH is not set: it takes minutes")
	}
	const nodes, most, grows = 20, 1.5, 1.03
	before, after, s := measuredTree(t)
	data := map[digest.ID][]byte{}
	var mu sync.Mutex
	var ids []digest.ID
	for _, m := range []*manifest.Manifest{before, after} {
		for id := range listChunks(m).at {
			ids = append(ids, id)
		}
	}
	if err := s.Fetch(t.Context(), ids, func(id digest.ID, b []byte) error {
		mu.Lock()
		defer mu.Unlock()
		data[id] = bytes.Clone(b)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	groups := changedGroups(before, after)
	runs := before.ID()
	questions := runs[:]
	for g := range slices.Chunk(groups, 64) {
		questions = recorded(questions, g)
	}
	for _, tc := range []struct {
		name      string
		image     *manifest.Manifest
		questions []byte
		compress  func() error
		read      bool // whether the bar has the reading, too
	}{
		{"first", before, nil, func() error {
			z := wire.NewSegment()
			for i := range before.Entries {
				for _, c := range before.Entries[i].Chunks {
					if err := z.Add(c.ID, data[c.ID]); err != nil {
						return err
					}
				}
			}
			_, err := z.Take()
			return err
		}, false},
		{"update", after, questions, func() error {
			for _, g := range groups {
				if _, err := difference(t.Context(), s, g); err != nil {
					return err
				}
			}
			return nil
		}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			targets := func(shared *Shared) func(int) Target {
				return func(i int) Target {
					target := fleetTarget(t, tc.image, s, shared, i)
					target.Base = func(wire.Made) *manifest.Manifest { return before }
					return target
				}
			}
			alone, sentAlone := serveFleet(t, 2, tc.questions, targets(nil))
			// Means of several, in turn: what else the machine does matters.
			const rounds = 3
			var once, used time.Duration
			var sent int64
			for round := range rounds {
				start := cpu(t)
				if err := tc.compress(); err != nil {
					t.Fatal(err)
				}
				once += (cpu(t) - start) / rounds
				stop := func() {}
				if round == 0 {
					stop = profiled(t, tc.name)
				}
				shared := NewShared(func() (*manifest.Manifest, error) { return tc.image, nil }, s, t.TempDir())
				took, each := serveFleet(t, nodes, tc.questions, targets(shared))
				stop()
				if err := shared.Close(); err != nil {
					t.Error(err)
				}
				used, sent = used+took/rounds, each
			}
			start := cpu(t)
			out := &sealed{aead: fleetCipher()}
			packet := make([]byte, sealedPacket)
			for left := sent; left > 0; left -= sealedPacket {
				out.seal(packet[:min(left, sealedPacket)])
			}
			encrypt := cpu(t) - start
			bar := once + nodes*encrypt
			t.Logf("%d MB, %d MB sent to each (%.1f%% of what is sent to one alone)", tc.image.TotalSize()/1e6, sent/1e6, 100*float64(sent)/float64(sentAlone))
			what := "compressing"
			if tc.read {
				what = "reading and compressing"
			}
			t.Logf("%s once %v, encrypting for one %v: the bar is %v", what, once, encrypt, bar)
			t.Logf("%d nodes: %v, %.2f of the bar; without sharing %v for each", nodes, used, float64(used)/float64(bar), alone/2)
			if float64(used) > most*float64(bar) {
				t.Errorf("%d nodes take more than %v of the bar", nodes, most)
			}
			if float64(sent) > grows*float64(sentAlone) {
				t.Errorf("each node gets more than %v of what it gets alone", grows)
			}
		})
	}
}

// profiled profiles what follows until stop is called, where that is asked for.
func profiled(t *testing.T, name string) (stop func()) {
	dir := os.Getenv("INGOT_BENCH_PROFILE")
	if dir == "" {
		return func() {}
	}
	f, err := os.Create(filepath.Join(dir, name+".pprof"))
	if err == nil {
		err = pprof.StartCPUProfile(f)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		pprof.StopCPUProfile()
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func fleetTarget(t *testing.T, image *manifest.Manifest, s Source, shared *Shared, node int) Target {
	over, err := NewOverlay([]OverlayFile{{Path: "/hostname", Mode: 0o644, Content: fmt.Appendf(nil, "node%d\n", node)}, {Path: "/key", Mode: 0o600, Content: words(uint64(node), 2000)}})
	if err != nil {
		t.Error(err)
		return Target{}
	}
	m := Lay(image, over.Manifest)
	return Target{ID: m.ID(), Manifest: func() (*manifest.Manifest, error) { return m, nil }, Source: Layered{Data: over.Data, Below: s}, Shared: shared}
}
