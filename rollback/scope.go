package rollback

import (
	"maps"
	"slices"

	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// scope is what a rollback looks at: the paths that differ between the two
// generations, with their hard links and the directories above. Its cost is
// that of the change, not that of the tree.
type scope struct {
	paths map[string]bool
	deep  map[string]bool // directories to be read with all that is in them
}

// scopeOf compares two manifests.
func scopeOf(base, target *index) *scope {
	sc := &scope{paths: map[string]bool{".": true}, deep: map[string]bool{}}
	groups := groupPaths(base, target)
	pairs(base.m, target.m, func(b, t *entry.Entry) {
		switch {
		case b == nil:
			sc.add(t.Path, groups)
		case t == nil || !sameEntry(base, b, target, t):
			sc.add(b.Path, groups)
		}
		if b != nil && b.Type == entry.Dir && (t == nil || t.Type != entry.Dir) {
			sc.deep[b.Path] = true
		}
	})
	return sc
}

// pairs goes through two sorted manifests at once; nil stands for what one lacks.
func pairs(a, b *manifest.Manifest, fn func(a, b *entry.Entry)) {
	i, j := 0, 0
	for i < len(a.Entries) || j < len(b.Entries) {
		switch {
		case j == len(b.Entries) || i < len(a.Entries) && entry.Before(a.Entries[i].Path, b.Entries[j].Path):
			fn(&a.Entries[i], nil)
			i++
		case i == len(a.Entries) || a.Entries[i].Path != b.Entries[j].Path:
			fn(nil, &b.Entries[j])
			j++
		default:
			fn(&a.Entries[i], &b.Entries[j])
			i, j = i+1, j+1
		}
	}
}

// groupPaths lists, for each name of a hard-link group, all names of it.
func groupPaths(xs ...*index) map[string][]string {
	out := map[string][]string{}
	for _, x := range xs {
		members := map[string][]string{}
		for i := range x.m.Entries {
			if e := &x.m.Entries[i]; e.Link != "" {
				members[e.Link] = append(members[e.Link], e.Path)
			}
		}
		for root, names := range members {
			names = append(names, root)
			for _, name := range names {
				out[name] = append(out[name], names...)
			}
		}
	}
	return out
}

// sameEntry compares entries of two manifests, hard links by their group's first name.
func sameEntry(ax *index, a *entry.Entry, bx *index, b *entry.Entry) bool {
	if a.Type != b.Type || a.Link != b.Link || !entry.SameMeta(a, b) {
		return false
	}
	if a.Type == entry.File {
		same, known := sameBytes(ax.content(a), bx.content(b))
		return same && known
	}
	return a.Target == b.Target && a.Major == b.Major && a.Minor == b.Minor
}

// add takes in path, the names it is linked with, and the directories above.
func (sc *scope) add(path string, groups map[string][]string) {
	if sc.paths[path] && len(groups[path]) == 0 {
		return
	}
	todo := []string{path}
	seen := map[string]bool{}
	for len(todo) > 0 {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[p] {
			continue
		}
		seen[p] = true
		todo = append(todo, groups[p]...)
		for up := p; up != "" && !(sc.paths[up] && up != p); up = parentOf(up) {
			sc.paths[up] = true
		}
	}
}

// sorted lists the paths in tree order.
func (sc *scope) sorted() []string {
	return slices.SortedFunc(maps.Keys(sc.paths), order)
}

// within reports whether a directory above path is read deeply.
func (sc *scope) within(path string) bool {
	for up := parentOf(path); up != ""; up = parentOf(up) {
		if sc.deep[up] {
			return true
		}
	}
	return false
}
