package rollback

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The modules of the kernel that runs stay where the target has none for it,
// in a push and on the way back, and go when another one runs.
func TestModulesOfTheRunningKernel(t *testing.T) {
	const release = "6.1.0-1-amd64"
	const dir = "usr/lib/modules/" + release
	w := tiny(t, func(top string) {
		for _, name := range []string{"kernel/net/a.ko", "kernel/fs/b.ko", "modules.dep"} {
			path := filepath.Join(top, dir, name)
			ok(t, os.MkdirAll(filepath.Dir(path), 0o755))
			write(t, path, name)
		}
		write(t, filepath.Join(top, "prog"), "new prog")
	})
	n := w.node()
	without := Target{Manifest: snapshot(t, w.old)}
	old := chunked(t, w.old, without.Manifest, 4)
	kept := func(what string) {
		t.Helper()
		if got := read(t, w.at(dir+"/kernel/net/a.ko")); got != "kernel/net/a.ko" {
			t.Errorf("%s: the module holds %q", what, got)
		}
		if got := read(t, w.at("prog")); got != "old prog" {
			t.Errorf("%s: prog holds %q", what, got)
		}
		g, err := n.Current()
		ok(t, err)
		m, err := n.Manifest(g.Number)
		ok(t, err)
		if want, got := paths(snapshot(t, w.dir)), paths(m); got != want {
			t.Errorf("%s: the record has %q, there is %q", what, got, want)
		}
	}

	n.Retention = Retention{Keep: 20}
	w.push(n) // 2, with the kernel
	n.Running = release
	p, err := n.Plan(bg(), without)
	ok(t, err)
	said := 0
	for _, note := range p.Notes {
		if strings.Contains(note.String(), "modules of the running kernel") {
			said++
		}
	}
	if said != 1 {
		t.Errorf("the plan says it %d times: %v", said, p.Notes)
	}
	ok(t, errOf(push(n, without, old)))
	kept("push")
	p, err = n.Plan(bg(), without)
	ok(t, err)
	if !p.Empty() {
		t.Errorf("the same push again does %v", p.Steps)
	}
	n.Running = "6.1.0-2-amd64" // the machine was booted
	ok(t, errOf(push(n, without, old)))
	w.isOld("push with another kernel")
	w.back(n, 3)
	kept("back to what had them")
	w.back(n, 2)
	w.isNew("back to the kernel")
	n.Running = release
	w.back(n, 4)
	kept("back to what has them not")
	n.Running = ""
	w.back(n, 1)
	w.isOld("no kernel runs from this tree")

	// What the node changed in there is a local change like any other.
	w.back(n, 2)
	n.Running = release
	write(t, w.at(dir+"/kernel/net/a.ko"), "built here")
	_, err = push(n, without, old)
	isErr(t, err, ErrConflict, "a.ko")
}
