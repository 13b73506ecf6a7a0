package tree

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"ingot/imager/chunk"
	"ingot/internal/digest"
	"ingot/internal/entry"
)

// heapSink keeps the chunks' names in order, and the most that was on the heap.
type heapSink struct {
	ids  []digest.ID
	puts int
	heap uint64
}

func (s *heapSink) Missing(_ context.Context, ids []digest.ID) ([]digest.ID, error) {
	runtime.GC() // what is still in use
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	s.heap = max(s.heap, m.HeapAlloc)
	return ids, nil
}

func (s *heapSink) Put(_ context.Context, id digest.ID, data []byte) error {
	if digest.Of(data) != id {
		return fmt.Errorf("chunk %d is not what its name says", s.puts)
	}
	s.ids = append(s.ids, id)
	s.puts++
	return nil
}

// Files that together are read as one, files that fill a slab to its last
// byte, and files that are larger: all come in order, each cut as it is alone,
// and no more is held than the budget allows.
func TestSlabs(t *testing.T) {
	dir := t.TempDir()
	rnd := rand.NewChaCha8([32]byte{1})
	sizes := []int{slabBytes, slabBytes - 1, 1, 0, slabBytes + 1, 64 << 20, 300 << 10, 300 << 10, 300 << 10, 300 << 10, 7}
	for i := range 600 {
		sizes = append(sizes, i*37%20000)
	}
	for range 40 {
		sizes = append(sizes, 1<<20)
	}
	max := chunk.Default().Max
	var want []digest.ID
	for i, n := range sizes {
		data := make([]byte, n)
		rnd.Read(data)
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%04d", i)), data, 0600))
		for len(data) > 0 {
			n := chunk.Cut(data[:min(len(data), max)])
			want = append(want, digest.Of(data[:n]))
			data = data[n:]
		}
	}
	time.Sleep(2 * tick) // files that have just changed are captured twice
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	sink := &heapSink{}
	m, stats, err := Capture(t.Context(), dir, CaptureOptions{Sink: sink, Parallel: 16})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(sink.ids, want) {
		t.Errorf("%d chunks came, %d wanted, or in another order", len(sink.ids), len(want))
	}
	if stats.Bytes != m.TotalSize() || stats.NewBytes != stats.Bytes {
		t.Errorf("%d bytes new of %d of %d", stats.NewBytes, stats.Bytes, m.TotalSize())
	}
	// The budget, what the job whose turn it is may take beyond it, slabs that
	// wait for answers or to be used again, and the entries.
	used := int64(sink.heap) - int64(before.HeapAlloc)
	if t.Logf("%d bytes on the heap", used); used > 3*budgetBytes {
		t.Errorf("%d bytes on the heap", used)
	}
}

// knowing is a sink that has everything, so that slabs are free again at once.
type knowing struct{}

func (knowing) Missing(context.Context, []digest.ID) ([]digest.ID, error) { return nil, nil }
func (knowing) Put(context.Context, digest.ID, []byte) error              { return nil }

// A slab that is free is filled by others: nobody may still want what is in it.
func TestSlabsAreUsedAgain(t *testing.T) {
	dir := t.TempDir()
	rnd := rand.NewChaCha8([32]byte{2})
	var want [][]entry.Chunk
	for i := range 12 {
		data := make([]byte, 5*slabBytes+i*1000)
		rnd.Read(data)
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d", i)), data, 0o600))
		var chunks []entry.Chunk
		for len(data) > 0 {
			n := chunk.Cut(data[:min(len(data), chunk.Default().Max)])
			chunks = append(chunks, entry.Chunk{ID: digest.Of(data[:n]), Size: uint32(n)})
			data = data[n:]
		}
		want = append(want, chunks)
	}
	for range 5 {
		m, _ := captureDir(t, dir, CaptureOptions{Sink: knowing{}, Parallel: 8})
		for i := range want {
			if !slices.Equal(m.Entries[i+1].Chunks, want[i]) {
				t.Fatalf("%q is not captured as it is", m.Entries[i+1].Path)
			}
		}
	}
}

// liar is a cache that knows a chunk for every file.
type liar struct{ x digest.ID }

func (l liar) Lookup(path string, _ entry.Stat) ([]entry.Extent, []entry.Chunk, bool) {
	id := digest.Of([]byte("cached " + path))
	if path == "a" || path == "zz" {
		id = l.x
	}
	return nil, []entry.Chunk{{ID: id, Size: 1}}, true
}

// only is a sink that lacks one chunk.
type only struct {
	mu sync.Mutex
	id digest.ID
	n  int
}

func (o *only) Missing(_ context.Context, ids []digest.ID) ([]digest.ID, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.n == 0 && slices.Contains(ids, o.id) {
		return []digest.ID{o.id}, nil
	}
	return nil, nil
}

func (o *only) Put(_ context.Context, id digest.ID, _ []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if id == o.id {
		o.n++
	}
	return nil
}

// A file that should have had a chunk does not, and another that has it was
// not asked about, because the chunk was on its way.
func TestAChunkThatDoesNotComeAfterAll(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "a"), []byte("y"), 0o600))
	for i := range batchMost + 100 {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("m%05d", i)), []byte("m"), 0o600))
	}
	must(t, os.WriteFile(filepath.Join(dir, "zz"), []byte("x"), 0o600))
	time.Sleep(2 * tick) // or all would be read twice
	x := digest.Of([]byte("x"))
	sink := &only{id: x}
	m, _ := captureDir(t, dir, CaptureOptions{Sink: sink, Cache: liar{x}})
	e, _ := m.Lookup("zz")
	if sink.n != 1 || e.Chunks[0].ID != x {
		t.Errorf("put %d times; %+v", sink.n, e)
	}
}

// needy is a sink that misses everything.
type needy struct{}

func (needy) Missing(_ context.Context, ids []digest.ID) ([]digest.ID, error) { return ids, nil }
func (needy) Put(context.Context, digest.ID, []byte) error                    { return nil }

// Files of the cache whose chunks the sink misses are read while files of the
// same job are being read or counted (the race detector judges that).
func TestCachedFilesThatTheSinkMisses(t *testing.T) {
	dir := t.TempDir()
	for i := range 900 {
		data := make([]byte, 100)
		if i%3 == 0 {
			data = make([]byte, 60000)
		}
		copy(data, fmt.Sprint(i))
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%04d", i)), data, 0o600))
	}
	cache, err := OpenCache(filepath.Join(t.TempDir(), "cache"))
	must(t, err)
	time.Sleep(2 * tick)
	m, _ := captureDir(t, dir, CaptureOptions{Captured: func(path string, st entry.Stat, e *entry.Entry) {
		if e.Size == 100 {
			cache.Record(path, st, e)
		}
	}})
	must(t, cache.Save())
	cache, err = OpenCache(cache.path)
	must(t, err)
	var bytes int64
	again, stats := captureDir(t, dir, CaptureOptions{Sink: needy{}, Cache: cache, Parallel: 4, Progress: func(n, _ int64) { bytes = n }})
	if again.ID() != m.ID() || stats.Cached != 600 || bytes != m.TotalSize() {
		t.Errorf("%d cached, %d bytes seen of %d, as before: %v", stats.Cached, bytes, m.TotalSize(), again.ID() == m.ID())
	}
}
