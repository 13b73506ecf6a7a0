package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/imager"
	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/manifest"
	"ingot/internal/pattern"
	"ingot/rollback"
)

// pushDir makes a directory of this machine equal to an image.
func (p *program) pushDir(c *cli.Context, w *world, image *release) error {
	top, err := targetDir(w, c.String("dir"))
	if err != nil {
		return err
	}
	return p.onDir(c, top, func(n *rollback.Node, bar *bar, out *outcome) error {
		m, err := image.load()
		if err != nil {
			return err
		}
		var lost []string
		if uid := os.Geteuid(); uid != 0 {
			m, lost = reduced(m, self(uid))
		}
		d := dirPush{p: p, c: c, image: image, manifest: m, source: counted{w.images, bar}, n: n, top: top, bar: bar}
		err = d.run(out, func(id digest.ID) (*manifest.Manifest, error) { return w.images.Manifest(c.Context, id) })
		out.Plan.Notes, out.Done.Notes = append(out.Plan.Notes, lost...), append(out.Done.Notes, lost...)
		return err
	})
}

func self(uid int) person {
	who := person{uid: uint32(uid), gids: []uint32{uint32(os.Getegid())}}
	groups, err := os.Getgroups()
	if err != nil {
		return who // the own group is enough
	}
	for _, g := range groups {
		who.gids = append(who.gids, uint32(g))
	}
	return who
}

// rollbackDir takes a directory back.
func (p *program) rollbackDir(c *cli.Context) error {
	top, err := filepath.Abs(c.String("dir"))
	if err != nil {
		return err
	}
	to, err := generationNumber(c.String("to"))
	if err != nil {
		return err
	}
	w, err := openWorld(c)
	var src imager.Source // for damaged undo copies; the rest is in the directory
	if err == nil {
		defer w.Close()
		src = w.images
	}
	return p.onDir(c, top, func(n *rollback.Node, bar *bar, out *outcome) error {
		policy, err := policyOf(c)
		if err != nil {
			return err
		}
		if err := recovered(c, n, bar); err != nil {
			return err
		}
		plan, err := n.PlanRollback(c.Context, to, policy, operator())
		if err != nil {
			return err
		}
		if src != nil {
			src = counted{src, bar}
		}
		return p.carryOut(c, n, plan, src, bar, out)
	})
}

// onDir does one thing to a directory and reports it.
func (p *program) onDir(c *cli.Context, top string, fn func(*rollback.Node, *bar, *outcome) error) error {
	n, err := rollback.Open(top, nil)
	if err != nil {
		return err
	}
	defer n.Close()
	start := time.Now()
	screen := p.screen()
	defer screen.end()
	bar := screen.bar("", 0)
	out := outcome{Dir: top, State: stateDone}
	err = fn(n, bar, &out)
	bar.end()
	out.Seconds = time.Since(start).Seconds()
	switch {
	case err != nil:
		out.State, out.Error, out.err = stateFailed, err.Error(), fmt.Errorf("directory %q: %w", top, err)
		if c.Context.Err() != nil {
			out.State = stateInterrupted
		}
		_, out.Hint, _ = diagnose(out.err)
	case out.Done.Unchanged:
		out.State = stateUnchanged
	case c.Bool("dry-run"):
		out.State = statePlanned
	}
	if c.Bool("dry-run") && !c.Bool("json") && (err == nil || len(out.Plan.Changes)+len(out.Plan.Conflicts) > 0) {
		screen.answer(itemised(top, out.Plan))
	}
	p.report(screen, out, reporting{json: c.Bool("json"), dry: c.Bool("dry-run"), only: true})
	screen.end()
	if c.Bool("json") {
		if err := p.printJSON([]outcome{out}); err != nil {
			return err
		}
	}
	return out.err
}

