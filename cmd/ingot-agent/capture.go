package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"ingot/imager/tree"
	"ingot/imager/wire"
	"ingot/internal/entry"
	"ingot/internal/pattern"
	"ingot/rollback"
)

// capture walks the tree and sends what the controller's store lacks.
func capture(ctx context.Context, conn *wire.Conn, req wire.Request) error {
	exclude, err := pattern.Parse(req.Exclude)
	if err != nil {
		return fmt.Errorf("exclude: %w", err)
	}
	before, err := settled(req.Dir)
	if err != nil {
		return err
	}
	own, known, err := installed(req.Dir)
	if err != nil {
		return err
	}
	sink := wire.NewPusher(conn)
	var last time.Time
	var total int64
	report := func(bytes, _ int64) { // from one goroutine; a report that is lost is no loss
		if time.Since(last) > time.Second {
			last = time.Now()
			_ = conn.Send(wire.KindProgress, wire.Progress{Task: "capture", Done: bytes, Total: total})
		}
	}
	m, stats, err := tree.Capture(ctx, req.Dir, tree.CaptureOptions{
		Exclude:       func(path string, isDir bool) bool { return exclude.Match(path) || !isDir && own[path] },
		Within:        func(path string) bool { return !exclude.Covers(path) },
		Sink:          sink,
		Cache:         known,
		OneFileSystem: true,
		Scanned:       func(_ int, bytes int64) { total = bytes },
		Progress:      report,
	})
	if err != nil {
		return err
	}
	if after, err := settled(req.Dir); err != nil {
		return fmt.Errorf("%q %w: %w", req.Dir, errMoved, err)
	} else if after != before {
		return fmt.Errorf("%q %w", req.Dir, errMoved)
	}
	sent, err := sink.Close()
	if err != nil {
		return err
	}
	if err := conn.Send(wire.KindAnswer, wire.Captured{Entries: len(m.Entries), Bytes: m.TotalSize(), Sent: sent, Notes: some(stats.Notes())}); err != nil {
		return err
	}
	return conn.SendBlob(m.Encode())
}

// errMoved: the tree that was captured is neither the old nor the new one.
var errMoved = errors.New("changed generation while it was captured")

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

// installed returns what ingot knows of a tree that it installed: the paths
// that the installation made on top of image and overlay, which are this
// machine's (its fstab, its boot loader) and so are left out of an image of
// it; and the files that need not be read. Of another tree nothing is known.
func installed(dir string) (own map[string]bool, known unchanged, err error) {
	own = map[string]bool{}
	n, err := rollback.Open(dir, nil)
	if err != nil {
		return own, nil, err
	}
	defer n.Close()
	if known, err = n.Unchanged(); err != nil {
		return own, known, err
	}
	cur, err := n.Current()
	if errors.Is(err, rollback.ErrNoGeneration) {
		return own, known, nil
	}
	if err != nil {
		return own, known, err
	}
	for _, path := range cur.Derived {
		own[string(path)] = true
	}
	return own, known, nil
}
