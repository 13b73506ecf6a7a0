package tree

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/imager/store"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/torture"
)

// beyond is more than is read ahead and asked about together.
const beyond = budgetBytes + (inFlight+2)*batchBytes

// busy changes a file whenever it is asked something, which is while the rest
// of the file is still being read.
type busy struct {
	mu sync.Mutex
	f  *os.File
	n  int
}

func (b *busy) Missing(_ context.Context, ids []digest.ID) ([]digest.ID, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.f != nil {
		b.n++
		if _, err := b.f.WriteAt(noise(uint64(b.n), 4096), 0); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

func (b *busy) Put(context.Context, digest.ID, []byte) error { return nil }

func TestAFileThatChangesIsRefused(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "log")
	must(t, os.WriteFile(p, noise(1, beyond), 0644))
	h, err := os.OpenFile(p, os.O_WRONLY, 0)
	must(t, err)
	defer h.Close()
	_, st, err := Capture(t.Context(), dir, CaptureOptions{Sink: &busy{f: h}, pauses: []time.Duration{25 * time.Millisecond, time.Millisecond}})
	if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), `"log"`) || st.Retried != 3*retries {
		t.Errorf("%v, %+v", err, st)
	}
	if _, _, err := Capture(t.Context(), dir, CaptureOptions{Sink: &busy{}}); err != nil {
		t.Errorf("once it holds still: %v", err)
	}
}

func TestChangesBetweenScanAndRead(t *testing.T) {
	dir := t.TempDir()
	p := func(n string) string { return filepath.Join(dir, n) }
	for _, n := range []string{"grows", "moved", "fifo"} {
		must(t, os.WriteFile(p(n), []byte("old"), 0644))
	}
	scanned := func(f func()) CaptureOptions { return CaptureOptions{Scanned: func(int, int64) { f() }} }
	m, _, err := Capture(t.Context(), dir, scanned(func() {
		must(t, os.WriteFile(p("grows"), noise(1, 200<<10), 0600))
		must(t, os.WriteFile(p("new"), []byte("new!!"), 0640))
		must(t, os.Rename(p("new"), p("moved")))
	}))
	must(t, err)
	e, _ := m.Lookup("moved")
	g, _ := m.Lookup("grows")
	if e.Size != 5 || e.Mode != 0640 || g.Size != 200<<10 {
		t.Errorf("old metadata with new content: %+v %+v", e, g)
	}
	for kind, f := range map[entry.Type]func(){0: func() { must(t, os.Remove(p("fifo"))) }, entry.FIFO: func() { must(t, os.Remove(p("fifo"))); must(t, unix.Mkfifo(p("fifo"), 0600)) }} {
		m, st, err := Capture(t.Context(), dir, scanned(f))
		must(t, err)
		if e, ok := m.Lookup("fifo"); ok != (kind != 0) || ok && e.Type != kind || st.Again == 0 {
			t.Errorf("type %d: %+v, %+v", kind, e, st)
		}
		os.Remove(p("fifo"))
		must(t, os.WriteFile(p("fifo"), []byte("old"), 0644))
	}
}

func TestACacheThatTheSinkDoesNotShare(t *testing.T) {
	src := t.TempDir()
	torture.Tree(t, src)
	states := map[string]entry.Stat{}
	var mu sync.Mutex
	m, _ := captureDir(t, src, CaptureOptions{Captured: func(p string, st entry.Stat, e *entry.Entry) {
		mu.Lock()
		defer mu.Unlock()
		states[p] = st
	}})
	s := store.NewMem()
	w, err := s.NewWriter(t.Context())
	must(t, err)
	defer w.Abort()
	m2, st := captureDir(t, src, CaptureOptions{Sink: w, Cache: stateCache{m, states}})
	must(t, w.Close())
	if m2.ID() != m.ID() || st.Cached != st.Files || st.Read == 0 {
		t.Errorf("stats %+v", st)
	}
	if _, err := s.PutManifest(t.Context(), m2); err != nil {
		t.Error(err)
	}
}

func TestCaptureStops(t *testing.T) {
	src := t.TempDir()
	must(t, os.WriteFile(filepath.Join(src, "f"), noise(1, 40<<20), 0644))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	boom := errors.New("boom")
	for name, sink := range map[string]Sink{"put": sinkFunc(func() error { return boom }), "cancel": sinkFunc(func() error { cancel(); return nil })} {
		if _, _, err := Capture(ctx, src, CaptureOptions{Sink: sink}); !errors.Is(err, boom) && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := Capture(t.Context(), filepath.Join(src, "f"), CaptureOptions{}); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a file: %v", err)
	}
	if _, _, err := Capture(t.Context(), filepath.Join(src, "gone"), CaptureOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
}

type sinkFunc func() error

func (sinkFunc) Missing(_ context.Context, ids []digest.ID) ([]digest.ID, error) { return ids, nil }

func (f sinkFunc) Put(_ context.Context, id digest.ID, data []byte) error {
	if digest.Of(data) != id {
		return errors.New("wrong data")
	}
	return f()
}

func TestReadAheadIsBounded(t *testing.T) {
	b := newBudget(100)
	must(t, b.acquire(t.Context(), 5, 100))
	must(t, b.acquire(t.Context(), 0, 1000)) // its turn: may always
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error)
	go func() { got <- b.acquire(ctx, 6, 1) }()
	select {
	case <-got:
		t.Fatal("went over the budget")
	default:
	}
	b.release(1100)
	must(t, <-got)
	go func() { got <- b.acquire(ctx, 6, 100) }()
	cancel()
	b.close()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("closed: %v", err)
	}
}
