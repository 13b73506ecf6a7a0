package units

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ingot/internal/systemd"
)

// mapping is one line of /proc/PID/maps that is of a file (proc_pid_maps(5)).
type mapping struct {
	exec    bool
	dev     uint64 // as stat(2) gives it, where the file system does not hide it
	ino     uint64
	path    string // as the kernel says it, without its " (deleted)"
	deleted bool
}

// deletedMark is what the kernel appends to the path of a file that has no name any more. A file may also be called so.
const deletedMark = " (deleted)"

// parseMapping reads a line; ok is false for what is not of a file.
//
//	7f1c-7f1d r-xp 00002000 fd:00 1234      /usr/lib/libx.so.1 (deleted)
func parseMapping(line string) (m mapping, ok bool) {
	var field [5]string // addresses, permissions, offset, device, inode
	rest := line
	for i := range field {
		field[i], rest, _ = strings.Cut(strings.TrimLeft(rest, " "), " ")
	}
	m.path = strings.TrimLeft(rest, " ")
	if !strings.HasPrefix(m.path, "/") || len(field[1]) != 4 {
		return mapping{}, false
	}
	m.exec = field[1][2] == 'x'
	major, minor, _ := strings.Cut(field[3], ":")
	ma, err1 := strconv.ParseUint(major, 16, 32)
	mi, err2 := strconv.ParseUint(minor, 16, 32)
	ino, err3 := strconv.ParseUint(field[4], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil || ino == 0 {
		return mapping{}, false
	}
	m.dev, m.ino = unix.Mkdev(uint32(ma), uint32(mi)), ino
	m.path, m.deleted = strings.CutSuffix(m.path, deletedMark)
	return m, true
}

// parseCgroup returns the unit of /proc/PID/cgroup (cgroups(7)): of the unified hierarchy, or of systemd's own.
func parseCgroup(text string) string {
	unit := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		id, rest, _ := strings.Cut(line, ":")
		controllers, path, ok := strings.Cut(rest, ":")
		switch {
		case !ok:
		case controllers == "name=systemd":
			return unitOf(path)
		case id == "0" && controllers == "":
			unit = unitOf(path)
		}
	}
	return unit
}

// unitOf returns the unit of a control group: what follows the slices (cg_path_get_unit of systemd). What a
// unit makes below itself, as user@1000.service does, is its own.
func unitOf(path string) string {
	for comp := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		comp = strings.TrimPrefix(comp, "_") // an escape: cg_escape of systemd
		switch systemd.Suffix(comp) {
		case ".slice":
		case "":
			return ""
		default:
			return comp
		}
	}
	return ""
}

// isKernel says whether /proc/PID/stat is that of a thread of the kernel: PF_KTHREAD, 0x00200000 of
// include/linux/sched.h, in field 9, flags.
func isKernel(stat string) bool {
	i := strings.LastIndexByte(stat, ')') // the name in field 2 may hold anything
	if i < 0 {
		return false
	}
	f := strings.Fields(stat[i+1:])
	if len(f) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(f[6], 10, 64)
	return err == nil && flags&0x00200000 != 0
}
