package rollback

import (
	"fmt"
	"slices"

	"ingot/internal/entry"
	"ingot/internal/pattern"
)

// leaves say what is left alone.
type leaves struct {
	owned    []pattern.List // of several generations: one that matches is enough
	volatile pattern.List
	away     []string // mount points whose file system is not there
}

// left says why path is left alone wherever it comes from.
func (r *leaves) left(path string) Leave {
	if r.volatile.Match(path) {
		return Volatile
	}
	for _, l := range r.owned {
		if l.Match(path) {
			return NodeOwned
		}
	}
	for _, at := range r.away {
		if path == at || under(path, at) {
			return Mount
		}
	}
	return ""
}

// covers reports whether everything in dir is left alone.
func (r *leaves) covers(dir string) bool {
	return r.volatile.Covers(dir) || slices.ContainsFunc(r.owned, func(l pattern.List) bool { return l.Covers(dir) })
}

// below returns what can matter in dir: mostly nothing.
func (r *leaves) below(dir string) leaves {
	out := leaves{volatile: r.volatile.Below(dir), away: r.away}
	for _, l := range r.owned {
		if l = l.Below(dir); !l.Empty() {
			out.owned = append(out.owned, l)
		}
	}
	return out
}

// rules say which paths a comparison looks at and what it does about local changes.
type rules struct {
	leaves
	seed    pattern.List
	derived map[string]bool
	never   pattern.List // a rollback leaves these as they are
	carried pattern.List // node-owned, and compared: what the other side of the node gets as it is
	loose   bool         // what the node changed where base and target are the same stays
	modules []string     // directories of the running kernel's, which the target does not have
	policy  Policy
	given   map[string]*entry.Entry // paths whose record is the node's own making (Generation.Local): what the target gave, nil for nothing
	unknown bool                    // what the target gave is not known
	only    func(path string) bool  // what is compared; nil: everything
	part    *part                   // nil: the whole tree
	again   *again                  // of a comparison with the tree's own record; nil for others
	vols    volumes                 // file systems that take part; empty: only that of the top
	aside   map[string]string       // mount points that take no part: why
	idle    []string                // of these, those that might, were something of the change in them
}

// because says why a mount takes no part.
func (r *rules) because(path string) string {
	if why := r.aside[path]; why != "" {
		return ": " + why
	}
	return ""
}

// row is one path in the comparison: what it was given, has, is to get, and
// what becomes of it.
type row struct {
	path    string
	b, t    *entry.Entry
	l       *item
	alone   Leave
	goal    *entry.Entry // nil: nothing
	kept    bool         // the goal is what is there, whatever the target says
	done    *entry.Entry // what the generation will say it was given
	doneNow bool         // done is what is there, rather than what the target says
	replace bool
	touched bool // a directory that gains or loses a name
	up      int  // the row of its directory; -1: none
}

// comparison is a pure function of its four inputs; compare runs it.
type comparison struct {
	base, target *index
	live         *live
	rules        *rules

	rows []row
	plan *Plan
}

// compare plans how the live tree becomes the target. base is what the node
// was given. It reads nothing and changes nothing.
func compare(base *index, l *live, target *index, r *rules) *Plan {
	c := &comparison{base: base, target: target, live: l, rules: r, plan: &Plan{base: base}}
	c.collect()
	for i := range c.rows {
		c.decide(&c.rows[i])
	}
	c.mountPoints()
	c.absent()
	c.parents()
	c.held()
	c.groups()
	c.steps()
	c.plan.assign(r.vols)
	c.plan.record, c.plan.goals = c.record, c.goals
	return c.plan
}

// collect makes a row for each path of any of the three, in tree order.
func (c *comparison) collect() {
	c.rows = make([]row, 0, max(len(c.live.items), len(c.target.m.Entries))+16)
	lives := c.live.items
	pairs(c.base.m, c.target.m, func(b, t *entry.Entry) {
		path := ""
		if b != nil {
			path = b.Path
		} else {
			path = t.Path
		}
		for len(lives) > 0 && entry.Before(lives[0].Path, path) {
			c.rows = append(c.rows, row{path: lives[0].Path, l: lives[0]})
			lives = lives[1:]
		}
		w := row{path: path, b: b, t: t}
		if len(lives) > 0 && lives[0].Path == path {
			w.l, lives = lives[0], lives[1:]
		} else if c.rules.only != nil && !c.rules.only(path) {
			return
		}
		c.rows = append(c.rows, w)
	})
	for _, l := range lives {
		c.rows = append(c.rows, row{path: l.Path, l: l})
	}
	c.place()
}

