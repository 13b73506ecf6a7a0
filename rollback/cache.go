package rollback

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/slogx"
)

// cacheMagic begins the stat cache: the generation, the digest of its as-done
// manifest, how many of its entries are known; then for each of these how many
// entries come between it and the one before, 1 when the metadata can be
// trusted too, and its state; all numbers varints, many of them differences to
// the one before. A CRC-32C of it all ends it.
const cacheMagic = "ingot statcache 2\n"

// settled is how long an inode must not have been changed to be trusted: a
// change within the resolution of the clock leaves no trace.
const settled = 2 * time.Second

// known is a state in which an inode has what the manifest says.
type known struct {
	entry.Stat      // Ino 0: no state is known
	meta       bool // in metadata too, attributes and link target included
}

// states are those of the entries of a manifest, in its order. The zero value knows none.
type states []known

// of returns the state of entry i, which may be -1.
func (s states) of(i int) known {
	if i < 0 || i >= len(s) {
		return known{}
	}
	return s[i]
}

// trust says what an inode in state st, which has the content and perhaps the
// metadata of e, can be trusted for: of content when it was not written since
// it got the time that the manifest says, and that some time ago. Writing sets
// the time to now; setting it back leaves its mark in the ctime. Metadata
// leaves no mark but that. when is before st was taken.
func trust(e *entry.Entry, st entry.Stat, meta bool, when time.Time) known {
	before := when.Add(-settled).UnixNano()
	k := known{st, meta && st.CTime < before}
	if st.MTime != e.ModTime || st.MTime >= before || e.Type == entry.File && st.Size != e.Size || e.Type != entry.File && !k.meta {
		return known{}
	}
	return k
}

// trustable picks the states that can be trusted from those that somebody else
// took while it read the tree. Of metadata they say nothing.
func trustable(m *manifest.Manifest, stats map[string]entry.Stat, when time.Time) states {
	out := make(states, len(m.Entries))
	for i := range m.Entries {
		e := &m.Entries[i]
		if st, ok := stats[e.Path]; ok {
			out[i] = trust(e, st, true, when)
		}
	}
	return out
}

// writeCache replaces the stat cache.
func (n *Node) writeCache(gen int, id digest.ID, m *manifest.Manifest, s states) error {
	return n.writeState(in("statcache"), encodeCache(gen, id, m, s))
}

func encodeCache(gen int, id digest.ID, m *manifest.Manifest, s states) []byte {
	count := 0
	for i := range s {
		if s[i].Ino != 0 {
			count++
		}
	}
	w := &writer{b: make([]byte, 0, 64+16*count)}
	w.b = append(w.b, cacheMagic...)
	w.uint(uint64(gen))
	w.id(id)
	w.uint(uint64(count))
	last, at := entry.Stat{}, -1
	for i := range s {
		k := &s[i]
		if k.Ino == 0 {
			continue
		}
		flags := uint64(0)
		if k.meta {
			flags = 1
		}
		w.uint(uint64(i-at-1)<<1 | flags)
		w.int(int64(k.Dev - last.Dev))
		w.int(int64(k.Ino - last.Ino))
		w.int(k.CTime - last.CTime)
		w.uint(k.Nlink)
		if m.Entries[i].Type != entry.File {
			w.uint(uint64(k.Size))
		}
		last, at = k.Stat, i
	}
	return binary.LittleEndian.AppendUint32(w.b, crc32.Checksum(w.b, castagnoli()))
}

// readCache returns the stat cache of a generation with its manifest; an
// absent, damaged or older one is empty, which costs time and nothing else.
func (n *Node) readCache(g Generation, m *manifest.Manifest) states {
	b, err := n.readState(in("statcache"))
	if err != nil {
		return nil
	}
	gen, id, s, ok := decodeCache(b, m, func(gen int, id digest.ID) bool { return gen == g.Number && id == g.Manifest })
	if !ok && (gen == 0 || gen == g.Number && id == g.Manifest) {
		n.log().Warn("stat cache is damaged: ignored", slogx.Path, in("statcache"))
	}
	if s == nil {
		return nil
	}
	if s, err = n.renumber(s, g, m); err != nil {
		return nil
	}
	return s
}

// renumber gives the file systems of the tree the numbers that they have now.
// A volume that cannot be looked at has nothing that is known.
func (n *Node) renumber(s states, g Generation, m *manifest.Manifest) (states, error) {
	var top unix.Stat_t
	if err := unix.Fstat(n.top, &top); err != nil {
		return nil, err
	}
	if len(g.Volumes) == 0 {
		s.moved(uint64(top.Dev), func(int) bool { return true })
		return s, nil
	}
	on := make([]int32, len(s)) // the volume of each entry
	x := indexOf(m)
	for v, vol := range g.Volumes { // what is mounted in another one comes after it
		if i := x.at(string(vol.At)); i >= 0 {
			for j := i; j < int(x.end[i]); j++ {
				on[j] = int32(v + 1)
			}
		}
	}
	for v := range len(g.Volumes) + 1 {
		dev := uint64(top.Dev)
		if v > 0 {
			st, err := entry.StatAt(n.top, string(g.Volumes[v-1].At))
			if err != nil {
				continue
			}
			dev = st.Dev
		}
		s.moved(dev, func(i int) bool { return int(on[i]) == v })
	}
	return s, nil
}

