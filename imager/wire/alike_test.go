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

	"github.com/klauspost/compress/zstd"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

func random(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, seed))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func chunk(data []byte) entry.Chunk { return entry.Chunk{ID: digest.Of(data), Size: uint32(len(data))} }

// asked runs FetchAlike against a peer that answers with answer.
func asked(t *testing.T, groups []Alike, answer func(*Conn) error) (got map[digest.ID][]byte, sent int64, err error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	ended := make(chan error, 1)
	peer := New(b, b)
	go func() {
		err := answer(peer)
		b.Close()
		ended <- err
	}()
	got = map[digest.ID][]byte{}
	err = Puller{C: New(a, a)}.FetchAlike(t.Context(), groups, func(id digest.ID, data []byte) error {
		got[id] = bytes.Clone(data)
		return nil
	})
	a.Close()
	if e := <-ended; err == nil && e != nil {
		t.Error(e)
	}
	return got, peer.Sent(), err
}

func serveGroups(read func(Group) (like, wanted []byte, ok bool, err error)) func(*Conn) error {
	return func(c *Conn) error {
		for {
			f, err := c.Next(nil)
			if err != nil {
				if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) {
					return nil
				}
				return err
			}
			groups, err := c.Groups(f)
			if err == nil {
				err = c.SendGroups(groups, func(g Group) ([]byte, error) {
					like, wanted, ok, err := read(g)
					if err != nil || !ok {
						return nil, err
					}
					return Difference(like, wanted)
				})
			}
			if err != nil {
				return err
			}
		}
	}
}

func TestAlike(t *testing.T) {
	store := map[digest.ID][]byte{}
	var groups []Alike
	for i := range 150 { // more than one question
		old := random(uint64(i), 20_000)
		young := append([]byte("something new "), old...)
		k, l := chunk(young), chunk(old)
		store[k.ID], store[l.ID] = young, old
		groups = append(groups, Alike{Wanted: []entry.Chunk{k}, Like: []entry.Chunk{l}, Content: func() ([]byte, error) { return old, nil }})
	}
	tiny := chunk([]byte("t"))
	store[tiny.ID] = []byte("t")
	groups = append(groups, Alike{Wanted: []entry.Chunk{tiny}, Like: nil, Content: func() ([]byte, error) { return nil, nil }})
	refused := groups[7].Wanted[0].ID
	got, sent, err := asked(t, groups, serveGroups(func(g Group) (like, wanted []byte, ok bool, err error) {
		for _, id := range g.Like {
			like = append(like, store[id]...)
		}
		for _, id := range g.Wanted {
			wanted = append(wanted, store[id]...)
		}
		return like, wanted, g.Wanted[0] != refused, nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	for i, g := range groups {
		if want := store[g.Wanted[0].ID]; (i == 7) != (got[g.Wanted[0].ID] == nil) || i != 7 && !bytes.Equal(got[g.Wanted[0].ID], want) {
			t.Errorf("group %d: %d bytes", i, len(got[g.Wanted[0].ID]))
		}
	}
	if sent > 20_000 {
		t.Errorf("%d bytes for differences of 14 bytes each", sent)
	}
}

// What a hostile controller sends is refused, and takes no memory.
func TestAlikeRefuses(t *testing.T) {
	old := random(1, 5000)
	young := append([]byte("new"), old...)
	group := Alike{Wanted: []entry.Chunk{chunk(young)}, Like: []entry.Chunk{chunk(old)}, Content: func() ([]byte, error) { return old, nil }}
	enc, _ := zstd.NewWriter(nil, zstd.WithEncoderDictRaw(diffDict, old))
	good := enc.EncodeAll(young, nil)
	bomb, _ := zstd.NewWriter(nil, zstd.WithWindowSize(8<<20))
	for name, c := range map[string]struct {
		kind Kind
		said []byte
		want string
	}{
		"another chunk": {KindDiff, enc.EncodeAll(append([]byte("old"), old...), nil), "its content is"},
		"longer":        {KindDiff, enc.EncodeAll(append(young, 'x'), nil), ""},
		"shorter":       {KindDiff, enc.EncodeAll(young[1:], nil), "were asked for"},
		"a bomb":        {KindDiff, bomb.EncodeAll(make([]byte, 200<<20), nil), ""},
		"no zstd":       {KindDiff, []byte("hello"), ""},
		"cut":           {KindDiff, good[:len(good)/2], ""},
		"another kind":  {KindStream, good, ""},
	} {
		got, _, err := asked(t, []Alike{group}, func(p *Conn) error {
			if _, err := p.Next(nil); err != nil {
				return err
			}
			return p.SendRaw(c.kind, c.said)
		})
		if err == nil || !strings.Contains(err.Error(), c.want) || len(got) > 0 {
			t.Errorf("%s: %d chunks, %v", name, len(got), err)
		}
	}
	failing := group
	failing.Content = func() ([]byte, error) { return nil, errors.New("it has changed") }
	if _, _, err := asked(t, []Alike{failing}, func(p *Conn) error {
		p.Next(nil)
		return p.SendRaw(KindDiff, good)
	}); err == nil || !strings.Contains(err.Error(), "it has changed") {
		t.Errorf("content that cannot be read: %v", err)
	}
}

// An error of one group ends the answer, and leaves no goroutine waiting.
func TestSendGroupsFails(t *testing.T) {
	var out bytes.Buffer
	c := New(strings.NewReader(""), &out)
	groups := make([]Group, 20)
	for i := range groups {
		groups[i].Wanted = []digest.ID{{byte(i)}}
	}
	err := c.SendGroups(groups, func(g Group) ([]byte, error) {
		if g.Wanted[0][0] == 5 {
			return nil, context.Canceled
		}
		return []byte("x"), nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func FuzzGroups(f *testing.F) {
	id := chunk([]byte("x"))
	good := appendIDs(appendIDs(nil, []entry.Chunk{id, id}), []entry.Chunk{id})
	if len(good) == 0 {
		f.Fatal("empty seed")
	}
	f.Add(good)
	f.Add(append(good, good...))
	f.Fuzz(func(t *testing.T, b []byte) {
		groups, err := (&Conn{}).Groups(Frame{Kind: KindLike, Payload: b})
		if err != nil {
			return
		}
		var again []byte
		for _, g := range groups {
			for _, list := range [][]digest.ID{g.Wanted, g.Like} {
				var chunks []entry.Chunk
				for _, id := range list {
					chunks = append(chunks, entry.Chunk{ID: id})
				}
				again = appendIDs(again, chunks)
			}
		}
		back, err := (&Conn{}).Groups(Frame{Kind: KindLike, Payload: again})
		if err != nil || fmt.Sprint(back) != fmt.Sprint(groups) {
			t.Fatalf("%v: %v became %v", err, groups, back)
		}
	})
}
