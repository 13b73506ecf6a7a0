package tree

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// meddler changes the tree when the sink is first asked, which is after the
// scan, while the last file is not yet read; and again before every round.
type meddler struct {
	mu    sync.Mutex
	do    func(round int)
	round int
}

func (m *meddler) Missing(_ context.Context, ids []digest.ID) ([]digest.ID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.do(m.round)
	m.round++
	return ids, nil
}

func (m *meddler) Put(context.Context, digest.ID, []byte) error { return nil }

// meadow is a small tree that was made long ago as clocks go.
func meadow(t *testing.T) (dir string, p func(string) string) {
	t.Helper()
	dir = t.TempDir()
	p = func(n string) string { return filepath.Join(dir, n) }
	for _, f := range []string{"a/one", "a/two", "b/c/three", "log/x", "mv/from/f", "z"} {
		must(t, os.MkdirAll(filepath.Dir(p(f)), 0o755))
		must(t, os.WriteFile(p(f), []byte(f), 0o644))
	}
	must(t, os.Symlink("one", p("a/link")))
	must(t, os.Mkdir(p("mv/to"), 0o755))
	time.Sleep(2 * tick)
	return dir, p
}

func quickPauses() []time.Duration { return []time.Duration{2 * tick, 2 * tick} }

// Each of these happens after the file has been read, or to what is not read
// at all: only the second look can see it.
func changes(t *testing.T, p func(string) string) map[string]func() {
	return map[string]func(){
		"a/one":   func() { must(t, os.WriteFile(p("a/one"), []byte("ONE"), 0o644)) },
		"a/two":   func() { must(t, os.Chmod(p("a/two"), 0o600)) },
		"b":       func() { must(t, os.Chmod(p("b"), 0o700)) },
		"b/c/new": func() { must(t, os.WriteFile(p("b/c/new"), nil, 0o644)) },
		"z":       func() { must(t, os.Remove(p("z"))) },
		"a/link":  func() { must(t, os.Remove(p("a/link"))); must(t, os.Symlink("two", p("a/link"))) },
		"mv/to/f": func() { must(t, os.Rename(p("mv/from/f"), p("mv/to/f"))) },
		"log": func() {
			must(t, unix.Setxattr(p("log"), "user.x", []byte("y"), 0))
		},
		"a/two2": func() {
			was, err := os.Stat(p("a/two"))
			must(t, err)
			must(t, os.WriteFile(p("a/two"), []byte("A/TWO"), 0o644))
			must(t, os.Chtimes(p("a/two"), was.ModTime(), was.ModTime())) // only the ctime tells
		},
	}
}

func TestAChangeOnceIsCapturedAgain(t *testing.T) {
	probe, p := meadow(t)
	_ = probe
	for name := range changes(t, p) {
		dir, p := meadow(t)
		change := changes(t, p)[name]
		m, st, err := Capture(t.Context(), dir, CaptureOptions{lookAgain: true, pauses: quickPauses(), Sink: &meddler{do: func(round int) {
			if round == 0 {
				change()
			}
		}}})
		must(t, err)
		if st.Again == 0 {
			t.Errorf("%s: not seen", name)
		}
		if now, _ := captureDir(t, dir, CaptureOptions{}); now.ID() != m.ID() {
			t.Errorf("%s: neither the tree before nor the one after: %+v", name, manifest.Diff(m, now))
		}
	}
}

// Whenever something changes, in the scan or after it, the image is the tree
// before or the tree after; both when the states prove that and when they do not.
func TestAChangeAtAnyMoment(t *testing.T) {
	_, p := meadow(t)
	proven := 0
	for name := range changes(t, p) {
		for at := 0; ; at++ {
			dir, p := meadow(t)
			before, _ := captureDir(t, dir, CaptureOptions{})
			change, calls := changes(t, p)[name], atomic.Int64{}
			step := func() {
				if calls.Add(1) == int64(at) {
					change()
				}
			}
			m, st, err := Capture(t.Context(), dir, CaptureOptions{pauses: quickPauses(),
				Exclude: func(string, bool) bool { step(); return false },
				Sink:    &meddler{do: func(int) { step() }},
				Scanned: func(int, int64) { step() }})
			must(t, err)
			if calls.Load() < int64(at) {
				break
			}
			if st.Again == 0 {
				proven++
			}
			after, _ := captureDir(t, dir, CaptureOptions{})
			if m.ID() != before.ID() && m.ID() != after.ID() {
				t.Errorf("%s at step %d: neither the tree before nor the one after: %+v", name, at, manifest.Diff(after, m))
			}
			if m.ID() == before.ID() && m.ID() == after.ID() && at > 0 {
				t.Errorf("%s changes nothing", name)
			}
		}
	}
	if proven < 20 {
		t.Errorf("%d captures went without another look", proven)
	}
}

