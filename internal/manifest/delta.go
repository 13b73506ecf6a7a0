package manifest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

// A delta is the magic and then runs, each a varint n<<2 | run: so many
// entries of the base to keep, to leave out, or to add. An added entry is the
// length of what its path shares with that of the one added before, the entry
// as in a manifest but without that part of the path and without chunks, and
// its chunks in pieces: n<<1, the distance from where the piece before ended,
// and n chunks are those of the base from there; n<<1 | 1 and n chunks follow.
const deltaMagic = "ingot delta 1\n"

const (
	runKeep = iota
	runDrop
	runAdd
)

// maxCopied bounds the chunks that a delta takes from its base, so that a few
// bytes cannot become a manifest without end.
func maxCopied(base int) int { return 8*base + 1<<16 }

// Delta returns what Apply makes target of base with. An entry that is the
// same in both costs nothing, one that has content of the base its name and
// metadata. It is not compressed. Both have to be sorted.
func Delta(base, target *Manifest) []byte {
	w := &deltaWriter{b: []byte(deltaMagic), flat: base.flat()}
	i := 0
	for j := range target.Entries {
		t := &target.Entries[j]
		for i < len(base.Entries) && entry.Before(base.Entries[i].Path, t.Path) {
			w.run(runDrop)
			i++
		}
		same := i < len(base.Entries) && base.Entries[i].Path == t.Path
		if same && entry.SameMeta(&base.Entries[i], t) && entry.SameContent(&base.Entries[i], t) {
			w.run(runKeep)
			i++
			continue
		}
		if same {
			w.run(runDrop)
			i++
		}
		w.run(runAdd)
		w.entry(t)
	}
	w.flush() // what is left of the base is left out
	return w.b
}

// flat is all chunks of all entries, in order.
func (m *Manifest) flat() []entry.Chunk {
	n := 0
	for i := range m.Entries {
		n += len(m.Entries[i].Chunks)
	}
	out := make([]entry.Chunk, 0, n)
	for i := range m.Entries {
		out = append(out, m.Entries[i].Chunks...)
	}
	return out
}

type deltaWriter struct {
	b    []byte
	kind int
	n    uint64
	adds []byte // the entries of a run that is not written yet

	flat   []entry.Chunk
	at     map[digest.ID]int // in flat
	end    int               // in flat, of the piece before
	copied int
	path   string // added last
}

func (w *deltaWriter) run(kind int) {
	if kind != w.kind {
		w.flush()
		w.kind = kind
	}
	w.n++
}

func (w *deltaWriter) flush() {
	if w.n > 0 {
		w.b = binary.AppendUvarint(w.b, w.n<<2|uint64(w.kind))
		w.b = append(w.b, w.adds...)
	}
	w.n, w.adds = 0, w.adds[:0]
}

func (w *deltaWriter) entry(e *entry.Entry) {
	shared := 0
	for shared < min(len(w.path), len(e.Path)) && w.path[shared] == e.Path[shared] {
		shared++
	}
	bare := *e
	bare.Path, bare.Chunks = e.Path[shared:], nil
	w.path = e.Path
	w.adds = binary.AppendUvarint(w.adds, uint64(shared))
	w.adds = protowire.AppendBytes(w.adds, appendEntry(nil, &bare))
	w.adds = binary.AppendUvarint(w.adds, uint64(len(e.Chunks)))
	for chunks := e.Chunks; len(chunks) > 0; {
		chunks = chunks[w.piece(chunks):]
	}
}

// piece writes the first piece of some chunks and returns how long it is.
func (w *deltaWriter) piece(chunks []entry.Chunk) int {
	if at, n := w.find(chunks); n > 0 {
		w.adds = binary.AppendUvarint(w.adds, uint64(n)<<1)
		w.adds = binary.AppendVarint(w.adds, int64(at-w.end))
		w.end, w.copied = at+n, w.copied+n
		return n
	}
	n := 1
	for n < len(chunks) {
		if _, found := w.find(chunks[n:]); found > 0 {
			break
		}
		n++
	}
	w.adds = binary.AppendUvarint(w.adds, uint64(n)<<1|1)
	for _, c := range chunks[:n] {
		w.adds = binary.AppendUvarint(append(w.adds, c.ID[:]...), uint64(c.Size))
	}
	return n
}

// find looks for chunks in the base: from where, and how many in a row.
func (w *deltaWriter) find(chunks []entry.Chunk) (at, n int) {
	at = w.end
	if at >= len(w.flat) || w.flat[at] != chunks[0] {
		if w.at == nil {
			w.at = make(map[digest.ID]int, len(w.flat))
			for i, c := range w.flat {
				if _, ok := w.at[c.ID]; !ok {
					w.at[c.ID] = i
				}
			}
		}
		var ok bool
		if at, ok = w.at[chunks[0].ID]; !ok {
			return 0, 0
		}
	}
	for n < len(chunks) && at+n < len(w.flat) && w.flat[at+n] == chunks[n] && w.copied+n < maxCopied(len(w.flat)) {
		n++
	}
	return at, n
}

