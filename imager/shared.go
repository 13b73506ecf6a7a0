package imager

import (
	"context"
	"encoding/binary"
	"runtime"
	"slices"
	"sync"

	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// Shared is what several nodes that get one image are answered with: each
// answer is read and compressed once, for whoever asks first. It is made of
// chunks of the image, out of a source that has nothing which is one node's
// own. Who may ask for what has to be settled before. A nil Shared has no
// answers. It is safe for concurrent use.
type Shared struct {
	source   Source
	image    func() (chunkList, error)
	answers  *answers
	least    uint64             // bytes of a segment
	segments chan *wire.Segment // to compress with, one a processor; nil: not made yet
}

// chunkList is the distinct chunks of an image in its order, and where each is.
type chunkList struct {
	all []entry.Chunk
	at  map[digest.ID]uint32
}

// NewShared shares answers about an image, whose manifest is read when there
// is something to answer. They are kept in a file in dir that nobody sees.
func NewShared(image func() (*manifest.Manifest, error), source Source, dir string) *Shared {
	n := runtime.GOMAXPROCS(0)
	s := &Shared{source: source, least: leastSegment, answers: newAnswers(dir), segments: make(chan *wire.Segment, n)}
	for range n {
		s.segments <- nil
	}
	s.image = sync.OnceValues(func() (chunkList, error) {
		m, err := image()
		if err != nil {
			return chunkList{}, err
		}
		return listChunks(m), nil
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

func listChunks(m *manifest.Manifest) chunkList {
	l := chunkList{at: map[digest.ID]uint32{}}
	for i := range m.Entries {
		for _, c := range m.Entries[i].Chunks {
			if _, ok := l.at[c.ID]; !ok {
				l.at[c.ID] = uint32(len(l.all))
				l.all = append(l.all, c)
			}
		}
	}
	return l
}

// give sends what of ids is shared, and returns the others.
func (s *Shared) give(ctx context.Context, to *wire.Stream, ids []digest.ID) (others []digest.ID, err error) {
	if s == nil || len(ids) == 0 {
		return ids, nil
	}
	image, err := s.image()
	if err != nil {
		return nil, err
	}
	ids, others = split(ids, image.at)
	frames, ids, err := framesOf(ctx, s.source, ids)
	if err != nil {
		return nil, err
	}
	var pieces []piece
	for _, chunks := range frames {
		pieces = append(pieces, piece{idsOf(chunks), func(ctx context.Context, into []byte) ([]byte, error) {
			return packed(ctx, s.source, chunks, into)
		}})
	}
	for _, ids := range image.segments(ids, s.least) {
		pieces = append(pieces, piece{ids, func(ctx context.Context, into []byte) ([]byte, error) {
			return s.segment(ctx, s.source, ids, into)
		}})
	}
	ctx, stop := context.WithCancel(ctx) // for those that are made in advance
	defer stop()
	return others, wire.InOrder(len(pieces),
		func(i int) ([]byte, error) { return s.answers.get(ctx, keyOf(pieces[i].ids), pieces[i].make) },
		func(made []byte) error { return guarded(func() error { return to.Splice(made) }) })
}

// piece is chunks that are sent as one answer, and what makes it.
type piece struct {
	ids  []digest.ID
	make producer
}

// maxFew is how many chunks are compressed in one piece, which is in memory.
const maxFew = 64

// few sends what is not shared. An encoder of the node's own is for more of it.
func (s *Shared) few(ctx context.Context, to *wire.Stream, source Source, ids []digest.ID) error {
	if s == nil || len(ids) > maxFew {
		return source.Fetch(ctx, ids, to.Add)
	}
	segment, err := s.segment(ctx, source, ids, nil)
	if err != nil {
		return err
	}
	return to.Splice(segment)
}

// segment appends a segment of chunks to into.
func (s *Shared) segment(ctx context.Context, source Source, ids []digest.ID, into []byte) ([]byte, error) {
	var z *wire.Segment
	select {
	case z = <-s.segments:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if z == nil {
		z = wire.NewSegment()
	}
	z.Into(into)
	if err := source.Fetch(ctx, ids, z.Add); err != nil {
		s.segments <- nil // not z: somebody may still add to it
		return nil, err
	}
	out, err := z.Take()
	s.segments <- z
	return out, err
}

// difference answers for one group; ok is false where it is not shared, or
// cannot be made of what is.
func (s *Shared) difference(ctx context.Context, group wire.Group) (diff []byte, ok bool, err error) {
	if s == nil {
		return nil, false, nil
	}
	image, err := s.image()
	if err != nil {
		return nil, false, err
	}
	if slices.ContainsFunc(group.Wanted, func(id digest.ID) bool { _, ok := image.at[id]; return !ok }) {
		return nil, false, nil
	}
	diff, err = s.answers.get(ctx, keyOf(group.Wanted, group.Like), func(ctx context.Context, _ []byte) ([]byte, error) { return difference(ctx, s.source, group) })
	if err == nil {
		err = guarded(func() error { diff = slices.Clone(diff); return nil })
	}
	if err != nil {
		return nil, false, ctx.Err()
	}
	return diff, true, nil
}

// keyOf names what is made of some lists of chunks.
func keyOf(lists ...[]digest.ID) digest.ID {
	n := 0
	for _, ids := range lists {
		n += binary.MaxVarintLen64 + len(ids)*digest.Size
	}
	b := make([]byte, 0, n)
	for _, ids := range lists {
		b = binary.AppendUvarint(b, uint64(len(ids)))
		for _, id := range ids {
			b = append(b, id[:]...)
		}
	}
	return digest.Of(b)
}

// leastSegment is how long a segment is at least, in bytes of content; it is a
// third longer on average. A longer one compresses better, the ends of a
// shorter one are found again sooner where two nodes do not ask for the same.
const leastSegment = 12 << 20

// segments cuts what is asked for of an image into segments, in its order.
// Where one ends its last chunk decides: nodes that ask for almost the same
// have almost all of their segments in common. All of ids are of the image.
func (l chunkList) segments(ids []digest.ID, least uint64) (out [][]digest.ID) {
	asked := make([]bool, len(l.all))
	for _, id := range ids {
		asked[l.at[id]] = true
	}
	var segment []digest.ID
	size := uint64(0)
	for n, c := range l.all {
		if !asked[n] {
			continue
		}
		segment = append(segment, c.ID)
		size += uint64(c.Size)
		chance := uint64(binary.BigEndian.Uint32(c.ID[:])) * (least / 3) >> 32
		if size >= 3*least || size >= least && chance < uint64(c.Size) {
			out, segment, size = append(out, segment), nil, 0
		}
	}
	if len(segment) > 0 {
		out = append(out, segment)
	}
	return out
}