// A program writes one number to one file after the other, in bursts: whatever
// moment a capture finds, they differ by one at most.
func TestMomentsBetweenBursts(t *testing.T) {
	dir, p := meadow(t)
	for i := range 400 {
		must(t, os.MkdirAll(p(fmt.Sprintf("m/%d", i%40)), 0o755))
		must(t, os.WriteFile(p(fmt.Sprintf("m/%d/%d", i%40, i)), noise(uint64(i), 100), 0o644))
	}
	var files []*os.File
	for _, name := range []string{"a/number", "z-number"} {
		f, err := os.Create(p(name))
		must(t, err)
		defer f.Close()
		_, err = f.Write(make([]byte, 8))
		must(t, err)
		files = append(files, f)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		rng := rand.New(rand.NewPCG(1, 2))
		var err error
		for i := uint64(1); err == nil && ctx.Err() == nil; i++ {
			for _, f := range files {
				if _, err = f.WriteAt(binary.BigEndian.AppendUint64(nil, i), 0); err != nil {
					break
				}
			}
			if rng.IntN(20) == 0 {
				time.Sleep(time.Duration(rng.IntN(80)) * time.Millisecond)
			}
		}
		ended <- err
	}()
	found, proven := 0, 0
	for i := 0; i < 60 || found < 5 && i < 600; i++ {
		got := &keeper{}
		m, st, err := Capture(t.Context(), dir, CaptureOptions{Sink: got, pauses: []time.Duration{time.Duration(i%3) * tick}})
		if errors.Is(err, ErrChanged) {
			continue
		}
		must(t, err)
		found++
		if st.Again == 0 {
			proven++
		}
		var n [2]uint64
		for k, name := range []string{"a/number", "z-number"} {
			e, _ := m.Lookup(name)
			n[k] = binary.BigEndian.Uint64(got.of(e))
		}
		if n[0] != n[1] && n[0] != n[1]+1 {
			t.Errorf("%d and %d were never there at one moment", n[0], n[1])
		}
	}
	stop()
	must(t, <-ended)
	t.Logf("%d moments were found, %d of them at once", found, proven)
	if found < 5 {
		t.Errorf("only %d moments were found", found)
	}
}

// keeper is a sink that keeps everything.
type keeper struct {
	mu   sync.Mutex
	data map[digest.ID][]byte
}

func (k *keeper) Missing(_ context.Context, ids []digest.ID) ([]digest.ID, error) { return ids, nil }

func (k *keeper) Put(_ context.Context, id digest.ID, data []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.data == nil {
		k.data = map[digest.ID][]byte{}
	}
	k.data[id] = bytes.Clone(data)
	return nil
}

func (k *keeper) of(e *entry.Entry) (out []byte) {
	for _, c := range e.Chunks {
		out = append(out, k.data[c.ID]...)
	}
	return out
}

// What the states prove, and what they do not.
func TestOld(t *testing.T) {
	dir, p := meadow(t)
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(root)
	look := func() *capture {
		c := &capture{o: &CaptureOptions{}, root: root, unread: map[int]bool{}}
		must(t, c.look(t.Context()))
		must(t, c.contents(t.Context(), c.files))
		return c
	}
	c := look()
	must(t, os.Chmod(p("a/two"), 0o600)) // after all
	if !c.old() {
		t.Error("a tree at rest proves nothing")
	}
	if c = look(); c.old() {
		t.Error("a file that has just changed proves something")
	}
	time.Sleep(2 * tick)
	must(t, os.Remove(p("z")))
	if c = look(); c.old() {
		t.Error("a directory that has just changed proves something")
	}
	time.Sleep(2 * tick)
	for what, spoil := range map[string]func(c *capture){
		"a file that was not read": func(c *capture) { c.gaveUp(c.files[0]) },
		"a change that was seen":   func(c *capture) { c.suspect() },
		"another file system":      func(c *capture) { c.states[2].Dev++ },
		"a time in the future":     func(c *capture) { c.states[2].CTime = time.Now().Add(time.Hour).UnixNano() },
		"a file system of seconds": func(c *capture) {
			c.states[2].CTime = c.began.Add(-time.Second).Truncate(time.Second).UnixNano()
		},
	} {
		c := look()
		if !c.old() {
			t.Fatalf("%s: a tree at rest proves nothing", what)
		}
		if spoil(c); c.old() {
			t.Errorf("%s proves something", what)
		}
	}
	proc, err := unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(proc)
	if keepsCTime(proc) {
		t.Error("/proc keeps ctimes")
	}
	for step, want := range map[time.Duration]bool{0: false, time.Hour: false, -tick / 8: false, -tick: true, -time.Hour: true} {
		if got := setBack(time.Second+step, time.Second); got != want {
			t.Errorf("the clock was moved by %v: %v", step, got)
		}
	}
}

