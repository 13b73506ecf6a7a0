package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

// said is what a controller or an agent sends, as bytes.
func said(f *testing.F, say func(c *Conn) error) []byte {
	f.Helper()
	var buf bytes.Buffer
	if err := say(New(strings.NewReader(""), &buf)); err != nil || buf.Len() == 0 {
		f.Fatalf("a seed of %d bytes: %v", buf.Len(), err)
	}
	return buf.Bytes()
}

// Whatever the peer sends: no panic, no chunk that was not checked, no more
// memory than what was sent allows.
func FuzzFromPeer(f *testing.F) {
	chunk := []byte("a chunk")
	id := digest.Of(chunk)
	f.Add(byte(0), said(f, func(c *Conn) error { return c.SendBlob(bytes.Repeat([]byte("blob"), 1000)) }))
	f.Add(byte(1), said(f, func(c *Conn) error { return c.SendIDs(KindHave, []digest.ID{id, {1}}) }))
	f.Add(byte(2), said(f, func(c *Conn) error {
		s := c.Stream()
		return errors.Join(s.Add(id, chunk), s.End())
	}))
	f.Add(byte(2), said(f, func(c *Conn) error {
		return c.Stream().Splice(rawFrame(Packed(nil, []entry.Chunk{{ID: id, Size: uint32(len(chunk))}}), chunk))
	}))
	f.Add(byte(3), said(f, func(c *Conn) error {
		b := c.NewBatch()
		return errors.Join(b.Add(id, chunk), b.Flush())
	}))
	f.Add(byte(4), said(f, func(c *Conn) error {
		return errors.Join(c.Send(KindProgress, Progress{Task: "scan"}), c.Send(KindError, Error{Kind: "busy", Text: "x\x1b[2J"}))
	}))
	f.Add(byte(5), said(f, func(c *Conn) error { return c.SendPlan(Plan{}) }))
	f.Fuzz(func(t *testing.T, what byte, in []byte) {
		c := New(bytes.NewReader(in), io.Discard)
		checked := func(id digest.ID, data []byte) error {
			if digest.Of(data) != id {
				t.Fatal("a chunk was handed out that is not its digest's")
			}
			return nil
		}
		switch what % 6 {
		case 0:
			if b, err := c.RecvBlob(nil); err == nil && len(b) > MaxBlob {
				t.Fatalf("a blob of %d bytes", len(b))
			}
		case 1:
			if fr, err := c.Next(nil); err == nil {
				_, _ = c.IDsUpTo(fr, 1000)
			}
		case 2:
			for range 100 {
				id, data, err := c.stream().next()
				if err != nil {
					break
				}
				_ = checked(id, data)
			}
		case 3:
			for range 100 {
				fr, err := c.Next(nil)
				if err != nil {
					break
				}
				_ = c.Chunks(fr, checked)
			}
		case 4:
			var e *Error
			if _, err := c.Next(func(Progress) {}); errors.As(err, &e) && strings.ContainsRune(e.Text, '\x1b') {
				t.Fatal("an escape sequence reaches the terminal")
			}
		case 5:
			if fr, err := c.Next(nil); err == nil {
				_, _ = c.PlanAfter(fr, nil)
			}
		}
	})
}
