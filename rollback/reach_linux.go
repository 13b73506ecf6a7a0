package rollback

import (
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// claim takes a volume for a change, and gives it an identity where it has none.
func (b *branch) claim(v *Volume, what string) (err error) {
	if b.unlock, err = b.lock(what); err != nil {
		return err
	}
	id, err := b.identity(".")
	switch {
	case err != nil:
		return err
	case v.ID == "" && id == "":
		v.ID = rand.Text()
		return b.writeState(in("volume"), []byte(volumeMagic+v.ID+"\n"))
	case v.ID == "":
		v.ID = id // somebody else was there since the plan looked
	case v.ID != id:
		return &VolumeError{*v, "another file system is mounted there"}
	}
	return nil
}

// branch is a volume that one operation has open. Its Node has its own top and
// .ingot; that of the top is the tree's.
type branch struct {
	*Node
	at     string
	dev    uint64
	undo   int // the directory of slots; -1: not open
	unlock func()
}

// reach is the volumes of a plan or a journal, open. Number 0 is the tree's top.
type reach []branch

// open opens volumes, each where it is mounted. It accepts only what is a file
// system of its own and has the identity, where that is known.
func (n *Node) open(list []Volume) (r reach, err error) {
	r = reach{{Node: n, at: ".", undo: -1}}
	defer func() {
		if err != nil {
			r.close()
			r = nil
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(n.top, &st); err != nil {
		return r, fmt.Errorf("stat %q: %w", n.path, err)
	}
	r[0].dev = uint64(st.Dev)
	for _, v := range list {
		at := string(v.At)
		fd, err := entry.OpenBeneath(n.top, at, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return r, &VolumeError{v, "its mount point cannot be opened: " + err.Error()}
		}
		b := branch{Node: &Node{Log: n.Log, Now: n.Now, path: filepath.Join(n.path, at), top: fd, sys: n.sys}, at: at, undo: -1}
		r = append(r, b)
		if err := unix.Fstat(fd, &st); err != nil {
			return r, fmt.Errorf("stat %q: %w", b.path, err)
		}
		if slices.ContainsFunc(r[:len(r)-1], func(x branch) bool { return x.dev == uint64(st.Dev) }) {
			return r, &VolumeError{v, "is not mounted"}
		}
		r[len(r)-1].dev = uint64(st.Dev)
		id, err := b.identity(".")
		if err == nil && v.ID != "" && id != v.ID {
			err = &VolumeError{v, "another file system is mounted there"}
		}
		if err == nil {
			err = b.checkHome()
		}
		if err != nil {
			return r, err
		}
	}
	return r, nil
}

// openPlan opens the volumes that the steps of a plan are on.
func (n *Node) openPlan(p *Plan) (reach, error) {
	r, err := n.open(p.vols.described())
	if err != nil {
		return nil, err
	}
	for i := 1; i < len(r); i++ {
		if r[i].dev != p.vols[i].dev {
			r.close()
			return nil, fmt.Errorf("what is mounted at %q: %w", p.vols[i].At, ErrChanged)
		}
	}
	return r, nil
}

// claim takes all volumes but the top, which is taken first and by others.
func (r reach) claim(list []Volume, what string) error {
	for i := range list {
		if err := r[i+1].claim(&list[i], what); err != nil {
			return fmt.Errorf("file system of %q: %w", r[i+1].path, err)
		}
	}
	return nil
}

func (r reach) close() {
	for i := range r {
		b := &r[i]
		closeDir(b.undo)
		b.undo = -1
		if b.unlock != nil {
			b.unlock()
		}
		if i > 0 {
			b.Close()
		}
	}
}

// openSlots opens the directory of slots of the stage dir on every volume.
func (r reach) openSlots(dir string) error {
	return r.each(func(b *branch) error { return b.openSlots(dir + "/undo") })
}

func (b *branch) openSlots(path string) (err error) {
	closeDir(b.undo)
	if b.undo, err = entry.OpenBeneath(b.top, path, unix.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return fmt.Errorf("open the stage in %q: %w", b.path, err)
	}
	return nil
}

// parent opens the directory that holds path, which is on volume vol.
func (r reach) parent(vol int, path string) (dir int, name string, err error) {
	b := &r[vol]
	if vol > 0 {
		path = relative(path, b.at)
	}
	return b.Node.parent(path)
}

// relative returns path, which is at or below dir, relative to it.
func relative(path, dir string) string {
	if path == dir {
		return "."
	}
	return path[len(dir)+1:]
}

// each does something on every volume.
func (r reach) each(fn func(b *branch) error) error {
	for i := range r {
		if err := fn(&r[i]); err != nil {
			return err
		}
	}
	return nil
}

// isOn reports whether a state of an inode is one of the file system that was
// opened: a path may lead to another one that was mounted since.
func (b *branch) isOn(st entry.Stat) bool { return st.Dev == b.dev }

// sync makes all of every volume durable.
func (r reach) sync() error {
	return r.each(func(b *branch) error { return b.sys.syncfs(b.top) })
}

// shift moves a file of .ingot to its generation, where that was not done before.
func (b *branch) shift(from, to string) error {
	if !b.exists(from) {
		return nil
	}
	if up := parentOf(to); up != in("generations") {
		if err := b.makeDirs(up); err != nil {
			return err
		}
	}
	return b.sys.move(b.top, from, b.top, to)
}

// clear removes path of .ingot from every volume.
func (r reach) clear(path string) error {
	return r.each(func(b *branch) error { return b.remove(path) })
}

// disown removes from the volume at what no generation in keep has there.
func (n *Node) disown(at string, keep func(num int) bool) error {
	names, err := n.list(join(at, in("generations")))
	if err != nil {
		return err
	}
	for _, name := range names {
		if num, err := strconv.Atoi(name); err == nil && keep(num) && strconv.Itoa(num) == name {
			continue
		}
		if err := n.remove(join(at, in("generations", name))); err != nil {
			return err
		}
	}
	return nil
}

// mine calls fn for each volume of the generations that is mounted.
func (n *Node) mine(gens []Generation, fn func(at string) error) error {
	done := map[Path]bool{}
	for _, g := range slices.Backward(gens) {
		for _, v := range g.Volumes {
			if v.ID == "" || done[v.At] {
				continue
			}
			done[v.At] = true
			if id, err := n.identity(string(v.At)); err != nil || id != v.ID {
				continue
			}
			if err := fn(string(v.At)); err != nil {
				return err
			}
		}
	}
	return nil
}

// retireVolumes removes from the volumes what is of retired generations.
func (n *Node) retireVolumes() error {
	gens, err := n.Generations()
	if err != nil {
		return err
	}
	kept := func(num int) bool {
		return slices.ContainsFunc(gens, func(g Generation) bool { return g.Number == num })
	}
	return n.mine(gens, func(at string) error { return n.disown(at, kept) })
}

// recorded finds the file systems that the tree m is on, which its whole record
// makes volumes, and gives them their identities. One that cannot be written
// to has none.
func (n *Node) recorded(m *manifest.Manifest) ([]Volume, error) {
	top, mounts, err := n.mounts()
	if err != nil {
		return nil, err
	}
	x := indexOf(m)
	c := &census{g: &Generation{}, base: indexOf(nil), target: x, rules: &rules{}}
	c.take(top, mounts)
	list := c.rules.vols.described()
	for i, v := range c.rules.vols[1:] {
		if v.readOnly {
			continue
		}
		r, err := n.open(list[i : i+1])
		if err == nil {
			err = r.claim(list[i:i+1], "record")
		}
		r.close()
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// Volumes returns the file systems that the journal of an interrupted switch
// and a generation on trial, or with back the present one, name besides that of
// top, parents first: they have to be mounted below top before Recover, Revert
// and TakeBack. Mostly there are none.
func Volumes(top string, back bool) ([]Volume, error) {
	n, err := Open(top, nil)
	if err != nil {
		return nil, err
	}
	defer n.Close()
	var all []Volume
	j, err := n.readJournal()
	if err != nil {
		return nil, err
	}
	if j != nil {
		all = j.volumes
	}
	g, err := n.Current()
	if err == nil && (back && g.From > 0 || g.OnTrial()) {
		all = append(all, g.Volumes...)
		if g, err = n.generation(g.From); err == nil {
			all = append(all, g.Volumes...)
		}
	}
	if err != nil && !errors.Is(err, ErrNoGeneration) {
		return nil, err
	}
	slices.SortStableFunc(all, func(a, b Volume) int { return order(string(a.At), string(b.At)) })
	return slices.CompactFunc(all, func(a, b Volume) bool { return a.At == b.At }), nil
}

// Is reports whether the file system whose top is dir is the volume.
func (v Volume) Is(dir string) (bool, error) {
	n, err := Open(dir, nil)
	if err != nil {
		return false, err
	}
	defer n.Close()
	id, err := n.identity(".")
	return err == nil && v.ID != "" && id == v.ID, err
}

func closeDir(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}
