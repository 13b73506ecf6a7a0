package rollback

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"ingot/internal/slogx"
)

// What a boot loader starts is a pair of a kernel and an initramfs. Before a
// switch that changes what it reads, the pair of now is copied to .ingot/boot
// of the file system that holds it, where grub.cfg has an entry for it. While
// the new generation is on trial there is a file `trial` beside it, and the
// usual entry starts the old pair, too: a kernel that does not come up takes
// nothing with it. They are copies, since one more name of an inode would make
// it shared.

const pairHome = "boot"

// bootLinks are the links by which Debian names the pair (linux-update-symlinks(1)).
func bootLinks() [2]string { return [2]string{"vmlinuz", "initrd.img"} }

// pair is what the links lead to, open for reading.
type pair [2]*os.File

func (p pair) close() {
	for _, f := range p {
		if f != nil {
			f.Close()
		}
	}
}

// bootPair opens what the boot loader starts, and returns the number of the
// file system that it is on. A tree that names none has an error.
func (n *Node) bootPair() (p pair, dev uint64, err error) {
	for i, name := range bootLinks() {
		// The links may be absolute, and lead anywhere in the tree, not out of it.
		fd, err := unix.Openat2(n.top, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
		if err != nil {
			p.close()
			return pair{}, 0, fmt.Errorf("open %q: %w", name, err)
		}
		p[i] = os.NewFile(uintptr(fd), name)
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		switch {
		case err != nil:
		case st.Mode&unix.S_IFMT != unix.S_IFREG:
			err = errors.New("it leads to no file")
		case i > 0 && uint64(st.Dev) != dev:
			err = errors.New("kernel and initramfs are on different file systems")
		}
		if err != nil {
			p.close()
			return pair{}, 0, fmt.Errorf("%q: %w", name, err)
		}
		dev = uint64(st.Dev)
	}
	return p, dev, nil
}

// pairRoom is what a copy of the pair takes, of which volume of the plan;
// nothing where there is none to be kept.
func (n *Node) pairRoom(p *Plan) (bytes int64, vol int) {
	if !n.Boots || !p.TouchesBoot() {
		return 0, 0
	}
	old, dev, err := n.bootPair()
	if err != nil {
		return 0, 0
	}
	defer old.close()
	for _, f := range old {
		if st, err := f.Stat(); err == nil {
			bytes += st.Size()
		}
	}
	return bytes, max(0, slices.IndexFunc(p.vols, func(v volume) bool { return v.dev == dev }))
}

// TouchesBoot reports whether the plan changes what a boot loader reads.
func (p *Plan) TouchesBoot() bool {
	for i := range p.Steps {
		if s := &p.Steps[i]; s.Kind != Times && readByLoader(s.Path) {
			return true
		}
	}
	return false
}

// boots reports whether the switch changes what a boot loader reads.
func (j *journal) boots() bool {
	for i := range len(j.volumes) + 1 {
		if j.touchesBoot(i) {
			return true
		}
	}
	return false
}

// keepPair keeps the pair of now; trial says that it is what shall be started
// until the generation to come is confirmed.
func (r *runner) keepPair(trial bool) error {
	if !r.n.Boots || !r.j.boots() {
		return nil
	}
	old, dev, err := r.n.bootPair()
	if err != nil {
		r.n.log().Warn("what the boot loader starts is not known: no entry is kept for it", slogx.Err, err)
		return nil
	}
	defer old.close()
	for i := range r.vols {
		if b := &r.vols[i]; b.dev == dev {
			return b.keepPair(old, trial)
		}
	}
	r.n.log().Warn("the kernel is on a file system that takes no part: no entry is kept for it")
	return nil
}

func (b *branch) keepPair(old pair, trial bool) error {
	next := in(pairHome + ".new")
	if err := b.remove(next); err != nil {
		return err
	}
	if err := b.makeDirs(next); err != nil {
		return err
	}
	for i, name := range bootLinks() {
		f, err := b.createState(next+"/"+name, unix.O_EXCL)
		if err != nil {
			return err
		}
		_, err = io.CopyBuffer(&stateWriter{n: b.Node, f: f}, struct{ io.Reader }{old[i]}, make([]byte, 1<<20))
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("keep the kernel and the initramfs of now: %w", err)
		}
	}
	if trial {
		if err := b.putState(next+"/trial", []byte("the usual boot entry starts this pair until the generation is confirmed\n")); err != nil {
			return err
		}
	}
	if err := b.sys.syncfs(b.top); err != nil {
		return err
	}
	place := in(pairHome)
	if !b.exists(place) {
		return errors.Join(b.sys.move(b.top, next, b.top, place), b.sys.fsyncDir(b.top, home))
	}
	if err := b.sys.exchange(b.top, next, b.top, place); err != nil {
		return err
	}
	if err := b.sys.fsyncDir(b.top, home); err != nil {
		return err
	}
	return b.remove(next)
}

// trialMarks are the files that make the pair before the usual one.
func (n *Node) trialMarks(vols []Volume) (out []string) {
	homes := []string{home}
	for _, v := range vols {
		homes = append(homes, string(v.At)+"/"+home)
	}
	for _, dir := range homes {
		if mark := dir + "/" + pairHome + "/trial"; n.exists(mark) {
			out = append(out, mark)
		}
	}
	return out
}

// usualPair lets the usual boot entry start what the tree has.
func (n *Node) usualPair(vols []Volume) error {
	for _, mark := range n.trialMarks(vols) {
		if err := n.remove(mark); err != nil {
			return err
		}
		if err := n.sys.fsyncDir(n.top, parentOf(mark)); err != nil {
			return err
		}
	}
	return nil
}
