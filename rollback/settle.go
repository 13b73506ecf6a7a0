package rollback

import (
	"os"
	"strings"

	"ingot/internal/slogx"
)

// settle makes what was done durable before it counts.
func (r *runner) settle() error {
	if err := r.vols.sync(); err != nil {
		return err
	}
	r.toBoot()
	return nil
}

// toBoot brings everything to its final place on the disk where a boot loader
// would otherwise see something else than the kernel does: GRUB reads the file
// system without its journal. syncfs(2) writes ext4's blocks to their places,
// too, but of XFS only the log. It is called before a switch, so that what comes
// into the tree is complete before a name leads to it, and what is left to be
// written then is blocks of directories, which are old or new as a whole; and
// after it, and after a way back.
func (r *runner) toBoot() {
	if !r.n.Boots || os.Geteuid() != 0 {
		return
	}
	for i := range r.vols {
		b := &r.vols[i]
		if !r.j.touchesBoot(i) || !mounted(b.top) {
			continue
		}
		if err := b.sys.freeze(b.top); err != nil {
			b.log().Warn("cannot freeze the file system: a boot loader may see it as before", slogx.Path, b.path, slogx.Err, err)
		}
	}
}

// touchesBoot reports whether a switch changes what a boot loader reads on a volume.
func (j *journal) touchesBoot(vol int) bool {
	for i := range j.steps {
		if s := &j.steps[i]; s.vol == vol && s.kind != Times && readByLoader(s.path) {
			return true
		}
	}
	return false
}

// readByLoader reports whether a boot loader reads a path: what is in /boot,
// and the links at the top by which Debian names the kernel to boot
// (linux-update-symlinks(1)), which grub.cfg follows.
func readByLoader(path string) bool {
	return under(path, "boot") || !strings.Contains(path, "/") && (strings.HasPrefix(path, "vmlinuz") || strings.HasPrefix(path, "initrd.img"))
}
