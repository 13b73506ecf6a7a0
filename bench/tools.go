package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// archiver is a tool that keeps trees in a store of its own. The scripts get
// STATE (a directory of its own, with everything it keeps and caches), TREE
// (what to store), NAME (to store it under) and TO (an empty directory).
type archiver struct {
	name    string
	slow    bool
	alone   bool // has no store: what it stored before does not help
	init    string
	capture string
	write   string
	stored  []string // below STATE: the store, without caches
}

const ingotSite = `"$INGOT" --site "$STATE/site"`

// archivers are the tools and how people use them: defaults, with their caches,
// and with every kind of metadata that they can keep.
func archivers() []archiver {
	const tar = `tar -C "$TREE" --xattrs --xattrs-include='*' --acls --numeric-owner --sparse -cf - . | zstd -q -f %s -o "$STATE/store/$NAME.tar.zst"`
	const untar = `zstd -q -d -c "$STATE/store/$NAME.tar.zst" | tar -C "$TO" --xattrs --xattrs-include='*' --acls --numeric-owner -xpf -`
	const dir = `mkdir -p "$STATE/store" "$STATE/cache"`
	return []archiver{
		{name: "ingot",
			init:    `mkdir -p "$STATE"; "$INGOT" init "$STATE/site"`,
			capture: ingotSite + ` image capture "$TREE" "tree:$NAME"`,
			write:   ingotSite + ` push "tree:$NAME" --dir "$TO"`,
			stored:  []string{"site/.ingot/store"}},
		{name: "tar | zstd -3 -T0", alone: true, init: dir, capture: fmt.Sprintf(tar, "-3 -T0"), write: untar, stored: []string{"store"}},
		{name: "tar | zstd -1", alone: true, init: dir, capture: fmt.Sprintf(tar, "-1"), write: untar, stored: []string{"store"}},
		{name: "casync", slow: true, init: dir,
			capture: `casync make --store="$STATE/store" --cache="$STATE/cache/c" "$STATE/store/$NAME.caidx" "$TREE"`,
			write:   `casync extract --store="$STATE/store" "$STATE/store/$NAME.caidx" "$TO"`,
			stored:  []string{"store"}},
		{name: "desync", init: dir,
			capture: `desync tar -i -s "$STATE/store" "$STATE/store/$NAME.caidx" "$TREE"`,
			write:   `desync untar -i -s "$STATE/store" "$STATE/store/$NAME.caidx" "$TO"`,
			stored:  []string{"store"}},
		{name: "restic",
			init:    dir + `; restic init --repository-version 2`,
			capture: `cd "$TREE"; restic backup --quiet --tag "$NAME" .`,
			write:   `restic restore --quiet --tag "$NAME" --target "$TO" latest`,
			stored:  []string{"store"}},
		{name: "borg", slow: true,
			init:    dir + `; borg init --encryption none "$STATE/store"`,
			capture: `cd "$TREE"; borg create --compression zstd "$STATE/store::$NAME" .`,
			write:   `cd "$TO"; borg extract --numeric-ids "$STATE/store::$NAME"`,
			stored:  []string{"store"}},
	}
}

// state is where an archiver keeps everything.
func (b *bench) state(a archiver) string {
	return filepath.Join(b.dir, "state", strings.NewReplacer(" ", "", "|", "-").Replace(a.name))
}

// envOf is what the scripts of an archiver get.
func (b *bench) envOf(a archiver, tree, name, to string) []string {
	state := b.state(a)
	return []string{"STATE=" + state, "TREE=" + tree, "NAME=" + name, "TO=" + to, "INGOT=" + b.ingot,
		"RESTIC_REPOSITORY=" + state + "/store", "RESTIC_PASSWORD=bench", "RESTIC_CACHE_DIR=" + state + "/cache",
		"BORG_BASE_DIR=" + state + "/cache", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes", "BORG_RELOCATED_REPO_ACCESS_IS_OK=yes"}
}

// stored is how many bytes an archiver's store has.
func (b *bench) stored(a archiver) (int64, error) {
	var paths []string
	for _, p := range a.stored {
		paths = append(paths, filepath.Join(b.state(a), p))
	}
	return sizeOf(paths...)
}

// fresh gives an archiver an empty store.
func (b *bench) fresh(ctx context.Context, a archiver) error {
	if err := os.RemoveAll(b.state(a)); err != nil {
		return err
	}
	return b.sh(ctx, a.init, b.envOf(a, "", "", "")...)
}

// desyncVersions are tried in turn: a module proxy need not give each.
func desyncVersions() []string { return []string{"v0.9.6", "v0.9.5", "v0.9.3"} }

// installDesync builds desync, which Debian does not have, into the cache. A
// module of its own is made for that: `go install MODULE@VERSION` asks for the
// list of versions, which some proxies do not give.
func installDesync(ctx context.Context, cache string) error {
	bin := filepath.Join(cache, "bin", "desync")
	if _, err := os.Stat(bin); err == nil {
		return nil
	}
	dir, err := os.MkdirTemp("", "ingot-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var failed error
	for _, v := range desyncVersions() {
		mod := "module desync\n\ngo 1.23\n\nrequire github.com/folbricht/desync " + v + "\n"
		if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(mod), 0o644); err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, "go", "build", "-mod=mod", "-o", bin, "github.com/folbricht/desync/cmd/desync")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
		out, err := cmd.CombinedOutput()
		if err == nil {
			return os.WriteFile(bin+".version", []byte(v), 0o644)
		}
		failed = errors.Join(failed, fmt.Errorf("desync %s: %s", v, tail(out, 200)))
	}
	return failed
}
