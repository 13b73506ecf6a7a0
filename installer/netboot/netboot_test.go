package netboot

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"ingot/installer/netboot/modload"
	"ingot/internal/digest"
)

// skip skips, or fails where skips are failures (INGOT_NO_SKIP, set by CI).
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("INGOT_NO_SKIP") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// kernelDeb returns Debian's kernel package of the kind ("amd64", "cloud-amd64"), downloaded once.
func kernelDeb(t *testing.T, kind string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("short: needs a kernel package")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		skip(t, "no cache directory: %v", err)
	}
	cache = filepath.Join(cache, "ingot-test")
	pattern := filepath.Join(cache, "linux-image-[0-9]*[0-9]-"+kind+"_*.deb")
	if found, _ := filepath.Glob(pattern); len(found) > 0 {
		return found[len(found)-1]
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("apt-cache", "depends", "linux-image-"+kind).Output()
	if err != nil {
		skip(t, "apt-cache: %v", err)
	}
	_, pkg, _ := strings.Cut(string(out), "Depends: ")
	pkg, _, _ = strings.Cut(pkg, "\n")
	cmd := exec.Command("apt-get", "download", pkg)
	cmd.Dir = cache
	if out, err := cmd.CombinedOutput(); err != nil {
		skip(t, "download kernel package %q: %v: %s", pkg, err, out)
	}
	found, _ := filepath.Glob(pattern)
	if len(found) == 0 {
		t.Fatalf("%q was downloaded and is not there", pkg)
	}
	return found[0]
}

// outDir is a cache that outlives the test, because unpacking a kernel package takes five seconds.
func outDir(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		return t.TempDir()
	}
	return filepath.Join(cache, "ingot-test", "netboot")
}

// needTools skips where the server lacks the default tools.
func needTools(t *testing.T) {
	t.Helper()
	c := newClosure("/", make(layout))
	for _, tool := range DefaultTools() {
		if err := c.tool(tool); err != nil {
			skip(t, "%v", err)
		}
	}
}

// TestBuild builds from a real kernel, and judges the result with other people's programs.
func TestBuild(t *testing.T) {
	needTools(t)
	deb, out := kernelDeb(t, "cloud-amd64"), outDir(t)
	o := Options{KernelDeb: deb, Agent: []byte("#!/bin/sh\n"), Out: out, Files: map[string][]byte{"/etc/motd": []byte("hello\n")}}
	first, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Build(t.Context(), o)
	if err != nil || !second.Cached || second.Key != first.Key || second.Initrd != first.Initrd {
		t.Fatalf("built again: %+v, %v", second, err)
	}
	o.Agent = []byte("#!/bin/sh\n#\n")
	if other, err := Build(t.Context(), o); err != nil || other.Key == first.Key {
		t.Fatalf("another agent gives the same key: %v", err)
	}
	dir := unpack(t, first.Initrd)
	for _, name := range []string{"init", "dev/console", "etc/motd", "etc/mke2fs.conf", "usr/bin/sh", "lib/modules/" + first.KernelVersion + "/modules.dep"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	checkIndex(t, filepath.Join(dir, "lib/modules", first.KernelVersion))
	for _, argv := range [][]string{{"/usr/sbin/mkfs.ext4", "-V"}, {"/usr/sbin/sfdisk", "-V"}, {"/sbin/mkfs.vfat", "--help"}, {"/usr/bin/mount", "-V"},
		{"/bin/sh", "-c", "echo from busybox"}, {"/usr/sbin/blkid", "-V"}, {"/usr/sbin/fsck.ext4", "-V"}, {"/usr/sbin/wipefs", "-V"}, {"/usr/sbin/mkswap", "-V"}} {
		out, err := exec.Command("chroot", append([]string{dir}, argv...)...).CombinedOutput()
		if err != nil || len(out) == 0 {
			t.Errorf("in the environment: %q: %v: %s", argv, err, out)
		}
	}
}

// unpack unpacks an initramfs with busybox's cpio.
func unpack(t *testing.T, initrd string) string {
	t.Helper()
	if os.Getuid() != 0 {
		skip(t, "unpacking device nodes needs root")
	}
	packed, err := os.Open(initrd)
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	z, err := zstd.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	dir := t.TempDir()
	cmd := exec.Command("busybox", "cpio", "-i", "-d")
	cmd.Dir, cmd.Stdin = dir, z
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	return dir
}

// checkIndex checks that the index is closed: every file is there, everything needed comes with it.
func checkIndex(t *testing.T, dir string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, modload.IndexName))
	if err != nil {
		t.Fatal(err)
	}
	x, err := modload.Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[string]bool)
	for _, m := range x.Modules {
		known[m.Name] = true
		if _, err := os.Stat(filepath.Join(dir, m.File)); err != nil {
			t.Error(err)
		}
	}
	for _, m := range x.Modules {
		for _, d := range slices.Concat(m.Depends, m.Pre, m.Post) {
			if !known[d] {
				t.Errorf("%s needs %s, which is not in the index", m.Name, d)
			}
		}
	}
	if got := x.Match("virtio:d00000001v00001AF4"); !slices.Equal(got, []string{"virtio_net"}) {
		t.Errorf("virtio network card: %q", got)
	}
}

