package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/imager/store"
	"ingot/imager/wire"
	"ingot/internal/digest"
)

func (p *program) imagePruneVerb() *cli.Command {
	return verb{name: "prune", usage: "remove what nothing refers to",
		about: `Removes images that have no name, that no node runs, keeps in a generation or is about to be
  installed with, and their content, as far as no other image needs it. Packs in which much is unused are written
  anew. What a node keeps the server learns at each push; a node that is gone for good is forgotten
  by ` + "`ingot node rm`" + `.

  Nobody else may use the store meanwhile: while a capture or a push runs, prune is busy (exit
  status 4), or waits with --wait; they wait for a prune. Installations go on: the packs that they need stay as they are.
  It can be interrupted at any time, and the next one goes on.`,
		examples: []string{"ingot image prune --dry-run", "ingot image prune", "ingot image prune --wait 1h --grace 24h     for a timer"},
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "dry-run", Usage: "show what would be removed, remove nothing"},
			&cli.StringFlag{Name: "max-unused", Value: "5%", Usage: "`SHARE` of the store that may be unused before packs are written anew; 0 writes every such pack anew"},
			&cli.DurationFlag{Name: "grace", Usage: "leave alone what was written less than `DURATION` ago, so that an interrupted capture can go on", DefaultText: "0s"},
			&cli.DurationFlag{Name: "wait", Usage: "wait for captures and pushes that run, for `DURATION` at most", DefaultText: "not at all"},
			jsonFlag(),
		}, run: p.imagePrune}.command()
}

