package manifest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protowire"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

// minEntry is the least that an entry takes: tag and length, path, type.
const minEntry = 2 + 3 + 2

// field is one field of a message: num holds varints and fixed64, str the rest.
// Strings are cut out of the whole manifest, which costs no copy.
type field struct {
	n    protowire.Number
	kind protowire.Type
	num  uint64
	str  string
}

var (
	errTruncated = errors.New("truncated")
	errUnknown   = errors.New("unknown field")
)

// next cuts one field off s.
func next(s string) (field, string, error) {
	tag, n := uvarint(s)
	if n <= 0 {
		return field{}, "", errTruncated
	}
	s = s[n:]
	f := field{n: protowire.Number(tag >> 3), kind: protowire.Type(tag & 7)}
	if tag>>3 == 0 || tag>>3 > 15 {
		return field{}, "", fmt.Errorf("%w %d", errUnknown, tag>>3)
	}
	switch f.kind {
	case protowire.VarintType:
		if f.num, n = uvarint(s); n <= 0 {
			return field{}, "", errTruncated
		}
		return f, s[n:], nil
	case protowire.Fixed64Type:
		if len(s) < 8 {
			return field{}, "", errTruncated
		}
		f.num = binary.LittleEndian.Uint64([]byte(s[:8]))
		return f, s[8:], nil
	case protowire.BytesType:
		size, n := uvarint(s)
		if n <= 0 || size > uint64(len(s)-n) {
			return field{}, "", errTruncated
		}
		f.str = s[n : n+int(size)]
		return f, s[n+int(size):], nil
	}
	return field{}, "", fmt.Errorf("wire type %d of field %d", f.kind, f.n)
}

// uvarint is binary.Uvarint on a string; what is longer than needed is found
// later, when the canonical bytes are compared.
func uvarint(s string) (uint64, int) {
	var x uint64
	for i := 0; i < len(s) && i < binary.MaxVarintLen64; i++ {
		c := s[i]
		if c < 0x80 {
			if i == binary.MaxVarintLen64-1 && c > 1 {
				return 0, -1
			}
			return x | uint64(c)<<(7*i), i + 1
		}
		x |= uint64(c&0x7f) << (7 * i)
	}
	return 0, 0
}

// decode reads a manifest. Room is made for some entries on the word of the
// header, for more when they come: a header may lie.
func decode(s string) (*Manifest, error) {
	const ahead = 1 << 16
	count, rest, err := begin(s)
	if err != nil {
		return nil, err
	}
	m := &Manifest{Entries: make([]entry.Entry, 0, min(count, ahead))}
	slab := &slabs{chunks: make([]entry.Chunk, 0, len(rest)/128)}
	for i := range count {
		if len(m.Entries) == cap(m.Entries) {
			m.Entries = slices.Grow(m.Entries, int(min(count-i, i)))
		}
		m.Entries = append(m.Entries, entry.Entry{})
		if rest, err = decodeNext(&m.Entries[i], rest, slab); err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, err)
		}
	}
	if rest != "" {
		return nil, fmt.Errorf("%d bytes after the last entry", len(rest))
	}
	return m, nil
}

// begin reads the header, and returns how many entries the rest is.
func begin(s string) (count uint64, rest string, err error) {
	if count, rest, err = header(s); err != nil {
		return 0, "", fmt.Errorf("header: %w", err)
	}
	if count > uint64(len(rest)/minEntry) {
		return 0, "", fmt.Errorf("header: %d entries do not fit into %d bytes", count, len(s))
	}
	return count, rest, nil
}

func header(s string) (count uint64, rest string, err error) {
	f, rest, err := next(s)
	if err == nil {
		count, err = decodeHeader(f)
	}
	return count, rest, err
}

// decodeNext reads the entry at the beginning of s.
func decodeNext(e *entry.Entry, s string, slab *slabs) (rest string, err error) {
	f, rest, err := next(s)
	if err == nil && (f.n != fieldEntry || f.kind != protowire.BytesType) {
		err = errUnknown
	}
	if err == nil {
		err = decodeEntry(e, f.str, slab)
	}
	return rest, err
}

