package rollback

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/slogx"
)

// Switch makes a staged plan the tree. It either returns the new generation,
// or an error and the tree as it was; only when it could not put the tree back
// itself is the error an ErrInterrupted, and Recover has to; an error that comes with
// the number of a generation is of one that was made. Once the journal is written
// ctx is no longer looked at. After an error the plan has to be made and staged again.
func (n *Node) Switch(ctx context.Context, p *Plan) (Generation, error) {
	if err := p.Err(); err != nil {
		return Generation{}, fmt.Errorf("switch: %w", err)
	}
	unlock, err := n.lockIdle("switch")
	if err != nil {
		return Generation{}, fmt.Errorf("switch: %w", err)
	}
	defer unlock()
	g, err := n.doSwitch(ctx, p)
	if err != nil {
		return g, fmt.Errorf("switch: %w", err)
	}
	n.log().Info("switched", slogx.Gen, g.Number, slogx.Image, g.Image, "changes", len(p.Steps))
	return g, nil
}

func (n *Node) doSwitch(ctx context.Context, p *Plan) (Generation, error) {
	vols, err := n.openPlan(p)
	if err != nil {
		return Generation{}, errors.Join(err, reach{{Node: n}}.unstage(p))
	}
	defer vols.close()
	r, g, err := vols.prepareSwitch(ctx, p)
	if err != nil {
		return Generation{}, errors.Join(err, vols.unstage(p))
	}
	if err := r.keepPair(g.Trial != nil); err != nil {
		return Generation{}, errors.Join(err, n.usualPair(r.j.volumes), vols.unstage(p))
	}
	r.toBoot()
	if err := n.writeState(in("journal"), r.j.encode()); err != nil {
		return Generation{}, n.takeBack(r, p, err)
	}
	if err := r.forward(); err != nil {
		return Generation{}, n.takeBack(r, p, err)
	}
	if err := r.settle(); err != nil {
		return Generation{}, n.takeBack(r, p, err)
	}
	if undone, err := n.commit(); err != nil {
		if !undone {
			return Generation{}, fmt.Errorf("commit: %w: %w", ErrInterrupted, err)
		}
		return Generation{}, n.takeBack(r, p, err)
	}
	r.j.committed = true
	if err := r.complete(p); err != nil {
		return g, fmt.Errorf("generation %d is made but not tidied up: %w: %w", g.Number, ErrInterrupted, err)
	}
	made, err := n.generation(g.Number)
	if err != nil {
		return g, fmt.Errorf("generation %d is made: %w", g.Number, err)
	}
	return made, nil
}

// prepareSwitch does all of a switch that comes before its journal.
func (vols reach) prepareSwitch(ctx context.Context, p *Plan) (*runner, Generation, error) {
	g, n := p.Generation, vols[0].Node
	if err := n.isBase(p); err != nil {
		return nil, g, err
	}
	dir := in("stage", p.id)
	for i := range vols {
		if p.id == "" || !vols[i].exists(dir+"/undo") {
			return nil, g, fmt.Errorf("not staged, or staged over: %w", ErrStale)
		}
	}
	if err := vols.claim(p.vols.described(), "switch"); err != nil {
		return nil, g, err
	}
	if err := vols.openSlots(dir); err != nil {
		return nil, g, err
	}
	r := &runner{n: n, vols: vols, ctimes: map[inode]int64{}}
	var err error
	if r.j, err = vols.prepare(ctx, p); err != nil {
		return nil, g, err
	}
	g.Number, g.From, g.When = r.j.to, r.j.from, n.now().UTC()
	if g.Trial != nil {
		g.Trial = &Trial{Window: g.Trial.Window, Until: g.When.Add(g.Trial.Window), Ran: g.Trial.Ran}
	}
	if p.doneID, err = n.writeGeneration(dir+"/next", g, p.done); err != nil {
		return nil, g, err
	}
	return r, g, ctx.Err()
}

// unstage removes what was staged for a plan whose switch has no journal.
func (vols reach) unstage(p *Plan) error {
	if p.id == "" {
		return nil
	}
	return errors.Join(vols.clear(in("stage", p.id)), vols[0].remove(in("journal.tmp")))
}

