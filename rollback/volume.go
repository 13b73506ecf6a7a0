package rollback

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/pattern"
)

// Volume is a file system that takes part in the switches of a tree, besides
// that of its top.
type Volume struct {
	At     Path   `json:"at"`               // its mount point, relative to the top
	ID     string `json:"id,omitempty"`     // what its .ingot/volume says; "": no switch has been there
	FSType string `json:"type"`             // as mount(8) names it
	UUID   string `json:"uuid,omitempty"`   // of its superblock, where that can be read
	Source string `json:"source,omitempty"` // the device, as mountinfo names it
	Root   string `json:"root,omitempty"`   // what of it is mounted, where that is a subvolume of btrfs
}

func (v Volume) String() string {
	s := fmt.Sprintf("%s of %s", v.FSType, v.Source)
	if v.UUID != "" {
		s += ", UUID " + v.UUID
	}
	return s
}

// has reports whether path is at or below the mount point.
func (v *Volume) has(path string) bool { return path == string(v.At) || under(path, string(v.At)) }

// numberOf returns the number of the volume that path is on, in a list that
// begins with number 1; 0 is that of the top.
func numberOf(list []Volume, path string) int {
	for i := len(list) - 1; i >= 0; i-- { // what is mounted in another one comes after it
		if list[i].has(path) {
			return i + 1
		}
	}
	return 0
}

// VolumeError names a file system that a plan or a journal needs and that is
// not where it was. errors.Is(err, ErrVolume).
type VolumeError struct {
	Volume Volume
	Why    string
}

func (e *VolumeError) Error() string {
	return fmt.Sprintf("the file system of %q (%s): %s", "/"+string(e.Volume.At), e.Volume, e.Why)
}

// Is makes it an ErrVolume.
func (e *VolumeError) Is(target error) bool { return target == ErrVolume }

// volume is a file system of the tree as a plan found it.
type volume struct {
	Volume
	dev      uint64
	readOnly bool
}

// in returns the path from the top of the tree of a path of the volume.
func (v *volume) in(rel string) string { return join(string(v.At), rel) }

// volumes are the file systems of a tree that take part in a change, in tree
// order. Number 0 is that of the top.
type volumes []volume

// of returns the number of the volume that path is on. A mount point is on
// what is mounted there.
func (vs volumes) of(path string) int {
	for i := len(vs) - 1; i > 0; i-- { // what is mounted in another one comes after it
		if vs[i].has(path) {
			return i
		}
	}
	return 0
}

// in returns the path from the top of the tree of a path of volume i.
func (vs volumes) in(i int, rel string) string {
	if i == 0 {
		return rel
	}
	return vs[i].in(rel)
}

// at returns the number of the volume that is mounted at path, 0 for none.
func (vs volumes) at(path string) int {
	for i := 1; i < len(vs); i++ {
		if string(vs[i].At) == path {
			return i
		}
	}
	return 0
}

// described returns what a journal and a generation say of them.
func (vs volumes) described() []Volume {
	var out []Volume
	for i := 1; i < len(vs); i++ {
		out = append(out, vs[i].Volume)
	}
	return out
}

// mountPoint is a mount in the tree, and why it takes no part in any change; ""
// when it may.
type mountPoint struct {
	volume
	why string
}

// asFound is the image of a generation that ingot did not make.
const asFound = "as found"

// found reports whether the record of a generation says what was there, rather
// than what was brought there.
func (g *Generation) found() bool { return g.Image == asFound }

// census decides which mounts take part in the change of base to target, and
// which are stood aside. It is pure; its results are in the rules.
type census struct {
	g            *Generation
	base, target *index
	rules        *rules
	holdsID      func(at, id string) bool // whether the plain directory at has that identity
}

// take fills the rules: volumes, what stands aside, what is away.
func (c *census) take(top volume, mounts []mountPoint) {
	r := c.rules
	r.vols, r.aside = volumes{top}, map[string]string{}
	c.missing(mounts)
	for _, m := range mounts {
		at := string(m.At)
		switch {
		case slices.Contains(r.away, at):
			continue
		case m.why != "":
		case c.outside(at):
			m.why = "it is in what takes no part itself"
		case r.again != nil && !c.recorded(m.At):
			m.why = fmt.Sprintf("it was not there when generation %d was made", c.g.Number)
		case !c.wanted(at):
			m.why = "neither the target nor the record has anything in it"
			r.idle = append(r.idle, at)
		default:
			m.why = c.twin(m, top, mounts)
		}
		if m.why != "" {
			r.aside[at] = m.why
			continue
		}
		r.vols = append(r.vols, m.volume)
	}
	tops := c.g.Volumes
	for _, v := range r.vols[1:] {
		tops = append(slices.Clip(tops), v.Volume)
	}
	r.volatile = r.volatile.With(tended(tops))
}

