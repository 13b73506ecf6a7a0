package main

import (
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
	refs, err := w.references(c.Context)
	if err != nil {
		return err
	}
	view := viewReport(rep, refs)
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
		p.showReport(rep, view)
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

func (p *program) showReport(rep store.Report, view reportView) {
	for i, d := range rep.Damage {
		fmt.Fprintf(p.Stdout, "DAMAGED %s\n", d)
		v := view.Damage[i]
		for _, n := range []struct {
			what  string
			nodes []string
		}{{"runs on", v.Runs}, {"kept by", v.Keeps}, {"to be installed on", v.Installs}} {
			if len(n.nodes) > 0 {
				fmt.Fprintf(p.Stdout, "  %s %s\n", n.what, fold(n.nodes))
			}
		}
		const most = 20
		for _, path := range d.Paths[:min(len(d.Paths), most)] {
			fmt.Fprintf(p.Stdout, "  in %s\n", shown(path))
		}
		if more := max(0, len(d.Paths)-most) + d.More; more > 0 {
			fmt.Fprintf(p.Stdout, "  and in %s more\n", count(more, "file"))
		}
	}
	fmt.Fprintf(p.Stdout, "%s, %s, %s read: %d damaged\n", count(rep.Manifests, "image"), count(rep.Packs, "pack"), size(rep.Bytes), len(rep.Damage))
	done := view.Repaired
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
	Object string   `json:"object"` // pack, manifest or name
	ID     string   `json:"id"`
	Error  string   `json:"error"`
	Chunks int      `json:"lost_chunks"`
	Images []string `json:"images"`
	Paths  []string `json:"paths"`                // files that cannot be read
	More   int      `json:"more_paths,omitempty"` // that are not in paths
	nodesOf
}

func viewReport(r store.Report, refs references) reportView {
	v := reportView{Images: r.Manifests, Packs: r.Packs, Bytes: r.Bytes, Damage: []damageView{}}
	for _, d := range r.Damage {
		one := damageView{Object: d.Object, ID: d.ID, Error: d.Err.Error(), Chunks: len(d.Chunks), Images: append([]string{}, d.Images...), Paths: []string{}, More: d.More, nodesOf: refs.of(d.Manifests...)}
		for _, path := range d.Paths {
			one.Paths = append(one.Paths, text(path))
		}
		v.Damage = append(v.Damage, one)
	}
	return v
}
