package rollback

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

// pieceSize is the chunk size of files that no manifest describes: what the
// node changed or added itself.
const pieceSize = 1 << 20

// contentKey names the content of a file: two entries with one key hold the
// same bytes and holes. (Different keys may: chunk boundaries are in it.)
func contentKey(e *entry.Entry) digest.ID {
	h := sha256.New()
	var b [12]byte
	put := func(v int64) {
		binary.LittleEndian.PutUint64(b[:8], uint64(v))
		h.Write(b[:8])
	}
	put(e.Size)
	put(int64(len(e.Holes)))
	for _, x := range e.Holes {
		put(x.Off)
		put(x.Len)
	}
	for _, c := range e.Chunks {
		put(int64(c.Size))
		h.Write(c.ID[:])
	}
	return digest.ID(h.Sum(nil))
}

// pieces cuts [off,off+n) of an entry's data stream, which is its content
// without the holes, into ranges of the file.
func pieces(data []entry.Extent, off, n int64) []entry.Extent {
	var out []entry.Extent
	for _, d := range data {
		if n == 0 {
			break
		}
		if off >= d.Len {
			off -= d.Len
			continue
		}
		take := min(n, d.Len-off)
		out = append(out, entry.Extent{Off: d.Off + off, Len: take})
		off, n = 0, n-take
	}
	return out
}

// readPieces fills buf from the ranges of f.
func readPieces(f io.ReaderAt, ranges []entry.Extent, buf []byte) error {
	for _, r := range ranges {
		if _, err := io.ReadFull(io.NewSectionReader(f, r.Off, r.Len), buf[:r.Len]); err != nil {
			return err
		}
		buf = buf[r.Len:]
	}
	return nil
}

// readBuf is a buffer that serves one read after another, for one goroutine.
type readBuf struct{ b []byte }

// of returns n bytes, good until the next call.
func (s *readBuf) of(n int64) []byte {
	if int64(cap(s.b)) < n {
		s.b = make([]byte, max(n, 256<<10))
	}
	return s.b[:n]
}

// holds reports whether f has exactly the bytes of e, whose chunk boundaries
// decide where hashes begin. Allocation does not count, only what is read.
func holds(f *os.File, size int64, e *entry.Entry, buf *readBuf) (bool, error) {
	if size != e.Size {
		return false, nil
	}
	for _, h := range e.Holes {
		if zero, err := zeros(f, h); !zero || err != nil {
			return false, err
		}
	}
	data, off := e.Data(), int64(0)
	for _, c := range e.Chunks {
		n := int64(c.Size)
		b := buf.of(n)
		if err := readPieces(f, pieces(data, off, n), b); err != nil {
			return false, shortIsFalse(err)
		}
		if digest.Of(b) != c.ID {
			return false, nil
		}
		off += n
	}
	return true, nil
}

// cutShort reports whether an error is that of a file that became shorter while
// it was read.
func cutShort(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// shortIsFalse: a file that became shorter while it was read just differs.
func shortIsFalse(err error) error {
	if cutShort(err) {
		return nil
	}
	return err
}

// zeros reports whether a range of f reads as zeros.
func zeros(f *os.File, x entry.Extent) (bool, error) {
	next, err := unix.Seek(int(f.Fd()), x.Off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) || err == nil && next >= x.Off+x.Len {
		return true, nil
	}
	buf := make([]byte, min(x.Len, 256<<10))
	for off, end := x.Off, x.Off+x.Len; off < end; off += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), end-off)]
		if _, err := f.ReadAt(b, off); err != nil {
			return false, shortIsFalse(err)
		}
		for _, c := range b {
			if c != 0 {
				return false, nil
			}
		}
	}
	return true, nil
}

// describe reads f's content into e: holes, and chunks of fixed size.
func describe(f *os.File, size int64, e *entry.Entry, buf *readBuf) error {
	holes, err := entry.HolesOf(f, size)
	if err != nil {
		return err
	}
	e.Size, e.Holes, e.Chunks = size, holes, nil
	data := e.Data()
	total := int64(0)
	for _, d := range data {
		total += d.Len
	}
	for off := int64(0); off < total; off += pieceSize {
		b := buf.of(min(total-off, pieceSize))
		if err := readPieces(f, pieces(data, off, int64(len(b))), b); err != nil {
			return fmt.Errorf("read %q: %w", f.Name(), err)
		}
		e.Chunks = append(e.Chunks, entry.Chunk{ID: digest.Of(b), Size: uint32(len(b))})
	}
	return nil
}
