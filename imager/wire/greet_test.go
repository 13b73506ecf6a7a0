package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"ingot/internal/digest"
)

// hello is what an ingot of version v says first.
func hello(t *testing.T, v string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := New(strings.NewReader(""), &b).Greet(v); !errors.Is(err, io.EOF) {
		t.Fatalf("Greet of nobody = %v", err)
	}
	return b.Bytes()
}

func TestGreetSkipsWhatShellsPrint(t *testing.T) {
	good := string(hello(t, "1"))
	for name, tc := range map[string]struct{ said, want string }{
		"nothing":              {good, ""},
		"a greeting":           {"Welcome!\n" + good, ""},
		"half a start before":  {"\x00ingo" + good, ""},
		"not an agent":         {"bash: no such file\n", "no such file"},
		"escape sequences":     {"\x1b]0;pwned\x07", `\x1b]0;pwned\a`},
		"noise without end":    {strings.Repeat("y\n", 1<<20), "65536 bytes of something else"},
		"nothing at all":       {"", "EOF"},
		"cut short":            {good[:len(good)-3], "cut short"},
		"another version":      {string(hello(t, "2")), "ingot 2"},
		"a version of escapes": {string(hello(t, "\x1b[2J")), "ingot \ufffd[2J"},
	} {
		t.Run(name, func(t *testing.T) {
			err := New(strings.NewReader(tc.said), io.Discard).Greet("1")
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("Greet = %v", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("Greet = %v, want %q", err, tc.want)
			}
		})
	}
}

// A frame of a few kilobytes must not become a gigabyte.
func TestChunksOfABombAreRefused(t *testing.T) {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	bomb := enc.EncodeAll(make([]byte, 512<<20), nil)
	if len(bomb) > MaxFrame {
		t.Fatalf("BUG: the bomb has %d bytes", len(bomb))
	}
	c := New(strings.NewReader(""), io.Discard)
	err = c.Chunks(Frame{KindChunks, bomb}, func(digest.ID, []byte) error { return nil })
	if !errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		t.Errorf("Chunks = %v, want %v", err, zstd.ErrDecoderSizeExceeded)
	}
}

// endless repeats one full frame of chunk IDs.
type endless struct{ frame, rest []byte }

func (e *endless) Read(p []byte) (int, error) {
	if len(e.rest) == 0 {
		e.rest = e.frame
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}

func TestListOfIDsHasAnEnd(t *testing.T) {
	frame := make([]byte, 5+idsPerFrame*digest.Size)
	frame[0] = byte(KindWant)
	binary.BigEndian.PutUint32(frame[1:], idsPerFrame*digest.Size)
	c := New(&endless{frame: frame}, io.Discard)
	f, err := c.Next(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.IDs(f); err == nil || !strings.Contains(err.Error(), "over") {
		t.Errorf("IDs = %v", err)
	}
}

func TestErrorsOfThePeerCannotMoveTheCursor(t *testing.T) {
	a, b := pair(t)
	go a.Send(KindError, Error{Kind: "failed", Text: "all good\x1b[2A\rreally", Hint: "run\x07 this"})
	_, err := b.Next(nil)
	var e *Error
	if !errors.As(err, &e) || strings.ContainsAny(e.Text+e.Hint, "\x1b\r\x07") || !strings.Contains(e.Text, "all good") {
		t.Errorf("Next = %q", err)
	}
}

func TestSilentPeerIsGivenUp(t *testing.T) {
	for _, waits := range []string{"read", "write"} {
		t.Run(waits, func(t *testing.T) {
			x, y := net.Pipe() // holds nothing: a write waits for its reader
			t.Cleanup(func() { x.Close(); y.Close() })
			c := New(x, x)
			c.KeepAlive(t.Context(), time.Hour, 200*time.Millisecond, func() { x.Close() })
			start := time.Now()
			var err error
			if waits == "read" {
				_, err = c.Next(nil)
			} else {
				err = c.SendRaw(KindEnd, nil)
			}
			if took := time.Since(start); err == nil || took < 150*time.Millisecond || took > 5*time.Second {
				t.Errorf("%v after %s", err, took)
			}
		})
	}
}

func TestLivingPeerIsWaitedFor(t *testing.T) {
	a, b := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	given := make(chan bool, 2)
	a.KeepAlive(ctx, 20*time.Millisecond, time.Hour, func() {})
	b.KeepAlive(ctx, 20*time.Millisecond, 300*time.Millisecond, func() { given <- true })
	time.AfterFunc(900*time.Millisecond, func() { a.SendRaw(KindEnd, nil) }) // long work, then the answer
	if f, err := b.Next(nil); err != nil || f.Kind != KindEnd {
		t.Errorf("Next = %q, %v", byte(f.Kind), err)
	}
	if len(given) > 0 {
		t.Error("a peer that sends pings was given up")
	}
}
