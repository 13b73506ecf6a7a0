package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ingot/internal/pattern"
)

func captureCases() map[string]func(*testing.T, *base) {
	return map[string]func(*testing.T, *base){
		"capture over SSH":              testCapture,
		"a file changes during capture": testCaptureChanging,
		"capture is cut":                testCaptureCut,
		"the image is gone":             testImageGone,
	}
}

type captured struct {
	Digest  string
	Entries int
}

func (r *rig) capture(from, name string, extra ...string) captured {
	r.t.Helper()
	var c captured
	res := r.must(append([]string{"image", "capture", from, name, "--json"}, extra...)...)
	ok(r.t, json.Unmarshal([]byte(res.out), &c))
	return c
}

func testCapture(t *testing.T, b *base) {
	r := b.rig(t, "")
	first := r.capture("root@"+r.name+":/", "cap-"+r.name+":1")
	sentFirst := r.node.proxy.down.Load()
	r.isFound()

	var exclude []string
	_, sealed, _ := strings.Cut(r.must("image", "capture", "root@"+r.name+":/", "cap-"+r.name+":0").err, "the node's own: ")
	sealed, _, _ = strings.Cut(sealed, "\n")
	for _, p := range append(pattern.Volatile().Strings(), strings.Fields(sealed)...) {
		exclude = append(exclude, "--exclude", p)
	}
	local := r.capture(fmt.Sprintf("/proc/%d/root/", r.node.pid()), "local-"+r.name+":1", exclude...)
	if first != local {
		show := func(name string) string { return r.must("image", "show", name, "--files").out }
		put(t, b.dir, "a", show("cap-"+r.name+":1"))
		put(t, b.dir, "b", show("local-"+r.name+":1"))
		out, _ := exec.Command("diff", filepath.Join(b.dir, "a"), filepath.Join(b.dir, "b")).CombinedOutput()
		t.Logf("%s", out)
	}
	if first != local || first.Entries < 300 {
		t.Errorf("captured over SSH: %+v, here: %+v", first, local)
	}
	r.node.proxy.reset()
	second := r.capture("root@"+r.name+":/", "cap-"+r.name+":2")
	down := r.node.proxy.down.Load()
	t.Logf("first capture: %d bytes from the node; second: %d", sentFirst, down)
	if second != first || down > 100_000 {
		t.Errorf("the second capture is %+v and took %d bytes", second, down)
	}
	r.must("image", "verify", "cap-"+r.name+":1")

	// What was captured can be pushed back: a round trip changes nothing but the overlay.
	r.must("push", "cap-"+r.name+":1", r.name)
	r.node.idle()
	same(t, "after the round trip", b.found, r.node.root, nodeOwned()...)
	if out := r.must("image", "show", "cap-"+r.name+":1", "--files").out; strings.Contains(out, ".ingot") || strings.Contains(out, "syslog") {
		t.Error("the capture holds what is never captured")
	}
}

func testCaptureChanging(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	ok(t, os.WriteFile(filepath.Join(r.node.root, "srv/busy"), make([]byte, 4<<20), 0o644))
	stop := make(chan bool)
	ended := make(chan error)
	go func() { // a program of the node that never stops writing
		f, err := os.OpenFile(filepath.Join(r.node.root, "srv/busy"), os.O_WRONLY, 0)
		for i := int64(0); err == nil; i++ {
			select {
			case <-stop:
				ended <- f.Close()
				return
			case <-time.After(100 * time.Microsecond):
				_, err = f.WriteAt([]byte{byte(i)}, i%(4<<20))
			}
		}
		ended <- err
	}()
	r.fails(1, []string{"srv/busy"}, "image", "capture", "root@"+r.name+":/", "half-"+r.name+":1")
	close(stop)
	ok(t, <-ended)
	r.fails(5, []string{"half-" + r.name}, "image", "show", "half-"+r.name+":1")
	r.must("image", "capture", "root@"+r.name+":/", "half-"+r.name+":1")
}

func testCaptureCut(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	args := []string{"image", "capture", "root@" + r.name + ":/", "cut-" + r.name + ":1"}
	for _, limit := range []int64{1000, 20_000, 100_000, 150_000, 1 << 20, 2 << 20} {
		put(t, r.node.root, "srv/new", noise(rand.New(rand.NewPCG(5, uint64(limit))), 4<<20))
		r.node.proxy.reset()
		r.node.proxy.cutDown.Store(limit)
		if res := r.ingot(args...); res.code != 1 {
			t.Errorf("cut after %d bytes: %s", limit, res)
		}
		r.fails(5, nil, "image", "show", "cut-"+r.name+":1")
	}
	r.node.proxy.reset()
	r.must(args...)
	r.must("image", "verify", "cut-"+r.name+":1")
}

// The way back needs nothing of the server's store.
func testImageGone(t *testing.T, b *base) {
	r := b.rig(t, "")
	site := filepath.Join(b.dir, r.name+"-site")
	r.site = copyTree(t, b.site, site)
	r.must("push", "web:1", r.name)
	r.must("push", "web:2", r.name)
	ok(t, os.RemoveAll(filepath.Join(site, ".ingot/store")))
	r.must("rollback", r.name, "--to", "1")
	r.isFound()
	r.must("rollback", r.name, "--to", "2")
	r.is(b.v1)
	r.fails(5, []string{"web:2", "hint:"}, "push", "web:2", r.name)
}
