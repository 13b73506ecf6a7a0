package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/imager"
	"ingot/imager/store"
	"ingot/imager/tree"
	"ingot/imager/wire"
	"ingot/internal/manifest"
	"ingot/internal/pattern"
)

func (p *program) imageCommand() *cli.Command {
	return noun("image", "make, list and verify golden images",
		verb{name: "build", usage: "build an image of a Debian release", args: "NAME",
			about: `Builds a Debian tree with mmdebstrap and stores it as image NAME (name or name:tag). Besides
  --include it holds what a node needs to boot and to be managed: Debian's ordinary kernel with a
  generic initramfs, systemd, GRUB for BIOS and UEFI, and the SSH server. Host keys and machine-id
  are left out: each node gets its own.`,
			examples: []string{"ingot image build debian:12 --debian bookworm", "ingot image build web:1 --debian bookworm --include nginx-light,rsync",
				`ingot image build web:1 --debian bookworm --hook 'echo hello > "$1/etc/motd"'`},
			flags: []cli.Flag{
				&cli.StringFlag{Name: "debian", Usage: "the release's `SUITE`: bookworm, trixie"},
				&cli.StringSliceFlag{Name: "include", Usage: "more `PACKAGES`, separated by commas; may be repeated"},
				&cli.StringFlag{Name: "mirror", Usage: "`URL` of the Debian mirror", DefaultText: "mmdebstrap's"},
				&cli.StringSliceFlag{Name: "hook", Usage: "a shell `COMMAND` that changes the finished tree, whose top is $1; may be repeated"},
				jsonFlag(),
			}, run: p.imageBuild}.command(),
		verb{name: "capture", usage: "turn a directory or a live node into an image", args: "DIR|USER@HOST:/ NAME",
			about: `Stores a tree as image NAME (name or name:tag). A directory is taken as it is, without the file
  systems mounted in it; of a live node /proc, /sys, /dev, /run, logs, caches and temporary files
  are left out. Only chunks that the store lacks are compressed, and cross the wire. A file that
  changes while it is read is read again and, failing that, fails the capture: an image is published
  whole or not at all.`,
			examples: []string{"ingot image capture /srv/golden web:2", "ingot image capture root@n1:/ web:2      n1 is a node, or any host in known_hosts"},
			flags:    []cli.Flag{&cli.StringSliceFlag{Name: "exclude", Usage: "leave out paths like `PATTERN`, such as '/srv/**'; may be repeated"}, jsonFlag()}, run: p.imageCapture}.command(),
		verb{name: "list", aliases: []string{"ls"}, usage: "list the images",
			about: "SIZE is the content, STORED what it takes in the store, UNIQUE what removing it would free.", examples: []string{"ingot image list"}, flags: []cli.Flag{jsonFlag()}, run: p.imageList}.command(),
		verb{name: "show", usage: "show one image", args: "IMAGE", about: "Shows where an image comes from and what it holds.",
			examples: []string{"ingot image show web:2", "ingot image show web:2 --files"},
			flags:    []cli.Flag{&cli.BoolFlag{Name: "files", Usage: "list its entries"}, jsonFlag()}, run: p.imageShow}.command(),
		verb{name: "verify", usage: "read every byte of the images and check it", args: "[IMAGE]",
			about:    "Reads every byte of one image, or of the whole store, and names what is damaged and which images it concerns.",
			examples: []string{"ingot image verify", "ingot image verify web:2"}, flags: []cli.Flag{jsonFlag()}, run: p.imageVerify}.command(),
	)
}

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
	if err := os.MkdirAll(w.private("tmp"), 0o700); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(w.private("tmp"), "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	root := filepath.Join(dir, "root")
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
	if err := p.runTool(c.Context, argv); err != nil {
		return withHint(fmt.Errorf("build image %q: %w", ref, err), "mmdebstrap (package mmdebstrap) needs root and a Debian mirror it can reach; --mirror names one")
	}
	p.say("tree built in %s", time.Since(start).Round(time.Second))
	return p.captureDir(c, w, root, ref, "debian "+c.String("debian"), nil)
}

// runTool runs a program whose messages matter only when it fails.
func (p *program) runTool(ctx context.Context, argv []string) error {
	cmd := commandContext(ctx, argv[0], argv[1:]...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		err = fmt.Errorf("%s: %w: %s", argv[0], err, strings.Join(lines[max(0, len(lines)-8):], "\n  "))
	}
	return err
}

