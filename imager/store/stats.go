package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"ingot/internal/digest"
	"ingot/internal/manifest"
	"ingot/internal/slogx"
)

// Usage is what an image takes.
type Usage struct {
	Named
	Bytes  int64 // of content, each chunk once
	Stored int64 // of these in the store, compressed
	Unique int64 // of Stored, what no other image uses: what removing it would free
	Err    error // why nothing is known: the manifest, or a NameError, the record of the name cannot be read
}

// usageName is what images use of which packs: a cache, which may be removed
// at any time. Neither images nor packs ever change, so that it is right for
// as long as the packs are there.
const usageName = "cache/usage.json"

// uses are the chunks of packs that an image uses: a bit each, in the order of the pack.
type uses map[digest.ID][]byte

// Usage returns what each named image takes, in the order of Refs, then the
// names that cannot be read, and then those of the images in also that are
// there and have no name. Two names of one image have nothing to themselves. A
// manifest is read once: afterwards the cache knows.
func (s *Store) Usage(ctx context.Context, also []digest.ID) ([]Usage, error) {
	refs, bad, err := s.refs(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.refresh(ctx, 0); err != nil {
		return nil, fmt.Errorf("usage: %w", err)
	}
	t := &tally{s: s, old: s.oldUses(ctx), now: map[digest.ID]uses{}, packs: map[digest.ID]*packTally{}}
	nameless, err := s.nameless(ctx, refs, also)
	if err != nil {
		return nil, fmt.Errorf("usage: %w", err)
	}
	refs = append(refs, nameless...)
	out := make([]Usage, len(refs))
	for i, n := range refs {
		out[i].Named = n
		if out[i].Err = t.count(ctx, n.Digest); ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	for i := range out {
		if out[i].Err == nil {
			t.sum(&out[i])
		}
	}
	for _, e := range bad {
		out = slices.Insert(out, len(out)-len(nameless), Usage{Named: Named{Ref: e.Ref}, Err: e})
	}
	if t.changed || len(t.now) != len(t.old) {
		s.saveUses(ctx, t.now)
	}
	return out, nil
}

// nameless returns those of ids that are there and that none of refs names.
func (s *Store) nameless(ctx context.Context, refs []Named, ids []digest.ID) ([]Named, error) {
	var out []Named
	for _, id := range ids {
		if slices.ContainsFunc(refs, func(n Named) bool { return n.Digest == id }) {
			continue
		}
		ok, err := s.HasManifest(ctx, id)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, Named{Image: Image{Digest: id}})
		}
	}
	return out, nil
}

// tally counts who uses each chunk.
type tally struct {
	s       *Store
	old     map[digest.ID]uses
	now     map[digest.ID]uses
	partial map[digest.ID]uses // of images that lack something: not for the cache
	packs   map[digest.ID]*packTally
	changed bool
}

// packTally is a pack, chunk by chunk.
type packTally struct {
	first  []int // number of the first chunk of each frame
	size   []uint32
	stored []int64
	users  []uint16
}

// count adds one use of an image.
func (t *tally) count(ctx context.Context, id digest.ID) error {
	u, err := t.usesOf(ctx, id)
	if err != nil {
		return err
	}
	for pack, set := range u {
		p := t.packs[pack]
		each(set, func(n int) { p.users[n] = min(p.users[n], 1<<15) + 1 })
	}
	return nil
}

func (t *tally) usesOf(ctx context.Context, id digest.ID) (uses, error) {
	if u := t.known(id); u != nil {
		return u, nil
	}
	if u, ok := t.old[id]; ok && t.valid(u) {
		if ok, err := t.s.HasManifest(ctx, id); err != nil || !ok {
			return nil, errors.Join(err, fmt.Errorf("read manifest %s: %w", id.Short(), ErrMissing))
		}
		t.now[id] = u
		return u, nil
	}
	m, err := t.s.Manifest(ctx, id)
	if err != nil {
		return nil, err
	}
	u, whole := t.find(m)
	if whole {
		t.now[id], t.changed = u, true
	} else {
		if t.partial == nil {
			t.partial = map[digest.ID]uses{}
		}
		t.partial[id] = u
	}
	return u, nil
}

