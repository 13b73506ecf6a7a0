package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

// object reads what a backend holds, past all checks.
func object(t *testing.T, b Backend, name string) []byte {
	t.Helper()
	raw, err := readAll(t.Context(), b, name, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func damage(t *testing.T, b Backend, name string, f func([]byte) []byte) (restore func()) {
	t.Helper()
	good := object(t, b, name)
	if err := b.Put(t.Context(), name, f(bytes.Clone(good))); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := b.Put(t.Context(), name, good); err != nil {
			t.Fatal(err)
		}
	}
}

// onePack returns a store with two images in two packs, and the second's.
func onePack(t *testing.T, b Backend) (s *Store, pack digest.ID, chunks [][]byte) {
	t.Helper()
	s = initStore(t, b)
	if _, err := publish(t.Context(), s, "other:1", content(50, 10)); err != nil {
		t.Fatal(err)
	}
	before, err := s.packs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	chunks = content(1, 80)
	if _, err := publish(t.Context(), s, "web:1", chunks); err != nil {
		t.Fatal(err)
	}
	after, err := s.packs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	after = slices.DeleteFunc(after, func(id digest.ID) bool { return slices.Contains(before, id) })
	if len(after) != 1 {
		t.Fatalf("packs %v", after)
	}
	return s, after[0], chunks
}

func TestEveryDamageOfAPackIsNamed(t *testing.T) {
	backends(t, func(t *testing.T, open func() Backend) {
		b := open()
		_, id, chunks := onePack(t, b)
		size := len(object(t, b, packName(id)))
		rng := rand.New(rand.NewPCG(1, 1))
		tests := map[string]func([]byte) []byte{
			"truncated by 1":   func(b []byte) []byte { return b[:len(b)-1] },
			"truncated half":   func(b []byte) []byte { return b[:len(b)/2] },
			"emptied":          func(b []byte) []byte { return nil },
			"longer":           func(b []byte) []byte { return append(b, 0) },
			"first byte":       func(b []byte) []byte { b[0]++; return b },
			"last byte":        func(b []byte) []byte { b[len(b)-1]++; return b },
			"zeros in it":      func(b []byte) []byte { clear(b[size/3 : size/2]); return b },
			"something else":   func(b []byte) []byte { return bytes.Repeat([]byte("x"), len(b)) },
			"in the own index": func(b []byte) []byte { b[len(b)-trailerLen-7] ^= 4; return b },
		}
		for i := range 40 {
			at, bit := rng.IntN(size), byte(1<<rng.IntN(8))
			tests["flipped "+string(rune('A'+i))] = func(b []byte) []byte { b[at] ^= bit; return b }
		}
		for name, f := range tests {
			restore := damage(t, b, packName(id), f)
			s := openStore(t, b)
			r, err := s.Verify(t.Context(), VerifyOptions{})
			if err != nil || len(r.Damage) != 1 || r.Damage[0].Object != "pack" || r.Damage[0].ID != id.String() {
				t.Errorf("%s: %v, %+v", name, err, r.Damage)
				restore()
				continue
			}
			if d := r.Damage[0]; len(d.Chunks) > 0 != (len(d.Images) > 0) || len(d.Images) > 0 && d.Images[0] != "web:1" {
				t.Errorf("%s: %d chunks, but images %q", name, len(d.Chunks), d.Images)
			}
			fetchOrFail(t, s, chunks, r.Damage[0].Chunks)
			restore()
		}
		verifyClean(t, openStore(t, b))
	})
}

// fetchOrFail checks that Fetch gives every chunk as it should be or fails,
// and fails when the verification said that it would.
func fetchOrFail(t *testing.T, s *Store, chunks [][]byte, lost []digest.ID) {
	t.Helper()
	var ids []digest.ID
	for _, c := range chunks {
		ids = append(ids, digest.Of(c))
	}
	err := s.Fetch(t.Context(), ids, func(id digest.ID, data []byte) error {
		if digest.Of(data) != id {
			t.Errorf("chunk %s is wrong", id.Short())
		}
		return nil
	})
	var ce *CorruptError
	if (err != nil) != (len(lost) > 0) {
		t.Errorf("fetch: %v, verify lost %d chunks", err, len(lost))
	}
	if err != nil && !errors.As(err, &ce) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("fetch does not say what is wrong: %v", err)
	}
	if err != nil && !strings.Contains(err.Error(), "pack ") {
		t.Errorf("fetch does not name the pack: %v", err)
	}
}

