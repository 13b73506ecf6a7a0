package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Stats count what a machine has moved since it was switched on, in bytes.
type Stats struct {
	DiskRead, DiskWritten int64 // by all of its disks
	NetIn, NetOut         int64 // as the machine sees them, Ethernet headers included
}

// Minus is what was moved between two readings of one run.
func (s Stats) Minus(before Stats) Stats {
	return Stats{s.DiskRead - before.DiskRead, s.DiskWritten - before.DiskWritten, s.NetIn - before.NetIn, s.NetOut - before.NetOut}
}

// Stats reads the counters of a machine that is on: QEMU's of its disks, which a
// reset leaves alone, and the kernel's of its cable.
func (r *Rack) Stats(name string) (Stats, error) {
	n, u, err := r.running(name)
	if err != nil {
		return Stats{}, err
	}
	var disks []struct {
		Stats struct {
			Read    int64 `json:"rd_bytes"`
			Written int64 `json:"wr_bytes"`
		} `json:"stats"`
	}
	if err := u.qmp.ask("query-blockstats", nil, &disks); err != nil {
		return Stats{}, fmt.Errorf("machine %q: %w", name, err)
	}
	var s Stats
	for _, d := range disks {
		s.DiskRead += d.Stats.Read
		s.DiskWritten += d.Stats.Written
	}
	for file, to := range map[string]*int64{"tx_bytes": &s.NetIn, "rx_bytes": &s.NetOut} { // the tap's are the other way round
		text, err := os.ReadFile(filepath.Join("/sys/class/net", n.tap, "statistics", file))
		if err != nil {
			return s, fmt.Errorf("machine %q: %w", name, err)
		}
		if *to, err = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err != nil {
			return s, fmt.Errorf("machine %q: %s: %w", name, file, err)
		}
	}
	return s, nil
}
