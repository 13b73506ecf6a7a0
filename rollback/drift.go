package rollback

import (
	"crypto/sha256"
	"fmt"
	"strings"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

// Drift is a path that is not what the node was given.
type Drift struct {
	Path string
	Kind ConflictKind
	Why  string // what differs: from what it was given to what is there
	Left string // why a repair leaves it as it is; "": it is put back
}

// What else can be found when a tree is compared with its own record.
const (
	LocalLink ConflictKind = "linked otherwise" // it shares its inode with other names than it was given
	Unseen    ConflictKind = "out of sight"     // a mount, or a file system that is not mounted
)

// Drift lists what differs from what the node was given, in tree order; nothing
// for a plan that is no repair.
func (p *Plan) Drift() []Drift { return p.drift }

// driftOf describes what the node made of a path.
func (c *comparison) driftOf(w *row, left string) Drift {
	d := Drift{Path: w.path, Kind: c.kind(w, w.b, false), Left: left}
	switch d.Kind {
	case LocalAdd:
		d.Why = what(w.l.Entry)
	case LocalDelete:
		d.Why = what(w.b)
	default:
		was, now, step := *w.b, *w.l.Entry, Meta
		was.Link, now.Link = "", "" // what is linked with what is another question
		if d.Kind == LocalChange {
			step = Replace
		}
		d.Why = strings.Join(differing(step, &was, &now), ", ")
	}
	return d
}

// held tells of what was to be taken back and stays for what is in it.
func (c *comparison) held() {
	for i := range c.plan.drift {
		d := &c.plan.drift[i]
		if w := c.row(d.Path); d.Left == "" && w != nil && w.kept {
			d.Left = "it holds what is left alone"
		}
	}
}

// unlinked adds files that lost a hard link which they were given, and are
// otherwise what they were. One that gained a name is told by that name.
func (p *Plan) unlinked() {
	x := p.scan.base
	known, heads := map[string]bool{}, map[string]bool{}
	for _, d := range p.drift {
		known[d.Path] = true
	}
	for i := range x.m.Entries {
		heads[x.m.Entries[i].Link] = true
	}
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.Kind != Replace || known[s.Path] || !heads[rootOf(s.New)] {
			continue
		}
		why := "no longer one file with what was linked to it"
		if s.New.Link != "" {
			why = fmt.Sprintf("no longer a hard link to %q", "/"+s.New.Link)
		}
		p.drift = append(p.drift, Drift{Path: s.Path, Kind: LocalLink, Why: why})
	}
}

// KeptState says what was at a path when a local change there was kept: later
// changes are told from it.
type KeptState struct {
	Path Path      `json:"path"`
	As   digest.ID `json:"as,omitzero"` // nothing, where there was nothing
}

// asKept finds out which of the local changes that a generation kept are still
// what they were then. Of those that an older ingot kept it is not known: they
// count as such.
func (n *Node) asKept(l *live, g *Generation) (map[string]bool, error) {
	was := map[Path]digest.ID{}
	for _, k := range g.KeptAs {
		was[k.Path] = k.As
	}
	out := make(map[string]bool, len(g.Kept))
	for _, path := range g.Kept {
		as, known := was[path]
		if known {
			now, err := n.stateOf(l.get(string(path)))
			if err != nil {
				return nil, err
			}
			known = now != as
		}
		out[string(path)] = !known
	}
	return out, nil
}

// noteKept notes in a plan what the local changes are that it keeps. Those of
// the generation before that it does not look at (nil: it looks at all) are kept, too.
func (n *Node) noteKept(p *Plan, l *live, was *Generation, looks func(path string) bool) error {
	g := &p.Generation
	g.KeptAs = nil
	for _, path := range g.Kept {
		as, err := n.stateOf(l.get(string(path)))
		if err != nil {
			return err
		}
		g.KeptAs = append(g.KeptAs, KeptState{path, as})
	}
	if looks == nil {
		return nil
	}
	for _, path := range was.Kept {
		if !looks(string(path)) {
			g.Kept = append(g.Kept, path)
		}
	}
	for _, k := range was.KeptAs {
		if !looks(string(k.Path)) {
			g.KeptAs = append(g.KeptAs, k)
		}
	}
	return nil
}

// stateOf names what is at a path, its times and links aside; nil is nothing.
func (n *Node) stateOf(it *item) (digest.ID, error) {
	if it == nil {
		return digest.ID{}, nil
	}
	e, content := *it.Entry, digest.ID{}
	if e.Type == entry.File {
		if !it.described { // a manifest may have cut it in its own way
			f, err := n.openFile(it.Path)
			if err == nil {
				defer f.Close()
				err = describe(f, it.stat.Size, &e, &readBuf{})
			}
			if noFile(err) || cutShort(err) {
				err = fmt.Errorf("%w: %w", ErrChanged, err)
			}
			if err != nil {
				return digest.ID{}, err
			}
		}
		content = contentKey(&e)
	}
	h := sha256.New()
	fmt.Fprintf(h, "%d %o %d %d %d %d %q %q %x", e.Type, e.Mode, e.UID, e.GID, e.Major, e.Minor, e.Target, e.Xattrs, content[:])
	return digest.ID(h.Sum(nil)), nil
}
