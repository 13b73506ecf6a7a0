package store

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// Index says where each chunk of one image is: what a node needs beside the
// manifest to fetch the image out of packs.
type Index struct {
	Manifest digest.ID
	Packs    []PackRef
	Frames   []FrameRef // sorted by pack and offset
	Chunks   []ChunkRef // sorted by frame and offset
}

// PackRef is a pack that an image needs something of.
type PackRef struct {
	ID   digest.ID
	Size int64 // bytes of the whole pack
}

// FrameRef is a zstd frame: where it is in which pack.
type FrameRef struct {
	Pack uint32 // number in Index.Packs
	Off  int64
	Len  uint32
	Raw  uint32 // bytes when decompressed
}

// ChunkRef is a chunk: where it is in the raw bytes of which frame.
type ChunkRef struct {
	entry.Chunk
	Frame uint32 // number in Index.Frames
	Off   uint32
}

// Index makes the index of an image, from the packs that are there now.
func (s *Store) Index(ctx context.Context, id digest.ID) (*Index, error) {
	if err := s.Refresh(ctx); err != nil { // its reader must not be sent to packs that a prune has removed
		return nil, err
	}
	m, err := s.Manifest(ctx, id)
	if err != nil {
		return nil, err
	}
	locs, err := s.Locate(ctx, Chunks(m))
	if err != nil {
		return nil, fmt.Errorf("index image %s: %w", id.Short(), err)
	}
	sizes := chunkSizes(m)
	for _, l := range locs {
		if sizes[l.Chunk.ID] != l.Chunk.Size {
			return nil, &CorruptError{ID: l.Chunk.ID, Where: "manifest " + id.Short(), Err: errors.New("a size that is not the chunk's")}
		}
	}
	x := IndexOf(locs)
	x.Manifest = id
	return x, nil
}

func chunkSizes(m *manifest.Manifest) map[digest.ID]uint32 {
	sizes := map[digest.ID]uint32{}
	for i := range m.Entries {
		for _, c := range m.Entries[i].Chunks {
			sizes[c.ID] = c.Size
		}
	}
	return sizes
}

// IndexOf makes an index of locations, packs in the order in which they are
// first used. A chunk that is there twice counts once.
func IndexOf(locs []Location) *Index {
	x := &Index{}
	packs := map[digest.ID]uint32{}
	type at struct {
		pack uint32
		loc  Location
	}
	all := make([]at, 0, len(locs))
	seen := make(map[digest.ID]struct{}, len(locs))
	for _, l := range locs {
		if _, ok := seen[l.Chunk.ID]; ok {
			continue
		}
		seen[l.Chunk.ID] = struct{}{}
		n, ok := packs[l.Pack]
		if !ok {
			n = uint32(len(x.Packs))
			packs[l.Pack] = n
			x.Packs = append(x.Packs, PackRef{ID: l.Pack, Size: l.PackSize})
		}
		all = append(all, at{n, l})
	}
	slices.SortFunc(all, func(a, b at) int {
		return cmp.Or(cmp.Compare(a.pack, b.pack), cmp.Compare(a.loc.FrameOff, b.loc.FrameOff), cmp.Compare(a.loc.RawOff, b.loc.RawOff))
	})
	x.Chunks = make([]ChunkRef, 0, len(all))
	for _, a := range all {
		f := FrameRef{Pack: a.pack, Off: a.loc.FrameOff, Len: a.loc.FrameLen, Raw: a.loc.FrameRaw}
		if n := len(x.Frames); n == 0 || x.Frames[n-1] != f {
			x.Frames = append(x.Frames, f)
		}
		x.Chunks = append(x.Chunks, ChunkRef{Chunk: a.loc.Chunk, Frame: uint32(len(x.Frames) - 1), Off: a.loc.RawOff})
	}
	return x
}

// The image index: indexMagic, digest of the manifest, numbers of packs,
// frames and chunks (32 bits), the packs, the frames, the chunks, and the
// SHA-256 of all that. Numbers are little-endian, of the widths in Index.
const (
	indexMagic = "INGOTMX1"
	indexHead  = len(indexMagic) + digest.Size + 12
	packRefLen = digest.Size + 8
	frameLen   = 4 + 8 + 4 + 4
	chunkLen   = digest.Size + 4 + 4 + 4
)

// Encode returns the bytes of x.
func (x *Index) Encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, indexHead+len(x.Packs)*packRefLen+len(x.Frames)*frameLen+len(x.Chunks)*chunkLen+digest.Size)
	b = append(b, indexMagic...)
	b = append(b, x.Manifest[:]...)
	for _, n := range []int{len(x.Packs), len(x.Frames), len(x.Chunks)} {
		b = le.AppendUint32(b, uint32(n))
	}
	for _, p := range x.Packs {
		b = le.AppendUint64(append(b, p.ID[:]...), uint64(p.Size))
	}
	for _, f := range x.Frames {
		b = le.AppendUint64(le.AppendUint32(b, f.Pack), uint64(f.Off))
		b = le.AppendUint32(le.AppendUint32(b, f.Len), f.Raw)
	}
	for _, c := range x.Chunks {
		b = le.AppendUint32(append(b, c.ID[:]...), c.Size)
		b = le.AppendUint32(le.AppendUint32(b, c.Frame), c.Off)
	}
	sum := digest.Of(b)
	return append(b, sum[:]...)
}

