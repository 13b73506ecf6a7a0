package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// Stream sends the chunks that the peer asked for, compressed as one stream
// over the whole connection, so that what is much like something before costs
// little. It is safe for concurrent use.
type Stream struct {
	mu   sync.Mutex
	w    io.Writer
	jobs int           // how much of one encoder's work is done at once
	enc  *zstd.Encoder // made when it is needed: it takes megabytes
	open bool          // a zstd frame of ours has begun
	head [digest.Size + 4]byte
}

// These stand where the length of a chunk would.
const (
	endOfAnswer = 1<<32 - 1 // no more for this question
	listed      = 1<<32 - 2 // ID and length of several follow, and then what they hold; how many, where the ID would be
)

// MaxListed is how many chunks Packed takes.
const MaxListed = 64 << 10

// Stream returns the stream of chunks of this connection.
func (c *Conn) Stream() *Stream {
	if c.streamOut == nil {
		c.streamOut = &Stream{w: &streamWriter{c: c}, jobs: 2}
	}
	return c.streamOut
}

// streamWindow is what the receiver holds of what came before, in bytes.
const streamWindow = 4 << 20

// streamLevel is the best that keeps up with a gigabit on one core.
const streamLevel = zstd.SpeedBetterCompression

// Add sends one chunk.
func (s *Stream) Add(id digest.ID, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.add(id, uint32(len(data)), data)
}

func (s *Stream) add(id digest.ID, size uint32, data []byte) error {
	if s.enc == nil {
		enc, err := zstd.NewWriter(s.w, zstd.WithEncoderLevel(streamLevel), zstd.WithEncoderConcurrency(s.jobs), zstd.WithWindowSize(streamWindow), zstd.WithEncoderCRC(false))
		if err != nil {
			panic("BUG: zstd options: " + err.Error())
		}
		s.enc = enc
	}
	s.open = true
	copy(s.head[:], id[:])
	binary.BigEndian.PutUint32(s.head[digest.Size:], size)
	if _, err := s.enc.Write(s.head[:]); err != nil {
		return err
	}
	_, err := s.enc.Write(data)
	return err
}

// End says that all is sent that is sent for the peer's last question.
func (s *Stream) End() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.open {
		_, err := s.w.Write(endFrame())
		return err
	}
	if err := s.add(digest.ID{}, endOfAnswer, nil); err != nil {
		return err
	}
	return s.enc.Flush()
}

// endFrame is End where no frame of the stream's own has begun.
func endFrame() []byte {
	return rawFrame(nil, binary.BigEndian.AppendUint32(make([]byte, digest.Size), endOfAnswer))
}

// Packed appends to b what tells of chunks, at most MaxListed. Splice sends it
// and then a zstd frame that holds them one after another, as a store has it.
func Packed(b []byte, chunks []entry.Chunk) []byte {
	list := make([]byte, digest.Size, (digest.Size+4)*(1+len(chunks)))
	binary.BigEndian.PutUint32(list, uint32(len(chunks)))
	list = binary.BigEndian.AppendUint32(list, listed)
	for _, c := range chunks {
		list = append(list, c.ID[:]...)
		list = binary.BigEndian.AppendUint32(list, c.Size)
	}
	return rawFrame(b, list)
}

// rawFrame appends a zstd frame that holds content as it is (RFC 8878, 3.1.1:
// a single segment, its length in four bytes, blocks of the type Raw_Block).
func rawFrame(b, content []byte) []byte {
	const most = 128 << 10 // of a block
	b = append(b, 0x28, 0xb5, 0x2f, 0xfd, 0xa0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(content)))
	for last := uint32(0); last == 0; {
		n := min(len(content), most)
		if n == len(content) {
			last = 1
		}
		head := uint32(n)<<3 | last
		b = append(b, byte(head), byte(head>>8), byte(head>>16))
		b = append(b, content[:n]...)
		content = content[n:]
	}
	return b
}

// Splice sends chunks that were compressed before, as a Segment. A stream may
// be of any number of zstd frames: what was sent before it is of no help to it.
func (s *Stream) Splice(segment []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.closeFrame(); err != nil {
		return err
	}
	_, err := s.w.Write(segment)
	return err
}

