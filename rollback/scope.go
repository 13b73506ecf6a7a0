package rollback

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
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
	for path, b := range base.at {
		t := target.get(path)
		if t == nil || !sameEntry(base, b, target, t) {
			sc.add(path, groups)
		}
		if b.Type == entry.Dir && (t == nil || t.Type != entry.Dir) {
			sc.deep[path] = true
		}
	}
	for path := range target.at {
		if base.get(path) == nil {
			sc.add(path, groups)
		}
	}
	return sc
}

// groupPaths lists, for each name of a hard-link group, all names of it.
func groupPaths(xs ...*index) map[string][]string {
	out := map[string][]string{}
	for _, x := range xs {
		members := map[string][]string{}
		for path, e := range x.at {
			if e.Link != "" {
				members[e.Link] = append(members[e.Link], path)
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

// scoped reads what the scope names.
func (s *scanner) scoped(ctx context.Context, sc *scope) error {
	top, err := s.read(s.n.top, ".", ".")
	if err != nil {
		return err
	}
	s.items = append(s.items, top)
	for path := range sc.paths {
		if err := ctx.Err(); err != nil {
			return err
		}
		if path == "." || sc.within(path) {
			continue
		}
		if err := s.one(ctx, path, sc.deep[path]); err != nil {
			return err
		}
	}
	for i := range s.items {
		if it := &s.items[i]; it.Type == entry.Dir && !sc.deep[it.Path] && !sc.within(it.Path) {
			it.anchored = true // not listed: it may hold anything
		}
	}
	return nil
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

func (s *scanner) one(ctx context.Context, path string, deep bool) error {
	dir, name, err := s.n.parent(path)
	if notThere(err) || err == unix.ELOOP || err == unix.EXDEV {
		return nil // a parent is gone or no directory: the path does not exist
	}
	if err != nil {
		return fmt.Errorf("open the directory of %q: %w", path, err)
	}
	defer unix.Close(dir)
	it, err := s.read(dir, name, path)
	if notThere(err) {
		return nil
	}
	if err != nil {
		return err
	}
	s.items = append(s.items, it)
	if !deep || it.Type != entry.Dir || it.alone == Mount {
		return nil
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %q: %w", path, err)
	}
	return s.dir(ctx, fd, len(s.items)-1)
}
