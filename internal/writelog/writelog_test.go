package writelog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
)

// request is an entry to be logged.
type request struct {
	sector, count, flags uint64
	data                 string // repeated to fill the sectors
	text                 string
}

// encode makes the log that QEMU would, from the documents and not from the reader.
func encode(sector int, reqs ...request) []byte {
	word := binary.LittleEndian.AppendUint64
	pad := func(b []byte) []byte { return append(b, make([]byte, (sector-len(b)%sector)%sector)...) }
	super := word(word(word(nil, 0x6a736677736872), 1), uint64(len(reqs)))
	out := pad(binary.LittleEndian.AppendUint32(super, uint32(sector)))
	for _, r := range reqs {
		head := word(word(word(word(nil, r.sector), r.count), r.flags), uint64(len(r.text)))
		out = append(out, pad(append(head, r.text...))...)
		if r.flags&4 == 0 {
			out = append(out, strings.Repeat(r.data, int(r.count)*sector/max(1, len(r.data)))...)
		}
	}
	return out
}

func open(t *testing.T, b []byte) *Log {
	t.Helper()
	l, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func entries(t *testing.T, l *Log) []Entry {
	t.Helper()
	var out []Entry
	for e, err := range l.All() {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// image is a disk in memory that remembers how it was asked.
type image struct {
	b       []byte
	largest int
}

func (d *image) WriteAt(b []byte, off int64) (int, error) {
	d.largest = max(d.largest, len(b))
	return copy(d.b[off:], b), nil
}

// sparse is an image that can punch holes.
type sparse struct {
	image
	punched int
}

func (d *sparse) Punch(off, n int64) error {
	d.punched++
	clear(d.b[off : off+n])
	return nil
}

// What a disk holds after each entry, worked out by hand: one letter a sector.
func TestReplayUpToAnyEntry(t *testing.T) {
	log := encode(512,
		request{sector: 0, count: 4, data: "a"},
		request{sector: 2, count: 1, data: "b"},
		request{flags: 1},
		request{sector: 1, count: 2, flags: 4},
		request{flags: 8, text: "half way"},
		request{sector: 3, count: 2, flags: 2, data: "c"},
		request{sector: 0, count: 1, flags: 1, data: "d"},
	)
	l := open(t, log)
	if l.Entries != 7 || l.SectorSize != 512 {
		t.Errorf("%+v", l)
	}
	plain, holes := &image{b: bytes.Repeat([]byte("-"), 6*512)}, &sparse{image: image{b: bytes.Repeat([]byte("-"), 6*512)}}
	for i, want := range []string{"aaaa--", "aaba--", "aaba--", "a00a--", "a00a--", "a00cc-", "d00cc-"} {
		e := entries(t, l)[i]
		for _, disk := range []io.WriterAt{plain, holes} {
			if err := l.Replay(disk, 6*512, e); err != nil {
				t.Fatal(err)
			}
		}
		for _, b := range [][]byte{plain.b, holes.b} {
			for s := range 6 {
				c := want[s]
				if c == '0' {
					c = 0
				}
				if !bytes.Equal(b[s*512:][:512], bytes.Repeat([]byte{c}, 512)) {
					t.Errorf("after entry %d sector %d is %q, want %q", i, s, b[s*512], c)
				}
			}
		}
	}
	if es := entries(t, l); es[4].Text != "half way" || es[4].Flags != Mark || es[2].Flags != Flush || es[6].Flags != Flush || es[5].Off != 3*512 || es[5].Length != 1024 {
		t.Errorf("%+v", es)
	}
	if holes.punched != 1 {
		t.Errorf("punched %d times", holes.punched)
	}
}

func TestPart(t *testing.T) {
	log := encode(512, request{sector: 2, count: 4, data: "0123456789abcdef"}, request{sector: 2, count: 4, flags: 4})
	l := open(t, log)
	es := entries(t, l)
	for _, tt := range []struct{ off, n, wantOff, wantLen int64 }{
		{0, 512, 1024, 0}, {0, 1 << 20, 1024, 2048}, {1536, 512, 1536, 512}, {2560, 1 << 20, 2560, 512}, {3072, 512, 3072, 0}, {1024, 0, 1024, 0},
	} {
		for _, e := range es {
			if p := e.Part(tt.off, tt.n); p.Length != tt.wantLen || tt.wantLen > 0 && p.Off != tt.wantOff {
				t.Errorf("Part(%d, %d) is %d bytes at %d, want %d at %d", tt.off, tt.n, p.Length, p.Off, tt.wantLen, tt.wantOff)
			}
		}
	}
	d := &image{b: make([]byte, 4096)}
	if err := l.Replay(d, 4096, es[0].Part(1540, 3).Part(1541, 9)); err != nil || string(d.b[1540:1544]) != "\x0056\x00" {
		t.Errorf("%v, %q", err, d.b[1536:1552])
	}
}

// Logs that are damaged or made to do harm.
func TestHostile(t *testing.T) {
	good := encode(512, request{sector: 1, count: 2, data: "x"}, request{flags: 1})
	edit := func(at int, v uint64) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint64(b[at:], v)
		return b
	}
	for name, b := range map[string][]byte{
		"empty": nil, "short": good[:20], "not a log": edit(0, 1), "version": edit(8, 2), "entries": edit(16, 1<<62), "a few entries too many": edit(16, 6),
		"no sector size": edit(24, 0), "odd sectors": edit(24, 600), "huge sectors": edit(24, 1<<30), "flags": edit(512+16, 32), "a text without a mark": edit(512+24, 1),
		"far away": edit(512, 1<<63), "wraps": edit(512, 1<<54), "endless": edit(512+8, 1<<62), "one more": edit(512+8, 4), "cut off": good[:512+512+600],
		"the sum wraps": encode(512, request{sector: 1<<54 - 1, count: 1, flags: 4}),
		"long text":     append(encode(512, request{flags: 8})[:512+24], binary.LittleEndian.AppendUint64(nil, 481)...),
	} {
		l, err := Open(bytes.NewReader(b), int64(len(b)))
		seen := 0
		if err == nil {
			for _, e := range l.All() {
				seen++
				err = e
			}
		}
		if !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %d entries, %v", name, seen, err)
		}
	}
	if _, err := Open(bytes.NewReader(nil), 512); err == nil {
		t.Error("a reader that has nothing")
	}
	if b := edit(16, 6); func() error { _, err := Open(bytes.NewReader(b), int64(len(b))); return err }() == nil {
		t.Error("more entries than there is room for were not noticed at once")
	}
	if n := len(entries(t, open(t, good))); n != 2 {
		t.Errorf("the good one has %d entries", n)
	}
}

// A log does not write behind the end of the disk, and a discard of any size needs little memory.
func TestReplayIsBounded(t *testing.T) {
	l := open(t, encode(512, request{sector: 7, count: 2, data: "x"}, request{sector: 0, count: 1 << 45, flags: 4}, request{sector: 0, count: 8192, flags: 4}))
	es := entries(t, l)
	d := &image{b: make([]byte, 4<<20)}
	for _, e := range es[:2] {
		if err := l.Replay(d, 8*512, e); !errors.Is(err, ErrFormat) || d.largest != 0 {
			t.Errorf("%+v on a disk of 8 sectors: %v, %d bytes written", e, err, d.largest)
		}
	}
	if err := l.Replay(d, 4<<20, es[2]); err != nil || d.largest != most {
		t.Errorf("%v, %d bytes at once", err, d.largest)
	}
	if err := l.Replay(full{}, 4<<20, es[2]); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("a disk that is full: %v", err)
	}
}

