package manifest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"ingot/internal/entry"
)

func applied(t *testing.T, what string, base, target *Manifest) []byte {
	t.Helper()
	d := Delta(base, target)
	got, err := base.Apply(d)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if got.ID() != target.ID() || !reflect.DeepEqual(got.Entries, target.Entries) {
		t.Fatalf("%s: applied, it is\n%+v\nwant\n%+v", what, got.Entries, target.Entries)
	}
	return d
}

func TestDelta(t *testing.T) {
	all := everything()
	fewer := &Manifest{Entries: append([]entry.Entry{}, all.Entries[:5]...)}
	for name, tc := range map[string]struct{ base, target *Manifest }{
		"nothing":         {all, all},
		"from nothing":    {tree(), all},
		"to nothing":      {all, tree()},
		"some go":         {all, fewer},
		"some come":       {fewer, all},
		"one changes":     {tree(file("a", "x"), file("b", "y")), tree(file("a", "z"), file("b", "y"))},
		"a file moves":    {tree(file("a", "x"), file("b", "y")), tree(file("b", "y"), file("c", "x"))},
		"a dir to a file": {tree(dir("d"), file("d/x", "x")), tree(file("d", "x"))},
		"of many links":   {tree(file("a", "x")), tree(file("a", "x"), link("b", "a", "x"))},
	} {
		applied(t, name, tc.base, tc.target)
	}
}

// manifests that have much in common, in all ways in which they may differ.
func TestDeltaOfAnything(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	random := func() *Manifest {
		m := tree()
		for i := range 60 {
			if r.IntN(3) == 0 {
				continue
			}
			e := entry.Entry{Path: fmt.Sprintf("f%02d", i), Type: entry.File, Mode: uint32(r.IntN(2)), ModTime: int64(r.IntN(2))}
			for range r.IntN(5) {
				c := file("", strings.Repeat("x", 1+r.IntN(12))).Chunks[0]
				e.Chunks, e.Size = append(e.Chunks, c), e.Size+int64(c.Size)
			}
			m.Entries = append(m.Entries, e)
		}
		return m
	}
	for range 500 {
		applied(t, "random", random(), random())
	}
}

// What changes costs its own size; what only moves costs its name.
func TestDeltaIsSmall(t *testing.T) {
	var list []entry.Entry
	list = append(list, dir("data"))
	for i := range 10_000 {
		list = append(list, file(fmt.Sprintf("data/f%05d", i), fmt.Sprint(i)))
	}
	base := tree(list...)
	if n := len(applied(t, "nothing", base, base)); n > 20 {
		t.Errorf("a delta of nothing takes %d bytes", n)
	}
	one := &Manifest{Entries: append([]entry.Entry{}, base.Entries...)}
	one.Entries[5000] = file(one.Entries[5000].Path, "changed")
	if n := len(applied(t, "one", base, one)); n > 120 {
		t.Errorf("one changed entry takes %d bytes", n)
	}
	moved := tree(dir("moved"))
	for i := range 10_000 {
		moved.Entries = append(moved.Entries, file(fmt.Sprintf("moved/f%05d", i), fmt.Sprint(i)))
	}
	if n := len(applied(t, "moved", base, moved)); n > 10_000*25 {
		t.Errorf("a renamed directory takes %d bytes, %d an entry", n, n/10_000)
	}
	big := entry.Entry{Path: "big", Type: entry.File}
	for i := range 50_000 {
		c := file("", fmt.Sprint(i)).Chunks[0]
		big.Chunks, big.Size = append(big.Chunks, c), big.Size+int64(c.Size)
	}
	changed := big
	changed.Chunks = append([]entry.Chunk{}, big.Chunks...)
	changed.Chunks[25_000] = file("", "25k00").Chunks[0]
	if n := len(applied(t, "big", tree(big), tree(changed))); n > 150 {
		t.Errorf("one changed chunk of a large file takes %d bytes", n)
	}
}

// A few bytes must not become a manifest without end.
func TestDeltaIsNoBomb(t *testing.T) {
	big := entry.Entry{Path: "big", Type: entry.File}
	for i := range 10_000 {
		c := file("", fmt.Sprint(i)).Chunks[0]
		big.Chunks, big.Size = append(big.Chunks, c), big.Size+int64(c.Size)
	}
	base := tree(big)
	target := tree()
	for i := range 40 {
		e := big
		e.Path = fmt.Sprintf("f%02d", i)
		target.Entries = append(target.Entries, e)
	}
	d := applied(t, "forty copies", base, target) // more than the base may give: the rest is written out
	if len(d) < 30*10_000*32-maxCopied(10_000)*32 {
		t.Errorf("forty copies of 10,000 chunks in %d bytes", len(d))
	}
	w := &deltaWriter{b: []byte(deltaMagic), flat: base.flat(), copied: -1 << 40}
	w.run(runKeep)
	for i := range 40 {
		w.run(runAdd)
		e := big
		e.Path = fmt.Sprintf("f%02d", i)
		w.entry(&e)
	}
	w.flush()
	if _, err := base.Apply(w.b); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("%d bytes that claim 400,000 chunks: %v", len(w.b), err)
	}
	for what, tail := range map[string][]byte{
		"2^60 entries":        binary.AppendUvarint(nil, 1<<62-1),
		"kept beyond the end": binary.AppendUvarint(nil, 100<<2),
		"an unknown run":      {7},
		"cut short":           {4<<2 | runAdd},
	} {
		if m, err := base.Apply(append([]byte(deltaMagic), tail...)); err == nil {
			t.Errorf("%s is accepted: %+v", what, m)
		}
	}
}

func FuzzApply(f *testing.F) {
	base := everything()
	f.Add(Delta(base, tree(file("a", "x"))))
	f.Add(Delta(base, base))
	f.Add(Delta(base, tree(dir("moved"), file("moved/a-b", ""), symlink("moved/l", "x"))))
	big := everything()
	for i := range big.Entries {
		big.Entries[i].ModTime++
	}
	f.Add(Delta(base, big))
	f.Fuzz(func(t *testing.T, delta []byte) {
		m, err := base.Apply(delta)
		if err != nil {
			return
		}
		if err := m.Validate(); err != nil {
			t.Errorf("accepted and not valid: %v", err)
		}
		b := m.Encode()
		if len(b) > 200*(len(delta)+1000) {
			t.Errorf("%d bytes became %d", len(delta), len(b))
		}
		if _, err := Decode(b); err != nil {
			t.Errorf("its encoding is refused: %v", err)
		}
	})
}
