package rollback

import (
	"context"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
	"ingot/internal/slogx"
)

// Outcome is what a recovery found and did.
type Outcome struct {
	Did      Did
	From, To int    // the generations of the interrupted switch
	Boot     bool   // it changes what a boot loader reads or starts: the kernel that runs may be that of the other one
	Foreign  []Note // paths that someone else changed meanwhile: left as they are
}

// Did is what Recover did.
type Did string

// What Recover did.
const (
	Nothing  Did = "nothing to recover"
	PutBack  Did = "put back"
	Finished Did = "finished"
)

// Recover makes an interrupted switch undone or complete. It is idempotent
// and may itself be interrupted anywhere. Steps are recognised by inode, so it
// does not matter which of them had reached the disk.
func (n *Node) Recover(ctx context.Context) (Outcome, error) {
	if !n.exists(in("journal")) {
		return Outcome{Did: Nothing, Boot: n.tidy()}, nil
	}
	unlock, err := n.lock("recover")
	if err != nil {
		return Outcome{}, fmt.Errorf("recover: %w", err)
	}
	defer unlock()
	j, err := n.readJournal()
	if err != nil {
		return Outcome{}, fmt.Errorf("recover: %w", err)
	}
	if j == nil {
		return Outcome{Did: Nothing}, nil
	}
	if err := ctx.Err(); err != nil {
		return Outcome{}, err
	}
	out, err := n.resume(j)
	if err != nil {
		return out, fmt.Errorf("recover: %w", err)
	}
	n.log().Info("recovered", "action", string(out.Did), slogx.Gen, j.to)
	for _, f := range out.Foreign {
		n.log().Error("changed by someone else during the switch: left as it is", slogx.Path, f.Path, "why", f.Why)
	}
	return out, nil
}

