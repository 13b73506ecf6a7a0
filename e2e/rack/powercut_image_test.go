package rack

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pair is what GRUB starts: digests of a kernel and of its initramfs.
type pair struct{ kernel, initrd [sha256.Size]byte }

// bootMark is what the initramfs of the second image leaves behind, so that a
// machine can be asked which one it was started with.
const bootMark = "/dev/ingot-initrd-2"

// second makes an image that differs from the golden one in some hundred ways,
// kernel and initramfs among them. It returns what a boot loader finds in each.
func (b *bench) second(ref string) (old, next pair) { return b.secondOf(image, ref) }

func (b *bench) secondOf(golden, ref string) (old, next pair) {
	b.t.Helper()
	dir := filepath.Join(b.rack.Dir(), "second")
	b.must(os.Mkdir(dir, 0o755))
	b.run("push", golden, "--dir", dir)
	b.must(os.RemoveAll(filepath.Join(dir, ".ingot")))
	old = b.pairIn(dir)
	b.scatter(dir)
	b.otherKernel(dir, bytes.Repeat([]byte("ingot 2 "), 512))
	next = b.pairIn(dir)
	if old.kernel == next.kernel || old.initrd == next.initrd {
		b.t.Fatal("the second image has the kernel or the initramfs of the first")
	}
	b.run("image", "capture", dir, ref)
	b.must(os.RemoveAll(dir))
	return old, next
}

func (b *bench) pairIn(dir string) pair {
	b.t.Helper()
	sum := func(link string) [sha256.Size]byte {
		text, err := os.ReadFile(filepath.Join(dir, link))
		b.must(err)
		return sha256.Sum256(text)
	}
	return pair{sum("vmlinuz"), sum("initrd.img")}
}

// otherKernel gives a tree another kernel and initramfs under other names, and
// turns Debian's links to them. The kernel is the same with other bytes behind
// it, which no loader minds, so that its modules stay the right ones. The
// initramfs has another archive before it (early-userspace/buffer-format.rst),
// whose one file is read by initramfs-tools' /init.
func (b *bench) otherKernel(dir string, behind []byte) {
	b.t.Helper()
	replace := func(link string, change func([]byte) []byte) {
		target, err := os.Readlink(filepath.Join(dir, link))
		b.must(err)
		text, err := os.ReadFile(filepath.Join(dir, target))
		b.must(err)
		b.must(os.WriteFile(filepath.Join(dir, target+"+2"), change(text), 0o644))
		b.must(os.Remove(filepath.Join(dir, target)))
		b.must(os.Remove(filepath.Join(dir, link)))
		b.must(os.Symlink(target+"+2", filepath.Join(dir, link)))
	}
	replace("vmlinuz", func(text []byte) []byte { return append(text, behind...) })
	early := b.early(": > " + bootMark)
	replace("initrd.img", func(text []byte) []byte { return append(early, text...) })
}

// early is an archive to go before an initramfs of initramfs-tools, whose /init
// runs the line of shell script in it before it looks for anything.
func (b *bench) early(line string) []byte {
	b.t.Helper()
	archive := b.command("sh", "-c", `cd "$(mktemp -d)" && mkdir -p conf/conf.d && printf '%s\n' "$1" > conf/conf.d/ingot &&
		printf 'conf\nconf/conf.d\nconf/conf.d/ingot\n' | busybox cpio -o -H newc 2> /dev/null && rm -r conf && rmdir "$PWD"`, "sh", line)
	return append([]byte(archive), make([]byte, (4096-len(archive)%4096)%4096)...)
}

// scatter changes a tree in many ways: what no service of the node needs.
func (b *bench) scatter(dir string) {
	b.t.Helper()
	app := filepath.Join(dir, "opt", "app")
	b.must(os.MkdirAll(app, 0o755))
	for i := range 120 {
		name := filepath.Join(app, fmt.Sprint(i))
		b.must(os.WriteFile(name, bytes.Repeat([]byte(fmt.Sprintf("release 2, file %d\n", i)), 1+i*17), 0o644))
		switch i % 10 {
		case 0:
			b.must(os.Link(name, name+".link"))
		case 1:
			b.must(unix.Lsetxattr(name, "user.release", []byte("2"), 0))
		case 2:
			b.must(os.Chmod(name, 0o640))
		case 3:
			b.must(os.Symlink(filepath.Base(name), name+".symlink"))
		}
	}
	b.must(unix.Mknod(filepath.Join(app, "device"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	b.must(unix.Mkfifo(filepath.Join(app, "fifo"), 0o600))
	b.must(os.WriteFile(filepath.Join(dir, "etc", "issue.net"), []byte("release 2\n"), 0o600))
	files := b.harmless(filepath.Join(dir, "usr", "share"))
	if len(files) < 300 {
		b.t.Fatalf("only %d files to change", len(files))
	}
	for i := range 300 {
		b.change(files[i*len(files)/300], i%5)
	}
}

// change changes one file in one of five ways.
func (b *bench) change(name string, how int) {
	b.t.Helper()
	text, err := os.ReadFile(name)
	b.must(err)
	switch how {
	case 0:
		b.must(os.WriteFile(name, append(text, "release 2\n"...), 0o644))
	case 1:
		b.must(os.Remove(name))
	case 2:
		b.must(os.Chmod(name, 0o640))
		b.must(os.Lchown(name, 0, 8))
	case 3:
		when := time.Unix(1700000000, 123456789)
		b.must(os.Chtimes(name, when, when))
	case 4:
		b.must(os.Remove(name))
		b.must(os.Mkdir(name, 0o755))
		b.must(os.WriteFile(filepath.Join(name, "inside"), text, 0o644))
	}
}

// harmless lists files that a booting Debian does not read.
func (b *bench) harmless(dir string) []string {
	b.t.Helper()
	var out []string
	b.must(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		for _, needed := range []string{"dbus", "pam", "systemd", "polkit", "debconf", "keyrings"} {
			if err == nil && d.IsDir() && strings.Contains(d.Name(), needed) {
				return filepath.SkipDir
			}
		}
		if err == nil && d.Type().IsRegular() {
			out = append(out, path)
		}
		return err
	}))
	return out
}
