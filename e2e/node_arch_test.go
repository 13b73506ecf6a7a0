package e2e

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func archCases() map[string]func(*testing.T, *base) {
	return map[string]func(*testing.T, *base){"another architecture": testOtherArch, "an arm64 node": testARM64}
}

// program is the beginning of a program for a machine, which is all that is looked at.
func program(machine elf.Machine) string {
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	b[16], b[18], b[20] = byte(elf.ET_EXEC), byte(machine), 1
	return string(b)
}

// armImage captures the first release as an image for arm64.
func (r *rig) armImage() (name, tree string) {
	r.t.Helper()
	tree = copyTree(r.t, r.base.v1, filepath.Join(r.base.dir, r.name+"-arm"))
	put(r.t, tree, "usr/bin/dpkg", program(elf.EM_AARCH64))
	sayARM(r.t, tree)
	age(r.t, tree)
	name = "arm-" + r.name + ":1"
	r.must("image", "capture", tree, name)
	return name, tree
}

// sayARM makes a tree's uname say that the machine is an aarch64.
func sayARM(t *testing.T, tree string) {
	t.Helper()
	path := filepath.Join(tree, "usr/bin/uname")
	ok(t, os.Remove(path))
	put(t, tree, "usr/bin/uname", "#!/bin/sh\necho aarch64\n")
	ok(t, os.Chmod(path, 0o755))
}

// An image is refused where its programs cannot run, before anything is done.
func testOtherArch(t *testing.T, b *base) {
	r := b.rig(t, "")
	image, _ := r.armImage()
	r.fails(1, []string{"arm64", "amd64", "nothing was changed", "hint:"}, "push", image, r.name)
	r.untouched()
	r.must("push", "web:1", r.name)
	r.fails(1, []string{"arm64", "amd64", "nothing was changed"}, "push", image, r.name)
	r.fails(1, []string{"arm64", "amd64"}, "push", image, r.name, "--dry-run")
	r.is(b.v1)

	path := filepath.Join(r.node.root, ".ingot/agent")
	ok(t, os.Rename(path, path+".away"))
	uname := filepath.Join(r.node.root, "usr/bin/uname")
	ok(t, os.Remove(uname))
	put(t, r.node.root, "usr/bin/uname", "#!/bin/sh\necho riscv64\n")
	ok(t, os.Chmod(uname, 0o755))
	r.fails(1, []string{`"riscv64"`, "x86_64", "aarch64"}, "push", "web:1", r.name)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a node that no agent runs on got one: %v", err)
	}
}

// A node that says that it is an aarch64 gets the agent for arm64, which does
// all its work there; QEMU runs it.
func testARM64(t *testing.T, b *base) {
	r := b.rig(t, "")
	emulateARM(t)
	sayARM(t, r.node.root)
	image, tree := r.armImage()
	r.fails(1, []string{"amd64", "arm64"}, "push", "web:1", r.name)
	was := copyTree(t, r.node.root, filepath.Join(b.dir, r.name+"-was"))
	r.must("push", image, r.name)
	f, err := elf.Open(filepath.Join(r.node.root, ".ingot/agent"))
	ok(t, err)
	defer f.Close()
	if f.Machine != elf.EM_AARCH64 {
		t.Fatalf("the agent is for %s", f.Machine)
	}
	r.is(tree)
	if o := r.mustJSON("push", image, r.name); o.State != "unchanged" {
		t.Errorf("pushed again: %+v", o)
	}
	r.must("image", "capture", "root@"+r.name+":/", "from-"+r.name+":1")
	if res := r.must("image", "show", "from-"+r.name+":1", "--json"); !strings.Contains(res.out, "arm64") {
		t.Errorf("what was captured: %s", res)
	}
	r.must("rollback", r.name)
	same(t, "after the rollback", was, r.node.root)
}

// emulateARM makes the kernel run programs for arm64 by QEMU, if it does not.
func emulateARM(t *testing.T) {
	t.Helper()
	const dir = "/proc/sys/fs/binfmt_misc"
	qemu := "/usr/bin/qemu-aarch64-static"
	if _, err := os.Stat(qemu); err != nil {
		if os.Getenv("INGOT_NO_SKIP") != "" {
			t.Fatalf("must not skip (INGOT_NO_SKIP is set): %v", err)
		}
		t.Skip(err)
	}
	if _, err := os.Stat(dir + "/register"); err != nil {
		ok(t, unix.Mount("binfmt_misc", dir, "binfmt_misc", 0, ""))
	}
	// F: QEMU is opened now, so that it need not be in the node's tree.
	name := fmt.Sprintf("ingot-test-%d", os.Getpid())
	magic := `\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00`
	mask := `\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff`
	ok(t, os.WriteFile(dir+"/register", []byte(":"+name+":M::"+magic+":"+mask+":"+qemu+":F"), 0o200))
	t.Cleanup(func() { ok(t, os.WriteFile(filepath.Join(dir, name), []byte("-1"), 0o200)) })
}
