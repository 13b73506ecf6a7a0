package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

// The header. Magic is readable in a hex dump; Version is raised by any change.
const (
	Magic   = "ingot manifest"
	Version = 1
)

// Field numbers: docs/FORMAT.md has the schema.
const (
	fieldHeader = 1
	fieldEntry  = 2

	fieldMagic   = 1
	fieldVersion = 2
	fieldCount   = 3

	fieldPath       = 1
	fieldType       = 2
	fieldMode       = 3
	fieldUID        = 4
	fieldGID        = 5
	fieldModTime    = 6
	fieldSize       = 7
	fieldTarget     = 8
	fieldMajor      = 9
	fieldMinor      = 10
	fieldXattr      = 11
	fieldLink       = 12
	fieldHoles      = 13
	fieldChunkIDs   = 14
	fieldChunkSizes = 15

	fieldXattrName  = 1
	fieldXattrValue = 2
)

// Encode returns the bytes of m. It does not check m: see Validate.
func (m *Manifest) Encode() []byte {
	n := 64
	for i := range m.Entries {
		e := &m.Entries[i]
		n += 64 + len(e.Path) + len(e.Target) + len(e.Link) + len(e.Chunks)*(digest.Size+3) + len(e.Holes)*12
		for _, x := range e.Xattrs {
			n += 12 + len(x.Name) + len(x.Value)
		}
	}
	b := make([]byte, 0, n)
	m.pieces(func(p []byte) bool { b = append(b, p...); return true })
	return b
}

// WriteTo writes the bytes of m, as Encode returns them, in small pieces.
func (m *Manifest) WriteTo(w io.Writer) (n int64, err error) {
	m.pieces(func(p []byte) bool {
		var k int
		k, err = w.Write(p)
		n += int64(k)
		return err == nil
	})
	return n, err
}

// pieces gives the encoding piece by piece, until fn returns false. Each is
// valid only during the call.
func (m *Manifest) pieces(fn func([]byte) bool) {
	var one, piece []byte
	one = appendString(one, fieldMagic, Magic)
	one = appendUint(one, fieldVersion, Version)
	one = appendUint(one, fieldCount, uint64(len(m.Entries)))
	piece = appendBytes(piece, fieldHeader, one)
	for i := 0; fn(piece) && i < len(m.Entries); i++ {
		one = appendEntry(one[:0], &m.Entries[i])
		piece = appendBytes(piece[:0], fieldEntry, one)
	}
}

func appendEntry(b []byte, e *entry.Entry) []byte {
	b = appendString(b, fieldPath, e.Path)
	b = appendUint(b, fieldType, uint64(e.Type))
	b = appendUint(b, fieldMode, uint64(e.Mode))
	b = appendUint(b, fieldUID, uint64(e.UID))
	b = appendUint(b, fieldGID, uint64(e.GID))
	if e.ModTime != 0 {
		b = protowire.AppendTag(b, fieldModTime, protowire.Fixed64Type)
		b = protowire.AppendFixed64(b, uint64(e.ModTime))
	}
	b = appendUint(b, fieldSize, uint64(e.Size))
	b = appendString(b, fieldTarget, e.Target)
	b = appendUint(b, fieldMajor, uint64(e.Major))
	b = appendUint(b, fieldMinor, uint64(e.Minor))
	for _, x := range e.Xattrs {
		var one []byte
		one = appendString(one, fieldXattrName, x.Name)
		one = appendString(one, fieldXattrValue, x.Value)
		b = appendBytes(b, fieldXattr, one)
	}
	b = appendString(b, fieldLink, e.Link)
	b = appendHoles(b, e.Holes)
	return appendChunks(b, e.Chunks)
}

func appendHoles(b []byte, holes []entry.Extent) []byte {
	if len(holes) == 0 {
		return b
	}
	var one []byte
	for _, h := range holes {
		one = protowire.AppendVarint(one, uint64(h.Off))
		one = protowire.AppendVarint(one, uint64(h.Len))
	}
	return appendBytes(b, fieldHoles, one)
}

func appendChunks(b []byte, chunks []entry.Chunk) []byte {
	if len(chunks) == 0 {
		return b
	}
	b = protowire.AppendTag(b, fieldChunkIDs, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(chunks)*digest.Size))
	sizes := 0
	for _, c := range chunks {
		b = append(b, c.ID[:]...)
		sizes += protowire.SizeVarint(uint64(c.Size))
	}
	b = protowire.AppendTag(b, fieldChunkSizes, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(sizes))
	for _, c := range chunks {
		b = protowire.AppendVarint(b, uint64(c.Size))
	}
	return b
}

func appendUint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

// appendBytes, unlike appendString, writes what is empty: it is for messages.
func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

// errNotCanonical is for bytes that say what other bytes say too: an image
// must have one digest.
var errNotCanonical = errors.New("not the canonical encoding")

// Decode reads what Encode wrote and validates it. Bytes that Encode would
// not have written are refused. The memory used is proportional to len(b),
// whatever b claims. The result does not keep b.
func Decode(b []byte) (*Manifest, error) {
	m, err := decode(unsafe.String(unsafe.SliceData(b), len(b)))
	if err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	rest, canonical := b, false
	m.pieces(func(p []byte) bool {
		same := bytes.HasPrefix(rest, p)
		rest = rest[min(len(p), len(rest)):]
		canonical = same
		return same
	})
	if !canonical || len(rest) > 0 {
		return nil, fmt.Errorf("decode manifest: %w", errNotCanonical)
	}
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	own(m.Entries)
	return m, nil
}

// own copies all text of entries, which until then is in what was decoded, to one place
// of its own: that is much less, since chunk lists are not text.
func own(entries []entry.Entry) {
	n := 0
	for i := range entries {
		e := &entries[i]
		n += len(e.Path) + len(e.Target) + len(e.Link)
		for _, x := range e.Xattrs {
			n += len(x.Name) + len(x.Value)
		}
	}
	text := make([]byte, 0, n)
	take := func(s *string) {
		if *s == "" {
			return
		}
		at := len(text)
		text = append(text, *s...)
		*s = unsafe.String(unsafe.SliceData(text[at:]), len(*s))
	}
	for i := range entries {
		e := &entries[i]
		take(&e.Path)
		take(&e.Target)
		take(&e.Link)
		for j := range e.Xattrs {
			take(&e.Xattrs[j].Name)
			take(&e.Xattrs[j].Value)
		}
	}
}
