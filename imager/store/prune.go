package store

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"ingot/internal/digest"
)

// PruneOptions say what stays in the store besides the images with names.
type PruneOptions struct {
	// Keep are images that something outside the store refers to; one that the
	// store does not have is none to keep.
	Keep []digest.ID
	// Hold are images of which somebody reads packs by an index made earlier: no
	// pack that has a chunk of them is removed or rewritten.
	Hold []digest.ID
	// MaxUnused is the share of all bytes, 0 to 1, that may stay although nothing
	// needs them, before packs are rewritten to get rid of them.
	MaxUnused float64
	// Grace leaves alone manifests and packs that were written less than so long
	// ago, so that a capture that was interrupted can go on.
	Grace time.Duration
}

// Prune is what a prune does: made by PlanPrune, carried out by Run.
type Prune struct {
	Manifests []digest.ID // of images that nothing refers to
	Packs     []PackRef   // nothing in them is needed
	Rewrite   []PackRef   // what is needed of them goes into new packs
	Strays    []digest.ID // index files without a pack
	Held      int         // packs that are left as they are because of Hold or Grace, though not all in them is needed

	Size   int64 // bytes of all packs now
	Unused int64 // of these, those of chunks that nothing needs
	Free   int64 // bytes of packs that will be gone; what is rewritten is estimated
	Copy   int64 // bytes of packs that are read and written again, estimated

	s       *Store
	order   []Location // what is needed of Rewrite, in the order of the trees
	doubles []Location // chunks of which other copies go
}

// smallPack and manySmall say when packs are merged: many small captures make
// many small packs, which cost an installation a request each.
const (
	smallPack = packTarget / 4
	manySmall = 8
)

// fate is a pack while it is decided what becomes of it. Its bytes are those
// of chunks, each its share of its frame.
type fate struct {
	*pack
	held     bool  // stays as it is
	needless int64 // bytes that nothing needs
	kept     int64 // bytes that are needed, and are in no better pack
	waste    int64 // all others
	keeps    bool  // there is something kept
	goes     bool  // is removed, or rewritten
}

// PlanPrune finds out what nothing refers to. It changes nothing. The caller
// holds the exclusive lock since before it asked what to keep, until Run has
// returned. A store that lacks something of an image that has to stay gives a
// Damage: it has to be repaired first.
func (s *Store) PlanPrune(ctx context.Context, o PruneOptions) (*Prune, error) {
	p, err := s.planPrune(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("prune: %w", err)
	}
	return p, nil
}

func (s *Store) planPrune(ctx context.Context, o PruneOptions) (*Prune, error) {
	p := &Prune{s: s}
	images, err := p.images(ctx, o)
	if err != nil {
		return nil, err
	}
	fates, err := p.packs(ctx, o.Grace)
	if err != nil {
		return nil, err
	}
	need := map[digest.ID]*fate{} // chunks that stay, and where
	held := map[digest.ID]bool{}
	for _, id := range images {
		chunks, err := s.chunksOf(ctx, id)
		if err != nil {
			return nil, err
		}
		hold := slices.Contains(o.Hold, id)
		for _, c := range chunks {
			need[c] = nil
			if hold {
				held[c] = true
			}
		}
	}
	for _, f := range fates {
		f.weigh(need, held)
	}
	claim(fates, need)
	if err := p.whole(ctx, images, need); err != nil {
		return nil, err
	}
	p.decide(fates, o.MaxUnused)
	p.double(fates, need)
	return p, p.arrange(ctx, images, fates, need)
}

// images returns the images that stay, each once, in the order in which their
// chunks are arranged: names first. The others are p.Manifests.
func (p *Prune) images(ctx context.Context, o PruneOptions) ([]digest.ID, error) {
	refs, bad, err := p.s.refs(ctx)
	if err != nil {
		return nil, err
	}
	if len(bad) > 0 { // nobody knows what it means
		return nil, Damage{Object: "name", ID: bad[0].Ref.String(), Err: bad[0].Err}
	}
	there, err := p.s.Manifests(ctx)
	if err != nil {
		return nil, err
	}
	gone := make(map[digest.ID]bool, len(there))
	for _, id := range there {
		gone[id] = true
	}
	var stay []digest.ID
	keep := func(id digest.ID) {
		if gone[id] {
			gone[id] = false
			stay = append(stay, id)
		}
	}
	slices.SortStableFunc(refs, func(a, b Named) int { return b.Created.Compare(a.Created) })
	for _, n := range refs {
		if _, ok := gone[n.Digest]; !ok {
			return nil, Damage{Object: "manifest", ID: n.Digest.String(), Err: ErrMissing, Images: []string{n.Ref.String()}}
		}
		keep(n.Digest)
	}
	for _, id := range slices.Concat(o.Keep, o.Hold) {
		keep(id)
	}
	for _, id := range there {
		if !gone[id] {
			continue
		}
		young, err := p.s.young(ctx, manifestName(id), o.Grace)
		if err != nil {
			return nil, err
		}
		if young {
			keep(id)
			continue
		}
		p.Manifests = append(p.Manifests, id)
	}
	return stay, nil
}

