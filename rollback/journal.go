package rollback

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

// The journal is a magic line and records. A record is a 12-byte head (length
// of the payload, CRC-32C of the payload, CRC-32C of these eight bytes, all
// little-endian) and the payload, whose first byte is its kind. The head record
// and all steps are durable under the journal's final name before the first
// step is carried out; the commit record is appended after the last. So only
// the commit record can be torn, and a torn one is as good as none.
//
// Version 2 is that of switches on more than one file system: its head names
// these, and its steps and undo files say which one they are on. What needs
// none of this is written as version 1.
const (
	journalMagic  = "ingot journal 1\n"
	journalMagic2 = "ingot journal 2\n"
)

const (
	recHead   = 1
	recStep   = 2
	recReady  = 3
	recCommit = 4

	headSize = 12
)

// journal is a switch on paper.
type journal struct {
	from, to int      // generations
	stage    string   // its id
	volumes  []Volume // besides that of the top, which is number 0
	used     []undoFile
	steps    []jstep

	ready     bool // all steps are there
	committed bool // the new generation is what counts
}

// jstep is one step with the identity of both sides. A Meta or Times step
// has one inode, a Delete no new side, an Add no old one.
type jstep struct {
	kind     Kind
	slot     int
	vol      int // the volume of path and slot
	path     string
	old, new side
}

// side is what one side of a step is.
type side struct {
	ino uint64 // 0: there is none
	key digest.ID
	entry.Entry
}

func (j *journal) encode() []byte {
	b := []byte(journalMagic)
	if j.spans() {
		b = []byte(journalMagic2)
	}
	b = appendRecord(b, j.encodeHead())
	for i := range j.steps {
		b = appendRecord(b, j.steps[i].encode(j.spans()))
	}
	if j.ready {
		w := &writer{b: []byte{recReady}}
		w.uint(uint64(len(j.steps)))
		b = appendRecord(b, w.b)
	}
	if j.committed {
		b = append(b, commitRecord()...)
	}
	return b
}

// spans reports whether the switch is on more than the file system of the top.
func (j *journal) spans() bool { return len(j.volumes) > 0 }

func (j *journal) encodeHead() []byte {
	w := &writer{b: []byte{recHead}}
	w.uint(uint64(j.from))
	w.uint(uint64(j.to))
	w.text(j.stage)
	if j.spans() {
		w.uint(uint64(len(j.volumes)))
		for _, v := range j.volumes {
			w.volume(&v)
		}
	}
	w.uint(uint64(len(j.used)))
	for _, u := range j.used {
		w.uint(uint64(u.gen))
		w.uint(uint64(u.slot))
		if j.spans() {
			w.uint(uint64(u.vol))
		}
	}
	return w.b
}

func commitRecord() []byte { return appendRecord(nil, []byte{recCommit}) }

