// Package entry describes what one file-system entry is, and reads and sets its metadata.
package entry

import "ingot/internal/digest"

// Type is the kind of a file-system entry. Sockets have none: they are skipped with a note.
type Type uint8

// The kinds. Their values are part of the manifest format (docs/FORMAT.md).
const (
	File Type = iota + 1
	Dir
	Symlink
	CharDevice
	BlockDevice
	FIFO
)

// Linkable reports whether entries of this type can have several names.
func (t Type) Linkable() bool { return t != Dir }

// Entry is one entry of a tree. Path is relative to the top of the tree,
// slash-separated, raw bytes (not necessarily UTF-8); the top itself is ".".
type Entry struct {
	Path    string
	Type    Type
	Mode    uint32 // permission, setuid, setgid and sticky bits: st_mode & 07777
	UID     uint32
	GID     uint32
	ModTime int64 // nanoseconds since the Unix epoch; zero-width for no type
	Size    int64 // bytes; File only (a symlink's length is len(Target))

	Target string // Symlink: what it points to
	Major  uint32 // CharDevice, BlockDevice
	Minor  uint32

	// Xattrs are sorted by name; POSIX ACLs, capabilities and labels are among them.
	Xattrs []Xattr

	// Link, when not empty, is the path of an earlier entry of the same tree
	// (in tree order) that this name is a hard link to: anything but a
	// directory. Such an entry repeats the type, metadata, target and numbers
	// of the first, and has neither Holes nor Chunks.
	Link string

	// Holes of a sparse file, sorted, not touching. Chunks hold the bytes
	// between the holes, one after another.
	Holes  []Extent
	Chunks []Chunk
}

// Xattr is one extended attribute.
type Xattr struct {
	Name  string
	Value string // raw bytes
}

// Extent is a range of a file in bytes.
type Extent struct {
	Off int64
	Len int64
}

// Chunk is one piece of a file's content.
type Chunk struct {
	ID   digest.ID
	Size uint32 // bytes
}

// Stat is what identifies a state of an inode: when all of it is unchanged,
// the content is taken to be unchanged too (ctime cannot be set by user space).
type Stat struct {
	Dev   uint64
	Ino   uint64
	Size  int64
	MTime int64 // nanoseconds since the Unix epoch
	CTime int64
	Nlink uint64
}

// Before reports whether path a comes before b in tree order: bytewise by
// component, so that a directory comes right before what is in it, and "." first.
func Before(a, b string) bool {
	if a == b || b == "." {
		return false
	}
	if a == "." {
		return true
	}
	for i := 0; i < len(a) && i < len(b); i++ {
		if a[i] == b[i] {
			continue
		}
		if a[i] == '/' {
			return true
		}
		if b[i] == '/' {
			return false
		}
		return a[i] < b[i]
	}
	return len(a) < len(b)
}
