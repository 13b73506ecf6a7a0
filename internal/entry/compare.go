package entry

import "slices"

// Data returns the parts of a file that are not holes: the complement of
// e.Holes in [0,e.Size), sorted. They hold the bytes of the chunks, in order.
func (e *Entry) Data() []Extent {
	var data []Extent
	pos := int64(0)
	for _, h := range e.Holes {
		if h.Off > pos {
			data = append(data, Extent{Off: pos, Len: h.Off - pos})
		}
		pos = h.Off + h.Len
	}
	if pos < e.Size {
		data = append(data, Extent{Off: pos, Len: e.Size - pos})
	}
	return data
}

// SameMeta reports whether a and b agree in mode, owner, modification time
// and extended attributes.
func SameMeta(a, b *Entry) bool {
	return a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.ModTime == b.ModTime &&
		slices.Equal(a.Xattrs, b.Xattrs)
}

// SameContent reports whether a and b agree in everything but metadata and
// path: type, size, holes, chunks, target, device numbers, and what they are
// a hard link to.
func SameContent(a, b *Entry) bool {
	return a.Type == b.Type && a.Size == b.Size && a.Target == b.Target &&
		a.Major == b.Major && a.Minor == b.Minor && a.Link == b.Link &&
		slices.Equal(a.Holes, b.Holes) && slices.Equal(a.Chunks, b.Chunks)
}