// targetDir finds the directory that --dir names, and refuses those that can
// only be a mistake.
func targetDir(w *world, dir string) (string, error) {
	top, err := filepath.Abs(dir)
	if err == nil {
		top, err = filepath.EvalSymlinks(top)
	}
	if errors.Is(err, os.ErrNotExist) {
		return "", withHint(coded{fmt.Errorf("--dir %q: no such directory", dir), exitNotFound}, "make it first: a mistyped mount point would fill another disk")
	}
	if err != nil {
		return "", err
	}
	st, err := os.Stat(top)
	if err != nil {
		return "", err
	}
	if !st.IsDir() {
		return "", usagef("--dir %q is not a directory", dir)
	}
	for _, path := range running() {
		if own, err := os.Stat(path); err == nil && os.SameFile(own, st) {
			return "", withHint(usagef("--dir %q is %s of the running system", dir, path), "a running system is a node: `ingot push IMAGE NODE` reaches it over SSH")
		}
	}
	for _, path := range []string{w.Dir, w.State, w.Store} {
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			continue
		}
		if real == top || strings.HasPrefix(real, strings.TrimSuffix(top, "/")+"/") || real == w.Store && strings.HasPrefix(top, real+"/") {
			return "", usagef("--dir %q holds this site (%s): the push would delete what it reads", dir, path)
		}
	}
	return top, nil
}

// running are the directories that this machine runs from.
func running() []string {
	return []string{"/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/root", "/run", "/sbin", "/sys", "/usr", "/var"}
}

// dirPush is one push to a directory of this machine.
type dirPush struct {
	p        *program
	c        *cli.Context
	image    *release
	manifest *manifest.Manifest // what is wanted, as far as this user can have it
	source   imager.Source
	n        *rollback.Node
	top      string
	bar      *bar
}

// run takes the quick way where the directory is empty, or holds what an
// interrupted push wrote into an empty one; else that of a push to a node.
func (d *dirPush) run(out *outcome, old func(digest.ID) (*manifest.Manifest, error)) error {
	var within string
	if d.c.IsSet("path") {
		var err error
		if within, err = withinOf(d.c.String("path"), d.manifest); err != nil {
			return err
		}
	}
	policy, err := policyOf(d.c)
	if err != nil {
		return err
	}
	dry := d.c.Bool("dry-run")
	if !dry {
		if err := d.cleared(old); err != nil {
			return err
		}
	}
	gens, err := d.n.Generations()
	if err != nil {
		return err
	}
	foreign, err := firstName(d.top)
	if err != nil {
		return err
	}
	if len(gens) == 0 && foreign == "" && within == "" && !dry {
		return d.write(out)
	}
	if err := recovered(d.c, d.n, d.bar); err != nil {
		return err
	}
	d.bar.show(wire.Progress{Task: "compare"})
	plan, err := d.n.Plan(d.c.Context, rollback.Target{Manifest: d.manifest, Image: d.image.ref, ImageID: d.image.id, Within: within,
		Policy: policy, Exact: true, Full: d.c.Bool("checksum"), By: operator(), Mode: "live"})
	if err != nil {
		return err
	}
	if len(gens) == 0 && foreign != "" && !d.c.Bool("force") && !d.c.Bool("dry-run") {
		return withHint(fmt.Errorf("it holds %q and more that ingot did not put there, and what the image lacks would go", foreign),
			"--dry-run shows what would change; --force does it, and `ingot rollback --dir` takes it back")
	}
	return d.p.carryOut(d.c, d.n, plan, d.source, d.bar, out)
}

// firstName returns a name in a directory that is neither ingot's nor the file
// system's; "" is none.
func firstName(top string) (string, error) {
	f, err := os.Open(top)
	if err != nil {
		return "", err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if name != ".ingot" && name != "lost+found" {
			return name, nil
		}
	}
	return "", nil
}

// recovered ends a switch of an earlier run that was interrupted.
func recovered(c *cli.Context, n *rollback.Node, bar *bar) error {
	if c.Bool("dry-run") {
		return nil // the plan says so
	}
	did, err := n.Recover(c.Context)
	if err != nil {
		return err
	}
	if did.Did != rollback.Nothing {
		bar.screen.say("note: a switch that was interrupted is %s", did.Did)
	}
	for _, f := range did.Foreign {
		bar.screen.say("note: %s", f)
	}
	return nil
}

