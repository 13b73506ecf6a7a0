package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"

	"ingot/internal/digest"
)

// duplex is a connection that holds some bytes, as pipes and sockets do.
func duplex(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	x, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	y, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return x, y
}

func pair(t *testing.T) (a, b *Conn) {
	t.Helper()
	x, y := duplex(t)
	t.Cleanup(func() { x.Close(); y.Close() })
	return New(x, x), New(y, y)
}

func TestGreetRefusesAnotherVersion(t *testing.T) {
	a, b := pair(t)
	errs := make(chan error, 1)
	go func() { errs <- a.Greet("1.0") }()
	if err := b.Greet("2.0"); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "1.0") {
		t.Errorf("Greet = %v, want ErrVersion naming both versions", err)
	}
	if err := <-errs; !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "2.0") {
		t.Errorf("Greet = %v, want ErrVersion naming both versions", err)
	}
}

func TestBlobsOfAllSizesArrive(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, BlobPart - 1, 3 * BlobPart} {
		want := make([]byte, n)
		for i := range want {
			want[i] = byte(r.Uint32()) // incompressible, so that parts are many
		}
		a, b := pair(t)
		errs := make(chan error, 1)
		go func() { errs <- a.SendBlob(want) }()
		got, err := b.RecvBlob(nil)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("blob of %d bytes: got %d, %v", n, len(got), err)
		}
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestPullerGetsWhatItAsksForAndNothingElse(t *testing.T) {
	data := map[digest.ID][]byte{}
	var ids []digest.ID
	for i := range 100 {
		b := bytes.Repeat([]byte{byte(i)}, 1000*i+1)
		data[digest.Of(b)] = b
		ids = append(ids, digest.Of(b))
	}
	serve := func(c *Conn, extra bool, drop int) error {
		f, err := c.Next(nil)
		if err != nil {
			return err
		}
		want, err := c.IDs(f)
		if err != nil {
			return err
		}
		b := c.Stream()
		for _, id := range want[drop:] {
			if err := b.Add(id, data[id]); err != nil {
				return err
			}
		}
		if extra {
			if err := b.Add(digest.Of([]byte("x")), []byte("x")); err != nil {
				return err
			}
		}
		return b.End()
	}
	for _, tc := range []struct {
		name  string
		extra bool
		drop  int
		want  string
	}{{name: "good"}, {name: "unasked", extra: true, want: "unasked"}, {name: "short", drop: 1, want: "unsent"}} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := pair(t)
			go serve(b, tc.extra, tc.drop)
			got := map[digest.ID]bool{}
			err := Puller{a}.Fetch(t.Context(), append(ids, ids[0]), func(id digest.ID, p []byte) error {
				if got[id] || !bytes.Equal(p, data[id]) {
					return fmt.Errorf("chunk %s is wrong or came twice", id.Short())
				}
				got[id] = true
				return nil
			})
			if tc.want == "" {
				if err != nil || len(got) != len(ids) {
					t.Errorf("Fetch: %d chunks, %v", len(got), err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Fetch = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestDamagedChunkIsRefused(t *testing.T) {
	a, b := pair(t)
	good := []byte("content")
	go func() {
		batch := a.NewBatch()
		batch.Add(digest.Of(good), []byte("c0ntent"))
		batch.Flush()
	}()
	f, err := b.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Chunks(f, func(digest.ID, []byte) error { return nil }); err == nil {
		t.Error("a chunk whose content is not its ID was accepted")
	}
}

func TestPusherAndSink(t *testing.T) {
	a, b := pair(t)
	p := NewPusher(a)
	x, y := []byte("have"), []byte("want")
	got := make(chan []byte, 1)
	go func() {
		f, _ := b.Next(nil)
		ids, _ := b.IDs(f)
		b.SendIDs(KindMissing, ids[1:])
		f, _ = b.Next(nil)
		b.Chunks(f, func(_ digest.ID, d []byte) error { got <- bytes.Clone(d); return nil })
	}()
	miss, err := p.Missing(context.Background(), []digest.ID{digest.Of(x), digest.Of(y)})
	if err != nil || len(miss) != 1 || miss[0] != digest.Of(y) {
		t.Fatalf("Missing = %v, %v", miss, err)
	}
	if err := p.Put(t.Context(), digest.Of(y), y); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Close(); n != 4 || err != nil {
		t.Errorf("Close = %d, %v", n, err)
	}
	if d := <-got; !bytes.Equal(d, y) {
		t.Errorf("the sink got %q", d)
	}
}

func FuzzRecv(f *testing.F) {
	var buf bytes.Buffer
	c := New(strings.NewReader(""), &buf)
	if err := errors.Join(c.Greet("x"), nil); err == nil {
		f.Fatal("greeted nobody")
	}
	if err := errors.Join(c.SendBlob([]byte("blob")), c.SendIDs(KindHave, []digest.ID{{1}})); err != nil {
		f.Fatal(err)
	}
	b := c.NewBatch()
	if err := errors.Join(b.Add(digest.Of([]byte("a")), []byte("a")), b.Flush()); err != nil {
		f.Fatal(err)
	}
	if buf.Len() == 0 {
		f.Fatal("BUG: the seed is empty")
	}
	f.Add(buf.Bytes())
	f.Add([]byte("H\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := New(bytes.NewReader(in), io.Discard)
		for range 100 {
			fr, err := c.Recv()
			if err != nil {
				return
			}
			var v any
			_ = fr.Unmarshal(&v)
			_ = c.Chunks(fr, func(id digest.ID, d []byte) error {
				if digest.Of(d) != id {
					t.Fatal("an unverified chunk was handed out")
				}
				return nil
			})
		}
	})
}
