package rollback

import (
	"encoding/binary"
	"hash/crc32"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// writer encodes the records of .ingot: varints (encoding/binary) and
// length-prefixed bytes.
type writer struct{ b []byte }

func (w *writer) uint(v uint64) { w.b = binary.AppendUvarint(w.b, v) }
func (w *writer) int(v int64)   { w.b = binary.AppendVarint(w.b, v) }

func (w *writer) text(s string) {
	w.uint(uint64(len(s)))
	w.b = append(w.b, s...)
}

func (w *writer) id(id digest.ID) { w.b = append(w.b, id[:]...) }

func (w *writer) stat(st entry.Stat) {
	w.uint(st.Dev)
	w.uint(st.Ino)
	w.int(st.Size)
	w.int(st.MTime)
	w.int(st.CTime)
	w.uint(st.Nlink)
}

// meta encodes an entry without path and content.
func (w *writer) meta(e *entry.Entry) {
	w.uint(uint64(e.Type))
	w.uint(uint64(e.Mode))
	w.uint(uint64(e.UID))
	w.uint(uint64(e.GID))
	w.int(e.ModTime)
	w.int(e.Size)
	w.text(e.Target)
	w.uint(uint64(e.Major))
	w.uint(uint64(e.Minor))
	w.uint(uint64(len(e.Xattrs)))
	for _, x := range e.Xattrs {
		w.text(x.Name)
		w.text(x.Value)
	}
}

func (w *writer) volume(v *Volume) {
	for _, s := range []string{string(v.At), v.ID, v.FSType, v.UUID, v.Source, v.Root} {
		w.text(s)
	}
}

// reader decodes what writer wrote. After the first malformed piece bad is
// set and everything reads as zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() {
	r.bad = true
	r.b = nil
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || n > 1 && r.b[n-1] == 0 { // one encoding for each number
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) int() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 || n > 1 && r.b[n-1] == 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) uint32() uint32 {
	v := r.uint()
	if v > 1<<32-1 {
		r.fail()
		return 0
	}
	return uint32(v)
}

func (r *reader) text() string {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.fail()
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

func (r *reader) id() (id digest.ID) {
	if len(r.b) < len(id) {
		r.fail()
		return id
	}
	r.b = r.b[copy(id[:], r.b):]
	return id
}

func (r *reader) stat() entry.Stat {
	return entry.Stat{Dev: r.uint(), Ino: r.uint(), Size: r.int(), MTime: r.int(), CTime: r.int(), Nlink: r.uint()}
}

func (r *reader) meta() entry.Entry {
	var e entry.Entry
	t := r.uint()
	if t < uint64(entry.File) || t > uint64(entry.FIFO) {
		r.fail()
		return e
	}
	e.Type = entry.Type(t)
	e.Mode, e.UID, e.GID = r.uint32(), r.uint32(), r.uint32()
	e.ModTime, e.Size = r.int(), r.int()
	e.Target = r.text()
	e.Major, e.Minor = r.uint32(), r.uint32()
	for n := r.uint(); n > 0 && !r.bad; n-- {
		e.Xattrs = append(e.Xattrs, entry.Xattr{Name: r.text(), Value: r.text()})
	}
	return e
}

func (r *reader) volume() Volume {
	return Volume{At: Path(r.text()), ID: r.text(), FSType: r.text(), UUID: r.text(), Source: r.text(), Root: r.text()}
}
