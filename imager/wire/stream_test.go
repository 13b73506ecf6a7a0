package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

func noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, seed))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// ask fetches chunks that the other end has.
func ask(t *testing.T, a, b *Conn, data ...[]byte) {
	t.Helper()
	answered(t, a, b, data, func(s *Stream) (err error) {
		for _, d := range data {
			err = errors.Join(err, s.Add(digest.Of(d), d))
		}
		return err
	})
}

// answered fetches chunks, which the other end sends by answer.
func answered(t *testing.T, a, b *Conn, data [][]byte, answer func(s *Stream) error) {
	t.Helper()
	var ids []digest.ID
	for _, d := range data {
		ids = append(ids, digest.Of(d))
	}
	errs := make(chan error, 1)
	go func() {
		f, err := b.Next(nil)
		if err == nil {
			_, err = b.IDs(f)
		}
		errs <- errors.Join(err, answer(b.Stream()), b.Stream().End())
	}()
	n := 0
	err := Puller{a}.Fetch(t.Context(), ids, func(id digest.ID, d []byte) error {
		if digest.Of(d) != id {
			t.Error("a chunk is not what its ID says")
		}
		n++
		return nil
	})
	if err := errors.Join(err, <-errs); err != nil || n != len(data) {
		t.Fatalf("%d of %d chunks: %v", n, len(data), err)
	}
}

// Question after question goes over one stream, and what came before helps.
func TestStreamRemembers(t *testing.T) {
	a, b := pair(t)
	first := noise(1, 3<<20)
	ask(t, a, b, first)
	after := a.Received()
	again := bytes.Clone(first)
	again[100]++
	ask(t, a, b, again, []byte("x"))
	if n := a.Received() - after; n > 20_000 {
		t.Errorf("what was sent before, but for a byte, takes %d bytes", n)
	}
	ask(t, a, b, noise(2, 4<<20))
}

func TestStreamRefuses(t *testing.T) {
	good := noise(3, 1000)
	id := digest.Of(good)
	record := func(id digest.ID, size uint32, data []byte) []byte {
		return append(binary.BigEndian.AppendUint32(bytes.Clone(id[:]), size), data...)
	}
	pack := func(level zstd.EncoderLevel, window int, raw []byte) []byte {
		var buf bytes.Buffer
		enc, err := zstd.NewWriter(&buf, zstd.WithEncoderLevel(level), zstd.WithWindowSize(window))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := enc.Write(raw); err != nil {
			t.Fatal(err)
		}
		if err := enc.Close(); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
	for name, tc := range map[string]struct {
		said []byte
		want string
	}{
		"another content":     {pack(zstd.SpeedDefault, 1<<20, record(id, 1000, noise(4, 1000))), "its content is"},
		"a chunk of 4 GiB":    {pack(zstd.SpeedDefault, 1<<20, record(id, 1<<32-3, good)), "one of 4294967293 bytes"},
		"a list of nothing":   {rawFrame(nil, record(digest.ID{}, listed, nil)), "a list of 0"},
		"too long a list":     {rawFrame(nil, record(digest.ID{0, 1, 0, 1}, listed, nil)), "a list of 65537"},
		"a list cut short":    {rawFrame(nil, record(digest.ID{0, 0, 0, 2}, listed, record(id, 1000, nil))), "got frame"},
		"an end in a list":    {rawFrame(nil, record(digest.ID{0, 0, 0, 1}, listed, record(id, endOfAnswer, nil))), "one of 4294967295 bytes"},
		"a list in a list":    {rawFrame(nil, record(digest.ID{0, 0, 0, 1}, listed, record(id, listed, nil))), "one of 4294967294 bytes"},
		"another than listed": {rawFrame(Packed(nil, []entry.Chunk{{ID: id, Size: 1000}}), noise(4, 1000)), "its content is"},
		"the end of a stream": {pack(zstd.SpeedDefault, 1<<20, record(id, 1000, good[:10])), "got frame"},
		"a window of 64 MiB":  {pack(zstd.SpeedDefault, 64<<20, append(record(id, 1000, good), make([]byte, 20<<20)...)), "window size exceeded"},
		"no zstd":             {noise(5, 100), "magic"},
		"unasked":             {pack(zstd.SpeedDefault, 1<<20, record(digest.Of([]byte("x")), 1, []byte("x"))), "unasked"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			go func() {
				b.Next(nil)
				b.SendRaw(KindStream, tc.said)
				b.SendRaw(KindStream, nil)
				b.SendRaw(KindEnd, nil)
			}()
			err := Puller{a}.Fetch(t.Context(), []digest.ID{id}, func(digest.ID, []byte) error { return nil })
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Fetch = %v, want %q", err, tc.want)
			}
		})
	}
}

