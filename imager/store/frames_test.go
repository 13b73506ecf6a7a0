package store

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

// holds checks that a frame is of these chunks.
func holds(t *testing.T, s *Store, chunks []entry.Chunk, data map[digest.ID][]byte) {
	t.Helper()
	var want []byte
	for _, c := range chunks {
		want = append(want, data[c.ID]...)
	}
	f, err := s.Frame(t.Context(), chunks, []byte("before"))
	if err != nil || !bytes.HasPrefix(f, []byte("before")) {
		t.Fatalf("Frame = %d bytes, %v", len(f), err)
	}
	dec, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	if got, err := dec.DecodeAll(f[len("before"):], nil); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a frame of %d bytes instead of %d: %v", len(got), len(want), err)
	}
}

// What is in frames of which most is asked for is found in them, in any order of
// asking; what is not, apart.
func TestFrames(t *testing.T) {
	backends(t, func(t *testing.T, open func() Backend) {
		s := initStore(t, open())
		var ids []digest.ID
		data := map[digest.ID][]byte{}
		for seed := range uint64(2) { // packs
			chunks := content(10+seed, 300)
			put(t, s, chunks)
			for _, c := range chunks {
				if id := digest.Of(c); data[id] == nil {
					ids, data[id] = append(ids, id), c
				}
			}
		}
		slices.Reverse(ids)
		whole, rest, err := s.Frames(t.Context(), append(ids, ids[:10]...))
		if err != nil || len(whole) < 3 || len(rest) > 0 {
			t.Fatalf("%d frames, %d apart, %v", len(whole), len(rest), err)
		}
		seen := map[digest.ID]bool{}
		for _, chunks := range whole {
			holds(t, s, chunks, data)
			for _, c := range chunks {
				if seen[c.ID] || len(data[c.ID]) != int(c.Size) {
					t.Errorf("chunk %s of %d bytes twice, or of another length", c.ID.Short(), c.Size)
				}
				seen[c.ID] = true
			}
		}
		if len(seen) != len(data) {
			t.Errorf("%d of %d chunks", len(seen), len(data))
		}
		gone := whole[1][0].ID
		fewer, rest, err := s.Frames(t.Context(), slices.DeleteFunc(slices.Clone(ids), func(id digest.ID) bool { return id == gone }))
		if err != nil || len(fewer) != len(whole) || len(rest) > 0 || !slices.Equal(fewer[1], whole[1][1:]) {
			t.Fatalf("without a chunk: %d of %d frames, %d apart, %v", len(fewer), len(whole), len(rest), err)
		}
		holds(t, s, fewer[1], data)
		few := chunkIDs(whole[1])[:len(whole[1])/4]
		if none, rest, err := s.Frames(t.Context(), few); err != nil || len(none) > 0 || !slices.Equal(rest, few) {
			t.Errorf("a quarter of a frame: %d frames, %d apart, %v", len(none), len(rest), err)
		}
		if _, _, err := s.Frames(t.Context(), []digest.ID{ids[0], {1}}); !errors.Is(err, ErrMissing) {
			t.Errorf("a chunk that is not there: %v", err)
		}
		if _, err := s.Frame(t.Context(), []entry.Chunk{{ID: digest.ID{1}, Size: 1}}, nil); !errors.Is(err, ErrMissing) {
			t.Errorf("a frame that is not there: %v", err)
		}
	})
}

// Chunks that are in several frames, as after a prune, are made into one.
func TestFrameOfChunksFromAnywhere(t *testing.T) {
	s := NewMem()
	data := map[digest.ID][]byte{}
	var chunks []entry.Chunk
	for _, seed := range []uint64{1, 2} {
		all := content(seed, 40)
		put(t, s, all)
		for _, c := range all {
			data[digest.Of(c)] = c
		}
		chunks = append(chunks, entry.Chunk{ID: digest.Of(all[3]), Size: uint32(len(all[3]))}, entry.Chunk{ID: digest.Of(all[7]), Size: uint32(len(all[7]))})
	}
	holds(t, s, chunks, data)
}

// Any byte of a frame that is another is noticed, and the place named.
func TestDamagedFrame(t *testing.T) {
	b := NewMemory()
	s, pack, all := onePack(t, b)
	var ids []digest.ID
	for _, c := range all {
		ids = append(ids, digest.Of(c))
	}
	whole, _, err := s.Frames(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func([]byte) []byte{
		"a bit":     func(b []byte) []byte { b[len(packMagic)+200] ^= 4; return b },
		"the head":  func(b []byte) []byte { b[len(packMagic)+1] ^= 4; return b },
		"cut short": func(b []byte) []byte { return b[:len(packMagic)+20] },
	} {
		restore := damage(t, b, packName(pack), change)
		_, err := s.Frame(t.Context(), whole[0], nil)
		var corrupt *CorruptError
		if err == nil || !errors.As(err, &corrupt) && name != "cut short" || !strings.Contains(err.Error(), "pack "+pack.Short()) {
			t.Errorf("%s: %v", name, err)
		}
		restore()
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := s.Frame(ctx, whole[0], nil); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}
