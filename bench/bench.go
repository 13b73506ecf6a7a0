package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// bench is a run.
type bench struct {
	// config
	o     options
	trees trees
	ingot string // a copy of the program, so that a build meanwhile does no harm

	// state
	dir    string // everything of this run, on the disk of the trees
	begin  time.Time
	number int             // of captures, to name them
	held   map[string]bool // "tool name": captures that a store holds
	tree   string          // what the tree that is captured is equal to now
	node   *node
	rows   []row
}

func newBench(ctx context.Context, o options) (*bench, error) {
	t, err := buildTrees(ctx, o.cache)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(o.cache, "run-")
	if err != nil {
		return nil, err
	}
	b := &bench{o: o, trees: t, dir: dir, ingot: filepath.Join(dir, "ingot"), begin: time.Now(), held: map[string]bool{}}
	if err := b.sh(ctx, `cp "$FROM" "$TO"; cp -a "$A" "$TREE"; find "$B" -type f -print0 | xargs -0 cat >/dev/null`,
		"FROM="+o.ingot, "TO="+b.ingot, "A="+t.a, "B="+t.b, "TREE="+b.treeDir()); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	b.tree = "A"
	return b, nil
}

// treeDir is the directory that is captured: always the same one, so that
// caches know it, whatever it holds.
func (b *bench) treeDir() string { return filepath.Join(b.dir, "tree") }

// key is the SSH key of the site.
func (b *bench) key() string {
	return filepath.Join(b.state(b.ours()), "site", ".ingot", "keys", "id_ed25519")
}

func (b *bench) ours() archiver { return archivers()[0] }

// clean removes what the run made. The namespaces, and so the mounts, end with
// the process.
func (b *bench) clean() {
	if err := b.node.off(); err != nil {
		b.say("stop the node: %v", err)
	}
	_ = b.sh(context.Background(), `umount -l "$DIR/node" 2>/dev/null || true`, "DIR="+b.dir) // there may be none
	if err := os.RemoveAll(b.dir); err != nil {
		b.say("remove %s: %v", b.dir, err)
	}
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%5.0fs  "+format+"\n", append([]any{time.Since(b.begin).Seconds()}, args...)...)
}

// uses reports whether a tool was asked for: `rsync` asks for all rows of rsync.
func (b *bench) uses(tool string) bool {
	return len(b.o.tools) == 0 || slices.ContainsFunc(b.o.tools, func(t string) bool { return t == words(tool)[0] })
}

// morph makes the captured tree equal to another, by name.
func (b *bench) morph(ctx context.Context, to string) error {
	if b.tree == to {
		return nil
	}
	b.tree = ""
	script := `rsync -aHAX --numeric-ids --delete "$SOURCE/" "$TREE/"`
	source := b.trees.a
	switch to {
	case "B":
		source = b.trees.b
	case oneFile:
		script += `; echo 'bench 9999/tcp # one line more' >>"$TREE/etc/services"`
	case beforeRename, afterRename:
		script += releaseScript
	}
	// Files that changed in the last seconds are not trusted by some caches.
	if err := b.sh(ctx, script+"; sleep 2", "SOURCE="+source, "TREE="+b.treeDir(), "RELEASE="+to); err != nil {
		return fmt.Errorf("make tree %s: %w", to, err)
	}
	b.tree = to
	return nil
}

// Trees that are made of A.
const (
	oneFile      = "one-file"  // one line more in etc/services
	beforeRename = "release-1" // what is large moved into srv/release-1
	afterRename  = "release-2" // and that renamed to srv/release-2
)

// releaseScript moves directories of together more than 500 MB, which a running
// node does not need, into one.
const releaseScript = `
mkdir -p "$TREE/srv/$RELEASE"
for d in usr/lib/modules usr/lib/gcc usr/src usr/lib/git-core usr/share/doc usr/share/locale usr/share/man usr/lib/python3.11; do
	mkdir -p "$TREE/srv/$RELEASE/$(dirname $d)"
	mv "$TREE/$d" "$TREE/srv/$RELEASE/$d"
done`

// all does the works that were asked for.
func (b *bench) all(ctx context.Context) error {
	for _, w := range works() {
		if !b.o.does(w.name) {
			continue
		}
		if err := w.do(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return nil
}
