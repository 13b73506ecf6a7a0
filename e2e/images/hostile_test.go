//go:build linux && amd64

package images

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"

	"ingot/imager/store"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/steps"
)

// little is the memory in bytes that must be enough to find out that
// something is hostile.
const little = 150 << 20

// put writes a file of the store.
func (s site) put(name string, data []byte) {
	s.t.Helper()
	p := filepath.Join(s.store(), name)
	ok(s.t, os.MkdirAll(filepath.Dir(p), 0o700))
	ok(s.t, os.WriteFile(p, data, 0o600))
}

// plant makes a manifest an image of the store, whatever it holds: nobody but
// a reader checks it.
func (s site) plant(image string, id digest.ID, stored []byte) {
	s.t.Helper()
	s.put("manifests/"+id.String()[:2]+"/"+id.String()+".zst", stored)
	images, err := store.Open(s.store())
	ok(s.t, err)
	ref, err := store.ParseRef(image)
	ok(s.t, err)
	ok(s.t, images.SetRef(s.t.Context(), ref, store.Image{Digest: id}))
}

// squeezed is what r holds as one frame, and its digest.
func squeezed(t testing.TB, r io.Reader, size int64) ([]byte, digest.ID) {
	t.Helper()
	var out bytes.Buffer
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	ok(t, err)
	enc.ResetContentSize(&out, size)
	h := sha256.New()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(enc, h)}, io.LimitReader(r, size), make([]byte, 1<<20))
	ok(t, err)
	ok(t, enc.Close())
	return out.Bytes(), digest.ID(h.Sum(nil))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// measured runs ingot and returns the most memory that it had, in bytes.
func (s site) measured(args ...string) (result, int64) {
	s.t.Helper()
	r, st := s.with(steps.Fault{}, args...)
	if st.Memory == 0 {
		s.t.Errorf("ingot %q: its memory was not measured", args)
	}
	return r, st.Memory
}

// refuses lets every reader look at a hostile image: each refuses it, with
// little memory, writes nothing into the directory that it is pushed to, and
// nothing outside.
func (s site) refuses(image string, most int64) {
	s.t.Helper()
	top := s.t.TempDir()
	dst, outside := filepath.Join(top, "dst"), filepath.Join(top, "outside")
	ok(s.t, os.Mkdir(dst, 0o755))
	ok(s.t, os.Mkdir(outside, 0o755))
	ok(s.t, os.WriteFile(filepath.Join(outside, "victim"), []byte("precious"), 0o600))
	for _, args := range [][]string{
		{"image", "verify"}, {"image", "verify", image}, {"image", "show", image, "--files"}, {"push", image, "--dir", dst}, {"node", "set", "n1", "--install", "--image", image},
	} {
		r, memory := s.measured(args...)
		if r.code == 0 && args[1] != "show" || r.code > 6 || strings.Contains(r.err, "goroutine ") || len(r.err) > 4000 {
			s.t.Errorf("ingot %q: exit %d\n%.4000s", args, r.code, r.said())
		}
		if args[1] == "verify" && r.code != 6 {
			s.t.Errorf("ingot %q: exit %d instead of 6\n%.1000s", args, r.code, r.said())
		}
		if memory > most {
			s.t.Errorf("ingot %q took %d MB", args, memory>>20)
		}
	}
	if r := s.python("restore", image, filepath.Join(top, "python")); r.code != 1 {
		s.t.Errorf("read_image.py restores %s", image)
	}
	entries, err := os.ReadDir(dst)
	ok(s.t, err)
	if len(entries) > 1 || len(entries) == 1 && entries[0].Name() != ".ingot" {
		s.t.Errorf("%s was written: %v", image, entries)
	}
	if b, err := os.ReadFile(filepath.Join(outside, "victim")); err != nil || string(b) != "precious" {
		s.t.Errorf("%s changed a file outside: %q, %v", image, b, err)
	}
}

