package rollback

import (
	"sort"

	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// group names the names of one file among entries from several trees.
type group struct {
	tree int    // which tree it is from
	root string // its first name there
	ino  inode  // or the inode, in the live tree
	many bool   // this name has, or may have, others
}

// inode names a file of the live tree: numbers are those of one file system.
type inode struct{ dev, ino uint64 }

func inodeOf(st entry.Stat) inode { return inode{st.Dev, st.Ino} }

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
	return group{ino: inodeOf(l.stat), many: true}
}

// builder gathers entries of several trees into one manifest.
type builder struct {
	entries []entry.Entry
	groups  []group
	linked  map[group]bool // with many unset: groups of more than one name
}

func newBuilder(size int) *builder {
	return &builder{entries: make([]entry.Entry, 0, size), groups: make([]group, 0, size), linked: map[group]bool{}}
}

func (b *builder) add(e, content *entry.Entry, g group) {
	b.entries = append(b.entries, *e)
	x := &b.entries[len(b.entries)-1]
	x.Link, x.Holes, x.Chunks = "", nil, nil
	if x.Type == entry.File && content != nil {
		x.Size, x.Holes, x.Chunks = content.Size, content.Holes, content.Chunks
	}
	many := g.many
	if g.many = false; many {
		b.linked[g] = true
	}
	b.groups = append(b.groups, g)
}

// build sorts the entries, makes the first name of each group its head and
// adds directories that what was kept needs; what has no directory to be in is
// left out. The builder is used up.
func (b *builder) build(l *live) *manifest.Manifest {
	b.sort()
	if b.addParents(l) {
		b.sort()
	}
	heads := map[group]int{}
	out := b.entries[:0]
	var dirs []string
	for i := range b.entries {
		e, g := b.entries[i], b.groups[i]
		for len(dirs) > 0 && !within(e.Path, dirs[len(dirs)-1]) {
			dirs = dirs[:len(dirs)-1]
		}
		if e.Path != "." && (len(dirs) == 0 || dirs[len(dirs)-1] != parentOf(e.Path)) {
			continue
		}
		if e.Type == entry.Dir {
			dirs = append(dirs, e.Path)
		}
		if b.linked[g] {
			if h, ok := heads[g]; !ok {
				heads[g] = len(out)
			} else if linkable(&out[h], &e) {
				e.Link, e.Holes, e.Chunks = out[h].Path, nil, nil
			}
		}
		out = append(out, e)
	}
	return &manifest.Manifest{Entries: out}
}

// linkable reports whether two entries can be recorded as names of one inode.
func linkable(a, b *entry.Entry) bool {
	return a.Type == b.Type && a.Size == b.Size && a.Target == b.Target && a.Major == b.Major && a.Minor == b.Minor && entry.SameMeta(a, b)
}

// Len, Less and Swap implement sort.Interface.
func (b *builder) Len() int           { return len(b.entries) }
func (b *builder) Less(i, j int) bool { return entry.Before(b.entries[i].Path, b.entries[j].Path) }
func (b *builder) Swap(i, j int) {
	b.entries[i], b.entries[j] = b.entries[j], b.entries[i]
	b.groups[i], b.groups[j] = b.groups[j], b.groups[i]
}

func (b *builder) sort() {
	if !sort.IsSorted(b) {
		sort.Stable(b)
	}
}

// addParents adds directories of the live tree that entries are in but that
// nothing else brought.
func (b *builder) addParents(l *live) bool {
	var dirs []string
	var missing []*entry.Entry
	for i := range b.entries {
		e := &b.entries[i]
		for len(dirs) > 0 && !within(e.Path, dirs[len(dirs)-1]) {
			dirs = dirs[:len(dirs)-1]
		}
		for up := parentOf(e.Path); up != "" && (len(dirs) == 0 || up != dirs[len(dirs)-1] && !within(dirs[len(dirs)-1], up)); up = parentOf(up) {
			if it := l.get(up); it != nil && it.Type == entry.Dir {
				missing = append(missing, it.Entry)
			}
		}
		if up := parentOf(e.Path); up != "" && (len(dirs) == 0 || dirs[len(dirs)-1] != up) {
			dirs = append(dirs, up)
		}
		if e.Type == entry.Dir {
			dirs = append(dirs, e.Path)
		}
	}
	for _, e := range missing {
		b.add(e, nil, group{})
	}
	return len(missing) > 0
}
