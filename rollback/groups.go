package rollback

import "ingot/internal/entry"

// group is a set of names that are to be one inode.
type group struct {
	rows []*row
}

// groups decides for each name whether its entry can stay, changed in
// metadata at most, or is replaced. The names of one inode stand or fall
// together: they stay when the inode has the target's content and is shared
// by exactly the names that the target says.
func (c *comparison) groups() {
	names := map[uint64]int{} // live names of an inode, within what is compared
	for i := range c.rows {
		if w := &c.rows[i]; w.l != nil && w.l.Type.Linkable() && w.alone == "" {
			names[w.l.stat.Ino]++
		}
	}
	byRoot := map[string]*group{}
	for i := range c.rows {
		w := &c.rows[i]
		if w.goal == nil || w.kept || w.l == nil && !w.goal.Type.Linkable() {
			continue
		}
		if !w.goal.Type.Linkable() {
			w.replace = !c.sameBut(w.l, w.goal, true)
			continue
		}
		root := rootOf(w.goal)
		if byRoot[root] == nil {
			byRoot[root] = &group{}
		}
		byRoot[root].rows = append(byRoot[root].rows, w)
	}
	for _, g := range byRoot {
		if !c.stays(g, names) {
			for _, w := range g.rows {
				w.replace = true
			}
		}
	}
}

// rootOf names the group of an entry of a manifest: the path of its first name.
func rootOf(e *entry.Entry) string {
	if e.Link != "" {
		return e.Link
	}
	return e.Path
}

func (c *comparison) stays(g *group, names map[uint64]int) bool {
	first := g.rows[0].l
	if first == nil {
		return false
	}
	for _, w := range g.rows {
		if w.l == nil || !c.sameBut(w.l, w.goal, w.l.sameTarget) || w.l.stat.Ino != first.stat.Ino {
			return false
		}
	}
	if names[first.stat.Ino] != len(g.rows) {
		return false
	}
	// A name outside of what is compared (in /home, say) must not see its
	// inode's metadata change: such a file gets a new inode.
	return entry.SameMeta(&first.Entry, g.rows[0].goal) || first.stat.Nlink == uint64(len(g.rows))
}