// place finds for each row that of its directory, and what is left alone.
func (c *comparison) place() {
	var open []int // rows that this one is in, or might be
	mount := ""
	for i := range c.rows {
		w := &c.rows[i]
		for len(open) > 0 && !within(w.path, c.rows[open[len(open)-1]].path) {
			open = open[:len(open)-1]
		}
		w.up = -1
		if len(open) > 0 && c.rows[open[len(open)-1]].path == parentOf(w.path) {
			w.up = open[len(open)-1]
		}
		open = append(open, i)
		switch {
		case mount != "" && under(w.path, mount):
			w.alone = Mount
		case w.l != nil:
			w.alone = w.l.alone
			if w.alone == Mount {
				mount = w.path
			}
		default:
			w.alone = c.rules.left(w.path)
		}
	}
}

// parent returns the row of the directory that w is in, nil when it is not compared.
func (c *comparison) parent(w *row) *row {
	if w.up < 0 {
		return nil
	}
	return &c.rows[w.up]
}

func (c *comparison) note(path, why string) { c.plan.Notes = append(c.plan.Notes, Note{path, why}) }
func (c *comparison) blocked(path, why string) {
	c.plan.Blocked = append(c.plan.Blocked, Note{path, why})
}

// decide sets the goal of one path.
func (c *comparison) decide(w *row) {
	switch {
	case w.alone != "":
		c.leave(w)
	case w.l != nil && c.rules.above(w.path):
		w.keep()
		w.done, w.doneNow = w.goal, true
		if w.b != nil {
			w.done, w.doneNow = w.b, false
		}
	case c.rules.derived[w.path]:
		c.keepNow(w, "made by the installation of this node: kept as it is")
	case c.rules.carried.Match(w.path):
		c.carry(w)
	case c.spared(w):
	case c.rules.never.Match(w.path):
		c.keepNow(w, "never rolled back: stays as it is")
	case c.rules.runs(w.path) && w.l != nil && !c.changed(w):
		c.keepModule(w)
	case c.isTarget(w) || !c.changed(w):
		w.goal, w.done = w.t, w.t
	case c.rules.loose && c.sameGiven(w):
		w.keep()
		w.done = w.t
	default:
		c.conflict(w)
	}
}

// keepNow keeps what is there, and records that it is.
func (c *comparison) keepNow(w *row, why string) {
	w.keep()
	w.done, w.doneNow = w.goal, true
	switch {
	case c.isTarget(w):
	case c.rules.again != nil:
		c.plan.drift = append(c.plan.drift, c.driftOf(w, why))
	default:
		c.note(w.path, why)
	}
}

// spared keeps what a repair leaves alone: it is still not what was given.
func (c *comparison) spared(w *row) bool {
	if c.rules.again == nil || c.isTarget(w) {
		return false
	}
	why, show := c.rules.stays(w)
	if why == "" {
		return false
	}
	w.keep()
	w.done = w.t
	if c.rules.again.kept[w.path] {
		c.plan.Generation.Kept = append(c.plan.Generation.Kept, Path(w.path))
	}
	if show {
		c.plan.drift = append(c.plan.drift, c.driftOf(w, why))
	}
	return true
}

// keep makes what is there the goal.
func (w *row) keep() {
	w.kept, w.goal = true, nil
	if w.l != nil {
		w.goal = w.l.Entry
	}
}

// leave handles what is not compared. What the target has there is recorded,
// so that a path is seeded once and never again.
func (c *comparison) leave(w *row) {
	w.done = w.t
	w.keep()
	switch {
	case w.alone == Mount && w.l != nil && w.l.alone == Mount:
		if up := c.parent(w); up == nil || up.alone != Mount {
			c.note(w.path, "a mount point: left alone, and all that is in it"+c.rules.because(w.path))
		}
	case w.alone == Socket && w.t != nil:
		c.blocked(w.path, "is a socket where the target has something else")
	case w.l == nil && w.t != nil && w.b == nil && w.alone == NodeOwned:
		if c.rules.seed.Match(w.path) {
			w.kept, w.goal = false, w.t
			return
		}
		c.note(w.path, "new in the target but node-owned: not made")
	}
}

// conflict applies the policy to a local change.
func (c *comparison) conflict(w *row) {
	base, local := c.rules.given[w.path]
	if !local {
		base = w.b
	}
	action, command := c.rules.policy.decide(w.path)
	k := Conflict{Path: w.path, Kind: c.kind(w, base, local), Base: base, Target: w.t, Action: action}
	if w.l != nil {
		k.Now = w.l.Entry
	}
	k.Both = base == nil && w.t != nil || base != nil && (w.t == nil || !sameEntry(c.base, base, c.target, w.t))
	var merge *merging
	switch {
	case action != Merge:
	case !k.Both:
		k.Action = Keep
	default:
		if merge, k.Why = c.mergeOf(w, base, command); merge == nil {
			k.Action = Refuse
		}
	}
	c.plan.Conflicts = append(c.plan.Conflicts, k)
	if c.rules.again != nil {
		left := ""
		if k.Action != Take {
			left = "the policy keeps it"
		}
		c.plan.drift = append(c.plan.drift, c.driftOf(w, left))
	}
	w.done = w.t
	switch {
	case merge != nil:
		w.goal, w.done = merge.goal, merge.goal
		c.plan.merges = append(c.plan.merges, merge)
		c.plan.Generation.Local = append(c.plan.Generation.Local, Path(w.path))
		return
	case k.Action == Take:
		w.goal = w.t
		return
	}
	w.keep()
	if k.Action == Refuse {
		return
	}
	c.plan.Generation.Kept = append(c.plan.Generation.Kept, Path(w.path))
	if local {
		w.done, w.doneNow = w.goal, true
		c.plan.Generation.Local = append(c.plan.Generation.Local, Path(w.path))
	}
}