// takeBack undoes a switch that failed.
func (n *Node) takeBack(r *runner, p *Plan, cause error) error {
	if !n.exists(in("journal")) {
		return errors.Join(cause, n.usualPair(r.j.volumes), r.vols.unstage(p)) // its fsync or rename failed: nothing was begun
	}
	foreign, err := r.back()
	if err != nil {
		return fmt.Errorf("%w; putting it back: %w: %w", cause, ErrInterrupted, err)
	}
	if len(foreign) > 0 {
		return fmt.Errorf("%w; put back, except %s", cause, some(foreign, Note.String))
	}
	return cause
}

// commit appends the commit record: the point of no return. When that fails,
// undone says that the record is certainly not there; otherwise it may be, and
// only a recovery that reads the journal may decide.
func (n *Node) commit() (undone bool, err error) {
	fd, err := entry.OpenBeneath(n.top, in("journal"), unix.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return true, err
	}
	f := os.NewFile(uintptr(fd), in("journal"))
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return true, err
	}
	if err = n.sys.writeAt(f, "journal", commitRecord(), st.Size()); err == nil {
		err = n.sys.fsync(f)
	}
	if err == nil {
		return false, nil
	}
	cut := n.sys.do("truncate", "journal", func() error { return f.Truncate(st.Size()) })
	if cut == nil {
		cut = n.sys.fsync(f)
	}
	return cut == nil, err
}

// prepare looks at every path again and writes down both sides of every step.
func (vols reach) prepare(ctx context.Context, p *Plan) (*journal, error) {
	j := &journal{from: p.Base, to: p.Next(), stage: p.id, volumes: p.vols.described(), used: p.used, ready: true}
	j.steps = make([]jstep, len(p.Steps))
	return j, vols[0].inParts(ctx, len(p.Steps), func(at *openDir, i int) error {
		s, js := &p.Steps[i], &j.steps[i]
		*js = jstep{kind: s.Kind, slot: s.slot, vol: s.vol, path: s.Path}
		if err := vols.oldSide(s, js, at); err != nil {
			return err
		}
		if err := vols.newSide(s, js); err != nil {
			return fmt.Errorf("staged %q: %w", s.Path, err)
		}
		if s.keep {
			js.new.ModTime = js.old.ModTime
		}
		return nil
	})
}

// oldSide checks that the path is what the plan saw.
func (vols reach) oldSide(s *Step, js *jstep, at *openDir) error {
	dir, name, err := at.of(js, vols)
	if s.Old == nil {
		if err == nil {
			if _, serr := entry.StatAt(dir, name); s.Kind == Add && !notThere(serr) {
				return fmt.Errorf("%q is there now: %w", s.Path, ErrChanged)
			}
		}
		return nil // a parent that the switch will make
	}
	if err != nil {
		return fmt.Errorf("%q: %w: %w", s.Path, ErrChanged, err)
	}
	e, st, err := entry.ReadAt(dir, name)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrChanged, err)
	}
	same := st == s.stat
	if e.Type == entry.Dir { // what comes and goes in a directory is seen name by name
		same = st.Ino == s.stat.Ino && st.Dev == s.stat.Dev && sameButTime(&e, s.Old)
	}
	if !same {
		return fmt.Errorf("%q: %w", s.Path, ErrChanged)
	}
	js.old = side{ino: st.Ino, key: s.oldKey, Entry: e}
	return nil
}

// newSide notes what is in the slot, or what metadata a step sets.
func (vols reach) newSide(s *Step, js *jstep) error {
	switch s.Kind {
	case Delete:
		return nil
	case Meta, Times:
		js.new = side{ino: max(js.old.ino, 1), Entry: *s.New}
		return nil
	}
	e, stat, err := entry.ReadAt(vols[s.vol].undo, strconv.Itoa(s.slot))
	if err != nil {
		return err
	}
	want := *s.New
	if e.Type != want.Type || e.Size != want.Size || !entry.SameMeta(&e, &want) {
		return fmt.Errorf("is not as it was staged: %w", ErrStale)
	}
	js.new = side{ino: stat.Ino, Entry: e}
	if s.content != nil {
		js.new.key = contentKey(s.content)
	}
	return nil
}