type full struct{}

func (full) WriteAt([]byte, int64) (int, error) { return 0, io.ErrShortWrite }

// Whatever the bytes are, reading them ends, entries lie in the log, and
// replaying stays on the disk.
func FuzzLog(f *testing.F) {
	seed := encode(512, request{sector: 1, count: 2, data: "x"}, request{flags: 1}, request{sector: 0, count: 9, flags: 4}, request{flags: 8, text: "mark"})
	if len(seed) != 7*512 {
		f.Fatal("the seed is not what it was")
	}
	f.Add(seed)
	f.Add(seed[:1000])
	f.Add(encode(4096, request{sector: 3, count: 1, data: "y", flags: 16}))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		const size = 16 * 512
		last, n := int64(0), int64(0)
		for e, err := range l.All() {
			if err != nil {
				return
			}
			if e.Index != n || e.data <= last || e.Off < 0 || e.Length < 0 || e.Flags&Discard == 0 && e.data+e.Length > int64(len(b)) && e.Length > 0 {
				t.Fatalf("%+v", e)
			}
			last, n = e.data, n+1
			d := &image{b: make([]byte, size)}
			if err := l.Replay(d, size, e); (err == nil) != (e.Length == 0 || e.Off+e.Length <= size) {
				t.Fatalf("%+v: %v", e, err)
			}
			if p := e.Part(512, 1024); p.Length > 1024 || p.Length > e.Length {
				t.Fatalf("%+v of %+v", p, e)
			}
		}
		if n != l.Entries {
			t.Fatalf("%d entries of %d", n, l.Entries)
		}
	})
}
