package images

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/imager/store"
	"ingot/imager/tree"
	"ingot/internal/manifest"
	"ingot/internal/torture"
)

// campaign says whether the long forms are wanted.
func campaign() bool { return os.Getenv("INGOT_CAMPAIGN") != "" }

// programTree makes a tree of about size bytes, half of which compress.
func programTree(t testing.TB, dir string, size int) {
	t.Helper()
	for i := range 60 {
		p := filepath.Join(dir, fmt.Sprintf("usr/lib/d%d/f%d", i%7, i))
		ok(t, os.MkdirAll(filepath.Dir(p), 0o755))
		random := torture.Noise(uint64(i), size/120)
		text := strings.Repeat(fmt.Sprintf("line %d of a text that compresses\n", i), 1+size/120/35)
		ok(t, os.WriteFile(p, append(random, text...), 0o644))
	}
	for i := range 500 {
		ok(t, os.WriteFile(filepath.Join(dir, "usr/lib", fmt.Sprintf("small%d", i)), fmt.Appendf(nil, "small %d\n", i), 0o600))
	}
}

// restore writes an image as an installation does, every chunk checked.
func (s site) restore(image, dir string) error {
	images, err := store.Open(s.store())
	if err != nil {
		return err
	}
	m, err := manifestOf(s, images, image)
	if err != nil {
		return err
	}
	return tree.Write(s.t.Context(), dir, m, images, tree.WriteOptions{})
}

func manifestOf(s site, images *store.Store, image string) (*manifest.Manifest, error) {
	id, err := images.Resolve(s.t.Context(), image)
	if err != nil {
		return nil, err
	}
	return images.Manifest(s.t.Context(), id)
}

// A place is one byte of a store.
type place struct {
	kind, path string
	at         int64
}

func (p place) String() string { return fmt.Sprintf("%s byte %d", p.path, p.at) }

// flip changes the byte, and leaves everything that stat(2) shows but the
// change time as it was.
func (p place) flip(t testing.TB) {
	t.Helper()
	st, err := os.Stat(p.path)
	ok(t, err)
	f, err := os.OpenFile(p.path, os.O_RDWR, 0)
	ok(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, p.at)
	ok(t, err)
	b[0] ^= 1 << (p.at % 8)
	_, err = f.WriteAt(b, p.at)
	ok(t, errors.Join(err, f.Close()))
	ts := unix.NsecToTimespec(st.ModTime().UnixNano())
	ok(t, unix.UtimesNano(p.path, []unix.Timespec{ts, ts}))
}

// places chooses n bytes of a store: some of each kind of file, else by size.
func places(t testing.TB, root string, n int) []place {
	t.Helper()
	sizes, files, total := map[string]int64{}, map[string][]string{}, int64(0)
	ok(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		kind, _, _ := strings.Cut(rel, "/")
		if st.Size() > 0 && kind != "cache" {
			sizes[p], files[kind] = st.Size(), append(files[kind], p)
			total += st.Size()
		}
		return err
	}))
	r := rand.New(rand.NewPCG(6, uint64(n)))
	var out []place
	for _, kind := range []string{"config.json", "names", "manifests", "index", "packs"} {
		if len(files[kind]) == 0 {
			t.Fatalf("the store has no %s", kind)
		}
		for range 8 {
			p := files[kind][r.IntN(len(files[kind]))]
			out = append(out, place{kind, p, r.Int64N(sizes[p])})
		}
	}
	for len(out) < n {
		at := r.Int64N(total)
		for _, kind := range []string{"names", "manifests", "index", "packs"} {
			for _, p := range files[kind] {
				if at >= 0 && at < sizes[p] {
					out = append(out, place{kind, p, at})
				}
				at -= sizes[p]
			}
		}
	}
	return out
}

// total is the size of all files below a directory.
func total(t testing.TB, root string) (bytes int64) {
	t.Helper()
	ok(t, filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := d.Info()
		if err == nil {
			bytes += st.Size()
		}
		return err
	}))
	return bytes
}

