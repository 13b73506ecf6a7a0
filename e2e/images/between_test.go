//go:build linux && amd64

package images

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ingot/imager/wire"
	"ingot/internal/torture"
)

// pushWith pushes an image to the tree of a site through the agent; between is
// called when all is staged and nothing is switched, with what cuts the wire.
func (s site) pushWith(image string, between func(cut func() error)) error {
	s.t.Helper()
	cmd := exec.Command(built(agent), "receive") // it is to find out by itself that its controller has gone
	in, err := cmd.StdinPipe()
	ok(s.t, err)
	out, err := cmd.StdoutPipe()
	ok(s.t, err)
	ok(s.t, cmd.Start())
	defer cmd.Wait()
	defer in.Close()
	c := wire.New(out, in)
	ok(s.t, c.Greet(agentVersion(s.t)))
	return s.push(c, image, func(p wire.Progress) {
		if p.Task == "switch" && between != nil {
			between(in.Close)
		}
	})
}

// What happens to a node between the stage of a push and its switch: somebody
// takes it back on its console, and the push is refused; or its controller goes,
// and another push comes.
func TestBetweenStageAndSwitch(t *testing.T) {
	need(t)
	src := t.TempDir()
	s := newSite(t)
	ok(t, os.Mkdir(treeOf(s), 0o755))
	tinyTree(t, src)
	var images []string
	for i, image := range []string{"web:1", "web:2", "web:3", "web:4"} {
		ok(t, os.WriteFile(filepath.Join(src, "large"), torture.Noise(uint64(20+i), 200<<10), 0o600))
		images = append(images, s.captured(src, image))
	}
	ok(t, s.pushWith("web:1", nil))
	ok(t, s.pushWith("web:2", nil))
	ok(t, s.is(images[1]))

	err := s.pushWith("web:3", func(func() error) {
		if r := runProgram(t, built(agent), "rollback", "--dir", treeOf(s)); r.code != 0 {
			t.Errorf("rollback while a push is staged: %+v", r)
		}
		ok(t, s.is(images[0]))
	})
	if err == nil || !strings.Contains(err.Error(), "out of date") {
		t.Errorf("a push that was staged before a rollback: %v", err)
	}
	ok(t, s.is(images[0]))

	if err := s.pushWith("web:3", func(cut func() error) { ok(t, cut()) }); err == nil {
		t.Error("a push that was cut off before its switch ended well")
	}
	ok(t, s.is(images[0]))
	ok(t, s.pushWith("web:4", nil))
	ok(t, s.is(images[3]))
	left, err := os.ReadDir(filepath.Join(treeOf(s), ".ingot/stage"))
	if err != nil || len(left) > 0 {
		t.Errorf("%d stages are left, %v", len(left), err)
	}
	for _, want := range []int{0, 3, 0} { // the rollback, its rollback, and again
		if r := runProgram(t, built(agent), "rollback", "--dir", treeOf(s)); r.code != 0 {
			t.Fatalf("rollback: %+v", r)
		}
		ok(t, s.is(images[want]))
	}
}
