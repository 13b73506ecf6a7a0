package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"ingot/internal/digest"
	"ingot/internal/durable"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// FileCache is a MetaCache in a file. Its Record is meant for Captured and
// OnWritten; Save keeps what was recorded since it was opened, and forgets
// the rest. It only ever saves time: a file that is damaged, or of another
// version, is an empty cache.
type FileCache struct {
	path string
	read chan struct{}  // closed when old is there
	old  []cached       // by path
	at   map[uint64]int // of old, by inode number: of hard links one

	mu   sync.Mutex
	kept []bool            // of old: recorded as it is
	now  map[string]cached // recorded, and not in old or otherwise
}

type cached struct {
	path   string
	st     entry.Stat
	xattrs []entry.Xattr
	holes  []entry.Extent
	chunks []entry.Chunk
}

const cacheMagic = "INGOTFC2"

// OpenCache opens the cache at path; there need not be one. It is read while
// the caller does other things.
func OpenCache(path string) (*FileCache, error) {
	f, err := os.Open(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	c := &FileCache{path: path, read: make(chan struct{}), now: map[string]cached{}}
	go func() {
		defer close(c.read)
		if f == nil {
			return
		}
		defer f.Close()
		if raw, err := readWhole(f); err == nil {
			c.old, _ = decodeCache(raw) // nil where it is damaged
		}
		c.kept = make([]bool, len(c.old))
		c.at = make(map[uint64]int, len(c.old))
		for i := range c.old {
			c.at[c.old[i].st.Ino] = i
		}
	}()
	return c, nil
}

func readWhole(f *os.File) ([]byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, st.Size())
	_, err = io.ReadFull(f, b)
	return b, err
}

// find finds a path; where it still is the inode that it was, at once.
func (c *FileCache) find(path string, st entry.Stat) (int, bool) {
	<-c.read
	if i, ok := c.at[st.Ino]; ok && c.old[i].path == path {
		return i, true
	}
	return slices.BinarySearchFunc(c.old, path, func(k cached, p string) int { return strings.Compare(k.path, p) })
}

func (c *FileCache) known(path string, st entry.Stat) *cached {
	if i, ok := c.find(path, st); ok && c.old[i].st == st {
		return &c.old[i]
	}
	return nil
}

// Lookup implements Cache.
func (c *FileCache) Lookup(path string, st entry.Stat) ([]entry.Extent, []entry.Chunk, bool) {
	if k := c.known(path, st); k != nil {
		return k.holes, k.chunks, true
	}
	return nil, nil, false
}

// Xattrs implements MetaCache.
func (c *FileCache) Xattrs(path string, st entry.Stat) ([]entry.Xattr, bool) {
	if k := c.known(path, st); k != nil {
		return k.xattrs, true
	}
	return nil, false
}

// Record notes that path in the state st has the content and the extended attributes of e.
func (c *FileCache) Record(path string, st entry.Stat, e *entry.Entry) {
	k := cached{path, st, e.Xattrs, e.Holes, e.Chunks}
	i, known := c.find(path, st)
	same := known && c.old[i].same(&k)
	c.mu.Lock()
	defer c.mu.Unlock()
	if known {
		c.kept[i] = same
	}
	if same {
		delete(c.now, path)
	} else {
		c.now[path] = k
	}
}

func (k *cached) same(o *cached) bool {
	return k.st == o.st && slices.Equal(k.xattrs, o.xattrs) && slices.Equal(k.holes, o.holes) && slices.Equal(k.chunks, o.chunks)
}

// Save writes what was recorded, unless the file says so already.
func (c *FileCache) Save() error {
	<-c.read
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.now) == 0 && len(c.old) > 0 && !slices.Contains(c.kept, false) {
		return nil
	}
	if err := durable.WriteFile(c.path, encodeCache(c.all()), 0600); err != nil {
		return fmt.Errorf("save cache: %w", err)
	}
	return nil
}

// all returns what is to be saved, by path.
func (c *FileCache) all() []*cached {
	all := make([]*cached, 0, len(c.old)+len(c.now))
	now := slices.Sorted(maps.Keys(c.now))
	next := func(before string) {
		for len(now) > 0 && (before == "" || now[0] < before) {
			k := c.now[now[0]]
			all, now = append(all, &k), now[1:]
		}
	}
	for i, kept := range c.kept {
		if kept {
			next(c.old[i].path)
			all = append(all, &c.old[i])
		}
	}
	next("")
	return all
}

// encodeCache encodes files, which are sorted by path.
func encodeCache(files []*cached) []byte {
	b := append(make([]byte, 0, 64+len(files)*160), cacheMagic...)
	put := func(v uint64) { b = binary.AppendUvarint(b, v) }
	text := func(s string) { put(uint64(len(s))); b = append(b, s...) }
	put(uint64(len(files)))
	for _, k := range files {
		text(k.path)
		for _, v := range []uint64{k.st.Dev, k.st.Ino, uint64(k.st.Size), uint64(k.st.MTime), uint64(k.st.CTime), k.st.Nlink, uint64(len(k.xattrs))} {
			put(v)
		}
		for _, x := range k.xattrs {
			text(x.Name)
			text(x.Value)
		}
		put(uint64(len(k.holes)))
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

func decodeCache(b []byte) ([]cached, error) {
	body, ok := strings.CutPrefix(unsafe.String(unsafe.SliceData(b), len(b)), cacheMagic) // b is ours, and stays as it is
	if !ok || len(body) < digest.Size {
		return nil, errors.New("no cache")
	}
	if digest.Of(b[:len(b)-digest.Size]) != digest.ID(b[len(b)-digest.Size:]) {
		return nil, errors.New("wrong checksum")
	}
	r := &cacheReader{s: body[:len(body)-digest.Size]}
	files := make([]cached, r.count(10))
	var slab []entry.Chunk // of many files: they go together
	for i := range files {
		k := &files[i]
		k.path = r.str(r.uint())
		if i > 0 && k.path <= files[i-1].path {
			return nil, errors.New("not in order")
		}
		k.st = entry.Stat{Dev: r.uint(), Ino: r.uint(), Size: int64(r.uint()), MTime: int64(r.uint()), CTime: int64(r.uint()), Nlink: r.uint()}
		for range r.count(2) {
			k.xattrs = append(k.xattrs, entry.Xattr{Name: r.str(r.uint()), Value: r.str(r.uint())})
		}
		for range r.count(2) {
			k.holes = append(k.holes, entry.Extent{Off: int64(r.uint()), Len: int64(r.uint())})
		}
		n := r.count(digest.Size + 1)
		if n > len(slab) {
			slab = make([]entry.Chunk, max(n, 4096))
		}
		if k.chunks, slab = slab[:n:n], slab[n:]; n == 0 {
			k.chunks = nil
		}
		for j := range k.chunks {
			copy(k.chunks[j].ID[:], r.str(digest.Size))
			k.chunks[j].Size = uint32(min(r.uint(), manifest.MaxChunk))
		}
	}
	if r.bad || r.s != "" {
		return nil, errors.New("damaged")
	}
	return files, nil
}