func TestAMissingPackIsNamed(t *testing.T) {
	backends(t, func(t *testing.T, open func() Backend) {
		b := open()
		s, id, chunks := onePack(t, b)
		if err := b.Remove(t.Context(), packName(id)); err != nil {
			t.Fatal(err)
		}
		r, err := s.Verify(t.Context(), VerifyOptions{})
		if err != nil || len(r.Damage) != 1 || !errors.Is(r.Err(), ErrMissing) || !slices.Equal(r.Damage[0].Images, []string{"web:1"}) {
			t.Errorf("%v, %+v", err, r.Damage)
		}
		if err := s.Fetch(t.Context(), []digest.ID{digest.Of(chunks[0])}, nil); !errors.Is(err, ErrMissing) {
			t.Errorf("fetch: %v", err)
		}
		// Its index gone too: no pack has the chunks.
		if err := b.Remove(t.Context(), indexName(id)); err != nil {
			t.Fatal(err)
		}
		r, err = openStore(t, b).Verify(t.Context(), VerifyOptions{})
		if err != nil || len(r.Damage) != 1 || r.Damage[0].Object != "manifest" || len(r.Damage[0].Chunks) != 80 {
			t.Errorf("%v, %+v", err, r.Damage)
		}
	})
}

func TestDamagedManifestsNamesAndIndexes(t *testing.T) {
	backends(t, func(t *testing.T, open func() Backend) {
		b := open()
		s, pack, chunks := onePack(t, b)
		id, err := s.Resolve(t.Context(), "web:1")
		if err != nil {
			t.Fatal(err)
		}
		size := len(object(t, b, manifestName(id)))
		for _, at := range []int{0, 5, size / 2, size - 1} {
			restore := damage(t, b, manifestName(id), func(b []byte) []byte { b[at] ^= 0x10; return b })
			if _, err := s.Manifest(t.Context(), id); err == nil {
				t.Errorf("manifest flipped at %d is read", at)
			}
			r, err := s.Verify(t.Context(), VerifyOptions{})
			if err != nil || len(r.Damage) != 1 || r.Damage[0].ID != id.String() {
				t.Errorf("manifest flipped at %d: %v, %+v", at, err, r.Damage)
			}
			restore()
		}
		// A good manifest in the place of another.
		other, err := s.Resolve(t.Context(), "other:1")
		if err != nil {
			t.Fatal(err)
		}
		restore := damage(t, b, manifestName(id), func([]byte) []byte { return object(t, b, manifestName(other)) })
		var ce *CorruptError
		if _, err := s.Manifest(t.Context(), id); !errors.As(err, &ce) || ce.Got != other || ce.ID != id {
			t.Errorf("swapped manifest: %v", err)
		}
		restore()

		restore = damage(t, b, "names/web/1", func([]byte) []byte { return []byte("{") })
		if r, err := s.Verify(t.Context(), VerifyOptions{}); err != nil || len(r.Damage) != 1 || r.Damage[0].Object != "name" {
			t.Errorf("name: %v, %+v", err, r.Damage)
		}
		restore()

		// A damaged index is nothing lost: the pack has its own.
		for _, f := range []func([]byte) []byte{
			func(b []byte) []byte { return b[:len(b)/2] }, func([]byte) []byte { return nil }, func(b []byte) []byte { b[9] ^= 1; return b },
		} {
			restore = damage(t, b, indexName(pack), f)
			fetchAll(t, openStore(t, b), chunks)
			restore()
		}
		if err := b.Remove(t.Context(), manifestName(id)); err != nil {
			t.Fatal(err)
		}
		if r, err := s.Verify(t.Context(), VerifyOptions{}); err != nil || !errors.Is(r.Err(), ErrMissing) {
			t.Errorf("missing manifest: %v, %+v", err, r)
		}
	})
}

