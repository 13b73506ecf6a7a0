package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"ingot/internal/digest"
	"ingot/internal/manifest"
	"ingot/internal/slogx"
)

// Report is what a verification found.
type Report struct {
	Manifests int
	Packs     int   // that were needed
	Read      int   // packs that were read, not remembered
	Bytes     int64 // of packs that were read
	Damage    []Damage
}

// Damage is one object that is not what it should be.
type Damage struct {
	Object string // "pack", "index" (of a pack), "manifest" or "name"
	ID     string // digest, or the name
	Err    error
	Chunks []digest.ID // of a pack: those that cannot be read
	Images []string    // names, or digests, of the images that it makes unusable

	Manifests []digest.ID // these images
	Paths     []string    // files of them that cannot be read: the first maxPaths, sorted; none where the manifest itself is lost
	More      int         // how many paths there are besides
}

// maxPaths is how many paths a Damage names.
const maxPaths = 1000

// Error makes the damage an error of its own.
func (d Damage) Error() string {
	s := fmt.Sprintf("%s %s: %v", d.Object, d.ID, d.Err)
	if len(d.Chunks) > 0 {
		s += fmt.Sprintf("; %d chunks lost", len(d.Chunks))
	}
	if len(d.Images) > 0 {
		s += "; concerns " + strings.Join(d.Images, ", ")
	}
	return s
}

// Unwrap returns what was found.
func (d Damage) Unwrap() error { return d.Err }

// Err is nil when nothing is damaged.
func (r Report) Err() error {
	if len(r.Damage) == 0 {
		return nil
	}
	errs := make([]error, len(r.Damage))
	for i, d := range r.Damage {
		errs[i] = d
	}
	return errors.Join(errs...)
}

// VerifyOptions say what to verify.
type VerifyOptions struct {
	Manifest digest.ID               // only this image; zero: the whole store
	Cached   bool                    // do not read packs again that were good and have not changed
	Progress func(done, total int64) // bytes of packs; may be called from several goroutines
}

// Verify reads every byte: of one image its manifest and the packs that it
// needs something of, or of the whole store. The error is for what kept it
// from looking; damage is in the report.
func (s *Store) Verify(ctx context.Context, o VerifyOptions) (Report, error) {
	if err := s.Refresh(ctx); err != nil {
		return Report{}, fmt.Errorf("verify: %w", err)
	}
	v := &verifier{s: s, o: o}
	if err := v.manifests(ctx); err != nil {
		return Report{}, fmt.Errorf("verify: %w", err)
	}
	if err := v.unreadable(ctx); err != nil {
		return Report{}, fmt.Errorf("verify: %w", err)
	}
	if err := v.packs(ctx); err != nil {
		return Report{}, fmt.Errorf("verify: %w", err)
	}
	if err := v.concern(ctx); err != nil {
		return Report{}, fmt.Errorf("verify: %w", err)
	}
	return v.r, nil
}

// VerifyCached makes sure that all of an image can be read. What was verified
// before and has not changed since (inode, size, mtime, ctime of each pack)
// costs one stat a pack. The error names what is damaged.
func (s *Store) VerifyCached(ctx context.Context, id digest.ID) error {
	r, err := s.Verify(ctx, VerifyOptions{Manifest: id, Cached: true})
	if err != nil {
		return err
	}
	return r.Err()
}

type verifier struct {
	s *Store
	o VerifyOptions

	mu     sync.Mutex
	r      Report
	need   []digest.ID            // packs
	good   []digest.ID            // manifests that can be read
	chunks []digest.ID            // of the one image
	names  map[digest.ID][]string // manifest -> names
}

func (v *verifier) damaged(d Damage) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.r.Damage = append(v.r.Damage, d)
}

