package manifest

import "ingot/internal/entry"

// Kind says how an entry differs.
type Kind string

// The kinds of change. An entry whose content and metadata differ is Content.
const (
	Added   Kind = "added"
	Removed Kind = "removed"
	Type    Kind = "type"
	Content Kind = "content"
	Meta    Kind = "meta"
)

// Change is one difference between two trees. A is nil for what was added, B
// for what was removed.
type Change struct {
	Path string
	Kind Kind
	A, B *entry.Entry
}

// Diff returns what has to change to make b out of a, in tree order. A hard
// link differs in content when what it links to does, or when it is a link to
// another name. Both have to be valid; the changes point into them.
func Diff(a, b *Manifest) []Change {
	var out []Change
	i, j := 0, 0
	for i < len(a.Entries) || j < len(b.Entries) {
		switch {
		case j == len(b.Entries) || i < len(a.Entries) && entry.Before(a.Entries[i].Path, b.Entries[j].Path):
			out = append(out, Change{Path: a.Entries[i].Path, Kind: Removed, A: &a.Entries[i]})
			i++
		case i == len(a.Entries) || entry.Before(b.Entries[j].Path, a.Entries[i].Path):
			out = append(out, Change{Path: b.Entries[j].Path, Kind: Added, B: &b.Entries[j]})
			j++
		default:
			if k := compare(a, b, &a.Entries[i], &b.Entries[j]); k != "" {
				out = append(out, Change{Path: a.Entries[i].Path, Kind: k, A: &a.Entries[i], B: &b.Entries[j]})
			}
			i, j = i+1, j+1
		}
	}
	return out
}

func compare(ma, mb *Manifest, a, b *entry.Entry) Kind {
	switch {
	case a.Type != b.Type:
		return Type
	case !entry.SameContent(a, b) || a.Link != "" && !entry.SameContent(ma.holder(a), mb.holder(b)):
		return Content
	case !entry.SameMeta(a, b):
		return Meta
	}
	return ""
}

// holder returns the entry that holds the content of e.
func (m *Manifest) holder(e *entry.Entry) *entry.Entry {
	if e.Link == "" {
		return e
	}
	if to, ok := m.Lookup(e.Link); ok {
		return to
	}
	return e
}
