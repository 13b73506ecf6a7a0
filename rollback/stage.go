package rollback

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

// Stage writes everything that the plan puts into the tree beside it: each
// chunk verified, metadata set, and all of it durable. It replaces what was
// staged before, and leaves nothing when it fails. src may be nil when the plan
// needs no chunks.
func (n *Node) Stage(ctx context.Context, p *Plan, src Source) error {
	if err := p.Err(); err != nil {
		return fmt.Errorf("stage: %w", err)
	}
	unlock, err := n.lockIdle("stage")
	if err != nil {
		return fmt.Errorf("stage: %w", err)
	}
	defer unlock()
	if err := n.stage(ctx, p, src); err != nil {
		return fmt.Errorf("stage: %w", err)
	}
	return nil
}

func (n *Node) stage(ctx context.Context, p *Plan, src Source) error {
	if err := n.isBase(p); err != nil {
		return err
	}
	if err := n.clearStages(); err != nil {
		return err
	}
	if err := n.fits(p); err != nil {
		return err
	}
	if err := p.records(); err != nil {
		return err
	}
	if p.Base == 0 {
		g := Generation{Image: "as found", Mode: "live", By: p.Generation.By, Result: "found"}
		g.Number, g.Covers, g.Exact = 1, p.Generation.Covers, p.Generation.Exact
		if _, err := n.record(g, p.left, nil); err != nil {
			return err
		}
		p.Base = 1
	}
	id := rand.Text()
	if err := n.fill(ctx, p, src, in("stage", id)); err != nil {
		return errors.Join(err, n.remove(in("stage", id)))
	}
	p.id = id
	return nil
}

// Unstage removes what Stage wrote for a plan that nobody will switch: the
// caller has lost its controller, or its patience.
func (n *Node) Unstage(p *Plan) error {
	unlock, err := n.lockIdle("unstage")
	if err == nil {
		defer unlock()
		err = n.unstage(p)
	}
	if err != nil {
		return fmt.Errorf("unstage: %w", err)
	}
	return nil
}

// fill makes the stage dir.
func (n *Node) fill(ctx context.Context, p *Plan, src Source, dir string) error {
	if err := n.makeDirs(dir, dir+"/undo"); err != nil {
		return err
	}
	st, err := n.openStage(dir)
	if err != nil {
		return err
	}
	defer unix.Close(st.fd)
	if err := st.build(ctx, p, src); err != nil {
		return err
	}
	if err := n.stageLeft(p, dir); err != nil {
		return err
	}
	if err := n.stageTarget(p, dir+"/next"); err != nil {
		return err
	}
	return n.sys.syncfs(n.top)
}

// stageLeft writes what the old generation is left with, where it is not what it was given.
func (n *Node) stageLeft(p *Plan, dir string) error {
	g, err := n.generation(p.Base)
	if err != nil {
		return err
	}
	b := p.left.Encode()
	id := digest.Of(b)
	if id == g.Manifest {
		return nil
	}
	return n.putState(dir+"/left", append(id[:], b...))
}

// stageTarget begins the record of the new generation with its target. A
// rollback takes that of the generation it goes back to.
func (n *Node) stageTarget(p *Plan, dir string) error {
	err := n.sys.mkdir(n.top, dir, 0o700)
	switch {
	case err != nil:
	case p.target != nil:
		p.Generation.Target, err = n.putTarget(dir, p.done, p.target)
	case p.To != 0 && n.exists(genDir(p.To, "target")):
		err = n.sys.link(n.top, genDir(p.To, "target"), n.top, dir+"/target")
	default:
		p.Generation.Target = digest.ID{}
	}
	return err
}

// isBase refuses a plan that was made for another generation.
func (n *Node) isBase(p *Plan) error {
	g, err := n.idle()
	if err != nil {
		return err
	}
	if g.Number != p.Base {
		return fmt.Errorf("made for generation %d, the node is at %d: %w", p.Base, g.Number, ErrStale)
	}
	return nil
}

// clearStages removes what earlier plans staged and never switched.
func (n *Node) clearStages() error {
	names, err := n.list(in("stage"))
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := n.remove(in("stage", name)); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) fits(p *Plan) error {
	bytes, inodes, err := n.Free()
	if err != nil {
		return err
	}
	if p.Bytes > bytes || p.Inodes > inodes {
		return &SpaceError{Bytes: p.Bytes, FreeBytes: bytes, Inodes: p.Inodes, FreeInodes: inodes}
	}
	return nil
}

// stager fills one stage.
type stager struct {
	n  *Node
	fd int // the directory of slots

	from *os.File // the local file that was read last
}

func (n *Node) openStage(dir string) (*stager, error) {
	fd, err := entry.OpenBeneath(n.top, dir+"/undo", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", dir, err)
	}
	return &stager{n: n, fd: fd}, nil
}

// build makes the slots: nodes, then content, then further names, then metadata.
func (st *stager) build(ctx context.Context, p *Plan, src Source) error {
	defer st.closeFrom()
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.Kind != Replace && s.Kind != Add || s.link != s.slot {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := st.node(p, s); err != nil {
			return fmt.Errorf("%q: %w", s.Path, err)
		}
	}
	if err := st.contents(ctx, p, src); err != nil {
		return err
	}
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.Kind != Replace && s.Kind != Add {
			continue
		}
		var err error
		if s.link != s.slot {
			err = st.n.sys.link(st.fd, strconv.Itoa(s.link), st.fd, strconv.Itoa(s.slot))
		} else {
			err = st.dress(p, s)
		}
		if err != nil {
			return fmt.Errorf("%q: %w", s.Path, err)
		}
	}
	return nil
}

