package rollback

import (
	"slices"

	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// group names the names of one file among entries from several trees.
type group struct {
	tree int    // which tree it is from
	root string // its first name there
	ino  uint64 // or the inode, in the live tree
	many bool   // this name has, or may have, others
}

// groupIn names the group of an entry of a manifest; numbers tell manifests apart.
func groupIn(tree int, e *entry.Entry) group {
	if !e.Type.Linkable() {
		return group{}
	}
	return group{tree: tree, root: rootOf(e), many: e.Link != ""}
}

func liveGroup(l *item) group {
	if !l.Type.Linkable() || l.stat.Nlink < 2 {
		return group{}
	}
	return group{ino: l.stat.Ino, many: true}
}

// builder gathers entries of several trees into one manifest.
type builder struct {
	built  []built
	linked map[group]bool // with many unset: groups of more than one name
}

type built struct {
	entry.Entry
	group group
}

func newBuilder(size int) *builder {
	return &builder{built: make([]built, 0, size), linked: map[group]bool{}}
}

func (b *builder) add(e, content *entry.Entry, g group) {
	x := built{Entry: *e, group: g}
	x.Link, x.Holes, x.Chunks = "", nil, nil
	if x.Type == entry.File && content != nil {
		x.Size, x.Holes, x.Chunks = content.Size, content.Holes, content.Chunks
	}
	if x.group.many = false; g.many {
		b.linked[x.group] = true
	}
	b.built = append(b.built, x)
}

// build sorts the entries, makes the first name of each group its head and
// adds directories that what was kept needs; what has no directory to be in is
// left out.
func (b *builder) build(l *live) *manifest.Manifest {
	b.sort()
	if b.addParents(l) {
		b.sort()
	}
	heads := map[group]*entry.Entry{}
	m := &manifest.Manifest{Entries: make([]entry.Entry, 0, len(b.built))}
	var dirs []string
	for i := range b.built {
		e, g := &b.built[i].Entry, b.built[i].group
		for len(dirs) > 0 && !within(e.Path, dirs[len(dirs)-1]) {
			dirs = dirs[:len(dirs)-1]
		}
		if e.Path != "." && (len(dirs) == 0 || dirs[len(dirs)-1] != parentOf(e.Path)) {
			continue
		}
		m.Entries = append(m.Entries, *e)
		e = &m.Entries[len(m.Entries)-1]
		switch {
		case e.Type == entry.Dir:
			dirs = append(dirs, e.Path)
		case !b.linked[g]:
		case heads[g] == nil:
			heads[g] = e
		case linkable(heads[g], e):
			e.Link, e.Holes, e.Chunks = heads[g].Path, nil, nil
		}
	}
	return m
}

// linkable reports whether two entries can be recorded as names of one inode.
func linkable(a, b *entry.Entry) bool {
	return a.Type == b.Type && a.Size == b.Size && a.Target == b.Target && a.Major == b.Major && a.Minor == b.Minor && entry.SameMeta(a, b)
}

func (b *builder) sort() {
	in := func(x, y built) int { return order(x.Path, y.Path) }
	if !slices.IsSortedFunc(b.built, in) {
		slices.SortStableFunc(b.built, in)
	}
}

// addParents adds directories of the live tree that entries are in but that
// nothing else brought.
func (b *builder) addParents(l *live) bool {
	var dirs []string
	var missing []entry.Entry
	for i := range b.built {
		e := &b.built[i].Entry
		for len(dirs) > 0 && !within(e.Path, dirs[len(dirs)-1]) {
			dirs = dirs[:len(dirs)-1]
		}
		for up := parentOf(e.Path); up != "" && (len(dirs) == 0 || up != dirs[len(dirs)-1] && !within(dirs[len(dirs)-1], up)); up = parentOf(up) {
			if it := l.get(up); it != nil && it.Type == entry.Dir {
				missing = append(missing, *it.Entry)
			}
		}
		if up := parentOf(e.Path); up != "" && (len(dirs) == 0 || dirs[len(dirs)-1] != up) {
			dirs = append(dirs, up)
		}
		if e.Type == entry.Dir {
			dirs = append(dirs, e.Path)
		}
	}
	for i := range missing {
		m := built{Entry: missing[i]}
		m.Link, m.Holes, m.Chunks = "", nil, nil
		b.built = append(b.built, m)
	}
	return len(missing) > 0
}
