package store

import (
	"bytes"
	"encoding/json"
	"reflect"
	"runtime"
	"testing"

	"ingot/internal/digest"
)

// Any byte of any object, changed in any of some ways, is damage: to the
// store as a whole, or to Verify.
func TestEveryFlipIsFound(t *testing.T) {
	b := NewMemory()
	s, pack, _ := onePack(t, b)
	id, err := s.Resolve(t.Context(), "web:1")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{configName, "names/web/1", manifestName(id), indexName(pack)} {
		size := len(object(t, b, name))
		for at := 0; at < size; at += 1 + size/200 {
			for _, flip := range []byte{1, 0x20, 0xff} {
				restore := damage(t, b, name, func(b []byte) []byte { b[at] ^= flip; return b })
				s, err := OpenBackend(t.Context(), b)
				if err == nil {
					var r Report
					if r, err = s.Verify(t.Context(), VerifyOptions{}); err == nil {
						err = r.Err()
					}
				}
				if err == nil {
					t.Errorf("%s: byte %d of %d ^ %#x is not found", name, at, size, flip)
				}
				restore()
			}
		}
	}
}

// Stores of before the checks can be read.
func TestRecordsAndManifestsWithoutChecks(t *testing.T) {
	b := NewMemory()
	s, _, _ := onePack(t, b)
	id, err := s.Resolve(t.Context(), "web:1")
	if err != nil {
		t.Fatal(err)
	}
	damage(t, b, manifestName(id), func(b []byte) []byte { return b[:len(b)-len(checkHead)-digest.Size] })
	damage(t, b, "names/web/1", func(b []byte) []byte {
		img, err := decodeRecord(bytes.Clone(b))
		if err != nil {
			t.Fatal(err)
		}
		old, err := json.MarshalIndent(img, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		return old
	})
	if r, err := openStore(t, b).Verify(t.Context(), VerifyOptions{}); err != nil || r.Err() != nil {
		t.Errorf("%v, %v", err, r.Err())
	}
}

func TestRepairWritesIndexesAgain(t *testing.T) {
	b := NewMemory()
	s, pack, chunks := onePack(t, b)
	good := object(t, b, indexName(pack))
	damage(t, b, indexName(pack), func(b []byte) []byte { b[77] ^= 1; return b })
	s = openStore(t, b)
	r, err := s.Verify(t.Context(), VerifyOptions{})
	if err != nil || len(r.Damage) != 1 || r.Damage[0].Object != "index" || r.Damage[0].ID != pack.String() {
		t.Fatalf("%v, %+v", err, r.Damage)
	}
	done, err := s.Repair(t.Context(), r)
	if err != nil || len(done.Indexes) != 1 || len(done.Packs)+len(done.Manifests)+len(done.Images) != 0 {
		t.Errorf("%v, %+v", err, done)
	}
	if !bytes.Equal(object(t, b, indexName(pack)), good) {
		t.Error("the index is another")
	}
	fetchAll(t, s, chunks)
}

// A record that is read is one that was written, or is damaged.
func FuzzRecord(f *testing.F) {
	good, err := encodeRecord(Image{Digest: digest.Of([]byte("x")), Source: "directory /srv", Arch: "amd64", Size: 5, Entries: 2})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"digest":"` + digest.Of(nil).String() + `"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		img, err := decodeRecord(bytes.Clone(raw))
		if err != nil {
			return
		}
		again, err := encodeRecord(img)
		if err != nil {
			t.Skip() // a year that JSON cannot say
		}
		if got, err := decodeRecord(again); err != nil || !reflect.DeepEqual(got, img) {
			t.Fatalf("%+v, then %+v, %v", img, got, err)
		}
	})
}

// A stored manifest is decoded to the digest that it has, or refused.
func FuzzStoredManifest(f *testing.F) {
	s := NewMem()
	raw := []byte("no manifest, but what is one is not asked here")
	id := digest.Of(raw)
	f.Add(appendCheck(s.enc.EncodeAll(raw, nil)))
	f.Add(s.enc.EncodeAll(raw, nil))
	f.Add([]byte(claimsMuch))
	f.Fuzz(func(t *testing.T, stored []byte) {
		if got, err := UnpackManifest(id, stored); err == nil && !bytes.Equal(got, raw) {
			t.Fatalf("%q", got)
		}
	})
}

// claimsMuch is a frame of 13 bytes that says it holds 808 MB.
const claimsMuch = "(\xb5/\xfd\x94$$$\x13000A"

// What a stored manifest claims to hold costs no memory where it cannot.
func TestAManifestThatClaimsMuch(t *testing.T) {
	raw := []byte("a manifest")
	good := NewMem().enc.EncodeAll(raw, nil)
	for name, stored := range map[string][]byte{"alone": []byte(claimsMuch), "behind another": append(bytes.Clone(good), claimsMuch...)} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := UnpackManifest(digest.Of(raw), stored)
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; err == nil || grown > 32<<20 {
			t.Errorf("%s: %v, with %d bytes of memory", name, err, grown)
		}
	}
	if got, err := UnpackManifest(digest.Of(raw), good); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("%q, %v", got, err)
	}
	large := bytes.Repeat([]byte("x"), 64<<20) // as dense as a frame can be
	if got, err := UnpackManifest(digest.Of(large), NewMem().enc.EncodeAll(large, nil)); err != nil || !bytes.Equal(got, large) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
