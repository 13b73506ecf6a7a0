// Package tree turns directories into manifests and chunks, and back. Capture
// reads a tree as it is; Write makes it again in an empty directory.
package tree

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

// Sink takes the chunks of a capture: a store, or the other end of a wire.
// Chunks come in the order of the tree, from one goroutine; questions come from
// several, while others wait for their answer and while chunks are put.
type Sink interface {
	// Missing returns those of ids that have to be put.
	Missing(ctx context.Context, ids []digest.ID) ([]digest.ID, error)
	// Put takes one chunk; data may not be kept.
	Put(ctx context.Context, id digest.ID, data []byte) error
}

// Source gives the chunks of a write. It calls fn once for each distinct one
// of ids, from several goroutines at once; data is verified, and valid only
// until fn returns.
type Source interface {
	Fetch(ctx context.Context, ids []digest.ID, fn func(id digest.ID, data []byte) error) error
}

// Cache knows the content of files from an earlier capture: when path still
// is in the state st, its holes and chunks. It is asked from several
// goroutines at once.
type Cache interface {
	Lookup(path string, st entry.Stat) (holes []entry.Extent, chunks []entry.Chunk, ok bool)
}

// MetaCache is a Cache that knows the extended attributes of files, too. Who
// changes these changes the ctime, which is part of the state (inode(7)).
type MetaCache interface {
	Cache
	Xattrs(path string, st entry.Stat) (xattrs []entry.Xattr, ok bool)
}

// CaptureOptions say what to capture, and where its chunks go.
type CaptureOptions struct {
	// Exclude says what to leave out; path is relative to the top, and "."
	// is never asked for. ingot's own /.ingot is always left out.
	Exclude func(path string, isDir bool) bool
	// Within says whether a directory that Exclude leaves out may have
	// something in it that is not left out; nil: never. Such a directory is
	// recorded when something in it is.
	Within func(path string) bool
	// Blank says which files are recorded empty. nil: none.
	Blank func(path string) bool
	// AllowChanged says what may change while it is captured. It is taken as
	// it came, and noted. nil: nothing.
	AllowChanged func(path string) bool
	// Sink takes the chunks that it misses. nil: only hash.
	Sink  Sink
	Cache Cache
	// OneFileSystem records mount points as empty directories (files:
	// empty files) instead of what is mounted there.
	OneFileSystem bool
	// Cross says which mount points are entered in spite of OneFileSystem. nil: none.
	Cross func(path string) bool
	// Parallel is how many files are read at once; 0: two a processor.
	Parallel int
	// Scanned is told once, before contents are read, how much there is.
	Scanned func(entries int, bytes int64)
	// Progress is told how many bytes and files have been read or found in
	// the cache. It is called from one goroutine.
	Progress func(bytes, files int64)
	// Captured is told of each file whose state is true to its entry, to
	// fill a Cache. It is called from several goroutines at once.
	Captured func(path string, st entry.Stat, e *entry.Entry)
	Log      *slog.Logger

	pauses    []time.Duration // before what has changed is captured again; nil: pauses()
	lookAgain bool            // even where the states prove enough
}

// Stats say what a capture saw.
type Stats struct {
	Entries  int
	Files    int   // regular files, hard links once
	Cached   int   // of these, known from the cache and not read
	Bytes    int64 // of content, holes left out
	Read     int64 // of these, read
	Chunks   int   // distinct ones, as far as the sink was asked
	New      int   // of these, put
	NewBytes int64
	Excluded int      // entries left out (a directory counts as one)
	Sockets  []string // skipped
	Mounts   []string // recorded empty
	Retried  int      // reads that had to be repeated because the file changed
	Again    int      // how often what had changed was captured again
	Changed  []string // changed while they were captured, as they may
}

// Notes says for people what a capture took differently, an entry a line.
func (s Stats) Notes() []string {
	var out []string
	for _, path := range s.Sockets {
		out = append(out, fmt.Sprintf("%q is a socket: skipped", path))
	}
	for _, path := range s.Mounts {
		out = append(out, fmt.Sprintf("%q is a mount point: kept empty", path))
	}
	for _, path := range s.Changed {
		out = append(out, fmt.Sprintf("%q changed while it was captured", path))
	}
	return out
}

// WriteOptions say how to write a tree.
type WriteOptions struct {
	// Parallel is how many goroutines make what is not a file with content;
	// how many write files, the Source decides. 0: one a processor.
	Parallel int
	// Progress is told how many bytes and entries have been written. It may
	// be called from several goroutines at once.
	Progress func(bytes, entries int64)
	// OnWritten is told the final state of each regular file.
	OnWritten func(path string, st entry.Stat)
	// Lossy goes on where owners, attributes or devices are not permitted or
	// not supported, and tells Lost. It is implied when not root.
	Lossy bool
	// Lost is told what could not be restored, from several goroutines.
	Lost func(path string, err error)
	// Mounted are directories, as paths in the tree, that are there already with
	// what leads to them: other file systems are mounted there.
	Mounted []string
	// Sync makes the tree durable (syncfs) before Write returns.
	Sync bool
	Log  *slog.Logger
}

// own is where ingot keeps its things at the top of a tree.
const own = ".ingot"
