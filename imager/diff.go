package imager

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// DiffKind says what became of an entry.
type DiffKind string

// The kinds of change. A renamed file has content that one that is gone had;
// what else differs is listed as for changed ones.
const (
	Added   DiffKind = "added"
	Removed DiffKind = "removed"
	Changed DiffKind = "changed"
	Renamed DiffKind = "renamed"
)

// DiffEntry is one entry that differs between two images.
type DiffEntry struct {
	Path string
	From string // Renamed: its path in the first image
	Kind DiffKind
	A, B *entry.Entry  // as they are in the images; nil where there is none
	What []Difference  // Changed and Renamed
	New  []entry.Chunk // chunks that the first image has nowhere, each with the first entry that needs it
}

// Difference is one thing in which an entry differs: type, content (A and B
// are sizes in bytes), holes, mode (octal), owner (uid:gid), mtime (RFC 3339),
// target, device (major:minor), links (the other names of the file) or
// "xattr NAME" (values as they are). What is absent is empty.
type Difference struct {
	What string
	A, B string
}

// Diff compares two images, which must be valid, and returns what differs in
// tree order, a renamed file at its new place. Names of one file are
// compared as such: it does not matter which of them comes first.
func Diff(a, b *manifest.Manifest) []DiffEntry {
	d := &differ{a: a, b: b, namesA: namesOf(a), namesB: namesOf(b), had: map[digest.ID]bool{}}
	for i := range a.Entries {
		for _, c := range a.Entries[i].Chunks {
			d.had[c.ID] = true
		}
	}
	i, j := 0, 0
	for i < len(a.Entries) || j < len(b.Entries) {
		switch {
		case j == len(b.Entries) || i < len(a.Entries) && entry.Before(a.Entries[i].Path, b.Entries[j].Path):
			d.add(DiffEntry{Path: a.Entries[i].Path, Kind: Removed, A: &a.Entries[i]})
			i++
		case i == len(a.Entries) || entry.Before(b.Entries[j].Path, a.Entries[i].Path):
			d.add(DiffEntry{Path: b.Entries[j].Path, Kind: Added, B: &b.Entries[j]})
			j++
		default:
			ea, eb := &a.Entries[i], &b.Entries[j]
			i, j = i+1, j+1
			if what := d.compare(ea, eb); len(what) > 0 {
				d.add(DiffEntry{Path: ea.Path, Kind: Changed, A: ea, B: eb, What: what})
			}
		}
	}
	return d.renames()
}

type differ struct {
	a, b           *manifest.Manifest
	namesA, namesB map[string][]string
	had            map[digest.ID]bool // chunks of a, and those that were counted
	out            []DiffEntry
}

func (d *differ) add(e DiffEntry) {
	if e.B != nil {
		for _, c := range e.B.Chunks {
			if !d.had[c.ID] {
				d.had[c.ID] = true
				e.New = append(e.New, c)
			}
		}
	}
	d.out = append(d.out, e)
}

// compare lists in what two entries differ.
func (d *differ) compare(a, b *entry.Entry) []Difference {
	if a.Type != b.Type {
		return []Difference{{"type", TypeName(a.Type), TypeName(b.Type)}}
	}
	var out []Difference
	differs := func(what, x, y string) {
		if x != y {
			out = append(out, Difference{what, x, y})
		}
	}
	ha, hb := holder(d.a, a), holder(d.b, b)
	switch {
	case ha.Size != hb.Size || !slices.Equal(ha.Chunks, hb.Chunks):
		out = append(out, Difference{"content", fmt.Sprint(ha.Size), fmt.Sprint(hb.Size)})
	case !slices.Equal(ha.Holes, hb.Holes):
		out = append(out, Difference{"holes", fmt.Sprint(len(ha.Holes)), fmt.Sprint(len(hb.Holes))})
	}
	differs("target", a.Target, b.Target)
	differs("device", device(a), device(b))
	differs("mode", fmt.Sprintf("%04o", a.Mode), fmt.Sprintf("%04o", b.Mode))
	differs("owner", fmt.Sprintf("%d:%d", a.UID, a.GID), fmt.Sprintf("%d:%d", b.UID, b.GID))
	differs("mtime", stamp(a.ModTime), stamp(b.ModTime))
	out = append(out, xattrs(a.Xattrs, b.Xattrs)...)
	differs("links", others(d.namesA[a.Path], a.Path), others(d.namesB[b.Path], b.Path))
	return out
}

// holder returns the entry that has the content of e.
func holder(m *manifest.Manifest, e *entry.Entry) *entry.Entry {
	if e.Link != "" {
		if to, ok := m.Lookup(e.Link); ok {
			return to
		}
	}
	return e
}