// TestDeterministic: the same content in the same bytes, whatever the order of the maps.
func TestDeterministic(t *testing.T) {
	make1 := func() []byte {
		l := make(layout)
		l.link("lib", "usr/lib")
		l.skeleton()
		for i := range 50 {
			l.file("lib/x/"+strings.Repeat("a", i), 0o644, bytes.Repeat([]byte{byte(i)}, i*100))
		}
		var b bytes.Buffer
		if _, err := compress(t.Context(), &b, l); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	one := make1()
	for range 5 {
		if !bytes.Equal(one, make1()) {
			t.Fatal("the bytes differ")
		}
	}
}

// TestDamagedCache: a result that was cut or changed is built anew.
func TestDamagedCache(t *testing.T) {
	out, vmlinuz, l := t.TempDir(), []byte("kernel"), layout{}
	l.skeleton()
	build := func() *Result {
		res, err := keep(t.Context(), out, &Result{Key: l.digest(), KernelDigest: digest.Of(vmlinuz)}, vmlinuz, l)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	res := build()
	if !build().Cached {
		t.Fatal("not kept")
	}
	if err := os.Truncate(res.Initrd, 10); err != nil {
		t.Fatal(err)
	}
	if build().Cached {
		t.Fatal("took the damaged one")
	}
	if !build().Cached {
		t.Fatal("not repaired")
	}
}

func TestMissingTools(t *testing.T) {
	root := t.TempDir()
	tree := Dir(t.TempDir())
	for _, name := range []string{"boot/vmlinuz-1.2", "lib/modules/1.2/modules.builtin"} {
		write(t, string(tree), name, "x")
	}
	_, err := Build(t.Context(), Options{Tree: tree, Agent: []byte("x"), Tools: []string{"sfdisk", "mkfs.vfat", "odd"}, HostRoot: root, Out: t.TempDir()})
	var missing *MissingToolError
	if !errors.As(err, &missing) || !strings.Contains(err.Error(), `tool "mkfs.vfat" not found in "`+root+`": install the package "dosfstools"`) {
		t.Fatalf("got %v", err)
	}
	if got := MissingPackages(err); !slices.Equal(got, []string{"dosfstools", "fdisk", "odd"}) {
		t.Errorf("packages %q", got)
	}
}

// TestOptions: what cannot work is refused before anything is read.
func TestOptions(t *testing.T) {
	dynamic, err := os.ReadFile("/usr/bin/env")
	if err != nil {
		t.Fatal(err)
	}
	tree, out := Dir(t.TempDir()), t.TempDir()
	for want, o := range map[string]Options{
		"give a tree or a kernel package": {Agent: []byte("x"), Out: out},
		"give a tree or":                  {Tree: tree, KernelDeb: "x.deb", Agent: []byte("x"), Out: out},
		"no program for /init":            {Tree: tree, Out: out},
		"is not static: it needs \"/lib":  {Tree: tree, Agent: dynamic, Out: out},
		"no directory":                    {Tree: tree, Agent: []byte("x")},
		"boot/vmlinuz-*\": no kernel":     {Tree: tree, Agent: []byte("x"), Out: out},
	} {
		if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestFindKernel(t *testing.T) {
	dir := t.TempDir()
	if _, err := findKernel(Dir(dir), ""); !errors.Is(err, ErrNoKernel) {
		t.Errorf("an empty tree: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "usr/lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("usr/lib", filepath.Join(dir, "lib")); err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.0-2-amd64"} {
		write(t, dir, "boot/vmlinuz-"+v, v)
		write(t, dir, "usr/lib/modules/"+v+"/kernel/a.ko", "")
	}
	write(t, dir, "boot/vmlinuz-9.9.9", "has no modules")
	for version, want := range map[string]string{"": "6.1.0-10-amd64", "6.1.0-2-amd64": "6.1.0-2-amd64", "9.9.9": ""} {
		k, err := findKernel(Dir(dir), version)
		if want == "" {
			if !errors.Is(err, ErrNoKernel) {
				t.Errorf("%q: %v", version, err)
			}
			continue
		}
		if err != nil || k.version != want || k.modules != "usr/lib/modules/"+want {
			t.Errorf("%q: %+v, %v", version, k, err)
		}
	}
}

func TestVersionLess(t *testing.T) {
	sorted := []string{"5.10.0-1", "6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.0-10-cloud", "6.01.1", "6.12.3", "6.12.3+b1"}
	for i := range sorted {
		for j := range sorted {
			if got := versionLess(sorted[i], sorted[j]); got != (i < j) {
				t.Errorf("versionLess(%q, %q) = %v", sorted[i], sorted[j], got)
			}
		}
	}
}

// TestLayoutLinks: names go through the tree's symlinks, and a loop ends.
func TestLayoutLinks(t *testing.T) {
	l := make(layout)
	l.link("lib", "usr/lib")
	l.link("abs", "/usr")
	l.link("up", "usr/../usr/lib/../../usr")
	l.link("loop", "loop")
	for name, want := range map[string]string{
		"lib/modules/x": "usr/lib/modules/x", "/lib/x": "usr/lib/x", "abs/y": "usr/y", "up/z": "usr/z", "plain": "plain",
	} {
		l.file(name, 0o644, []byte(want))
		if n, ok := l[want]; !ok || string(n.body) != want {
			t.Errorf("%q is not at %q: %q", name, want, slices.Sorted(maps.Keys(l)))
		}
	}
	l.file("loop/x", 0o644, nil)
	if _, err := l.writeTo(io.Discard); err != nil {
		t.Error(err)
	}
}
