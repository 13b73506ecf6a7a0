package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"ingot/imager/store"
	"ingot/imager/wire"
)

// basePackages are what a node needs to boot and to be managed.
func basePackages() []string {
	return []string{"systemd-sysv", "dbus", "udev", "kmod", "openssh-server", "linux-image-amd64", "initramfs-tools", "zstd",
		"grub-pc-bin", "grub-efi-amd64-bin", "grub2-common", "iproute2", "e2fsprogs", "dosfstools", "ca-certificates"}
}

func (p *program) imageBuild(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	ref, err := store.ParseRef(c.Args().First())
	if err != nil {
		return usageError{err.Error()}
	}
	if c.String("debian") == "" {
		return withHint(usagef("image build: want the release with --debian SUITE"), "`ingot image build %s --debian bookworm`", c.Args().First())
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	packages := basePackages()
	for _, list := range c.StringSlice("include") {
		packages = append(packages, strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })...)
	}
	dir, err := p.newBuildDir(w.private("tmp"))
	if err != nil {
		return fmt.Errorf("build image %q: %w", ref, err)
	}
	defer p.removeBuild(dir)
	root := filepath.Join(dir.Name(), "root")
	argv := []string{"mmdebstrap", "--variant=minbase", "--include=" + strings.Join(packages, ","),
		`--customize-hook=rm -f "$1"/etc/ssh/ssh_host_*_key "$1"/etc/ssh/ssh_host_*_key.pub`,
		`--customize-hook=chroot "$1" systemctl enable systemd-networkd.service`}
	for _, h := range c.StringSlice("hook") {
		argv = append(argv, "--customize-hook="+h)
	}
	// Last of all: mmdebstrap copies these two from the machine that it runs on.
	argv = append(argv, `--customize-hook=rm -f "$1"/etc/hostname "$1"/etc/resolv.conf`)
	argv = append(argv, c.String("debian"), root)
	if m := c.String("mirror"); m != "" {
		argv = append(argv, m)
	}
	p.say("building a Debian %s tree with %d packages and what they need", c.String("debian"), len(packages))
	start := time.Now()
	if err := p.runTool(c.Context, argv, dir); err != nil {
		return withHint(fmt.Errorf("build image %q: %w", ref, err), "mmdebstrap (package mmdebstrap) needs root and a Debian mirror it can reach; --mirror names one")
	}
	p.say("tree built in %s", time.Since(start).Round(time.Second))
	return p.captureDir(c, w, store.Image{Source: "debian " + c.String("debian"), Arch: debianArch(c.Context)}, ref, wire.Request{Dir: root}, "")
}

// debianArch is what mmdebstrap builds for: the architecture of this machine as
// dpkg calls it, where that is what Go calls it; empty where nobody knows.
func debianArch(ctx context.Context) string {
	out, err := commandContext(ctx, "dpkg", "--print-architecture").Output()
	if arch := strings.TrimSpace(string(out)); err == nil && slices.Contains([]string{"amd64", "arm64", "riscv64"}, arch) {
		return arch
	}
	return ""
}

// newBuildDir makes a directory for a build and removes those that builds left
// whose processes are gone. It is locked (flock) while it is open.
func (p *program) newBuildDir(tmp string) (*os.File, error) {
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return nil, err
	}
	old, err := filepath.Glob(filepath.Join(tmp, "build-*"))
	if err != nil {
		return nil, err
	}
	for _, path := range old {
		dir, err := lockDir(path)
		if err != nil {
			continue // somebody builds there, or has just removed it
		}
		p.say("removing what an interrupted build left in %s", path)
		p.removeBuild(dir)
	}
	for {
		path, err := os.MkdirTemp(tmp, "build-")
		if err != nil {
			return nil, err
		}
		dir, err := lockDir(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EWOULDBLOCK) {
			continue // another build has taken it for a leftover
		}
		return dir, err
	}
}

// lockDir opens a directory that nobody else has locked.
func lockDir(path string) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil { // removed between open and flock?
		_, err = os.Lstat(path)
	}
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock %q: %w", path, err)
	}
	return dir, nil
}

// removeBuild removes a build directory, unless something is mounted there:
// that may be the /dev of this machine.
func (p *program) removeBuild(dir *os.File) {
	defer dir.Close()
	err := nothingMounted(dir.Name())
	if err == nil {
		err = os.RemoveAll(dir.Name())
	}
	if err != nil {
		p.say("note: %s stays: %v", dir.Name(), err)
	}
}

// nothingMounted looks for mounts below a directory (proc_pid_mountinfo(5)).
func nothingMounted(dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return err
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	below := strings.NewReplacer("\\", `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`).Replace(strings.TrimSuffix(real, "/")) + "/"
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], below) {
			return fmt.Errorf("%s is mounted there; `umount` it and remove the directory", f[4])
		}
	}
	return nil
}

// runTool runs a program whose messages matter only when it fails. Its
// processes keep the lock of dir until the last of them ends.
func (p *program) runTool(ctx context.Context, argv []string, dir *os.File) error {
	cmd := commandContext(ctx, argv[0], argv[1:]...)
	cmd.ExtraFiles = []*os.File{dir}
	out, err := cmd.CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		err = fmt.Errorf("%s: %w: %s", argv[0], err, strings.Join(lines[max(0, len(lines)-8):], "\n  "))
	}
	return err
}
