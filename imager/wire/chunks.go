package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"ingot/internal/digest"
)

// batch is how many bytes of chunks are gathered into one frame: enough for
// zstd to find what repeats, little enough for a bounded memory.
const batch = 1 << 20

// maxBatch bounds what one frame of chunks may become when decompressed: a
// batch, and the chunk that filled it, with room for larger chunks to come.
const maxBatch = 16 << 20

// maxIDs bounds a list of chunk IDs (256 MiB of them, some half a terabyte of content).
const maxIDs = 8 << 20

// Batch gathers chunks and sends them compressed. It is safe for concurrent use.
type Batch struct {
	c   *Conn
	mu  sync.Mutex
	buf []byte
}

// NewBatch returns an empty batch that is sent over c.
func (c *Conn) NewBatch() *Batch { return &Batch{c: c} }

// Add queues one chunk; data is copied.
func (b *Batch) Add(id digest.ID, data []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf = append(b.buf, id[:]...)
	b.buf = binary.BigEndian.AppendUint32(b.buf, uint32(len(data)))
	b.buf = append(b.buf, data...)
	if len(b.buf) < batch {
		return nil
	}
	return b.flush()
}

// Flush sends what is queued.
func (b *Batch) Flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.flush()
}

func (b *Batch) flush() error {
	if len(b.buf) == 0 {
		return nil
	}
	z := b.c.enc.EncodeAll(b.buf, nil)
	b.buf = b.buf[:0]
	return b.c.SendRaw(KindChunks, z)
}

// Chunks decodes a KindChunks frame and calls fn for each chunk, whose bytes
// have been checked against its ID and are valid only during the call.
func (c *Conn) Chunks(f Frame, fn func(id digest.ID, data []byte) error) error {
	raw, err := c.dec.DecodeAll(f.Payload, nil)
	if err != nil {
		return fmt.Errorf("receive chunks: %w", err)
	}
	for len(raw) > 0 {
		if len(raw) < digest.Size+4 {
			return errors.New("receive chunks: cut short")
		}
		var id digest.ID
		copy(id[:], raw)
		n := binary.BigEndian.Uint32(raw[digest.Size:])
		raw = raw[digest.Size+4:]
		if uint64(n) > uint64(len(raw)) {
			return errors.New("receive chunks: cut short")
		}
		if got := digest.Of(raw[:n]); got != id {
			return fmt.Errorf("receive chunk %s: its content is %s", id.Short(), got.Short())
		}
		if err := fn(id, raw[:n]); err != nil {
			return err
		}
		raw = raw[n:]
	}
	return nil
}

// idsPerFrame bounds a list of chunk IDs in one frame.
const idsPerFrame = MaxFrame / digest.Size / 2

// SendIDs sends a list of chunk IDs as frames of kind k; the last of them is
// not full, so an empty list is one empty frame.
func (c *Conn) SendIDs(k Kind, ids []digest.ID) error {
	for {
		n := min(len(ids), idsPerFrame)
		p := make([]byte, 0, n*digest.Size)
		for _, id := range ids[:n] {
			p = append(p, id[:]...)
		}
		if err := c.SendRaw(k, p); err != nil {
			return err
		}
		if ids = ids[n:]; n < idsPerFrame {
			return nil
		}
	}
}

// IDs returns the list that begins with frame f, reading on as needed.
func (c *Conn) IDs(f Frame) ([]digest.ID, error) { return c.IDsUpTo(f, maxIDs) }

// IDsUpTo is IDs where no more than most make sense; more are an error.
func (c *Conn) IDsUpTo(f Frame, most int) ([]digest.ID, error) {
	var ids []digest.ID
	for {
		if len(f.Payload)%digest.Size != 0 {
			return nil, fmt.Errorf("receive chunk IDs: %d bytes are not whole IDs", len(f.Payload))
		}
		if len(ids)+len(f.Payload)/digest.Size > most {
			return nil, fmt.Errorf("receive chunk IDs: over %d", most)
		}
		ids = slices.Grow(ids, len(f.Payload)/digest.Size)
		for p := f.Payload; len(p) > 0; p = p[digest.Size:] {
			ids = append(ids, digest.ID(p[:digest.Size]))
		}
		if len(f.Payload) < idsPerFrame*digest.Size {
			return ids, nil
		}
		k := f.Kind
		var err error
		if f, err = c.Next(nil); err != nil {
			return nil, err
		}
		if err := f.is(k); err != nil {
			return nil, err
		}
	}
}

// counter counts the bytes written to it.
type counter struct{ v atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) { c.v.Add(int64(len(p))); return len(p), nil }
func (c *counter) n() int64                    { return c.v.Load() }
