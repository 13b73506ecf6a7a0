package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// maxWindow is what the sender of a blob or of a stream of chunks may make the
// receiver hold of what came before, in bytes.
const maxWindow = 8 << 20

// SendBlob sends b compressed.
func (c *Conn) SendBlob(b []byte) error {
	if len(b) > MaxBlob {
		return fmt.Errorf("send blob: %d bytes, the limit is %d", len(b), MaxBlob)
	}
	z := c.enc.EncodeAll(b, nil)
	for {
		n := min(len(z), BlobPart)
		if err := c.SendRaw(KindBlob, z[:n]); err != nil {
			return err
		}
		if z = z[n:]; n < BlobPart {
			return nil
		}
	}
}

// RecvBlob receives what SendBlob sent.
func (c *Conn) RecvBlob(progress func(Progress)) ([]byte, error) {
	f, err := c.Next(progress)
	if err != nil {
		return nil, err
	}
	return c.blob(f, MaxBlob, progress)
}

// blob decompresses as the frames arrive: memory grows with what has been
// sent, whatever is announced.
func (c *Conn) blob(first Frame, most int, progress func(Progress)) ([]byte, error) {
	if err := first.is(KindBlob); err != nil {
		return nil, err
	}
	in := &blobFrames{c: c, f: first, progress: progress}
	dec := newDecoder(in, uint64(most), zstd.WithDecoderMaxWindow(maxWindow))
	defer dec.Close()
	var out bytes.Buffer
	var head zstd.Header
	if head.Decode(first.Payload) == nil && head.HasFCS {
		out.Grow(int(min(head.FrameContentSize, uint64(len(first.Payload))*8+512)))
	}
	n, err := io.Copy(&out, io.LimitReader(dec, int64(most)+1))
	switch {
	case in.err != nil:
		return nil, in.err
	case err != nil:
		return nil, fmt.Errorf("receive blob: %w", err)
	case n > int64(most):
		return nil, fmt.Errorf("receive blob: over %d bytes", most)
	case !in.ended():
		return nil, errors.New("receive blob: more than one")
	}
	return out.Bytes(), nil
}

// blobFrames reads the payloads of the frames of one blob.
type blobFrames struct {
	c        *Conn
	f        Frame // the present one
	read     int   // of it
	progress func(Progress)
	err      error // of the connection
}

// ended reports whether the blob has been read to its end.
func (b *blobFrames) ended() bool { return b.read == len(b.f.Payload) && len(b.f.Payload) < BlobPart }

func (b *blobFrames) Read(p []byte) (int, error) {
	for b.read == len(b.f.Payload) {
		if b.ended() {
			return 0, io.EOF
		}
		if b.f, b.err = b.c.Next(b.progress); b.err == nil {
			b.err = b.f.is(KindBlob)
		}
		if b.read = 0; b.err != nil {
			return 0, b.err
		}
	}
	n := copy(p, b.f.Payload[b.read:])
	b.read += n
	return n, nil
}