// wanted reports whether the change may be of what is at a mount point: the
// target has something there, or a record of what was brought there has.
func (c *census) wanted(at string) bool {
	return c.wants(c.target, at) || !c.g.found() && c.wants(c.base, at)
}

// recorded reports whether the record is of a file system at a mount point.
func (c *census) recorded(at Path) bool {
	return slices.ContainsFunc(c.g.Volumes, func(v Volume) bool { return v.At == at })
}

// twin says where else the file system of m is in the tree, when that is where
// it takes part: the record's place wins, then the first one.
func (c *census) twin(m mountPoint, top volume, mounts []mountPoint) string {
	at := m.At
	for _, x := range mounts {
		if x.dev == m.dev && x.why == "" && c.wanted(string(x.At)) && !c.recorded(at) && (c.recorded(x.At) || order(string(x.At), string(at)) < 0) {
			at = x.At
		}
	}
	if m.dev == top.dev {
		at = top.At
	}
	if at == m.At {
		return ""
	}
	return fmt.Sprintf("its file system is in the tree already, at %q", at)
}

// missing finds the volumes of the record that are not where they were, and
// below which it has something.
func (c *census) missing(mounts []mountPoint) {
	for _, v := range c.g.Volumes {
		at := string(v.At)
		if !c.wants(c.base, at) {
			continue
		}
		i := slices.IndexFunc(mounts, func(m mountPoint) bool { return m.At == v.At })
		why := ""
		switch {
		case i < 0 && !c.holdsID(at, v.ID):
			why = fmt.Sprintf("the file system that generation %d has there (%s) is not mounted", c.g.Number, v)
		case i >= 0 && mounts[i].why != "":
			why = fmt.Sprintf("generation %d has another file system there (%s): %s", c.g.Number, v, mounts[i].why)
		case i >= 0 && v.ID != "" && mounts[i].ID != v.ID:
			why = fmt.Sprintf("generation %d has another file system there (%s); one that takes its place needs its .ingot/volume, with %s in it",
				c.g.Number, v, v.ID)
		}
		if why != "" {
			c.rules.away = append(c.rules.away, at)
			c.rules.aside[at] = why
		}
	}
}

// outside reports whether at is below a mount that takes no part.
func (c *census) outside(at string) bool {
	for up := parentOf(at); up != "."; up = parentOf(up) {
		if c.rules.aside[up] != "" {
			return true
		}
	}
	return false
}

// wants reports whether x has something below the directory at that a push may touch.
func (c *census) wants(x *index, at string) bool {
	i := x.at(at)
	if i < 0 {
		return false
	}
	for _, e := range x.m.Entries[i+1 : x.end[i]] {
		if c.rules.left(e.Path) == "" || c.rules.seed.Match(e.Path) {
			return true
		}
	}
	return false
}

// tended are the paths that ingot and the file system itself have at the top of volumes.
func tended(list []Volume) pattern.List {
	var texts []string
	for _, v := range list {
		for _, name := range []string{home, "lost+found"} {
			texts = append(texts, "/"+plain(path.Join(string(v.At), name)))
		}
	}
	out, err := pattern.Parse(texts)
	if err != nil {
		panic("BUG: pattern of a mount point: " + err.Error())
	}
	return out
}