func appendRecord(b, payload []byte) []byte {
	var h [headSize]byte
	binary.LittleEndian.PutUint32(h[0:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(h[4:], crc32.Checksum(payload, castagnoli()))
	binary.LittleEndian.PutUint32(h[8:], crc32.Checksum(h[:8], castagnoli()))
	return append(append(b, h[:]...), payload...)
}

func (s *jstep) encode(spans bool) []byte {
	w := &writer{b: []byte{recStep}}
	w.uint(uint64(s.kind))
	w.uint(uint64(s.slot))
	if spans {
		w.uint(uint64(s.vol))
	}
	w.text(s.path)
	for _, x := range []*side{&s.old, &s.new} {
		w.uint(x.ino)
		if x.ino != 0 {
			w.id(x.key)
			w.meta(&x.Entry)
		}
	}
	return w.b
}

// decodeJournal reads a journal. A torn tail is ignored; anything else that
// is not as it was written is an error.
func decodeJournal(b []byte) (*journal, error) {
	var steps []jstep
	j, err := readJournal(b, func(_ *journal, s *jstep) {
		if steps == nil {
			steps = make([]jstep, 0, len(b)/256) // else they would be copied again and again
		}
		steps = append(steps, *s)
	})
	if err != nil {
		return nil, err
	}
	j.steps = steps
	return j, nil
}

// readJournal is decodeJournal that gives the steps, one after another, instead
// of keeping them.
func readJournal(b []byte, step func(*journal, *jstep)) (*journal, error) {
	b, ok := bytes.CutPrefix(b, []byte(journalMagic))
	spans := false
	if !ok {
		b, spans = bytes.CutPrefix(b, []byte(journalMagic2))
	}
	if !ok && !spans {
		return nil, fmt.Errorf("journal: not a journal of these versions: %w", ErrCorrupt)
	}
	j, seen := &journal{}, 0
	for len(b) > 0 {
		payload, more, err := nextRecord(b)
		if err != nil {
			return nil, fmt.Errorf("journal: record %d: %w", seen, err)
		}
		if payload == nil {
			break
		}
		if err := j.take(payload, seen, spans, step); err != nil {
			return nil, fmt.Errorf("journal: record %d: %w", seen, err)
		}
		b = more
		seen++
	}
	if seen == 0 {
		return nil, fmt.Errorf("journal: has no head: %w", ErrCorrupt)
	}
	return j, nil
}

// nextRecord returns the payload of the first record, nil when it is torn:
// not whole, with nothing whole behind it.
func nextRecord(b []byte) (payload, rest []byte, err error) {
	payload, rest, ok := wholeRecord(b)
	if ok {
		return payload, rest, nil
	}
	for i := 1; i+headSize <= len(b); i++ {
		if _, _, ok := wholeRecord(b[i:]); ok {
			return nil, nil, fmt.Errorf("damaged, with whole records behind it: %w", ErrCorrupt)
		}
	}
	return nil, nil, nil
}

func wholeRecord(b []byte) (payload, rest []byte, ok bool) {
	if len(b) < headSize || binary.LittleEndian.Uint32(b[8:]) != crc32.Checksum(b[:8], castagnoli()) {
		return nil, nil, false
	}
	n := uint64(binary.LittleEndian.Uint32(b))
	if n == 0 || n > uint64(len(b)-headSize) {
		return nil, nil, false
	}
	payload, rest = b[headSize:headSize+n], b[headSize+n:]
	return payload, rest, binary.LittleEndian.Uint32(b[4:]) == crc32.Checksum(payload, castagnoli())
}

// take adds one record, which must be the kind that may come now.
func (j *journal) take(payload []byte, seen int, spans bool, step func(*journal, *jstep)) error {
	r := &reader{b: payload[1:]}
	kind := payload[0]
	switch {
	case kind == recHead && seen == 0:
		j.takeHead(r, spans)
	case kind == recStep && seen > 0 && !j.ready:
		s := j.takeStep(r)
		if !r.bad {
			step(j, &s)
		}
	case kind == recReady && seen > 0 && !j.ready:
		if r.uint() != uint64(seen-1) { // after the head, steps only
			r.fail()
		}
		j.ready = true
	case kind == recCommit && j.ready && !j.committed:
		j.committed = true
	default:
		return fmt.Errorf("kind %d out of place: %w", kind, ErrCorrupt)
	}
	if r.bad || len(r.b) > 0 {
		return fmt.Errorf("kind %d malformed: %w", kind, ErrCorrupt)
	}
	return nil
}

func (j *journal) takeHead(r *reader, spans bool) {
	j.from, j.to = r.num(), r.num()
	j.stage = r.text()
	if strings.ContainsAny(j.stage, "/\x00") || j.stage == "" || j.stage == "." || j.stage == ".." {
		r.fail()
	}
	if spans {
		j.takeVolumes(r)
	}
	for n := r.uint(); n > 0 && !r.bad; n-- {
		u := undoFile{gen: r.num(), slot: r.num()}
		if spans {
			u.vol = j.number(r)
		}
		j.used = append(j.used, u)
	}
}

// takeVolumes reads the volumes: at least one, in tree order, each known by its identity.
func (j *journal) takeVolumes(r *reader) {
	n, last := r.uint(), "."
	if n == 0 {
		r.fail()
	}
	for ; n > 0 && !r.bad; n-- {
		v := r.volume()
		if at := string(v.At); v.ID == "" || !cleanPath(at) || !entry.Before(last, at) {
			r.fail()
		}
		j.volumes, last = append(j.volumes, v), string(v.At)
	}
}

// number reads the number of one of the volumes.
func (j *journal) number(r *reader) int {
	v := r.num()
	if v > len(j.volumes) {
		r.fail()
		return 0
	}
	return v
}

// num reads a number that fits everywhere.
func (r *reader) num() int {
	v := r.uint()
	if v > 1<<31-1 {
		r.fail()
		return 0
	}
	return int(v)
}

func (j *journal) takeStep(r *reader) (s jstep) {
	kind := r.uint()
	if kind < uint64(Delete) || kind > uint64(Times) {
		r.fail()
	}
	s.kind, s.slot = Kind(kind), r.num()
	if j.spans() {
		s.vol = j.number(r)
	}
	s.path = r.text()
	if !cleanPath(s.path) || s.vol != numberOf(j.volumes, s.path) {
		r.fail()
	}
	for _, x := range []*side{&s.old, &s.new} {
		if x.ino = r.uint(); x.ino != 0 {
			x.key = r.id()
			x.Entry = r.meta()
		}
	}
	return s
}

// cleanPath refuses paths that no scan produces.
func cleanPath(p string) bool {
	if p == "." {
		return true
	}
	for c := range strings.SplitSeq(p, "/") {
		if c == "" || c == "." || c == ".." || strings.IndexByte(c, 0) >= 0 {
			return false
		}
	}
	return true
}
