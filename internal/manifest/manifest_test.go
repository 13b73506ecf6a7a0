package manifest

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

func dir(p string) entry.Entry { return entry.Entry{Path: p, Type: entry.Dir, Mode: 0755} }

func file(p, content string) entry.Entry {
	e := entry.Entry{Path: p, Type: entry.File, Mode: 0644, Size: int64(len(content))}
	if content != "" {
		e.Chunks = []entry.Chunk{{ID: digest.Of([]byte(content)), Size: uint32(len(content))}}
	}
	return e
}

func link(p, to, content string) entry.Entry {
	e := file(p, content)
	e.Chunks, e.Link = nil, to
	return e
}

func symlink(p, target string) entry.Entry {
	return entry.Entry{Path: p, Type: entry.Symlink, Mode: 0777, Target: target}
}

func tree(es ...entry.Entry) *Manifest {
	return &Manifest{Entries: append([]entry.Entry{dir(".")}, es...)}
}

// everything is a tree with all that the format can say.
func everything() *Manifest {
	sparse := entry.Entry{Path: "sparse", Type: entry.File, Size: 1 << 40,
		Holes:  []entry.Extent{{Off: 0, Len: 4096}, {Off: 8192, Len: 1<<40 - 8192}},
		Chunks: []entry.Chunk{{ID: digest.Of([]byte("s")), Size: 4096}}}
	return tree(
		entry.Entry{Path: "a", Type: entry.Dir, Mode: 07777, UID: math.MaxUint32, GID: 1, ModTime: -1},
		entry.Entry{Path: "a/c", Type: entry.CharDevice, Major: 300, Minor: 70000},
		entry.Entry{Path: "a/d", Type: entry.BlockDevice},
		entry.Entry{Path: "a/f", Type: entry.FIFO, ModTime: math.MinInt64},
		entry.Entry{Path: "a/g", Type: entry.File, Mode: 04755, Size: 5, ModTime: math.MaxInt64,
			Xattrs: []entry.Xattr{{Name: "security.capability", Value: "\x00\x01"}, {Name: "user.empty"}},
			Chunks: []entry.Chunk{{ID: digest.Of([]byte("ab")), Size: 2}, {ID: digest.Of([]byte("abc")), Size: 3}}},
		file("a-b", ""),
		symlink("l", "../..\n\xff"),
		link("n\\x\n\xff", "a-b", ""),
		sparse,
	)
}

