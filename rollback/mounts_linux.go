package rollback

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
	"ingot/internal/slogx"
)

// mount is a line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	id           int
	root, at     string // what of the file system is mounted, and where
	readOnly     bool
	kind, source string
}

// parseMounts reads mountinfo. Lines that it does not understand are left out.
func parseMounts(b []byte) []mount {
	var out []mount
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		dash := slices.Index(f, "-") // ends the optional fields
		if dash < 6 || len(f) < dash+4 {
			continue
		}
		id, err := strconv.Atoi(f[0])
		if err != nil {
			continue
		}
		ro := func(options string) bool { return slices.Contains(strings.Split(options, ","), "ro") }
		out = append(out, mount{id: id, root: unescape(f[3]), at: unescape(f[4]), readOnly: ro(f[5]) || ro(f[dash+3]),
			kind: f[dash+1], source: unescape(f[dash+2])})
	}
	return out
}

// unescape reads the octal escapes of mountinfo: of space, tab, newline and backslash.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// btrfsTop is the inode number of the top of every subvolume (BTRFS_FIRST_FREE_OBJECTID).
const btrfsTop = 256

// unfit says why a file system cannot take part in a switch: it has to keep
// owners and attributes, to exchange names (RENAME_EXCHANGE), and to be there
// again after a reboot. top is the one that the tree's top is on, ino the inode
// number of what is mounted.
func (m *mount) unfit(top *mount, ino uint64) string {
	switch m.kind {
	case "ext2", "ext3", "ext4", "xfs", "btrfs":
	case "tmpfs":
		if top.kind != "tmpfs" {
			return "tmpfs does not outlive a reboot"
		}
	case "nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "fuse.sshfs", "fuse.glusterfs", "ocfs2", "gfs2", "lustre":
		return m.kind + " is a network file system"
	case "vfat", "msdos", "exfat", "ntfs", "ntfs3":
		return m.kind + " keeps no owners and cannot exchange names"
	default:
		return m.kind + " is not a file system that ingot knows how to switch"
	}
	if m.root != "/" && (m.kind != "btrfs" || ino != btrfsTop) {
		return fmt.Sprintf("a bind mount of a part of a file system (%q)", m.root)
	}
	return ""
}

// mountOf returns the number of the mount that fd is on (proc_pid_fdinfo(5), Linux 3.15).
func mountOf(fd int) (int, error) {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0, err
	}
	_, rest, ok := bytes.Cut(b, []byte("mnt_id:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	id, err := strconv.Atoi(string(bytes.TrimSpace(line)))
	if !ok || err != nil {
		return 0, fmt.Errorf("/proc/self/fdinfo: no mnt_id")
	}
	return id, nil
}

// mounts lists what is mounted in the tree, in tree order. Without /proc
// nothing is known of mounts, and none takes part.
func (n *Node) mounts() (top volume, out []mountPoint, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(n.top, &st); err != nil {
		return top, nil, fmt.Errorf("stat %q: %w", n.path, err)
	}
	top = volume{Volume: Volume{At: "."}, dev: uint64(st.Dev)}
	table, err := os.ReadFile("/proc/self/mountinfo")
	path, linkErr := os.Readlink("/proc/self/fd/" + strconv.Itoa(n.top))
	id, idErr := mountOf(n.top)
	if err := errors.Join(err, linkErr, idErr); err != nil {
		n.log().Warn("mounts cannot be listed: what is mounted in the tree is left alone", slogx.Err, err)
		return top, nil, nil
	}
	lines := parseMounts(table)
	at := slices.IndexFunc(lines, func(m mount) bool { return m.id == id })
	if at < 0 {
		return top, nil, nil // a detached tree, or one that is out of our root's reach
	}
	base := lines[at]
	below := map[string]mount{} // of several at one place the last one counts
	for _, m := range lines {
		if rel, err := filepath.Rel(path, m.at); err == nil && rel != "." && rel != ".." && !strings.HasPrefix(rel, "../") {
			below[rel] = m
		}
	}
	for rel, m := range below {
		out = append(out, n.mountPoint(rel, &m, &base))
	}
	slices.SortFunc(out, func(a, b mountPoint) int { return order(string(a.At), string(b.At)) })
	return top, out, nil
}

// mountPoint looks at what is mounted at rel.
func (n *Node) mountPoint(rel string, m, top *mount) mountPoint {
	p := mountPoint{volume: volume{Volume: Volume{At: Path(rel), FSType: m.kind, Source: m.source}, readOnly: m.readOnly}}
	if p.why = m.unfit(top, btrfsTop); p.why != "" {
		return p // others are not looked at: who knows how long that would take
	}
	fd, err := entry.OpenBeneath(n.top, rel, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		p.why = "it cannot be opened: " + err.Error()
		return p
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	id, err := mountOf(fd)
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	switch {
	case err != nil:
		p.why = "it cannot be looked at: " + err.Error()
	case id != m.id:
		p.why = "it is hidden by another mount"
	default:
		p.why = m.unfit(top, st.Ino)
	}
	p.dev, p.UUID = uint64(st.Dev), uuidOf(m.source)
	if m.kind == "btrfs" {
		p.Root = m.root
	}
	if p.why == "" {
		p.ID, err = n.identity(rel)
		switch {
		case err != nil:
			p.why = "its identity cannot be read: " + err.Error()
		case n.isTree(rel):
			p.why = "it has generations of its own: name it as the directory to push to"
		}
	}
	return p
}

// isTree reports whether the directory rel is the top of a tree with generations.
func (n *Node) isTree(rel string) bool {
	if n.exists(join(rel, in("journal"))) || n.exists(join(rel, in("statcache"))) {
		return true
	}
	names, err := n.list(join(rel, in("generations")))
	return err != nil || slices.ContainsFunc(names, func(name string) bool {
		return n.exists(join(rel, in("generations", name, "meta.json")))
	})
}

// holdsID reports whether the directory at has the identity of a volume: what
// was on it has moved there.
func (n *Node) holdsID(at, id string) bool {
	has, err := n.identity(at)
	return err == nil && id != "" && has == id
}

// volumeMagic begins .ingot/volume at the top of a volume; the identity follows.
const volumeMagic = "ingot volume 1\n"

// identity reads what makes the file system at rel known again; "" when no
// switch has been there.
func (n *Node) identity(rel string) (string, error) {
	path := join(rel, in("volume"))
	f, err := n.openFile(path)
	if notThere(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", fmt.Errorf("read %q: %w", path, err)
	}
	id, ok := strings.CutPrefix(string(b), volumeMagic)
	id, ended := strings.CutSuffix(id, "\n")
	if !ok || !ended || id == "" || strings.ContainsAny(id, "\n\x00") {
		return "", fmt.Errorf("read %q: does not name a volume: %w", path, ErrCorrupt)
	}
	return id, nil
}
