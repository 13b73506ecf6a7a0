// Package manifest lists what is in a tree, entry by entry, in a form that is
// the same bytes for the same tree everywhere: its digest is the identity of
// an image. The format is described in docs/FORMAT.md.
package manifest

import (
	"crypto/sha256"
	"slices"
	"sort"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

// Manifest is a tree: its entries in tree order (entry.Before), the first of
// which is ".". It is not safe for use while it is changed.
type Manifest struct {
	Entries []entry.Entry
}

// ID returns the digest of m.Encode().
func (m *Manifest) ID() digest.ID {
	h := sha256.New()
	m.pieces(func(p []byte) bool { h.Write(p); return true })
	return digest.ID(h.Sum(nil))
}

// Sort puts the entries in tree order. Of each group of hard links the first
// name then holds the content and the others link to it.
func (m *Manifest) Sort() {
	groups := groupsOf(m.Entries)
	sort.SliceStable(m.Entries, func(i, j int) bool {
		return entry.Before(m.Entries[i].Path, m.Entries[j].Path)
	})
	relink(m.Entries, groups)
}

// Lookup finds the entry with exactly this path. m must be sorted.
func (m *Manifest) Lookup(path string) (*entry.Entry, bool) {
	i, ok := m.find(path)
	if !ok {
		return nil, false
	}
	return &m.Entries[i], true
}

func (m *Manifest) find(path string) (int, bool) {
	return slices.BinarySearchFunc(m.Entries, path, func(e entry.Entry, p string) int {
		switch {
		case e.Path == p:
			return 0
		case entry.Before(e.Path, p):
			return -1
		}
		return 1
	})
}

// TotalSize returns the bytes of content that the tree shows, holes left out,
// a group of hard links counted once.
func (m *Manifest) TotalSize() int64 {
	var n int64
	for i := range m.Entries {
		for _, c := range m.Entries[i].Chunks {
			n += int64(c.Size)
		}
	}
	return n
}

// groupsOf maps the path of every name that is one of several hard links to
// the path that stands for its group.
func groupsOf(entries []entry.Entry) map[string]string {
	groups := map[string]string{}
	for i := range entries {
		if e := &entries[i]; e.Link != "" {
			groups[e.Path], groups[e.Link] = e.Link, e.Link
		}
	}
	return groups
}

// relink makes the first name of each group of sorted entries the one that
// holds the content, which has to be in some entry of the group.
func relink(entries []entry.Entry, groups map[string]string) {
	if len(groups) == 0 {
		return
	}
	content, first := map[string]entry.Entry{}, map[string]string{}
	for i := range entries {
		if g := groups[entries[i].Path]; g != "" && entries[i].Link == "" {
			content[g] = entries[i]
		}
	}
	for i := range entries {
		e := &entries[i]
		g := groups[e.Path]
		if g == "" {
			continue
		}
		if to, ok := first[g]; ok {
			e.Link, e.Holes, e.Chunks = to, nil, nil
			continue
		}
		first[g] = e.Path
		if from, ok := content[g]; ok {
			e.Link, e.Holes, e.Chunks = "", from.Holes, from.Chunks
		}
	}
}