// closeFrame ends the stream's own frame, if one has begun.
func (s *Stream) closeFrame() error {
	if !s.open {
		return nil
	}
	s.open = false
	err := s.enc.Close()
	s.enc.Reset(s.w)
	return err
}

// Segment makes a part of a stream that fits into that of any connection: a
// zstd frame of its own. It is used for one after another; Add is safe for
// concurrent use.
type Segment struct {
	s   Stream
	out bytes.Buffer
}

// NewSegment returns an empty segment.
func NewSegment() *Segment {
	g := &Segment{s: Stream{jobs: 1}}
	g.s.w = &g.out
	return g
}

// Into has the present segment, which must be empty, appended to b.
func (g *Segment) Into(b []byte) { g.out = *bytes.NewBuffer(b) }

// Add adds one chunk.
func (g *Segment) Add(id digest.ID, data []byte) error { return g.s.Add(id, data) }

// Take returns what Splice sends, and begins another.
func (g *Segment) Take() ([]byte, error) {
	err := g.s.closeFrame()
	out := g.out.Bytes()
	g.out = bytes.Buffer{}
	return out, err
}

// streamWriter makes frames.
type streamWriter struct{ c *Conn }

func (w *streamWriter) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(len(rest), BlobPart)
		if err := w.c.SendRaw(KindStream, rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(p), nil
}

// streamReader reads what a Stream sends.
type streamReader struct {
	c    *Conn
	dec  *zstd.Decoder
	rest []byte // of the present frame
	err  error  // of the connection
	buf  []byte // of the present chunk
	list []byte // ID and length of those that come next
}

func (c *Conn) stream() *streamReader {
	if c.streamIn == nil {
		c.streamIn = &streamReader{c: c}
		c.streamIn.dec = newDecoder(c.streamIn, 1<<62, zstd.WithDecoderMaxWindow(maxWindow))
	}
	return c.streamIn
}

// Read implements io.Reader for the decoder.
func (r *streamReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		var f Frame
		if f, r.err = r.c.Next(nil); r.err == nil {
			r.err = f.is(KindStream)
		}
		if r.err != nil {
			return 0, r.err
		}
		r.rest = f.Payload
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// next returns the next chunk, checked against its ID and valid until the next
// call; io.EOF where an answer ends.
func (r *streamReader) next() (id digest.ID, data []byte, err error) {
	var head [digest.Size + 4]byte
	if len(r.list) == 0 {
		if err := r.fill(head[:]); err != nil {
			return id, nil, err
		}
		if binary.BigEndian.Uint32(head[digest.Size:]) == listed {
			n := binary.BigEndian.Uint32(head[:])
			if n == 0 || n > MaxListed {
				return id, nil, fmt.Errorf("receive chunks: a list of %d", n)
			}
			r.list = make([]byte, int(n)*len(head))
			if err := r.fill(r.list); err != nil {
				return id, nil, err
			}
		}
	}
	if len(r.list) > 0 {
		r.list = r.list[copy(head[:], r.list):]
	} else if binary.BigEndian.Uint32(head[digest.Size:]) == endOfAnswer {
		return id, nil, io.EOF
	}
	copy(id[:], head[:])
	n := binary.BigEndian.Uint32(head[digest.Size:])
	if n > manifest.MaxChunk {
		return id, nil, fmt.Errorf("receive chunks: one of %d bytes", n)
	}
	if uint32(cap(r.buf)) < n {
		r.buf = make([]byte, n)
	}
	data = r.buf[:n]
	if err := r.fill(data); err != nil {
		return id, nil, err
	}
	if got := digest.Of(data); got != id {
		return id, nil, fmt.Errorf("receive chunk %s: its content is %s", id.Short(), got.Short())
	}
	return id, data, nil
}

func (r *streamReader) fill(p []byte) error {
	_, err := io.ReadFull(r.dec, p)
	switch {
	case err == nil:
		return nil
	case r.err != nil:
		return r.err
	case errors.Is(err, io.EOF): // the peer ended the stream, which has no end
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("receive chunks: %w", err)
}
