package netboot

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"ingot/internal/digest"
)

// node is one entry of the environment.
type node struct {
	mode         uint32 // with its type
	body         []byte // content, or the target of a symlink
	major, minor int
}

// layout is the file tree of the environment while it is put together. Paths are relative and clean.
type layout map[string]node

// dir makes a directory and its parents.
func (l layout) dir(name string, perm uint32) {
	name = l.resolve(name)
	l.parents(name)
	if name != "." {
		l[name] = node{mode: typeDir | perm}
	}
}

// file writes a file; the first of a name wins when both are equal.
func (l layout) file(name string, perm uint32, body []byte) {
	l.put(name, node{mode: typeRegular | perm, body: body})
}

// link writes a symlink.
func (l layout) link(name, target string) {
	l.put(name, node{mode: typeSymlink | 0o777, body: []byte(target)})
}

// char makes a character device.
func (l layout) char(name string, perm uint32, major, minor int) {
	l.put(name, node{mode: typeChar | perm, major: major, minor: minor})
}

func (l layout) put(name string, n node) {
	name = path.Join(l.resolve(path.Dir(name)), path.Base(name))
	l.parents(name)
	l[name] = n
}

// parents makes the directories above name, whose own parents are resolved.
func (l layout) parents(name string) {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if _, ok := l[dir]; !ok {
			l[dir] = node{mode: typeDir | 0o755}
		}
	}
}

// resolve follows the symlinks of the tree in a directory's name: lib/modules is usr/lib/modules where
// lib is a link. A loop ends where it is found; the kernel would refuse to open it.
func (l layout) resolve(name string) string {
	done, rest := ".", strings.Split(path.Clean(strings.TrimPrefix(name, "/")), "/")
	for hops := 0; len(rest) > 0 && hops < 100; hops++ {
		next := path.Join(done, rest[0])
		rest = rest[1:]
		n, ok := l[next]
		if !ok || n.mode&0o170000 != typeSymlink {
			done = next
			continue
		}
		target := string(n.body)
		if path.IsAbs(target) {
			done = "."
		}
		rest = append(strings.Split(path.Clean(strings.TrimPrefix(target, "/")), "/"), rest...)
	}
	return done
}

// names returns the paths in an order in which every directory comes before what it holds.
func (l layout) names() []string { return slices.Sorted(maps.Keys(l)) }

// writeTo writes the tree as cpio.
func (l layout) writeTo(w io.Writer) (int64, error) {
	c := &cpioWriter{w: w}
	for _, name := range l.names() {
		n := l[name]
		c.entry(name, n.mode, n.body, n.major, n.minor)
	}
	return c.n, c.close()
}

// digest identifies the tree's content together with what else decides the bytes of the result.
func (l layout) digest(salt ...[]byte) digest.ID {
	var all []byte
	add := func(b []byte) {
		id := digest.Of(b)
		all = append(all, id[:]...)
	}
	for _, s := range salt {
		add(s)
	}
	for _, name := range l.names() {
		n := l[name]
		all = fmt.Appendf(all, "%s\x00%o %d %d\x00", name, n.mode, n.major, n.minor)
		all = binary.BigEndian.AppendUint64(all, uint64(len(n.body)))
		add(n.body)
	}
	return digest.Of(all)
}

// skeleton puts in what every environment has.
func (l layout) skeleton() {
	for _, dir := range []string{"dev", "etc", "mnt", "proc", "run", "sys", "target", "usr/bin", "usr/lib", "usr/sbin", "var"} {
		l.dir(dir, 0o755)
	}
	l.dir("root", 0o700)
	l.dir("tmp", 0o1777)
	l.link("var/run", "/run")
	l.link("var/tmp", "/tmp")
	l.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"))
	l.file("etc/group", 0o644, []byte("root:x:0:\ntty:x:5:\ndisk:x:6:\nnogroup:x:65534:\n"))
	l.file("etc/hosts", 0o644, []byte("127.0.0.1 localhost\n::1 localhost\n"))
	l.link("etc/mtab", "/proc/self/mounts")
	// Debian's kernels do not mount devtmpfs by themselves: without these, what /init says before it
	// has mounted /dev is lost.
	l.char("dev/console", 0o600, 5, 1)
	l.char("dev/null", 0o666, 1, 3)
	l.char("dev/kmsg", 0o644, 1, 11)
}
