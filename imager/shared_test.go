package imager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// counted is a store that counts how often each chunk is read.
type counted struct {
	chunks map[digest.ID][]byte

	mu   sync.Mutex
	read map[digest.ID]int
}

func (s *counted) Fetch(ctx context.Context, ids []digest.ID, fn func(digest.ID, []byte) error) error {
	for _, id := range ids {
		b, ok := s.chunks[id]
		if !ok {
			return fmt.Errorf("no chunk %s", id.Short())
		}
		s.mu.Lock()
		s.read[id]++
		s.mu.Unlock()
		if err := errors.Join(ctx.Err(), fn(id, b)); err != nil {
			return err
		}
	}
	return nil
}

// most is how often the chunk was read that was read most often.
func (s *counted) most() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.read {
		n = max(n, k)
	}
	return n
}

// words is text that compresses somewhat.
func words(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n+20)
	for len(b) < n {
		b = fmt.Appendf(b, "%d %x ", r.IntN(50), r.Uint32())
	}
	return b[:n]
}

// fleetImage is an image of so many files of 100 kB, of which the store has the content.
func fleetImage(files int, seed uint64) (*manifest.Manifest, *counted) {
	s := &counted{chunks: map[digest.ID][]byte{}, read: map[digest.ID]int{}}
	m := &manifest.Manifest{Entries: []entry.Entry{{Path: ".", Type: entry.Dir, Mode: 0o755}}}
	for i := range files {
		b := words(seed+uint64(i), 100_000)
		id := digest.Of(b)
		s.chunks[id] = b
		m.Entries = append(m.Entries, entry.Entry{Path: fmt.Sprintf("f%04d", i), Type: entry.File, Mode: 0o644, Size: int64(len(b)), Chunks: []entry.Chunk{{ID: id, Size: uint32(len(b))}}})
	}
	m.Sort()
	return m, s
}

// targetOf is the image for one node: with a name and a secret of its own, and
// a file of the image replaced.
func targetOf(t *testing.T, image *manifest.Manifest, store Source, shared *Shared, node int) Target {
	t.Helper()
	over, err := NewOverlay([]OverlayFile{
		{Path: "/hostname", Mode: 0o644, Content: fmt.Appendf(nil, "node%d\n", node)},
		{Path: "/secret", Mode: 0o600, Content: words(uint64(1000+node), 5000)},
		{Path: "/f0003", Mode: 0o644, Content: fmt.Appendf(nil, "its own %d\n", node)},
	})
	if err != nil {
		t.Fatal(err)
	}
	m := Lay(image, over.Manifest)
	return Target{ID: m.ID(), Manifest: func() (*manifest.Manifest, error) { return m, nil }, Source: Layered{Data: over.Data, Below: store}, Shared: shared}
}

// agent is the node's side of a push: it asks for what ask says of its target.
func agent(c *wire.Conn, kept wire.Kept, ask func(wire.Puller, *manifest.Manifest) error) error {
	if err := errors.Join(c.Expect(wire.KindRequest, nil, nil), c.SendKept(kept)); err != nil {
		return err
	}
	var m *manifest.Manifest
	if !kept.Has {
		err := c.Expect(wire.KindBase, nil, nil)
		if err != nil {
			return err
		}
		b, err := c.RecvBlob(nil)
		if err == nil && kept.Knows == nil {
			m, err = manifest.Decode(b)
		}
		if err != nil {
			return err
		}
	}
	err := c.SendPlan(wire.Plan{})
	if err == nil {
		_, err = c.Next(nil)
	}
	if err == nil {
		err = ask(wire.Puller{C: c}, m)
	}
	if err == nil {
		err = c.SendRaw(wire.KindSwitch, nil)
	}
	if err == nil {
		err = c.Expect(wire.KindSwitch, nil, nil)
	}
	if err != nil {
		return err
	}
	return c.Send(wire.KindAnswer, wire.Done{})
}