// young says whether an object was written less than grace ago.
func (s *Store) young(ctx context.Context, name string, grace time.Duration) (bool, error) {
	if grace <= 0 {
		return false, nil
	}
	o, err := s.b.Open(ctx, name)
	if err != nil {
		return false, err
	}
	defer o.Close()
	return time.Since(o.ModTime()) < grace, nil
}

// chunksOf returns the chunks of an image that stays. What cannot be read is damage.
func (s *Store) chunksOf(ctx context.Context, id digest.ID) ([]digest.ID, error) {
	m, err := s.Manifest(ctx, id)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, Damage{Object: "manifest", ID: id.String(), Err: err}
	}
	return Chunks(m), nil
}

// packs lists the packs that are there and can be read, with or without an
// index file. Those that have no index that can be read are left alone.
func (p *Prune) packs(ctx context.Context, grace time.Duration) ([]*fate, error) {
	s := p.s
	if err := s.Refresh(ctx); err != nil {
		return nil, err
	}
	ids, err := walkFan(ctx, s.b, "packs", "")
	if err != nil {
		return nil, fmt.Errorf("list packs: %w", err)
	}
	names, err := s.b.List(ctx, "index")
	if err != nil {
		return nil, fmt.Errorf("list packs: %w", err)
	}
	indexed := make(map[digest.ID]bool, len(names))
	for _, name := range names {
		if id, err := digest.Parse(name); err == nil {
			indexed[id] = true
		}
	}
	var fates []*fate
	for _, id := range ids {
		f, err := p.fate(ctx, id, indexed[id], grace)
		if err != nil {
			return nil, err
		}
		delete(indexed, id)
		if f != nil {
			fates = append(fates, f)
			p.Size += f.size
		}
	}
	for id := range indexed {
		p.Strays = append(p.Strays, id)
	}
	slices.SortFunc(p.Strays, compareIDs)
	return fates, nil
}

func compareIDs(a, b digest.ID) int { return bytes.Compare(a[:], b[:]) }

// fate begins to look at one pack; nil when nobody can say what is in it.
func (p *Prune) fate(ctx context.Context, id digest.ID, indexed bool, grace time.Duration) (*fate, error) {
	s := p.s
	young, err := s.young(ctx, packName(id), grace)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	known := s.index.packs[id]
	s.mu.Unlock()
	if known == nil && !indexed { // a crash came between the pack and its index
		known, err = s.ownPack(ctx, id)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			return nil, nil
		}
	}
	if known == nil {
		return nil, nil
	}
	return &fate{pack: known, held: young}, nil
}

// ownPack knows a pack by its own index.
func (s *Store) ownPack(ctx context.Context, id digest.ID) (*pack, error) {
	_, frames, err := s.ownBlock(ctx, id)
	if err != nil {
		return nil, err
	}
	return newPack(id, frames), nil
}

// chunks calls fn with every chunk of a pack, and its share of the pack's bytes.
func (p *pack) chunks(fn func(at place, id digest.ID, stored int64)) {
	for i := range p.frames {
		f := &p.frames[i]
		off := uint32(0)
		for j, c := range f.chunks {
			fn(place{pack: p, frame: uint32(i), chunk: uint32(j), off: off}, c.ID, int64(c.Size)*int64(f.length)/int64(f.raw))
			off += c.Size
		}
	}
}

// weigh finds out how much of a pack nothing needs, and whether it is held.
func (f *fate) weigh(need map[digest.ID]*fate, held map[digest.ID]bool) {
	f.chunks(func(_ place, id digest.ID, stored int64) {
		if _, ok := need[id]; !ok {
			f.needless += stored
		}
		f.held = f.held || held[id]
	})
}

