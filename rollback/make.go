package rollback

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/pattern"
)

// Plan finds out what has to change for the tree to become the target. It
// reads the whole tree, of which it trusts the inodes that did not change
// since the generation was made, and changes nothing. Conflicts and obstacles
// are in the plan, not errors (see Plan.Err).
func (n *Node) Plan(ctx context.Context, t Target) (*Plan, error) {
	p, err := n.compareTo(ctx, t, inPlace)
	if err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	return p, n.finish(ctx, p, p.live, p.scan)
}

// use is what a comparison is for.
type use uint8

const (
	inPlace use = iota // the tree is to become the target
	onSide             // another tree is to become what this one would; node-owned files are read and stay
	back               // likewise, on the way back
)

// compareTo is Plan without what only carrying it out needs.
func (n *Node) compareTo(ctx context.Context, t Target, why use) (*Plan, error) {
	if !n.checked(t.Manifest) {
		if err := t.Manifest.Validate(); err != nil {
			return nil, fmt.Errorf("target: %w", err)
		}
	}
	g, err := n.idle()
	if err != nil {
		return nil, err
	}
	r := &rules{leaves: leaves{volatile: volatile(t.Exact), owned: []pattern.List{nodeOwned(t.Exact, t.NodeOwned)}}, seed: t.Seed,
		policy: t.Policy, derived: map[string]bool{}}
	if why != inPlace {
		r.carried, r.owned = r.owned[0], nil
	}
	if why == back {
		r.never, r.loose = t.Never, true
	}
	for _, d := range g.Derived {
		r.derived[string(d)] = true
	}
	var base *manifest.Manifest
	var cache states
	if g.Number > 0 {
		if base = t.Manifest; t.ID.IsZero() || t.ID != g.Manifest {
			base, err = n.Manifest(g.Number)
		}
		if err != nil {
			return nil, err
		}
		cache = n.readCache(g, base)
	}
	if err := r.gave(n, &g); err != nil {
		return nil, err
	}
	target, top := t.Manifest, ""
	var sc *scope
	if t.Within != "" {
		if r.part, err = n.partOf(t); err != nil {
			return nil, err
		}
		target, top, sc, r.only = r.part.target, r.part.top, r.part.scope(), r.part.has
	}
	s := &scanner{n: n, rules: r, base: indexOf(base), target: indexOf(target), cache: cache, full: t.Full}
	if why == inPlace {
		r.modules = n.modules(s.target)
	}
	split, err := s.volumes(&g)
	if err != nil {
		return nil, err
	}
	l, err := s.scan(ctx, sc)
	if err != nil {
		return nil, err
	}
	if err := r.part.reached(l, r); err != nil {
		return nil, err
	}
	if g.Number == 0 {
		g.Derived = derivedOf(l, target, t.Derived)
		for _, d := range g.Derived {
			r.derived[string(d)] = true
		}
	}
	known := g.covers()
	s.base = adopt(l, s.base, s.target, known)
	p := compare(s.base, l, s.target, r)
	p.Base = g.Number
	if g.OnTrial() && !p.Empty() {
		return nil, &TrialError{g}
	}
	kept, local := p.Generation.Kept, p.Generation.Local
	for _, path := range g.Local {
		if r.part != nil && (!r.part.has(string(path)) || r.part.above(string(path))) {
			local = append(local, path)
		}
	}
	p.Generation = Generation{Image: t.Image, ImageID: t.ImageID, Overlay: t.Overlay, Mode: t.Mode,
		Within: Path(t.Within), Exact: t.Exact, Covers: known.with(top),
		By: t.By, Result: "switched", Derived: g.Derived, Kept: kept, Local: local, Owned: t.NodeOwned.Strings(), Never: t.Never.Strings(), Retention: n.retention(&g)}
	var looks func(string) bool
	if r.part != nil {
		looks = func(path string) bool { return r.part.has(path) && !r.part.above(path) }
	}
	if err := n.noteKept(p, l, &g, looks); err != nil {
		return nil, err
	}
	switch {
	case t.Within == "":
		p.target = t.Manifest
	case r.left(t.Within) != "":
		p.Notes = append(p.Notes, Note{t.Within, fmt.Sprintf("is %s: left alone", r.left(t.Within))})
	}
	p.Notes = append(p.Notes, split...)
	p.recordVolumes(&g, r)
	p.live, p.scan = l, s
	return p, nil
}

// volatile are the paths that nobody looks at.
func volatile(exact bool) pattern.List {
	if exact {
		return pattern.Kept()
	}
	return pattern.Volatile()
}

// nodeOwned are the built-in paths of a node, and those that are its own.
func nodeOwned(exact bool, own pattern.List) pattern.List {
	if exact {
		return own
	}
	return pattern.NodeOwned().With(own)
}