// plain makes a path a pattern that matches nothing else.
func plain(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// separate makes files of their own of what a manifest links across volumes.
func separate(m *manifest.Manifest, vs volumes) (*manifest.Manifest, []Note) {
	type name struct {
		root string
		vol  int
	}
	first := map[name]string{} // of a group on a volume that its first name is not on
	var out *manifest.Manifest
	var notes []Note
	for i := range m.Entries {
		e := &m.Entries[i]
		if len(vs) < 2 || e.Link == "" || vs.of(e.Path) == vs.of(e.Link) {
			continue
		}
		if out == nil {
			out = &manifest.Manifest{Entries: slices.Clone(m.Entries)}
		}
		x, group := &out.Entries[i], name{e.Link, vs.of(e.Path)}
		if to, ok := first[group]; ok {
			x.Link = to
			continue
		}
		first[group] = e.Path
		holder, _ := m.Lookup(e.Link)
		x.Link, x.Holes, x.Chunks = "", holder.Holes, holder.Chunks
		notes = append(notes, Note{e.Path, fmt.Sprintf("in the target a hard link to %q, which is on another file system here: becomes a file of its own", e.Link)})
	}
	if out == nil {
		return m, nil
	}
	return out, notes
}

// volumes finds the file systems that take part. Of the target it makes what
// these can hold.
func (s *scanner) volumes(g *Generation) ([]Note, error) {
	top, mounts, err := s.n.mounts()
	if err != nil {
		return nil, err
	}
	c := &census{g: g, base: s.base, target: s.target, rules: s.rules, holdsID: s.n.holdsID}
	c.take(top, mounts)
	m, notes := separate(s.target.m, s.rules.vols)
	if m != s.target.m {
		s.target = indexOf(m)
	}
	return notes, nil
}

// recordVolumes says which volumes the record of a plan's generation is of.
// One that is away is still the record's, and so is one that a change of a part
// did not look at.
func (p *Plan) recordVolumes(g *Generation, r *rules) {
	list := r.vols.described()
	for _, v := range g.Volumes {
		known := func(x Volume) bool { return x.At == v.At }
		if (r.only != nil || slices.Contains(r.away, string(v.At))) && !slices.ContainsFunc(list, known) {
			list = append(list, v)
		}
	}
	slices.SortFunc(list, func(a, b Volume) int { return order(string(a.At), string(b.At)) })
	p.Generation.Volumes, p.Generation.Aside = list, nil
	for _, at := range r.idle {
		if r.only == nil || slices.Contains(g.Aside, Path(at)) {
			p.Generation.Aside = append(p.Generation.Aside, Path(at))
		}
	}
}

// assign gives each step its volume, and the plan those that steps are on.
func (p *Plan) assign(vs volumes) {
	if len(vs) == 0 {
		return // a comparison without a disk
	}
	used := make([]string, len(vs)) // the first path on each
	for i := range p.Steps {
		if v := vs.of(p.Steps[i].Path); used[v] == "" {
			used[v] = p.Steps[i].Path
		}
	}
	p.vols = volumes{vs[0]}
	for i := 1; i < len(vs); i++ {
		if used[i] == "" {
			continue
		}
		p.vols = append(p.vols, vs[i])
		if vs[i].readOnly {
			p.Blocked = append(p.Blocked, Note{string(vs[i].At), fmt.Sprintf("its file system is mounted read-only, and %q is to change", used[i])})
		}
	}
	for i := range p.Steps {
		p.Steps[i].vol = p.vols.of(p.Steps[i].Path)
	}
}

// mountPoints holds on to the directories that volumes are mounted at: they can
// change in metadata, but not go.
func (c *comparison) mountPoints() {
	for i := 1; i < len(c.rules.vols); i++ {
		w := c.row(string(c.rules.vols[i].At))
		switch {
		case w == nil || w.l == nil:
			continue
		case w.goal == nil:
			c.blocked(w.path, "is a mount point: cannot be deleted")
		case w.goal.Type != entry.Dir:
			c.blocked(w.path, "is a mount point: cannot become "+typeName(w.goal.Type))
		default:
			continue
		}
		w.keep()
	}
}

// absent refuses changes below volumes that are not there.
func (c *comparison) absent() {
	for _, at := range c.rules.away {
		for i := range c.rows {
			w := &c.rows[i]
			if w.path != at && !under(w.path, at) || c.rules.left(w.path) != Mount {
				continue
			}
			if (w.b == nil) != (w.t == nil) || w.b != nil && !sameEntry(c.base, w.b, c.target, w.t) {
				c.blocked(at, fmt.Sprintf("%s, and %q is to change", c.rules.aside[at], w.path))
				break
			}
		}
	}
}

// row finds the row of a path.
func (c *comparison) row(path string) *row {
	i, ok := slices.BinarySearchFunc(c.rows, path, func(w row, p string) int { return order(w.path, p) })
	if !ok {
		return nil
	}
	return &c.rows[i]
}
