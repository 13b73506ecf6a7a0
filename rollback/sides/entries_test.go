package sides

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// files lists what is below a directory, without its contents.
func files(t *testing.T, dir string) string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*"))
	ok(t, err)
	var names []string
	for _, f := range list {
		names = append(names, filepath.Base(f))
	}
	return strings.Join(names, " ")
}

// A side is tried by an entry that systemd-boot counts down, and is confirmed by
// one of a higher version, whatever systemd-boot has made of the other.
func TestEntries(t *testing.T) {
	esp, a, b := t.TempDir(), t.TempDir(), t.TempDir()
	for top, text := range map[string]string{a: "a", b: "b"} {
		ok(t, os.Mkdir(top+"/boot", 0o755))
		ok(t, os.WriteFile(top+"/boot/vmlinuz-6.1", []byte("kernel "+text), 0o600))
		ok(t, os.WriteFile(top+"/boot/initrd.img-6.1", []byte("initrd "+text), 0o600))
	}
	ok(t, os.Symlink("boot/vmlinuz-6.1", b+"/vmlinuz"))
	ok(t, os.Symlink("/boot/initrd.img-6.1", b+"/initrd.img"))
	ok(t, os.WriteFile(b+"/boot/vmlinuz-6.2", []byte("not the one of the links"), 0o600))
	c := &Config{Side: A, Loader: SystemdBoot, Title: "n1", Args: []string{"quiet"}, Roots: map[string]Device{A: {FSType: "ext4", UUID: "1", Options: "noatime"}, B: {FSType: "btrfs", UUID: "2", Subvol: "@b"}}}
	is := func(want Env, names string) {
		t.Helper()
		if e, err := c.ReadEnv(esp); err != nil || e != want {
			t.Errorf("it starts %+v, %v; want %+v", e, err, want)
		}
		if got := files(t, filepath.Join(esp, entriesDir)); got != names {
			t.Errorf("entries %q, want %q", got, names)
		}
	}
	entry := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(esp, entriesDir, name))
		ok(t, err)
		return string(text)
	}
	ok(t, c.NewEntries(esp, a))
	is(Env{Side: A}, "ingot-a.conf")
	if text := entry("ingot-a.conf"); !strings.Contains(text, "\nversion 1\nlinux /ingot/a/linux\ninitrd /ingot/a/initrd\noptions root=UUID=1 rootflags=noatime rw quiet panic=10 init=/.ingot/agent ingot.side=a systemd.mask=") {
		t.Errorf("the entry is\n%s", text)
	}
	ok(t, c.Place(esp, B, b))
	ok(t, c.WriteEnv(esp, Env{Side: A, Try: B}))
	is(Env{Side: A, Try: B}, "ingot-a.conf ingot-b+1.conf")
	if text := entry("ingot-b+1.conf"); !strings.Contains(text, "version 2\n") || !strings.Contains(text, "rootflags=subvol=@b rw quiet panic=10 init=/.ingot/agent ingot.side=b ingot.try") {
		t.Errorf("the entry is\n%s", text)
	}
	if text, err := os.ReadFile(esp + "/ingot/b/linux"); err != nil || string(text) != "kernel b" {
		t.Errorf("the kernel of b is %q, %v", text, err)
	}
	ok(t, os.Rename(filepath.Join(esp, entriesDir, "ingot-b+1.conf"), filepath.Join(esp, entriesDir, "ingot-b+0-1.conf"))) // systemd-boot
	is(Env{Side: A}, "ingot-a.conf ingot-b+0-1.conf")
	ok(t, c.WriteEnv(esp, Env{Side: B}))
	is(Env{Side: B}, "ingot-a.conf ingot-b.conf")
	if text := entry("ingot-b.conf"); strings.Contains(text, TryWord) || !strings.Contains(text, "version 3\n") {
		t.Errorf("the entry is\n%s", text)
	}
	ok(t, c.Place(esp, A, a)) // before a is tried again it has no entry
	is(Env{Side: B}, "ingot-b.conf")
	ok(t, c.WriteEnv(esp, Env{Side: B, Try: A}))
	is(Env{Side: B, Try: A}, "ingot-a+1.conf ingot-b.conf")
	ok(t, c.WriteEnv(esp, Env{Side: B}))
	is(Env{Side: B}, "ingot-b.conf")
	ok(t, os.WriteFile(filepath.Join(esp, entriesDir, "debian.conf"), []byte("version 99\n"), 0o600)) // somebody else's
	is(Env{Side: B}, "debian.conf ingot-b.conf")

	ok(t, os.Remove(filepath.Join(esp, entriesDir, "ingot-b.conf")))
	if e, err := c.ReadEnv(esp); !errors.Is(err, ErrEnv) {
		t.Errorf("without entries: %+v, %v", e, err)
	}
	ok(t, os.RemoveAll(b+"/boot"))
	if err := c.Place(esp, B, b); err == nil || !strings.Contains(err.Error(), "no kernel") {
		t.Errorf("a side without a kernel: %v", err)
	}
	if err := c.WriteEnv(esp, Env{}); !errors.Is(err, ErrEnv) {
		t.Errorf("no side: %v", err)
	}
}