func TestWhatKeepsChangingIsNamed(t *testing.T) {
	dir, p := meadow(t)
	n := 0
	opts := func() CaptureOptions {
		return CaptureOptions{lookAgain: true, pauses: quickPauses(), Cache: nil, Sink: &meddler{do: func(int) {
			n++
			must(t, os.WriteFile(p("a/one"), fmt.Append(nil, n), 0o644))
			must(t, os.WriteFile(p(fmt.Sprintf("b/n%d", n)), nil, 0o644))
		}}}
	}
	_, _, err := Capture(t.Context(), dir, opts())
	var ce *ChangedError
	if !errors.As(err, &ce) || !errors.Is(err, ErrChanged) || !slices.Equal(ce.Paths, []string{"a/one", "b", fmt.Sprintf("b/n%d", n)}) {
		t.Fatalf("%v", err)
	}
	o := opts()
	o.AllowChanged = func(p string) bool { return p == "a/one" || strings.HasPrefix(p, "b/") }
	m, st, err := Capture(t.Context(), dir, o)
	must(t, err)
	if e, _ := m.Lookup("a/one"); e == nil || !slices.Contains(st.Changed, "a/one") || st.Again != 0 {
		t.Errorf("allowed: %+v, %+v", e, st)
	}
	if !strings.Contains(strings.Join(st.Notes(), "\n"), `"a/one" changed while`) {
		t.Errorf("notes %q", st.Notes())
	}
}

func TestAnAllowedFileThatShrinksIsFilled(t *testing.T) {
	dir, p := meadow(t)
	must(t, os.WriteFile(p("log/big"), noise(1, beyond), 0o644))
	shrink := &meddler{do: func(int) {
		must(t, os.Truncate(p("log/big"), 3<<20))
		must(t, os.Truncate(p("log/big"), beyond-1))
		must(t, os.Truncate(p("log/big"), 5<<20))
	}}
	m, _, err := Capture(t.Context(), dir, CaptureOptions{Sink: shrink, AllowChanged: func(p string) bool { return p == "log/big" }})
	must(t, err)
	must(t, m.Validate())
}

// What is left out may change for ever, and with it the times of its directory.
func TestWhatIsLeftOutNeverMatters(t *testing.T) {
	dir, p := meadow(t)
	n := 0
	_, st, err := Capture(t.Context(), dir, CaptureOptions{lookAgain: true, pauses: []time.Duration{},
		Exclude: func(p string, _ bool) bool { return strings.HasPrefix(p, "log/") || strings.HasSuffix(p, ".tmp") },
		Sink: &meddler{do: func(int) {
			n++
			must(t, os.WriteFile(p(fmt.Sprintf("log/%d", n)), nil, 0o644))
			must(t, os.WriteFile(p("a/x.tmp"), fmt.Append(nil, n), 0o644))
		}}})
	must(t, err)
	if st.Again != 0 {
		t.Errorf("%+v", st)
	}
	_, _, err = Capture(t.Context(), dir, CaptureOptions{lookAgain: true, pauses: []time.Duration{},
		Exclude: func(p string, _ bool) bool { return strings.HasPrefix(p, "log/") },
		Sink:    &meddler{do: func(int) { must(t, os.Chmod(p("log"), 0o700+fs.FileMode(n))) }}})
	if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), `"log"`) {
		t.Errorf("the mode of such a directory: %v", err)
	}
}

// A change in the same tick of the clock as the one before leaves the same ctime.
func TestFresh(t *testing.T) {
	since := time.Now()
	for age, want := range map[time.Duration]bool{0: true, tick / 2: true, 2 * tick: false} {
		if got := fresh(entry.Stat{CTime: since.Add(-age).UnixNano()}, since); got != want {
			t.Errorf("%s before: %v", age, got)
		}
	}
	if fresh(entry.Stat{CTime: time.Now().Add(time.Hour).UnixNano()}, since) {
		t.Error("a time in the future would never pass")
	}
}

// Where a file system keeps whole seconds, a change may hide behind an earlier
// one of the same second.
func TestFreshByTheClockOfTheFileSystem(t *testing.T) {
	since := time.Unix(1_000_000_000, 500_000_000)
	for ctime, want := range map[time.Time]bool{
		since: true, since.Add(-tick): true, since.Add(-2 * tick): false, since.Add(time.Hour): true, time.Now().Add(time.Hour): false,
		time.Unix(1_000_000_000, 0): true, time.Unix(999_999_999, 0): true, time.Unix(999_999_998, 0): false,
	} {
		if got := fresh(entry.Stat{CTime: ctime.UnixNano()}, since); got != want {
			t.Errorf("changed at %v, seen at %v: %v", ctime, since, got)
		}
	}
}

// A directory that becomes something else while the tree is scanned or read
// does not end the capture: the second look sees it.
func TestDirectoriesThatAreReplaced(t *testing.T) {
	for what, put := range map[string]func(string) error{
		"a file": func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"a link": func(p string) error { return os.Symlink("a", p) },
	} {
		dir, p := meadow(t)
		root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		defer unix.Close(root)
		c := &capture{o: &CaptureOptions{}, root: root, unread: map[int]bool{}}
		must(t, c.look(t.Context()))
		must(t, os.RemoveAll(p("b")))
		must(t, put(p("b")))
		if err := c.contents(t.Context(), c.files); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if bad, _, err := c.changes(t.Context()); err != nil || !slices.Contains(bad, "b") {
			t.Errorf("%s: changed is %q, %v", what, bad, err)
		}
		s := &scanner{root: root, c: c, stats: &c.stats}
		if err := s.dir(&entry.Names{}, &found{Entry: entry.Entry{Path: "b", Type: entry.Dir}}); err != nil {
			t.Errorf("%s: scan: %v", what, err)
		}
	}
}
