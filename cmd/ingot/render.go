package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"ingot/classes"
	"ingot/imager"
	"ingot/installer"
	"ingot/internal/digest"
	"ingot/internal/pattern"
	"ingot/inventory"
	"ingot/rollback/sides"
	"ingot/site"
	"ingot/templates"
	"ingot/web"
)

// templateSet is the built-in templates under those of a site.
func templateSet(s *site.Site) *templates.Set {
	return &templates.Set{Dir: filepath.Join(s.Dir, "templates")}
}

// bootData is what a boot script depends on.
type bootData struct {
	Machine web.Machine
	Node    *site.Node
	Ref     string
	Attempt int
	Kernel  string
	Initrd  string
	Args    []string
	Reason  string
}

func (b *boots) render(name string, d bootData) (string, error) {
	s := b.site()
	t := templates.Boot{Node: d.Node, Site: s, MAC: d.Machine.MAC.String(), UUID: literal(d.Machine.UUID), Serial: literal(d.Machine.Serial), IP: d.Machine.IP,
		Ref: d.Ref, Attempt: d.Attempt, Kernel: d.Kernel, Initrd: d.Initrd, Args: d.Args, Reason: d.Reason}
	if d.Node != nil {
		if r, err := resolveProfile(s, d.Node); err == nil { // a broken profile must not keep a machine from its disk
			t.Vars, t.Classes = templates.Vars(s, d.Node, r), r.Classes
		}
	}
	text, err := templateSet(s).Render(name, t)
	return string(text), err
}

// renderOverlay makes what a node has on top of an image: the files that
// follow from its own file, and over them those of its classes. Owners that
// are names are looked up in the image's own /etc/passwd.
func renderOverlay(ctx context.Context, w *world, n *site.Node, r *classes.Resolved, image digest.ID) (*imager.Overlay, error) {
	own, err := templateSet(w.Site).Node(w.Site, n, r)
	if err != nil {
		return nil, err
	}
	written := modTime(filepath.Join(w.Dir, n.File()))
	byPath := map[string]imager.OverlayFile{}
	for _, f := range own {
		byPath[f.Path] = imager.OverlayFile{Path: f.Path, Mode: f.Mode, ModTime: written, Content: f.Data}
	}
	ids := owners{ctx: ctx, w: w, image: image}
	vars := templates.Vars(w.Site, n, r)
	for _, f := range r.Files {
		o, err := classFile(w, f, vars, &ids)
		if err != nil {
			return nil, err
		}
		byPath[f.Path] = o
	}
	var files []imager.OverlayFile
	for _, f := range byPath {
		files = append(files, f)
	}
	return imager.NewOverlay(files)
}

func classFile(w *world, f classes.File, vars map[string]string, ids *owners) (imager.OverlayFile, error) {
	data, err := f.Content()
	if err != nil {
		return imager.OverlayFile{}, err
	}
	if f.Substitute {
		if data, err = templates.Substitute(f.Source, data, vars); err != nil {
			return imager.OverlayFile{}, err
		}
	}
	o := imager.OverlayFile{Path: f.Path, Mode: f.Mode, ModTime: modTime(filepath.Join(w.Dir, f.Source)), Content: data}
	if o.UID, err = ids.lookup("etc/passwd", f.Owner, f.UID); err == nil {
		o.GID, err = ids.lookup("etc/group", f.Group, f.GID)
	}
	if err != nil {
		return o, fmt.Errorf("%s: %w", f.Source, err)
	}
	return o, nil
}

func modTime(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.ModTime().UnixNano()
}

// owners resolves the names of owners and groups by the files of an image.
type owners struct {
	ctx   context.Context
	w     *world
	image digest.ID
	known map[string]map[string]uint32 // file -> name -> number
}

func (o *owners) lookup(file, name string, number int) (uint32, error) {
	if number >= 0 {
		return uint32(number), nil
	}
	if o.known[file] == nil {
		if err := o.read(file); err != nil {
			return 0, err
		}
	}
	id, ok := o.known[file][name]
	if !ok {
		return 0, fmt.Errorf("the image's /%s has no %q", file, name)
	}
	return id, nil
}

