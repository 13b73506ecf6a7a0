package rollback

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"ingot/internal/entry"
)

// writers lists processes that hold files open for writing that the plan
// would displace: what they write afterwards goes into the displaced file.
// Only what /proc shows us is seen.
func writers(p *Plan) []Note {
	want := map[inode]string{}
	for i := range p.Steps {
		if s := &p.Steps[i]; s.Kind <= Replace && s.Old != nil && s.Old.Type == entry.File {
			want[inodeOf(s.stat)] = s.Path
		}
	}
	if len(want) == 0 {
		return nil
	}
	var notes []Note
	procs, _ := os.ReadDir("/proc")
	for _, proc := range procs {
		if _, err := strconv.Atoi(proc.Name()); err != nil {
			continue
		}
		dir := "/proc/" + proc.Name()
		fds, _ := os.ReadDir(dir + "/fd")
		for _, fd := range fds {
			var st syscall.Stat_t
			if syscall.Stat(dir+"/fd/"+fd.Name(), &st) != nil {
				continue
			}
			path, ok := want[inode{uint64(st.Dev), st.Ino}]
			if !ok || !writable(dir+"/fdinfo/"+fd.Name()) {
				continue
			}
			comm, _ := os.ReadFile(dir + "/comm")
			notes = append(notes, Note{path, fmt.Sprintf("busy: process %s (%s) has it open for writing", proc.Name(), bytes.TrimSpace(comm))})
		}
	}
	return notes
}

// writable reads the open flags of a descriptor from its fdinfo (proc(5)).
func writable(path string) bool {
	b, _ := os.ReadFile(path)
	_, rest, ok := bytes.Cut(b, []byte("flags:"))
	if !ok {
		return false
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	flags, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 8, 64)
	return err == nil && flags&(syscall.O_WRONLY|syscall.O_RDWR) != 0
}
