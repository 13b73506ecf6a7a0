package e2e

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ingot/imager/store"
	"ingot/imager/tree"
	"ingot/internal/torture"
)

func fidelityCases() map[string]func(*testing.T, *base) {
	return map[string]func(*testing.T, *base){
		"torture over SSH":                  testTorture,
		"an interrupted capture goes on":    testCaptureGoesOn,
		"a capture is true to one moment":   testOneMoment,
		"parent, architecture and the seal": testAboutCapture,
	}
}

// written writes an image to a new directory.
func (r *rig) written(image string) string {
	r.t.Helper()
	s, err := store.Open(filepath.Join(r.site, ".ingot/store"))
	ok(r.t, err)
	id, err := s.Resolve(r.t.Context(), image)
	ok(r.t, err)
	m, err := s.Manifest(r.t.Context(), id)
	ok(r.t, err)
	dir := filepath.Join(r.base.dir, strings.ReplaceAll(image, ":", "-"))
	ok(r.t, os.Mkdir(dir, 0o755))
	ok(r.t, tree.Write(r.t.Context(), dir, m, s, tree.WriteOptions{}))
	return dir
}

func testTorture(t *testing.T, b *base) {
	r := b.rig(t, "")
	src := filepath.Join(r.node.root, "srv/torture")
	ok(t, os.Mkdir(src, 0o755))
	torture.Tree(t, src)
	r.capture("root@"+r.name+":/srv/torture", "torture-"+r.name+":1")
	dst := r.written("torture-" + r.name + ":1")
	torture.Same(t, src, dst)
	for _, p := range [][2]string{{src, dst}, {dst, src}} { // big: 100 GB of zeros to sum up
		if out := run(t, "rsync", "-aHAXSn", "-@-1", "--numeric-ids", "--checksum", "--delete", "--itemize-changes", "--exclude=/sparse/big", p[0]+"/", p[1]+"/"); out != "" {
			t.Errorf("%s to %s:\n%s", p[0], p[1], out)
		}
	}
	r.must("image", "verify", "torture-"+r.name+":1")
}

func testCaptureGoesOn(t *testing.T, b *base) {
	r := b.rig(t, "")
	args := []string{"image", "capture", "root@" + r.name + ":/", "on-" + r.name + ":1"}
	r.must(args...)
	const fresh = 24 << 20
	put(t, r.node.root, "srv/first", noise(rand.New(rand.NewPCG(7, uint64(r.node.number))), fresh))
	r.node.proxy.reset()
	r.node.proxy.cutDown.Store(fresh / 2)
	r.fails(1, []string{"kept: ", "does not send again"}, args...)
	r.node.proxy.reset()
	r.must(args...)
	if down := r.node.proxy.down.Load(); down > fresh*6/10 || down < fresh*4/10 {
		t.Errorf("cut at half of %d bytes, the repeat took %d", fresh, down)
	}
	put(t, r.node.root, "srv/second", noise(rand.New(rand.NewPCG(8, uint64(r.node.number))), fresh))
	r.node.proxy.reset()
	r.must(args...)
	whole := r.node.proxy.up.Load()
	put(t, r.node.root, "srv/third", noise(rand.New(rand.NewPCG(9, uint64(r.node.number))), fresh))
	r.node.proxy.reset()
	r.node.proxy.stallUp.Store(whole * 3 / 4) // the node waits for an answer
	cmd, ended := r.start(args...)
	eventually(t, "the capture waits", func() bool { return r.node.proxy.stalled.Load() })
	ok(t, cmd.Process.Signal(syscall.SIGINT))
	if res := <-ended; res.code != 130 {
		t.Errorf("interrupted: %s", res)
	}
	r.node.proxy.reset()
	r.node.proxy.stalled.Store(false)
	r.must(args...)
	if down := r.node.proxy.down.Load(); down > fresh*9/10 {
		t.Errorf("interrupted in the middle of %d bytes, the repeat took %d", fresh, down)
	}
	r.must("image", "verify", "on-"+r.name+":1")
}