// Apply returns the manifest that a delta makes of base, which has to be the
// one that it was made with: the caller compares the digest of the result. The
// result shares memory with base. The memory used is proportional to base and
// delta, whatever the delta claims.
func (m *Manifest) Apply(delta []byte) (*Manifest, error) {
	out, err := m.ApplyKnown(delta)
	if err == nil {
		if err = out.Validate(); err != nil {
			err = fmt.Errorf("apply delta: %w", err)
		}
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// ApplyKnown is Apply for a delta that is known by its digest to make a valid
// manifest of m: it does not check the result.
func (m *Manifest) ApplyKnown(delta []byte) (*Manifest, error) {
	r := &deltaReader{s: string(delta), base: m.Entries, flat: m.flat(), slab: &slabs{}}
	out, err := r.read()
	if err != nil {
		return nil, fmt.Errorf("apply delta: %w", err)
	}
	return out, nil
}

type deltaReader struct {
	s    string
	base []entry.Entry
	out  []entry.Entry

	flat   []entry.Chunk
	end    int
	copied int
	path   string
	slab   *slabs
}

func (r *deltaReader) read() (*Manifest, error) {
	if len(r.s) < len(deltaMagic) || r.s[:len(deltaMagic)] != deltaMagic {
		return nil, errors.New("this is not a delta")
	}
	r.s = r.s[len(deltaMagic):]
	r.out = make([]entry.Entry, 0, len(r.base)+64)
	for r.s != "" {
		run, err := r.uint(math.MaxUint64)
		if err != nil {
			return nil, err
		}
		if err := r.run(int(run&3), run>>2); err != nil {
			return nil, err
		}
	}
	return &Manifest{Entries: r.out}, nil
}

func (r *deltaReader) run(kind int, n uint64) error {
	if kind == runAdd {
		for ; n > 0; n-- {
			if err := r.entry(); err != nil {
				return fmt.Errorf("entry %d: %w", len(r.out), err)
			}
		}
		return nil
	}
	if n > uint64(len(r.base)) {
		return fmt.Errorf("%d entries of a base that has %d left", n, len(r.base))
	}
	switch kind {
	case runKeep:
		r.out = append(r.out, r.base[:n]...)
	case runDrop:
	default:
		return fmt.Errorf("unknown run %d", kind)
	}
	r.base = r.base[n:]
	return nil
}

func (r *deltaReader) entry() error {
	shared, err := r.uint(uint64(len(r.path)))
	if err != nil {
		return err
	}
	size, err := r.uint(uint64(len(r.s)))
	if err != nil {
		return err
	}
	if size > uint64(len(r.s)) {
		return errTruncated
	}
	var e entry.Entry
	if err := decodeEntry(&e, r.s[:size], r.slab); err != nil {
		return err
	}
	if e.Chunks != nil {
		return fmt.Errorf("chunks: %w", errUnknown)
	}
	r.s = r.s[size:]
	if shared+uint64(len(e.Path)) > MaxPath {
		return errors.New("a path that is too long")
	}
	if shared > 0 {
		e.Path = r.path[:shared] + e.Path
	}
	r.path = e.Path
	if e.Chunks, err = r.chunks(); err != nil {
		return fmt.Errorf("chunks: %w", err)
	}
	r.out = append(r.out, e)
	return nil
}

func (r *deltaReader) chunks() ([]entry.Chunk, error) {
	total, err := r.uint(uint64(len(r.s)/2*(len(r.flat)+1) + 1))
	if err != nil || total == 0 {
		return nil, err
	}
	var out []entry.Chunk
	for uint64(len(out)) < total {
		head, err := r.uint(math.MaxUint64)
		if err != nil {
			return nil, err
		}
		n := head >> 1
		if n == 0 || n > total-uint64(len(out)) {
			return nil, fmt.Errorf("a piece of %d", n)
		}
		var piece []entry.Chunk
		if head&1 == 0 {
			piece, err = r.taken(n)
		} else {
			piece, err = r.given(n)
		}
		if err != nil {
			return nil, err
		}
		if out == nil {
			out = piece // mostly there is no other; its capacity is its length
		} else {
			out = append(out, piece...)
		}
	}
	return out, nil
}

// taken returns n chunks of the base.
func (r *deltaReader) taken(n uint64) ([]entry.Chunk, error) {
	d, k := binary.Varint([]byte(r.s[:min(len(r.s), binary.MaxVarintLen64)]))
	if k <= 0 {
		return nil, errTruncated
	}
	r.s = r.s[k:]
	if d < -int64(r.end) || d > int64(len(r.flat)-r.end) {
		return nil, errors.New("out of the base")
	}
	at := r.end + int(d)
	if n > uint64(len(r.flat)-at) {
		return nil, errors.New("out of the base")
	}
	r.end, r.copied = at+int(n), r.copied+int(n)
	if r.copied > maxCopied(len(r.flat)) {
		return nil, errors.New("too many of the base")
	}
	return r.flat[at:r.end:r.end], nil
}

// given returns n chunks that the delta itself names.
func (r *deltaReader) given(n uint64) ([]entry.Chunk, error) {
	if n > uint64(len(r.s)/(digest.Size+1)) {
		return nil, errTruncated
	}
	out := r.slab.take(int(n))
	for i := range out {
		if len(r.s) < digest.Size {
			return nil, errTruncated
		}
		copy(out[i].ID[:], r.s)
		r.s = r.s[digest.Size:]
		size, err := r.uint(MaxChunk)
		if err != nil {
			return nil, err
		}
		out[i].Size = uint32(size)
	}
	return out, nil
}

func (r *deltaReader) uint(most uint64) (uint64, error) {
	v, n := uvarint(r.s)
	if n <= 0 {
		return 0, errTruncated
	}
	if v > most {
		return 0, fmt.Errorf("%d is too large", v)
	}
	r.s = r.s[n:]
	return v, nil
}