// dress sets metadata. An undo copy mostly has it already.
func (st *stager) dress(p *Plan, s *Step) error {
	name := strconv.Itoa(s.slot)
	if _, linked := p.links[s.slot]; linked {
		if e, _, err := entry.ReadAt(st.fd, name); err == nil && entry.SameMeta(&e, s.New) {
			return nil
		}
	}
	return st.n.sys.setMeta(st.fd, name, s.New)
}

// node makes an entry without content and metadata.
func (st *stager) node(p *Plan, s *Step) error {
	name, sys := strconv.Itoa(s.slot), &st.n.sys
	switch s.New.Type {
	case entry.File:
		if u, ok := p.links[s.slot]; ok {
			return sys.link(st.n.top, u.path(), st.fd, name)
		}
		return sys.create(st.fd, name, s.New.Size)
	case entry.Dir:
		return sys.mkdir(st.fd, name, 0o700)
	case entry.Symlink:
		return sys.symlink(s.New.Target, st.fd, name)
	case entry.FIFO:
		return sys.mknod(st.fd, name, unix.S_IFIFO|0o600, 0)
	case entry.CharDevice:
		return sys.mknod(st.fd, name, unix.S_IFCHR|0o600, unix.Mkdev(s.New.Major, s.New.Minor))
	case entry.BlockDevice:
		return sys.mknod(st.fd, name, unix.S_IFBLK|0o600, unix.Mkdev(s.New.Major, s.New.Minor))
	}
	return fmt.Errorf("unknown type %d", s.New.Type)
}

// spot is a place in the stage that a chunk goes to.
type spot struct {
	slot   int
	ranges []entry.Extent
}

// contents writes the chunks: those on the node first, the others as they come.
func (st *stager) contents(ctx context.Context, p *Plan, src Source) error {
	missing := map[digest.ID][]spot{}
	var ids []digest.ID
	var lacking []Note
	for i := range p.Steps {
		s := &p.Steps[i]
		if !p.builds(s) || s.Kind != Replace && s.Kind != Add {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		data, off := s.content.Data(), int64(0)
		for _, c := range s.content.Chunks {
			to := spot{s.slot, pieces(data, off, int64(c.Size))}
			off += int64(c.Size)
			if b := st.local(p, c); b != nil {
				if err := st.put(to, b); err != nil {
					return fmt.Errorf("%q: %w", s.Path, err)
				}
				continue
			}
			if missing[c.ID] == nil {
				ids = append(ids, c.ID)
				lacking = append(lacking, Note{s.Path, "chunk " + c.ID.Short() + " is not on the node"})
			}
			missing[c.ID] = append(missing[c.ID], to)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	if src == nil {
		return &DamagedError{Notes: lacking}
	}
	return st.fetch(ctx, src, ids, missing)
}

func (st *stager) fetch(ctx context.Context, src Source, ids []digest.ID, missing map[digest.ID][]spot) error {
	var mu sync.Mutex
	got := map[digest.ID]bool{}
	err := src.Fetch(ctx, ids, func(id digest.ID, data []byte) error {
		if digest.Of(data) != id {
			return fmt.Errorf("chunk %s: the source delivered something else: %w", id.Short(), ErrDamaged)
		}
		for _, to := range missing[id] {
			if err := st.put(to, data); err != nil {
				return err
			}
		}
		mu.Lock()
		defer mu.Unlock()
		got[id] = true
		return nil
	})
	if err != nil {
		return fmt.Errorf("fetch %d chunks: %w", len(ids), err)
	}
	for _, id := range ids {
		if !got[id] {
			return fmt.Errorf("chunk %s: the source did not deliver it", id.Short())
		}
	}
	return nil
}

// put writes one chunk to its place. It may be called concurrently.
func (st *stager) put(to spot, b []byte) error {
	name := strconv.Itoa(to.slot)
	total := int64(0)
	for _, r := range to.ranges {
		total += r.Len
	}
	if total != int64(len(b)) {
		return fmt.Errorf("a chunk of %d bytes where %d belong: %w", len(b), total, ErrDamaged)
	}
	fd, err := unix.Openat(st.fd, name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open slot %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	for _, r := range to.ranges {
		if err := st.n.sys.writeAt(f, name, b[:r.Len], r.Off); err != nil {
			return err
		}
		b = b[r.Len:]
	}
	return nil
}

// local reads a chunk from the node itself; nil when it is not there (any more).
func (st *stager) local(p *Plan, c entry.Chunk) []byte {
	at, ok := p.local[c.ID]
	if !ok || at.size != c.Size {
		return nil
	}
	if st.from == nil || st.from.Name() != at.path {
		st.closeFrom()
		f, err := st.n.openFile(at.path)
		if err != nil {
			return nil
		}
		st.from = f
	}
	b := make([]byte, c.Size)
	if err := readPieces(st.from, pieces(at.content.Data(), at.off, int64(c.Size)), b); err != nil || digest.Of(b) != c.ID {
		return nil
	}
	return b
}

func (st *stager) closeFrom() {
	if st.from != nil {
		st.from.Close()
		st.from = nil
	}
}
