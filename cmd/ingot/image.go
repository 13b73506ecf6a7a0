package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/imager"
	"ingot/imager/store"
	"ingot/imager/tree"
	"ingot/imager/wire"
	"ingot/internal/digest"
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
				&cli.StringFlag{Name: "debian", Usage: "the release's `SUITE`", Required: true},
				&cli.StringSliceFlag{Name: "include", Usage: "more `PACKAGES`, separated by commas"},
				&cli.StringFlag{Name: "mirror", Usage: "`URL` of the Debian mirror", DefaultText: "mmdebstrap's"},
				&cli.StringSliceFlag{Name: "hook", Usage: "shell `COMMAND` that changes the finished tree; $1 is its top"},
				jsonFlag(),
			}, run: p.imageBuild}.command(),
		verb{name: "capture", usage: "turn a directory or a live node into an image", args: "DIR|USER@HOST:/ NAME",
			about: `Stores a tree as image NAME (name or name:tag). A directory is taken as it is, without the file
  systems mounted in it; of a live node /proc, /sys, /dev, /run, logs, caches and temporary files
  are left out. Only chunks that the store lacks are compressed, and cross the wire. A file that
  changes while it is read is read again and, failing that, fails the capture: an image is published
  whole or not at all.`,
			examples: []string{"ingot image capture /srv/golden web:2", "ingot image capture root@n1:/ web:2      (n1: a node of the site, or any host in known_hosts)"},
			flags:    []cli.Flag{&cli.StringSliceFlag{Name: "exclude", Usage: "leave out paths like `PATTERN`"}, jsonFlag()}, run: p.imageCapture}.command(),
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
		req := wire.Request{Dir: dir, By: operator(), Exclude: append(pattern.Volatile().Strings(), exclude...)}
		m, stats, err := imager.Capture(ctx, s.conn, req, sink, bar)
		if err != nil {
			return nil, nil, s.explain(err)
		}
		p.say("%d entries, %s; %s of new content sent as %s", stats.Entries, size(stats.Bytes), size(stats.Sent), size(s.conn.Received()))
		return m, stats.Notes, nil
	})
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

func (p *program) imageList(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	usage, err := w.images.Usage(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return p.printJSON(usage)
	}
	rows := [][]string{{"IMAGE", "DIGEST", "ENTRIES", "SIZE", "STORED", "UNIQUE", "AGE", "KERNEL", "SOURCE"}}
	for _, u := range usage {
		if u.Err != nil {
			rows = append(rows, []string{u.Ref.String(), u.Digest.Short(), "damaged: " + u.Err.Error()})
			continue
		}
		rows = append(rows, []string{u.Ref.String(), u.Digest.Short(), fmt.Sprint(u.Entries), size(u.Size), size(u.Stored), size(u.Unique),
			time.Since(u.Created).Round(time.Minute).String(), u.Kernel, u.Source})
	}
	return p.table(rows)
}

func (p *program) imageShow(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	id, err := resolveImage(c.Context, w, c.Args().First())
	if err != nil {
		return err
	}
	m, err := w.images.Manifest(c.Context, id)
	if err != nil {
		return err
	}
	refs, err := w.images.Refs(c.Context)
	if err != nil {
		return err
	}
	var names []store.Named
	for _, n := range refs {
		if n.Digest == id {
			names = append(names, n)
		}
	}
	if c.Bool("json") {
		out := map[string]any{"digest": id, "names": names, "entries": len(m.Entries), "bytes": m.TotalSize(), "kernel": kernelOf(m)}
		if c.Bool("files") {
			out["files"] = m.Entries
		}
		return p.printJSON(out)
	}
	fmt.Fprintf(p.Stdout, "digest   %s\nentries  %d\nsize     %s\nkernel   %s\n", id, len(m.Entries), size(m.TotalSize()), orElse(kernelOf(m), "none"))
	for _, n := range names {
		fmt.Fprintf(p.Stdout, "name     %s, since %s, from %s\n", n.Ref, n.Created.Local().Format(time.DateTime), orElse(n.Source, "unknown"))
	}
	if c.Bool("files") {
		return listEntries(p.Stdout, m)
	}
	return nil
}

func listEntries(w io.Writer, m *manifest.Manifest) error {
	kinds := [...]string{"?", "-", "d", "l", "c", "b", "p"}
	for _, e := range m.Entries {
		if _, err := fmt.Fprintf(w, "%s%04o %5d %5d %12d %s %q\n", kinds[min(int(e.Type), len(kinds)-1)], e.Mode, e.UID, e.GID, e.Size,
			time.Unix(0, e.ModTime).UTC().Format("2006-01-02T15:04:05.000000000"), e.Path); err != nil {
			return err
		}
	}
	return nil
}

// resolveImage finds an image by name, name:tag or digest.
func resolveImage(ctx context.Context, w *world, text string) (digest.ID, error) {
	id, err := w.images.Resolve(ctx, text)
	if errors.Is(err, store.ErrMissing) {
		return id, withHint(fmt.Errorf("image %q: %w", text, err), "`ingot image list` shows the images of this site")
	}
	return id, err
}

func (p *program) imageVerify(c *cli.Context) error {
	if err := wantArgs(c, 0, 1); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	bar := p.bar()
	o := store.VerifyOptions{Progress: func(done, total int64) { bar.show(wire.Progress{Task: "verify", Done: done, Total: total}) }}
	if c.Args().Present() {
		if o.Manifest, err = resolveImage(c.Context, w, c.Args().First()); err != nil {
			return err
		}
	}
	rep, err := w.images.Verify(c.Context, o)
	bar.end()
	if err != nil {
		return err
	}
	if c.Bool("json") {
		if err := p.printJSON(rep); err != nil {
			return err
		}
	} else {
		for _, d := range rep.Damage {
			fmt.Fprintf(p.Stdout, "DAMAGED %s\n", d)
		}
		fmt.Fprintf(p.Stdout, "%d images, %d packs, %s read: %d damaged\n", rep.Manifests, rep.Packs, size(rep.Bytes), len(rep.Damage))
	}
	if len(rep.Damage) > 0 {
		return coded{fmt.Errorf("%d objects of the store are damaged", len(rep.Damage)), exitCorrupt}
	}
	return nil
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