// pushOver runs a push against an agent that begins with kept and asks by ask.
func pushOver(ctx context.Context, target Target, kept wire.Kept, ask func(wire.Puller, *manifest.Manifest) error) (sent int64, pushed, asked error) {
	fromAgent, toController := io.Pipe()
	fromController, toAgent := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := agent(wire.New(fromController, toController), kept, ask)
		toController.CloseWithError(io.EOF)
		fromController.CloseWithError(errors.New("the node is gone"))
		ended <- err
	}()
	c := wire.New(fromAgent, toAgent)
	_, _, pushed = Push(ctx, c, wire.Request{}, target, Talk{Decide: func(wire.Plan) error { return nil }})
	toAgent.CloseWithError(io.EOF)
	fromAgent.CloseWithError(io.EOF)
	return c.Sent(), pushed, <-ended
}

// all asks for everything, and sees that it comes once.
func all(p wire.Puller, m *manifest.Manifest) error {
	want := map[digest.ID]bool{}
	var ids []digest.ID
	for i := range m.Entries {
		for _, c := range m.Entries[i].Chunks {
			want[c.ID] = true
			ids = append(ids, c.ID)
		}
	}
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	err := p.Fetch(context.Background(), ids, func(id digest.ID, data []byte) error {
		if !want[id] || digest.Of(data) != id {
			return fmt.Errorf("chunk %s came twice, or is another", id.Short())
		}
		delete(want, id)
		return nil
	})
	if err == nil && len(want) > 0 {
		err = fmt.Errorf("%d chunks did not come", len(want))
	}
	return err
}

func sharedOf(m *manifest.Manifest, s Source, dir string) *Shared {
	shared := NewShared(func() (*manifest.Manifest, error) { return m, nil }, s, dir)
	shared.least = 1 << 20
	return shared
}

// Twenty nodes, each with a name and a secret of its own and one file of the
// image replaced, have each chunk read once.
func TestTwentyNodesReadTheImageOnce(t *testing.T) {
	image, store := fleetImage(40, 1)
	dir := filepath.Join(t.TempDir(), "cache")
	shared := sharedOf(image, store, dir)
	var nodes sync.WaitGroup
	for i := range 20 {
		target := targetOf(t, image, store, shared, i)
		nodes.Go(func() {
			if _, pushed, asked := pushOver(t.Context(), target, wire.Kept{}, all); pushed != nil || asked != nil {
				t.Errorf("node %d: %v, %v", i, pushed, asked)
			}
		})
	}
	nodes.Wait()
	if n := len(shared.answers.made); n < 2 {
		t.Errorf("%d segments", n)
	}
	if n := store.most(); n != 1 || len(store.read) != 39 {
		t.Errorf("%d chunks were read, want 39, and one of them %d times", len(store.read), n)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("the file can be seen: %v, %v", left, err)
	}
	if err := shared.Close(); err != nil {
		t.Error(err)
	}
}

// A node that goes away in the middle of its answer disturbs nobody, whoever
// asked first.
func TestOneNodeBreaks(t *testing.T) {
	image, store := fleetImage(40, 1)
	shared := sharedOf(image, store, t.TempDir())
	defer shared.Close()
	gone := errors.New("gone")
	came := make(chan struct{})
	var nodes sync.WaitGroup
	nodes.Go(func() {
		target := targetOf(t, image, store, shared, 0)
		_, pushed, asked := pushOver(t.Context(), target, wire.Kept{}, func(p wire.Puller, m *manifest.Manifest) error {
			n := 0
			var ids []digest.ID
			for id := range ChunksOf(m, "") {
				ids = append(ids, id)
			}
			return p.Fetch(t.Context(), ids, func(digest.ID, []byte) error {
				if n++; n == 10 {
					close(came)
					return gone
				}
				return nil
			})
		})
		if pushed == nil || !errors.Is(asked, gone) {
			t.Errorf("the node that broke: %v, %v", pushed, asked)
		}
	})
	<-came
	for i := range 5 {
		target := targetOf(t, image, store, shared, 1+i)
		nodes.Go(func() {
			if _, pushed, asked := pushOver(t.Context(), target, wire.Kept{}, all); pushed != nil || asked != nil {
				t.Errorf("node %d: %v, %v", i, pushed, asked)
			}
		})
	}
	nodes.Wait()
}

