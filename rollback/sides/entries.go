package sides

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"ingot/internal/durable"
)

// The memory of systemd-boot are files on the EFI system partition, in the
// format of the Boot Loader Specification; a name such as ingot-b+1.conf has
// the tries that are left (Automatic Boot Assessment), which systemd-boot
// counts down by renaming it before it starts the entry. Entries without tries
// left come last in its menu; of the others the highest version is started.
const (
	entriesDir = "loader/entries"
	kernelsDir = "ingot" // with a directory for each side
)

// bootEntry is one of our entries.
type bootEntry struct {
	file    string
	side    string
	version int
	counted bool // on trial
	left    int  // tries
}

var entryName = regexp.MustCompile(`^ingot-([ab])(?:\+([0-9]+)(?:-[0-9]+)?)?\.conf$`)

// entries lists those of the sides.
func entries(dir string) ([]bootEntry, error) {
	names, err := os.ReadDir(filepath.Join(dir, entriesDir))
	if err != nil {
		return nil, err
	}
	var out []bootEntry
	for _, d := range names {
		m := entryName.FindStringSubmatch(d.Name())
		if m == nil {
			continue
		}
		e := bootEntry{file: filepath.Join(dir, entriesDir, d.Name()), side: m[1], counted: m[2] != ""}
		e.left, _ = strconv.Atoi(m[2]) // digits, or nothing
		text, err := os.ReadFile(e.file)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "version" {
				e.version, _ = strconv.Atoi(f[1]) // what is no number of ours comes last
			}
		}
		out = append(out, e)
	}
	return out, nil
}

// confirmed is the entry that is started when none is tried.
func confirmed(list []bootEntry) (best bootEntry) {
	for _, e := range list {
		if !e.counted && (best.file == "" || e.version > best.version) {
			best = e
		}
	}
	return best
}

func readEntries(dir string) (Env, error) {
	list, err := entries(dir)
	if err != nil {
		return Env{}, err
	}
	e := Env{Side: confirmed(list).side}
	if e.Side == "" {
		return e, fmt.Errorf("%s: no entry for a side that was confirmed: %w", entriesDir, ErrEnv)
	}
	for _, x := range list {
		if x.counted && x.left > 0 {
			e.Try = x.side
		}
	}
	return e, nil
}

// writeEntries makes the side e.Side the one that is started, by an entry of the
// highest version, and then lets e.Try be tried once, or nothing any more.
func (c *Config) writeEntries(dir string, e Env) error {
	if _, err := DecodeEnv(e.Encode()); err != nil {
		return fmt.Errorf("%+v: %w", e, err)
	}
	list, err := entries(dir)
	if err != nil {
		return err
	}
	next := 1
	for _, x := range list {
		next = max(next, x.version+1)
	}
	if confirmed(list).side != e.Side {
		if err := c.writeEntry(dir, fmt.Sprintf("ingot-%s.conf", e.Side), e.Side, next, ""); err != nil {
			return err
		}
		next++
	}
	for _, x := range list {
		if x.counted {
			if err := os.Remove(x.file); err != nil {
				return err
			}
		}
	}
	if e.Try != "" && e.Try != e.Side {
		if err := c.writeEntry(dir, fmt.Sprintf("ingot-%s+1.conf", e.Try), e.Try, next, TryWord); err != nil {
			return err
		}
	}
	return durable.SyncFS(dir)
}

// writeEntry writes one entry under another name and renames it. systemd-boot
// starts any system with its own service that would confirm an entry: it is kept
// from that, since a side is confirmed by whoever reaches it.
func (c *Config) writeEntry(dir, name, side string, version int, word string) error {
	d := c.Roots[side]
	options := []string{"root=UUID=" + d.UUID, d.RootFlags(), "rw"}
	options = append(options, c.Args...)
	options = append(options, "panic=10", "init=/.ingot/agent", SideWord+side, word, "systemd.mask=systemd-bless-boot.service")
	options = slices.DeleteFunc(options, func(s string) bool { return s == "" })
	text := fmt.Sprintf("# Written by ingot.\ntitle %s (side %s)\nsort-key ingot\nversion %d\nlinux /%s/%s/linux\ninitrd /%s/%s/initrd\noptions %s\n",
		c.Title, side, version, kernelsDir, side, kernelsDir, side, strings.Join(options, " "))
	file := filepath.Join(dir, entriesDir, name)
	return putFile(file, strings.NewReader(text))
}

// NewEntries makes the memory of systemd-boot on a new node, whose side is top.
func (c *Config) NewEntries(dir, top string) error {
	if err := os.MkdirAll(filepath.Join(dir, entriesDir), 0o700); err != nil {
		return err
	}
	if err := putFile(filepath.Join(dir, "loader/loader.conf"), strings.NewReader("# Written by ingot: the first entry is started.\ntimeout 1\nauto-entries no\nauto-firmware no\n")); err != nil {
		return err
	}
	if err := c.Place(dir, c.Side, top); err != nil {
		return err
	}
	return c.writeEntries(dir, Env{Side: c.Side})
}

// placeKernel copies a side's kernel and initramfs. Its entries go first: they
// would start what is copied only half.
func placeKernel(dir, side, top string) error {
	kernel, initrd, err := kernelOf(top)
	if err != nil {
		return err
	}
	list, err := entries(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.side == side {
			if err := os.Remove(e.file); err != nil {
				return err
			}
		}
	}
	if err := durable.SyncFS(dir); err != nil {
		return err
	}
	at := filepath.Join(dir, kernelsDir, side)
	if err := os.MkdirAll(at, 0o700); err != nil {
		return err
	}
	for from, to := range map[string]string{kernel: "linux", initrd: "initrd"} {
		if err := os.Remove(filepath.Join(at, to)); err != nil && !errors.Is(err, os.ErrNotExist) { // there is room for one only
			return err
		}
		f, err := os.Open(filepath.Join(top, from))
		if err != nil {
			return err
		}
		if err := errors.Join(putFile(filepath.Join(at, to), f), f.Close()); err != nil {
			return err
		}
	}
	return durable.SyncFS(dir)
}

// kernelOf finds the kernel that a tree boots, as GRUB's configuration does: by
// Debian's links, else the last one in /boot.
func kernelOf(top string) (kernel, initrd string, err error) {
	inside := func(name string) string { // links of the tree, not of ours
		if to, err := os.Readlink(filepath.Join(top, name)); err == nil {
			return strings.TrimPrefix(filepath.Join("/", to), "/")
		}
		return name
	}
	is := func(name string) bool {
		st, err := os.Lstat(filepath.Join(top, name))
		return err == nil && st.Mode().IsRegular()
	}
	if k, i := inside("vmlinuz"), inside("initrd.img"); is(k) && is(i) {
		return k, i, nil
	}
	list, err := filepath.Glob(filepath.Join(top, "boot/vmlinuz-*"))
	if err != nil || len(list) == 0 {
		return "", "", fmt.Errorf("%s has no kernel in /boot", top)
	}
	version := strings.TrimPrefix(filepath.Base(list[len(list)-1]), "vmlinuz-")
	for _, name := range []string{"boot/initrd.img-" + version, "boot/initramfs-" + version + ".img", "boot/initrd-" + version} {
		if is(name) {
			return "boot/vmlinuz-" + version, name, nil
		}
	}
	return "", "", fmt.Errorf("%s has no initramfs for the kernel %s", top, version)
}

// putFile writes a file beside its place and renames it, as package durable does,
// but on FAT, which takes no modes.
func putFile(file string, from io.Reader) error {
	f, err := os.OpenFile(file+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(file+".new"))
	}
	return os.Rename(file+".new", file)
}
