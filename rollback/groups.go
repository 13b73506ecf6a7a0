package rollback

import "ingot/internal/entry"

// groups decides for each name whether its entry can stay, changed in
// metadata at most, or is replaced. The names of one inode stand or fall
// together: they stay when the inode has the target's content and is shared
// by exactly the names that the target says.
func (c *comparison) groups() {
	names := map[inode]int{} // live names of an inode, within what is compared
	heads := map[string]bool{}
	for i := range c.rows {
		w := &c.rows[i]
		if w.l != nil && w.l.Type.Linkable() && w.alone == "" && w.l.stat.Nlink > 1 {
			names[inodeOf(w.l.stat)]++
		}
		if w.goal != nil && w.goal.Link != "" {
			heads[w.goal.Link] = true
		}
	}
	byRoot := map[string][]*row{}
	var one [1]*row
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
		if !heads[root] {
			one[0] = w
			w.replace = !c.stays(one[:], names)
			continue
		}
		byRoot[root] = append(byRoot[root], w)
	}
	for _, rows := range byRoot {
		if !c.stays(rows, names) {
			for _, w := range rows {
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

func (c *comparison) stays(rows []*row, names map[inode]int) bool {
	first := rows[0].l
	if first == nil {
		return false
	}
	for _, w := range rows {
		if w.l == nil || !c.sameBut(w.l, w.goal, w.l.sameTarget) || inodeOf(w.l.stat) != inodeOf(first.stat) {
			return false
		}
	}
	if first.stat.Nlink > 1 && names[inodeOf(first.stat)] != len(rows) || first.stat.Nlink <= 1 && len(rows) > 1 {
		return false
	}
	// A name outside of what is compared (in /home, say) must not see its
	// inode's metadata change: such a file gets a new inode.
	return entry.SameMeta(first.Entry, rows[0].goal) || first.stat.Nlink == uint64(len(rows))
}