// kind says what the node did to base; where that is not what the record has,
// what became of it in content only reading could tell.
func (c *comparison) kind(w *row, base *entry.Entry, local bool) ConflictKind {
	switch {
	case w.l == nil:
		return LocalDelete
	case base == nil && local && c.rules.unknown:
		return LocalChange
	case base == nil:
		return LocalAdd
	case w.l.Type != base.Type:
		return LocalType
	case !local && c.sameBut(w.l, base, w.l.sameBase):
		return LocalMeta
	}
	return LocalChange
}

// sameBut reports whether the entry is e but for metadata.
func (c *comparison) sameBut(l *item, e *entry.Entry, content bool) bool {
	return l.Type == e.Type && l.Target == e.Target && l.Major == e.Major && l.Minor == e.Minor &&
		(l.Type != entry.File || content)
}

// isTarget reports whether the path already is what the target says. Times
// that differ are set without being called a change.
func (c *comparison) isTarget(w *row) bool {
	if w.l == nil || w.t == nil {
		return w.l == nil && w.t == nil
	}
	return c.sameBut(w.l, w.t, w.l.sameTarget) && sameButTime(w.l.Entry, w.t)
}

// changed reports whether the node made the path something else than it was given.
func (c *comparison) changed(w *row) bool {
	if _, local := c.rules.given[w.path]; local {
		return true
	}
	if w.l == nil || w.b == nil {
		return w.l != nil || w.b != nil
	}
	return !c.sameBut(w.l, w.b, w.l.sameBase) || !sameButTime(w.l.Entry, w.b)
}

// sameButTime compares metadata without the modification time: a file that
// was only touched, or a directory in which something came and went, has lost
// nothing that a person would miss.
func sameButTime(a, b *entry.Entry) bool {
	return a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && slices.Equal(a.Xattrs, b.Xattrs)
}

// parents sees to it that whatever stays or comes has a directory to be in.
func (c *comparison) parents() {
	for i := len(c.rows) - 1; i > 0; i-- {
		w := &c.rows[i]
		if w.l != nil && w.l.anchored && w.l.Type == entry.Dir && !w.kept {
			c.anchor(w)
		}
		if w.goal == nil {
			continue
		}
		up := c.parent(w)
		if up == nil {
			continue // out of a rollback's scope: unchanged on both sides
		}
		c.hold(up, w)
	}
}

// anchor keeps a directory that holds what is left alone.
func (c *comparison) anchor(w *row) {
	switch {
	case w.goal == nil:
		w.keep()
		c.note(w.path, "stays, although the target does not have it: it holds what is left alone")
	case w.goal.Type != entry.Dir:
		c.blocked(w.path, fmt.Sprintf("cannot become %s: it holds what is left alone", typeName(w.goal.Type)))
	}
}

// hold makes up a directory because w is in it.
func (c *comparison) hold(up, w *row) {
	if up.goal != nil && up.goal.Type == entry.Dir {
		return
	}
	isDir := up.l != nil && up.l.Type == entry.Dir
	switch {
	case up.goal != nil:
		c.blocked(up.path, fmt.Sprintf("cannot become %s: %q is in it (%s)", typeName(up.goal.Type), w.path, w.because()))
	case isDir:
		up.keep()
		c.note(up.path, fmt.Sprintf("stays, although the target does not have it: %q is in it (%s)", w.path, w.because()))
	case up.l == nil && up.t != nil && up.t.Type == entry.Dir:
		up.kept, up.goal = false, up.t // a node-owned directory that is missing
	default:
		c.blocked(w.path, fmt.Sprintf("cannot be made: %q is no directory", up.path))
	}
}

// because says why w is there.
func (w *row) because() string {
	switch {
	case w.alone != "":
		return string(w.alone)
	case w.kept:
		return "kept"
	}
	return "in the target"
}

func typeName(t entry.Type) string {
	switch t {
	case entry.File:
		return "a file"
	case entry.Dir:
		return "a directory"
	case entry.Symlink:
		return "a symbolic link"
	case entry.FIFO:
		return "a FIFO"
	}
	return "a device"
}
