package manifest

import (
	"path"
	"slices"
	"sort"
	"strings"

	"ingot/internal/entry"
)

// With returns m with the entries of over put on top: they are added, or
// replace what has their path. What replaces a directory by something else
// takes away all that is in it. over need not be valid: it may leave out
// parents, and ".". Such a parent is the directory that m has; where m has a
// symbolic link to a directory (/lib on a merged /usr), the entry goes where
// the link leads, as a write on the live tree would; where there is nothing,
// it is made root:root 0755 with time 0. Neither m nor over is changed.
func (m *Manifest) With(over *Manifest) *Manifest {
	put := m.rewritten(over)
	base := m.without(put)
	groups := groupsOf(put)
	have := map[string]bool{}
	for i := range put {
		have[put[i].Path] = true
	}
	for p, g := range groupsOf(base) {
		if !have[p] {
			groups[p] = "\x00" + g // kept apart from over's groups: no path has a NUL
		}
	}
	for i := range base {
		// The name that held the content may be gone: give it to all, and let
		// relink take away what is too much.
		if e := &base[i]; e.Link != "" {
			from := m.holder(e)
			e.Link, e.Holes, e.Chunks = "", from.Holes, from.Chunks
		}
	}
	out := &Manifest{Entries: append(base, put...)}
	out.Entries = append(out.Entries, missingParents(out.Entries)...)
	sort.SliceStable(out.Entries, func(i, j int) bool {
		return entry.Before(out.Entries[i].Path, out.Entries[j].Path)
	})
	relink(out.Entries, groups)
	return out
}

// rewritten returns over's entries with their paths led through m's symbolic
// links; of entries that end up with one path the last wins.
func (m *Manifest) rewritten(over *Manifest) []entry.Entry {
	own := map[string]bool{}
	for i := range over.Entries {
		own[over.Entries[i].Path] = true
	}
	at := map[string]int{}
	var put []entry.Entry
	for _, e := range over.Entries {
		e.Path = m.through(e.Path, own)
		if e.Link != "" {
			e.Link = m.through(e.Link, own)
		}
		if i, ok := at[e.Path]; ok {
			put[i] = e
			continue
		}
		at[e.Path] = len(put)
		put = append(put, e)
	}
	return put
}

// through follows the symbolic links of m in the parents of p that over does
// not have itself. A loop is left alone after as many links as Linux follows.
func (m *Manifest) through(p string, own map[string]bool) string {
	for range 40 {
		next := m.followOne(p, own)
		if next == p {
			return p
		}
		p = next
	}
	return p
}

func (m *Manifest) followOne(p string, own map[string]bool) string {
	for i := 0; i < len(p); i++ {
		if p[i] != '/' {
			continue
		}
		dir := p[:i]
		e, ok := m.Lookup(dir)
		if own[dir] || !ok || e.Type != entry.Symlink {
			continue
		}
		target := e.Target
		if !strings.HasPrefix(target, "/") {
			target = "/" + path.Dir(dir) + "/" + target
		}
		// Clean of a rooted path cannot climb above the top.
		return strings.TrimPrefix(path.Clean(target+p[i:]), "/")
	}
	return p
}

// without returns m's entries that put neither replaces nor buries.
func (m *Manifest) without(put []entry.Entry) []entry.Entry {
	gone, files := map[string]bool{}, map[string]bool{}
	for i := range put {
		gone[put[i].Path] = true
		if put[i].Type != entry.Dir {
			files[put[i].Path] = true
		}
		for p := parentOf(put[i].Path); p != "."; p = parentOf(p) {
			if e, ok := m.Lookup(p); ok && e.Type != entry.Dir {
				gone[p] = true // in the way of a directory
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(m.Entries), func(e entry.Entry) bool {
		if gone[e.Path] {
			return true
		}
		for p := parentOf(e.Path); p != "."; p = parentOf(p) {
			if files[p] {
				return true
			}
		}
		return false
	})
}

func missingParents(entries []entry.Entry) []entry.Entry {
	have := map[string]bool{}
	for i := range entries {
		have[entries[i].Path] = true
	}
	var made []entry.Entry
	for i := range entries {
		for p := entries[i].Path; p != "." && !have[parentOf(p)]; {
			p = parentOf(p)
			have[p] = true
			made = append(made, entry.Entry{Path: p, Type: entry.Dir, Mode: 0755})
		}
	}
	return made
}

func parentOf(p string) string {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return "."
}