// moved gives those on one file system the number that it has now: btrfs
// takes another at each mount, and disks change places. Inodes with their
// ctimes tell one file system from another well enough.
func (s states) moved(dev uint64, on func(i int) bool) {
	was, seen := dev, false
	for i := range s {
		switch {
		case s[i].Ino == 0 || !on(i):
		case !seen:
			was, seen = s[i].Dev, true
			fallthrough
		case s[i].Dev == was:
			s[i].Dev = dev
		}
	}
}

// decodeCache reads a stat cache if it is the one of m, as mine says.
func decodeCache(b []byte, m *manifest.Manifest, mine func(gen int, id digest.ID) bool) (gen int, id digest.ID, s states, ok bool) {
	end := len(b) - 4
	if end < len(cacheMagic) || string(b[:len(cacheMagic)]) != cacheMagic ||
		binary.LittleEndian.Uint32(b[end:]) != crc32.Checksum(b[:end], castagnoli()) {
		return 0, id, nil, false
	}
	r := &reader{b: b[len(cacheMagic):end]}
	gen, id = int(r.uint()), r.id()
	if r.bad || !mine(gen, id) {
		return gen, id, nil, false
	}
	s = make(states, len(m.Entries))
	last, at := entry.Stat{}, -1
	for left := r.uint(); left > 0 && !r.bad; left-- {
		v := r.uint()
		if v>>1 >= uint64(len(s)-at-1) {
			r.fail()
			break
		}
		at += int(v>>1) + 1
		e := &m.Entries[at]
		st := entry.Stat{Dev: last.Dev + uint64(r.int()), Ino: last.Ino + uint64(r.int()), MTime: e.ModTime, Size: e.Size}
		st.CTime, st.Nlink = last.CTime+r.int(), r.uint()
		if e.Type != entry.File {
			st.Size = int64(r.uint())
		}
		if st.Ino == 0 {
			r.fail()
		}
		s[at], last = known{st, v&1 == 1}, st
	}
	if r.bad || len(r.b) > 0 {
		return gen, id, nil, false
	}
	return gen, id, s, true
}

// Unchanged returns a look-up of files that are known to hold what the
// present generation's manifest says, by path and inode state: whoever reads
// the tree need not read them. A tree without generations knows none.
func (n *Node) Unchanged() (func(path string, st entry.Stat) (*entry.Entry, bool), error) {
	none := func(string, entry.Stat) (*entry.Entry, bool) { return nil, false }
	cur, err := n.Current()
	if errors.Is(err, ErrNoGeneration) {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	m, err := n.Manifest(cur.Number)
	if err != nil {
		return none, err
	}
	cache, at := n.readCache(cur, m), indexOf(m)
	return func(path string, st entry.Stat) (*entry.Entry, bool) {
		i := at.at(path)
		if was := cache.of(i); was.Ino == 0 || was.Stat != st || m.Entries[i].Type != entry.File {
			return nil, false
		}
		return at.content(&m.Entries[i]), true
	}, nil
}

// Remember notes what a plan that found nothing to do learned of inodes which
// the last switch had just touched when it looked: their metadata needs not be
// read again. It does so where that is worth a write; that it cannot is no failure.
func (n *Node) Remember(p *Plan) {
	s := p.scan
	if !p.Empty() || p.Base == 0 || s == nil || s.rules.only != nil {
		return
	}
	out, learned := s.learn(p.live)
	if learned < worthWriting {
		return
	}
	unlock, err := n.lockIdle("remember")
	if err != nil {
		return
	}
	defer unlock()
	g, err := n.Current()
	if err != nil || g.Number != p.Base || !g.covers().all {
		return
	}
	if err := n.writeCache(g.Number, g.Manifest, s.base.m, out); err != nil {
		n.log().Warn("the stat cache could not be renewed", slogx.Err, err)
	}
}

// worthWriting is how many entries more have to be known for the cache to be written anew.
const worthWriting = 200

// learn says what can be trusted of a tree that is what base says, and how much of it is new.
func (s *scanner) learn(l *live) (out states, learned int) {
	out = make(states, len(s.base.m.Entries))
	lives := l.items
	for i := range out {
		e := &s.base.m.Entries[i]
		for len(lives) > 0 && entry.Before(lives[0].Path, e.Path) {
			lives = lives[1:]
		}
		if len(lives) == 0 || lives[0].Path != e.Path {
			continue
		}
		out[i] = s.trusts(lives[0], e, lives[0].sameBase)
		if was := s.cache.of(i); out[i].Ino != 0 && (was.Stat != out[i].Stat || out[i].meta && !was.meta) {
			learned++
		}
	}
	return out, learned
}
