package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"ingot/imager/store"
	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

func (p *program) imageList(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	usage, err := w.images.Usage(c.Context)
	if err != nil {
		return err
	}
	views, damaged := []imageView{}, 0
	for _, u := range usage {
		v := imageView{Image: u.Ref.String(), Digest: u.Digest, Entries: u.Entries, Bytes: u.Size, Stored: u.Stored, Unique: u.Unique, Created: u.Created, Arch: u.Arch, Kernel: u.Kernel, Source: u.Source}
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
	rows := [][]string{{"IMAGE", "DIGEST", "ENTRIES", "SIZE", "STORED", "UNIQUE", "AGE", "KERNEL", "SOURCE"}}
	for _, v := range views {
		row := []string{v.Image, v.Digest.Short(), fmt.Sprint(v.Entries), size(v.Bytes), size(v.Stored), size(v.Unique), age(time.Since(v.Created)), orElse(v.Kernel, "-"), orElse(v.Source, "-")}
		if v.Error != "" {
			p.say("damaged: %s: %s", v.Image, v.Error)
			row[4], row[5] = "damaged", "-"
		}
		if v.Digest.IsZero() { // nor is anything known
			row[1], row[2], row[3], row[6] = "-", "-", "-", "-"
		}
		rows = append(rows, row)
	}
	return rows
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
	refs, err := w.images.Refs(c.Context)
	var bad *store.NameError
	if errors.As(err, &bad) {
		p.say("note: not all names can be read: %v", err)
	} else if err != nil {
		return err
	}
	names := []imageView{}
	for _, n := range refs {
		if n.Digest == id {
			names = append(names, imageView{Image: n.Ref.String(), Digest: id, Created: n.Created, Arch: n.Arch, Source: n.Source, Parent: n.Parent, Sealed: n.Sealed})
		}
	}
	if c.Bool("json") {
		out := map[string]any{"digest": id, "names": names, "entries": len(m.Entries), "bytes": m.TotalSize(), "kernel": kernelOf(m)}
		if c.Bool("files") {
			out["files"] = viewEntries(m)
		}
		return p.printJSON(out)
	}
	fmt.Fprintf(p.Stdout, "digest   %s\nentries  %d\nsize     %s\nkernel   %s\n", id, len(m.Entries), size(m.TotalSize()), orElse(kernelOf(m), "none"))
	for _, n := range names {
		fmt.Fprintf(p.Stdout, "name     %s, since %s, from %s\n", n.Image, n.Created.Local().Format(time.DateTime), orElse(n.Source, "unknown"))
		if !n.Parent.IsZero() {
			fmt.Fprintf(p.Stdout, "parent   %s, which the node ran\n", n.Parent)
		}
		if len(n.Sealed) > 0 {
			fmt.Fprintf(p.Stdout, "sealed   %s\n", quoted(n.Sealed))
		}
	}
	if c.Bool("files") {
		return listEntries(p.Stdout, m)
	}
	return nil
}

// entryView is one entry of an image. A path that is not UTF-8 is quoted as Go
// quotes it, since JSON cannot say it.
type entryView struct {
	Path   string    `json:"path"`
	Type   string    `json:"type"`
	Mode   string    `json:"mode"` // octal
	UID    uint32    `json:"uid"`
	GID    uint32    `json:"gid"`
	Bytes  int64     `json:"bytes,omitempty"`
	Time   time.Time `json:"mtime"`
	Target string    `json:"target,omitempty"`
	Link   string    `json:"hard_link_to,omitempty"`
	Device string    `json:"device,omitempty"` // major:minor
	Xattrs []string  `json:"xattrs,omitempty"` // names
}

func viewEntries(m *manifest.Manifest) []entryView {
	kinds := [...]string{"?", "file", "dir", "symlink", "char", "block", "fifo"}
	out := make([]entryView, len(m.Entries))
	for i, e := range m.Entries {
		v := entryView{Path: text(e.Path), Type: kinds[min(int(e.Type), len(kinds)-1)], Mode: fmt.Sprintf("%04o", e.Mode), UID: e.UID, GID: e.GID, Bytes: e.Size,
			Time: time.Unix(0, e.ModTime).UTC(), Target: text(e.Target), Link: text(e.Link)}
		if e.Type == entry.CharDevice || e.Type == entry.BlockDevice {
			v.Device = fmt.Sprintf("%d:%d", e.Major, e.Minor)
		}
		for _, x := range e.Xattrs {
			v.Xattrs = append(v.Xattrs, text(x.Name))
		}
		out[i] = v
	}
	return out
}

// text is s where it is UTF-8, else quoted.
func text(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strconv.Quote(s)
}

func listEntries(w io.Writer, m *manifest.Manifest) error {
	kinds := [...]string{"?", "-", "d", "l", "c", "b", "p"}
	for _, e := range m.Entries {
		if _, err := fmt.Fprintf(w, "%s%04o %5d %5d %12d %s %q\n", kinds[min(int(e.Type), len(kinds)-1)], e.Mode, e.UID, e.GID, e.Size,
			time.Unix(0, e.ModTime).UTC().Format("2006-01-02T15:04:05.000000000"), e.Path); err != nil {
			return err
		}
	}
	return nil
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

func (p *program) imageVerify(c *cli.Context) error {
	if err := wantArgs(c, 0, 1); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	bar := p.bar()
	o := store.VerifyOptions{Progress: func(done, total int64) { bar.show(wire.Progress{Task: "verify", Done: done, Total: total}) }}
	if c.Args().Present() {
		if o.Manifest, err = resolveImage(c.Context, w, c.Args().First()); err != nil {
			return err
		}
	}
	repair := c.Bool("repair")
	// Nobody may rely meanwhile on what is taken out of use.
	release, err := p.lockImages(c.Context, w, repair, math.MaxInt64)
	if err != nil {
		return err
	}
	defer release()
	rep, err := w.images.Verify(c.Context, o)
	bar.end()
	if err != nil {
		return err
	}
	view := viewReport(rep)
	if repair {
		done, err := w.images.Repair(c.Context, rep)
		if err != nil {
			return err
		}
		view.Repaired = viewRepaired(done)
	}
	if c.Bool("json") {
		if err := p.printJSON(view); err != nil {
			return err
		}
	} else {
		p.showReport(rep, view.Repaired)
	}
	switch {
	case repair && len(view.Repaired.Images) > 0:
		err = fmt.Errorf("incomplete now, to be captured or built again: %s", strings.Join(view.Repaired.Images, ", "))
		return withHint(coded{err, exitCorrupt}, "`ingot image capture` or `ingot image build` under the same name stores anew what is missing")
	case !repair && len(rep.Damage) > 0:
		err = fmt.Errorf("the store has %s", count(len(rep.Damage), "damaged object"))
		return withHint(coded{err, exitCorrupt}, "`ingot image verify --repair` takes damaged packs out of use; then capture or build the image again")
	}
	return nil
}

func (p *program) showReport(rep store.Report, done *repairedView) {
	for _, d := range rep.Damage {
		fmt.Fprintf(p.Stdout, "DAMAGED %s\n", d)
	}
	fmt.Fprintf(p.Stdout, "%s, %s, %s read: %d damaged\n", count(rep.Manifests, "image"), count(rep.Packs, "pack"), size(rep.Bytes), len(rep.Damage))
	if done == nil {
		return
	}
	for _, id := range done.Packs {
		fmt.Fprintf(p.Stdout, "OUT OF USE pack %s\n", id)
	}
	for _, id := range done.Indexes {
		fmt.Fprintf(p.Stdout, "WRITTEN AGAIN index %s\n", id)
	}
	for _, id := range done.Manifests {
		fmt.Fprintf(p.Stdout, "OUT OF USE manifest %s\n", id)
	}
	for _, name := range done.Images {
		fmt.Fprintf(p.Stdout, "INCOMPLETE %s: capture or build it again\n", name)
	}
}

// imageView is what `image list` and `image show` say of one name.
type imageView struct {
	Image   string    `json:"image"`
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
	Error   string    `json:"error,omitempty"`
}

// reportView is what `image verify` found.
type reportView struct {
	Images int          `json:"images"`
	Packs  int          `json:"packs"`
	Bytes  int64        `json:"read_bytes"`
	Damage []damageView `json:"damage"`

	Repaired *repairedView `json:"repaired,omitempty"` // with --repair
}

// repairedView is what `image verify --repair` took out of use, and the images
// that lack something now.
type repairedView struct {
	Packs     []digest.ID `json:"packs"`
	Indexes   []digest.ID `json:"indexes_written_again"`
	Manifests []digest.ID `json:"manifests"`
	Images    []string    `json:"incomplete_images"`
}

func viewRepaired(r store.Repaired) *repairedView {
	return &repairedView{
		Packs: append([]digest.ID{}, r.Packs...), Indexes: append([]digest.ID{}, r.Indexes...),
		Manifests: append([]digest.ID{}, r.Manifests...), Images: append([]string{}, r.Images...),
	}
}

type damageView struct {
	Object string   `json:"object"` // pack, index, manifest or name
	ID     string   `json:"id"`
	Error  string   `json:"error"`
	Chunks int      `json:"lost_chunks"`
	Images []string `json:"images"`
}

func viewReport(r store.Report) reportView {
	v := reportView{Images: r.Manifests, Packs: r.Packs, Bytes: r.Bytes, Damage: []damageView{}}
	for _, d := range r.Damage {
		v.Damage = append(v.Damage, damageView{d.Object, d.ID, d.Err.Error(), len(d.Chunks), append([]string{}, d.Images...)})
	}
	return v
}