// claim says of each chunk that is needed which pack it stays in, where there
// are several: in one that stays as it is, else in the one with the least that
// nothing needs.
func claim(fates []*fate, need map[digest.ID]*fate) {
	share := func(f *fate) float64 { return float64(f.needless) / float64(f.size) }
	slices.SortFunc(fates, func(a, b *fate) int {
		if a.held != b.held {
			if a.held {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(share(a), share(b)), cmp.Compare(b.size, a.size), compareIDs(a.id, b.id))
	})
	for _, f := range fates {
		f.chunks(func(_ place, id digest.ID, stored int64) {
			if at, ok := need[id]; ok && at == nil {
				need[id] = f
				f.kept += stored
				f.keeps = true
			} else {
				f.waste += stored
			}
		})
	}
}

// whole makes sure that all of the images is in packs that are there.
func (p *Prune) whole(ctx context.Context, images []digest.ID, need map[digest.ID]*fate) error {
	lost := map[digest.ID]bool{}
	for c, f := range need {
		if f == nil {
			lost[c] = true
		}
	}
	if len(lost) == 0 {
		return nil
	}
	for _, id := range images {
		chunks, err := p.s.chunksOf(ctx, id)
		if err != nil {
			return err
		}
		chunks = slices.DeleteFunc(chunks, func(c digest.ID) bool { return !lost[c] })
		if len(chunks) > 0 {
			return Damage{Object: "manifest", ID: id.String(), Chunks: chunks, Err: fmt.Errorf("%d of its chunks are in no pack: %w", len(chunks), ErrMissing)}
		}
	}
	return nil
}

// decide says which packs go, which are rewritten and which stay.
func (p *Prune) decide(fates []*fate, maxUnused float64) {
	var stay []*fate
	var left, unused int64 // bytes of those
	for _, f := range fates {
		p.Unused += f.needless
		switch {
		case f.held && f.waste > 0:
			p.Held++
		case f.held:
		case !f.keeps:
			f.goes = true
			p.Packs = append(p.Packs, PackRef{f.id, f.size})
			p.Free += f.size
		default:
			stay = append(stay, f)
			left += f.size
			unused += f.waste
		}
	}
	share := func(f *fate) float64 { return float64(f.waste) / float64(f.size) }
	slices.SortStableFunc(stay, func(a, b *fate) int { return cmp.Compare(share(b), share(a)) })
	var small []*fate
	for _, f := range stay {
		switch {
		case f.waste > 0 && float64(unused) > maxUnused*float64(left):
			p.rewrite(f)
			unused, left = unused-f.waste, left-f.waste
		case f.size < smallPack:
			small = append(small, f)
		}
	}
	if len(small) >= manySmall {
		for _, f := range small {
			p.rewrite(f)
		}
	}
	for _, list := range [][]PackRef{p.Packs, p.Rewrite} {
		slices.SortFunc(list, func(a, b PackRef) int { return compareIDs(a.ID, b.ID) })
	}
}

func (p *Prune) rewrite(f *fate) {
	f.goes = true
	p.Rewrite = append(p.Rewrite, PackRef{f.id, f.size})
	p.Copy += f.kept
	p.Free += f.waste
}

// double notes the chunks of which one copy stays and another goes: the one
// that stays has to be good.
func (p *Prune) double(fates []*fate, need map[digest.ID]*fate) {
	twice := map[digest.ID]bool{}
	for _, f := range fates {
		if !f.goes {
			continue
		}
		f.chunks(func(_ place, id digest.ID, _ int64) {
			if at := need[id]; at != nil && at != f {
				twice[id] = true
			}
		})
	}
	if len(twice) == 0 {
		return
	}
	for _, f := range fates {
		f.chunks(func(at place, id digest.ID, _ int64) {
			if twice[id] && need[id] == f {
				delete(twice, id)
				p.doubles = append(p.doubles, at.location())
			}
		})
	}
}

// arrange puts what is rewritten into the order in which the images need it.
func (p *Prune) arrange(ctx context.Context, images []digest.ID, fates []*fate, need map[digest.ID]*fate) error {
	if len(p.Rewrite) == 0 {
		return nil
	}
	places := map[digest.ID]place{}
	for _, f := range fates {
		if f.goes {
			f.chunks(func(at place, id digest.ID, _ int64) {
				if _, ok := places[id]; !ok && need[id] == f {
					places[id] = at
				}
			})
		}
	}
	for _, id := range images {
		chunks, err := p.s.chunksOf(ctx, id)
		if err != nil {
			return err
		}
		for _, c := range chunks {
			if at, ok := places[c]; ok {
				delete(places, c)
				p.order = append(p.order, at.location())
			}
		}
	}
	return nil
}
