package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/imager"
	"ingot/imager/snapshot"
	"ingot/imager/store"
	"ingot/imager/tree"
	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/durable"
	"ingot/internal/manifest"
	"ingot/internal/pattern"
)

func (p *program) captureVerb() verb {
	return verb{name: "capture", usage: "turn a directory or a live node into an image", args: "DIR|USER@HOST:/ NAME",
		about: `Stores a tree as image NAME (name or name:tag), without the file systems mounted in it. Only content
  that the store lacks is compressed, and crosses the wire; where a capture is interrupted, a repeat
  does not send again what had arrived. An image is published whole or not at all.

  A directory is taken as it is. Of a live node is left out: ` + strings.Join(pattern.Live().Strings(), " ") + `,
  and it is sealed (--seal does that to a directory, too; --no-seal takes all): what makes a machine
  itself is left out, and named at the end. These are: ` + strings.Join(pattern.Seal().Strings(), " ") + `.
  The directories of /var/log and /var/cache stay, for services need theirs; /etc/machine-id becomes
  an empty file, so that systemd makes one at the first boot. A pattern beginning with ! in --exclude
  takes back what is left out.

  The image is true to one moment: what has changed since the capture began is captured again, a few
  times, and then fails the capture by name, unless --allow-changed says that it may. What is left out
  never matters. Programs that write through a shared mapping (databases do) change a file without a
  trace for up to half a minute: capture a snapshot of these. That is what happens where the root of a
  node is a btrfs subvolume without others in it. Elsewhere --snapshot takes a COMMAND that prints the directory of a snapshot (the last line
  of its output; in its environment INGOT_TREE is what to capture), and --snapshot-end one that
  releases it, which is run whatever happens (INGOT_SNAPSHOT is the directory, empty when none was made); after a
  crash the next capture with --snapshot runs it.

  With LVM the first could be 'set -e; lvcreate -qq -s -n ingot -L 5G vg/root; mount -o ro
  /dev/vg/ingot /mnt; echo /mnt' and the second 'umount /mnt; lvremove -qqf vg/ingot'. With ZFS,
  'set -e; zfs snapshot rpool/root@ingot; echo /.zfs/snapshot/ingot' and 'zfs destroy
  rpool/root@ingot'.`,
		examples: []string{"ingot image capture /srv/golden web:2", "ingot image capture root@n1:/ web:2      n1 is a node, or any host in known_hosts",
			"ingot image capture root@n1:/ web:2 --exclude '/srv/**' --allow-changed '/var/lib/munin/**'",
			"ingot image capture root@n1:/ web:2 --snapshot '/root/snap on' --snapshot-end '/root/snap off'"},
		flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "exclude", Usage: "leave out paths like `PATTERN`, such as '/srv/**'; may be repeated"},
			bwlimitFlag(),
			&cli.StringSliceFlag{Name: "allow-changed", Usage: "take what is like `PATTERN` as it comes when it changes meanwhile, and note it; may be repeated"},
			&cli.BoolFlag{Name: "seal", Usage: "leave out of a directory what makes a machine itself"},
			&cli.BoolFlag{Name: "no-seal", Usage: "take from a live node also what makes it itself: keys, logs and all"},
			&cli.BoolFlag{Name: "cross-mounts", Usage: "also take the file systems that are mounted in it"},
			&cli.StringFlag{Name: "snapshot", Usage: "capture a snapshot: `HOW` is btrfs, none, auto (btrfs where that is possible) or a command", DefaultText: "auto for a node, none for a directory"},
			&cli.StringFlag{Name: "snapshot-end", Usage: "`COMMAND` that releases what the command of --snapshot has made"},
			jsonFlag()}, run: p.imageCapture}
}

