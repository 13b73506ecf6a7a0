package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"ingot/internal/digest"
)

// small makes n chunks of a few bytes.
func small(seed uint64, n int) [][]byte {
	rng := rand.New(rand.NewPCG(seed, 11))
	out := make([][]byte, n)
	for i := range out {
		out[i] = bytes.Repeat([]byte{byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32())}, 1+rng.IntN(200))
		out[i] = fmt.Appendf(out[i], "%d/%d", seed, i)
	}
	return out
}

// prune plans and runs with the lock held, and holds the result against the plan.
func prune(ctx context.Context, s *Store, o PruneOptions) (*Prune, error) {
	release, err := s.Lock(ctx, true)
	if err != nil {
		return nil, err
	}
	defer release()
	p, err := s.PlanPrune(ctx, o)
	if err != nil {
		return nil, err
	}
	done, err := p.Run(ctx, nil)
	if err == nil && (done.Manifests != len(p.Manifests) || done.Packs != len(p.Packs)+len(p.Rewrite) || len(p.Rewrite) == 0 && done.Free != p.Free) {
		err = fmt.Errorf("planned %+v, did %+v", p, done)
	}
	return p, err
}

// stored counts the copies of every chunk in all packs.
func stored(t *testing.T, s *Store) map[digest.ID]int {
	t.Helper()
	out := map[digest.ID]int{}
	ids, err := walkFan(t.Context(), s.b, "packs", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		p, err := s.ownPack(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range p.all() {
			out[c]++
		}
	}
	return out
}

// model is what a store should hold: images by name, and those that others keep.
type model struct {
	names map[string]digest.ID
	kept  map[digest.ID]bool
	sets  map[digest.ID][][]byte // every image ever made
}

func (m *model) live() map[digest.ID]bool {
	out := maps.Clone(m.kept)
	for _, id := range m.names {
		out[id] = true
	}
	return out
}

// keep is in order, so that a run is like every other.
func (m *model) keep() []digest.ID {
	return slices.SortedFunc(maps.Keys(m.kept), func(a, b digest.ID) int { return bytes.Compare(a[:], b[:]) })
}

// check holds a store against its model; exact: just after a prune that
// tolerates nothing.
func (m *model) check(t *testing.T, s *Store, exact bool) {
	t.Helper()
	verifyClean(t, s)
	want := map[digest.ID]int{}
	for id := range m.live() {
		if got, err := s.Manifest(t.Context(), id); err != nil || got.ID() != id {
			t.Fatalf("image %s: %v", id.Short(), err)
		}
		fetchAll(t, s, m.sets[id])
		for _, c := range m.sets[id] {
			want[digest.Of(c)] = 1
		}
	}
	for name, id := range m.names {
		if got, err := s.Resolve(t.Context(), name); err != nil || got != id {
			t.Fatalf("%s is %s, %v", name, got.Short(), err)
		}
	}
	if !exact {
		return
	}
	if got := stored(t, s); !maps.Equal(got, want) {
		t.Fatalf("%d chunks stored, %d needed", len(got), len(want))
	}
	ids, err := s.Manifests(t.Context())
	if err != nil || len(ids) != len(m.live()) {
		t.Fatalf("%d manifests, %v, want %d", len(ids), err, len(m.live()))
	}
}

// TestPruneModel does random things to a store and compares it with what
// should be left.
func TestPruneModel(t *testing.T) {
	backends(t, func(t *testing.T, open func() Backend) {
		s := initStore(t, open())
		rng := rand.New(rand.NewPCG(1, 2))
		groups := make([][][]byte, 30)
		for i := range groups {
			groups[i] = small(uint64(i), 4)
		}
		m := &model{names: map[string]digest.ID{}, kept: map[digest.ID]bool{}, sets: map[digest.ID][][]byte{}}
		prunes, rewritten, removed := 0, 0, 0
		for step := range 300 {
			if rng.IntN(4) == 0 {
				s = openStore(t, open()) // another process
			}
			name := fmt.Sprintf("img:%d", rng.IntN(6))
			switch op := rng.IntN(10); {
			case op < 3:
				var set [][]byte
				for range 1 + rng.IntN(5) {
					set = append(set, groups[rng.IntN(len(groups))]...)
				}
				id, err := publish(t.Context(), s, name, set)
				if err != nil {
					t.Fatal(err)
				}
				m.names[name], m.sets[id] = id, set
			case op < 5 && m.names[name] != (digest.ID{}):
				if err := s.RemoveRef(t.Context(), mustRef(t, name)); err != nil {
					t.Fatal(err)
				}
				delete(m.names, name)
			case op < 6 && m.names[name] != (digest.ID{}):
				m.kept[m.names[name]] = true
			case op < 7 && len(m.kept) > 0:
				delete(m.kept, m.keep()[0])
			case op < 8:
				put(t, s, groups[rng.IntN(len(groups))]) // a capture that ended there
			default:
				unused := float64(rng.IntN(2)) * rng.Float64()
				p, err := prune(t.Context(), s, PruneOptions{Keep: append(m.keep(), digest.ID{1}), MaxUnused: unused})
				if err != nil {
					t.Fatalf("step %d: %v", step, err)
				}
				prunes, rewritten, removed = prunes+1, rewritten+len(p.Rewrite), removed+len(p.Packs)
				m.check(t, openStore(t, open()), unused == 0)
				m.check(t, s, unused == 0)
			}
		}
		if prunes < 20 || rewritten < 20 || removed < 20 {
			t.Errorf("%d prunes rewrote %d packs and removed %d: too few to prove anything", prunes, rewritten, removed)
		}
		p, err := prune(t.Context(), s, PruneOptions{Keep: m.keep()})
		if err == nil {
			p, err = prune(t.Context(), s, PruneOptions{Keep: m.keep()})
		}
		if err != nil || len(p.Packs)+len(p.Rewrite)+len(p.Manifests) > 0 || p.Unused != 0 {
			t.Errorf("a prune after a prune: %+v, %v", p, err)
		}
	})
}

func mustRef(t *testing.T, name string) Ref {
	t.Helper()
	r, err := ParseRef(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// clone is a copy of a backend as a crash would leave it.
func (m *Memory) clone() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Memory{objects: maps.Clone(m.objects), writes: m.writes}
}

// pruneSite is a store with something of everything that a prune does.
func pruneSite(t *testing.T) (*Memory, *model) {
	t.Helper()
	b := NewMemory()
	s := initStore(t, b)
	m := &model{names: map[string]digest.ID{}, kept: map[digest.ID]bool{}, sets: map[digest.ID][][]byte{}}
	for i := range 8 { // each shares half with the one before
		set := slices.Concat(small(uint64(i), 5), small(uint64(i+1), 5))
		name := fmt.Sprintf("img:%d", i)
		id, err := publish(t.Context(), s, name, set)
		if err != nil {
			t.Fatal(err)
		}
		m.names[name], m.sets[id] = id, set
	}
	m.kept[m.names["img:3"]] = true
	for _, name := range []string{"img:0", "img:1", "img:3", "img:4", "img:5", "img:6"} {
		if err := s.RemoveRef(t.Context(), mustRef(t, name)); err != nil {
			t.Fatal(err)
		}
		delete(m.names, name)
	}
	for i := range 2 { // captures that ended: one after its chunks, one between a pack and its index
		before := b.clone().objects
		put(t, s, small(uint64(98+i), 5))
		for name := range b.clone().objects {
			if _, ok := before[name]; !ok && i == 1 && filepath.Dir(name) == "index" {
				delete(b.objects, name)
			}
		}
	}
	dup := openStore(t, b) // two captures at the same time
	w, err := dup.NewWriter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.again = true
	for _, c := range small(2, 3) {
		if err := w.Put(t.Context(), digest.Of(c), c); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b, m
}

// TestPruneDeath lets a prune die before every change that it makes, and the
// prune after it as well. Nothing that is needed is ever lost, and the next
// one finishes.
func TestPruneDeath(t *testing.T) {
	base, m := pruneSite(t)
	o := PruneOptions{Keep: m.keep()}
	die := func(b *Memory, n int) (dead bool) {
		_, err := prune(t.Context(), openStore(t, &dying{Backend: b, left: n}), o)
		if err != nil && !errors.Is(err, errDead) {
			t.Fatalf("death at %d: %v", n, err)
		}
		m.check(t, openStore(t, b.clone()), err == nil)
		return err != nil
	}
	steps := 0
	for n := 0; ; n++ {
		first := base.clone()
		dead := die(first, n)
		for k := 0; dead; k++ {
			second := first.clone()
			if !die(second, k) {
				break
			}
			steps++
			if _, err := prune(t.Context(), openStore(t, second), o); err != nil {
				t.Fatalf("death at %d and %d, then: %v", n, k, err)
			}
			m.check(t, openStore(t, second), true)
		}
		if !dead {
			if n < 15 {
				t.Errorf("done after %d steps", n)
			}
			break
		}
	}
	if steps < 100 {
		t.Errorf("%d pairs of deaths are too few", steps)
	}
}

// What somebody reads by an older index stays where it is.
func TestPruneHold(t *testing.T) {
	s := NewMem()
	old, _ := publish(t.Context(), s, "web:1", slices.Concat(content(1, 10), content(2, 10)))
	id, _ := publish(t.Context(), s, "web:2", slices.Concat(content(2, 10), content(3, 10)))
	x, err := s.Index(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveRef(t.Context(), mustRef(t, "web:1")); err != nil {
		t.Fatal(err)
	}
	p, err := prune(t.Context(), s, PruneOptions{Hold: []digest.ID{id}})
	if err != nil || !slices.Equal(p.Manifests, []digest.ID{old}) || len(p.Packs)+len(p.Rewrite) > 0 || p.Held != 1 {
		t.Fatalf("%+v, %v", p, err)
	}
	f := Fetcher{Index: x, Read: s.ReadPack}
	all := func() error {
		var ids []digest.ID
		for _, c := range x.Chunks {
			ids = append(ids, c.ID)
		}
		return f.Fetch(t.Context(), ids, func(digest.ID, []byte) error { return nil })
	}
	if err := all(); err != nil {
		t.Error(err)
	}
	if p, err := prune(t.Context(), s, PruneOptions{}); err != nil || len(p.Rewrite) != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	if err := all(); !errors.Is(err, ErrMissing) {
		t.Errorf("nothing was rewritten: the test proves nothing: %v", err)
	}
	fetchAll(t, s, slices.Concat(content(2, 10), content(3, 10)))
}

// A store that lacks something is not touched; nor is the last good copy.
func TestPruneDamaged(t *testing.T) {
	for name, harm := range map[string]func(b *Memory, names map[string][]string){
		"a name":     func(b *Memory, n map[string][]string) { b.objects["names/img/2"] = memObject{data: []byte("x")} },
		"a manifest": func(b *Memory, n map[string][]string) { delete(b.objects, n["manifests"][0]) },
		"manifest's content": func(b *Memory, n map[string][]string) {
			for _, m := range n["manifests"] {
				b.objects[m] = memObject{data: []byte("x")}
			}
		},
		"packs": func(b *Memory, n map[string][]string) {
			for _, p := range n["packs"] {
				delete(b.objects, p)
			}
		},
		"packs' content": func(b *Memory, n map[string][]string) {
			for _, p := range n["packs"] {
				o := b.objects[p]
				o.data = bytes.Clone(o.data)
				for i := 8; i < len(o.data)/3; i += 10 {
					o.data[i] ^= 1
				}
				b.objects[p] = o
			}
		},
	} {
		b, m := pruneSite(t)
		names := map[string][]string{}
		for n := range b.objects {
			top := n[:max(0, bytes.IndexByte([]byte(n), '/'))]
			names[top] = append(names[top], n)
		}
		if name == "a manifest" {
			names["manifests"] = []string{manifestName(m.names["img:2"])}
		}
		harm(b, names)
		before := b.clone()
		_, err := prune(t.Context(), openStore(t, b), PruneOptions{Keep: m.keep()})
		var damage Damage
		var corrupt *CorruptError
		if !errors.As(err, &damage) && !errors.As(err, &corrupt) {
			t.Errorf("%s: %v", name, err)
		}
		for n := range before.objects {
			if filepath.Dir(n) == "packs" {
				if _, ok := b.objects[n]; !ok {
					t.Errorf("%s: removed %s", name, n)
				}
			}
		}
	}
}

// An index file whose pack is gone, as a crash of a quarantine leaves it, goes too.
func TestPruneStray(t *testing.T) {
	b := NewMemory()
	s := initStore(t, b)
	put(t, s, small(1, 5))
	packs, err := s.packs(t.Context())
	if err != nil || len(packs) != 1 {
		t.Fatal(packs, err)
	}
	delete(b.objects, packName(packs[0]))
	p, err := prune(t.Context(), s, PruneOptions{})
	if err != nil || !slices.Equal(p.Strays, packs) {
		t.Errorf("%+v, %v", p, err)
	}
	verifyClean(t, s)
	if _, err := publish(t.Context(), s, "web:1", small(1, 5)); err != nil {
		t.Fatal(err)
	}
	fetchAll(t, s, small(1, 5))
}

func TestPruneGrace(t *testing.T) {
	root := t.TempDir()
	s := initStore(t, NewDir(root))
	put(t, s, content(1, 5))
	if p, err := prune(t.Context(), s, PruneOptions{Grace: time.Hour}); err != nil || len(p.Packs) > 0 || p.Held != 1 {
		t.Errorf("a young pack: %+v, %v", p, err)
	}
	packs, err := filepath.Glob(filepath.Join(root, "packs/*/*"))
	if err != nil || len(packs) != 1 {
		t.Fatal(packs, err)
	}
	old := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(packs[0], old, old); err != nil {
		t.Fatal(err)
	}
	if p, err := prune(t.Context(), s, PruneOptions{Grace: time.Hour}); err != nil || len(p.Packs) != 1 {
		t.Errorf("an old one: %+v, %v", p, err)
	}
}

// TestPruneBesideOthers prunes again and again while others capture, read and
// remove, each with its own view of the store. None of them ever misses
// anything.
func TestPruneBesideOthers(t *testing.T) {
	root := t.TempDir()
	initStore(t, NewDir(root))
	ctx := context.Background()
	var work, pruning sync.WaitGroup
	stop := make(chan struct{})
	pruning.Go(func() {
		s := openStore(t, NewDir(root))
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := prune(ctx, s, PruneOptions{}); err != nil {
				t.Errorf("prune: %v", err)
				return
			}
		}
	})
	for who := range 3 {
		s := openStore(t, NewDir(root))
		work.Go(func() {
			for n := range 25 {
				set := slices.Concat(small(uint64(n%5), 8), small(uint64(100*who+n), 3))
				if err := captureAndPush(ctx, s, fmt.Sprintf("img:%d", who), set); err != nil {
					t.Errorf("capture %d of %d: %v", n, who, err)
					return
				}
			}
		})
	}
	work.Wait()
	close(stop)
	pruning.Wait()
	verifyClean(t, openStore(t, NewDir(root)))
}

// captureAndPush publishes an image as a capture does, and then reads it as a
// push does, each under the shared lock; in the end the name goes.
func captureAndPush(ctx context.Context, s *Store, name string, set [][]byte) error {
	release, err := s.Lock(ctx, false)
	if err != nil {
		return err
	}
	id, err := publish(ctx, s, name, set)
	release()
	if err != nil {
		return err
	}
	if release, err = s.Lock(ctx, false); err != nil {
		return err
	}
	defer release()
	m, err := s.Manifest(ctx, id)
	if err != nil {
		return err
	}
	if err := s.Fetch(ctx, Chunks(m), func(digest.ID, []byte) error { return nil }); err != nil {
		return err
	}
	r, err := ParseRef(name)
	if err != nil {
		return err
	}
	return s.RemoveRef(ctx, r)
}