// Manifests that break a rule, each under its true digest.
func TestHostileManifests(t *testing.T) {
	need(t, "/usr/bin/python3")
	dir := func(p string) entry.Entry { return entry.Entry{Path: p, Type: entry.Dir, Mode: 0o755} }
	file := func(p string) entry.Entry { return entry.Entry{Path: p, Type: entry.File, Mode: 0o644} }
	link := func(p, to string) entry.Entry { return entry.Entry{Path: p, Type: entry.File, Mode: 0o644, Link: to} }
	sized := func(p string, size int64, sizes ...uint32) entry.Entry {
		e := file(p)
		e.Size = size
		for i, n := range sizes {
			e.Chunks = append(e.Chunks, entry.Chunk{ID: digest.ID{byte(i)}, Size: n})
		}
		return e
	}
	with := func(e entry.Entry, x ...entry.Xattr) entry.Entry { e.Xattrs = x; return e }
	symlink := entry.Entry{Path: "a", Type: entry.Symlink, Target: "../outside"}
	holes := file("a")
	holes.Size, holes.Holes = 10, []entry.Extent{{Off: 1 << 62, Len: 1 << 62}}
	for name, entries := range map[string][]entry.Entry{
		"nothing":            {},
		"no top":             {file("a")},
		"a file as the top":  {file(".")},
		"dot dot":            {dir("."), file("../outside/victim")},
		"dot dot inside":     {dir("."), dir("a"), file("a/../../outside/victim")},
		"absolute":           {dir("."), file("/tmp/victim")},
		"dot":                {dir("."), file("./a")},
		"twice":              {dir("."), file("a"), file("a")},
		"symlink, then file": {dir("."), symlink, file("a")},
		"through a symlink":  {dir("."), symlink, file("a/victim")},
		"through a file":     {dir("."), file("a"), file("a/b")},
		"no parent":          {dir("."), file("a/b")},
		"out of order":       {dir("."), file("b"), file("a")},
		"link out":           {dir("."), link("a", "../outside/victim")},
		"link to nothing":    {dir("."), link("a", "b")},
		"link to a later":    {dir("."), link("a", "b"), file("b")},
		"link to itself":     {dir("."), link("a", "a")},
		"links in a ring":    {dir("."), link("a", "b"), link("b", "a")},
		"link to a link":     {dir("."), file("a"), link("b", "a"), link("c", "b")},
		"link to a dir":      {dir("."), dir("a"), link("b", "a")},
		"long name":          {dir("."), file(strings.Repeat("n", 256))},
		"long path":          {dir("."), file(strings.Repeat("n/", 17_000) + "n")},
		"NUL":                {dir("."), file("a\x00b")},
		"1 EB of nothing":    {dir("."), sized("a", 1<<60)},
		"negative":           {dir("."), sized("a", -1)},
		"huge chunk":         {dir("."), sized("a", 1<<31, 1<<31)},
		"sizes do not add":   {dir("."), sized("a", 5, 1, 1)},
		"missing chunk":      {dir("."), sized("a", 4<<20, 4<<20)},
		"hole out of bounds": {dir("."), holes},
		"huge xattr":         {dir("."), with(file("a"), entry.Xattr{Name: "user.a", Value: strings.Repeat("x", 10<<20)})},
		"xattr twice":        {dir("."), with(file("a"), entry.Xattr{Name: "user.a"}, entry.Xattr{Name: "user.a"})},
		"xattr name":         {dir("."), with(file("a"), entry.Xattr{Name: "user." + strings.Repeat("a", 300)})},
		"unknown type":       {dir("."), {Path: "a", Type: 99}},
		"device on a file":   {dir("."), {Path: "a", Type: entry.File, Major: 8}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.must("image", "list")
			ensureStore(s)
			raw := (&manifest.Manifest{Entries: entries}).Encode()
			stored, id := squeezed(t, bytes.NewReader(raw), int64(len(raw)))
			s.plant("bad:1", id, stored)
			s.refuses("bad:1", little)
		})
	}
}

// ensureStore makes the store: an empty directory is captured.
func ensureStore(s site) {
	s.t.Helper()
	if _, err := os.Stat(s.store()); err != nil {
		_, err := store.Init(s.store())
		ok(s.t, err)
	}
}

