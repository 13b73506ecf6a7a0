package imager

import (
	"cmp"
	"context"
	"encoding/binary"
	"slices"
	"sync"

	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/manifest"
)

// Shared is what several nodes that get one image are answered with: each
// answer is read and compressed once, for whoever asks first. It is made of
// chunks of the image, out of a source that has nothing which is one node's
// own. Who may ask for what has to be settled before. A nil Shared has no
// answers. It is safe for concurrent use.
type Shared struct {
	source   Source
	image    func() (map[digest.ID]place, error)
	answers  *answers
	segments sync.Pool // of *wire.Segment
}

// place is where a chunk stands in an image.
type place struct{ rank, size uint32 }

// NewShared shares answers about an image, whose manifest is read when there
// is something to answer. They are kept in a file in dir that nobody sees.
func NewShared(image func() (*manifest.Manifest, error), source Source, dir string) *Shared {
	s := &Shared{source: source, answers: newAnswers(dir), segments: sync.Pool{New: func() any { return wire.NewSegment() }}}
	s.image = sync.OnceValues(func() (map[digest.ID]place, error) {
		m, err := image()
		if err != nil {
			return nil, err
		}
		return placesOf(m), nil
	})
	return s
}

// Close frees what is kept. It returns why not all was, if so: it was then
// made again for each node, which takes longer and harms nothing.
func (s *Shared) Close() error {
	if s == nil {
		return nil
	}
	return s.answers.close()
}

func placesOf(m *manifest.Manifest) map[digest.ID]place {
	out := map[digest.ID]place{}
	for i := range m.Entries {
		for _, c := range m.Entries[i].Chunks {
			if _, ok := out[c.ID]; !ok {
				out[c.ID] = place{uint32(len(out)), c.Size}
			}
		}
	}
	return out
}

// give sends what of ids is shared, and returns the others.
func (s *Shared) give(ctx context.Context, to *wire.Stream, ids []digest.ID) (others []digest.ID, err error) {
	if s == nil || len(ids) == 0 {
		return ids, nil
	}
	at, err := s.image()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx) // for those that are made in advance
	defer stop()
	var shared []digest.ID
	for _, id := range ids {
		if _, ok := at[id]; ok {
			shared = append(shared, id)
		} else {
			others = append(others, id)
		}
	}
	segments := segmentsOf(shared, at)
	return others, wire.InOrder(len(segments), func(i int) (loader, error) {
		return s.answers.get(ctx, keyOf(segments[i]), func(ctx context.Context) ([]byte, error) { return s.segment(ctx, segments[i]) })
	}, func(load loader) error {
		segment, err := load()
		if err != nil {
			return err
		}
		return to.Splice(segment)
	})
}

func (s *Shared) segment(ctx context.Context, ids []digest.ID) ([]byte, error) {
	z := s.segments.Get().(*wire.Segment)
	if err := s.source.Fetch(ctx, ids, z.Add); err != nil {
		return nil, err // without z: somebody may still add to it
	}
	out, err := z.Take()
	s.segments.Put(z)
	return out, err
}

// difference answers for one group; ok is false where it is not shared, or
// cannot be made of what is.
func (s *Shared) difference(ctx context.Context, group wire.Group) (diff []byte, ok bool, err error) {
	if s == nil {
		return nil, false, nil
	}
	at, err := s.image()
	if err != nil {
		return nil, false, err
	}
	if slices.ContainsFunc(group.Wanted, func(id digest.ID) bool { _, ok := at[id]; return !ok }) {
		return nil, false, nil
	}
	load, err := s.answers.get(ctx, keyOf(group.Wanted, group.Like), func(ctx context.Context) ([]byte, error) { return difference(ctx, s.source, group) })
	if err == nil {
		diff, err = load()
	}
	if err != nil {
		return nil, false, ctx.Err()
	}
	return diff, true, nil
}

// keyOf names what is made of some lists of chunks.
func keyOf(lists ...[]digest.ID) digest.ID {
	var b []byte
	for _, ids := range lists {
		b = binary.AppendUvarint(b, uint64(len(ids)))
		for _, id := range ids {
			b = append(b, id[:]...)
		}
	}
	return digest.Of(b)
}

// Segments, in bytes of content: a longer one compresses better, the ends of a
// shorter one are found again sooner where two nodes do not ask for the same.
const (
	minSegment  = 6 << 20
	moreSegment = 4 << 20 // on average
	maxSegment  = 24 << 20
)

// segmentsOf cuts what is asked for into segments in the order of the image.
// Where one ends its last chunk decides: nodes that ask for almost the same
// have almost all of their segments in common.
func segmentsOf(ids []digest.ID, at map[digest.ID]place) (out [][]digest.ID) {
	ids = slices.Clone(ids)
	slices.SortFunc(ids, func(a, b digest.ID) int { return cmp.Compare(at[a].rank, at[b].rank) })
	ids = slices.Compact(ids)
	from, size := 0, uint64(0)
	for i, id := range ids {
		n := uint64(at[id].size)
		size += n
		chance := uint64(binary.BigEndian.Uint32(id[:])) * moreSegment >> 32
		if size >= maxSegment || size >= minSegment && chance < n {
			out = append(out, ids[from:i+1])
			from, size = i+1, 0
		}
	}
	if from < len(ids) {
		out = append(out, ids[from:])
	}
	return out
}