// captureRequest reads the options, as the agent wants them.
func captureRequest(c *cli.Context, live bool) (wire.Request, error) {
	req := wire.Request{By: operator(), Exclude: c.StringSlice("exclude"), AllowChanged: c.StringSlice("allow-changed"), CrossMounts: c.Bool("cross-mounts"),
		Seal: live && !c.Bool("no-seal") || c.Bool("seal"), Snapshot: c.String("snapshot"), SnapshotEnd: c.String("snapshot-end")}
	for flag, list := range map[string][]string{"exclude": req.Exclude, "allow-changed": req.AllowChanged} {
		if _, err := pattern.Parse(list); err != nil {
			return req, usagef("--%s: %v", flag, err)
		}
	}
	if c.Bool("seal") && c.Bool("no-seal") {
		return req, usagef("--seal and --no-seal are opposites")
	}
	asked := req.Snapshot != "" && req.Snapshot != snapshot.None && req.Snapshot != snapshot.Auto
	switch {
	case asked && req.CrossMounts:
		return req, usagef("--cross-mounts takes what is mounted, and a snapshot has no mounts: give one of the two")
	case req.SnapshotEnd != "" && (!asked || req.Snapshot == snapshot.Btrfs):
		return req, usagef("--snapshot-end releases what the command of --snapshot has made, and there is none")
	case req.CrossMounts || req.Snapshot == "" && !live:
		req.Snapshot = snapshot.None
	case req.Snapshot == "":
		req.Snapshot = snapshot.Auto
	}
	return req, nil
}

func (p *program) imageCapture(c *cli.Context) error {
	if err := wantArgs(c, 2, 2); err != nil {
		return err
	}
	if err := p.setLimit(c.String("bwlimit")); err != nil {
		return err
	}
	ref, err := store.ParseRef(c.Args().Get(1))
	if err != nil {
		return usageError{err.Error()}
	}
	from := c.Args().First()
	user, host, dir, remote := parseRemote(from)
	req, err := captureRequest(c, remote)
	if err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	if remote {
		req.Dir = dir
		return p.captureHost(c, w, user, host, ref, req)
	}
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) && strings.Contains(from, "@") && !strings.Contains(from, "/") {
		return usagef("capture from %q: no such directory, and of a live node: want USER@HOST:/DIR", from)
	}
	req.Dir = from
	return p.captureDir(c, w, store.Image{Source: "directory " + from}, ref, req, w.captureCache(from))
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

// captureDir stores a directory of this machine. cache is the file that
// remembers what was read; without one everything is read.
func (p *program) captureDir(c *cli.Context, w *world, img store.Image, ref store.Ref, req wire.Request, cache string) error {
	known := p.remember(cache) // is read while the store is
	saved := func() error { return nil }
	defer func() {
		if err := saved(); err != nil {
			p.say("note: the next capture will read every file again: %v", err)
		}
	}()
	return p.publish(c, w, ref, img, func(ctx context.Context, sink imager.Sink, bar func(wire.Progress)) (m *manifest.Manifest, got wire.Captured, err error) {
		selected, err := tree.NewSelection(tree.SelectOptions{Seal: req.Seal, Exclude: req.Exclude, AllowChanged: req.AllowChanged})
		if err != nil {
			return nil, got, err
		}
		snap, err := snapshot.Take(ctx, req.Dir, req.Snapshot, req.SnapshotEnd)
		if err != nil {
			return nil, got, err
		}
		defer func() { err = errors.Join(err, snap.Release()) }()
		var total int64
		opts := tree.CaptureOptions{Sink: sink, OneFileSystem: !req.CrossMounts,
			Scanned:  func(_ int, bytes int64) { total = bytes },
			Progress: func(bytes, _ int64) { bar(wire.Progress{Task: "capture", Done: bytes, Total: total}) },
		}
		selected.Apply(&opts)
		if known != nil {
			opts.Cache, opts.Captured = known, known.Record
		}
		m, stats, err := tree.Capture(ctx, snap.Dir, opts)
		if err != nil {
			return nil, got, err
		}
		if known != nil { // while the image is published
			saved = sync.OnceValue(known.Save)
			go saved()
		}
		got.Notes, got.Sealed = stats.Notes(), selected.Sealed()
		if snap.Note != "" {
			got.Notes = append(got.Notes, snap.Note)
		}
		if stats.Cached > 0 {
			got.Notes = append(got.Notes, fmt.Sprintf("%s of %d not read: unchanged since the last capture", count(stats.Cached, "file"), stats.Files))
		}
		return m, got, nil
	})
}

// remember opens the cache in a file, for a capture to use and to fill. It
// saves time; without one, nil, the capture is the same.
func (p *program) remember(path string) (cache *tree.FileCache) {
	if path == "" {
		return nil
	}
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		_, err = durable.Sweep(filepath.Dir(path))
	}
	if err == nil {
		cache, err = tree.OpenCache(path)
	}
	if err != nil {
		p.say("note: every file is read: %v", err)
		return nil
	}
	return cache
}

