package imager

import (
	"bytes"
	"context"
	"fmt"

	"ingot/imager/chunk"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// maxOverlay bounds the content of a node's overlay, in bytes: it travels with
// the profile and is held in memory. Larger things belong into the image.
const maxOverlay = 64 << 20

// OverlayFile is a file, or a symlink when Target is not empty, that a node has on top of its image.
type OverlayFile struct {
	Path    string // absolute
	Mode    uint32 // permission, setuid, setgid and sticky bits
	UID     uint32
	GID     uint32
	ModTime int64 // nanoseconds since the Unix epoch
	Content []byte
	Target  string
}

// Overlay is what one node has on top of an image: a manifest and the chunks
// that it names.
type Overlay struct {
	Manifest *manifest.Manifest
	Data     map[digest.ID][]byte
}

// NewOverlay makes the overlay of some files.
func NewOverlay(files []OverlayFile) (*Overlay, error) {
	o := &Overlay{Manifest: &manifest.Manifest{}, Data: map[digest.ID][]byte{}}
	empty := &manifest.Manifest{Entries: []entry.Entry{{Path: ".", Type: entry.Dir, Mode: 0o755}}}
	var total int64
	for _, f := range files {
		e := entry.Entry{Path: f.Path[1:], Type: entry.File, Mode: f.Mode, UID: f.UID, GID: f.GID, ModTime: f.ModTime, Size: int64(len(f.Content)), Target: f.Target}
		if f.Target != "" {
			e.Type, e.Mode, e.Size = entry.Symlink, 0o777, 0
		}
		if total += e.Size; total > maxOverlay {
			return nil, fmt.Errorf("overlay: %q brings it over %d bytes: put large files into the image", f.Path, maxOverlay)
		}
		for data := f.Content; len(data) > 0; {
			n := chunk.Cut(data)
			id := digest.Of(data[:n])
			e.Chunks = append(e.Chunks, entry.Chunk{ID: id, Size: uint32(n)})
			o.Data[id] = bytes.Clone(data[:n])
			data = data[n:]
		}
		o.Manifest.Entries = append(o.Manifest.Entries, e)
	}
	o.Manifest.Sort()
	o.Manifest = empty.With(o.Manifest)
	if err := o.Manifest.Validate(); err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	return o, nil
}

// Layered is a source of chunks: those of an overlay from memory, all others
// from what lies below.
type Layered struct {
	Data  map[digest.ID][]byte
	Below Source
}

// Fetch implements Source.
func (l Layered) Fetch(ctx context.Context, ids []digest.ID, fn func(digest.ID, []byte) error) error {
	var below []digest.ID
	for _, id := range ids {
		if data, ok := l.Data[id]; !ok {
			below = append(below, id)
		} else if err := fn(id, data); err != nil {
			return err
		}
	}
	if len(below) == 0 {
		return nil
	}
	return l.Below.Fetch(ctx, below, fn)
}

// Frames implements Framed.
func (l Layered) Frames(ctx context.Context, ids []digest.ID) (frames [][]entry.Chunk, rest []digest.ID, err error) {
	var below []digest.ID
	for _, id := range ids {
		if _, ok := l.Data[id]; ok {
			rest = append(rest, id)
		} else {
			below = append(below, id)
		}
	}
	frames, others, err := framesOf(ctx, l.Below, below)
	return frames, append(rest, others...), err
}

// Frame implements Framed.
func (l Layered) Frame(ctx context.Context, chunks []entry.Chunk, into []byte) ([]byte, error) {
	return l.Below.(Framed).Frame(ctx, chunks, into)
}

// Lay returns the image with an overlay on top. An overlay's directories are
// only the way to its files: those of the image stay as they are.
func Lay(image, overlay *manifest.Manifest) *manifest.Manifest {
	files := &manifest.Manifest{}
	for _, e := range overlay.Entries {
		if e.Type != entry.Dir {
			files.Entries = append(files.Entries, e)
		}
	}
	return image.With(files)
}
