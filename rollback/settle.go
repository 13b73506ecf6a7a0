package rollback

import (
	"os"
	"slices"
	"strings"

	"ingot/internal/slogx"
)

// settle makes what was done durable before it counts.
func (n *Node) settle(j *journal) error {
	if err := n.sys.syncfs(n.top); err != nil {
		return err
	}
	n.toBoot(j)
	return nil
}

// toBoot brings everything to its final place on the disk where a boot loader
// would otherwise see something else than the kernel does: GRUB reads the file
// system without its journal. syncfs(2) writes ext4's blocks to their places,
// too, but of XFS only the log. It is called before a switch, so that what comes
// into the tree is complete before a name leads to it, and what is left to be
// written then is blocks of directories, which are old or new as a whole; and
// after it, and after a way back.
func (n *Node) toBoot(j *journal) {
	if !n.Freeze || !j.touchesBoot() || !mounted(n.top) || os.Geteuid() != 0 {
		return
	}
	if err := n.sys.freeze(n.top); err != nil {
		n.log().Warn("cannot freeze the file system: a boot loader may see it as before", slogx.Err, err)
	}
}

// touchesBoot reports whether a switch changes what a boot loader reads.
func (j *journal) touchesBoot() bool {
	return slices.ContainsFunc(j.steps, func(s jstep) bool { return s.kind != Times && readByLoader(s.path) })
}

// readByLoader reports whether a boot loader reads a path: what is in /boot,
// and the links at the top by which Debian names the kernel to boot
// (linux-update-symlinks(1)), which grub.cfg follows.
func readByLoader(path string) bool {
	return under(path, "boot") || !strings.Contains(path, "/") && (strings.HasPrefix(path, "vmlinuz") || strings.HasPrefix(path, "initrd.img"))
}