func (p *program) captureHost(c *cli.Context, w *world, user, host string, ref store.Ref, req wire.Request) error {
	return p.publish(c, w, ref, store.Image{Source: user + "@" + host + ":" + req.Dir}, func(ctx context.Context, sink imager.Sink, bar func(wire.Progress)) (*manifest.Manifest, wire.Captured, error) {
		s, err := p.dialAgent(ctx, w, user, host, "")
		if err != nil {
			return nil, wire.Captured{}, err
		}
		defer s.Close()
		m, stats, err := imager.Capture(ctx, s.conn, req, sink, bar)
		if err != nil {
			return nil, stats, s.explain(err)
		}
		p.say("%d entries, %s; %s of new content sent as %s", stats.Entries, size(stats.Bytes), size(stats.Sent), size(s.conn.Received()))
		return m, stats, nil
	})
}

// opened is a store that no prune touches, with a writer.
type opened struct {
	writer  *store.Writer
	release func()
}

func (p *program) openStore(ctx context.Context, w *world) (*opened, error) {
	release, err := p.shareImages(ctx, w)
	if err != nil {
		return nil, err
	}
	// What has arrived is kept, whatever ends the capture.
	writer, err := w.images.NewWriter(context.WithoutCancel(ctx))
	if err != nil {
		release()
		return nil, err
	}
	return &opened{writer, release}, nil
}

// lateSink is a store that is still being opened: whoever asks it waits.
type lateSink func() (*opened, error)

// Missing implements imager.Sink.
func (f lateSink) Missing(ctx context.Context, ids []digest.ID) ([]digest.ID, error) {
	o, err := f()
	if err != nil {
		return nil, err
	}
	return o.writer.Missing(ctx, ids)
}

// Put implements imager.Sink.
func (f lateSink) Put(ctx context.Context, id digest.ID, data []byte) error {
	o, err := f()
	if err != nil {
		return err
	}
	return o.writer.Put(ctx, id, data)
}

// end lets go of the store; a writer that was not closed forgets what is not durable.
func (f lateSink) end() {
	if o, err := f(); err == nil {
		o.writer.Abort()
		o.release()
	}
}

// publish runs a capture and gives its result a name, with what img says of
// where it comes from: chunks durable first, then the manifest, then the name.
// The store is locked against a prune meanwhile.
func (p *program) publish(c *cli.Context, w *world, ref store.Ref, img store.Image,
	capture func(context.Context, imager.Sink, func(wire.Progress)) (*manifest.Manifest, wire.Captured, error)) error {
	ctx := c.Context
	// The index of the store is read while the tree is scanned.
	late := lateSink(sync.OnceValues(func() (*opened, error) { return p.openStore(ctx, w) }))
	go late()
	defer late.end()
	start := time.Now()
	bar := p.bar()
	m, got, err := capture(ctx, late, bar.show)
	bar.end()
	o, openErr := late()
	switch {
	case openErr != nil && (err == nil || errors.Is(err, openErr)):
		return openErr
	case openErr != nil:
		return fmt.Errorf("capture %q: %w", ref, err)
	}
	writer := o.writer
	closed := writer.Close()
	if err != nil {
		if closed == nil && writer.Stats().NewBytes > 0 {
			p.say("kept: %s of content that had arrived, which a repeat does not send again", size(writer.Stats().NewBytes))
		}
		return fmt.Errorf("capture %q: %w", ref, err)
	}
	if closed != nil {
		return fmt.Errorf("capture %q: %w", ref, closed)
	}
	for _, n := range got.Notes {
		p.say("note: %s", n)
	}
	if len(got.Sealed) > 0 {
		p.say("left out or emptied, as it is the machine's own: %s", quoted(got.Sealed))
	}
	id, err := w.images.PutManifest(ctx, m)
	if err != nil {
		return err
	}
	img.Digest, img.Kernel, img.Size, img.Entries, img.Parent, img.Sealed = id, kernelOf(m), m.TotalSize(), len(m.Entries), got.Parent, got.Sealed
	arch, err := imager.Arch(ctx, m, w.images)
	if err != nil {
		return err
	}
	img.Arch = orElse(arch, img.Arch)
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

// quoted is a list of paths for people.
func quoted(paths []string) string {
	const most = 20
	var out []string
	for _, path := range paths[:min(len(paths), most)] {
		out = append(out, wire.Printable(path))
	}
	if more := len(paths) - most; more > 0 {
		out = append(out, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(out, " ")
}
