package store

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"ingot/internal/digest"
)

// repaired verifies and repairs a store as another process would.
func repaired(t *testing.T, b Backend) (Report, Repaired) {
	t.Helper()
	s := openStore(t, b)
	release, err := s.Lock(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	r, err := s.Verify(t.Context(), VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	done, err := s.Repair(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return r, done
}

func flipMiddle(b []byte) []byte { b[len(b)/2] ^= 1; return b }

func TestRepairThenCapture(t *testing.T) {
	backends(t, func(t *testing.T, open func() Backend) {
		b := open()
		s, id, chunks := onePack(t, b)
		// Its name says which images need a part of the pack, not which chunks are damaged.
		if _, err := publish(t.Context(), s, "part:1", chunks[:1]); err != nil {
			t.Fatal(err)
		}
		damage(t, b, packName(id), flipMiddle)
		if _, err := publish(t.Context(), openStore(t, b), "web:1", chunks); err != nil {
			t.Fatal(err)
		}
		if r, err := openStore(t, b).Verify(t.Context(), VerifyOptions{}); err != nil || len(r.Damage) != 1 {
			t.Fatalf("a capture alone repairs it? %v, %+v", err, r.Damage)
		}
		r, done := repaired(t, b)
		if len(r.Damage) != 1 || !slices.Equal(done.Packs, []digest.ID{id}) || !slices.Equal(done.Images, []string{"part:1", "web:1"}) || len(done.Manifests) > 0 {
			t.Errorf("%+v, %+v", r.Damage, done)
		}
		for ref, chunks := range map[string][][]byte{"web:1": chunks, "part:1": chunks[:1]} {
			if _, err := publish(t.Context(), openStore(t, b), ref, chunks); err != nil {
				t.Fatal(err)
			}
		}
		fetchAll(t, openStore(t, b), chunks)
		verifyClean(t, openStore(t, b))
		if _, done := repaired(t, b); len(done.Packs)+len(done.Images)+len(done.Manifests) > 0 {
			t.Errorf("repaired what is whole: %+v", done)
		}
		if len(object(t, b, "damaged/"+id.String())) == 0 {
			t.Error("the damaged pack is not kept")
		}
	})
}

// A capture of other content cannot make the old image whole: once no name
// points to it, it is out of use, too.
func TestRepairManifests(t *testing.T) {
	backends(t, func(t *testing.T, open func() Backend) {
		b := open()
		s, pack, _ := onePack(t, b)
		old, err := s.Resolve(t.Context(), "web:1")
		if err != nil {
			t.Fatal(err)
		}
		other, err := s.Resolve(t.Context(), "other:1")
		if err != nil {
			t.Fatal(err)
		}
		damage(t, b, packName(pack), flipMiddle)
		damage(t, b, manifestName(other), flipMiddle)
		_, done := repaired(t, b)
		if !slices.Equal(done.Images, []string{"other:1", "web:1"}) || !slices.Equal(done.Manifests, []digest.ID{other}) {
			t.Errorf("%+v", done)
		}
		for i, ref := range []string{"web:1", "other:1"} {
			if _, err := publish(t.Context(), openStore(t, b), ref, content(uint64(90+i), 5)); err != nil {
				t.Fatal(err)
			}
		}
		if _, done = repaired(t, b); !slices.Equal(done.Manifests, []digest.ID{old}) || len(done.Images) > 0 {
			t.Errorf("%+v", done)
		}
		verifyClean(t, openStore(t, b))
	})
}

func TestAPackWithoutAnyIndexIsDamage(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, b Backend, id digest.ID){
		"both damaged": func(t *testing.T, b Backend, id digest.ID) {
			damage(t, b, indexName(id), func(b []byte) []byte { return b[:len(b)/2] })
			damage(t, b, packName(id), func(b []byte) []byte { b[len(b)-3] ^= 1; return b })
		},
		"index damaged, pack empty": func(t *testing.T, b Backend, id digest.ID) {
			damage(t, b, indexName(id), flipMiddle)
			damage(t, b, packName(id), func([]byte) []byte { return nil })
		},
		"index damaged, pack gone": func(t *testing.T, b Backend, id digest.ID) {
			damage(t, b, indexName(id), flipMiddle)
			if err := b.Remove(t.Context(), packName(id)); err != nil {
				t.Fatal(err)
			}
		},
		"index gone, pack damaged": func(t *testing.T, b Backend, id digest.ID) {
			if err := b.Remove(t.Context(), indexName(id)); err != nil {
				t.Fatal(err)
			}
			damage(t, b, packName(id), func(b []byte) []byte { return b[:len(b)-1] })
		},
	} {
		for _, b := range []Backend{NewMemory(), NewDir(t.TempDir())} {

			_, id, chunks := onePack(t, b)
			spoil(t, b, id)
			s := openStore(t, b)
			fetchAll(t, s, content(50, 10)) // the other image is as good as before
			r, err := s.Verify(t.Context(), VerifyOptions{})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			isPack := func(d Damage) bool { return d.Object == "pack" && d.ID == id.String() }
			isImage := func(d Damage) bool { return d.Object == "manifest" && slices.Equal(d.Images, []string{"web:1"}) }
			if len(r.Damage) != 2 || !slices.ContainsFunc(r.Damage, isPack) || !slices.ContainsFunc(r.Damage, isImage) {
				t.Errorf("%s: %+v", name, r.Damage)
			}
			other, err := s.Resolve(t.Context(), "other:1")
			if err != nil || s.VerifyCached(t.Context(), other) != nil {
				t.Errorf("%s: the other image: %v, %v", name, err, s.VerifyCached(t.Context(), other))
			}
			if _, done := repaired(t, b); !slices.Equal(done.Images, []string{"web:1"}) {
				t.Errorf("%s: %+v", name, done)
			}
			if _, err := publish(t.Context(), openStore(t, b), "web:1", chunks); err != nil {
				t.Fatal(err)
			}
			verifyClean(t, openStore(t, b))
		}
	}
}

func TestABadNameHidesNoOther(t *testing.T) {
	backends(t, func(t *testing.T, open func() Backend) {
		b := open()
		s, _, _ := onePack(t, b)
		damage(t, b, "names/web/1", func([]byte) []byte { return bytes.Repeat([]byte("x"), 50) })
		use, err := s.Usage(t.Context(), nil)
		var bad *NameError
		if err != nil || len(use) != 2 || use[0].Ref.String() != "other:1" || use[0].Err != nil || use[0].Stored == 0 ||
			use[1].Ref.String() != "web:1" || !errors.As(use[1].Err, &bad) {
			t.Errorf("%v, %+v", err, use)
		}
		refs, err := s.Refs(t.Context())
		if len(refs) != 1 || !errors.As(err, &bad) || bad.Ref.String() != "web:1" {
			t.Errorf("%v, %v", refs, err)
		}
		r, err := s.Verify(t.Context(), VerifyOptions{})
		if err != nil || len(r.Damage) != 1 || r.Damage[0].ID != "web:1" {
			t.Errorf("%v, %+v", err, r.Damage)
		}
	})
}

// dyingRepair dies before a removal or a move, too.
type dyingRepair struct{ dying }

func (d *dyingRepair) Remove(ctx context.Context, name string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.Backend.Remove(ctx, name)
}

type dyingMover struct{ dyingRepair }

func (d *dyingMover) Move(ctx context.Context, from, to string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.Backend.(mover).Move(ctx, from, to)
}

// A repair that dies anywhere may be followed by anything: a capture, which
// indexes packs without an index, or the repair again.
func TestRepairDiesAnywhere(t *testing.T) {
	for name, backend := range map[string]struct {
		open  func(t *testing.T) Backend
		dying func(b Backend, left int) Backend
	}{
		"Memory": {func(*testing.T) Backend { return NewMemory() }, func(b Backend, n int) Backend { return &dyingRepair{dying{Backend: b, left: n}} }},
		"Dir":    {func(t *testing.T) Backend { return NewDir(t.TempDir()) }, func(b Backend, n int) Backend { return &dyingMover{dyingRepair{dying{Backend: b, left: n}}} }},
	} {
		t.Run(name, func(t *testing.T) {
			for n, done := 0, false; !done; n++ {
				b := backend.open(t)
				_, id, chunks := onePack(t, b)
				damage(t, b, packName(id), flipMiddle)
				r, err := openStore(t, b).Verify(t.Context(), VerifyOptions{})
				if err != nil || len(r.Damage) != 1 {
					t.Fatalf("%v, %+v", err, r.Damage)
				}
				_, err = openStore(t, backend.dying(b, n)).Repair(t.Context(), r)
				if done = err == nil; !done && !errors.Is(err, errDead) {
					t.Fatal(err)
				}
				if done && n < 2 {
					t.Errorf("done after %d steps: nothing was tested", n)
				}
				if _, err := publish(t.Context(), openStore(t, b), "third:1", content(70, 5)); err != nil {
					t.Fatalf("step %d: %v", n, err)
				}
				if r, err := openStore(t, b).Verify(t.Context(), VerifyOptions{}); err != nil || len(r.Damage) == 0 {
					t.Errorf("step %d: the damage is not seen any more: %v", n, err)
				}
				repaired(t, b)
				if _, err := publish(t.Context(), openStore(t, b), "web:1", chunks); err != nil {
					t.Fatalf("step %d: %v", n, err)
				}
				verifyClean(t, openStore(t, b))
			}
		})
	}
}
