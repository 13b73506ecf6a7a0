package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// backends are what the conformance suite runs on: empty, opened as often as
// a test likes, as several processes would.
func backends(t *testing.T, run func(t *testing.T, open func() Backend)) {
	t.Helper()
	t.Run("Dir", func(t *testing.T) {
		root := t.TempDir()
		run(t, func() Backend { return NewDir(root) })
	})
	t.Run("Memory", func(t *testing.T) {
		m := NewMemory()
		run(t, func() Backend { return m })
	})
}

func initStore(t *testing.T, b Backend) *Store {
	t.Helper()
	s, err := InitBackend(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openStore(t *testing.T, b Backend) *Store {
	t.Helper()
	s, err := OpenBackend(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// content makes n chunks of half-compressible data, the same for the same seed.
func content(seed uint64, n int) [][]byte {
	rng := rand.New(rand.NewPCG(seed, 7))
	out := make([][]byte, n)
	for i := range out {
		b := make([]byte, 1+rng.IntN(60<<10))
		for j := range b {
			if j%2 == 0 {
				b[j] = byte(rng.Uint32())
			}
		}
		out[i] = b
	}
	return out
}

// packs returns the packs of a store, in no order.
func (s *Store) packs(ctx context.Context) ([]digest.ID, error) {
	if err := s.Refresh(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]digest.ID, 0, len(s.index.packs))
	for id := range s.index.packs {
		ids = append(ids, id)
	}
	return ids, nil
}

// put writes chunks and returns a manifest with one file for each.
func put(t *testing.T, s *Store, chunks [][]byte) *manifest.Manifest {
	t.Helper()
	m, err := putErr(t.Context(), s, chunks)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func putErr(ctx context.Context, s *Store, chunks [][]byte) (*manifest.Manifest, error) {
	w, err := s.NewWriter(ctx)
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	m := &manifest.Manifest{Entries: []entry.Entry{{Path: ".", Type: entry.Dir, Mode: 0755}}}
	for i, c := range chunks {
		id := digest.Of(c)
		if err := w.Put(ctx, id, c); err != nil {
			return nil, err
		}
		m.Entries = append(m.Entries, entry.Entry{Path: fmt.Sprintf("f%06d", i), Type: entry.File, Mode: 0644,
			Size: int64(len(c)), Chunks: []entry.Chunk{{ID: id, Size: uint32(len(c))}}})
	}
	return m, w.Close()
}

// publish stores an image under a name.
func publish(ctx context.Context, s *Store, ref string, chunks [][]byte) (digest.ID, error) {
	r, err := ParseRef(ref)
	if err != nil {
		return digest.ID{}, err
	}
	m, err := putErr(ctx, s, chunks)
	if err != nil {
		return digest.ID{}, err
	}
	id, err := s.PutManifest(ctx, m)
	if err != nil {
		return digest.ID{}, err
	}
	return id, s.SetRef(ctx, r, Image{Digest: id, Source: "test"})
}

// fetchAll checks that all chunks come, once each, and right.
func fetchAll(t *testing.T, s *Store, chunks [][]byte) {
	t.Helper()
	want := map[digest.ID][]byte{}
	var ids []digest.ID
	for _, c := range chunks {
		want[digest.Of(c)] = c
		ids = append(ids, digest.Of(c))
	}
	var mu sync.Mutex
	err := s.Fetch(t.Context(), append(ids, ids...), func(id digest.ID, data []byte) error {
		mu.Lock()
		defer mu.Unlock()
		if !bytes.Equal(want[id], data) {
			t.Errorf("chunk %s twice, unasked or wrong", id.Short())
		}
		delete(want, id)
		return nil
	})
	if err != nil || len(want) > 0 {
		t.Errorf("fetch: %v, %d chunks did not come", err, len(want))
	}
}

func verifyClean(t *testing.T, s *Store) Report {
	t.Helper()
	r, err := s.Verify(t.Context(), VerifyOptions{})
	if err != nil || r.Err() != nil {
		t.Errorf("verify: %v, %v", err, r.Err())
	}
	return r
}

func TestRoundTrip(t *testing.T) {
	backends(t, func(t *testing.T, open func() Backend) {
		s := initStore(t, open())
		chunks := content(1, 120)
		id, err := publish(t.Context(), s, "web:1", chunks)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := InitBackend(t.Context(), open()); err == nil {
			t.Error("made a store over a store")
		}
		for _, s := range []*Store{s, openStore(t, open())} {
			got, err := s.Resolve(t.Context(), "web:1")
			if err != nil || got != id {
				t.Fatalf("resolve: %s, %v", got.Short(), err)
			}
			m, err := s.Manifest(t.Context(), got)
			if err != nil || m.ID() != id {
				t.Fatalf("manifest: %v", err)
			}
			fetchAll(t, s, chunks)
			if r := verifyClean(t, s); r.Manifests != 1 || r.Packs == 0 || r.Bytes == 0 {
				t.Errorf("verify looked at nothing: %+v", r)
			}
		}
	})
}

func TestDeduplication(t *testing.T) {
	backends(t, func(t *testing.T, open func() Backend) {
		s := initStore(t, open())
		a, b := content(1, 40), content(2, 10)
		put(t, s, a)
		w, err := openStore(t, open()).NewWriter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range slices.Concat(a, b, b) {
			if err := w.Put(t.Context(), digest.Of(c), c); err != nil {
				t.Fatal(err)
			}
		}
		known := digest.Of(b[0])
		if miss, err := w.Missing(t.Context(), []digest.ID{known, {1}, {1}}); err != nil || len(miss) != 1 {
			t.Errorf("missing %v, %v", miss, err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if st := w.Stats(); st.Chunks != 60 || st.NewChunks != 10 || st.Packs != 1 || st.Stored == 0 {
			t.Errorf("stats %+v", st)
		}
		// The first store learns of the second's pack.
		fetchAll(t, s, slices.Concat(a, b))
		ids := []digest.ID{known, {1}, digest.Of(a[0]), {2}, {1}}
		if miss, err := s.Missing(t.Context(), ids); err != nil || !slices.Equal(miss, []digest.ID{{1}, {2}}) {
			t.Errorf("missing %v, %v", miss, err)
		}
	})
}

func TestMissing(t *testing.T) {
	backends(t, func(t *testing.T, open func() Backend) {
		if _, err := OpenBackend(t.Context(), open()); !errors.Is(err, ErrMissing) {
			t.Errorf("open nothing: %v", err)
		}
		s := initStore(t, open())
		m := put(t, s, content(1, 3))
		ctx, web := t.Context(), Ref{"web", "1"}
		bad := &manifest.Manifest{Entries: append(slices.Clone(m.Entries), entry.Entry{Path: "z", Type: entry.File, Size: 1,
			Chunks: []entry.Chunk{{ID: digest.ID{9}, Size: 1}}})}
		for name, f := range map[string]func() error{
			"fetch":             func() error { return s.Fetch(ctx, []digest.ID{{9}}, func(digest.ID, []byte) error { return nil }) },
			"locate":            func() error { _, err := s.Locate(ctx, []digest.ID{{9}}); return err },
			"manifest":          func() error { _, err := s.Manifest(ctx, digest.ID{9}); return err },
			"raw manifest":      func() error { _, err := s.RawManifest(ctx, digest.ID{9}); return err },
			"manifest's chunks": func() error { _, err := s.PutManifest(ctx, bad); return err },
			"name of nothing":   func() error { return s.SetRef(ctx, web, Image{Digest: digest.ID{9}}) },
			"name":              func() error { _, err := s.Ref(ctx, web); return err },
			"remove name":       func() error { return s.RemoveRef(ctx, web) },
			"resolve digest":    func() error { _, err := s.Resolve(ctx, digest.ID{9}.String()); return err },
			"resolve name":      func() error { _, err := s.Resolve(ctx, "nobody"); return err },
			"pack":              func() error { _, err := s.OpenPack(ctx, digest.ID{9}); return err },
			"index":             func() error { _, err := s.Index(ctx, digest.ID{9}); return err },
		} {
			if err := f(); !errors.Is(err, ErrMissing) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if refs, err := s.Refs(ctx); err != nil || len(refs) != 0 {
			t.Errorf("refs %v, %v", refs, err)
		}
		if err := s.Fetch(ctx, nil, nil); err != nil {
			t.Errorf("fetch nothing: %v", err)
		}
	})
}

func TestConcurrentWriters(t *testing.T) {
	backends(t, func(t *testing.T, open func() Backend) {
		initStore(t, open())
		common := content(100, 30)
		var wg sync.WaitGroup
		for i := range 4 {
			s := openStore(t, open())
			wg.Go(func() {
				if _, err := publish(context.Background(), s, fmt.Sprintf("img:%d", i), slices.Concat(common, content(uint64(i), 20))); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		s := openStore(t, open())
		fetchAll(t, s, slices.Concat(common, content(0, 20), content(1, 20), content(2, 20), content(3, 20)))
		if refs, err := s.Refs(t.Context()); len(refs) != 4 || err != nil {
			t.Errorf("refs %v, %v", refs, err)
		}
		verifyClean(t, s)
	})
}

func TestOneWriterManyGoroutines(t *testing.T) {
	s := NewMem()
	w, err := s.NewWriter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	chunks := content(1, 200)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range chunks {
				c := chunks[(i+g*50)%len(chunks)]
				if err := w.Put(context.Background(), digest.Of(c), c); err != nil {
					t.Error(err)
				}
				if i == 100 && g == 0 {
					if err := w.Flush(context.Background()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if st := w.Stats(); st.NewChunks != 200 || st.Packs == 0 {
		t.Errorf("stats %+v", st)
	}
	fetchAll(t, s, chunks)
}

func TestFlushIsDurable(t *testing.T) {
	backends(t, func(t *testing.T, open func() Backend) {
		s := initStore(t, open())
		w, err := s.NewWriter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		chunks := content(1, 5)
		for _, c := range chunks {
			if err := w.Put(t.Context(), digest.Of(c), c); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		fetchAll(t, openStore(t, open()), chunks)
		w.Abort()
		if err := w.Put(t.Context(), digest.ID{1}, []byte("x")); err == nil {
			t.Error("put after abort")
		}
		if err := w.Close(); err != nil {
			t.Errorf("close after abort: %v", err)
		}
	})
}

func TestCancelled(t *testing.T) {
	backends(t, func(t *testing.T, open func() Backend) {
		s := initStore(t, open())
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w, err := s.NewWriter(ctx)
		if err != nil {
			t.Fatal(err)
		}
		chunks := content(1, 60)
		for i, c := range chunks {
			if i == 50 {
				cancel()
			}
			if err := w.Put(ctx, digest.Of(c), c); (err == nil) != (i < 50) {
				t.Fatalf("put %d: %v", i, err)
			}
		}
		if err := w.Close(); !errors.Is(err, context.Canceled) {
			t.Errorf("close: %v", err)
		}
		if packs, err := s.packs(t.Context()); len(packs) != 0 || err != nil {
			t.Errorf("packs %v, %v", packs, err)
		}
		put(t, s, chunks)
		for what, err := range map[string]error{
			"fetch":  s.Fetch(ctx, []digest.ID{digest.Of(chunks[0])}, func(digest.ID, []byte) error { return nil }),
			"verify": func() error { _, err := s.Verify(ctx, VerifyOptions{}); return err }(),
			"lock":   func() error { _, err := s.Lock(ctx, true); return err }(),
		} {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

func TestFetchStops(t *testing.T) {
	s := NewMem()
	chunks := content(1, 200)
	put(t, s, chunks)
	var ids []digest.ID
	for _, c := range chunks {
		ids = append(ids, digest.Of(c))
	}
	boom := errors.New("boom")
	if err := s.Fetch(t.Context(), ids, func(digest.ID, []byte) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("callback: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := s.Fetch(ctx, ids, func(digest.ID, []byte) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// What arrives slowly is durable before its pack is full: a crash loses no more.
func TestAPackThatTakesLongIsEnded(t *testing.T) {
	b := NewMemory()
	s, err := InitBackend(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.NewWriter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i := range 12 {
		data := bytes.Repeat([]byte{byte(i)}, 1<<20)
		if err := w.Put(t.Context(), digest.Of(data), data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil || w.Stats().Packs != 1 {
		t.Fatalf("quick: %d packs, %v", w.Stats().Packs, err)
	}
	w, err = s.newWriter(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i := range 12 {
		data := bytes.Repeat([]byte{byte(i), 'x'}, 1<<19)
		if err := w.Put(t.Context(), digest.Of(data), data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil || w.Stats().Packs != 12 {
		t.Errorf("slow: %d packs, %v", w.Stats().Packs, err)
	}
}