// Where nothing can be kept, or no more, all nodes get what they asked for.
func TestNothingCanBeKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	image, store := fleetImage(40, 1)
	for name, tc := range map[string]struct {
		dir   string
		limit int64
		spoil func(*answers)
		want  string
	}{
		"no directory":   {file, maxKept, nil, "not a directory"},
		"nothing":        {t.TempDir(), 0, nil, "0 bytes are kept"},
		"one segment":    {t.TempDir(), 600_000, nil, "bytes are kept"},
		"a broken disk":  {t.TempDir(), maxKept, func(a *answers) { a.file.Close(); clear(a.made) }, "file already closed"},
		"a file cut off": {t.TempDir(), maxKept, func(a *answers) { a.file.Truncate(100) }, "cannot be read again"},
	} {
		t.Run(name, func(t *testing.T) {
			shared := sharedOf(image, store, tc.dir)
			shared.answers.limit = tc.limit
			var nodes sync.WaitGroup
			for i := range 3 {
				target := targetOf(t, image, store, shared, i)
				nodes.Go(func() {
					if _, pushed, asked := pushOver(t.Context(), target, wire.Kept{}, all); pushed != nil || asked != nil {
						t.Errorf("node %d: %v, %v", i, pushed, asked)
					}
				})
				if tc.spoil != nil && i == 0 {
					nodes.Wait()
					tc.spoil(shared.answers)
				}
			}
			nodes.Wait()
			if n := len(shared.answers.made); tc.limit == 0 && n != 0 {
				t.Errorf("%d answers are held in memory", n)
			}
			if err := shared.Close(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Close = %v, want %q", err, tc.want)
			}
		})
	}
}

// What another node got before is not given to one whose target lacks it: a
// file of the image that it has another of, or what is another node's own.
func TestSharedIsOfTheTarget(t *testing.T) {
	image, store := fleetImage(20, 1)
	shared := sharedOf(image, store, t.TempDir())
	defer shared.Close()
	fetch := func(of digest.ID) func(wire.Puller, *manifest.Manifest) error {
		return func(p wire.Puller, _ *manifest.Manifest) error {
			return p.Fetch(t.Context(), []digest.ID{of}, func(digest.ID, []byte) error { return nil })
		}
	}
	e, _ := image.Lookup("f0003")
	id := e.Chunks[0].ID
	whole := Target{ID: image.ID(), Manifest: func() (*manifest.Manifest, error) { return image, nil }, Source: store, Shared: shared}
	if _, pushed, asked := pushOver(t.Context(), whole, wire.Kept{}, fetch(id)); pushed != nil || asked != nil {
		t.Fatal(pushed, asked)
	}
	for _, of := range []digest.ID{id, digest.Of(words(1001, 5000))} {
		_, pushed, asked := pushOver(t.Context(), targetOf(t, image, store, shared, 0), wire.Kept{}, fetch(of))
		if pushed == nil || !strings.Contains(pushed.Error(), "not part of the image") || asked == nil {
			t.Errorf("a chunk that is not of the target: %v, %v", pushed, asked)
		}
	}
}

