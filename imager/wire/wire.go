// Package wire carries framed messages between the controller and the agent of a node over one byte stream.
//
// A frame is one byte of kind, four bytes of big-endian payload length and the
// payload. Control payloads are JSON; chunks are zstd-compressed runs of (32
// bytes of SHA-256, 4 bytes of big-endian length, content): of a capture each
// frame by itself (Batch), of a push one stream across all frames (Stream), where
// a list of several may come before their content (Packed), or a zstd frame
// against what the node has (Alike).
// Blobs (manifests, plans) are zstd-compressed and may span several frames,
// the last of which is shorter than BlobPart.
package wire

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Protocol is the version of what is spoken; both sides must say the same.
const Protocol = 6

// Limits of one frame and of one blob, in bytes. A hostile peer cannot make
// the other side allocate more.
const (
	MaxFrame = 8 << 20
	BlobPart = 4 << 20
	MaxBlob  = 1 << 30
	maxPlan  = 64 << 20 // half a million changes
	maxKept  = 1 << 20
)

// Kind tells what a frame holds.
type Kind byte

// The kinds of frames.
const (
	KindHello    Kind = 'H' // JSON Hello, the first frame in each direction
	KindRequest  Kind = 'R' // JSON, what the controller asks
	KindAnswer   Kind = 'A' // JSON, what the agent answers
	KindError    Kind = 'E' // JSON Error, instead of an answer
	KindProgress Kind = 'P' // JSON Progress, at any time from the agent
	KindBlob     Kind = 'B' // a part of a blob
	KindWant     Kind = 'W' // chunk IDs that the sender asks for
	KindHave     Kind = 'V' // chunk IDs that the sender could send
	KindMissing  Kind = 'M' // answer to KindHave: those that are wanted
	KindChunks   Kind = 'C' // chunks of a capture
	KindStream   Kind = 'S' // a part of the stream of chunks that KindWant asks for
	KindLike     Kind = 'L' // groups of chunk IDs that the sender asks for, and of those that it has
	KindDiff     Kind = 'X' // one group, as a difference; empty: it is to be asked for by KindWant
	KindBase     Kind = 'D' // JSON Base: what the manifest that follows is told against
	KindSwitch   Kind = 'G' // empty; the agent: all is staged, shall it switch? the controller: yes
	KindEnd      Kind = 'Z' // the plan is not to be carried out
	KindNoAgent  Kind = 'U' // instead of a Hello: the agent is to be uploaded; the node's machine (uname -m)
	KindPing     Kind = 'K' // empty, at any time: the sender lives
)

// Hello is the first message of each side.
type Hello struct {
	Protocol int    `json:"protocol"`
	Version  string `json:"version"` // of the program
	Arch     string `json:"arch"`    // that it was built for, as Go calls it
}

// Error is a refusal or a failure of the peer.
type Error struct {
	Kind string `json:"kind"` // busy, conflict, space, corrupt, failed ...
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
	// AsBefore says that the node was told to switch, and runs what it ran before.
	AsBefore bool `json:"as_before,omitempty"`
}

func (e *Error) Error() string { return e.Text }

// Clean is Plan.Clean for an error.
func (e *Error) Clean() { e.Text, e.Hint = Printable(e.Text), Printable(e.Hint) }

// Progress is how far the agent has come with its present task.
type Progress struct {
	Task  string `json:"task"`
	Done  int64  `json:"done"`  // bytes, or entries where the task has no bytes
	Total int64  `json:"total"` // 0: unknown
}

// ErrVersion says that the two sides are of different versions.
var ErrVersion = errors.New("agent and controller speak different versions")

// Conn is one end of the stream. Sends are safe for concurrent use; receives
// belong to one goroutine.
type Conn struct {
	mu  sync.Mutex
	w   *bufio.Writer
	r   *bufio.Reader
	enc *zstd.Encoder
	dec *zstd.Decoder // of chunks of a capture

	streamIn  *streamReader // of the chunks of a push
	streamOut *Stream

	peer             Hello
	sent, received   counter
	reading, writing moment
}

// New returns a Conn that reads r and writes w.
func New(r io.Reader, w io.Writer) *Conn {
	c := &Conn{}
	c.r = bufio.NewReaderSize(io.TeeReader(watchedReader{r, &c.reading}, &c.received), 256<<10)
	c.w = bufio.NewWriterSize(io.MultiWriter(watchedWriter{w, &c.writing}, &c.sent), 256<<10)
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		panic("BUG: zstd options: " + err.Error())
	}
	c.enc, c.dec = enc, newDecoder(nil, maxBatch)
	return c
}