// adopt makes the tree as it is the base where no record speaks of it: on a
// first push, and where only parts were pushed before.
func adopt(l *live, base, target *index, known cover) *index {
	if known.all {
		return base
	}
	c := &comparison{base: indexOf(nil), target: target, live: l}
	b := newBuilder(len(l.items))
	for i := range base.m.Entries {
		if e := &base.m.Entries[i]; known.has(e.Path) || l.get(e.Path) == nil {
			b.add(e, base.content(e), groupIn(1, e))
		}
	}
	var taken []*item
	for _, it := range l.items {
		if it.alone == "" && !known.has(it.Path) {
			b.add(it.Entry, c.contentOf(it), liveGroup(it))
			taken = append(taken, it)
		}
	}
	out := indexOf(b.build(l))
	at := cursor{out.m.Entries}
	for _, it := range taken {
		if it.base = at.to(it.Path); it.base != nil {
			it.Entry = it.base // that it had of its own is needed no more
		}
		it.sameBase = it.Type == entry.File
	}
	return out
}

// idle returns the current generation (none: the zero one), unless a switch
// was interrupted.
func (n *Node) idle() (Generation, error) {
	if n.exists(in("journal")) {
		return Generation{}, ErrInterrupted
	}
	g, err := n.Current()
	if errors.Is(err, ErrNoGeneration) {
		return Generation{}, nil
	}
	return g, err
}

// derivedOf lists what was made for its machine on a node that nobody told us
// of, and what the target has of another one.
func derivedOf(l *live, target *manifest.Manifest, derived pattern.List) []Path {
	seen := map[string]bool{}
	for _, it := range l.items {
		seen[it.Path] = it.alone == "" && it.Type != entry.Dir && derived.Match(it.Path)
	}
	for i := range target.Entries {
		if e := &target.Entries[i]; e.Type != entry.Dir && !seen[e.Path] {
			seen[e.Path] = derived.Match(e.Path)
		}
	}
	var out []Path
	for path, is := range seen {
		if is {
			out = append(out, Path(path))
		}
	}
	slices.Sort(out)
	return out
}

// PlanRollback plans the way back to generation to, or with 0 to the one
// before the current one, from what the node keeps. It looks at nothing but
// what differs between the two. Without damage the plan needs no chunks.
func (n *Node) PlanRollback(ctx context.Context, to int, policy Policy, by string) (*Plan, error) {
	g, err := n.idle()
	if err != nil {
		return nil, fmt.Errorf("plan rollback: %w", err)
	}
	dest, err := n.destination(g, to)
	if err != nil {
		return nil, fmt.Errorf("plan rollback: %w", err)
	}
	var base, target *manifest.Manifest
	var baseErr, targetErr error
	var both sync.WaitGroup
	both.Go(func() { base, baseErr = n.Manifest(g.Number) })
	both.Go(func() { target, targetErr = n.asLeft(dest.Number, g.Number) })
	both.Wait()
	if err := errors.Join(baseErr, targetErr); err != nil {
		return nil, fmt.Errorf("plan rollback: %w", err)
	}
	return n.planBack(ctx, g, dest, indexOf(base), indexOf(target), policy, by)
}

// destination finds the generation to go back to.
func (n *Node) destination(now Generation, to int) (Generation, error) {
	if now.Number == 0 {
		return Generation{}, fmt.Errorf("the node has none: %w", ErrNoGeneration)
	}
	if to == 0 {
		nums, err := n.numbers()
		if err != nil {
			return Generation{}, err
		}
		if len(nums) < 2 {
			return Generation{}, fmt.Errorf("there is none before %d: %w", now.Number, ErrNoGeneration)
		}
		to = nums[len(nums)-2]
	}
	if to == now.Number {
		return Generation{}, fmt.Errorf("generation %d is the current one: %w", to, ErrNoGeneration)
	}
	return n.generation(to)
}

func (n *Node) planBack(ctx context.Context, g, dest Generation, base, target *index, policy Policy, by string) (*Plan, error) {
	var owned []pattern.List
	for _, x := range []*Generation{&g, &dest} {
		list, err := pattern.Parse(x.Owned)
		if err != nil {
			return nil, fmt.Errorf("plan rollback: %w", err)
		}
		owned = append(owned, nodeOwned(x.Exact, list))
	}
	never, err := pattern.Parse(g.Never)
	if err != nil {
		return nil, fmt.Errorf("plan rollback: %w", err)
	}
	r := &rules{leaves: leaves{owned: owned, volatile: volatile(g.Exact && dest.Exact)}, policy: policy.unmerged(), derived: map[string]bool{}, never: never}
	s := &scanner{n: n, rules: r, base: base, target: target, cache: n.readCache(g, base.m)}
	split, err := s.volumes(&g)
	if err != nil {
		return nil, fmt.Errorf("plan rollback: %w", err)
	}
	target = s.target
	r.modules = n.modules(target)
	sc := scopeOf(base, target)
	r.only = func(path string) bool { return sc.paths[path] }
	l, err := s.scan(ctx, sc)
	if err != nil {
		return nil, fmt.Errorf("plan rollback: %w", err)
	}
	p := compare(base, l, target, r)
	p.Base, p.To = g.Number, dest.Number
	kept := p.Generation.Kept
	p.Generation = dest
	p.Generation.Pinned, p.Generation.By, p.Generation.Kept = false, by, kept
	p.Generation.Trial, p.Generation.Health, p.Generation.Reason = nil, nil, ""
	p.Generation.Covers, p.Generation.Never, p.Generation.Retention = g.Covers, g.Never, n.retention(&g)
	p.Generation.Before = nil
	if p.Generation.Local, err = n.localIn(dest, g.Number, never); err == nil {
		err = n.noteKept(p, l, &g, func(path string) bool { return sc.paths[path] || sc.within(path) })
	}
	if err != nil {
		return nil, fmt.Errorf("plan rollback: %w", err)
	}
	p.Generation.Of, p.Generation.To, p.Generation.Result = g.Number, dest.Number, "rolled back"
	p.Generation.Note = fmt.Sprintf("rollback of %d to %d", g.Number, dest.Number)
	p.Notes = append(p.Notes, split...)
	p.recordVolumes(&g, r)
	if p.undo, err = n.undoCopies(ctx, p.vols); err == nil {
		err = n.choose(ctx, p, p.undo)
	}
	if err != nil {
		return nil, fmt.Errorf("plan rollback: %w", err)
	}
	return p, n.finish(ctx, p, l, s)
}