func TestQuarantineLetsACaptureRepair(t *testing.T) {
	backends(t, func(t *testing.T, open func() Backend) {
		b := open()
		s, id, chunks := onePack(t, b)
		damage(t, b, packName(id), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		if err := s.Quarantine(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		put(t, s, chunks)
		fetchAll(t, s, chunks)
		verifyClean(t, s)
	})
}

func TestVerifyCached(t *testing.T) {
	root := t.TempDir()
	b := NewDir(root)
	s, pack, _ := onePack(t, b)
	id, err := s.Resolve(t.Context(), "web:1")
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(150 * time.Millisecond) // or else the packs are too young to be remembered
	read := func(want int) {
		t.Helper()
		// Another process each time.
		r, err := openStore(t, NewDir(root)).Verify(t.Context(), VerifyOptions{Manifest: id, Cached: true})
		if err != nil || r.Packs != 1 || r.Read != want {
			t.Errorf("%v, read %d of %d packs; want %d", err, r.Read, r.Packs, want)
		}
	}
	read(1)
	read(0)
	if err := s.VerifyCached(t.Context(), id); err != nil {
		t.Error(err)
	}
	// One byte, in place, with the times put back.
	p := filepath.Join(root, packName(pack))
	st, err := os.Stat(p)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	one := make([]byte, 1)
	if _, err := f.ReadAt(one, st.Size()/3); err != nil {
		t.Fatal(err)
	}
	one[0] ^= 0x20
	if _, err := f.WriteAt(one, st.Size()/3); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := os.Chtimes(p, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
	var ce *CorruptError
	if err := s.VerifyCached(t.Context(), id); !errors.As(err, &ce) || !strings.Contains(err.Error(), "web:1") {
		t.Errorf("a flipped byte: %v", err)
	}
	if err := s.VerifyCached(t.Context(), id); err == nil {
		t.Error("damage was remembered as good")
	}
	other, err := s.Resolve(t.Context(), "other:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.VerifyCached(t.Context(), other); err != nil {
		t.Errorf("an image that is not concerned: %v", err)
	}
	// The cache itself may be anything.
	if err := b.Put(t.Context(), verifiedName, []byte(`{"x":`)); err != nil {
		t.Fatal(err)
	}
	if err := s.VerifyCached(t.Context(), other); err != nil {
		t.Errorf("with a torn cache: %v", err)
	}
}

func TestFetcherReadsLargeRanges(t *testing.T) {
	s := NewMem()
	chunks := content(1, 400)
	put(t, s, chunks)
	var ids []digest.ID
	for _, c := range chunks {
		ids = append(ids, digest.Of(c))
	}
	locs, err := s.Locate(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	x, err := DecodeIndex(IndexOf(locs).Encode())
	if err != nil {
		t.Fatal(err)
	}
	reads := make(chan int64, 1000)
	f := &Fetcher{Index: x, Read: func(ctx context.Context, id digest.ID, off, n int64) (io.ReadCloser, error) {
		reads <- n
		return s.ReadPack(ctx, id, off, n)
	}}
	for _, n := range []int{len(ids), 1} {
		if err := f.Fetch(t.Context(), ids[:n], func(digest.ID, []byte) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if k := len(reads); k != 1 {
			t.Errorf("%d chunks of one pack with %d reads", n, k)
		}
		<-reads
	}
	// Moods of a network.
	boom := errors.New("boom")
	for name, read := range map[string]func(context.Context, digest.ID, int64, int64) (io.ReadCloser, error){
		"refuses": func(context.Context, digest.ID, int64, int64) (io.ReadCloser, error) { return nil, boom },
		"short": func(ctx context.Context, id digest.ID, off, n int64) (io.ReadCloser, error) {
			return s.ReadPack(ctx, id, off, n/2)
		},
		"lies": func(ctx context.Context, id digest.ID, off, n int64) (io.ReadCloser, error) {
			return io.NopCloser(io.LimitReader(zeros{}, n)), nil
		},
		"elsewhere": func(ctx context.Context, id digest.ID, off, n int64) (io.ReadCloser, error) {
			return s.ReadPack(ctx, id, off+1, n)
		},
	} {
		f := &Fetcher{Index: x, Read: read}
		err := f.Fetch(t.Context(), ids, func(id digest.ID, data []byte) error {
			if digest.Of(data) != id {
				t.Errorf("%s: wrong data", name)
			}
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), "pack ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestIndexOfAnImage(t *testing.T) {
	s := NewMem()
	a := content(1, 30)
	put(t, s, content(2, 30))
	id, err := publish(t.Context(), s, "web", slices.Concat(a, content(2, 5)))
	if err != nil {
		t.Fatal(err)
	}
	x, err := s.Index(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if x.Manifest != id || len(x.Packs) != 2 || len(x.Chunks) != 35 {
		t.Errorf("index of %s: %d packs, %d chunks", x.Manifest.Short(), len(x.Packs), len(x.Chunks))
	}
	o, err := s.OpenPack(t.Context(), x.Packs[0].ID)
	if err != nil || o.Size() != x.Packs[0].Size {
		t.Errorf("pack: %v", err)
	}
	good := x.Encode()
	refuse := func(name string, f func(x *Index)) {
		y, err := DecodeIndex(good)
		if err != nil {
			t.Fatal(err)
		}
		f(y)
		if _, err := DecodeIndex(y.Encode()); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
	refuse("chunk outside", func(x *Index) { x.Chunks[0].Size = 1 << 21 })
	refuse("chunk overflows", func(x *Index) { x.Chunks[3].Off = 1<<32 - 1 })
	refuse("chunk of no size", func(x *Index) { x.Chunks[0].Size = 0 })
	refuse("chunk of no frame", func(x *Index) { x.Chunks[len(x.Chunks)-1].Frame = 9999 })
	refuse("chunk twice", func(x *Index) { x.Chunks[1].ID = x.Chunks[0].ID })
	refuse("chunks swapped", func(x *Index) { x.Chunks[0], x.Chunks[1] = x.Chunks[1], x.Chunks[0] })
	refuse("frame outside", func(x *Index) { x.Frames[0].Len = 1 << 30 })
	refuse("frame overflows", func(x *Index) { x.Frames[0].Off = 1<<63 - 1 })
	refuse("bomb", func(x *Index) { x.Frames[0].Raw = 1 << 31 })
	refuse("frame of no pack", func(x *Index) { x.Frames[0].Pack = 7 })
	refuse("frame for nothing", func(x *Index) { x.Frames = append(x.Frames, FrameRef{Pack: 1, Off: 1 << 20, Len: 1, Raw: 1}) })
	refuse("pack for nothing", func(x *Index) { x.Packs = append(x.Packs, PackRef{ID: digest.ID{1}, Size: 1 << 20}) })
	refuse("pack twice", func(x *Index) { x.Packs[1].ID = x.Packs[0].ID })
	refuse("pack of 1 EB", func(x *Index) { x.Packs[0].Size = 1 << 60 })
	for i := 0; i < len(good); i += 7 {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := DecodeIndex(bad); err == nil {
			t.Errorf("flipped at %d: decoded", i)
		}
	}
}

func seedFrames() []frame {
	c := func(n byte, size uint32) entry.Chunk { return entry.Chunk{ID: digest.ID{n}, Size: size} }
	return []frame{{length: 100, raw: 300, chunks: []entry.Chunk{c(1, 100), c(2, 200)}}, {length: 7, raw: 9, chunks: []entry.Chunk{c(3, 9)}}}
}

func FuzzPackIndex(f *testing.F) {
	good := appendBlock(nil, seedFrames())
	if len(good) == 0 {
		f.Fatal("empty seed")
	}
	f.Add(good[:len(good)-trailerLen])
	f.Fuzz(func(t *testing.T, body []byte) {
		// The checksum would keep the fuzzer out.
		frames, err := decodeBody(body)
		if err != nil {
			return
		}
		block := appendBlock(nil, frames)
		if !bytes.Equal(block[:len(block)-trailerLen], body) {
			t.Fatal("two encodings")
		}
		if again, err := decodeBlock(block); err != nil || len(again) != len(frames) {
			t.Fatal(err)
		}
	})
}

func FuzzImageIndex(f *testing.F) {
	p := newPack(digest.ID{5}, seedFrames())
	var x index
	x.add(p)
	var locs []Location
	for _, pl := range x.chunks {
		locs = append(locs, pl.location())
	}
	good := IndexOf(locs).Encode()
	if len(good) == 0 {
		f.Fatal("empty seed")
	}
	f.Add(good[:len(good)-digest.Size])
	f.Fuzz(func(t *testing.T, body []byte) {
		sum := digest.Of(body)
		b := append(bytes.Clone(body), sum[:]...)
		x, err := DecodeIndex(b)
		if err != nil {
			return
		}
		if !bytes.Equal(x.Encode(), b) {
			t.Fatal("two encodings")
		}
	})
}
