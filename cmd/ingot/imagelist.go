package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/imager/store"
	"ingot/imager/wire"
	"ingot/internal/digest"
)

func (p *program) imageListVerb() *cli.Command {
	return verb{name: "list", aliases: []string{"ls"}, usage: "list the images",
		about: `SIZE is the content, STORED what it takes in the store, UNIQUE what removing it would free. NODES are
  those whose newest generation is of the image. An image without a name is listed while a node runs
  or keeps it.`,
		examples: []string{"ingot image list"}, flags: []cli.Flag{jsonFlag()}, run: p.imageList}.command()
}

func (p *program) imageShowVerb() *cli.Command {
	return verb{name: "show", usage: "show one image", args: "IMAGE",
		about:    "Shows where an image comes from, what it holds, and which nodes run it, keep it in a generation or are about to be installed with it.",
		examples: []string{"ingot image show web:2", "ingot image show web:2 --files"},
		flags:    []cli.Flag{&cli.BoolFlag{Name: "files", Usage: "list its entries"}, jsonFlag()}, run: p.imageShow}.command()
}

// imageView is what `image list` and `image show` say of one name.
type imageView struct {
	Image   string    `json:"image"`           // empty: it has no name
	Digest  digest.ID `json:"digest,omitzero"` // zero: its record cannot be read
	Entries int       `json:"entries,omitempty"`
	Bytes   int64     `json:"bytes,omitempty"`
	Stored  int64     `json:"stored_bytes,omitempty"`
	Unique  int64     `json:"unique_bytes,omitempty"`
	Created time.Time `json:"created,omitzero"`
	Arch    string    `json:"arch,omitempty"`
	Kernel  string    `json:"kernel,omitempty"`
	Source  string    `json:"source,omitempty"`
	Parent  digest.ID `json:"parent,omitzero"`
	Sealed  []string  `json:"sealed,omitempty"` // left out or emptied
	Notes   string    `json:"notes,omitempty"`
	Error   string    `json:"error,omitempty"`
	nodesOf
}

func viewImage(n store.Named, refs references) imageView {
	v := imageView{Digest: n.Digest, Entries: n.Entries, Bytes: n.Size, Created: n.Created, Arch: n.Arch, Kernel: n.Kernel, Source: n.Source,
		Parent: n.Parent, Sealed: n.Sealed, Notes: n.Notes, nodesOf: refs.of(n.Digest)}
	if n.Ref != (store.Ref{}) {
		v.Image = n.Ref.String()
	}
	return v
}

func (p *program) imageList(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	refs, err := w.references(c.Context)
	if err != nil {
		return err
	}
	usage, err := w.images.Usage(c.Context, refs.keep())
	if err != nil {
		return err
	}
	views, damaged := []imageView{}, 0
	for _, u := range usage {
		v := viewImage(u.Named, refs)
		v.Stored, v.Unique = u.Stored, u.Unique
		if v.Bytes == 0 {
			v.Bytes = u.Bytes
		}
		if u.Err != nil {
			damaged++
			v.Error = u.Err.Error()
		}
		views = append(views, v)
	}
	if c.Bool("json") {
		err = p.printJSON(views)
	} else {
		err = p.table(p.imageRows(views))
	}
	if err == nil && damaged > 0 {
		err = withHint(coded{fmt.Errorf("%s of the list cannot be used", count(damaged, "image")), exitCorrupt}, "capture or build it again under the same name")
	}
	return err
}

func (p *program) imageRows(views []imageView) [][]string {
	names := map[digest.ID]string{}
	for _, v := range views {
		if names[v.Digest] == "" {
			names[v.Digest] = v.Image
		}
	}
	rows := [][]string{{"IMAGE", "DIGEST", "SIZE", "STORED", "UNIQUE", "AGE", "PARENT", "ARCH", "NODES"}}
	for _, v := range views {
		parent := "-"
		if !v.Parent.IsZero() {
			parent = orElse(names[v.Parent], v.Parent.Short())
		}
		row := []string{orElse(v.Image, "-"), v.Digest.Short(), size(v.Bytes), size(v.Stored), size(v.Unique), age(time.Since(v.Created)), parent, orElse(v.Arch, "-"), orElse(someNodes(v.Runs), "-")}
		if v.Error != "" {
			p.say("damaged: %s: %s", orElse(v.Image, v.Digest.Short()), v.Error)
			row[3], row[4] = "damaged", "-"
		}
		if v.Digest.IsZero() { // nor is anything known
			row[1], row[2], row[5] = "-", "-", "-"
		}
		if v.Created.IsZero() {
			row[5] = "-"
		}
		rows = append(rows, row)
	}
	return rows
}

// someNodes names nodes where they fit into a table, else it counts them.
func someNodes(nodes []string) string {
	const widest = 32
	if s := fold(nodes); len(s) <= widest {
		return s
	}
	return count(len(nodes), "node")
}

