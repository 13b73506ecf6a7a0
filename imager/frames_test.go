package imager

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"ingot/imager/store"
	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// framed is a store that counts how often each frame, and each other chunk, is read.
type framed struct {
	*store.Store
	mu     sync.Mutex
	frames map[digest.ID]int // by the first chunk
	chunks map[digest.ID]int
	asked  map[digest.ID]bool // whether it is in a frame
}

func (s *framed) Frames(ctx context.Context, ids []digest.ID) (frames [][]entry.Chunk, rest []digest.ID, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		s.asked[id] = true
	}
	return s.Store.Frames(ctx, ids)
}

func (s *framed) Frame(ctx context.Context, chunks []entry.Chunk, into []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frames[chunks[0].ID]++
	return s.Store.Frame(ctx, chunks, into)
}

func (s *framed) Fetch(ctx context.Context, ids []digest.ID, fn func(digest.ID, []byte) error) error {
	s.mu.Lock()
	for _, id := range ids {
		s.chunks[id]++
	}
	s.mu.Unlock()
	return s.Store.Fetch(ctx, ids, fn)
}

// fill puts the content of an image into s.
func fill(t *testing.T, s *store.Store, image *manifest.Manifest, content *counted) {
	t.Helper()
	w, err := s.NewWriter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range image.Entries[1:] {
		if err := w.Put(t.Context(), e.Chunks[0].ID, content.chunks[e.Chunks[0].ID]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// What nodes want frames of is read and checked once, and sent as the store has
// it, or would: each node has a part of one frame replaced. What is one node's
// own is in nothing shared.
func TestFramesOfTheStoreAreSentAsTheyAre(t *testing.T) {
	image, content := fleetImage(60, 500)
	mem := store.NewMem()
	fill(t, mem, image, content)
	for _, tc := range []struct {
		nodes  int
		shared bool
	}{{1, false}, {20, true}} {
		s := &framed{Store: mem, frames: map[digest.ID]int{}, chunks: map[digest.ID]int{}, asked: map[digest.ID]bool{}}
		var shared *Shared
		if tc.shared {
			shared = sharedOf(image, s, t.TempDir())
		}
		var nodes sync.WaitGroup
		for i := range tc.nodes {
			target := targetOf(t, image, s, shared, i)
			nodes.Go(func() {
				if _, pushed, asked := pushOver(t.Context(), target, wire.Kept{}, all); pushed != nil || asked != nil {
					t.Errorf("node %d: %v, %v", i, pushed, asked)
				}
			})
		}
		nodes.Wait()
		most := 0
		for _, n := range s.frames {
			most = max(most, n)
		}
		if len(s.frames) != 6 || most != 1 || len(s.chunks) > 0 {
			t.Errorf("%d nodes: %d frames, one read %d times, and %d chunks apart, want 6, once, and none", tc.nodes, len(s.frames), most, len(s.chunks))
		}
		for id := range s.asked {
			if content.chunks[id] == nil {
				t.Errorf("%d nodes: chunk %s is a node's own", tc.nodes, id.Short())
			}
		}
		if err := shared.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Damage of the store ends the push with where it is, whether the frame is
// wanted whole or in part; nothing of it reaches a node.
func TestDamagedFrameIsNotSent(t *testing.T) {
	image, content := fleetImage(30, 900)
	dir := filepath.Join(t.TempDir(), "store")
	s, err := store.Init(dir)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, s, image, content)
	packs, err := filepath.Glob(dir + "/packs/*/*")
	if err != nil || len(packs) != 1 {
		t.Fatalf("packs %v: %v", packs, err)
	}
	good, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		at     int
		shared bool
	}{"of a part": {1000, true}, "whole": {len(good) / 2, true}, "for one node": {len(good) / 2, false}} {
		bad := bytes.Clone(good)
		bad[tc.at] ^= 16
		if err := errors.Join(os.Chmod(packs[0], 0o600), os.WriteFile(packs[0], bad, 0o600)); err != nil {
			t.Fatal(err)
		}
		var shared *Shared
		if tc.shared {
			shared = sharedOf(image, s, t.TempDir())
		}
		_, pushed, asked := pushOver(t.Context(), targetOf(t, image, s, shared, 1), wire.Kept{}, all)
		var corrupt *store.CorruptError
		if !errors.As(pushed, &corrupt) || !strings.Contains(pushed.Error(), "pack "+filepath.Base(packs[0])) {
			t.Errorf("%s: %v", name, pushed)
		}
		if asked == nil || strings.Contains(asked.Error(), "its content is") {
			t.Errorf("%s: the node says %v", name, asked)
		}
		if err := shared.Close(); err != nil {
			t.Error(err)
		}
	}
}