// runner carries out the steps of a journal.
type runner struct {
	n      *Node
	j      *journal
	vols   reach // with the directories of slots
	ctimes map[inode]int64
}

// forward carries out all steps and then looks whether someone wrote to what
// they displaced.
func (r *runner) forward() error {
	at := openDir{fd: -1}
	defer at.close()
	for steps := r.j.steps; len(steps) > 0; {
		// A mode can keep others than root from what is below.
		if n := sameInodes(steps); n > 0 && os.Geteuid() == 0 {
			at.close()
			if err := r.several(steps[:n]); err != nil {
				return err
			}
			steps = steps[n:]
			continue
		}
		if err := r.step(&steps[0], &at); err != nil {
			return fmt.Errorf("%s %q: %w", steps[0].kind, steps[0].path, err)
		}
		steps = steps[1:]
	}
	for i := range r.j.steps {
		s := &r.j.steps[i]
		if s.kind != Delete && s.kind != Replace {
			continue
		}
		if err := r.displaced(s, true); err != nil {
			return fmt.Errorf("%s %q: %w", s.kind, s.path, err)
		}
	}
	return nil
}

// sameInodes counts the steps at the beginning that replace nothing: each is
// about the metadata of an inode of its own, and their order does not matter.
func sameInodes(steps []jstep) int {
	n := slices.IndexFunc(steps, func(s jstep) bool { return s.kind != Meta && s.kind != Times })
	if n < 0 {
		return len(steps)
	}
	return n
}

// several carries out steps of which the order does not matter.
func (r *runner) several(steps []jstep) error {
	return r.n.inParts(context.Background(), len(steps), func(at *openDir, i int) error {
		if err := r.step(&steps[i], at); err != nil {
			return fmt.Errorf("%s %q: %w", steps[i].kind, steps[i].path, err)
		}
		return nil
	})
}

func (r *runner) step(s *jstep, at *openDir) error {
	dir, name, err := at.of(s, r.vols)
	if err != nil {
		return err
	}
	sys, slot, undo := &r.n.sys, strconv.Itoa(s.slot), r.vols[s.vol].undo
	switch s.kind {
	case Delete:
		if err := sys.move(dir, name, undo, slot); err != nil {
			return err
		}
		return r.displaced(s, false)
	case Replace:
		if err := sys.exchange(undo, slot, dir, name); err != nil {
			return err
		}
		return r.displaced(s, false)
	case Add:
		return sys.move(undo, slot, dir, name)
	case Times:
		return sys.times(dir, name, s.new.ModTime)
	}
	st, err := entry.StatAt(dir, name)
	if err != nil {
		return err
	}
	if st.Ino != s.old.ino || !r.vols[s.vol].isOn(st) {
		return ErrChanged
	}
	if sameButTime(&s.old.Entry, &s.new.Entry) {
		return sys.times(dir, name, s.new.ModTime)
	}
	return sys.setMeta(dir, name, &s.new.Entry)
}

// removeUsed removes the undo copies that have become files of the tree.
func (r *runner) removeUsed() error {
	at := openDir{fd: -1}
	defer at.close()
	for _, u := range r.j.used {
		b := &r.vols[u.vol]
		dir, name, err := at.open(b.Node, u.vol, u.path())
		if notThere(err) {
			continue
		}
		if err == nil {
			err = b.removeAt(dir, name)
		}
		if err != nil {
			return fmt.Errorf("remove %q: %w", u.path(), err)
		}
	}
	return nil
}

