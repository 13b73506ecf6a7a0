package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"ingot/internal/digest"
	"ingot/internal/durable"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// FileCache is a Cache in a file. Its Record is meant for Captured and
// OnWritten; Save keeps what was recorded since it was opened, and forgets
// the rest. It only ever saves time: a file that is damaged, or of another
// version, is an empty cache.
type FileCache struct {
	path string
	old  map[string]cached

	mu    sync.Mutex
	now   map[string]cached
	other bool // something was recorded that the file does not say
}

type cached struct {
	st     entry.Stat
	holes  []entry.Extent
	chunks []entry.Chunk
}

const cacheMagic = "INGOTFC1"

// OpenCache reads the cache at path; there need not be one.
func OpenCache(path string) (*FileCache, error) {
	c := &FileCache{path: path, now: map[string]cached{}}
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	if c.old, err = decodeCache(raw); err != nil {
		c.old = nil
	}
	return c, nil
}

// Lookup implements Cache.
func (c *FileCache) Lookup(path string, st entry.Stat) ([]entry.Extent, []entry.Chunk, bool) {
	k, ok := c.old[path]
	if !ok || k.st != st {
		return nil, nil, false
	}
	return k.holes, k.chunks, true
}

// Record notes that path in the state st has the content of e.
func (c *FileCache) Record(path string, st entry.Stat, e *entry.Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := cached{st, e.Holes, e.Chunks}
	c.now[path] = k
	if old, ok := c.old[path]; !c.other && !(ok && old.st == st && slices.Equal(old.holes, k.holes) && slices.Equal(old.chunks, k.chunks)) {
		c.other = true
	}
}

// Save writes what was recorded, unless the file says so already.
func (c *FileCache) Save() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.other && len(c.now) == len(c.old) && len(c.old) > 0 {
		return nil
	}
	if err := durable.WriteFile(c.path, encodeCache(c.now), 0600); err != nil {
		return fmt.Errorf("save cache: %w", err)
	}
	return nil
}

func encodeCache(files map[string]cached) []byte {
	paths := make([]string, 0, len(files))
	for p := range files {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	b := append(make([]byte, 0, 64+len(paths)*160), cacheMagic...)
	put := func(v uint64) { b = binary.AppendUvarint(b, v) }
	put(uint64(len(paths)))
	for _, p := range paths {
		k := files[p]
		put(uint64(len(p)))
		b = append(b, p...)
		for _, v := range []uint64{k.st.Dev, k.st.Ino, uint64(k.st.Size), uint64(k.st.MTime), uint64(k.st.CTime), k.st.Nlink, uint64(len(k.holes))} {
			put(v)
		}
		for _, h := range k.holes {
			put(uint64(h.Off))
			put(uint64(h.Len))
		}
		put(uint64(len(k.chunks)))
		for _, ch := range k.chunks {
			b = append(b, ch.ID[:]...)
			put(uint64(ch.Size))
		}
	}
	sum := digest.Of(b)
	return append(b, sum[:]...)
}

// cacheReader reads numbers and strings until something is wrong.
type cacheReader struct {
	s   string
	bad bool
}

func (r *cacheReader) uint() uint64 {
	var v uint64
	for i := range len(r.s) {
		if i == binary.MaxVarintLen64 {
			break
		}
		v |= uint64(r.s[i]&0x7f) << (7 * i)
		if r.s[i] < 0x80 {
			r.s = r.s[i+1:]
			return v
		}
	}
	r.bad, r.s = true, ""
	return 0
}

func (r *cacheReader) str(n uint64) string {
	if n > uint64(len(r.s)) {
		r.bad, r.s = true, ""
		return ""
	}
	out := r.s[:n]
	r.s = r.s[n:]
	return out
}

// count reads the number of things that take at least size bytes each.
func (r *cacheReader) count(size int) int {
	n := r.uint()
	if n > uint64(len(r.s)/size) {
		r.bad, r.s = true, ""
		return 0
	}
	return int(n)
}

func decodeCache(b []byte) (map[string]cached, error) {
	body, ok := strings.CutPrefix(string(b), cacheMagic)
	if !ok || len(body) < digest.Size {
		return nil, errors.New("no cache")
	}
	if digest.Of(b[:len(b)-digest.Size]) != digest.ID(b[len(b)-digest.Size:]) {
		return nil, errors.New("wrong checksum")
	}
	r := &cacheReader{s: body[:len(body)-digest.Size]}
	n := r.count(10)
	files := make(map[string]cached, n)
	for range n {
		path := r.str(r.uint())
		var k cached
		k.st = entry.Stat{Dev: r.uint(), Ino: r.uint(), Size: int64(r.uint()), MTime: int64(r.uint()), CTime: int64(r.uint()), Nlink: r.uint()}
		for range r.count(2) {
			k.holes = append(k.holes, entry.Extent{Off: int64(r.uint()), Len: int64(r.uint())})
		}
		if n := r.count(digest.Size + 1); n > 0 {
			k.chunks = make([]entry.Chunk, n)
		}
		for i := range k.chunks {
			copy(k.chunks[i].ID[:], r.str(digest.Size))
			k.chunks[i].Size = uint32(min(r.uint(), manifest.MaxChunk))
		}
		files[path] = k
	}
	if r.bad || r.s != "" {
		return nil, errors.New("damaged")
	}
	return files, nil
}