// readJournal reads the journal of an interrupted switch; nil where there is none.
func (n *Node) readJournal() (*journal, error) {
	b, err := n.readState(in("journal"))
	if notThere(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	j, err := decodeJournal(b)
	if err == nil && !j.ready { // it got its name only when it was whole
		return nil, fmt.Errorf("the journal ends before its steps do: %w", ErrCorrupt)
	}
	return j, err
}

// resume finishes or undoes a switch. It begins when all volumes are there.
func (n *Node) resume(j *journal) (out Outcome, err error) {
	out = Outcome{From: j.from, To: j.to, Boot: j.boots()}
	vols, err := n.open(j.volumes)
	if err != nil {
		return out, err
	}
	defer vols.close()
	if err := vols.claim(j.volumes, "recover"); err != nil {
		return out, err
	}
	r := &runner{n: n, j: j, vols: vols}
	if j.committed {
		out.Did = Finished
		return out, r.complete(nil)
	}
	out.Did = PutBack
	out.Foreign, err = r.back()
	return out, err
}

// back undoes what was done of a switch, last step first, and forgets it.
func (r *runner) back() ([]Note, error) {
	n, j := r.n, r.j
	b := &backer{runner: *r}
	if !n.exists(in("kept", j.stage)) { // else all but the last of it is done
		if err := b.openSlots(); err != nil {
			return nil, err
		}
		for i := len(j.steps) - 1; i >= 0; i-- {
			if err := b.undo1(&j.steps[i]); err != nil {
				return nil, fmt.Errorf("undo %s %q: %w", j.steps[i].kind, j.steps[i].path, err)
			}
		}
		for i := range j.steps {
			if err := b.times(&j.steps[i]); err != nil {
				return nil, fmt.Errorf("undo times of %q: %w", j.steps[i].path, err)
			}
		}
	}
	if err := n.usualPair(j.volumes); err != nil {
		return nil, err
	}
	if err := r.settle(); err != nil {
		return nil, err
	}
	if err := r.forget(len(b.foreign) > 0); err != nil {
		return nil, err
	}
	return b.foreign, nil
}

// openSlots opens the stage. When somebody removed it, slots are looked for
// where there are none: what was displaced is then reported as lost.
func (b *backer) openSlots() error {
	return b.vols.each(func(x *branch) error {
		if path := in("stage", b.j.stage, "undo"); x.exists(path) {
			return x.openSlots(path)
		}
		return x.openSlots(in("stage"))
	})
}

// forget removes stage and journal of a switch that was put back; what is in
// the slots is kept where not all of it could be.
func (r *runner) forget(keep bool) error {
	n, dir, kept := r.n, in("stage", r.j.stage), in("kept", r.j.stage)
	if keep || n.exists(kept) {
		// The top comes first: it says that all is undone that could be.
		if err := r.vols.each(func(b *branch) error { return b.shift(dir, kept) }); err != nil {
			return err
		}
	}
	// The journal goes first: with the stage gone it could not be followed.
	if err := n.sys.unlink(n.top, in("journal"), 0); err != nil {
		return err
	}
	if err := n.sys.fsyncDir(n.top, home); err != nil {
		return err
	}
	return r.vols.clear(dir)
}

// backer undoes steps.
type backer struct {
	runner
	foreign []Note
}

// inoAt returns the inode number of a name on a volume, 0 when it is not there.
func (b *backer) inoAt(vol, dir int, name string) (uint64, error) {
	st, err := entry.StatAt(dir, name)
	if notThere(err) {
		return 0, nil
	}
	if err == nil && !b.vols[vol].isOn(st) {
		return 0, fmt.Errorf("something is mounted there: %w", unix.EBUSY)
	}
	return st.Ino, err
}

// undo1 undoes one step if it was done.
func (b *backer) undo1(s *jstep) error {
	if s.kind == Times {
		return nil
	}
	slot := strconv.Itoa(s.slot)
	dir, name, err := b.vols.parent(s.vol, s.path)
	if notThere(err) || err == unix.ELOOP {
		return b.orphan(s, slot)
	}
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if s.kind == Meta {
		return b.meta(s, dir, name)
	}
	at, err := b.inoAt(s.vol, dir, name)
	if err != nil {
		return err
	}
	held, err := b.held(s, slot)
	if err != nil {
		return err
	}
	switch {
	case s.kind == Delete:
		return b.putBack(s, dir, name, slot, at, held)
	case s.kind == Add:
		return b.takeOut(s, dir, name, slot, at, held)
	}
	return b.swapBack(s, dir, name, slot, at, held)
}

// orphan: the directory of the path is not there. Where it is one that the
// switch would have made, the step was not done.
func (b *backer) orphan(s *jstep, slot string) error {
	held, err := b.held(s, slot)
	if err != nil {
		return err
	}
	if s.old.ino != 0 && held == s.old.ino {
		b.strange(s, "its directory is gone")
	}
	return nil
}

// held returns the inode number of what is in a slot, 0 when nothing is.
func (b *backer) held(s *jstep, slot string) (uint64, error) { return b.inoAt(s.vol, b.undo(s), slot) }

// undo returns the directory that the slot of a step is in.
func (b *backer) undo(s *jstep) int { return b.vols[s.vol].undo }

func (b *backer) strange(s *jstep, why string) {
	b.foreign = append(b.foreign, Note{s.path, why})
}

// putBack undoes a Delete.
func (b *backer) putBack(s *jstep, dir int, name, slot string, at, held uint64) error {
	switch {
	case held != s.old.ino: // never taken away
		if at != s.old.ino {
			b.strange(s, "is neither at its place nor in the undo copies")
		}
		return nil
	case at != 0:
		b.strange(s, "something else has been made in its place")
		return nil
	}
	return b.n.sys.move(b.undo(s), slot, dir, name)
}

// takeOut undoes an Add.
func (b *backer) takeOut(s *jstep, dir int, name, slot string, at, held uint64) error {
	switch {
	case at != s.new.ino || held == s.new.ino:
		if at != 0 {
			b.strange(s, "something else has been made in its place")
		}
		return nil
	case s.new.Type == entry.Dir:
		if empty, err := isEmpty(dir, name); err != nil || !empty {
			if err == nil {
				b.strange(s, "something else is in this new directory")
			}
			return err
		}
	}
	return b.n.sys.move(dir, name, b.undo(s), slot)
}

// swapBack undoes a Replace.
func (b *backer) swapBack(s *jstep, dir int, name, slot string, at, held uint64) error {
	switch {
	case at == s.old.ino:
		return nil // not done
	case held != s.old.ino:
		b.strange(s, "is neither at its place nor in the undo copies")
		return nil
	case at == 0:
		return b.n.sys.move(b.undo(s), slot, dir, name)
	case at != s.new.ino:
		b.strange(s, "something else has been made in its place")
		return nil
	case s.new.Type == entry.Dir:
		if empty, err := isEmpty(dir, name); err != nil || !empty {
			if err == nil {
				b.strange(s, "something else is in this new directory")
			}
			return err
		}
	}
	return b.n.sys.exchange(b.undo(s), slot, dir, name)
}

// meta undoes a Meta step, all or part of it.
func (b *backer) meta(s *jstep, dir int, name string) error {
	now, st, err := entry.ReadAt(dir, name)
	if notThere(err) || err == nil && (st.Ino != s.old.ino || !b.vols[s.vol].isOn(st)) {
		b.strange(s, "something else has been made in its place")
		return nil
	}
	if err != nil || entry.SameMeta(&now, &s.old.Entry) {
		return err
	}
	return b.n.sys.setMeta(dir, name, &s.old.Entry)
}

// times gives a directory the time it had.
func (b *backer) times(s *jstep) error {
	if s.old.ino == 0 || s.old.Type != entry.Dir {
		return nil
	}
	dir, name, err := b.vols.parent(s.vol, s.path)
	if notThere(err) || err == unix.ELOOP {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	st, err := entry.StatAt(dir, name)
	if notThere(err) {
		return nil
	}
	if err != nil || st.Ino != s.old.ino || !b.vols[s.vol].isOn(st) || st.MTime == s.old.ModTime {
		return err
	}
	return b.n.sys.times(dir, name, s.old.ModTime)
}
