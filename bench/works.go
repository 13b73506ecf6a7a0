package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// The works, as rows name them.
const (
	workCapture = "first capture of A"
	workAgain   = "capture A again, nothing changed"
	workUpdate  = "capture B after A"
	workWrite   = "write A to an empty directory"
	workLocal   = "bring a copy of A to B, on one machine"
	workFirst   = "bring A to B over SSH, a node that ingot never saw"
	workPush    = "bring A to B over SSH"
	workNothing = "nothing to do, over SSH"
	workFile    = "one small file changed, over SSH"
	workRename  = "a directory of over 500 MB renamed, over SSH"
	workBack    = "back from B to A on the node"
	workSlots   = "a release for a machine with two root partitions"
	workSubvols = "a release for a machine with two root subvolumes"
)

// group is a part of the run that can be asked for alone.
type group struct {
	name string
	do   func(*bench, context.Context) error
}

func works() []group {
	return []group{{"capture", (*bench).capture}, {"write", (*bench).write}, {"local", (*bench).local}, {"node", (*bench).onNode}, {"back", (*bench).backOnNode}}
}

func workNames() []string {
	var names []string
	for _, w := range works() {
		names = append(names, w.name)
	}
	for _, a := range aparts() {
		names = append(names, a.name)
	}
	return names
}

// capture measures the first capture, the next, and that of a changed tree.
func (b *bench) capture(ctx context.Context) error {
	if err := b.morph(ctx, "A"); err != nil {
		return err
	}
	var first, again, update []job
	for _, a := range archivers() {
		first = append(first, job{tool: a.name, slow: a.slow, env: b.envOf(a, b.treeDir(), "A", ""), run: a.capture,
			before: func(ctx context.Context) error { b.hold(a, "A", false); return b.fresh(ctx, a) },
			bytes:  func(context.Context) (int64, error) { b.hold(a, "A", true); return b.stored(a) }})
		if a.alone {
			continue
		}
		again = append(again, b.recapture(a))
		update = append(update, b.captureChanged(a))
	}
	if err := b.measure(ctx, workCapture, first); err != nil {
		return err
	}
	if err := b.measure(ctx, workAgain, again); err != nil {
		return err
	}
	if err := b.morph(ctx, "B"); err != nil {
		return err
	}
	if err := b.measure(ctx, workUpdate, update); err != nil {
		return err
	}
	for _, a := range archivers() {
		kept := b.state(a) + ".kept"
		if _, err := os.Stat(kept); err != nil {
			continue
		}
		if err := errors.Join(os.RemoveAll(b.state(a)), os.Rename(kept, b.state(a))); err != nil {
			return err
		}
	}
	return nil
}

// recapture captures what is stored already, under another name.
func (b *bench) recapture(a archiver) job {
	j := job{tool: a.name, run: `NAME=$(cat "$STATE.name"); ` + a.capture, env: b.envOf(a, b.treeDir(), "", "")}
	j.before = func(ctx context.Context) error {
		if !b.held[a.name+" A"] {
			return errors.New("it did not capture A")
		}
		b.number++
		return os.WriteFile(b.state(a)+".name", fmt.Appendf(nil, "again-%d", b.number), 0o644)
	}
	return j
}

// captureChanged captures B where A is stored; each run begins with the same store.
func (b *bench) captureChanged(a archiver) job {
	var was int64
	j := job{tool: a.name, slow: a.slow, run: a.capture, env: b.envOf(a, b.treeDir(), "B", "")}
	j.before = func(ctx context.Context) error {
		if !b.held[a.name+" A"] {
			return errors.New("it did not capture A")
		}
		err := b.sh(ctx, `if [ -e "$STATE.kept" ]; then rm -rf "$STATE"; else mv "$STATE" "$STATE.kept"; fi; cp -a "$STATE.kept" "$STATE"`, j.env...)
		if err != nil {
			return err
		}
		was, err = b.stored(a)
		return err
	}
	j.bytes = func(context.Context) (int64, error) {
		n, err := b.stored(a)
		return n - was, err
	}
	return j
}

