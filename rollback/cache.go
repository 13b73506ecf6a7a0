package rollback

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
	"time"

	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/slogx"
)

// cacheMagic begins the stat cache: a generation number, then path and Stat
// of each file, all numbers varints, and a CRC-32C of it all.
const cacheMagic = "ingot statcache 1\n"

// settled is how long a file must not have been written for its inode to be
// trusted: a write within the resolution of the clock leaves no trace.
const settled = 2 * time.Second

// trustable picks the files whose inode says all: unwritten since it got the
// time that the manifest says, and that some time ago. Writing sets the time
// to now; setting it back leaves its mark in the ctime.
func trustable(m *manifest.Manifest, stats map[string]entry.Stat, now time.Time) map[string]entry.Stat {
	out := make(map[string]entry.Stat, len(stats))
	for path, st := range stats {
		if e, ok := m.Lookup(path); ok && e.Type == entry.File && unwritten(e, st, now) {
			out[path] = st
		}
	}
	return out
}

func unwritten(e *entry.Entry, st entry.Stat, now time.Time) bool {
	return st.Size == e.Size && st.MTime == e.ModTime && st.MTime < now.Add(-settled).UnixNano()
}

// writeCache replaces the stat cache.
func (n *Node) writeCache(gen int, stats map[string]entry.Stat) error {
	return n.writeState(in("statcache"), encodeCache(gen, stats))
}

func encodeCache(gen int, stats map[string]entry.Stat) []byte {
	w := &writer{b: []byte(cacheMagic)}
	w.uint(uint64(gen))
	w.uint(uint64(len(stats)))
	paths := make([]string, 0, len(stats))
	for p := range stats {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		w.text(p)
		w.stat(stats[p])
	}
	return binary.LittleEndian.AppendUint32(w.b, crc32.Checksum(w.b, castagnoli()))
}

// readCache returns the stat cache of a generation; an absent, damaged or
// older one is empty, which costs time and nothing else.
func (n *Node) readCache(gen int) map[string]entry.Stat {
	b, err := n.readState(in("statcache"))
	if err != nil {
		return nil
	}
	of, stats, ok := decodeCache(b)
	if !ok {
		n.log().Warn("stat cache is damaged: ignored", slogx.Path, in("statcache"))
		return nil
	}
	if of != gen {
		return nil
	}
	return stats
}

func decodeCache(b []byte) (gen int, stats map[string]entry.Stat, ok bool) {
	end := len(b) - 4
	if end < len(cacheMagic) || string(b[:len(cacheMagic)]) != cacheMagic ||
		binary.LittleEndian.Uint32(b[end:]) != crc32.Checksum(b[:end], castagnoli()) {
		return 0, nil, false
	}
	r := &reader{b: b[len(cacheMagic):end]}
	gen = int(r.uint())
	count := r.uint()
	stats = make(map[string]entry.Stat, min(count, 1<<20))
	for range count {
		p := r.text()
		stats[p] = r.stat()
		if r.bad {
			return 0, nil, false
		}
	}
	return gen, stats, !r.bad && len(r.b) == 0
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
	stats := n.readCache(cur.Number)
	if len(stats) == 0 {
		return none, nil
	}
	m, err := n.Manifest(cur.Number)
	if err != nil {
		return none, err
	}
	return func(path string, st entry.Stat) (*entry.Entry, bool) {
		if known, ok := stats[path]; !ok || known != st {
			return nil, false
		}
		e, ok := m.Lookup(path)
		if ok && e.Link != "" {
			e, ok = m.Lookup(e.Link)
		}
		return e, ok && e.Type == entry.File
	}, nil
}
