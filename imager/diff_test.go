package imager

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// treeOf makes a manifest of lines "PATH TYPE MODE UID:GID MTIME CONTENT": one
// chunk a letter of the content; =PATH is a hard link.
func treeOf(t *testing.T, lines ...string) *manifest.Manifest {
	t.Helper()
	m := &manifest.Manifest{Entries: []entry.Entry{{Path: ".", Type: entry.Dir, Mode: 0o755}}}
	for _, line := range lines {
		w := strings.Fields(line + " - - - -")
		e := entry.Entry{Path: w[0], Type: entry.File, Mode: 0o644}
		switch {
		case w[1] == "dir":
			e.Type = entry.Dir
		case strings.HasPrefix(w[1], "->"):
			e.Type, e.Target = entry.Symlink, w[1][2:]
		case strings.HasPrefix(w[1], "="):
			e.Link = w[1][1:]
		case w[1] != "-":
			for _, c := range w[1] {
				e.Chunks = append(e.Chunks, entry.Chunk{ID: digest.Of([]byte(string(c))), Size: 10})
				e.Size += 10
			}
		}
		for _, x := range w[2:] {
			var name, value string
			switch {
			case x == "-":
			case strings.Contains(x, "="):
				name, value, _ = strings.Cut(x, "=")
				e.Xattrs = append(e.Xattrs, entry.Xattr{Name: name, Value: value})
			case strings.Contains(x, ":"):
				fmt.Sscanf(x, "%d:%d", &e.UID, &e.GID)
			case x[0] == '@':
				fmt.Sscanf(x, "@%d", &e.ModTime)
			default:
				fmt.Sscanf(x, "%o", &e.Mode)
			}
		}
		m.Entries = append(m.Entries, e)
	}
	for i := range m.Entries {
		if to, ok := m.Lookup(m.Entries[i].Link); ok && m.Entries[i].Link != "" {
			e := *to
			e.Path, e.Link, e.Chunks = m.Entries[i].Path, to.Path, nil
			m.Entries[i] = e
		}
	}
	m.Sort()
	if err := m.Validate(); err != nil {
		t.Fatal(err)
	}
	return m
}

func said(list []DiffEntry) string {
	var out []string
	for _, e := range list {
		s := string(e.Kind) + " " + e.Path
		if e.From != "" {
			s += " from " + e.From
		}
		for _, d := range e.What {
			s += fmt.Sprintf(" [%s %s|%s]", d.What, d.A, d.B)
		}
		if len(e.New) > 0 {
			s += fmt.Sprintf(" +%d", len(e.New))
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}

func TestDiff(t *testing.T) {
	for _, tc := range []struct{ name, a, b, want string }{
		{"nothing", "f a", "f a", ""},
		{"added", "", "f ab", "added f +2"},
		{"removed", "f ab", "", "removed f"},
		{"content", "f ab", "f abc", "changed f [content 20|30] +1"},
		{"content of one size", "f ab", "f ac", "changed f [content 20|20] +1"},
		{"a chunk that is elsewhere", "f a,g b", "f b,g b", "changed f [content 10|10]"},
		{"metadata", "f a 644 1:2 @1", "f a 4755 1:3 @2000000000", "changed f [mode 0644|4755] [owner 1:2|1:3] [mtime 1970-01-01T00:00:00.000000001Z|1970-01-01T00:00:02Z]"},
		{"type", "f a", "f ->x", "changed f [type file|symlink]"},
		{"target", "f ->x", "f ->y", "changed f [target x|y]"},
		{"xattrs", "f a user.a=1 user.b=1", "f a user.b=2 user.c=3", "changed f [xattr user.a 1|] [xattr user.b 1|2] [xattr user.c |3]"},
		{"a hard link more", "f a", "f a,g =f", `changed f [links |"g"]; added g`},
		{"no hard link any more", "f a,g =f", "f a,g a", `changed f [links "g"|]; changed g [links "f"|]`},
		{"content of hard links", "f a,g =f", "f b,g =f", "changed f [content 10|10] +1; changed g [content 10|10]"},
		{"the first name is gone", "f a,g =f,h =f", "g a,h =g", `removed f; changed g [links "f" "h"|"h"]; changed h [links "f" "g"|"g"]`},
		{"renamed", "d dir,d/f ab,e dir", "d dir,e dir,e/f ab", "renamed e/f from d/f"},
		{"renamed and more", "f ab 644", "g ab 600", "renamed g from f [mode 0644|0600]"},
		{"renamed to its own name first", "a dir,a/x a,a/y a,b dir", "a dir,b dir,b/y a,b/z a", "renamed b/y from a/y; renamed b/z from a/x"},
		{"copied", "f a", "f a,g a", "added g"},
		{"empty files are no renames", "f -", "g -", "removed f; added g"},
		{"tree order", "a dir,a-b a", "a dir,a-b b,a/z z", "added a/z +1; changed a-b [content 10|10] +1"},
	} {
		lines := func(s string) []string {
			return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
		}
		if got := said(Diff(treeOf(t, lines(tc.a)...), treeOf(t, lines(tc.b)...))); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.name, got, tc.want)
		}
	}
}

// What is said to differ is what differs: exactly the entries that
// manifest.Diff finds, but for names of one file, and both ways the same.
func TestDiffAgrees(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	random := func() *manifest.Manifest {
		var lines []string
		for _, p := range []string{"a", "b", "c", "d", "e"} {
			switch rng.IntN(4) {
			case 0:
			case 1:
				lines = append(lines, fmt.Sprintf("%s ->%c", p, 'x'+rune(rng.IntN(2))))
			default:
				lines = append(lines, fmt.Sprintf("%s %s %o", p, "abcd"[rng.IntN(3):3], 0o600+rng.IntN(2)))
			}
		}
		return treeOf(t, lines...)
	}
	for range 500 {
		a, b := random(), random()
		there, back := Diff(a, b), Diff(b, a)
		want := map[string]bool{}
		for _, c := range manifest.Diff(a, b) {
			want[c.Path] = true
		}
		got := map[string]bool{}
		for _, e := range there {
			got[e.Path] = true
			if e.From != "" {
				got[e.From] = true
			}
		}
		if len(got) != len(want) {
			t.Fatalf("%s: want %v", said(there), want)
		}
		var stat, back2 DiffStat
		for i := range there {
			stat.Add(&there[i])
		}
		for i := range back {
			back2.Add(&back[i])
		}
		if stat.Bytes != b.TotalSize()-a.TotalSize() || stat.Bytes != -back2.Bytes || stat.Added != back2.Removed || stat.Renamed != back2.Renamed || stat.Changed != back2.Changed {
			t.Fatalf("there %+v, back %+v", stat, back2)
		}
		have := map[digest.ID]bool{}
		for _, e := range a.Entries {
			for _, c := range e.Chunks {
				have[c.ID] = true
			}
		}
		n := 0
		for _, e := range b.Entries {
			for _, c := range e.Chunks {
				if !have[c.ID] {
					have[c.ID], n = true, n+1
				}
			}
		}
		if len(stat.New) != n || int64(n)*10 != stat.NewBytes {
			t.Fatalf("%d new chunks, want %d", len(stat.New), n)
		}
	}
}
