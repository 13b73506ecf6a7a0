package installer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"ingot/imager/tree"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/pattern"
	"ingot/rollback"
)

// scripts runs scripts/CLASS/NN-* of the config space in the new system, in
// the order of the classes. They see FAI's variables as a softupdate would:
// the root is /, so $target is / and $ROOTCMD is empty.
func (r *Run) scripts(ctx context.Context) error {
	const dir = "/.ingot/scripts"
	if err := r.mkdir(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	if len(r.job.Scripts) == 0 {
		return nil
	}
	defer func() {
		_ = r.inTarget(func(root *os.Root) error { return root.RemoveAll(strings.TrimPrefix(dir, "/")) })
	}()
	for _, s := range r.job.Scripts {
		if err := r.put(filepath.Join(dir, s.Class, filepath.Base(s.Name)), string(s.Content), 0o700); err != nil {
			return err
		}
	}
	env := r.scriptEnv()
	for i, s := range r.job.Scripts {
		r.progress(func(p *Progress) { p.Detail, p.Done, p.Total = s.Name, int64(i), int64(len(r.job.Scripts)) })
		start := time.Now()
		path := filepath.Join(dir, s.Class, filepath.Base(s.Name))
		ctx, cancel := context.WithTimeout(ctx, scriptTime)
		c := r.chroot(ctx, path)
		c.Dir = filepath.Dir(path)
		c.Env = append(c.Env, env...)
		out, err := c.CombinedOutput()
		cancel()
		if errors.Is(err, exec.ErrWaitDelay) {
			r.log.Warn("the script left programs running; they are ended with the installation", "name", s.Name)
			err = nil
		}
		r.log.Info("script", "name", s.Name, "seconds", fmt.Sprintf("%.1f", time.Since(start).Seconds()), "output", strings.TrimSpace(string(out)))
		if err != nil {
			return fmt.Errorf("%s: %w: %s", s.Name, err, lastLines(string(out), 5))
		}
	}
	return nil
}

// scriptTime bounds one script: a question that nobody answers must not hold a rack.
const scriptTime = 30 * time.Minute

func (r *Run) scriptEnv() []string {
	env := []string{
		"FAI_ACTION=install", "FAI_ROOT=/", "target=/", "AINSL_TARGET=/", "ROOTCMD=", "LOGDIR=/tmp",
		"HOSTNAME=" + r.job.HostName, "classes=" + strings.Join(r.job.Classes, " "),
		"BOOT_DEVICE=" + r.plan.Result.BootDevice, "ROOT_PARTITION=" + r.plan.Result.RootKey, "ESP_DEVICE=" + r.plan.Result.ESPDevice,
	}
	for k, v := range r.job.Vars {
		env = append(env, k+"="+v)
	}
	return env
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}

// cache knows the content of the files that this installation wrote itself.
type cache struct{ r *Run }

// Lookup implements tree.Cache: a file whose inode is as the writer left it
// holds the chunks of the manifest.
func (c cache) Lookup(path string, st entry.Stat) ([]entry.Extent, []entry.Chunk, bool) {
	w, ok := c.r.written[path]
	if !ok || w.stat != st {
		return nil, nil, false
	}
	e, ok := c.r.target.Lookup(path)
	if !ok || e.Type != entry.File {
		return nil, nil, false
	}
	return e.Holes, e.Chunks, true
}

// made returns the paths of the file systems that this installation made and
// wrote the tree to, besides the root. One that keeps no owners is none of them.
func (r *Run) made() map[string]bool {
	out := map[string]bool{}
	for _, m := range r.plan.Result.Mounts {
		if at := strings.Trim(m.Path, "/"); at != "" && m.FS != "vfat" {
			out[at] = true
		}
	}
	return out
}

// record takes down the tree as it is now, on all file systems that were made
// for it: generation 1, the base of drift and of the three-way comparison. What differs from image and overlay, outside of
// node-owned and volatile paths, was made by this installation: derived.
func (r *Run) record(ctx context.Context) error {
	volatile, tops := pattern.Volatile(), r.made()
	root, done, err := r.root()
	if err != nil {
		return err
	}
	return errors.Join(r.recordTree(ctx, root, volatile, tops), done())
}

func (r *Run) recordTree(ctx context.Context, root string, volatile pattern.List, tops map[string]bool) error {
	out := func(path string, _ bool) bool {
		return volatile.Match(path) || filepath.Base(path) == "lost+found" && tops[filepath.Dir(path)]
	}
	var mu sync.Mutex
	stats := map[string]entry.Stat{}
	done, seen, err := tree.Capture(ctx, root, tree.CaptureOptions{
		Exclude:       out,
		Cache:         cache{r},
		OneFileSystem: true,
		Cross:         func(path string) bool { return tops[path] },
		Captured: func(path string, st entry.Stat, _ *entry.Entry) {
			mu.Lock()
			defer mu.Unlock()
			stats[path] = st
		},
		Log: r.log,
	})
	if err != nil {
		return err
	}
	r.log.Info("recorded", "entries", seen.Entries, "files", seen.Files, "read again", seen.Files-seen.Cached)
	node, err := rollback.Open(root, r.log)
	if err != nil {
		return err
	}
	defer node.Close()
	own, err := pattern.Parse(r.job.NodeOwned)
	if err != nil {
		return err
	}
	mode, owned := "live", pattern.NodeOwned()
	if r.sides != nil { // what both sides share is not in this tree
		mode, owned = r.job.Sides.Mode, owned.With(own)
	}
	var derived []rollback.Path
	for _, c := range manifest.Diff(r.target, done) {
		if !volatile.Match(c.Path) && !owned.Match(c.Path) && !timeOnly(c) {
			derived = append(derived, rollback.Path(c.Path))
		}
	}
	r.ending.Overlay, r.ending.Manifest, r.ending.Classes = r.overlay.ID().String(), done.ID().String(), r.job.Classes
	return node.Record(ctx, rollback.Generation{
		Number: 1, Image: r.job.Ref, ImageID: r.job.Image, Overlay: r.overlay.ID(), Mode: mode,
		When: time.Now(), By: r.job.By, Result: "installed", Derived: derived,
	}, done, r.target, stats)
}

// timeOnly says that a directory differs in its time alone: something in it
// was changed, and that has an entry of its own.
func timeOnly(c manifest.Change) bool {
	if c.A == nil || c.B == nil || c.A.Type != entry.Dir || c.B.Type != entry.Dir {
		return false
	}
	a, b := *c.A, *c.B
	a.ModTime, b.ModTime = 0, 0
	return entry.SameMeta(&a, &b)
}
