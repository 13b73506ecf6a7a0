package rollback

import (
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// index is a manifest by path and by directory.
type index struct {
	m   *manifest.Manifest
	end []int32 // of each entry: the one behind all that is in it
}

func indexOf(m *manifest.Manifest) *index {
	if m == nil {
		return &index{m: &manifest.Manifest{}}
	}
	x := &index{m: m, end: make([]int32, len(m.Entries))}
	var open []int // directories that the entry is in
	for i := range m.Entries {
		for len(open) > 0 && !within(m.Entries[i].Path, m.Entries[open[len(open)-1]].Path) {
			x.end[open[len(open)-1]] = int32(i)
			open = open[:len(open)-1]
		}
		x.end[i] = int32(i + 1)
		if m.Entries[i].Type == entry.Dir {
			open = append(open, i)
		}
	}
	for _, i := range open {
		x.end[i] = int32(len(m.Entries))
	}
	return x
}

// within reports whether path is in the directory dir, which may be the top.
func within(path, dir string) bool { return dir == "." && path != "." || under(path, dir) }

func under(path, dir string) bool {
	return len(path) > len(dir) && path[len(dir)] == '/' && path[:len(dir)] == dir
}

// at finds the entry with this path; -1 when there is none.
func (x *index) at(path string) int {
	lo, hi := 0, len(x.m.Entries)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		switch p := x.m.Entries[mid].Path; {
		case p == path:
			return mid
		case entry.Before(p, path):
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return -1
}

func (x *index) get(path string) *entry.Entry {
	if i := x.at(path); i >= 0 {
		return &x.m.Entries[i]
	}
	return nil
}

// content returns the entry that holds e's holes and chunks.
func (x *index) content(e *entry.Entry) *entry.Entry {
	if e.Link == "" {
		return e
	}
	if to := x.get(e.Link); to != nil {
		return to
	}
	return e
}

// children goes through what is in one directory, which is entry dir.
func (x *index) children(dir int) *children {
	if dir < 0 {
		return &children{}
	}
	skip := len(x.m.Entries[dir].Path) + 1
	if dir == 0 {
		skip = 0
	}
	return &children{x: x, at: int32(dir + 1), end: x.end[dir], skip: skip}
}

type children struct {
	x       *index
	at, end int32
	skip    int // length of the directory's path and its slash
}

// find returns the entry with this name, -1 when there is none. Names have to
// come in order.
func (c *children) find(name string) int {
	for c.at < c.end {
		i := c.at
		switch has := c.x.m.Entries[i].Path[c.skip:]; {
		case has == name:
			return int(i)
		case has > name:
			return -1
		}
		c.at = c.x.end[i]
	}
	return -1
}

// order compares two paths in tree order.
func order(a, b string) int {
	switch {
	case a == b:
		return 0
	case entry.Before(a, b):
		return -1
	}
	return 1
}

// cursor goes through the entries of a sorted manifest beside another list.
type cursor struct {
	entries []entry.Entry
}

// to returns the entry with this path, or nil, and passes by all before it.
func (c *cursor) to(path string) *entry.Entry {
	for len(c.entries) > 0 {
		switch order(c.entries[0].Path, path) {
		case 0:
			e := &c.entries[0]
			c.entries = c.entries[1:]
			return e
		case 1:
			return nil
		}
		c.entries = c.entries[1:]
	}
	return nil
}