func (o *owners) read(file string) error {
	m, err := o.w.images.Manifest(o.ctx, o.image)
	if err != nil {
		return err
	}
	r, err := imageTree{o.ctx, o.w.images, m}.Open(file)
	if err != nil {
		return err
	}
	defer r.Close()
	if o.known == nil {
		o.known = map[string]map[string]uint32{}
	}
	o.known[file] = idsOf(r)
	return nil
}

// idsOf reads name:x:NUMBER:... lines (passwd(5), group(5)).
func idsOf(r io.Reader) map[string]uint32 {
	out := map[string]uint32{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.Split(lines.Text(), ":")
		if len(f) < 3 {
			continue
		}
		if n, err := strconv.ParseUint(f[2], 10, 32); err == nil {
			out[f[0]] = uint32(n)
		}
	}
	return out
}

// renderJob makes the profile of an installation that has been claimed.
func renderJob(ctx context.Context, w *world, s *site.Site, n *site.Node, in inventory.Install) (installer.Job, error) {
	at := *w
	at.Site = s // the last valid set, which may be newer than what was opened
	w = &at
	r, err := resolveProfile(s, n)
	if err != nil {
		return installer.Job{}, err
	}
	if r.Disk == nil {
		return installer.Job{}, fmt.Errorf("node %q: none of its classes has a disk_config", n.Name)
	}
	id, err := digest.Parse(in.Image)
	if err != nil {
		return installer.Job{}, err
	}
	over, err := renderOverlay(ctx, w, n, r, id)
	if err != nil {
		return installer.Job{}, err
	}
	job := installer.Job{
		Node: n.Name, HostName: n.Name, Attempt: in.Attempt, Classes: r.Classes, Ref: in.Ref, Image: id,
		DiskConfig: installer.DiskConfig{Class: r.Disk.Class, File: r.Disk.File, Text: string(r.Disk.Text)},
		KernelArgs: r.Profile.Kernel.Args, Vars: templates.Vars(s, n, r), NodeOwned: r.Profile.NodeOwned,
		Overlay: over.Manifest.Encode(), Data: over.Data, OperatorKeys: s.Operators.SSHKeys, By: in.By,
		Loader: r.Profile.Loader, Finish: r.Profile.Finish,
	}
	if job.Sides, err = sidesOf(&r.Profile); err != nil {
		return installer.Job{}, fmt.Errorf("node %q: %w", n.Name, err)
	}
	if err := addKeys(ctx, w, n.Name, r.Profile.HostKeys, &job); err != nil {
		return installer.Job{}, err
	}
	for _, x := range r.Scripts {
		content, err := os.ReadFile(filepath.Join(s.Dir, x.Path))
		if err != nil {
			return installer.Job{}, err
		}
		job.Scripts = append(job.Scripts, installer.Script{Class: x.Class, Name: x.Path, Content: content})
	}
	return job, nil
}

// sidesOf says how a node with two sides is divided; nil for others. What two
// sides cannot share is an error that names it.
func sidesOf(p *classes.Profile) (*installer.Sides, error) {
	if !p.TwoSides() {
		return nil, nil
	}
	trees, own, err := sides.Share(append(pattern.NodeOwned().Strings(), p.NodeOwned...))
	if err != nil {
		return nil, withHint(err, "name whole directories in node_owned, or use update: live")
	}
	return &installer.Sides{Mode: p.Update, Other: p.Sides.Other, Shared: p.Sides.Shared, Env: p.Sides.Env, Trees: trees, Own: own}, nil
}

// addKeys adds the host keys that the server keeps for the node, and the
// site's own key to those of its operators.
func addKeys(ctx context.Context, w *world, node, policy string, job *installer.Job) error {
	key, err := w.siteKey()
	if err != nil {
		return err
	}
	pub, err := os.ReadFile(key + ".pub")
	if err != nil {
		return err
	}
	job.OperatorKeys = append(append([]string{}, job.OperatorKeys...), strings.TrimSpace(string(pub)))
	if policy == "image" {
		return nil
	}
	keys, err := w.hostKeys(ctx, node)
	if err != nil {
		return err
	}
	for _, k := range keys {
		job.HostKeys = append(job.HostKeys, installer.HostKey{Type: k.Type, Private: k.Private, Public: k.Public})
	}
	return nil
}