func (v *verifier) manifests(ctx context.Context) error {
	refs, bad, err := v.s.refs(ctx)
	if err != nil {
		return err
	}
	if v.o.Manifest.IsZero() {
		for _, e := range bad {
			v.damaged(Damage{Object: "name", ID: e.Ref.String(), Err: e.Err, Images: []string{e.Ref.String()}})
		}
	}
	v.names = map[digest.ID][]string{}
	for _, n := range refs {
		v.names[n.Digest] = append(v.names[n.Digest], n.Ref.String())
	}
	ids := []digest.ID{v.o.Manifest}
	if v.o.Manifest.IsZero() {
		if ids, err = v.s.Manifests(ctx); err != nil {
			return err
		}
		for id, names := range v.names {
			if !slices.Contains(ids, id) {
				v.damaged(Damage{Object: "manifest", ID: id.String(), Err: ErrMissing, Images: names, Manifests: []digest.ID{id}})
			}
		}
	}
	for _, id := range ids {
		if err := v.manifest(ctx, id); err != nil {
			return err
		}
	}
	return v.allPacks()
}

// image returns how people call a manifest.
func (v *verifier) image(id digest.ID) []string {
	if names := v.names[id]; len(names) > 0 {
		return names
	}
	return []string{id.Short()}
}

func (v *verifier) manifest(ctx context.Context, id digest.ID) error {
	v.r.Manifests++
	m, err := v.s.Manifest(ctx, id)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		v.damaged(Damage{Object: "manifest", ID: id.String(), Err: err, Images: v.image(id), Manifests: []digest.ID{id}})
		return nil
	}
	v.good = append(v.good, id)
	ids := Chunks(m)
	if !v.o.Manifest.IsZero() {
		v.chunks = ids
	}
	if lost := v.s.missing(ids, nil); len(lost) > 0 {
		v.damaged(Damage{Object: "manifest", ID: id.String(), Chunks: lost, Images: v.image(id), Manifests: []digest.ID{id},
			Err: fmt.Errorf("%d of its chunks are in no pack: %w", len(lost), ErrMissing)})
	}
	return nil
}

// allPacks says which packs to look at.
func (v *verifier) allPacks() error {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if v.o.Manifest.IsZero() {
		for id := range v.s.index.packs {
			v.need = append(v.need, id)
		}
	} else {
		seen := map[digest.ID]bool{}
		for _, c := range v.chunks {
			if pl, ok := v.s.index.chunks[c]; ok && !seen[pl.pack.id] {
				seen[pl.pack.id] = true
				v.need = append(v.need, pl.pack.id)
			}
		}
	}
	slices.SortFunc(v.need, func(a, b digest.ID) int { return bytes.Compare(a[:], b[:]) })
	return nil
}

// unreadable adds the packs that have no index that can be read: nobody can
// say what is in them. To a single image they matter when it lacks something.
func (v *verifier) unreadable(ctx context.Context) error {
	if !v.o.Manifest.IsZero() && len(v.r.Damage) == 0 {
		return nil
	}
	v.s.mu.Lock()
	bad := map[digest.ID]error{}
	maps.Copy(bad, v.s.unreadable)
	known := maps.Clone(v.s.index.packs)
	v.s.mu.Unlock()
	ids, err := walkFan(ctx, v.s.b, "packs", "")
	if err != nil {
		return fmt.Errorf("list packs: %w", err)
	}
	for _, id := range ids {
		if bad[id] != nil || known[id] != nil {
			continue
		}
		_, _, err := v.s.ownBlock(ctx, id)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, ErrMissing) { // a good one is a writer's, which indexes it next
			bad[id] = err
		}
	}
	for id, err := range bad {
		v.damaged(Damage{Object: "pack", ID: id.String(), Err: err})
	}
	return nil
}