// redundant says whether the byte is in a pack's own index, which its index file repeats.
func (p place) redundant(t testing.TB) bool {
	if p.kind == "index" {
		return true
	}
	if p.kind != "packs" {
		return false
	}
	b, err := os.ReadFile(p.path)
	ok(t, err)
	body := int64(binary.LittleEndian.Uint64(b[len(b)-16:]))
	return p.at < 8 || p.at >= int64(len(b))-48-body
}

// One flipped byte anywhere in a store is found by `image verify`, keeps a
// node from being armed for installation, and is never written to a tree.
// The long form has a store of 100 MB and 200 places.
func TestFlippedByte(t *testing.T) {
	need(t)
	size, n := 10<<20, 48
	if campaign() {
		size, n = 200<<20, 200
	}
	s, src, images := newSite(t), t.TempDir(), []string{"web:1", "web:2"}
	programTree(t, src, size)
	good := map[string]string{}
	for i, image := range images {
		ok(t, os.WriteFile(filepath.Join(src, "release"), torture.Noise(uint64(i+900), 900_000), 0o644))
		var made struct{ Digest string }
		ok(t, json.Unmarshal([]byte(s.must("image", "capture", src, image, "--json").out), &made))
		good[image] = made.Digest
	}
	s.must("image", "verify") // remembers what was good
	all := places(t, s.store(), n)
	inert := 0
	for _, p := range all {
		redundant := p.redundant(t)
		p.flip(t)
		found := func(r result) bool { // what config.json says may be of another version
			return r.code == 6 || p.kind == "config.json" && r.code == 1 && strings.Contains(r.err, "open store")
		}
		if r := s.ingot("image", "verify"); !found(r) {
			t.Errorf("%s: image verify: exit %d\n%s", p, r.code, r.said())
		}
		refused := false
		for _, image := range images {
			r := s.ingot("node", "set", "n1", "--install", "--image", image)
			refused = refused || found(r)
		}
		if !refused {
			t.Errorf("%s: both images may be installed", p)
		}
		written := 0
		for _, image := range images {
			switch got, err := s.restored(image); {
			case err != nil:
			case got != good[image]:
				t.Errorf("%s: another tree than %s was written", p, image)
			default:
				written++
			}
		}
		if written == len(images) && !redundant {
			inert++
			t.Logf("%s: both images are written true all the same", p)
		}
		p.flip(t)
	}
	s.must("image", "verify")
	t.Logf("%d places flipped in a store of %d MB; %d meant nothing to what is written", len(all), total(t, s.store())>>20, inert)
	if inert > len(all)/50 { // a bit of a compressed frame may mean nothing
		t.Errorf("%d of %d flips that matter kept no image from being written", inert, len(all))
	}
}

// restored writes an image to a new directory as an installation does, every
// chunk checked, and returns what the tree there is.
func (s site) restored(image string) (string, error) {
	dir, err := os.MkdirTemp(filepath.Dir(s.dir), "tree-")
	ok(s.t, err)
	defer os.RemoveAll(dir)
	if err := s.restore(image, dir); err != nil {
		return "", err
	}
	m, _, err := tree.Capture(s.t.Context(), dir, tree.CaptureOptions{})
	ok(s.t, err)
	return m.ID().String(), nil
}

// A damaged cache of captures is noticed: what was captured is true all the same.
func TestFlippedByteOfTheCaptureCache(t *testing.T) {
	need(t)
	s, src := newSite(t), t.TempDir()
	programTree(t, src, 2<<20)
	capture := func() string {
		var made struct{ Digest string }
		ok(t, json.Unmarshal([]byte(s.must("image", "capture", src, "web:1", "--json").out), &made))
		return made.Digest
	}
	good := capture()
	caches, err := filepath.Glob(filepath.Join(s.dir, ".ingot/cache/capture/*"))
	ok(t, err)
	if len(caches) != 1 {
		t.Fatalf("caches: %q", caches)
	}
	r := rand.New(rand.NewPCG(7, 7))
	for range 20 {
		time.Sleep(20 * time.Millisecond) // what has just changed is not cached
		capture()
		st, err := os.Stat(caches[0])
		ok(t, err)
		p := place{"cache", caches[0], r.Int64N(st.Size())}
		p.flip(t)
		if got := capture(); got != good {
			t.Errorf("%s: the capture is another", p)
		}
	}
	s.must("image", "verify")
}