// carryOut is the rest of a push or a rollback of a directory.
func (p *program) carryOut(c *cli.Context, n *rollback.Node, plan *rollback.Plan, src imager.Source, bar *bar, out *outcome) error {
	out.Plan = planOf(plan)
	if err := plan.Err(); err != nil || c.Bool("dry-run") {
		return err
	}
	if plan.Empty() && plan.Base != 0 {
		cur, err := n.Current()
		n.Remember(plan)
		out.Done = wire.Done{Generation: generationOf(cur), Unchanged: true}
		return err
	}
	bar.show(wire.Progress{Task: "stage", Total: plan.NeedBytes})
	if err := n.Stage(c.Context, plan, src); err != nil {
		return err
	}
	if err := c.Context.Err(); err != nil {
		return errors.Join(err, n.Unstage(plan))
	}
	bar.show(wire.Progress{Task: "switch"})
	start := time.Now()
	g, err := n.Switch(context.WithoutCancel(c.Context), plan)
	if err != nil {
		return err
	}
	out.Done = wire.Done{Generation: generationOf(g), Notes: notesOf(plan.Notes), Reused: plan.Reused, SwitchSeconds: time.Since(start).Seconds()}
	return nil
}

// policyOf reads --keep and --take.
func policyOf(c *cli.Context) (out rollback.Policy, err error) {
	if out.Keep, err = pattern.Parse(c.StringSlice("keep")); err != nil {
		return out, usagef("--keep: %v", err)
	}
	if out.Take, err = pattern.Parse(c.StringSlice("take")); err != nil {
		return out, usagef("--take: %v", err)
	}
	return out, nil
}

// withinOf reads --path, which the image has to have: else all that is there
// would be deleted.
func withinOf(path string, m *manifest.Manifest) (string, error) {
	if !strings.HasPrefix(path, "/") || strings.Trim(path, "/") == "" || filepath.Clean(path) != strings.TrimSuffix(path, "/") {
		return "", usagef("--path %q: want a clean path from the top of the image, such as /srv/www", path)
	}
	within := strings.Trim(path, "/")
	if _, ok := m.Lookup(within); !ok {
		return "", withHint(coded{fmt.Errorf("--path %q: the image does not have it", path), exitNotFound},
			"`ingot image show IMAGE --files` lists what it has; to delete a path, push an image of the directory above that lacks it")
	}
	return within, nil
}

// planOf is a plan for the answer.
func planOf(p *rollback.Plan) wire.Plan {
	out := wire.Plan{Need: len(p.Need), NeedBytes: p.NeedBytes, LocalBytes: p.Local(), From: p.Base, Notes: append(notesOf(p.Notes), notesOf(p.Blocked)...)}
	for _, c := range p.Changes() {
		out.Changes = append(out.Changes, wire.Change{Path: c.Path, Kind: c.Kind.String(), Why: c.Why, OldSize: c.OldSize, NewSize: c.NewSize})
	}
	for _, c := range p.Conflicts {
		out.Conflicts = append(out.Conflicts, wire.Change{Path: c.Path, Kind: string(c.Kind), Why: c.Action.String()})
	}
	return out
}

func notesOf(list []rollback.Note) []string {
	var out []string
	for _, n := range list {
		out = append(out, n.String())
	}
	return out
}

func generationOf(g rollback.Generation) wire.Generation {
	kind := "push"
	if g.To != 0 {
		kind = "rollback"
	}
	return wire.Generation{Number: g.Number, Kind: kind, Ref: g.Image, Image: g.ImageID, Overlay: g.Overlay, Within: string(g.Within), Mode: g.Mode, By: g.By,
		Time: g.When.Unix(), Current: true, Pinned: g.Pinned}
}

// counted is a source that shows how much of what was asked of it has come.
type counted struct {
	imager.Source
	bar *bar
}

// Fetch implements imager.Source.
func (s counted) Fetch(ctx context.Context, ids []digest.ID, fn func(digest.ID, []byte) error) error {
	var done atomic.Int64
	return s.Source.Fetch(ctx, ids, func(id digest.ID, data []byte) error {
		err := fn(id, data)
		s.bar.show(wire.Progress{Task: "stage", Done: done.Add(int64(len(data)))})
		return err
	})
}