func TestEncodeDecode(t *testing.T) {
	for name, m := range map[string]*Manifest{"everything": everything(), "top only": tree()} {
		b := m.Encode()
		got, err := Decode(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(got.Entries, m.Entries) {
			t.Errorf("%s: decoded\n%+v, want\n%+v", name, got, m)
		}
		if m.ID() != digest.Of(b) {
			t.Errorf("%s: ID is not the digest of the encoding", name)
		}
	}
}

// The format is frozen: these bytes are what stores hold.
func TestEncodingIsFrozen(t *testing.T) {
	const want = "9da552408bf07d852afd4547b315eafd7833e615959c60c9d2a9324bbbab32e6"
	if got := everything().ID().String(); got != want {
		t.Errorf("the digest of the same tree was %s and is %s", want, got)
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := everything().Encode()
	edit := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	swap := func(old, new string) []byte { return bytes.Replace(bytes.Clone(good), []byte(old), []byte(new), 1) }
	header := func(count uint64) []byte {
		h := appendString(nil, fieldMagic, Magic)
		h = appendUint(h, fieldVersion, Version)
		return appendBytes(nil, fieldHeader, appendUint(h, fieldCount, count))
	}
	one := func(b []byte) []byte { return appendBytes(header(1), fieldEntry, b) }
	top := appendEntry(nil, &entry.Entry{Path: ".", Type: entry.Dir})
	tests := map[string][]byte{
		"nothing":             nil,
		"text":                []byte("hello, this is not a manifest"),
		"wrong magic":         swap("ingot manifest", "Ingot manifest"),
		"next version":        swap("manifest\x10\x01", "manifest\x10\x02"),
		"cut":                 good[:len(good)-1],
		"cut to the header":   good[:20],
		"trailing byte":       append(bytes.Clone(good), 0),
		"trailing entry":      append(bytes.Clone(good), 0x12, 0),
		"too many claimed":    append(header(1<<62), good[21:]...),
		"too few claimed":     append(header(1), good[21:]...),
		"none":                header(0),
		"long varint":         one(append(bytes.Clone(top), 0x18, 0x80, 0x00)),
		"default written out": one(append(bytes.Clone(top), 0x18, 0x00)),
		"field twice":         one(append(bytes.Clone(top), 0x10, 0x02)),
		"fields descending":   one([]byte{0x10, 0x02, 0x0a, 0x01, '.'}),
		"unknown field":       one(append(bytes.Clone(top), 0x80, 0x01, 0x01)),
		"field 0":             one(append(bytes.Clone(top), 0x00, 0x01)),
		"group":               one(append(bytes.Clone(top), 0x1b)),
		"huge length":         one(protowire.AppendVarint([]byte{0x0a}, math.MaxUint64)),
		"huge varint":         one(append(bytes.Clone(top), 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f)),
		"mode of 33 bits":     one(appendUint(bytes.Clone(top), fieldMode, 1<<32)),
		"half a digest":       one(appendBytes(bytes.Clone(top), fieldChunkIDs, make([]byte, 16))),
		"sizes, no chunks":    one(appendBytes(bytes.Clone(top), fieldChunkSizes, []byte{1})),
		"flipped in a name":   edit(func(b []byte) []byte { i := bytes.Index(b, []byte("a/c")); b[i+1] = 0; return b }),
	}
	for name, b := range tests {
		if m, err := Decode(b); err == nil {
			t.Errorf("%s: decoded to %+v", name, m)
		}
	}
}

func TestValidateRefuses(t *testing.T) {
	f := func(change func(*entry.Entry)) entry.Entry { e := file("f", "data"); change(&e); return e }
	hole := func(size int64, holes ...entry.Extent) *Manifest {
		return tree(f(func(e *entry.Entry) { e.Size, e.Holes, e.Chunks = size, holes, nil }))
	}
	tests := map[string]*Manifest{
		"empty":              {},
		"top is a file":      {Entries: []entry.Entry{file(".", "")}},
		"no top":             {Entries: []entry.Entry{dir("a")}},
		"two tops":           tree(dir(".")),
		"absolute":           tree(file("/etc", "")),
		"dot dot":            tree(file("..", "")),
		"inner dot dot":      tree(dir("a"), file("a/../b", "")),
		"dot":                tree(dir("a"), file("a/./b", "")),
		"double slash":       tree(dir("a"), file("a//b", "")),
		"trailing slash":     tree(dir("a/")),
		"empty path":         tree(file("", "")),
		"NUL":                tree(file("a\x00b", "")),
		"long name":          tree(file(strings.Repeat("x", 256), "")),
		"long path":          tree(file(strings.Repeat("x/", 1<<14)+"y", "")),
		"twice":              tree(file("a", ""), file("a", "")),
		"out of order":       tree(file("b", ""), file("a", "")),
		"wrong order of -":   tree(dir("a"), file("a-b", ""), file("a/b", "")),
		"no parent":          tree(file("a/b", "")),
		"parent is a file":   tree(file("a", ""), file("a/b", "")),
		"parent is a link":   tree(symlink("a", "/etc"), file("a/passwd", "")),
		"grandparent only":   tree(dir("a"), file("a/b/c", "")),
		"type 0":             tree(entry.Entry{Path: "a"}),
		"type 7":             tree(entry.Entry{Path: "a", Type: 7}),
		"mode with type":     tree(f(func(e *entry.Entry) { e.Mode = 0100644 })),
		"symlink to naught":  tree(symlink("a", "")),
		"target with NUL":    tree(symlink("a", "b\x00c")),
		"long target":        tree(symlink("a", strings.Repeat("x", 4096))),
		"target on a file":   tree(f(func(e *entry.Entry) { e.Target = "x" })),
		"device on a file":   tree(f(func(e *entry.Entry) { e.Major = 8 })),
		"size on a dir":      tree(entry.Entry{Path: "a", Type: entry.Dir, Size: 1}),
		"chunks on a fifo":   tree(entry.Entry{Path: "a", Type: entry.FIFO, Chunks: []entry.Chunk{{Size: 1}}}),
		"xattr twice":        tree(f(func(e *entry.Entry) { e.Xattrs = []entry.Xattr{{Name: "a"}, {Name: "a"}} })),
		"xattr order":        tree(f(func(e *entry.Entry) { e.Xattrs = []entry.Xattr{{Name: "b"}, {Name: "a"}} })),
		"xattr no name":      tree(f(func(e *entry.Entry) { e.Xattrs = []entry.Xattr{{}} })),
		"xattr huge":         tree(f(func(e *entry.Entry) { e.Xattrs = []entry.Xattr{{Name: "a", Value: strings.Repeat("x", 1<<16+1)}} })),
		"size too large":     tree(f(func(e *entry.Entry) { e.Size++ })),
		"size too small":     tree(f(func(e *entry.Entry) { e.Size-- })),
		"negative size":      tree(f(func(e *entry.Entry) { e.Size, e.Chunks = -1, nil })),
		"empty chunk":        tree(f(func(e *entry.Entry) { e.Chunks = append(e.Chunks, entry.Chunk{}) })),
		"huge chunk":         tree(f(func(e *entry.Entry) { e.Size, e.Chunks = MaxChunk+1, []entry.Chunk{{Size: MaxChunk + 1}} })),
		"hole outside":       hole(10, entry.Extent{Off: 5, Len: 6}),
		"hole overflows":     hole(10, entry.Extent{Off: math.MaxInt64, Len: math.MaxInt64}),
		"hole negative":      hole(10, entry.Extent{Off: -1, Len: 11}),
		"hole empty":         hole(10, entry.Extent{Off: 0, Len: 0}, entry.Extent{Off: 1, Len: 9}),
		"holes touch":        hole(10, entry.Extent{Off: 0, Len: 5}, entry.Extent{Off: 5, Len: 5}),
		"holes overlap":      hole(10, entry.Extent{Off: 0, Len: 6}, entry.Extent{Off: 5, Len: 5}),
		"linked directory":   tree(dir("a"), func() entry.Entry { e := dir("b"); e.Link = "a"; return e }()),
		"link, other type":   tree(symlink("a", "x"), link("b", "a", "")),
		"link, other target": tree(symlink("a", "x"), func() entry.Entry { e := symlink("b", "y"); e.Link = "a"; return e }()),
		"link to nothing":    tree(link("b", "a", "")),
		"link to later":      tree(link("a", "b", ""), file("b", "")),
		"link to itself":     tree(link("a", "a", "")),
		"link out":           tree(link("a", "../etc/passwd", "")),
		"link to a dir":      tree(dir("a"), link("b", "a", "")),
		"link to a link":     tree(file("a", ""), link("b", "a", ""), link("c", "b", "")),
		"link, other size":   tree(file("a", "x"), link("b", "a", "xx")),
		"link, other mode":   tree(file("a", ""), func() entry.Entry { e := link("b", "a", ""); e.Mode = 0600; return e }()),
		"link with chunks":   tree(file("a", "x"), func() entry.Entry { e := file("b", "x"); e.Link = "a"; return e }()),
	}
	for name, m := range tests {
		if err := m.Validate(); err == nil {
			t.Errorf("%s: valid", name)
		}
		if _, err := Decode(m.Encode()); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
	if err := everything().Validate(); err != nil {
		t.Error(err)
	}
}

func TestDecodeKnown(t *testing.T) {
	for _, m := range []*Manifest{everything(), tree(), big(3000)} {
		b := m.Encode()
		for parts := range 9 {
			got, err := decodeKnown(string(b), parts+1, 2)
			if err != nil || !reflect.DeepEqual(got, m) {
				t.Fatalf("%d entries in %d parts: %v", len(m.Entries), parts+1, err)
			}
		}
		if got, err := DecodeKnown(b); err != nil || !reflect.DeepEqual(got, m) {
			t.Fatalf("%d entries: %v", len(m.Entries), err)
		}
		if n, err := Count(b[:min(len(b), HeadSize)]); err != nil || n != len(m.Entries) {
			t.Errorf("%d entries counted, want %d: %v", n, len(m.Entries), err)
		}
		clear(b) // nothing points into it
		if got, err := DecodeKnown(m.Encode()); err != nil || !reflect.DeepEqual(got, m) {
			t.Fatalf("%d entries, once more: %v", len(m.Entries), err)
		}
	}
	b := everything().Encode()
	for n := range b {
		if _, err := decodeKnown(string(b[:n]), 2, 2); err == nil {
			t.Fatalf("its first %d bytes are taken", n)
		}
	}
	for _, bad := range []string{"", "x", string(b[:5])} {
		if n, err := Count([]byte(bad)); err == nil {
			t.Errorf("%q has %d entries", bad, n)
		}
	}
	if _, err := DecodeKnown(append(b, 0)); err == nil {
		t.Error("a byte too many is taken")
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range []*Manifest{everything(), tree(), tree(file("a", "x"), link("b", "a", "x"))} {
		b := m.Encode()
		if len(b) == 0 {
			f.Fatal("empty seed")
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		known, knownErr := decodeKnown(string(b), 3, 1)
		m, err := Decode(b)
		if err != nil {
			return
		}
		if knownErr != nil || !reflect.DeepEqual(known, m) {
			t.Fatalf("in parts it is something else: %v", knownErr)
		}
		if !bytes.Equal(m.Encode(), b) {
			t.Fatal("two encodings of one manifest")
		}
		if err := m.Validate(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSortAndLookup(t *testing.T) {
	want := everything()
	m := &Manifest{Entries: append([]entry.Entry(nil), want.Entries...)}
	rng := rand.New(rand.NewPCG(1, 2))
	rng.Shuffle(len(m.Entries), func(i, j int) { m.Entries[i], m.Entries[j] = m.Entries[j], m.Entries[i] })
	m.Sort()
	if !reflect.DeepEqual(m, want) {
		t.Errorf("sorted %+v", m)
	}
	for i := range m.Entries {
		if e, ok := m.Lookup(m.Entries[i].Path); !ok || e != &m.Entries[i] {
			t.Errorf("lookup %q: %v", m.Entries[i].Path, ok)
		}
	}
	for _, p := range []string{"", "a/", "a/a", "zz", ".."} {
		if _, ok := m.Lookup(p); ok {
			t.Errorf("found %q", p)
		}
	}
	// A link that sorts before the name that holds the content.
	m = tree(file("z", "x"), link("a", "z", "x"), link("b", "z", "x"))
	m.Sort()
	if want := tree(file("a", "x"), link("b", "a", "x"), link("z", "a", "x")); !reflect.DeepEqual(m, want) {
		t.Errorf("relinked %+v", m)
	}
	if n := m.TotalSize(); n != 1 {
		t.Errorf("total size %d", n)
	}
}

func TestDiff(t *testing.T) {
	touched := file("same", "x")
	touched.ModTime = 9
	tests := []struct {
		name string
		a, b *Manifest
		want string
	}{
		{"equal", everything(), everything(), ""},
		{"all", tree(file("a", "x"), dir("d"), file("d/x", "1"), file("e", ""), file("same", "x")),
			tree(file("b", "x"), symlink("d", "e"), file("e", "new"), touched),
			"a removed, b added, d type, d/x removed, e content, same meta"},
		{"linked content", tree(file("a", "x"), link("b", "a", "x")), tree(file("a", "y"), link("b", "a", "y")), "a content, b content"},
		{"link broken", tree(file("a", "x"), link("b", "a", "x")), tree(file("a", "x"), file("b", "x")), "b content"},
	}
	for _, tt := range tests {
		var got []string
		for _, c := range Diff(tt.a, tt.b) {
			if (c.A == nil) != (c.Kind == Added) || (c.B == nil) != (c.Kind == Removed) {
				t.Errorf("%s: sides of %+v", tt.name, c)
			}
			got = append(got, fmt.Sprintf("%s %s", c.Path, c.Kind))
		}
		if s := strings.Join(got, ", "); s != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, s, tt.want)
		}
	}
}

func TestWith(t *testing.T) {
	over := func(es ...entry.Entry) *Manifest { return &Manifest{Entries: es} }
	tests := []struct {
		name             string
		base, over, want *Manifest
	}{
		{"nothing", everything(), over(), everything()},
		{"add and replace", tree(dir("etc"), file("etc/a", "1")), over(file("etc/a", "2"), file("etc/b", "3")),
			tree(dir("etc"), file("etc/a", "2"), file("etc/b", "3"))},
		{"make parents", tree(), over(file("x/y/z", "1")), tree(dir("x"), dir("x/y"), file("x/y/z", "1"))},
		{"over's directory wins", tree(dir("d"), file("d/f", "1")), over(entry.Entry{Path: "d", Type: entry.Dir, Mode: 0700}),
			tree(entry.Entry{Path: "d", Type: entry.Dir, Mode: 0700}, file("d/f", "1"))},
		{"file for directory", tree(dir("d"), dir("d/e"), file("d/e/f", "1"), file("d-x", "2")), over(file("d", "3")),
			tree(file("d", "3"), file("d-x", "2"))},
		{"directory for file", tree(file("d", "1")), over(file("d/f", "2")), tree(dir("d"), file("d/f", "2"))},
		{"through a merged usr", tree(symlink("lib", "usr/lib"), dir("usr"), dir("usr/lib")), over(file("lib/systemd/x", "1")),
			tree(symlink("lib", "usr/lib"), dir("usr"), dir("usr/lib"), dir("usr/lib/systemd"), file("usr/lib/systemd/x", "1"))},
		{"through absolute and climbing links", tree(dir("a"), symlink("a/l", "/../../b"), dir("b")), over(file("a/l/f", "1")),
			tree(dir("a"), symlink("a/l", "/../../b"), dir("b"), file("b/f", "1"))},
		{"an own directory replaces the link", tree(symlink("lib", "usr/lib")), over(dir("lib"), file("lib/x", "1")),
			tree(dir("lib"), file("lib/x", "1"))},
		{"the holder of links is replaced", tree(file("a", "x"), link("b", "a", "x"), link("c", "a", "x")), over(file("a", "y")),
			tree(file("a", "y"), file("b", "x"), link("c", "b", "x"))},
		{"a link is replaced", tree(file("a", "x"), link("b", "a", "x")), over(file("b", "y")), tree(file("a", "x"), file("b", "y"))},
		{"over's links", tree(file("a", "x"), link("b", "a", "x")), over(file("b", "y"), link("c", "b", "y")),
			tree(file("a", "x"), file("b", "y"), link("c", "b", "y"))},
		{"the holder is buried", tree(dir("d"), file("d/a", "x"), link("e", "d/a", "x")), over(file("d", "y")),
			tree(file("d", "y"), file("e", "x"))},
	}
	for _, tt := range tests {
		a, b := tt.base.Encode(), tt.over.Encode()
		got := tt.base.With(tt.over)
		if err := got.Validate(); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if !bytes.Equal(got.Encode(), tt.want.Encode()) {
			t.Errorf("%s:\n%+v, want\n%+v", tt.name, got.Entries, tt.want.Entries)
		}
		if !bytes.Equal(a, tt.base.Encode()) || !bytes.Equal(b, tt.over.Encode()) {
			t.Errorf("%s: changed its inputs", tt.name)
		}
	}
}

func TestWithSurvivesLinkLoops(t *testing.T) {
	base := tree(symlink("a", "b"), symlink("b", "a"))
	got := base.With(&Manifest{Entries: []entry.Entry{file("a/f", "1")}})
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
}

// big is a tree like a small Debian.
func big(n int) *Manifest {
	m := tree()
	for d := 0; len(m.Entries) < n; d++ {
		name := fmt.Sprintf("usr-%05d", d)
		m.Entries = append(m.Entries, dir(name))
		for f := range 15 {
			m.Entries = append(m.Entries, file(fmt.Sprintf("%s/some-longer-file-name-%02d.py", name, f), name))
		}
	}
	return m
}

func TestFortyThousandEntriesAreFast(t *testing.T) {
	m := big(40_000)
	best := time.Hour
	for range 5 {
		start := time.Now()
		if _, err := Decode(m.Encode()); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(start))
	}
	t.Logf("encode and decode of %d entries: %v", len(m.Entries), best)
	if best > 500*time.Millisecond { // 20 ms on an idle machine; this one may be busy
		t.Errorf("%v for %d entries", best, len(m.Entries))
	}
}

func BenchmarkEncode(b *testing.B) {
	m := big(40_000)
	for b.Loop() {
		m.Encode()
	}
}

func BenchmarkDecode(b *testing.B) {
	enc := big(40_000).Encode()
	for b.Loop() {
		if _, err := Decode(enc); err != nil {
			b.Fatal(err)
		}
	}
}