// displaced checks that what is in a slot is what the plan saw: the same
// inode, not written to since. The rename itself changed the ctime; again
// looks whether anything has since.
func (r *runner) displaced(s *jstep, again bool) error {
	undo := r.vols[s.vol].undo
	st, err := entry.StatAt(undo, strconv.Itoa(s.slot))
	if err != nil {
		return err
	}
	if st.Ino != s.old.ino {
		return ErrChanged
	}
	if s.old.Type == entry.Dir {
		empty, err := isEmpty(undo, strconv.Itoa(s.slot))
		if err == nil && !empty {
			err = fmt.Errorf("something new is in it: %w", ErrChanged)
		}
		return err
	}
	if st.MTime != s.old.ModTime || s.old.Type == entry.File && st.Size != s.old.Size {
		return fmt.Errorf("was written to: %w", ErrChanged)
	}
	if !again {
		r.ctimes[inodeOf(st)] = st.CTime
	} else if r.ctimes[inodeOf(st)] != st.CTime {
		return fmt.Errorf("was written to: %w", ErrChanged)
	}
	return nil
}

func isEmpty(dir int, name string) (bool, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	names, _ := f.Readdirnames(1)
	return len(names) == 0, nil
}

// complete tidies up after the commit record. Every part of it may have been
// done before. p is nil in a recovery.
func (r *runner) complete(p *Plan) error {
	n, j, dir := r.n, r.j, in("stage", r.j.stage)
	for _, mv := range [][2]string{
		{dir + "/undo", genDir(j.from, "undo")},
		{dir + "/left", genDir(j.from, "left")},
		{dir + "/next", genDir(j.to)},
	} {
		if err := r.vols.each(func(b *branch) error { return b.shift(mv[0], mv[1]) }); err != nil {
			return err
		}
	}
	if err := r.removeUsed(); err != nil {
		return err
	}
	if p != nil {
		err := n.inParts(context.Background(), len(p.afresh), func(at *openDir, i int) error {
			i = int(p.afresh[i])
			p.known[i] = n.afresh(&p.done.Entries[i], at)
			return nil
		})
		if err != nil {
			return err
		}
		if err := n.writeCache(j.to, p.doneID, p.done, p.known); err != nil {
			return err
		}
	}
	if err := r.vols.clear(dir); err != nil {
		return err
	}
	if err := r.vols.sync(); err != nil {
		return err
	}
	if err := n.sys.replace(n.top, in("journal"), n.top, genDir(j.from, "steps")); err != nil {
		return err
	}
	if err := n.sys.fsyncDir(n.top, home); err != nil {
		return err
	}
	if err := errors.Join(n.retire(), n.retireVolumes()); err != nil {
		n.log().Warn("old generations could not be removed", slogx.Err, err)
	}
	return nil
}

// Rollback goes back to generation to, or with 0 to the one before the
// current one, from what the node keeps: PlanRollback, Stage and Switch.
func (n *Node) Rollback(ctx context.Context, to int, policy Policy, by string) (Generation, error) {
	p, err := n.PlanRollback(ctx, to, policy, by)
	if err != nil {
		return Generation{}, err
	}
	if err := p.Err(); err != nil {
		return Generation{}, fmt.Errorf("roll back to generation %d: %w", p.To, err)
	}
	if len(p.Need) > 0 {
		return Generation{}, fmt.Errorf("roll back to generation %d: %w", p.To, &DamagedError{Notes: p.lacking()})
	}
	if err := n.Stage(ctx, p, nil); err != nil {
		return Generation{}, fmt.Errorf("roll back to generation %d: %w", p.To, err)
	}
	g, err := n.Switch(ctx, p)
	if err != nil {
		return g, fmt.Errorf("roll back to generation %d: %w", p.To, err)
	}
	return g, nil
}

// lacking names the files whose content is nowhere on the node.
func (p *Plan) lacking() []Note {
	need := map[digest.ID]bool{}
	for _, id := range p.Need {
		need[id] = true
	}
	why := map[string]string{}
	for _, d := range p.Damaged {
		why[d.Path] = d.Why
	}
	var out []Note
	for i := range p.Steps {
		s := &p.Steps[i]
		if !p.builds(s) {
			continue
		}
		for _, c := range s.content.Chunks {
			if need[c.ID] {
				w := why[s.Path]
				if w == "" {
					w = "not among the undo copies"
				}
				out = append(out, Note{s.Path, w})
				break
			}
		}
	}
	return out
}