// Manifests and packs that become much larger than they are, or say so.
func TestBombs(t *testing.T) {
	need(t, "/usr/bin/python3")
	claims := func(count uint64) []byte {
		head := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), manifest.Magic)
		head = protowire.AppendVarint(protowire.AppendTag(head, 2, protowire.VarintType), manifest.Version)
		head = protowire.AppendVarint(protowire.AppendTag(head, 3, protowire.VarintType), count)
		return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), head)
	}
	for name, c := range map[string]struct {
		stored func(t *testing.T) ([]byte, digest.ID)
		most   int64
	}{
		// As large as a manifest may be, so it is read, once, and refused.
		"1 GiB of zeros": {func(t *testing.T) ([]byte, digest.ID) { return squeezed(t, zeros{}, 1<<30) }, 1<<30 + little},
		"4 GiB of zeros": {func(t *testing.T) ([]byte, digest.ID) { return squeezed(t, zeros{}, 4<<30) }, little},
		"a frame that says 1 EB": {func(*testing.T) ([]byte, digest.ID) {
			return append([]byte("\x28\xb5\x2f\xfd\xe0"), binary.LittleEndian.AppendUint64(nil, 1<<60)...), digest.ID{1}
		}, little},
		"10 million entries that are not there": {func(t *testing.T) ([]byte, digest.ID) {
			raw := claims(10_000_000)
			return squeezed(t, bytes.NewReader(raw), int64(len(raw)))
		}, little},
		"10 million entries of nothing": {func(t *testing.T) ([]byte, digest.ID) {
			raw := claims(10_000_000)
			return squeezed(t, io.MultiReader(bytes.NewReader(raw), zeros{}), 100<<20)
		}, little + 100<<20},
		"more entries than there are numbers": {func(t *testing.T) ([]byte, digest.ID) {
			raw := claims(1<<64 - 1)
			return squeezed(t, bytes.NewReader(raw), int64(len(raw)))
		}, little},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			ensureStore(s)
			stored, id := c.stored(t)
			s.plant("bomb:1", id, stored)
			s.refuses("bomb:1", c.most)
		})
	}
	t.Run("pack", func(t *testing.T) { packBomb(t) })
}

// packBomb plants a pack whose frame says 1 MiB, as its index does, and holds 1 GiB.
func packBomb(t *testing.T) {
	s := newSite(t)
	ensureStore(s)
	chunk := make([]byte, 1<<20)
	frame, _ := squeezed(t, zeros{}, 1<<30)
	if frame[4]>>6 != 2 || frame[4]&0x23 != 0 {
		t.Fatalf("the header of the frame is %x", frame[:10])
	}
	binary.LittleEndian.PutUint32(frame[6:], uint32(len(chunk))) // after magic, descriptor and window
	body := binary.LittleEndian.AppendUint32(nil, 1)
	for _, n := range []int{len(frame), len(chunk), 1} {
		body = binary.LittleEndian.AppendUint32(body, uint32(n))
	}
	id := digest.Of(chunk)
	body = binary.LittleEndian.AppendUint32(append(body, id[:]...), uint32(len(chunk)))
	sum := digest.Of(body)
	block := binary.LittleEndian.AppendUint64(append(bytes.Clone(body), sum[:]...), uint64(len(body)))
	block = append(block, "INGOTIX1"...)
	pack := append(append([]byte("INGOTPK1"), frame...), block...)
	name := digest.Of(pack).String()
	s.put("packs/"+name[:2]+"/"+name, pack)
	s.put("index/"+name, block)
	m := manifest.Manifest{Entries: []entry.Entry{{Path: ".", Type: entry.Dir}, {Path: "a", Type: entry.File, Size: int64(len(chunk)), Chunks: []entry.Chunk{{ID: id, Size: uint32(len(chunk))}}}}}
	raw := m.Encode()
	stored, mid := squeezed(t, bytes.NewReader(raw), int64(len(raw)))
	s.plant("bomb:1", mid, stored)
	s.refuses("bomb:1", little)
}
