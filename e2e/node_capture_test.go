package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ingot/imager/store"
	"ingot/internal/digest"
	"ingot/internal/entry"
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

	said := r.must("image", "capture", "root@"+r.name+":/", "cap-"+r.name+":0").err
	for _, p := range []string{"the machine's own: ", " /etc/hostname", " /etc/machine-id", " /etc/ssh/ssh_host_", " /var/log/**"} {
		if !strings.Contains(said, p) {
			t.Errorf("does not say that it left out %q: %s", p, said)
		}
	}
	exclude := []string{"--seal"}
	for _, p := range pattern.Live().Strings() {
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
	const long = 4 << 20
	put(t, r.node.root, "srv/busy", noise(rand.New(rand.NewPCG(6, 6)), long))
	stop := make(chan bool)
	ended := make(chan error)
	go func() { // a program of the node that never stops writing: a number at the head, then at the tail
		f, err := os.OpenFile(filepath.Join(r.node.root, "srv/busy"), os.O_WRONLY, 0)
		for i := uint64(1); err == nil; i++ {
			select {
			case <-stop:
				ended <- f.Close()
				return
			default:
			}
			number := binary.BigEndian.AppendUint64(nil, i)
			if _, err = f.WriteAt(number, 0); err == nil {
				_, err = f.WriteAt(number, long-8)
			}
		}
		ended <- err
	}()
	failed := 0
	for i := range 4 {
		name := fmt.Sprintf("half-%s:%d", r.name, i)
		res := r.ingot("image", "capture", "root@"+r.name+":/", name)
		switch {
		case res.code == 1 && strings.Contains(res.err, "srv/busy"):
			failed++
			r.fails(5, []string{"half-" + r.name}, "image", "show", name)
		case res.code != 0:
			t.Errorf("a file that changes: %s", res)
		default: // the disk made the writer wait: then what was captured is one state
			head, tail := r.numbers(name, "srv/busy")
			if tail != head && tail != head-1 {
				t.Errorf("%s was published half true: %d at the head, %d at the tail", name, head, tail)
			}
		}
	}
	close(stop)
	ok(t, <-ended)
	if failed == 0 {
		t.Error("no capture met a change")
	}
	r.must("image", "capture", "root@"+r.name+":/", "whole-"+r.name+":1")
}

// numbers returns the first and the last eight bytes of a file of an image.
func (r *rig) numbers(image, path string) (head, tail uint64) {
	r.t.Helper()
	s, err := store.OpenOrInit(filepath.Join(r.site, ".ingot/store"))
	ok(r.t, err)
	id, err := s.Resolve(r.t.Context(), image)
	ok(r.t, err)
	m, err := s.Manifest(r.t.Context(), id)
	ok(r.t, err)
	e, found := m.Lookup(path)
	if !found {
		r.t.Fatalf("%s has no %q", image, path)
	}
	one := func(c entry.Chunk) (out []byte) {
		ok(r.t, s.Fetch(r.t.Context(), []digest.ID{c.ID}, func(_ digest.ID, b []byte) error { out = bytes.Clone(b); return nil }))
		return out
	}
	last := one(e.Chunks[len(e.Chunks)-1])
	return binary.BigEndian.Uint64(one(e.Chunks[0])), binary.BigEndian.Uint64(last[len(last)-8:])
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