func newDecoder(r io.Reader, most uint64, options ...zstd.DOption) *zstd.Decoder {
	dec, err := zstd.NewReader(r, append(options, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(most))...)
	if err != nil {
		panic("BUG: zstd options: " + err.Error())
	}
	return dec
}

// Sent and Received return the bytes that crossed the stream so far.
func (c *Conn) Sent() int64     { return c.sent.n() }
func (c *Conn) Received() int64 { return c.received.n() }

// Frame is one received frame.
type Frame struct {
	Kind    Kind
	Payload []byte
}

// Send sends v as JSON.
func (c *Conn) Send(k Kind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("send %c: %w", k, err)
	}
	return c.SendRaw(k, b)
}

// SendRaw sends one frame and flushes it.
func (c *Conn) SendRaw(k Kind, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.put(k, payload); err != nil {
		return err
	}
	if err := c.w.Flush(); err != nil {
		return fmt.Errorf("send to the peer: %w", err)
	}
	return nil
}

func (c *Conn) put(k Kind, payload []byte) error {
	if len(payload) > MaxFrame {
		return fmt.Errorf("send %c: %d bytes in one frame, the limit is %d", k, len(payload), MaxFrame)
	}
	var head [5]byte
	head[0] = byte(k)
	binary.BigEndian.PutUint32(head[1:], uint32(len(payload)))
	if _, err := c.w.Write(head[:]); err != nil {
		return fmt.Errorf("send to the peer: %w", err)
	}
	if _, err := c.w.Write(payload); err != nil {
		return fmt.Errorf("send to the peer: %w", err)
	}
	return nil
}

// Recv returns the next frame. io.EOF means that the peer closed between frames.
func (c *Conn) Recv() (Frame, error) {
	var head [5]byte
	if _, err := io.ReadFull(c.r, head[:1]); err != nil {
		if errors.Is(err, io.EOF) {
			return Frame{}, io.EOF
		}
		return Frame{}, fmt.Errorf("receive from the peer: %w", err)
	}
	if _, err := io.ReadFull(c.r, head[1:]); err != nil {
		return Frame{}, fmt.Errorf("receive from the peer: frame cut short: %w", unexpected(err))
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > MaxFrame {
		return Frame{}, fmt.Errorf("receive from the peer: frame %q announces %d bytes, the limit is %d", head[0], n, MaxFrame)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(c.r, p); err != nil {
		return Frame{}, fmt.Errorf("receive from the peer: frame cut short: %w", unexpected(err))
	}
	return Frame{Kind(head[0]), p}, nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Expect receives a frame of kind k into v (nil: not decoded). An Error frame
// is returned as *Error; progress frames are handed to progress, if not nil.
func (c *Conn) Expect(k Kind, v any, progress func(Progress)) error {
	f, err := c.Next(progress)
	if err != nil {
		return err
	}
	if err := f.is(k); err != nil || v == nil {
		return err
	}
	return f.Unmarshal(v)
}

// Next returns the next frame that is neither progress nor an error, which is
// returned as *Error.
func (c *Conn) Next(progress func(Progress)) (Frame, error) {
	for {
		f, err := c.Recv()
		if err != nil {
			return Frame{}, err
		}
		switch f.Kind {
		case KindPing:
		case KindProgress:
			var p Progress
			if err := json.Unmarshal(f.Payload, &p); err != nil {
				return Frame{}, fmt.Errorf("receive progress: %w", err)
			}
			if progress != nil {
				p.Task = Printable(p.Task)
				progress(p)
			}
		case KindError:
			e := &Error{}
			if err := json.Unmarshal(f.Payload, e); err != nil {
				return Frame{}, fmt.Errorf("receive an error: %w", err)
			}
			e.Clean()
			return Frame{}, e
		default:
			return f, nil
		}
	}
}

func (f Frame) is(k Kind) error {
	if f.Kind != k {
		return fmt.Errorf("receive from the peer: got frame %q, want %q", byte(f.Kind), byte(k))
	}
	return nil
}

// Unmarshal decodes the JSON payload of f into v.
func (f Frame) Unmarshal(v any) error {
	if err := json.Unmarshal(f.Payload, v); err != nil {
		return fmt.Errorf("receive %q: %w", byte(f.Kind), err)
	}
	return nil
}