func (p *program) imagePrune(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	share, err := parseShare(c.String("max-unused"))
	if err != nil {
		return usagef("--max-unused: %v", err)
	}
	if c.Duration("grace") < 0 || c.Duration("wait") < 0 {
		return usagef("--grace and --wait want durations such as 24h")
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	release, err := p.lockImages(c.Context, w, true, c.Duration("wait"))
	if err != nil {
		return err
	}
	defer release()
	refs, err := w.references(c.Context) // after the lock: what is there now is all that there will be
	if err != nil {
		return err
	}
	plan, err := w.images.PlanPrune(c.Context, store.PruneOptions{Keep: refs.keep(), Hold: refs.hold(), MaxUnused: share, Grace: c.Duration("grace")})
	if err != nil {
		return pruneHint(err)
	}
	view := viewPrune(plan)
	view.DryRun = c.Bool("dry-run")
	if !view.DryRun {
		if err := p.runPrune(c.Context, plan, &view); err != nil {
			return pruneHint(err)
		}
	}
	if c.Bool("json") {
		return p.printJSON(view)
	}
	return p.showPrune(c.Context, w, view)
}

func (p *program) runPrune(ctx context.Context, plan *store.Prune, view *pruneView) error {
	bar := p.bar()
	done, err := plan.Run(ctx, func(done, total int64) { bar.show(wire.Progress{Task: "rewrite packs", Done: done, Total: total}) })
	bar.end()
	view.Written, view.Freed = done.New, done.Free
	if err != nil && done.Manifests+done.Packs > 0 {
		p.say("note: %s and %s were removed before; nothing that is needed is lost, and the next prune goes on", count(done.Manifests, "image"), count(done.Packs, "pack"))
	}
	return err
}

// pruneHint is the way out where something is missing that has to stay.
func pruneHint(err error) error {
	var damage store.Damage
	switch {
	case !errors.As(err, &damage):
		return err
	case damage.Object == "name":
		return withHint(err, "nobody knows which image this name means: capture it again, or `ingot image rm %s`", damage.ID)
	case len(damage.Images) > 0: // the manifest itself is missing
		return withHint(err, "capture or build it again, or `ingot image rm %s`", strings.Join(damage.Images, " "))
	}
	return withHint(err, "`ingot image verify` says what is damaged; a damaged store has to be repaired before it is pruned")
}

// parseShare reads 5% or 5: percent.
func parseShare(s string) (float64, error) {
	n, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil || !(n >= 0 && n <= 100) {
		return 0, fmt.Errorf("%q is not a share such as 5%%", s)
	}
	return n / 100, nil
}

// pruneView is what `image prune` did, or would do.
type pruneView struct {
	DryRun  bool        `json:"dry_run"`
	Images  []digest.ID `json:"removed_images"`
	Packs   int         `json:"removed_packs"`
	Rewrite int         `json:"rewritten_packs"`
	Written int         `json:"new_packs"`
	Freed   int64       `json:"freed_bytes"` // in a dry run, what is rewritten is estimated
	Held    int         `json:"held_packs"`  // not all of them is needed, but they are being read, or young
	Store   int64       `json:"store_bytes"` // packs, before
	Unused  int64       `json:"unused_bytes"`
}

func viewPrune(p *store.Prune) pruneView {
	return pruneView{Images: append([]digest.ID{}, p.Manifests...), Packs: len(p.Packs), Rewrite: len(p.Rewrite), Freed: p.Free, Held: p.Held, Store: p.Size, Unused: p.Unused}
}

func (p *program) showPrune(ctx context.Context, w *world, v pruneView) error {
	removed, about := "removed", ""
	if v.DryRun {
		removed = "would be removed"
		if v.Rewrite > 0 {
			about = "about "
		}
	}
	for _, id := range v.Images {
		fmt.Fprintf(p.Stdout, "image %s %s\n", id, removed)
	}
	fmt.Fprintf(p.Stdout, "%s, %s %s, %d rewritten", count(len(v.Images), "image"), count(v.Packs, "pack"), removed, v.Rewrite)
	if v.Written > 0 {
		fmt.Fprintf(p.Stdout, " as %d", v.Written)
	}
	fmt.Fprintf(p.Stdout, ": %s%s freed of %s", about, size(v.Freed), size(v.Store))
	if rest := v.Unused - v.Freed; rest > 0 {
		fmt.Fprintf(p.Stdout, "; %s stay unused", size(rest))
	}
	fmt.Fprintln(p.Stdout)
	if v.Held > 0 {
		p.say("note: %s with unused parts left as they are: installations read them, or they are younger than --grace", count(v.Held, "pack"))
	}
	aside, bytes, err := w.images.Aside(ctx)
	if err == nil && aside > 0 {
		p.say("note: %s (%s) that repairs took out of use are in %s; remove them when you have looked at them", count(aside, "file"), size(bytes), w.Store+"/damaged")
	}
	return err
}

func (p *program) imageRmVerb() *cli.Command {
	return verb{name: "rm", aliases: []string{"remove"}, usage: "remove names of images", args: "NAME...",
		about: `Removes the name (name or name:tag), and says who still refers to the image. Its content stays
  until nothing does and ` + "`ingot image prune`" + ` runs: nodes that run it can still be rolled back to it.`,
		examples: []string{"ingot image rm web:1", "ingot image rm web:1 web:2 && ingot image prune"},
		flags:    []cli.Flag{jsonFlag()}, run: p.imageRm}.command()
}

// removedView is what became of one name.
type removedView struct {
	Image  string    `json:"image"`
	Digest digest.ID `json:"digest,omitzero"` // zero: its record could not be read
	Names  []string  `json:"other_names"`
	nodesOf
}

func (p *program) imageRm(c *cli.Context) error {
	if err := wantArgs(c, 1, -1); err != nil {
		return err
	}
	var names []store.Ref
	for _, text := range c.Args().Slice() {
		if _, err := digest.Parse(text); err == nil {
			return withHint(usagef("image rm: %.12s is a digest: names are removed, and images when nothing refers to them", text), "`ingot image prune`")
		}
		ref, err := store.ParseRef(text)
		if err != nil {
			return usageError{err.Error()}
		}
		names = append(names, ref)
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	views := []removedView{}
	for _, ref := range names {
		v, err := removeName(c.Context, w, ref)
		if err != nil {
			return err
		}
		if views = append(views, v); !c.Bool("json") {
			fmt.Fprintf(p.Stdout, "%s removed%s\n", v.Image, v.rest())
		}
	}
	if c.Bool("json") {
		return p.printJSON(views)
	}
	return nil
}

func removeName(ctx context.Context, w *world, ref store.Ref) (removedView, error) {
	v := removedView{Image: ref.String(), Names: []string{}}
	img, err := w.images.Ref(ctx, ref)
	if errors.Is(err, store.ErrMissing) {
		return v, noImage(ref.String())
	}
	if err == nil { // a record that cannot be read is removed all the same
		v.Digest = img.Digest
	}
	if err := w.images.RemoveRef(ctx, ref); err != nil {
		return v, err
	}
	if v.Digest.IsZero() {
		return v, nil
	}
	named, err := w.namesOf(ctx, v.Digest)
	if err != nil {
		return v, err
	}
	for _, n := range named {
		v.Names = append(v.Names, n.Ref.String())
	}
	refs, err := w.references(ctx)
	v.nodesOf = refs.of(v.Digest)
	return v, err
}

// rest says what becomes of the image.
func (v removedView) rest() string {
	var why []string
	if len(v.Names) > 0 {
		why = append(why, "is also "+strings.Join(v.Names, ", "))
	}
	if s := v.words(); s != "" {
		why = append(why, "is "+s)
	}
	switch {
	case v.Digest.IsZero():
		return ""
	case len(why) == 0:
		return fmt.Sprintf("; nothing refers to %s any more: `ingot image prune` removes it", v.Digest.Short())
	}
	return fmt.Sprintf("; the image stays: %s %s", v.Digest.Short(), strings.Join(why, "; "))
}

func (p *program) imageTagVerb() *cli.Command {
	return verb{name: "tag", usage: "give an image one more name", args: "IMAGE NAME",
		about: `Gives IMAGE (name, name:tag or digest) the name NAME as well. A name that another image has is
  moved only with --force. Images themselves never change.`,
		examples: []string{"ingot image tag web:2026-11-20 web:stable", "ingot image tag web:2026-11-27 web:stable --force     moves it"},
		flags:    []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "move the name when another image has it"}, jsonFlag()}, run: p.imageTag}.command()
}

