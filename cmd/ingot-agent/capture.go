package main

import (
	"context"
	"fmt"
	"time"

	"ingot/imager/tree"
	"ingot/imager/wire"
	"ingot/internal/pattern"
	"ingot/rollback"
)

// capture walks the tree and sends what the controller's store lacks.
func capture(ctx context.Context, conn *wire.Conn, req wire.Request) error {
	exclude, err := pattern.Parse(req.Exclude)
	if err != nil {
		return fmt.Errorf("exclude: %w", err)
	}
	own := derived(req.Dir)
	sink := wire.NewPusher(conn)
	var last time.Time
	report := func(bytes, _ int64) { // from one goroutine; a report that is lost is no loss
		if time.Since(last) > time.Second {
			last = time.Now()
			_ = conn.Send(wire.KindProgress, wire.Progress{Task: "capture", Done: bytes})
		}
	}
	m, stats, err := tree.Capture(ctx, req.Dir, tree.CaptureOptions{
		Exclude:       func(path string, isDir bool) bool { return exclude.Match(path) || !isDir && own[path] },
		Within:        func(path string) bool { return !exclude.Covers(path) },
		Sink:          sink,
		OneFileSystem: true,
		Progress:      report,
	})
	if err != nil {
		return err
	}
	sent, err := sink.Close()
	if err != nil {
		return err
	}
	if err := conn.Send(wire.KindAnswer, wire.Captured{Entries: len(m.Entries), Bytes: m.TotalSize(), Sent: sent, Notes: captureNotes(stats)}); err != nil {
		return err
	}
	return conn.SendBlob(m.Encode())
}

func captureNotes(s tree.Stats) []string {
	var out []string
	for _, p := range s.Sockets {
		out = append(out, fmt.Sprintf("%q is a socket: skipped", p))
	}
	for _, p := range s.Mounts {
		out = append(out, fmt.Sprintf("%q is a mount point: kept empty", p))
	}
	return out
}

// derived are the paths that the installation of this node made on top of its
// image and overlay: its fstab, its boot loader, its network. They are this
// machine's, so an image of it leaves them out. A tree that ingot did not
// install has none.
func derived(dir string) map[string]bool {
	out := map[string]bool{}
	n, err := rollback.Open(dir, nil)
	if err != nil {
		return out
	}
	defer n.Close()
	cur, err := n.Current()
	if err != nil {
		return out
	}
	for _, path := range cur.Derived {
		out[string(path)] = true
	}
	return out
}
