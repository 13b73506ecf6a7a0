// Package writelog reads a log of the writes to a disk, as QEMU's blklogwrites driver and Linux's
// dm-log-writes keep it, and replays it up to any of them: what a power cut leaves.
//
// Sources: Documentation/admin-guide/device-mapper/log-writes.rst and drivers/md/dm-log-writes.c of
// Linux, block/blklogwrites.c of QEMU. All numbers are little-endian. Sector 0 of the log is the super
// block: magic, version, number of entries (8 bytes each), sector size (4 bytes). From sector 1 on each
// entry has a sector of its own: first sector on the disk, number of sectors, flags, length of a mark's
// text (8 bytes each), and the text of a mark. What was written follows, whole sectors. A discard has
// none. QEMU logs a request when it is complete, so all writes before a flush are those that the flush
// promised, and some that it had not yet.
package writelog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
)

// ErrFormat says that a log is not what the format allows: damaged, cut off, or no log at all.
var ErrFormat = errors.New("not a log of writes")

// Flags say what an entry is. None: a write.
type Flags uint64

// The flags.
const (
	Flush    Flags = 1 << iota // what was complete before is on the disk
	FUA                        // the write itself is, when it is complete
	Discard                    // nobody wants what was there
	Mark                       // a text that somebody put into the log (dm-log-writes only)
	Metadata                   // of a file system's own
	known    = Flush | FUA | Discard | Mark | Metadata
)

const (
	magic     = 0x6a736677736872
	version   = 1
	superSize = 28 // bytes
	headSize  = 32 // bytes

	// MinSector and MaxSector bound the sector size in bytes; QEMU takes less than 16 MiB.
	MinSector = 512
	MaxSector = 8 << 20
)

// Log is a log of writes. It is safe for concurrent use when its reader is.
type Log struct {
	Entries    int64 // as its super block says, which is written at each flush
	SectorSize int64 // bytes

	r    io.ReaderAt
	size int64
}

// Entry is one request to the disk. It is a value: Part makes a smaller one of it.
type Entry struct {
	Index       int64 // place in the log, from 0
	Flags       Flags
	Off, Length int64  // on the disk, in bytes; Length is 0 for a flush alone
	Text        string // of a mark

	data int64 // where in the log what was written is, in bytes
}

// Open reads the super block of a log that has size bytes.
func Open(r io.ReaderAt, size int64) (*Log, error) {
	var b [superSize]byte
	if size < MinSector {
		return nil, fmt.Errorf("open a log of %d bytes: too short: %w", size, ErrFormat)
	}
	if _, err := r.ReadAt(b[:], 0); err != nil {
		return nil, fmt.Errorf("read the super block: %w", err)
	}
	le := binary.LittleEndian
	if m, v := le.Uint64(b[0:]), le.Uint64(b[8:]); m != magic || v != version {
		return nil, fmt.Errorf("magic %#x, version %d: %w", m, v, ErrFormat)
	}
	entries, sector := le.Uint64(b[16:]), int64(le.Uint32(b[24:]))
	if sector < MinSector || sector > MaxSector || sector&(sector-1) != 0 {
		return nil, fmt.Errorf("sectors of %d bytes: %w", sector, ErrFormat)
	}
	if entries > uint64(size/sector) {
		return nil, fmt.Errorf("%d entries in %d bytes: %w", entries, size, ErrFormat)
	}
	return &Log{Entries: int64(entries), SectorSize: sector, r: r, size: size}, nil
}

// All goes through the entries in the order of the log. An error is the last
// that it yields.
func (l *Log) All() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		pos := l.SectorSize
		for i := range l.Entries {
			e, next, err := l.entry(i, pos)
			if err != nil {
				yield(Entry{}, fmt.Errorf("entry %d of the log: %w", i, err))
				return
			}
			if !yield(e, nil) {
				return
			}
			pos = next
		}
	}
}

// entry reads the entry at pos and says where the next one is.
func (l *Log) entry(i, pos int64) (e Entry, next int64, err error) {
	if pos > l.size-headSize {
		return e, 0, fmt.Errorf("is behind the end: %w", ErrFormat)
	}
	var b [headSize]byte
	if _, err := l.r.ReadAt(b[:], pos); err != nil {
		return e, 0, err
	}
	le := binary.LittleEndian
	first, count, flags, text := le.Uint64(b[0:]), le.Uint64(b[8:]), Flags(le.Uint64(b[16:])), le.Uint64(b[24:])
	most := uint64(math.MaxInt64 / l.SectorSize)
	switch {
	case flags&^known != 0:
		return e, 0, fmt.Errorf("flags %#x: %w", flags, ErrFormat)
	case first > most || count > most-first:
		return e, 0, fmt.Errorf("%d sectors at %d: %w", count, first, ErrFormat)
	case text > uint64(l.SectorSize-headSize) || text > 0 && flags&Mark == 0:
		return e, 0, fmt.Errorf("a text of %d bytes: %w", text, ErrFormat)
	}
	e = Entry{Index: i, Flags: flags, Off: int64(first) * l.SectorSize, Length: int64(count) * l.SectorSize, data: pos + l.SectorSize}
	if text > 0 {
		t := make([]byte, text)
		if _, err := l.r.ReadAt(t, pos+headSize); err != nil {
			return e, 0, err
		}
		e.Text = string(t)
	}
	if flags&Discard != 0 {
		return e, e.data, nil
	}
	if e.Length > 0 && (e.data > l.size || e.Length > l.size-e.data) {
		return e, 0, fmt.Errorf("what was written is cut off: %w", ErrFormat)
	}
	return e, e.data + e.Length, nil
}

// Part returns what of the entry concerns n bytes of the disk from off on: of
// a write that the power cut, or that one partition sees. Length is 0 when
// there is none.
func (e Entry) Part(off, n int64) Entry {
	from, to := max(e.Off, off), min(e.Off+e.Length, off+n)
	e.data += from - e.Off
	e.Off, e.Length = from, max(0, to-from)
	return e
}