// finish adds to a plan what depends on the node: where content comes from,
// what staging takes, who is writing, and which inodes can be trusted after it.
func (n *Node) finish(ctx context.Context, p *Plan, l *live, s *scanner) error {
	p.Generation.Changes = len(p.Steps)
	p.live, p.scan = l, s
	if !p.Empty() && len(p.merges) == 0 { // what is merged is known when it is staged
		if err := p.records(); err != nil {
			return fmt.Errorf("plan: %w", err)
		}
	}
	if err := n.sources(ctx, p, l, s); err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	p.measure(n.pairRoom(p))
	p.Notes = append(p.Notes, writers(p)...)
	return nil
}

// records makes what will be recorded of the old generation and the new one.
func (p *Plan) records() error {
	if p.done != nil {
		return nil
	}
	p.record()
	p.record, p.goals = nil, nil // and with them the rows of the comparison
	for _, m := range []*manifest.Manifest{p.done, p.left} {
		if m == p.scan.base.m || m == p.scan.target.m {
			continue // it is what was read, and valid
		}
		if err := m.Validate(); err != nil {
			return fmt.Errorf("what is to be recorded: %w", err)
		}
	}
	return nil
}

// states picks the inodes that are known to be what the new generation says:
// those that the switch will not touch as the plan saw them, and those that
// were not looked at as they were known before. The others it lists.
func (p *Plan) states() (out states, afresh []int32) {
	touched := map[string]bool{}
	inodes := map[inode]bool{}
	for i := range p.Steps {
		st := &p.Steps[i]
		touched[st.Path] = true
		if st.Old != nil && st.Old.Type == entry.File {
			inodes[inodeOf(st.stat)] = true
		}
	}
	s := p.scan
	out = make(states, len(p.done.Entries))
	lives, bases, at := p.live.items, cursor{s.base.m.Entries}, s.base.m.Entries
	var goal cursor
	var done *index
	if p.goal != nil {
		goal.entries, done = p.goal.Entries, indexOf(p.done)
	}
	for i := range p.done.Entries {
		e := &p.done.Entries[i]
		if p.goal != nil {
			if is := goal.to(e.Path); is == nil || !sameEntry(s.target, is, done, e) {
				continue // the tree gets something else there, which is the node's
			}
		}
		for len(lives) > 0 && entry.Before(lives[0].Path, e.Path) {
			lives = lives[1:]
		}
		was := bases.to(e.Path)
		switch {
		case touched[e.Path] || len(lives) > 0 && lives[0].Path == e.Path && inodes[inodeOf(lives[0].stat)]:
			if e.Type == entry.File {
				afresh = append(afresh, int32(i))
			}
		case len(lives) > 0 && lives[0].Path == e.Path:
			out[i] = s.trusts(lives[0], e, lives[0].sameTarget || s.rules.derived[e.Path] || s.rules.never.Match(e.Path) || s.rules.runs(e.Path))
		case was != nil && s.rules.only != nil && !s.rules.only(e.Path):
			out[i] = s.cache.of(len(at) - len(bases.entries) - 1)
		}
	}
	return out, afresh
}

// trusts says what a live entry that stayed can be trusted for; holds says
// that a file has the content of e.
func (s *scanner) trusts(it *item, e *entry.Entry, holds bool) known {
	if it.alone != "" || it.Type != e.Type || it.Type == entry.File && !holds {
		return known{}
	}
	same := entry.SameMeta(it.Entry, e) && it.Target == e.Target && it.Major == e.Major && it.Minor == e.Minor
	return trust(e, it.stat, same, s.when)
}

// afresh looks at a file that the switch made or changed. Its ctime is of
// now: metadata can be trusted only by who looks at it later.
func (n *Node) afresh(e *entry.Entry, at *openDir) known {
	when := n.now()
	dir, name, err := at.open(n, 0, e.Path)
	if err != nil {
		return known{}
	}
	st, err := entry.StatAt(dir, name)
	if err != nil {
		return known{}
	}
	return trust(e, st, false, when)
}