// age is a duration as people say it.
func age(d time.Duration) string {
	const day = 24 * time.Hour
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/day)
}

func (p *program) imageShow(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	id, err := resolveImage(c.Context, w, c.Args().First())
	if err != nil {
		return err
	}
	m, err := w.images.Manifest(c.Context, id)
	if err != nil {
		return err
	}
	all, err := w.images.Refs(c.Context)
	var bad *store.NameError
	if errors.As(err, &bad) {
		p.say("note: not all names can be read: %v", err)
	} else if err != nil {
		return err
	}
	refs, err := w.references(c.Context)
	if err != nil {
		return err
	}
	names := []imageView{}
	for _, n := range all {
		if n.Digest == id {
			names = append(names, viewImage(n, refs))
		}
	}
	stored, err := w.images.StoredSize(c.Context, store.Chunks(m))
	if err != nil {
		return err
	}
	parents := ancestors(all, id)
	if c.Bool("json") {
		nodes := refs.of(id)
		out := map[string]any{"digest": id, "names": names, "entries": len(m.Entries), "bytes": m.TotalSize(), "stored_bytes": stored, "kernel": kernelOf(m),
			"parents": parents, "runs": nodes.Runs, "keeps": nodes.Keeps, "installs": append([]string{}, nodes.Installs...)}
		if c.Bool("files") {
			out["files"] = viewEntries(m)
		}
		return p.printJSON(out)
	}
	fmt.Fprintf(p.Stdout, "digest   %s\nentries  %d\nsize     %s, stored in %s\nkernel   %s\n", id, len(m.Entries), size(m.TotalSize()), size(stored), orElse(kernelOf(m), "none"))
	for _, n := range names {
		p.showName(n)
	}
	for _, a := range parents {
		fmt.Fprintf(p.Stdout, "parent   %s\n", a)
	}
	p.showNodes(refs.of(id))
	if c.Bool("files") {
		return listEntries(p.Stdout, m)
	}
	return nil
}

func (p *program) showName(n imageView) {
	fmt.Fprintf(p.Stdout, "name     %s, since %s, from %s\n", n.Image, n.Created.Local().Format(time.DateTime), orElse(n.Source, "unknown"))
	if n.Arch != "" {
		fmt.Fprintf(p.Stdout, "arch     %s\n", n.Arch)
	}
	if len(n.Sealed) > 0 {
		fmt.Fprintf(p.Stdout, "sealed   %s\n", quoted(n.Sealed))
	}
	for line := range strings.Lines(n.Notes) {
		fmt.Fprintf(p.Stdout, "note     %s\n", wire.Printable(strings.TrimSuffix(line, "\n")))
	}
}

func (p *program) showNodes(n nodesOf) {
	for _, l := range []struct {
		what  string
		nodes []string
	}{{"run by", n.Runs}, {"kept by", n.Keeps}, {"install", n.Installs}, {"given to", n.Given}} {
		if len(l.nodes) > 0 {
			fmt.Fprintf(p.Stdout, "%-8s %s\n", l.what, fold(l.nodes))
		}
	}
}

// parentView is one of the images that an image was made from.
type parentView struct {
	Digest digest.ID `json:"digest"`
	Names  []string  `json:"names"`
}

func (v parentView) String() string {
	if len(v.Names) == 0 {
		return v.Digest.String() + " (has no name any more)"
	}
	return fmt.Sprintf("%s (%s)", v.Digest, strings.Join(v.Names, ", "))
}

// ancestors follows the parents of an image as far as names tell them.
func ancestors(all []store.Named, id digest.ID) []parentView {
	out, seen := []parentView{}, map[digest.ID]bool{id: true}
	for {
		i := slices.IndexFunc(all, func(n store.Named) bool { return n.Digest == id && !n.Parent.IsZero() })
		if i < 0 || seen[all[i].Parent] {
			return out
		}
		id = all[i].Parent
		seen[id] = true
		v := parentView{Digest: id, Names: []string{}}
		for _, n := range all {
			if n.Digest == id {
				v.Names = append(v.Names, n.Ref.String())
			}
		}
		out = append(out, v)
	}
}

// resolveImage finds an image by name, name:tag or digest.
func resolveImage(ctx context.Context, w *world, text string) (digest.ID, error) {
	if _, err := digest.Parse(text); err != nil {
		if _, err := store.ParseRef(text); err != nil {
			return digest.ID{}, usageError{err.Error()}
		}
	}
	id, err := w.images.Resolve(ctx, text)
	if errors.Is(err, store.ErrMissing) {
		return id, noImage(text)
	}
	return id, err
}

func noImage(text string) error {
	return withHint(fmt.Errorf("image %q: %w", text, store.ErrMissing), "`ingot image list` shows the images of this site")
}
