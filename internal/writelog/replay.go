package writelog

import (
	"fmt"
	"io"
)

// Puncher is a disk that can make a range read as zeros without their being written.
type Puncher interface {
	Punch(off, n int64) error
}

// most is how much is copied at once, in bytes.
const most = 1 << 20

// Replay does one entry to a disk of size bytes. A discard makes zeros of what
// was there, as a sparse image does; a disk that is no Puncher gets them
// written. What a log does behind the end of the disk is an error, and not done.
func (l *Log) Replay(disk io.WriterAt, size int64, e Entry) error {
	if e.Length == 0 {
		return nil
	}
	if e.Off < 0 || e.Length < 0 || e.Off > size-e.Length {
		return fmt.Errorf("entry %d of the log: %d bytes at %d of a disk of %d: %w", e.Index, e.Length, e.Off, size, ErrFormat)
	}
	if err := l.replay(disk, e); err != nil {
		return fmt.Errorf("replay entry %d of the log: %w", e.Index, err)
	}
	return nil
}

func (l *Log) replay(disk io.WriterAt, e Entry) error {
	to := &placed{disk, e.Off}
	if e.Flags&Discard == 0 {
		_, err := io.CopyBuffer(to, struct{ io.Reader }{io.NewSectionReader(l.r, e.data, e.Length)}, make([]byte, min(most, e.Length)))
		return err
	}
	if p, ok := disk.(Puncher); ok {
		return p.Punch(e.Off, e.Length)
	}
	zeros := make([]byte, min(most, e.Length))
	for left := e.Length; left > 0; left -= int64(len(zeros)) {
		zeros = zeros[:min(left, int64(len(zeros)))]
		if _, err := to.Write(zeros); err != nil {
			return err
		}
	}
	return nil
}

// placed writes one after the other from an offset on.
type placed struct {
	w   io.WriterAt
	off int64
}

func (p *placed) Write(b []byte) (int, error) {
	n, err := p.w.WriteAt(b, p.off)
	p.off += int64(n)
	return n, err
}
