package store

import (
	"context"
	"reflect"
	"slices"
	"testing"

	"ingot/internal/digest"
)

// What the cache says of an image is what its manifest says, whatever happened
// to the packs in between and to the cache itself.
func TestUsageCache(t *testing.T) {
	backends(t, func(t *testing.T, open func() Backend) {
		ctx, b := t.Context(), open()
		s := initStore(t, b)
		for i := range 9 { // a prune will merge their packs
			if _, err := publish(ctx, s, mustRef(t, "web:"+string(rune('a'+i))).String(), slices.Concat(small(uint64(i), 9), small(uint64(i+1), 9))); err != nil {
				t.Fatal(err)
			}
		}
		nameless, err := publish(ctx, s, "gone", slices.Concat(small(1, 9), small(50, 9)))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.RemoveRef(ctx, mustRef(t, "gone")); err != nil {
			t.Fatal(err)
		}
		also := []digest.ID{nameless, {9}}
		check := func(when string) []Usage {
			t.Helper()
			cached, err := s.Usage(ctx, also)
			if err != nil || len(cached) != 10 || cached[9].Digest != nameless || cached[9].Unique == 0 {
				t.Fatalf("%s: %+v, %v", when, cached, err)
			}
			if err := b.Remove(ctx, usageName); err != nil {
				t.Fatalf("%s: there is no cache: %v", when, err)
			}
			fresh, err := openStore(t, open()).Usage(ctx, also)
			if err != nil || !reflect.DeepEqual(fresh, cached) {
				t.Errorf("%s:\n%+v\n%+v, %v", when, cached, fresh, err)
			}
			return fresh
		}
		first := check("at first")
		if again := check("again"); !reflect.DeepEqual(first, again) {
			t.Errorf("%+v\n%+v", first, again)
		}
		if p, err := prune(ctx, s, PruneOptions{Keep: also}); err != nil || len(p.Rewrite) < 9 {
			t.Fatalf("%+v, %v", p, err)
		}
		check("after a prune")
		for _, junk := range []string{"", "{", "null", `{"x":1}`, `{"` + first[0].Digest.String() + `":{"` + nameless.String() + `":"AAAA"}}`} {
			if err := b.Put(ctx, usageName, []byte(junk)); err != nil {
				t.Fatal(err)
			}
			check("with a cache of " + junk)
		}
	})
}

// Bits of chunks that a pack does not have are no reason to fall over.
func TestUsageCacheOfNothing(t *testing.T) {
	s := NewMem()
	id, err := publish(t.Context(), s, "web:1", small(1, 3))
	if err != nil {
		t.Fatal(err)
	}
	packs, err := s.packs(context.Background())
	if err != nil || len(packs) != 1 {
		t.Fatal(packs, err)
	}
	want, err := s.Usage(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	s.saveUses(t.Context(), map[digest.ID]uses{id: {packs[0]: []byte{0xff}}})
	if got, err := s.Usage(t.Context(), nil); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}

// A damaged chunk concerns the files that hold it, in every image.
func TestVerifyNamesFiles(t *testing.T) {
	b := NewMemory()
	s := initStore(t, b)
	shared := content(1, 6)
	one, err := publish(t.Context(), s, "web:1", shared)
	if err != nil {
		t.Fatal(err)
	}
	two, err := publish(t.Context(), s, "web:2", slices.Concat(content(2, 2), shared))
	if err != nil {
		t.Fatal(err)
	}
	locs, err := s.Locate(t.Context(), []digest.ID{digest.Of(shared[0])})
	if err != nil {
		t.Fatal(err)
	}
	damage(t, b, packName(locs[0].Pack), func(d []byte) []byte { clear(d[locs[0].FrameOff : locs[0].FrameOff+40]); return d })
	r, err := openStore(t, b).Verify(t.Context(), VerifyOptions{})
	if err != nil || len(r.Damage) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	d := r.Damage[0]
	slices.SortFunc(d.Manifests, compareIDs)
	want := []digest.ID{one, two}
	slices.SortFunc(want, compareIDs)
	if !slices.Equal(d.Manifests, want) || !slices.Equal(d.Images, []string{"web:1", "web:2"}) {
		t.Errorf("it concerns %v %v", d.Images, d.Manifests)
	}
	if len(d.Paths) < 6 || d.Paths[0] != "f000000" || !slices.Contains(d.Paths, "f000007") {
		t.Errorf("files %q", d.Paths)
	}
}
