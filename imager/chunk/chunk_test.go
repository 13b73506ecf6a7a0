package chunk

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	cdc "github.com/PlakarKorp/go-cdc-chunkers"
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

// cuts returns the chunks of data.
func cuts(data []byte) (sizes []int) {
	for len(data) > 0 {
		n := Cut(data)
		sizes = append(sizes, n)
		data = data[n:]
	}
	return sizes
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
	for _, tt := range tests {
		sizes := cuts(tt.data)
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

// The library's own chunker, which FORMAT.md names, cuts the same.
func TestCutsAsTheLibrary(t *testing.T) {
	p := Default()
	for _, n := range []int{0, 1, p.Min, p.Min + 1, p.Avg - 1, p.Avg, p.Avg + 1, p.Max - 1, p.Max, p.Max + 1, 8 << 20} {
		for name, data := range map[string][]byte{"noise": noise(uint64(n), n), "zeros": make([]byte, n), "text": bytes.Repeat([]byte("0123456789\n"), n/11)} {
			lib, err := cdc.NewChunker(Algorithm, bytes.NewReader(data), &cdc.ChunkerOpts{MinSize: p.Min, NormalSize: p.Avg, MaxSize: p.Max})
			if err != nil {
				t.Fatal(err)
			}
			var want []int
			for err == nil {
				var b []byte
				if b, err = lib.Next(); len(b) > 0 {
					want = append(want, len(b))
				}
			}
			if got := cuts(data); !errors.Is(err, io.EOF) || !slices.Equal(got, want) {
				t.Errorf("%d bytes of %s: %v, the library %v (%v)", n, name, got, want, err)
			}
		}
	}
}

// What comes after Max bytes does not matter: content may be cut as it is read.
func TestLooksNoFurtherThanMax(t *testing.T) {
	data := noise(3, 1<<20)
	for most := Default().Max; len(data) > most; data = data[Cut(data):] {
		if a, b := Cut(data), Cut(data[:most]); a != b {
			t.Fatalf("%d bytes with all that follows, %d without", a, b)
		}
	}
}

func TestAnInsertionIsLocal(t *testing.T) {
	data := noise(5, 8<<20)
	edited := append(append(bytes.Clone(data[:3<<20]), "inserted"...), data[3<<20:]...)
	known := map[[32]byte]bool{}
	for d := data; len(d) > 0; d = d[Cut(d):] {
		known[sha256.Sum256(d[:Cut(d)])] = true
	}
	fresh := 0
	for d := edited; len(d) > 0; d = d[Cut(d):] {
		if n := Cut(d); !known[sha256.Sum256(d[:n])] {
			fresh += n
		}
	}
	if fresh == 0 || fresh > 256<<10 {
		t.Errorf("8 inserted bytes make %d new ones", fresh)
	}
}

func BenchmarkCut(b *testing.B) {
	data := noise(1, 16<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		cuts(data)
	}
}
