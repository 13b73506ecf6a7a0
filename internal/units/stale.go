package units

import (
	"path"
	"slices"
	"strings"

	"ingot/internal/pattern"
)

// judge says which files are no longer in the tree, or will not be.
type judge struct {
	changed *changed
	top     string       // of the tree, with a slash at its end
	home    string       // "/.ingot/": where a switch puts what it displaces
	ignore  pattern.List // deleted files that no image has
}

func newJudge(c *changed, top string, ignore pattern.List) *judge {
	top = strings.TrimSuffix(path.Clean("/"+top), "/") + "/"
	return &judge{changed: c, top: top, home: top + ".ingot/", ignore: ignore}
}

// stale returns the name for people of a file that is not in the tree. A file that was displaced is not deleted: it lives
// below .ingot until its generation is retired, and the kernel says so.
func (j *judge) stale(m mapping) (file string, ok bool) {
	if j.kept(m.path) {
		if x, ok := j.changed.byNumber(m); ok {
			return "/" + x.Path, true
		}
		return m.path, true
	}
	if x, ok := j.changed.displaced(m); ok {
		return "/" + x.Path, true
	}
	if m.deleted && m.exec && !j.nobodys(m.path) {
		return m.path, true
	}
	return "", false
}

// kept says whether a path is one of displaced files. Others of .ingot are its own, such as the agent.
func (j *judge) kept(p string) bool {
	rest, ok := strings.CutPrefix(p, j.home)
	return ok && (strings.HasPrefix(rest, "generations/") || strings.HasPrefix(rest, "stage/"))
}

// nobodys says whether a deleted file is of those that no image has: memory that has the form of a file
// (memfd_create(2), shmget(2), io_setup(2)), what is ignored or outside of the tree.
func (j *judge) nobodys(p string) bool {
	for _, prefix := range []string{"/memfd:", "/SYSV", "/[", "/anon_hugepage", "/dmabuf", j.home} {
		if strings.HasPrefix(p, prefix) {
			return true
		}
	}
	rest, below := strings.CutPrefix(p, j.top)
	return !below || j.ignore.Match(rest)
}

// uses adds a file that a process uses.
func (p *Process) uses(file string, program bool) {
	switch {
	case program:
		p.Runs = file
	case file == p.Runs || slices.Contains(p.Maps, file):
	case len(p.Maps) < maxMaps:
		p.Maps = append(p.Maps, file)
	default:
		p.More++
	}
}

func (p *Process) stale() bool { return p.Runs != "" || len(p.Maps) > 0 }
