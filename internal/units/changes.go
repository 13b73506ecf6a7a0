package units

import (
	"path"
	"strings"
)

// changed finds changes by path and by inode.
type changed struct {
	list   []Change
	byPath map[string]Change // by canonical path
	byIno  map[inode]Change
	number map[uint64][]Change // by inode number alone
}

type inode struct{ dev, ino uint64 }

func newChanged(list []Change) *changed {
	c := &changed{byPath: map[string]Change{}, byIno: map[inode]Change{}, number: map[uint64][]Change{}}
	for _, x := range list {
		if x.Kind != Added && x.Kind != Replaced && x.Kind != Deleted {
			continue
		}
		c.list = append(c.list, x)
		c.byPath[canonical(x.Path)] = x
		if x.Kind != Added && x.Ino != 0 {
			c.byIno[inode{x.Dev, x.Ino}] = x
			c.number[x.Ino] = append(c.number[x.Ino], x)
		}
	}
	return c
}

// canonical is a path relative to the top, with /bin, /sbin and /lib where systems with a merged /usr have them
// (file-hierarchy(7)): units and maps say either. On a system where they are two directories the two are taken for one.
func canonical(p string) string {
	p = strings.TrimPrefix(path.Clean("/"+p), "/")
	first, _, _ := strings.Cut(p, "/")
	switch first {
	case "bin", "sbin", "lib", "lib32", "lib64", "libx32":
		return "usr/" + p
	}
	return p
}

// at returns the change of a path, absolute or relative to the top.
func (c *changed) at(p string) (Change, bool) {
	x, ok := c.byPath[canonical(p)]
	return x, ok
}

// displaced returns the change that displaces or displaced an inode. On some file systems (btrfs, overlay) the device
// that maps shows is not that of stat(2): there the path has to be that of the change.
func (c *changed) displaced(m mapping) (Change, bool) {
	if x, ok := c.byIno[inode{m.dev, m.ino}]; ok {
		return x, true
	}
	for _, x := range c.number[m.ino] {
		if canonical(m.path) == canonical(x.Path) {
			return x, true
		}
	}
	return Change{}, false
}

// byNumber returns the change that displaced an inode which now is below .ingot, where its path says nothing.
func (c *changed) byNumber(m mapping) (Change, bool) {
	if x, ok := c.byIno[inode{m.dev, m.ino}]; ok {
		return x, true
	}
	if list := c.number[m.ino]; len(list) == 1 {
		return list[0], true
	}
	return Change{}, false
}