func (v *verifier) packs(ctx context.Context) error {
	v.r.Packs = len(v.need)
	good := v.s.remembered(ctx)
	var total int64
	var done atomic.Int64
	known := make([]*pack, len(v.need))
	v.s.mu.Lock()
	for i, id := range v.need {
		known[i] = v.s.index.packs[id]
		total += known[i].size
	}
	v.s.mu.Unlock()
	var changed bool
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(min(4, runtime.GOMAXPROCS(0)))
	for _, p := range known {
		v.mu.Lock()
		old := good[p.id]
		v.mu.Unlock()
		g.Go(func() error {
			stamp, read, err := v.pack(gctx, p, old)
			if err != nil {
				return err
			}
			v.mu.Lock()
			if read {
				v.r.Read++
				v.r.Bytes += p.size
			}
			if stamp != good[p.id] {
				changed = true
				good[p.id] = stamp
			}
			v.mu.Unlock()
			if v.o.Progress != nil {
				v.o.Progress(done.Add(p.size), total)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if changed {
		v.s.remember(ctx, good)
	}
	return nil
}

// pack verifies one pack and returns the stamp of what was good, or "".
func (v *verifier) pack(ctx context.Context, p *pack, old string) (stamp string, read bool, err error) {
	o, err := v.s.b.Open(ctx, packName(p.id))
	if ctx.Err() != nil {
		return "", false, ctx.Err()
	}
	if err != nil {
		v.damaged(Damage{Object: "pack", ID: p.id.String(), Err: err, Chunks: p.all()})
		return "", false, nil
	}
	defer o.Close()
	stamp = o.Stamp()
	if v.o.Cached && stamp != "" && stamp == old {
		return stamp, false, nil
	}
	lost, err := v.s.checkPack(o, p)
	if err != nil {
		v.damaged(Damage{Object: "pack", ID: p.id.String(), Err: err, Chunks: lost})
		return "", true, nil
	}
	if err := v.s.checkIndex(ctx, p); err != nil {
		v.damaged(Damage{Object: "index", ID: p.id.String(), Err: err})
		return "", true, nil
	}
	again, err := v.s.b.Open(ctx, packName(p.id)) // changed while it was read?
	if err != nil {
		return "", true, nil
	}
	defer again.Close()
	if again.Stamp() != stamp {
		stamp = ""
	}
	return stamp, true, nil
}

// checkIndex compares the index file of a good pack with the pack.
func (s *Store) checkIndex(ctx context.Context, p *pack) error {
	raw, err := readAll(ctx, s.b, indexName(p.id), maxPack)
	if err == nil && !bytes.Equal(raw, appendBlock(nil, p.frames)) {
		err = &CorruptError{ID: p.id, Where: indexName(p.id), Err: errors.New("it is not the pack's own")}
	}
	if errors.Is(err, ErrMissing) { // removed meanwhile
		return nil
	}
	return err
}

func (p *pack) all() []digest.ID {
	var ids []digest.ID
	for i := range p.frames {
		for _, c := range p.frames[i].chunks {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

// checkPack reads all of a pack, compares it with its digest and its index,
// and unpacks every frame. It returns the chunks that cannot be read.
func (s *Store) checkPack(o Object, p *pack) ([]digest.ID, error) {
	var errs []error
	if o.Size() != p.size {
		errs = append(errs, &CorruptError{ID: p.id, Where: packName(p.id), Err: fmt.Errorf("%d bytes instead of %d", o.Size(), p.size)})
	}
	buf := make([]byte, min(o.Size(), p.size))
	if n, err := io.ReadFull(io.NewSectionReader(o, 0, int64(len(buf))), buf); err != nil {
		errs = append(errs, fmt.Errorf("read %s: %w", packName(p.id), err))
		buf = buf[:n]
	}
	if got := digest.Of(buf); len(errs) == 0 && got != p.id {
		errs = append(errs, &CorruptError{ID: p.id, Got: got, Where: packName(p.id)})
	}
	if len(errs) == 0 {
		if block, err := readBlock(o, p.id); err != nil || !bytes.Equal(block, appendBlock(nil, p.frames)) {
			errs = append(errs, &CorruptError{ID: p.id, Where: packName(p.id), Err: errors.New("its index is not the one in " + indexName(p.id))})
		}
	}
	var lost []digest.ID
	var raw []byte
	for i := range p.frames {
		f := &p.frames[i]
		bad, err := s.checkFrame(buf, p.offs[i], f, &raw)
		lost = append(lost, bad...)
		if err != nil {
			errs = append(errs, fmt.Errorf("frame at %d: %w", p.offs[i], err))
		}
	}
	return lost, errors.Join(errs...)
}

func (s *Store) checkFrame(pack []byte, off int64, f *frame, raw *[]byte) ([]digest.ID, error) {
	var lost []digest.ID
	end := off + int64(f.length)
	err := io.ErrUnexpectedEOF
	if end <= int64(len(pack)) {
		*raw, err = inflate(s.spare.dec, pack[off:end], *raw, f.raw)
	}
	if err != nil {
		for _, c := range f.chunks {
			lost = append(lost, c.ID)
		}
		return lost, err
	}
	pos := uint32(0)
	for _, c := range f.chunks {
		if got := digest.Of((*raw)[pos : pos+c.Size]); got != c.ID {
			lost = append(lost, c.ID)
			err = &CorruptError{ID: c.ID, Got: got, Where: fmt.Sprintf("chunk at %d", pos)}
		}
		pos += c.Size
	}
	return lost, err
}

// concern adds to the damage which images and files need what is lost. Only
// then the manifests are read again: who uses what is not kept in memory.
func (v *verifier) concern(ctx context.Context) error {
	lost := map[digest.ID][]int{} // chunk -> numbers of damages
	for i, d := range v.r.Damage {
		for _, c := range d.Chunks {
			lost[c] = append(lost[c], i)
		}
	}
	if len(lost) > 0 {
		for _, id := range v.good {
			m, err := v.s.Manifest(ctx, id)
			if err != nil {
				return err
			}
			v.concerned(id, m, lost)
		}
	}
	for i := range v.r.Damage {
		d := &v.r.Damage[i]
		slices.Sort(d.Images)
		d.Images = slices.Compact(d.Images)
		slices.Sort(d.Paths)
		d.Paths = slices.Compact(d.Paths)
		if len(d.Paths) > maxPaths {
			d.Paths, d.More = d.Paths[:maxPaths], len(d.Paths)-maxPaths
		}
	}
	slices.SortFunc(v.r.Damage, func(a, b Damage) int { return strings.Compare(a.Object+a.ID, b.Object+b.ID) })
	return nil
}

// concerned adds one image to the damages whose lost chunks it needs.
func (v *verifier) concerned(id digest.ID, m *manifest.Manifest, lost map[digest.ID][]int) {
	for i := range m.Entries {
		e := &m.Entries[i]
		for _, c := range e.Chunks {
			for _, n := range lost[c.ID] {
				d := &v.r.Damage[n]
				if d.Object == "manifest" && d.ID != id.String() {
					continue // it has a damage of its own
				}
				if k := len(d.Manifests); k == 0 || d.Manifests[k-1] != id {
					d.Manifests = append(d.Manifests, id)
					d.Images = append(d.Images, v.image(id)...)
				}
				if k := len(d.Paths); k == 0 || d.Paths[k-1] != e.Path {
					d.Paths = append(d.Paths, e.Path)
				}
			}
		}
	}
}

// verifiedName is what was found good, and in which state: a cache, which may
// be removed at any time.
const verifiedName = "cache/verified.json"

func (s *Store) remembered(ctx context.Context) map[digest.ID]string {
	good := map[digest.ID]string{}
	raw, err := readAll(ctx, s.b, verifiedName, 1<<28)
	if err == nil {
		err = json.Unmarshal(raw, &good)
	}
	if err != nil {
		return map[digest.ID]string{}
	}
	return good
}

func (s *Store) remember(ctx context.Context, good map[digest.ID]string) {
	s.mu.Lock()
	for id, stamp := range good {
		if stamp == "" || s.index.packs[id] == nil {
			delete(good, id)
		}
	}
	s.mu.Unlock()
	raw, err := json.Marshal(good)
	if err == nil {
		err = s.b.Put(ctx, verifiedName, raw)
	}
	if err != nil {
		slogx.Or(s.Log).Warn("could not remember what was verified", slogx.Err, err)
	}
}
