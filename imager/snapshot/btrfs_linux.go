package snapshot

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"ingot/internal/btrfs"
)

// btrfs makes a read-only snapshot of the subvolume top.
func (st *state) btrfs(top string) (*Snapshot, error) {
	src, err := os.Open(top)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	if n, err := btrfs.Nested(src); err != nil {
		return nil, fmt.Errorf("list subvolumes: %w", err)
	} else if n > 0 {
		return nil, fmt.Errorf("it has %d subvolumes of its own, which a snapshot leaves out (`btrfs subvolume list -o`)", n)
	}
	name := fmt.Sprintf("capture-%d-%d", os.Getpid(), time.Now().UnixNano())
	if err := btrfs.Snapshot(src, st.f, name, true); err != nil {
		return nil, err
	}
	return &Snapshot{Dir: filepath.Join(st.dir, name), Note: "captured from a btrfs snapshot", release: func() error { return st.destroy(name) }}, nil
}

// destroy removes one snapshot.
func (st *state) destroy(name string) error {
	if err := btrfs.Delete(st.f, name); err != nil {
		return fmt.Errorf("in %q: %w", st.dir, err)
	}
	return nil
}