// testOneMoment has a program on the node write one number to one file after
// the other: at any moment they differ by one at most.
func testOneMoment(t *testing.T, b *base) {
	r := b.rig(t, "")
	var files []*os.File
	for _, name := range []string{"etc/a-number", "srv/z-number"} {
		put(t, r.node.root, name, strings.Repeat("\x00", 8))
		f, err := os.OpenFile(filepath.Join(r.node.root, name), os.O_WRONLY, 0)
		ok(t, err)
		defer f.Close()
		files = append(files, f)
	}
	stop, ended := make(chan bool), make(chan error)
	go func() {
		var err error
		for i := uint64(1); err == nil; i++ {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			for _, f := range files {
				if _, err = f.WriteAt(binary.BigEndian.AppendUint64(nil, i), 0); err != nil {
					break
				}
			}
		}
		ended <- err
	}()
	from, name := "root@"+r.name+":/", "moment-"+r.name
	consistent := func(image string) {
		t.Helper()
		var n [2]uint64
		for i, dir := 0, r.written(image); i < 2; i++ {
			b, err := os.ReadFile(filepath.Join(dir, []string{"etc/a-number", "srv/z-number"}[i]))
			ok(t, err)
			n[i] = binary.BigEndian.Uint64(b)
		}
		if n[0] != n[1] && n[0] != n[1]+1 {
			t.Errorf("%s: %d and %d were never there at one moment", image, n[0], n[1])
		}
	}
	// On a busy machine the program may be kept from writing for long enough.
	for refused, i := false, 10; !refused; i++ {
		image := name + ":" + strconv.Itoa(i)
		res := r.ingot("image", "capture", from, image)
		if refused = res.code != 0; !refused {
			if consistent(image); i > 15 {
				t.Fatal("a tree in which a program writes all the time was captured again and again")
			}
			continue
		}
		for _, word := range []string{"etc/a-number", "srv/z-number", "hint:", "--allow-changed"} {
			if res.code != 1 || !strings.Contains(res.err, word) {
				t.Errorf("does not say %q: %s", word, res)
			}
		}
		r.fails(5, nil, "image", "show", image)
	}
	res := r.must("image", "capture", from, name+":2", "--allow-changed", "/srv/z-number", "--allow-changed", "/etc/a-*")
	if !strings.Contains(res.err, `"srv/z-number" changed while`) {
		consistent(name + ":2")
	}
	r.must("image", "capture", from, name+":3", "--exclude", "/srv/z-number", "--exclude", "/etc/a-number")
	close(stop)
	ok(t, <-ended)
	r.must("image", "capture", from, name+":4")
}

func testAboutCapture(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	put(t, r.node.root, "root/.bash_history", "secret\n")
	put(t, r.node.root, "var/log/nginx/access.log", "x\n")
	ok(t, os.Chown(filepath.Join(r.node.root, "var/log/nginx"), 33, 4))
	from, name := "root@"+r.name+":/", "about-"+r.name
	r.must("image", "capture", from, name+":1")
	arch := map[string]string{"x86_64": "amd64", "aarch64": "arm64"}[strings.TrimSpace(run(t, "uname", "-m"))]
	shown := r.must("image", "show", name+":1").out
	for _, want := range []string{"parent ", "sealed ", "/root/.bash_history", "/etc/hostname"} {
		if !strings.Contains(shown, want) {
			t.Errorf("show does not say %q:\n%s", want, shown)
		}
	}
	if json := r.must("image", "show", name+":1", "--json").out; !strings.Contains(json, `"arch": "`+arch+`"`) {
		t.Errorf("not of this architecture: %s", json)
	}
	dir := r.written(name + ":1")
	st, err := os.Stat(filepath.Join(dir, "var/log/nginx"))
	ok(t, err)
	if s := st.Sys().(*syscall.Stat_t); s.Uid != 33 || s.Gid != 4 {
		t.Errorf("the directory of logs is of %d:%d", s.Uid, s.Gid)
	}
	if read(t, filepath.Join(dir, "etc/machine-id")) != "" {
		t.Error("the machine ID was captured")
	}
	for _, gone := range []string{"root/.bash_history", "var/log/nginx/access.log", "etc/hostname", "etc/ssh/ssh_host_ed25519_key"} {
		if _, err := os.Lstat(filepath.Join(dir, gone)); err == nil {
			t.Errorf("%s was captured", gone)
		}
	}
	r.must("image", "capture", from, name+":2", "--no-seal")
	dir = r.written(name + ":2")
	if read(t, filepath.Join(dir, "root/.bash_history")) != "secret\n" || read(t, filepath.Join(dir, "etc/machine-id")) == "" {
		t.Error("--no-seal leaves out")
	}
	// A command on the node that gives a snapshot, here the same tree by another way.
	other := filepath.Join(r.node.root, "opt/snap")
	ok(t, os.Mkdir(other, 0o755))
	put(t, r.node.root, "opt/snap/only-here", "x")
	r.must("image", "capture", from, name+":3", "--snapshot", "echo begin >>/opt/log; echo /opt/snap", "--snapshot-end", `echo "end $INGOT_SNAPSHOT" >>/opt/log`)
	if files := r.must("image", "show", name+":3", "--files").out; !strings.Contains(files, "only-here") || strings.Contains(files, "etc/passwd") {
		t.Errorf("not of the snapshot: %s", files)
	}
	if got := read(t, filepath.Join(r.node.root, "opt/log")); got != "begin\nend /opt/snap\n" {
		t.Errorf("ran %q", got)
	}
	r.fails(1, []string{"no such snapshot"}, "image", "capture", from, name+":4", "--snapshot", "echo no such snapshot >&2; false")
	ok(t, unix.Access(r.node.root, unix.R_OK))
}
