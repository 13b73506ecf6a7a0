package rollback

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// RunningKernel returns the release of the kernel that runs, as uname(2) says it.
func RunningKernel() string {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Release[:])
}

// modules returns the directories of the modules of the running kernel that the
// target does not have. They stay: until the machine boots, that kernel loads
// what it needs from there, and from nowhere else.
func (n *Node) modules(target *index) []string {
	if n.Running == "" || n.Running == "." || n.Running == ".." || strings.Contains(n.Running, "/") {
		return nil
	}
	return slices.DeleteFunc([]string{"lib/modules/" + n.Running, "usr/lib/modules/" + n.Running}, func(dir string) bool { return target.get(dir) != nil })
}

// runs reports whether a path is one of the modules of the running kernel, or
// the directory of all of them.
func (r *rules) runs(path string) bool {
	return slices.ContainsFunc(r.modules, func(dir string) bool { return path == dir || under(path, dir) })
}

// keepModule keeps one of these, and says so once.
func (c *comparison) keepModule(w *row) {
	w.keep()
	w.done, w.doneNow = w.goal, true
	if slices.Contains(c.rules.modules, w.path) {
		c.note(w.path, "modules of the running kernel: they stay until another one runs, and go with the next push")
	}
}