func (b *bench) hold(a archiver, name string, holds bool) { b.held[a.name+" "+name] = holds }

// ensure lets an archiver hold a tree, outside of what is measured.
func (b *bench) ensure(ctx context.Context, a archiver, name string) error {
	if b.held[a.name+" "+name] {
		return nil
	}
	if _, err := os.Stat(b.state(a)); err != nil {
		if err := b.fresh(ctx, a); err != nil {
			return err
		}
	}
	if err := b.morph(ctx, name); err != nil {
		return err
	}
	b.say("%s captures %s", a.name, name)
	if err := b.sh(ctx, a.capture, b.envOf(a, b.treeDir(), name, "")...); err != nil {
		return err
	}
	b.hold(a, name, true)
	return nil
}

// target is the directory that trees are written to.
func (b *bench) target() string { return filepath.Join(b.dir, "target") }

// write measures writing a whole tree.
func (b *bench) write(ctx context.Context) error {
	empty := func(ctx context.Context) error {
		return errors.Join(os.RemoveAll(b.target()), os.Mkdir(b.target(), 0o755))
	}
	check := func(ctx context.Context) (string, error) {
		return b.compare(ctx, b.trees.a, b.target(), "--exclude=/.ingot")
	}
	var jobs []job
	for _, a := range archivers() {
		if !b.uses(a.name) || a.name == "tar | zstd -1" {
			continue
		}
		j := job{tool: a.name, slow: a.slow, run: a.write, env: b.envOf(a, "", "A", b.target()), check: check}
		failed := b.ensure(ctx, a, "A")
		if ctx.Err() != nil {
			return ctx.Err()
		}
		j.before = func(ctx context.Context) error { return errors.Join(failed, empty(ctx)) }
		jobs = append(jobs, j)
	}
	env := []string{"TREE=" + b.trees.a, "TO=" + b.target()}
	jobs = append(jobs,
		job{tool: "rsync", run: `rsync -aHAX --numeric-ids "$TREE/" "$TO/"`, env: env, before: empty, check: check},
		job{tool: "cp -a", run: `cp -a "$TREE/." "$TO/"`, env: env, before: empty, check: check})
	if err := b.measure(ctx, workWrite, jobs); err != nil {
		return err
	}
	return os.RemoveAll(b.target())
}

// local measures bringing a tree that is there to another one. For ingot it is
// one that a push has written.
func (b *bench) local(ctx context.Context) error {
	env := []string{"A=" + b.trees.a, "TREE=" + b.trees.b, "TO=" + b.target()}
	reset := func(ctx context.Context) error {
		return b.sh(ctx, `mkdir -p "$TO"; rm -rf "$TO/.ingot"; rsync -aHAX --numeric-ids --delete "$A/" "$TO/"`, env...)
	}
	check := func(ctx context.Context) (string, error) {
		return b.compare(ctx, b.trees.b, b.target(), "--exclude=/.ingot")
	}
	var jobs []job
	for _, a := range archivers() {
		if !b.uses(a.name) || a.name != "ingot" && a.name != "casync" {
			continue
		}
		failed := errors.Join(b.ensure(ctx, a, "A"), b.ensure(ctx, a, "B"))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		j := job{tool: a.name, slow: a.slow, run: a.write, env: b.envOf(a, "", "B", b.target()), check: check}
		j.before = func(ctx context.Context) error {
			switch {
			case failed != nil:
				return failed
			case a.name == "ingot":
				return b.sh(ctx, `rm -rf "$TO"; mkdir "$TO"; `+a.write, b.envOf(a, "", "A", b.target())...)
			}
			return reset(ctx)
		}
		jobs = append(jobs, j)
	}
	jobs = append(jobs, job{tool: "rsync", run: `rsync -aHAX --numeric-ids --delete "$TREE/" "$TO/"`, env: env, before: reset, check: check})
	if err := b.measure(ctx, workLocal, jobs); err != nil {
		return err
	}
	return os.RemoveAll(b.target())
}
