package rollback

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

// undoFile is one displaced file that a generation keeps.
type undoFile struct {
	gen, slot int
	vol       int // number of the volume that it is on
}

// path returns where it is on its volume.
func (u undoFile) path() string { return genDir(u.gen, "undo", strconv.Itoa(u.slot)) }

// undoCopy is an undo file with what is known about it.
type undoCopy struct {
	undoFile
	of   string // the path that it was displaced from
	stat entry.Stat
}

// undoIndex finds displaced files by what they hold.
type undoIndex struct {
	byKey  map[digest.ID][]undoCopy
	bySize map[int64][]undoCopy
	byIno  map[inode][]undoFile
	gens   map[int][]undoCopy
	bad    map[undoFile]bool // found damaged
	vols   volumes
}

// undoCopies reads which files the generations keep. What is missing or is
// no file any more is left out, and so is what is on none of the volumes.
func (n *Node) undoCopies(ctx context.Context, vs volumes) (*undoIndex, error) {
	x := &undoIndex{byKey: map[digest.ID][]undoCopy{}, bySize: map[int64][]undoCopy{}, byIno: map[inode][]undoFile{}, gens: map[int][]undoCopy{}, bad: map[undoFile]bool{}, vols: vs}
	nums, err := n.numbers()
	if err != nil {
		return nil, err
	}
	slices.Reverse(nums) // newest first
	kept := make([][]undoStep, len(nums))
	err = n.spread(ctx, len(nums), func(_ *localReader, i int) (err error) {
		kept[i], err = n.undoSteps(nums[i], vs)
		return err
	})
	if err != nil {
		return nil, err
	}
	for i, num := range nums {
		n.gather(x, num, kept[i])
	}
	return x, nil
}

// undoStep is a step that has displaced a file.
type undoStep struct {
	slot, vol int // number of the volume now
	path      string
	key       digest.ID
}

// undoSteps reads which files a generation keeps, on the volumes that are there.
func (n *Node) undoSteps(gen int, vs volumes) ([]undoStep, error) {
	b, err := n.readState(genDir(gen, "steps"))
	if notThere(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []undoStep
	var placed []int
	_, err = readJournal(b, func(j *journal, s *jstep) {
		if placed == nil {
			placed = j.placed(vs)
		}
		if v := placed[s.vol]; v >= 0 && (s.kind == Delete || s.kind == Replace) && s.old.Type == entry.File && !s.old.key.IsZero() {
			out = append(out, undoStep{s.slot, v, s.path, s.old.key})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("undo copies of generation %d: %w", gen, err)
	}
	return out, nil
}

// placed says for each volume of a journal, the top first, which number it has
// among vs; -1: none.
func (j *journal) placed(vs volumes) []int {
	out := make([]int, 1, 1+len(j.volumes))
	for _, v := range j.volumes {
		out = append(out, slices.IndexFunc(vs, func(x volume) bool { return x.ID == v.ID }))
	}
	return out
}

// gather takes in the undo files of a generation.
func (n *Node) gather(x *undoIndex, gen int, steps []undoStep) {
	at := openDir{fd: -1}
	defer at.close()
	for _, s := range steps {
		u := undoCopy{undoFile: undoFile{gen, s.slot, s.vol}, of: s.path}
		dir, name, err := at.open(n, s.vol, x.vols.in(s.vol, u.undoFile.path()))
		if err != nil {
			continue
		}
		if u.stat, err = entry.StatAt(dir, name); err != nil {
			continue
		}
		x.byKey[s.key] = append(x.byKey[s.key], u)
		x.bySize[u.stat.Size] = append(x.bySize[u.stat.Size], u)
		x.byIno[inodeOf(u.stat)] = append(x.byIno[inodeOf(u.stat)], u.undoFile)
		x.gens[gen] = append(x.gens[gen], u)
	}
}

// choose picks undo copies that become the files of a rollback: whole
// inodes, each used once, read and compared before they are trusted.
func (n *Node) choose(ctx context.Context, p *Plan, x *undoIndex) error {
	p.links = map[int]undoFile{}
	taken := map[inode]bool{}
	var buf readBuf
	looked, err := n.lookFirst(ctx, p, x)
	if err != nil {
		return err
	}
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.content == nil || s.Kind > Add || s.link != s.slot {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, u := range x.candidates(s) {
			ino := inodeOf(u.stat)
			if taken[ino] || ino == inodeOf(s.stat) || u.vol != s.vol || u.stat.Nlink != uint64(len(x.byIno[ino])) {
				continue // in use elsewhere, or on another file system: copied by chunks instead
			}
			err := looked[i].err
			if looked[i].at != u.undoFile {
				err = n.intact(x, u.undoCopy, s.content, &buf)
			}
			if err == nil {
				taken[ino] = true
				p.links[s.slot] = u.undoFile
				p.used = append(p.used, x.byIno[ino]...)
				break
			}
			if u.sure {
				p.Damaged = append(p.Damaged, Note{s.Path, fmt.Sprintf("undo copy %q: %v", x.vols.in(u.vol, u.path()), err)})
				x.bad[u.undoFile] = true
			}
		}
	}
	return nil
}

// verdict says what reading an undo copy found.
type verdict struct {
	at  undoFile
	err error
}

// lookFirst reads the likeliest undo copy of each step, several at once.
func (n *Node) lookFirst(ctx context.Context, p *Plan, x *undoIndex) ([]verdict, error) {
	out := make([]verdict, len(p.Steps))
	return out, n.spread(ctx, len(p.Steps), func(r *localReader, i int) error {
		s := &p.Steps[i]
		if s.content == nil || s.Kind > Add || s.link != s.slot {
			return nil
		}
		if c := x.candidates(s); len(c) > 0 {
			out[i] = verdict{c[0].undoFile, n.intact(x, c[0].undoCopy, s.content, &r.buf)}
		}
		return nil
	})
}

// candidate is an undo copy that may hold what is wanted; when it is sure to
// and does not, it is damaged.
type candidate struct {
	undoCopy
	sure bool
}

// candidates lists what may become the file of a step: copies that were
// recorded with its very chunks, the one from its own path first; then, because
// the same bytes may have been cut differently, copies of its size, all from its
// own path and a few others.
func (x *undoIndex) candidates(s *Step) []candidate {
	var own, others []candidate
	for _, u := range x.byKey[contentKey(s.content)] {
		if u.of == s.Path {
			own = append(own, candidate{u, true})
		} else {
			others = append(others, candidate{u, true})
		}
	}
	out := append(own, others...)
	few := 16
	for _, u := range x.bySize[s.content.Size] {
		if u.of == s.Path {
			out = append(out, candidate{undoCopy: u})
		} else if few--; few >= 0 {
			out = append(out, candidate{undoCopy: u})
		}
	}
	return out
}

// intact reads an undo copy and compares it with what it should hold.
func (n *Node) intact(x *undoIndex, u undoCopy, want *entry.Entry, buf *readBuf) error {
	f, err := n.openFile(x.vols.in(u.vol, u.path()))
	if err != nil {
		return err
	}
	defer f.Close()
	ok, err := holds(f, u.stat.Size, want, buf)
	if err == nil && !ok {
		err = fmt.Errorf("does not hold what was displaced: %w", ErrDamaged)
	}
	return err
}
