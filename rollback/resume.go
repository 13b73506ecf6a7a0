package rollback

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/slogx"
)

// outdated is how old a stage may become that nobody went on with.
const outdated = 7 * 24 * time.Hour

// sourceError is a failure of the source: what it delivered before is good.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// leftover is a file of an interrupted stage that is to hold what a slot of the
// next one is to hold.
type leftover struct {
	path  string // on the volume of the slot
	bytes int64  // of chunks that seem to be there
}

// listSlots begins a stage with what its slots are to hold, as a manifest in
// which they are the files, behind its digest. It need not be durable: a plan
// that cannot read it uses nothing of the stage.
func (n *Node) listSlots(p *Plan, dir string) error {
	m := &manifest.Manifest{Entries: []entry.Entry{{Path: ".", Type: entry.Dir}}}
	for i := range p.Steps {
		s := &p.Steps[i]
		if p.builds(s) && len(s.content.Chunks) > 0 {
			m.Entries = append(m.Entries, entry.Entry{Path: strconv.Itoa(s.slot), Type: entry.File,
				Size: s.content.Size, Holes: s.content.Holes, Chunks: s.content.Chunks})
		}
	}
	m.Sort()
	b := m.Encode()
	id := digest.Of(b)
	return n.putState(dir+"/slots", append(id[:], b...))
}

// readSlots reads what listSlots wrote; nil when it cannot be used.
func (n *Node) readSlots(dir string) *manifest.Manifest {
	b, err := n.readState(dir + "/slots")
	if err != nil || len(b) < digest.Size || digest.ID(b[:digest.Size]) != digest.Of(b[digest.Size:]) {
		return nil
	}
	m, err := manifest.Decode(b[digest.Size:])
	if err != nil {
		return nil
	}
	return m
}

// offerStages finds chunks in what interrupted stages left, and files of them
// that can be gone on with. What is a hole did not arrive; the rest is
// compared with its digest before it counts.
func (n *Node) offerStages(ctx context.Context, p *Plan, want map[digest.ID]uint32) error {
	names, err := n.list(in("stage"))
	if err != nil || len(names) == 0 || len(want) == 0 {
		return err
	}
	goals := map[goal]int{} // -> slot
	for i := range p.Steps {
		if s := &p.Steps[i]; p.builds(s) {
			goals[goal{contentKey(s.content), s.vol}] = s.slot
		}
	}
	p.adopt = map[int]leftover{}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		m := n.readSlots(in("stage", name))
		if m == nil {
			continue
		}
		for vol := range max(len(p.vols), 1) {
			fd, err := entry.OpenBeneath(n.top, p.vols.in(vol, in("stage", name, "undo")), unix.O_RDONLY|unix.O_DIRECTORY, 0)
			if err != nil {
				continue
			}
			for i := range m.Entries {
				p.offerSlot(want, goals, fd, vol, in("stage", name, "undo", m.Entries[i].Path), &m.Entries[i])
			}
			unix.Close(fd)
		}
	}
	return nil
}

// goal is content that is wanted on a volume.
type goal struct {
	key digest.ID
	vol int
}

func (p *Plan) offerSlot(want map[digest.ID]uint32, goals map[goal]int, dir, vol int, path string, e *entry.Entry) {
	if e.Type != entry.File {
		return
	}
	fd, err := unix.Openat(dir, e.Path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != e.Size {
		return
	}
	holes, err := entry.HolesOfFd(fd, e.Size)
	if err != nil {
		return
	}
	there, data, off := int64(0), e.Data(), int64(0)
	for _, c := range e.Chunks {
		if filled(pieces(data, off, int64(c.Size)), holes) {
			there += int64(c.Size)
			if _, ok := p.local[c.ID]; !ok && want[c.ID] == c.Size {
				p.local[c.ID] = place{path: p.vols.in(vol, path), content: e, off: off, size: c.Size}
				p.Reused += int64(c.Size)
			}
		}
		off += int64(c.Size)
	}
	// A file with other names is not written to: whose they are is not known.
	slot, ok := goals[goal{contentKey(e), vol}]
	if ok && there > p.adopt[slot].bytes && st.Nlink == 1 {
		p.adopt[slot] = leftover{path, there}
	}
}

// filled reports whether no part of the ranges is in a hole.
func filled(ranges, holes []entry.Extent) bool {
	for _, r := range ranges {
		for _, h := range holes {
			if r.Off < h.Off+h.Len && h.Off < r.Off+r.Len {
				return false
			}
		}
	}
	return true
}

// tidy removes stages that nobody went on with for a long time. Whoever is at
// work here does that himself; that it cannot be done is no failure. boot
// reports that a boot loader started the pair before, and does no more.
func (n *Node) tidy() (boot bool) {
	old, torn := n.stages(), n.torn()
	g, err := n.Current()
	settled := (err == nil || errors.Is(err, ErrNoGeneration)) && !g.OnTrial() && len(n.trialMarks(g.Volumes)) > 0
	if len(old)+len(torn) == 0 && !settled {
		return false
	}
	unlock, err := n.lockIdle("tidy up")
	if err != nil {
		return false
	}
	defer unlock()
	if settled { // whoever made the mark died before the switch, or after the confirmation
		err := n.usualPair(g.Volumes)
		if boot = err == nil; !boot {
			n.log().Warn("the boot entry of the generation before is still the usual one", slogx.Err, err)
		}
	}
	before := n.now().Add(-outdated).UnixNano()
	for _, path := range old {
		if err := n.removeOld(path, before); err != nil {
			n.log().Warn("an old stage could not be removed", slogx.Path, path, slogx.Err, err)
		}
	}
	for _, path := range torn {
		if err := n.remove(path); err != nil {
			n.log().Warn("a file that was not finished could not be removed", slogx.Path, path, slogx.Err, err)
		}
	}
	return boot
}

// torn lists records of generations that were being written anew when a
// process died.
func (n *Node) torn() (out []string) {
	names, _ := n.list(in("generations")) // what cannot be seen cannot be tidied up
	for _, name := range names {
		if path := in("generations", name, "meta.json.tmp"); n.exists(path) {
			out = append(out, path)
		}
	}
	return out
}

// stages lists the stages on all file systems of the tree, as far as that can be done.
func (n *Node) stages() (out []string) {
	add := func(at string) error {
		names, err := n.list(join(at, in("stage")))
		for _, name := range names {
			out = append(out, join(at, in("stage", name)))
		}
		return err
	}
	if gens, err := n.Generations(); err == nil {
		_ = n.mine(gens, add) // of what cannot be listed nothing is removed
	}
	_ = add(".")
	return out
}

func (n *Node) removeOld(path string, before int64) error {
	dir, name, err := n.parent(path)
	if err != nil {
		return fmt.Errorf("remove %q: %w", path, err)
	}
	defer unix.Close(dir)
	st, err := entry.StatAt(dir, name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err == nil && st.MTime < before:
		return n.removeAt(dir, name)
	}
	return err
}
