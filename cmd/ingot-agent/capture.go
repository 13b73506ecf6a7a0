package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ingot/imager/snapshot"
	"ingot/imager/tree"
	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/rollback"
)

// capture walks the tree, or a snapshot of it, and sends what the controller's
// store lacks.
func capture(ctx context.Context, conn *wire.Conn, req wire.Request) (err error) {
	selected, err := tree.NewSelection(tree.SelectOptions{Live: true, Seal: req.Seal, Exclude: req.Exclude, AllowChanged: req.AllowChanged})
	if err != nil {
		return err
	}
	before, err := settled(req.Dir)
	if err != nil {
		return err
	}
	node, err := installed(req.Dir)
	if err != nil {
		return err
	}
	if conf, err := sidesOf(req); err != nil {
		return err
	} else if conf != nil { // what both sides share is part of the tree that runs
		for _, at := range slices.Concat(conf.Trees, conf.Own) {
			node.volumes[at] = true
		}
	}
	how := req.Snapshot
	if how == snapshot.Auto && len(node.volumes) > 0 {
		how = snapshot.None // of the top alone it would lack the rest of the tree
	}
	snap, err := snapshot.Take(ctx, req.Dir, how, req.SnapshotEnd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, snap.Release()) }()
	if snap.Taken() {
		if err := unmoved(req.Dir, before); err != nil {
			return err
		}
	}
	sink := wire.NewPusher(conn)
	opts := tree.CaptureOptions{Sink: sink, Cache: node.cache(req.Dir, snap), OneFileSystem: !req.CrossMounts,
		Cross: func(path string) bool { return !snap.Taken() && node.volumes[path] }}
	selected.Apply(&opts)
	out, within := opts.Exclude, opts.Within
	opts.Within = func(path string) bool { return !node.homes[path] && within(path) }
	opts.Exclude = func(path string, isDir bool) bool {
		return out(path, isDir) || !isDir && node.own[path] || node.homes[path]
	}
	report(conn, &opts)
	m, stats, err := tree.Capture(ctx, snap.Dir, opts)
	if err != nil {
		return err
	}
	if !snap.Taken() {
		if err := unmoved(req.Dir, before); err != nil {
			return err
		}
	}
	sent, err := sink.Close()
	if err != nil {
		return err
	}
	if err := snap.Release(); err != nil {
		return err
	}
	c := wire.Captured{Entries: len(m.Entries), Bytes: m.TotalSize(), Sent: sent, Notes: some(stats.Notes()), Sealed: some(selected.Sealed()), Parent: node.image}
	if snap.Note != "" {
		c.Notes = append(c.Notes, snap.Note)
	}
	if err := conn.Send(wire.KindAnswer, c); err != nil {
		return err
	}
	return conn.SendBlob(m.Encode())
}

// report tells the controller once a second how far a capture is.
func report(conn *wire.Conn, o *tree.CaptureOptions) {
	var last time.Time
	var total int64
	o.Scanned = func(entries int, bytes int64) {
		total = bytes
		roomFor(entries)
	}
	o.Progress = func(bytes, _ int64) { // from one goroutine; a report that is lost is no loss
		if time.Since(last) > time.Second {
			last = time.Now()
			_ = conn.Send(wire.KindProgress, wire.Progress{Task: "capture", Done: bytes, Total: total})
		}
	}
}

// errMoved: the tree that was captured is neither the old nor the new one.
var errMoved = errors.New("changed generation while it was captured")

// unmoved makes sure that a tree still is the generation that it was.
func unmoved(dir string, before int) error {
	after, err := settled(dir)
	if err != nil {
		return fmt.Errorf("%q %w: %w", dir, errMoved, err)
	}
	if after != before {
		return fmt.Errorf("%q %w", dir, errMoved)
	}
	return nil
}

// settled returns the generation that a tree is, 0 where ingot has none of it.
// A tree in the middle of a switch is none.
func settled(dir string) (int, error) {
	n, err := rollback.Open(dir, nil)
	if err != nil {
		return 0, err
	}
	defer n.Close()
	if _, err := os.Lstat(filepath.Join(dir, ".ingot/journal")); !errors.Is(err, os.ErrNotExist) {
		return 0, underWay(dir, rollback.ErrInterrupted)
	}
	g, err := n.Current()
	if errors.Is(err, rollback.ErrNoGeneration) {
		return 0, nil
	}
	return g.Number, err
}

// knownTree is what ingot knows of a tree.
type knownTree struct {
	own       map[string]bool // paths that the installation made on top of image and overlay: this machine's fstab, its boot loader
	volumes   map[string]bool // mount points of the file systems that its record is about
	homes     map[string]bool // ingot's own directories on the file systems besides that of the top
	image     digest.ID       // that it runs; none: not known
	unchanged func(path string, st entry.Stat) (*entry.Entry, bool)
}

// installed returns what ingot knows of a tree that it installed. Of another
// tree nothing is known.
func installed(dir string) (k knownTree, err error) {
	k.own, k.homes, k.volumes = map[string]bool{}, map[string]bool{}, map[string]bool{}
	n, err := rollback.Open(dir, nil)
	if err != nil {
		return k, err
	}
	defer n.Close()
	if k.unchanged, err = n.Unchanged(); err != nil {
		return k, err
	}
	cur, err := n.Current()
	if errors.Is(err, rollback.ErrNoGeneration) {
		return k, nil
	}
	if err != nil {
		return k, err
	}
	for _, v := range cur.Volumes {
		k.homes[string(v.At)+"/.ingot"], k.volumes[string(v.At)] = true, true
	}
	k.image = cur.ImageID
	for _, path := range cur.Derived {
		k.own[string(path)] = true
	}
	return k, nil
}

// cache returns what is known of the files of a tree, or of a snapshot of it,
// which has the same inodes with another device number.
func (k knownTree) cache(dir string, snap *snapshot.Snapshot) tree.Cache {
	live, err := entry.StatAt(unix.AT_FDCWD, filepath.Join(dir, "/")+"/.")
	if err != nil || !snap.Taken() {
		return unchanged(k.unchanged)
	}
	return unchanged(func(path string, st entry.Stat) (*entry.Entry, bool) {
		st.Dev = live.Dev
		return k.unchanged(path, st)
	})
}

// unchanged is what the generations of a node know of its files.
type unchanged func(path string, st entry.Stat) (*entry.Entry, bool)

// Lookup implements tree.Cache.
func (u unchanged) Lookup(path string, st entry.Stat) ([]entry.Extent, []entry.Chunk, bool) {
	e, ok := u(path, st)
	if !ok {
		return nil, nil, false
	}
	return e.Holes, e.Chunks, true
}