func device(e *entry.Entry) string {
	if e.Type != entry.CharDevice && e.Type != entry.BlockDevice {
		return ""
	}
	return fmt.Sprintf("%d:%d", e.Major, e.Minor)
}

func stamp(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339Nano) }

// TypeName is how people call a type of entry.
func TypeName(t entry.Type) string {
	names := [...]string{"?", "file", "dir", "symlink", "char", "block", "fifo"}
	if int(t) >= len(names) {
		return names[0]
	}
	return names[t]
}

// xattrs compares sorted lists of attributes. Values are given as they are.
func xattrs(a, b []entry.Xattr) []Difference {
	var out []Difference
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].Name < b[0].Name:
			out = append(out, Difference{"xattr " + a[0].Name, a[0].Value, ""})
			a = a[1:]
		case len(a) == 0 || b[0].Name < a[0].Name:
			out = append(out, Difference{"xattr " + b[0].Name, "", b[0].Value})
			b = b[1:]
		default:
			if a[0].Value != b[0].Value {
				out = append(out, Difference{"xattr " + a[0].Name, a[0].Value, b[0].Value})
			}
			a, b = a[1:], b[1:]
		}
	}
	return out
}

// namesOf maps each name of a file that has several to all of them.
func namesOf(m *manifest.Manifest) map[string][]string {
	out := map[string][]string{}
	for i := range m.Entries {
		if e := &m.Entries[i]; e.Link != "" {
			if out[e.Link] == nil {
				out[e.Link] = []string{e.Link}
			}
			out[e.Link] = append(out[e.Link], e.Path)
		}
	}
	for _, names := range out {
		for _, name := range names {
			out[name] = names
		}
	}
	return out
}

// others are the names of a file besides one, quoted.
func others(names []string, own string) string {
	var out []string
	for _, n := range names {
		if n != own {
			out = append(out, strconv.Quote(n))
		}
	}
	return strings.Join(out, " ")
}

// renames joins what was removed with what was added where the content is the
// same; a file of the same name in another directory comes first.
func (d *differ) renames() []DiffEntry {
	gone := map[digest.ID][]int{}
	for i, e := range d.out {
		if e.Kind == Removed && movable(e.A) {
			id := contentID(e.A)
			gone[id] = append(gone[id], i)
		}
	}
	if len(gone) == 0 {
		return d.out
	}
	taken := map[int]bool{}
	for i := range d.out {
		e := &d.out[i]
		if e.Kind != Added || !movable(e.B) {
			continue
		}
		id := contentID(e.B)
		list := gone[id]
		if len(list) == 0 {
			continue
		}
		k := max(0, slices.IndexFunc(list, func(n int) bool { return path.Base(d.out[n].Path) == path.Base(e.Path) }))
		from := d.out[list[k]]
		taken[list[k]] = true
		gone[id] = slices.Delete(list, k, k+1)
		e.Kind, e.From, e.A = Renamed, from.Path, from.A
		e.What = d.compare(e.A, e.B)
	}
	out := d.out[:0]
	for i, e := range d.out {
		if !taken[i] {
			out = append(out, e)
		}
	}
	return out
}

// movable says whether a file can be known again by its content.
func movable(e *entry.Entry) bool {
	return e.Type == entry.File && e.Link == "" && len(e.Chunks) > 0
}

// contentID stands for the content of a file.
func contentID(e *entry.Entry) digest.ID {
	b := fmt.Appendf(nil, "%d %v ", e.Size, e.Holes)
	for _, c := range e.Chunks {
		b = append(b, c.ID[:]...)
	}
	return digest.Of(b)
}

// DiffStat counts differences.
type DiffStat struct {
	Added, Removed, Changed, Renamed int
	Bytes                            int64       // of content: what the second image has more, or less
	New                              []digest.ID // chunks that the first image has nowhere: what a push moves
	NewBytes                         int64       // of these
}

// Add counts one entry.
func (s *DiffStat) Add(e *DiffEntry) {
	switch e.Kind {
	case Added:
		s.Added++
	case Removed:
		s.Removed++
	case Changed:
		s.Changed++
	case Renamed:
		s.Renamed++
	}
	s.Bytes += ownBytes(e.B) - ownBytes(e.A)
	for _, c := range e.New {
		s.New = append(s.New, c.ID)
		s.NewBytes += int64(c.Size)
	}
}

// ownBytes is the content of an entry, holes left out; that of a file with several names counts at its first.
func ownBytes(e *entry.Entry) int64 {
	var n int64
	if e != nil {
		for _, c := range e.Chunks {
			n += int64(c.Size)
		}
	}
	return n
}

// Top is the directory at the top of the tree in which an entry is; "." for what is in none.
func Top(p string, t entry.Type) string {
	top, _, below := strings.Cut(p, "/")
	if !below && t != entry.Dir {
		return "."
	}
	return top
}