// Count returns how many entries a manifest says to have. head is its beginning:
// HeadSize bytes, or all of it.
func Count(head []byte) (int, error) {
	count, _, err := header(string(head))
	if err == nil && count > math.MaxInt32 {
		err = fmt.Errorf("%d are too many", count)
	}
	if err != nil {
		return 0, fmt.Errorf("count the entries of a manifest: %w", err)
	}
	return int(count), nil
}

// HeadSize is how many bytes of a manifest its header takes at most.
const HeadSize = 64

// DecodeKnown is Decode for bytes that are known by their digest to be those of
// a valid manifest: it checks neither order nor canonical form, and several
// parts are read at once.
func DecodeKnown(b []byte) (*Manifest, error) {
	const least = 2048 // entries that are worth a part
	m, err := decodeKnown(unsafe.String(unsafe.SliceData(b), len(b)), runtime.GOMAXPROCS(0), least)
	if err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	return m, nil
}

func decodeKnown(s string, parts, least int) (*Manifest, error) {
	count, rest, err := begin(s)
	if err != nil {
		return nil, err
	}
	m := &Manifest{Entries: make([]entry.Entry, count)}
	each := max((int(count)+parts-1)/parts, least)
	var g errgroup.Group
	for at := 0; at < int(count); at += each {
		part, text := m.Entries[at:min(at+each, int(count))], rest
		for range part { // skip them
			if _, rest, err = next(rest); err != nil {
				return nil, errors.Join(err, g.Wait())
			}
		}
		text = text[:len(text)-len(rest)]
		g.Go(func() (err error) {
			slab := &slabs{chunks: make([]entry.Chunk, 0, len(text)/128)}
			for i := range part {
				if text, err = decodeNext(&part[i], text, slab); err != nil {
					return fmt.Errorf("entry %d: %w", at+i, err)
				}
			}
			own(part)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if rest != "" {
		return nil, fmt.Errorf("%d bytes after the last entry", len(rest))
	}
	return m, nil
}

// Pick decodes those entries of an encoded manifest that want asks for by path
// and link, without holding the others: with their paths in wanted, and with
// what these link to. It checks neither order nor canonical form: b has to be
// known by its digest.
func Pick(b []byte, wanted map[string]bool) (*Manifest, error) {
	s := unsafe.String(unsafe.SliceData(b), len(b))
	heads := map[string]bool{}
	m, err := pick(s, func(e *entry.Entry) bool {
		if wanted[e.Path] && e.Link != "" {
			heads[e.Link] = true
		}
		return wanted[e.Path]
	})
	if err == nil && len(heads) > 0 {
		m, err = pick(s, func(e *entry.Entry) bool { return wanted[e.Path] || heads[e.Path] })
	}
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	own(m.Entries)
	return m, nil
}

func pick(s string, want func(*entry.Entry) bool) (*Manifest, error) {
	_, rest, err := next(s) // the header
	m, slab := &Manifest{}, &slabs{}
	for err == nil && rest != "" {
		var f field
		if f, rest, err = next(rest); err != nil {
			break
		}
		var e entry.Entry
		mark := len(slab.chunks)
		if err = decodeEntry(&e, f.str, slab); err != nil {
			break
		}
		if want(&e) {
			m.Entries = append(m.Entries, e)
		} else if len(slab.chunks) >= mark+len(e.Chunks) {
			slab.chunks = slab.chunks[:len(slab.chunks)-len(e.Chunks)]
		}
	}
	return m, err
}

func decodeHeader(f field) (count uint64, err error) {
	if f.n != fieldHeader || f.kind != protowire.BytesType {
		return 0, errors.New("this is not a manifest")
	}
	var magic string
	var version uint64
	for s := f.str; s != ""; {
		var g field
		if g, s, err = next(s); err != nil {
			return 0, err
		}
		switch {
		case g.n == fieldMagic && g.kind == protowire.BytesType:
			magic = g.str
		case g.n == fieldVersion && g.kind == protowire.VarintType:
			version = g.num
		case g.n == fieldCount && g.kind == protowire.VarintType:
			count = g.num
		default:
			return 0, fmt.Errorf("%w %d", errUnknown, g.n)
		}
	}
	if magic != Magic {
		return 0, errors.New("this is not a manifest")
	}
	if version != Version {
		return 0, fmt.Errorf("version %d; this program knows %d", version, Version)
	}
	return count, nil
}

// slabs hands out pieces of large slices, so that an entry costs no allocation.
type slabs struct{ chunks []entry.Chunk }

func (s *slabs) take(n int) []entry.Chunk {
	if cap(s.chunks)-len(s.chunks) < n {
		s.chunks = make([]entry.Chunk, 0, max(n, 1024))
	}
	from := len(s.chunks)
	s.chunks = s.chunks[:from+n]
	return s.chunks[from : from+n : from+n]
}

func decodeEntry(e *entry.Entry, s string, slab *slabs) error {
	for s != "" {
		f, rest, err := next(s)
		if err != nil {
			return err
		}
		s = rest
		switch f.kind {
		case protowire.VarintType:
			err = decodeNumber(e, f)
		case protowire.Fixed64Type:
			if f.n != fieldModTime {
				return fmt.Errorf("%w %d", errUnknown, f.n)
			}
			e.ModTime = int64(f.num)
		default:
			err = decodeBytes(e, f, slab)
		}
		if err != nil {
			return fmt.Errorf("field %d: %w", f.n, err)
		}
	}
	return nil
}

func decodeNumber(e *entry.Entry, f field) error {
	limit := uint64(math.MaxUint32)
	switch f.n {
	case fieldSize:
		limit = math.MaxInt64
	case fieldType:
		limit = math.MaxUint8
	}
	if f.num > limit {
		return fmt.Errorf("%d is too large", f.num)
	}
	switch f.n {
	case fieldType:
		e.Type = entry.Type(f.num)
	case fieldMode:
		e.Mode = uint32(f.num)
	case fieldUID:
		e.UID = uint32(f.num)
	case fieldGID:
		e.GID = uint32(f.num)
	case fieldSize:
		e.Size = int64(f.num)
	case fieldMajor:
		e.Major = uint32(f.num)
	case fieldMinor:
		e.Minor = uint32(f.num)
	default:
		return errUnknown
	}
	return nil
}

func decodeBytes(e *entry.Entry, f field, slab *slabs) (err error) {
	switch f.n {
	case fieldPath:
		e.Path = f.str
	case fieldTarget:
		e.Target = f.str
	case fieldLink:
		e.Link = f.str
	case fieldXattr:
		var x entry.Xattr
		if x, err = decodeXattr(f.str); err == nil {
			e.Xattrs = append(e.Xattrs, x)
		}
	case fieldHoles:
		e.Holes, err = decodeHoles(f.str)
	case fieldChunkIDs:
		if len(f.str)%digest.Size != 0 || len(e.Chunks) != 0 {
			return errors.New("not a list of digests")
		}
		e.Chunks = slab.take(len(f.str) / digest.Size)
		for i := range e.Chunks {
			copy(e.Chunks[i].ID[:], f.str[i*digest.Size:])
		}
	case fieldChunkSizes:
		err = decodeSizes(e.Chunks, f.str)
	default:
		err = errUnknown
	}
	return err
}

func decodeXattr(s string) (x entry.Xattr, err error) {
	for s != "" {
		var f field
		if f, s, err = next(s); err != nil {
			return x, err
		}
		switch {
		case f.n == fieldXattrName && f.kind == protowire.BytesType:
			x.Name = f.str
		case f.n == fieldXattrValue && f.kind == protowire.BytesType:
			x.Value = f.str
		default:
			return x, errUnknown
		}
	}
	return x, nil
}

func decodeHoles(s string) ([]entry.Extent, error) {
	var holes []entry.Extent
	for s != "" {
		off, n := uvarint(s)
		if n <= 0 {
			return nil, errTruncated
		}
		length, k := uvarint(s[n:])
		if k <= 0 {
			return nil, errTruncated
		}
		if off > math.MaxInt64 || length > math.MaxInt64 {
			return nil, errors.New("hole out of range")
		}
		holes = append(holes, entry.Extent{Off: int64(off), Len: int64(length)})
		s = s[n+k:]
	}
	return holes, nil
}

func decodeSizes(chunks []entry.Chunk, s string) error {
	for i := range chunks {
		v, n := uvarint(s)
		if n <= 0 {
			return errTruncated
		}
		if v > MaxChunk {
			return fmt.Errorf("a chunk of %d bytes", v)
		}
		chunks[i].Size = uint32(v)
		s = s[n:]
	}
	if s != "" {
		return errors.New("more sizes than chunks")
	}
	return nil
}