// DecodeIndex reads what Encode wrote and checks it: what comes back is safe
// to follow, whoever wrote it.
func DecodeIndex(b []byte) (*Index, error) {
	x, err := decodeIndex(b)
	if err == nil {
		err = x.check()
	}
	if err != nil {
		return nil, fmt.Errorf("image index: %w", err)
	}
	return x, nil
}

func decodeIndex(b []byte) (*Index, error) {
	le := binary.LittleEndian
	if len(b) < indexHead+digest.Size || string(b[:len(indexMagic)]) != indexMagic {
		return nil, errors.New("this is not one")
	}
	body, sum := b[:len(b)-digest.Size], b[len(b)-digest.Size:]
	if digest.Of(body) != digest.ID(sum) {
		return nil, errors.New("wrong checksum")
	}
	x := &Index{Manifest: digest.ID(body[len(indexMagic):])}
	counts := body[indexHead-12:]
	packs, frames, chunks := uint64(le.Uint32(counts)), uint64(le.Uint32(counts[4:])), uint64(le.Uint32(counts[8:]))
	body = body[indexHead:]
	if uint64(len(body)) != packs*packRefLen+frames*frameLen+chunks*chunkLen {
		return nil, errors.New("its numbers do not fit its length")
	}
	x.Packs = make([]PackRef, packs)
	for i := range x.Packs {
		size := le.Uint64(body[digest.Size:])
		if size > math.MaxInt64 {
			return nil, errors.New("a pack is too large")
		}
		x.Packs[i] = PackRef{ID: digest.ID(body), Size: int64(size)}
		body = body[packRefLen:]
	}
	x.Frames = make([]FrameRef, frames)
	for i := range x.Frames {
		off := le.Uint64(body[4:])
		if off > math.MaxInt64 {
			return nil, errors.New("an offset is too large")
		}
		x.Frames[i] = FrameRef{Pack: le.Uint32(body), Off: int64(off), Len: le.Uint32(body[12:]), Raw: le.Uint32(body[16:])}
		body = body[frameLen:]
	}
	x.Chunks = make([]ChunkRef, chunks)
	for i := range x.Chunks {
		x.Chunks[i].ID, x.Chunks[i].Size = digest.ID(body), le.Uint32(body[digest.Size:])
		x.Chunks[i].Frame, x.Chunks[i].Off = le.Uint32(body[digest.Size+4:]), le.Uint32(body[digest.Size+8:])
		body = body[chunkLen:]
	}
	return x, nil
}

// check makes sure that frames are in their packs and chunks in their frames,
// in order and apart from each other, and that nothing is there for nothing.
func (x *Index) check() error {
	packs, used := map[digest.ID]bool{}, -1
	for _, p := range x.Packs {
		if packs[p.ID] || p.Size > maxPack {
			return fmt.Errorf("pack %s twice or too large", p.ID.Short())
		}
		packs[p.ID] = true
	}
	end := int64(0)
	for i, f := range x.Frames {
		if int64(f.Pack) == int64(used)+1 {
			used, end = int(f.Pack), int64(len(packMagic))
		}
		if int64(f.Pack) != int64(used) || used >= len(x.Packs) || f.Off < end || f.Off > maxPack || f.Len == 0 || f.Len > 2*maxFrame ||
			f.Raw == 0 || f.Raw > maxFrame || f.Off+int64(f.Len) > x.Packs[used].Size {
			return fmt.Errorf("frame %d: out of order or out of its pack", i)
		}
		end = f.Off + int64(f.Len)
	}
	if used != len(x.Packs)-1 {
		return errors.New("a pack without a frame")
	}
	return x.checkChunks()
}

func (x *Index) checkChunks() error {
	frame, end := -1, uint64(0)
	ids := make(map[digest.ID]struct{}, len(x.Chunks))
	for i, c := range x.Chunks {
		if int64(c.Frame) == int64(frame)+1 {
			frame, end = int(c.Frame), 0
		}
		if int64(c.Frame) != int64(frame) || frame >= len(x.Frames) || uint64(c.Off) < end ||
			c.Size == 0 || c.Size > manifest.MaxChunk || uint64(c.Off)+uint64(c.Size) > uint64(x.Frames[frame].Raw) {
			return fmt.Errorf("chunk %d: out of order or out of its frame", i)
		}
		end = uint64(c.Off) + uint64(c.Size)
		if _, ok := ids[c.ID]; ok {
			return fmt.Errorf("chunk %s twice", c.ID.Short())
		}
		ids[c.ID] = struct{}{}
	}
	if frame != len(x.Frames)-1 {
		return errors.New("a frame without a chunk")
	}
	return nil
}