func (p *program) imageCapture(c *cli.Context) error {
	if err := wantArgs(c, 2, 2); err != nil {
		return err
	}
	ref, err := store.ParseRef(c.Args().Get(1))
	if err != nil {
		return usageError{err.Error()}
	}
	exclude := c.StringSlice("exclude")
	if _, err := pattern.Parse(exclude); err != nil {
		return usagef("--exclude: %v", err)
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	from := c.Args().First()
	user, rest, remote := strings.Cut(from, "@")
	if !remote {
		return p.captureDir(c, w, from, ref, "directory "+from, exclude)
	}
	host, dir, ok := strings.Cut(rest, ":")
	if !ok || !strings.HasPrefix(dir, "/") {
		return usagef("capture from %q: want USER@HOST:/DIR", from)
	}
	return p.captureHost(c, w, user, host, dir, ref, exclude)
}

// captureDir stores a directory of this machine.
func (p *program) captureDir(c *cli.Context, w *world, dir string, ref store.Ref, source string, exclude []string) error {
	patterns, err := pattern.Parse(exclude)
	if err != nil {
		return err
	}
	var total int64
	return p.publish(c, w, ref, source, func(ctx context.Context, sink imager.Sink, bar func(wire.Progress)) (*manifest.Manifest, []string, error) {
		m, stats, err := tree.Capture(ctx, dir, tree.CaptureOptions{
			Exclude: func(path string, _ bool) bool { return patterns.Match(path) },
			Within:  func(path string) bool { return !patterns.Covers(path) },
			Sink:    sink, OneFileSystem: true,
			Scanned:  func(_ int, bytes int64) { total = bytes },
			Progress: func(bytes, _ int64) { bar(wire.Progress{Task: "capture", Done: bytes, Total: total}) },
		})
		return m, captureNotes(stats), err
	})
}

func (p *program) captureHost(c *cli.Context, w *world, user, host, dir string, ref store.Ref, exclude []string) error {
	return p.publish(c, w, ref, user+"@"+host+":"+dir, func(ctx context.Context, sink imager.Sink, bar func(wire.Progress)) (*manifest.Manifest, []string, error) {
		s, err := p.dialAgent(ctx, w, user, host)
		if err != nil {
			return nil, nil, err
		}
		defer s.Close()
		req := wire.Request{Dir: dir, By: operator(), Exclude: slices.Concat(pattern.Volatile().Strings(), seal(), exclude)}
		m, stats, err := imager.Capture(ctx, s.conn, req, sink, bar)
		if err != nil {
			return nil, nil, s.explain(err)
		}
		p.say("%d entries, %s; %s of new content sent as %s", stats.Entries, size(stats.Bytes), size(stats.Sent), size(s.conn.Received()))
		p.say("left out, as it is the node's own: %s", strings.Join(seal(), " "))
		return m, stats.Notes, nil
	})
}

// seal is what makes a node itself, and so is no part of an image of it. Each
// installation makes these anew.
func seal() []string {
	return []string{"/etc/hostname", "/etc/machine-id", "/var/lib/dbus/machine-id", "/etc/ssh/ssh_host_*", "/root/.ssh/**"}
}

// publish runs a capture and gives its result a name: chunks durable first,
// then the manifest, then the name. The store is locked against a prune
// meanwhile.
func (p *program) publish(c *cli.Context, w *world, ref store.Ref, source string,
	capture func(context.Context, imager.Sink, func(wire.Progress)) (*manifest.Manifest, []string, error)) error {
	ctx := c.Context
	release, err := w.images.Lock(ctx, false)
	if err != nil {
		return err
	}
	defer release()
	writer, err := w.images.NewWriter(ctx)
	if err != nil {
		return err
	}
	defer writer.Abort()
	start := time.Now()
	bar := p.bar()
	m, notes, err := capture(ctx, writer, bar.show)
	bar.end()
	if err != nil {
		return fmt.Errorf("capture %q: %w", ref, err)
	}
	for _, n := range notes {
		p.say("note: %s", n)
	}
	if err := writer.Close(); err != nil {
		return fmt.Errorf("capture %q: %w", ref, err)
	}
	id, err := w.images.PutManifest(ctx, m)
	if err != nil {
		return err
	}
	img := store.Image{Digest: id, Source: source, Arch: "amd64", Kernel: kernelOf(m), Size: m.TotalSize(), Entries: len(m.Entries)}
	if err := w.images.SetRef(ctx, ref, img); err != nil {
		return err
	}
	stats := writer.Stats()
	if c.Bool("json") {
		return p.printJSON(map[string]any{"image": ref.String(), "digest": id, "entries": len(m.Entries), "bytes": m.TotalSize(),
			"new_chunks": stats.NewChunks, "new_bytes": stats.NewBytes, "stored_bytes": stats.Stored, "seconds": time.Since(start).Seconds()})
	}
	fmt.Fprintf(p.Stdout, "%s is %s: %d entries, %s, of it %s new, stored in %s (%s)\n", ref, id.Short(), len(m.Entries), size(m.TotalSize()),
		size(stats.NewBytes), size(stats.Stored), time.Since(start).Round(100*time.Millisecond))
	return nil
}

// kernelOf returns the version of the newest kernel in a tree.
func kernelOf(m *manifest.Manifest) string {
	var last string
	for _, e := range m.Entries {
		if v, ok := strings.CutPrefix(e.Path, "boot/vmlinuz-"); ok {
			last = v
		}
	}
	return last
}

func captureNotes(s tree.Stats) []string {
	var out []string
	for _, path := range s.Sockets {
		out = append(out, fmt.Sprintf("%q is a socket: skipped", path))
	}
	for _, path := range s.Mounts {
		out = append(out, fmt.Sprintf("%q is a mount point: kept empty", path))
	}
	return out
}