// Groups are read and compressed once, and one with what is a node's own is
// not shared.
func TestDifferencesAreMadeOnce(t *testing.T) {
	before, store := fleetImage(50, 1)
	image := &manifest.Manifest{Entries: slices.Clone(before.Entries)}
	for i := range image.Entries {
		if e := &image.Entries[i]; e.Type == entry.File {
			b := append([]byte("new "), store.chunks[e.Chunks[0].ID]...)
			e.Size, e.Chunks = int64(len(b)), []entry.Chunk{{ID: digest.Of(b), Size: uint32(len(b))}}
			store.chunks[e.Chunks[0].ID] = b
		}
	}
	shared := sharedOf(image, store, t.TempDir())
	defer shared.Close()
	secrets := map[digest.ID]bool{} // which the store has, too: somebody captured these nodes
	for i := range 20 {
		b := words(uint64(1000+i), 5000)
		secrets[digest.Of(b)], store.chunks[digest.Of(b)] = true, b
	}
	var nodes sync.WaitGroup
	for i := range 20 {
		target := targetOf(t, image, store, shared, i)
		base := targetOf(t, before, store, nil, i)
		target.Base = func(wire.Made) *manifest.Manifest { m, _ := base.Manifest(); return m }
		m, _ := target.Manifest()
		nodes.Go(func() {
			var groups []wire.Alike
			want := map[digest.ID]bool{}
			for j := range image.Entries {
				e, old := &image.Entries[j], &before.Entries[j]
				if e.Type == entry.File && e.Path != "f0003" {
					groups = append(groups, wire.Alike{Wanted: e.Chunks, Like: old.Chunks, Content: func() ([]byte, error) { return store.chunks[old.Chunks[0].ID], nil }})
					want[e.Chunks[0].ID] = true
				}
			}
			own, _ := m.Lookup("secret")
			groups = append(groups, wire.Alike{Wanted: own.Chunks, Like: before.Entries[1].Chunks, Content: func() ([]byte, error) { return store.chunks[before.Entries[1].Chunks[0].ID], nil }})
			want[own.Chunks[0].ID] = true
			sent, pushed, asked := pushOver(t.Context(), target, wire.Kept{Has: true, Runs: &wire.Made{Target: base.ID}}, func(p wire.Puller, _ *manifest.Manifest) error {
				return p.FetchAlike(t.Context(), groups, func(id digest.ID, data []byte) error {
					delete(want, id)
					return nil
				})
			})
			if pushed != nil || asked != nil || len(want) > 0 || sent > 20_000 {
				t.Errorf("node %d: %d chunks did not come, %d bytes sent, %v, %v", i, len(want), sent, pushed, asked)
			}
		})
	}
	nodes.Wait()
	for id, n := range store.read {
		if secrets[id] {
			t.Errorf("a node's own chunk %s was read to be shared", id.Short())
		}
		if id != before.Entries[1].Chunks[0].ID && n != 1 { // each node's secret was compared with this one
			t.Errorf("chunk %s was read %d times", id.Short(), n)
		}
	}
	if n := len(shared.answers.made); n != 49 {
		t.Errorf("%d answers are kept, want 49", n)
	}
}

// Lists that are almost the same have almost all of their segments in common,
// in whatever order they come.
func TestSegmentsOfAlmostTheSame(t *testing.T) {
	var l chunkList
	l.at = map[digest.ID]uint32{}
	var ids []digest.ID
	var total int
	for i := range 20_000 {
		c := entry.Chunk{ID: digest.Of(fmt.Appendf(nil, "chunk %d", i)), Size: uint32(500 + i*7919%60_000)}
		l.at[c.ID] = uint32(i)
		l.all = append(l.all, c)
		total += int(c.Size)
		ids = append(ids, c.ID)
	}
	keys := func(ids []digest.ID) map[digest.ID]bool {
		out := map[digest.ID]bool{}
		n := 0
		ours, others := split(append(slices.Clone(ids), ids[0], digest.ID{1}), l.at)
		for _, s := range l.segments(ours, leastSegment) {
			out[keyOf(s)] = true
			n += len(s)
			var size int
			for _, id := range s {
				size += int(l.all[l.at[id]].Size)
			}
			if size >= 3*leastSegment+64<<10 {
				t.Errorf("a segment of %d bytes", size)
			}
		}
		if n != len(ids) || len(others) != 1 {
			t.Errorf("%d chunks of %d are in a segment, %d are not of the image", n, len(ids), len(others))
		}
		return out
	}
	whole := keys(ids)
	if n := len(whole); n < total/leastSegment/2 || n > total/leastSegment {
		t.Errorf("%d segments of %d bytes", n, total)
	}
	mixed := slices.Clone(ids)
	rand.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
	fewer := slices.DeleteFunc(slices.Clone(mixed), func(id digest.ID) bool { r := l.at[id]; return r == 0 || r == 10_000 })
	for name, tc := range map[string]struct {
		ids  []digest.ID
		lost int
	}{"another order": {mixed, 0}, "without two": {fewer, 8}} {
		lost := 0
		for k := range keys(tc.ids) {
			if !whole[k] {
				lost++
			}
		}
		if lost > tc.lost {
			t.Errorf("%s: %d of %d segments are others", name, lost, len(whole))
		}
	}
}
