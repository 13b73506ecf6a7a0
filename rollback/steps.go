package rollback

import (
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// steps turns the rows into steps in the order of a switch: deletions from
// the leaves up, exchanges and additions from the top down, metadata, and
// directory times last, because every name that comes or goes changes them.
func (c *comparison) steps() {
	var out []Step
	for i := len(c.rows) - 1; i >= 0; i-- {
		if w := &c.rows[i]; w.l != nil && w.goal == nil && !w.kept {
			out = append(out, c.step(Delete, w))
		}
	}
	for i := range c.rows {
		w := &c.rows[i]
		switch {
		case w.goal == nil || w.kept:
		case w.l == nil:
			out = append(out, c.step(Add, w))
		case w.replace:
			out = append(out, c.step(Replace, w))
		}
	}
	out = append(out, c.metaSteps()...)
	real := len(out)
	out = append(out, c.timeSteps(&real)...)
	if real == 0 {
		return // only times of directories that the node's own files keep changing
	}
	first := map[string]int{}
	for i := range out {
		s := &out[i]
		s.slot, s.link = i, i
		if s.New == nil || !s.New.Type.Linkable() || s.Kind > Add {
			continue
		}
		if at, ok := first[rootOf(s.New)]; ok {
			s.link = at
		} else {
			first[rootOf(s.New)] = i
		}
	}
	c.plan.Steps = out
}

// step makes a step and marks what it touches.
func (c *comparison) step(k Kind, w *row) Step {
	s := Step{Kind: k, Path: w.path, New: w.goal}
	if w.l != nil {
		s.Old, s.stat = w.l.Entry, w.l.stat
		s.oldKey = c.keyOf(w.l)
		if w.l.immutable {
			c.blocked(w.path, "is immutable or append-only (chattr +i, +a)")
		}
	}
	if w.goal != nil && w.goal.Type == entry.File {
		s.content = c.target.content(w.goal)
	}
	if k > Add {
		return s
	}
	up := c.parent(w)
	if up == nil || up.touched {
		return s
	}
	up.touched = true
	if up.l != nil && up.l.immutable {
		c.blocked(up.path, "is an immutable or append-only directory (chattr +i, +a)")
	}
	return s
}

// keyOf names what a live file holds, as far as manifests or the scan know.
func (c *comparison) keyOf(l *item) digest.ID {
	if e := c.contentOf(l); e != nil {
		return contentKey(e)
	}
	return digest.ID{}
}

// contentOf returns an entry with the holes and chunks of a live file.
func (c *comparison) contentOf(l *item) *entry.Entry {
	switch {
	case l.Type != entry.File:
		return nil
	case l.sameBase:
		return c.base.content(l.base)
	case l.sameTarget:
		return c.target.content(l.target)
	case l.described:
		return l.Entry
	}
	return nil
}

func (c *comparison) metaSteps() []Step {
	var out []Step
	done := map[inode]bool{}
	for i := range c.rows {
		w := &c.rows[i]
		if w.goal == nil || w.kept || w.l == nil || w.replace {
			continue
		}
		if w.goal.Type == entry.Dir {
			if !sameButTime(w.l.Entry, w.goal) {
				out = append(out, c.step(Meta, w))
			}
			continue
		}
		if entry.SameMeta(w.l.Entry, w.goal) || done[inodeOf(w.l.stat)] {
			continue
		}
		if w.l.Type.Linkable() {
			done[inodeOf(w.l.stat)] = true // one step for all names of the inode
		}
		out = append(out, c.step(Meta, w))
	}
	return out
}

// timeSteps sets the times of directories: those in which names come and go,
// those that are exchanged for something else, to which xfs gives the time of
// now (xfs_cross_rename), and those that differ anyway. The latter do not count
// as a change where the directory holds something of the node's own, which
// keeps changing them.
func (c *comparison) timeSteps(real *int) []Step {
	var out []Step
	for i := range c.rows {
		w := &c.rows[i]
		if w.goal == nil || w.goal.Type != entry.Dir {
			continue
		}
		if !w.touched && !w.replace && (w.kept || w.l == nil || w.l.ModTime == w.goal.ModTime) {
			continue
		}
		if !w.touched && !w.replace && !w.l.anchored {
			*real++
		}
		s := Step{Kind: Times, Path: w.path, New: w.goal, keep: w.kept}
		if w.l != nil && w.l.Type == entry.Dir {
			s.Old, s.stat = w.l.Entry, w.l.stat
		}
		out = append(out, s)
	}
	return out
}

// record builds the manifest that the new generation was given, and the one
// that the old generation is left with.
func (c *comparison) record() {
	for i := range c.rows {
		if w := &c.rows[i]; w.alone == "" && !c.rules.derived[w.path] && !c.rules.carried.Match(w.path) && !c.rules.never.Match(w.path) && c.changed(w) {
			c.plan.Generation.Before = append(c.plan.Generation.Before, Path(w.path))
		}
	}
	if c.rules.part == nil && c.every(c.target, func(w *row) bool {
		if w.done != nil && w.doneNow {
			return c.now(w.l) == w.t
		}
		return w.done == w.t
	}) {
		c.plan.done = c.target.m
	} else {
		c.plan.done = c.recordDone()
	}
	if c.every(c.base, func(w *row) bool {
		switch {
		case w.alone != "" && !c.hidden(w):
			return true
		case w.l != nil:
			return c.now(w.l) == w.b || c.asRecorded(w)
		}
		return w.b == nil
	}) && c.linkedAsRecorded() {
		c.plan.left = c.base.m
	} else {
		c.plan.left = c.recordLeft()
	}
}

// every reports whether the rows' records all are the very entries that a
// manifest has there, nothing where it has nothing: mostly they are, and then
// it is the record, together with what was not compared.
func (c *comparison) every(x *index, same func(*row) bool) bool {
	for i := range c.rows {
		if !same(&c.rows[i]) {
			return false
		}
	}
	return len(x.m.Entries) > 0
}

// now is what is there: the very entry of the as-done manifest where nothing changed.
func (c *comparison) now(l *item) *entry.Entry {
	if l.Type == entry.File && !l.sameBase {
		return &entry.Entry{} // its content is not the entry's own
	}
	return l.Entry
}

// asRecorded reports whether what is there is all that the record says, but for
// links, although its inode is not in the state that was known.
func (c *comparison) asRecorded(w *row) bool {
	return w.b != nil && c.sameBut(w.l, w.b, w.l.sameBase) && entry.SameMeta(w.l.Entry, w.b)
}

// linkedAsRecorded reports whether the same names are those of one inode in the
// record and in the tree, among what is compared.
func (c *comparison) linkedAsRecorded() bool {
	roots, inodes, heads := map[inode]string{}, map[string]inode{}, map[string]bool{}
	for i := range c.rows {
		w := &c.rows[i]
		if w.l == nil || w.b == nil || w.alone != "" || !w.l.Type.Linkable() || w.b.Link == "" && w.l.stat.Nlink <= 1 {
			continue
		}
		root, ino := rootOf(w.b), inodeOf(w.l.stat)
		if had, ok := roots[ino]; ok && had != root {
			return false
		}
		if had, ok := inodes[root]; ok && had != ino {
			return false
		}
		roots[ino], inodes[root] = root, ino
		heads[w.path] = true
	}
	for root := range inodes {
		if !heads[root] {
			return false
		}
	}
	return true
}

func (c *comparison) recordDone() *manifest.Manifest {
	x := c.target
	if c.rules.part != nil {
		x = c.base
	}
	return c.recordOf(x, func(b *builder, w *row) {
		switch {
		case w.done == nil:
		case w.doneNow:
			b.add(w.done, c.contentOf(w.l), liveGroup(w.l))
		default:
			b.add(w.done, c.target.content(w.done), groupIn(1, w.done))
		}
	})
}

// hidden reports whether a mount that takes no part lies over what the record
// has at a path, and the target does not speak of it: it is the record's no more.
func (c *comparison) hidden(w *row) bool {
	return w.alone == Mount && w.l == nil && w.t == nil && c.rules.left(w.path) != Mount
}

func (c *comparison) recordLeft() *manifest.Manifest {
	return c.recordOf(c.base, func(b *builder, w *row) {
		switch {
		case w.alone != "" && w.b != nil && !c.hidden(w):
			b.add(w.b, c.base.content(w.b), groupIn(1, w.b))
		case w.alone == "" && w.l != nil:
			b.add(w.l.Entry, c.contentOf(w.l), liveGroup(w.l))
		}
	})
}

// recordOf gathers what add adds of each row, and of what was not compared
// what x has, in tree order.
func (c *comparison) recordOf(x *index, add func(*builder, *row)) *manifest.Manifest {
	rows, b := c.rows, newBuilder(len(c.rows))
	if c.rules.only != nil {
		b = newBuilder(len(c.rows) + len(x.m.Entries))
		for i := range x.m.Entries {
			e := &x.m.Entries[i]
			for len(rows) > 0 && entry.Before(rows[0].path, e.Path) {
				add(b, &rows[0])
				rows = rows[1:]
			}
			if len(rows) == 0 || rows[0].path != e.Path {
				b.add(e, x.content(e), groupIn(2, e))
			}
		}
	}
	for i := range rows {
		add(b, &rows[i])
	}
	return b.build(c.live)
}
