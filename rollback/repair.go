package rollback

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"ingot/internal/pattern"
)

// Repair says how a tree is compared with what it was given: the record of its
// present generation, which is base and target in one.
type Repair struct {
	NodeOwned pattern.List // the profile's of now, besides those of the generation
	Never     pattern.List // likewise: what a repair leaves as it is
	Policy    Policy       // what of the node's changes stays; all else is taken back

	// Within limits it to one path and all that is in it; "" is all that the
	// record speaks of.
	Within string

	By   string // who asks
	Full bool   // read every file; do not trust unchanged inodes
}

// Drift compares the tree with what it was given and changes nothing: Plan.Drift
// of the result says what differs. The plan is not one that could be staged.
func (n *Node) Drift(ctx context.Context, t Repair) (*Plan, error) {
	p, err := n.again(ctx, t, inPlace)
	if err != nil {
		return nil, fmt.Errorf("compare with what was given: %w", err)
	}
	return p, nil
}

// PlanRepair plans how the tree becomes again what its present generation was
// given. Where nothing is to be put back the plan is empty; times alone are set
// together with something else.
func (n *Node) PlanRepair(ctx context.Context, t Repair) (*Plan, error) {
	p, err := n.again(ctx, t, inPlace)
	if err == nil {
		err = n.finish(ctx, p, p.live, p.scan)
	}
	if err != nil {
		return nil, fmt.Errorf("plan repair: %w", err)
	}
	return p, nil
}

// PlanSideRepair plans what the other side has to become for the node to be what
// this side was given, with what is the node's own as it is here; see PlanSide.
func (n *Node) PlanSideRepair(ctx context.Context, t Repair, other *Node) (*Plan, error) {
	here, err := n.again(ctx, t, onSide)
	if err != nil {
		return nil, fmt.Errorf("plan repair: %w", err)
	}
	p, err := n.onto(ctx, here, other, t.Full)
	if err != nil {
		return nil, fmt.Errorf("plan the other side: %w", err)
	}
	return p, nil
}

// again compares the tree with the record of its generation.
func (n *Node) again(ctx context.Context, t Repair, why use) (*Plan, error) {
	g, err := n.idle()
	if err == nil && g.Number == 0 {
		err = fmt.Errorf("nothing was given to this node yet: %w", ErrNoGeneration)
	}
	if err != nil {
		return nil, err
	}
	m, err := n.Manifest(g.Number)
	if err != nil {
		return nil, err
	}
	r, err := rulesAgain(&g, t, why)
	if err != nil {
		return nil, err
	}
	x := indexOf(m)
	if _, ok := m.Lookup(t.Within); t.Within != "" && !ok && !n.exists(t.Within) {
		return nil, fmt.Errorf("%q is neither in generation %d nor on the node: %w", t.Within, g.Number, unix.ENOENT)
	}
	var sc *scope
	if r.again.tops != nil {
		sc = r.again.scope(x)
		r.only = func(path string) bool { return sc.paths[path] || r.again.has(path) }
	}
	if why == inPlace {
		r.modules = n.modules(x)
	}
	s := &scanner{n: n, rules: r, base: x, target: x, cache: n.readCache(g, m), full: t.Full}
	split, err := s.volumes(&g)
	if err != nil {
		return nil, err
	}
	l, err := s.scan(ctx, sc)
	if err != nil {
		return nil, err
	}
	if r.again.kept, err = n.asKept(l, &g); err != nil {
		return nil, err
	}
	p := compare(s.base, l, s.target, r)
	p.Base, p.Repair, p.live, p.scan = g.Number, true, l, s
	p.Notes = append(p.Notes, split...)
	p.unlinked()
	p.unseen()
	slices.SortStableFunc(p.drift, func(a, b Drift) int { return order(a.Path, b.Path) })
	if !slices.ContainsFunc(p.drift, func(d Drift) bool { return d.Left == "" }) {
		p.Steps = nil
	}
	return p, n.repaired(p, &g, t.By)
}

// rulesAgain are those of a comparison with the record of g.
func rulesAgain(g *Generation, t Repair, why use) (*rules, error) {
	var owned, never [2]pattern.List
	var err error
	if owned[0], err = pattern.Parse(g.Owned); err == nil {
		never[0], err = pattern.Parse(g.Never)
	}
	if err != nil {
		return nil, fmt.Errorf("generation %d: %w", g.Number, err)
	}
	owned[1], never[1] = t.NodeOwned, t.Never
	tops, err := g.within(t.Within)
	if err != nil {
		return nil, err
	}
	r := &rules{leaves: leaves{volatile: volatile(g.Exact)}, policy: t.Policy.otherwise(Take), derived: map[string]bool{},
		again: &again{tops: tops, linked: map[string]bool{}, never: never}}
	for _, list := range owned {
		r.owned = append(r.owned, nodeOwned(g.Exact, list))
	}
	if why == onSide {
		if tops != nil {
			return nil, fmt.Errorf("a part of a node with two sides cannot be repaired: the other side becomes all that this one was given")
		}
		r.carried, r.owned = nodeOwned(g.Exact, owned[0].With(owned[1])), nil
	}
	for _, d := range g.Derived {
		r.derived[string(d)] = true
	}
	return r, nil
}