func (t *tally) known(id digest.ID) uses {
	if u := t.now[id]; u != nil {
		return u
	}
	return t.partial[id]
}

// valid says whether all packs are still there, and gets them ready.
func (t *tally) valid(u uses) bool {
	for id, set := range u {
		p := t.pack(id)
		if p == nil || len(set) != (len(p.size)+7)/8 {
			return false
		}
		if spare := len(p.size) % 8; spare > 0 && set[len(set)-1]>>spare != 0 {
			return false
		}
	}
	return true
}

func (t *tally) pack(id digest.ID) *packTally {
	if p := t.packs[id]; p != nil {
		return p
	}
	t.s.mu.Lock()
	known := t.s.index.packs[id]
	t.s.mu.Unlock()
	if known == nil {
		return nil
	}
	p := &packTally{}
	for i := range known.frames {
		p.first = append(p.first, len(p.size))
		f := &known.frames[i]
		for _, c := range f.chunks {
			p.size = append(p.size, c.Size)
			p.stored = append(p.stored, int64(c.Size)*int64(f.length)/int64(f.raw))
		}
	}
	p.users = make([]uint16, len(p.size))
	t.packs[id] = p
	return p
}

// find says what an image uses, and whether all of it is there.
func (t *tally) find(m *manifest.Manifest) (u uses, whole bool) {
	u, whole = uses{}, true
	for _, id := range Chunks(m) {
		t.s.mu.Lock()
		pl, ok := t.s.index.chunks[id]
		t.s.mu.Unlock()
		if !ok {
			whole = false
			continue
		}
		p := t.pack(pl.pack.id)
		if p == nil {
			whole = false
			continue
		}
		if u[pl.pack.id] == nil {
			u[pl.pack.id] = make([]byte, (len(p.size)+7)/8)
		}
		n := p.first[pl.frame] + int(pl.chunk)
		u[pl.pack.id][n/8] |= 1 << (n % 8)
	}
	return u, whole
}

func (t *tally) sum(out *Usage) {
	for pack, set := range t.known(out.Digest) {
		p := t.packs[pack]
		each(set, func(n int) {
			out.Bytes += int64(p.size[n])
			out.Stored += p.stored[n]
			if p.users[n] == 1 {
				out.Unique += p.stored[n]
			}
		})
	}
}

// each calls fn with the number of every bit that is set.
func each(set []byte, fn func(n int)) {
	for i, b := range set {
		for ; b != 0; b &= b - 1 {
			fn(i*8 + bits.TrailingZeros8(b))
		}
	}
}

func (s *Store) oldUses(ctx context.Context) map[digest.ID]uses {
	var old map[digest.ID]uses
	raw, err := readAll(ctx, s.b, usageName, 1<<30)
	if err == nil && json.Unmarshal(raw, &old) != nil {
		old = nil
	}
	return old
}

func (s *Store) saveUses(ctx context.Context, now map[digest.ID]uses) {
	raw, err := json.Marshal(now)
	if err == nil {
		err = s.b.Put(ctx, usageName, raw)
	}
	if err != nil {
		slogx.Or(s.Log).Warn("could not remember what images use", slogx.Err, err)
	}
}

// StoredSize returns the compressed bytes of these chunks, each its share of
// its frame. Those that the store does not have count nothing.
func (s *Store) StoredSize(ctx context.Context, ids []digest.ID) (int64, error) {
	if err := s.refresh(ctx, time.Second); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var n int64
	for _, id := range ids {
		if pl, ok := s.index.chunks[id]; ok {
			f := &pl.pack.frames[pl.frame]
			n += int64(f.chunks[pl.chunk].Size) * int64(f.length) / int64(f.raw)
		}
	}
	return n, nil
}
