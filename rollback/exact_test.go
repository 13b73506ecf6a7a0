package rollback

import (
	"strings"
	"testing"
)

// A tree that no system runs from is all the target's, but for what is ingot's
// and the file system's; its generations remember that, and lead back.
func TestExact(t *testing.T) {
	top := scratch(t)
	dir := top + "/dir"
	plot(t, dir, map[string]string{"home/joe/x": "1", "var/log/old": "2", "etc/hostname": "mine", "tmp/t": "3", "lost+found/inode": "4", "same": "s"})
	plot(t, top+"/new", map[string]string{"home/ann/y": "a", "var/log/new": "b", "etc/hostname": "theirs", "tmp/u": "c", "same": "s"})
	target := snapshot(t, top+"/new")
	src := chunked(t, top+"/new", target, 3000)
	n := open(t, dir)
	before := snapshot(t, dir)
	g, err := push(n, Target{Manifest: target, Image: "new:1", Exact: true}, src)
	ok(t, err)
	here := func(p string) bool { return !strings.HasPrefix(p, "lost+found") }
	same(t, "after an exact push", only(target, here), only(snapshot(t, dir), here))
	if !g.Exact || read(t, dir+"/lost+found/inode") != "4" {
		t.Errorf("generation %+v", g)
	}
	if found, err := n.generation(1); err != nil || !found.Exact {
		t.Errorf("as found: %+v, %v", found, err)
	}
	_, err = n.Rollback(bg(), 0, Policy{}, "test")
	ok(t, err)
	same(t, "after the rollback", before, snapshot(t, dir))

	_, err = push(n, Target{Manifest: target, Image: "new:1"}, src)
	ok(t, err)
	if read(t, dir+"/etc/hostname") != "mine" || read(t, dir+"/home/joe/x") != "1" {
		t.Error("a push to a node changed what is the node's")
	}
}