func (p *program) imageTag(c *cli.Context) error {
	if err := wantArgs(c, 2, 2); err != nil {
		return err
	}
	ref, err := store.ParseRef(c.Args().Get(1))
	if err != nil {
		return usageError{err.Error()}
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	release, err := p.shareImages(c.Context, w)
	if err != nil {
		return err
	}
	defer release()
	img, err := recordOf(c.Context, w, c.Args().First())
	if err != nil {
		return err
	}
	old, err := w.images.Ref(c.Context, ref)
	switch {
	case errors.Is(err, store.ErrMissing):
	case !c.Bool("force") && err != nil:
		return withHint(err, "--force replaces it")
	case !c.Bool("force") && old.Digest != img.Digest:
		return withHint(fmt.Errorf("image %q is %s already", ref, old.Digest.Short()), "--force moves it to %s", img.Digest.Short())
	}
	if old.Digest != img.Digest {
		if err := w.images.SetRef(c.Context, ref, img); err != nil {
			return err
		}
	}
	if c.Bool("json") {
		out := map[string]any{"image": ref.String(), "digest": img.Digest}
		if !old.Digest.IsZero() {
			out["was"] = old.Digest
		}
		return p.printJSON(out)
	}
	switch old.Digest {
	case digest.ID{}:
		fmt.Fprintf(p.Stdout, "%s is %s\n", ref, img.Digest.Short())
	case img.Digest:
		fmt.Fprintf(p.Stdout, "%s is %s already\n", ref, img.Digest.Short())
	default:
		fmt.Fprintf(p.Stdout, "%s moved from %s to %s\n", ref, old.Digest.Short(), img.Digest.Short())
	}
	return nil
}

// recordOf is what is known of an image: under the name given, under any other
// that it has, or what its manifest tells.
func recordOf(ctx context.Context, w *world, text string) (store.Image, error) {
	id, err := resolveImage(ctx, w, text)
	if err != nil {
		return store.Image{}, err
	}
	if ref, err := store.ParseRef(text); err == nil {
		if img, err := w.images.Ref(ctx, ref); err == nil && img.Digest == id {
			return img, nil
		}
	}
	named, err := w.namesOf(ctx, id)
	if err != nil {
		return store.Image{}, err
	}
	if len(named) > 0 {
		return named[0].Image, nil
	}
	m, err := w.images.Manifest(ctx, id)
	if err != nil {
		return store.Image{}, err
	}
	return store.Image{Digest: id, Created: time.Now(), Kernel: kernelOf(m), Size: m.TotalSize(), Entries: len(m.Entries)}, nil
}

// namesOf are the names of an image; those that cannot be read are left out.
func (w *world) namesOf(ctx context.Context, id digest.ID) ([]store.Named, error) {
	all, err := w.images.Refs(ctx)
	var bad *store.NameError
	if err != nil && !errors.As(err, &bad) {
		return nil, err
	}
	var out []store.Named
	for _, n := range all {
		if n.Digest == id {
			out = append(out, n)
		}
	}
	return out, nil
}
