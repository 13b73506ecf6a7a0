package rollback

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

func someJournal() *journal {
	f := entry.Entry{Type: entry.File, Mode: 0o4755, UID: 1, GID: 2, ModTime: -5, Size: 1 << 40,
		Xattrs: []entry.Xattr{{Name: "user.a", Value: "\x00\xff"}, {Name: "user.b"}}}
	l := entry.Entry{Type: entry.Symlink, Mode: 0o777, Target: "../x\xfe"}
	return &journal{from: 3, to: 4, stage: "ABC", used: []undoFile{{gen: 1, slot: 2}, {gen: 2}}, ready: true, steps: []jstep{
		{kind: Delete, slot: 0, path: "a\xff/b", old: side{ino: 7, key: digest.Of([]byte("k")), Entry: f}},
		{kind: Replace, slot: 1, path: "c", old: side{ino: 8, Entry: l}, new: side{ino: 9, Entry: f}},
		{kind: Add, slot: 2, path: "d", new: side{ino: 10, Entry: l}},
		{kind: Times, path: ".", old: side{ino: 2, Entry: entry.Entry{Type: entry.Dir}}, new: side{ino: 2, Entry: entry.Entry{Type: entry.Dir, ModTime: 9}}},
	}}
}

func TestJournalRoundTrip(t *testing.T) {
	for _, committed := range []bool{false, true} {
		j := someJournal()
		j.committed = committed
		got, err := decodeJournal(j.encode())
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(j, got) {
			t.Errorf("got  %+v\nwant %+v", got, j)
		}
	}
}

// TestJournalTorn cuts the commit record everywhere, and puts zeros where
// bytes did not reach the disk.
func TestJournalTorn(t *testing.T) {
	j := someJournal()
	whole := j.encode()
	commit := commitRecord()
	for cut := range len(commit) {
		for _, tail := range [][]byte{commit[:cut], append(bytes.Clone(commit[:cut]), make([]byte, len(commit)-cut)...)} {
			got, err := decodeJournal(append(bytes.Clone(whole), tail...))
			if err != nil || !got.ready || got.committed {
				t.Fatalf("cut at %d: %+v, %v", cut, got, err)
			}
		}
	}
}

func TestJournalDamage(t *testing.T) {
	j := someJournal()
	j.committed = true
	whole := j.encode()
	last := len(whole) - len(commitRecord())
	for i := range last {
		b := bytes.Clone(whole)
		b[i] ^= 0x10
		if got, err := decodeJournal(b); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("damage at byte %d of %d: %+v, %v", i, len(whole), got, err)
		}
	}
	for _, b := range [][]byte{nil, []byte(journalMagic), []byte("ingot journal 2\n"), whole[:len(journalMagic)+5]} {
		if _, err := decodeJournal(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%q: %v", b, err)
		}
	}
}

func TestJournalRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*journal){
		"path upwards":   func(j *journal) { j.steps[0].path = "../etc/passwd" },
		"absolute path":  func(j *journal) { j.steps[0].path = "/etc/passwd" },
		"empty path":     func(j *journal) { j.steps[0].path = "" },
		"NUL":            func(j *journal) { j.steps[0].path = "a\x00b" },
		"stage upwards":  func(j *journal) { j.stage = ".." },
		"stage is path":  func(j *journal) { j.stage = "a/b" },
		"unknown kind":   func(j *journal) { j.steps[0].kind = 9 },
		"unknown type":   func(j *journal) { j.steps[0].old.Type = 77 },
		"no such number": func(j *journal) { j.steps[0].slot = -1 },
	} {
		j := someJournal()
		spoil(j)
		if _, err := decodeJournal(j.encode()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzJournal: what decodes encodes to what was decoded, but for a torn tail;
// and no input is read beyond its end.
func FuzzJournal(f *testing.F) {
	j := someJournal()
	f.Add(j.encode())
	j.committed = true
	f.Add(j.encode())
	f.Add(j.encode()[:60])
	j.volumes = []Volume{{At: "c", ID: "x", FSType: "xfs", UUID: "u", Source: "/dev/vdb", Root: "/"}}
	j.steps[1].vol, j.used[0].vol = 1, 1
	f.Add(j.encode())
	f.Add([]byte(journalMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		j, err := decodeJournal(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		if enc := j.encode(); !bytes.HasPrefix(b, enc) {
			t.Fatalf("decoded %q, encodes to %q", b, enc)
		}
	})
}

func FuzzStatCache(f *testing.F) {
	m := &manifest.Manifest{Entries: []entry.Entry{{Path: ".", Type: entry.Dir}, {Path: "a\xff", Type: entry.File, Size: 3, ModTime: -4}, {Path: "b", Type: entry.Symlink}}}
	all := states{{entry.Stat{Dev: 1, Ino: 9, Size: 4096, CTime: 7, Nlink: 2}, true}, {entry.Stat{Dev: 1, Ino: 2, Size: 3, MTime: -4, CTime: 5, Nlink: 6}, false}, {entry.Stat{Dev: 1 << 63, Ino: 1<<64 - 1, CTime: -1 << 63}, true}}
	any := func(int, digest.ID) bool { return true }
	id := digest.Of([]byte("m"))
	for _, s := range []states{nil, all, {{}, all[1], {}}, {all[0], {}, all[2]}} {
		b := encodeCache(7, id, m, s)
		f.Add(b)
		gen, of, got, ok := decodeCache(b, m, any)
		for i := range s {
			if !ok || gen != 7 || of != id || got[i] != s[i] {
				f.Fatalf("%+v became %+v", s, got)
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		gen, of, s, ok := decodeCache(b, m, any)
		if !ok {
			return
		}
		if enc := encodeCache(gen, of, m, s); !bytes.Equal(b, enc) {
			t.Fatalf("decoded %q, encodes to %q", b, enc)
		}
	})
}