// What a blob claims to be must not be believed.
func TestBlobGrowsWithWhatArrives(t *testing.T) {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	bomb := enc.EncodeAll(make([]byte, 256<<20), nil)
	for name, tc := range map[string]struct {
		frames [][]byte
		want   string
	}{
		"a bomb of a plan": {[][]byte{bomb}, "over 67108864 bytes"},
		"cut short":        {[][]byte{bomb[:100]}, "EOF"},
		"1 GiB announced":  {[][]byte{{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0x40, 1, 0, 0}}, "limit"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			go func() {
				for _, f := range tc.frames {
					b.SendRaw(KindBlob, f)
				}
			}()
			f, err := a.Next(nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.PlanAfter(f, nil); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("PlanAfter = %v, want %q", err, tc.want)
			}
		})
	}
}

// What the shell of a node says is understood.
func TestSayNoAgent(t *testing.T) {
	for _, sh := range [][]string{{"sh"}, {"bash"}, {"busybox", "sh"}} {
		if _, err := exec.LookPath(sh[0]); err != nil {
			t.Logf("%s is not here", sh[0])
			continue
		}
		out, err := exec.Command(sh[0], append(sh[1:], "-c", "echo welcome; uname() { echo aarch64; }; "+SayNoAgent())...).Output()
		if err != nil {
			t.Fatalf("%s: %v", sh, err)
		}
		var none *NoAgentError
		if err := New(bytes.NewReader(out), io.Discard).Greet("1"); !errors.As(err, &none) || none.Machine != "aarch64" {
			t.Errorf("%s: Greet = %v, %+v", sh, err, none)
		}
	}
}

// What was compressed before is spliced into the stream of any connection,
// between what is compressed for it alone.
func TestSplice(t *testing.T) {
	g := NewSegment()
	var segments [][]byte
	var data [][]byte
	for i := range uint64(3) {
		for j := range uint64(3) {
			d := noise(10*i+j, 3<<20)
			data = append(data, d)
			if err := g.Add(digest.Of(d), d); err != nil {
				t.Fatal(err)
			}
		}
		s, err := g.Take()
		if err != nil {
			t.Fatal(err)
		}
		segments = append(segments, s)
	}
	if s, err := g.Take(); err != nil || len(s) > 20 {
		t.Fatalf("an empty segment is of %d bytes: %v", len(s), err)
	}
	own := [][]byte{[]byte("own"), noise(100, 4<<20)}
	for range 2 { // connections
		a, b := pair(t)
		for range 3 { // questions
			answered(t, a, b, slices.Concat(data, own), func(s *Stream) error {
				return errors.Join(s.Splice(segments[0]), s.Add(digest.Of(own[0]), own[0]), s.Splice(segments[1]), s.Splice(segments[2]), s.Add(digest.Of(own[1]), own[1]))
			})
		}
	}
}

// Frames as a store has them are sent as they are, between all else.
func TestPacked(t *testing.T) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithSingleSegment(true))
	if err != nil {
		t.Fatal(err)
	}
	var data [][]byte
	frame := func(seed uint64, sizes ...int) []byte {
		var chunks []entry.Chunk
		var raw []byte
		for i, n := range sizes {
			d := noise(seed+uint64(i), n)
			data = append(data, d)
			chunks = append(chunks, entry.Chunk{ID: digest.Of(d), Size: uint32(n)})
			raw = append(raw, d...)
		}
		return enc.EncodeAll(raw, Packed(nil, chunks))
	}
	frames := [][]byte{frame(10, 100_000), frame(20, 1, 70_000, 2, 200_000), frame(30, 30), frame(40, slices.Repeat([]int{20}, 9000)...), frame(100_000, 4<<20, 4<<20)}
	g := NewSegment()
	own := [][]byte{[]byte("own"), noise(1, 3<<20), []byte("in a segment")}
	if err := g.Add(digest.Of(own[2]), own[2]); err != nil {
		t.Fatal(err)
	}
	segment, err := g.Take()
	if err != nil {
		t.Fatal(err)
	}
	a, b := pair(t)
	for range 2 { // questions
		answered(t, a, b, slices.Concat(data, own), func(s *Stream) error {
			err := errors.Join(s.Splice(frames[0]), s.Add(digest.Of(own[0]), own[0]), s.Splice(frames[1]), s.Splice(segment), s.Splice(frames[2]))
			return errors.Join(err, s.Add(digest.Of(own[1]), own[1]), s.Splice(frames[3]), s.Splice(frames[4]))
		})
	}
}

// The zstd of others reads raw frames of any length.
func TestRawFrame(t *testing.T) {
	zstd, err := exec.LookPath("zstd")
	if err != nil {
		t.Skip("there is no zstd")
	}
	for _, n := range []int{0, 1, 36, 128<<10 - 1, 128 << 10, 128<<10 + 1, 1 << 20} {
		content := noise(uint64(n), n)
		cmd := exec.Command(zstd, "-dc")
		cmd.Stdin = bytes.NewReader(rawFrame(nil, content))
		out, err := cmd.Output()
		if err != nil || !bytes.Equal(out, content) {
			t.Errorf("%d bytes: %v, %d bytes", n, err, len(out))
		}
	}
}
