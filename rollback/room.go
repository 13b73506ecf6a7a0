package rollback

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// room is what staging takes on one file system.
type room struct{ bytes, inodes int64 }

// measure adds up what staging takes, and on one volume the copy of a pair, in bytes.
func (p *Plan) measure(pair int64, vol int) {
	const block = 4096
	up := func(n int64) int64 { return (n + block - 1) / block * block }
	p.room = make([]room, max(len(p.vols), 1))
	for i := range p.room {
		p.room[i] = room{64 << 10, 16}
	}
	p.room[vol].bytes += pair
	if p.live != nil { // two manifests and the journal, generously
		p.room[0].bytes += int64(max(len(p.base.m.Entries), len(p.live.items))) * 300
	}
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.Kind != Replace && s.Kind != Add || s.link != s.slot {
			continue
		}
		if _, linked := p.links[s.slot]; linked {
			continue
		}
		x := &p.room[s.vol]
		x.inodes++
		x.bytes += block
		if s.content != nil {
			for _, c := range s.content.Chunks {
				x.bytes += int64(c.Size)
			}
			x.bytes = up(x.bytes - p.adopt[s.slot].bytes) // what is there already takes no more
		}
	}
	p.Bytes, p.Inodes = 0, 0
	for _, x := range p.room {
		p.Bytes, p.Inodes = p.Bytes+x.bytes, p.Inodes+x.inodes
	}
}

// Free returns what the file system of the tree's top has left.
func (n *Node) Free() (bytes, inodes int64, err error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(n.top, &st); err != nil {
		return 0, 0, fmt.Errorf("statfs %q: %w", n.path, err)
	}
	inodes = int64(st.Ffree)
	if st.Files == 0 { // btrfs and others make inodes as they go
		inodes = 1 << 40
	}
	return int64(st.Bavail) * st.Bsize, inodes, nil
}

// fits checks that there is room on every volume. What an interrupted stage
// left goes first where it is in the way and of no use.
func (r reach) fits(p *Plan) error {
	for last := len(p.adopt) > 0; ; last = true {
		full, err := r.full(p)
		if err != nil || full == nil {
			return err
		}
		if last {
			return full
		}
		if err := r.clearStages(""); err != nil {
			return err
		}
	}
}

// full returns what the first volume lacks that has not enough room.
func (r reach) full(p *Plan) (*SpaceError, error) {
	top := room{p.Bytes, p.Inodes}
	for _, x := range p.room[1:] {
		top.bytes, top.inodes = top.bytes-x.bytes, top.inodes-x.inodes
	}
	for i := range r {
		bytes, inodes, err := r[i].Free()
		if err != nil {
			return nil, err
		}
		need := top
		if i > 0 {
			need = p.room[i]
		}
		if need.bytes > bytes || need.inodes > inodes {
			return &SpaceError{Path: r[i].path, Bytes: need.bytes, FreeBytes: bytes, Inodes: need.inodes, FreeInodes: inodes}, nil
		}
	}
	return nil, nil
}