// otherwise is the policy with a decision about what it does not speak of.
func (p Policy) otherwise(a Action) Policy {
	p.Default = a
	if p.Usual != nil {
		usual := p.Usual.otherwise(a)
		p.Usual = &usual
	}
	return p
}

// again is what a comparison of a tree with its own record knows besides.
type again struct {
	tops   []string        // what is looked at; nil: the whole tree
	linked map[string]bool // names outside of these of files that have one in them
	never  [2]pattern.List // either leaves a path as it is
	kept   map[string]bool // changed already when the record was made, by somebody's decision, and not since
}

// within lists what of a record is to be looked at; nil is the whole tree.
func (g *Generation) within(path string) ([]string, error) {
	c := g.covers()
	switch {
	case path != "" && !cleanPath(path):
		return nil, fmt.Errorf("%q is not a clean path below the top", path)
	case path == "" || path == ".":
		return c.tops, nil
	case c.all:
		return []string{path}, nil
	}
	var out []string
	for _, top := range c.tops {
		switch {
		case path == top || under(path, top):
			return []string{path}, nil
		case under(top, path):
			out = append(out, top)
		}
	}
	if out == nil {
		return nil, fmt.Errorf("%q: generation %d is of other paths only (%q): %w", path, g.Number, c.tops, unix.ENOENT)
	}
	return out, nil
}

// has reports whether path is in what is looked at.
func (a *again) has(path string) bool {
	return slices.ContainsFunc(a.tops, func(top string) bool { return path == top || under(path, top) })
}

// above reports whether path is only a directory that something of it is in.
func (a *again) above(path string) bool { return a.tops != nil && !a.has(path) && !a.linked[path] }

// scope is what has to be looked at. What is linked with a file in it is one
// file with it, wherever its other names are.
func (a *again) scope(x *index) *scope {
	sc := &scope{paths: map[string]bool{".": true}, deep: map[string]bool{}}
	for _, top := range a.tops {
		sc.deep[top] = true
		sc.add(top, nil)
	}
	for path, names := range groupPaths(x) {
		if !a.has(path) {
			continue
		}
		for _, name := range names {
			if !a.has(name) {
				a.linked[name] = true
				sc.add(name, nil)
			}
		}
	}
	return sc
}

// stays says why a repair leaves a changed path as it is, and the record, too; ""
// where it does not. What is shown of the modules is their directory.
func (r *rules) stays(w *row) (why string, show bool) {
	switch a := r.again; {
	case a.never[0].Match(w.path) || a.never[1].Match(w.path):
		return "never rolled back", true
	case a.kept[w.path]:
		return "kept when the generation was made", true
	case w.b == nil && w.l != nil && r.runs(w.path):
		return "modules of the running kernel", slices.Contains(r.modules, w.path)
	}
	return "", false
}

// unseen adds mounts that lie over something of the record, and file systems
// of it that are not there.
func (p *Plan) unseen() {
	r := p.scan.rules
	c := &census{rules: r}
	for at, why := range r.aside {
		if slices.Contains(r.away, at) || c.wants(p.scan.base, at) {
			p.drift = append(p.drift, Drift{Path: at, Kind: Unseen, Why: why, Left: "its content is not looked at"})
		}
	}
}

// repaired makes the record of a repair: that of the generation g once more.
func (n *Node) repaired(p *Plan, g *Generation, by string) error {
	made := *g
	made.Kept, made.Before = p.Generation.Kept, nil
	made.By, made.Result, made.Reason, made.Note = by, "repaired", "", fmt.Sprintf("repair of %d", g.Number)
	made.Of, made.To, made.Pinned, made.Trial, made.Health = 0, 0, false, nil, nil
	made.Volumes, made.Retention = slices.Clone(g.Volumes), n.retention(g)
	p.Generation = made
	if p.Empty() {
		return nil
	}
	if g.OnTrial() {
		p.waits = &TrialError{*g}
	}
	var err error
	if p.target, _, err = n.Known(g.Target); err != nil {
		return err
	}
	return n.noteKept(p, p.live, g, p.scan.rules.again.looks())
}

// looks returns what tells whether a path is looked at; nil: all are.
func (a *again) looks() func(path string) bool {
	if a.tops == nil {
		return nil
	}
	return func(path string) bool { return a.has(path) || a.linked[path] }
}
