package main

import (
	"cmp"
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

	"ingot/imager"
	"ingot/imager/store"
	"ingot/imager/tree"
	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/durable"
	"ingot/internal/manifest"
	"ingot/internal/pattern"
)

func (p *program) imageCommand() *cli.Command {
	return noun("image", "make, show, compare, verify and remove golden images",
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
			about: `Reads every byte of one image, or of the whole store, and names what is damaged and which images it
  concerns. With --repair, damaged packs are taken out of use, so that the next capture or build of
  an image stores their content anew; without, it would find it in the index, and leave it out. What
  is taken out of use stays in the store's directory damaged/.`,
			examples: []string{"ingot image verify", "ingot image verify web:2", "ingot image verify --repair"},
			flags:    []cli.Flag{&cli.BoolFlag{Name: "repair", Usage: "take damaged packs out of use"}, jsonFlag()}, run: p.imageVerify}.command(),
		p.imageDiffVerb(), p.imageTagVerb(), p.imageRmVerb(), p.imagePruneVerb(),
	)
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
	if user, host, dir, ok := parseRemote(from); ok {
		return p.captureHost(c, w, user, host, dir, ref, exclude)
	}
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) && strings.Contains(from, "@") && !strings.Contains(from, "/") {
		return usagef("capture from %q: no such directory, and of a live node: want USER@HOST:/DIR", from)
	}
	return p.captureDir(c, w, from, store.Image{Source: "directory " + from}, ref, captureDirOptions{exclude: exclude, cache: w.captureCache(from)})
}

// parseRemote reads USER@HOST:/DIR. What has a slash before the colon is a
// directory of this machine, as it is for scp and rsync.
func parseRemote(s string) (user, host, dir string, ok bool) {
	at, dir, ok := strings.Cut(s, ":")
	if !ok || !strings.HasPrefix(dir, "/") || strings.Contains(at, "/") {
		return "", "", "", false
	}
	user, host, ok = strings.Cut(at, "@")
	return user, host, dir, ok && user != "" && host != ""
}

// captureDirOptions say how to capture a directory.
type captureDirOptions struct {
	exclude []string
	cache   string // file that remembers what was read; none: read everything
}

// captureCache returns the file that knows what captures of a directory have
// read; it may be removed at any time.
func (w *world) captureCache(dir string) string {
	real, err := filepath.Abs(dir)
	if err == nil {
		real, err = filepath.EvalSymlinks(real)
	}
	if err != nil {
		return "" // the capture says why
	}
	return w.private("cache", "capture", digest.Of([]byte(real)).String())
}

// captureDir stores a directory of this machine.
func (p *program) captureDir(c *cli.Context, w *world, dir string, img store.Image, ref store.Ref, o captureDirOptions) error {
	patterns, err := pattern.Parse(o.exclude)
	if err != nil {
		return err
	}
	var total int64
	return p.publish(c, w, ref, img, func(ctx context.Context, sink imager.Sink, bar func(wire.Progress)) (*manifest.Manifest, []string, error) {
		opts := tree.CaptureOptions{
			Exclude: func(path string, _ bool) bool { return patterns.Match(path) },
			Within:  func(path string) bool { return !patterns.Covers(path) },
			Sink:    sink, OneFileSystem: true,
			Scanned:  func(_ int, bytes int64) { total = bytes },
			Progress: func(bytes, _ int64) { bar(wire.Progress{Task: "capture", Done: bytes, Total: total}) },
		}
		save := p.remember(&opts, o.cache)
		m, stats, err := tree.Capture(ctx, dir, opts)
		if err == nil {
			save()
		}
		notes := stats.Notes()
		if stats.Cached > 0 {
			notes = append(notes, fmt.Sprintf("%s of %d not read: unchanged since the last capture", count(stats.Cached, "file"), stats.Files))
		}
		return m, notes, err
	})
}

// remember lets a capture use and fill the cache in a file. A cache saves
// time; without one the capture is the same.
func (p *program) remember(o *tree.CaptureOptions, path string) (save func()) {
	if path == "" {
		return func() {}
	}
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		_, err = durable.Sweep(filepath.Dir(path))
	}
	var cache *tree.FileCache
	if err == nil {
		cache, err = tree.OpenCache(path)
	}
	if err != nil {
		p.say("note: every file is read: %v", err)
		return func() {}
	}
	o.Cache, o.Captured = cache, cache.Record
	return func() {
		if err := cache.Save(); err != nil {
			p.say("note: the next capture will read every file again: %v", err)
		}
	}
}

func (p *program) captureHost(c *cli.Context, w *world, user, host, dir string, ref store.Ref, exclude []string) error {
	return p.publish(c, w, ref, store.Image{Source: user + "@" + host + ":" + dir}, func(ctx context.Context, sink imager.Sink, bar func(wire.Progress)) (*manifest.Manifest, []string, error) {
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

// publish runs a capture and gives its result a name, with what img says of
// where it comes from: chunks durable first, then the manifest, then the name.
// The store is locked against a prune meanwhile.
func (p *program) publish(c *cli.Context, w *world, ref store.Ref, img store.Image,
	capture func(context.Context, imager.Sink, func(wire.Progress)) (*manifest.Manifest, []string, error)) error {
	ctx := c.Context
	release, err := p.shareImages(ctx, w)
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
	img.Digest, img.Kernel, img.Size, img.Entries = id, kernelOf(m), m.TotalSize(), len(m.Entries)
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
	var newest string
	for _, e := range m.Entries {
		v, ok := strings.CutPrefix(e.Path, "boot/vmlinuz-")
		if ok && !strings.Contains(v, "/") && compareVersions(v, newest) > 0 {
			newest = v
		}
	}
	return newest
}

// compareVersions compares runs of digits by value and the rest by bytes:
// 6.1.0-9 comes before 6.1.0-10.
func compareVersions(a, b string) int {
	isDigit := func(r rune) bool { return r >= '0' && r <= '9' }
	run := func(s string) (digits bool, head, rest string) {
		digits = isDigit(rune(s[0]))
		n := strings.IndexFunc(s, func(r rune) bool { return isDigit(r) != digits })
		if n < 0 {
			n = len(s)
		}
		return digits, s[:n], s[n:]
	}
	for a != "" && b != "" {
		var c int
		var da, db bool
		var x, y string
		da, x, a = run(a)
		db, y, b = run(b)
		if da && db {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			c = cmp.Compare(len(x), len(y))
		}
		if c = cmp.Or(c, strings.Compare(x, y)); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(a), len(b))
}
