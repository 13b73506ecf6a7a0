package chunk

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// noise returns n bytes that any language can make again: SHA-256 of the
// little-endian 64-bit numbers seed, seed+1, ... one after another.
func noise(seed uint64, n int) []byte {
	var out []byte
	for ; len(out) < n; seed++ {
		h := sha256.Sum256(binary.LittleEndian.AppendUint64(nil, seed))
		out = append(out, h[:]...)
	}
	return out[:n]
}

func cuts(t *testing.T, c *Chunker, r io.Reader) (sizes []int, all []byte) {
	t.Helper()
	err := c.Split(r, func(data []byte) error {
		sizes = append(sizes, len(data))
		all = append(all, data...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sizes, all
}

// The vectors freeze the parameters: a store made by any version of ingot
// shares chunks with this one only while they hold.
func TestVectors(t *testing.T) {
	p := Default()
	text := []byte(strings.Repeat("the quick brown fox jumps over the lazy dog\n", 5000))
	tests := []struct {
		name  string
		data  []byte
		first []int  // the first sizes
		count int    // of chunks
		sum   string // the first 16 digits of the SHA-256 of all sizes, 32 bits little-endian each
	}{
		{"empty", nil, []int{}, 0, "e3b0c44298fc1c14"},
		{"one byte", []byte{7}, []int{1}, 1, "67abdd721024f0ff"},
		{"min", noise(0, p.Min), []int{16384}, 1, "c9a41c78ed4170c1"},
		{"avg", noise(0, p.Avg), []int{57337, 8199}, 2, "79b15756fcb9eecc"},
		{"noise 4 MiB", noise(1, 4<<20), []int{57305, 33114, 63882, 75379, 66845}, 93, "cac9685596b612c9"},
		{"zeros 1 MiB", make([]byte, 1<<20), []int{262144, 262144, 262144, 262144}, 4, "c9aca3eec3d1762e"},
		{"text", text, []int{220000}, 1, "6f9c54d2d2ca96da"},
	}
	c := New()
	for _, tt := range tests {
		sizes, all := cuts(t, c, bytes.NewReader(tt.data))
		if !bytes.Equal(all, tt.data) {
			t.Errorf("%s: the chunks are not the content", tt.name)
		}
		h := sha256.New()
		for i, n := range sizes {
			h.Write(binary.LittleEndian.AppendUint32(nil, uint32(n)))
			if n > p.Max || n <= p.Min && i < len(sizes)-1 {
				t.Errorf("%s: chunk %d has %d bytes", tt.name, i, n)
			}
		}
		sum := hex.EncodeToString(h.Sum(nil))[:16]
		if len(sizes) != tt.count || !slices.Equal(sizes[:min(5, len(sizes))], tt.first) || sum != tt.sum {
			t.Errorf("%s: %d chunks, first %v, sum %q", tt.name, len(sizes), sizes[:min(5, len(sizes))], sum)
		}
	}
}

func TestReadsInPiecesCutTheSame(t *testing.T) {
	data := noise(3, 1<<20)
	c := New()
	want, _ := cuts(t, c, bytes.NewReader(data))
	for name, r := range map[string]io.Reader{
		"halves":   iotest.HalfReader(bytes.NewReader(data)),
		"data+EOF": iotest.DataErrReader(bytes.NewReader(data)),
	} {
		if got, _ := cuts(t, c, r); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if got, _ := cuts(t, New(), bytes.NewReader(data)); !reflect.DeepEqual(got, want) {
		t.Errorf("a new chunker cuts %v, a used one %v", got, want)
	}
}

func TestAnInsertionIsLocal(t *testing.T) {
	data := noise(5, 8<<20)
	edited := append(append(bytes.Clone(data[:3<<20]), "inserted"...), data[3<<20:]...)
	known := map[[32]byte]bool{}
	c := New()
	if err := c.Split(bytes.NewReader(data), func(b []byte) error { known[sha256.Sum256(b)] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	fresh := 0
	if err := c.Split(bytes.NewReader(edited), func(b []byte) error {
		if !known[sha256.Sum256(b)] {
			fresh += len(b)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if fresh == 0 || fresh > 256<<10 {
		t.Errorf("8 inserted bytes make %d new ones", fresh)
	}
}

func TestErrors(t *testing.T) {
	c := New()
	boom := errors.New("boom")
	nop := func([]byte) error { return nil }
	r := io.MultiReader(bytes.NewReader(noise(1, 300<<10)), iotest.ErrReader(boom))
	if err := c.Split(r, nop); !errors.Is(err, boom) {
		t.Errorf("reading: %v", err)
	}
	if err := c.Split(bytes.NewReader(noise(1, 1<<20)), func([]byte) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("callback: %v", err)
	}
	if sizes, _ := cuts(t, c, strings.NewReader("still works")); len(sizes) != 1 {
		t.Errorf("after errors: %v", sizes)
	}
}

func BenchmarkSplit(b *testing.B) {
	data := noise(1, 16<<20)
	c := New()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if err := c.Split(bytes.NewReader(data), func([]byte) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
