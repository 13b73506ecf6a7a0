package manifest

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"ingot/internal/entry"
)

// Limits of the format. They are Linux's where it has one.
const (
	MaxName   = 255      // NAME_MAX: bytes of one component
	MaxPath   = 1 << 15  // bytes of a path; longer than PATH_MAX, which trees may exceed
	MaxTarget = 4095     // PATH_MAX less the final NUL: bytes of a symbolic link
	MaxXattr  = 64 << 10 // XATTR_SIZE_MAX: bytes of one value
	MaxChunk  = 4 << 20  // bytes of one chunk, which readers hold in memory
)

// Validate checks everything that Decode promises: the tree can be written
// below one directory without reaching outside it.
func (m *Manifest) Validate() error {
	if len(m.Entries) == 0 || m.Entries[0].Path != "." || m.Entries[0].Type != entry.Dir {
		return errors.New(`validate manifest: the first entry has to be the directory "."`)
	}
	dirs := []string{"."} // the directories that the entry is in
	for i := range m.Entries {
		e := &m.Entries[i]
		err := checkEntry(e)
		if err == nil && i > 0 {
			dirs, err = m.checkPlace(i, dirs)
		}
		if err == nil && e.Link != "" {
			err = m.checkLink(i)
		}
		if err != nil {
			return fmt.Errorf("validate manifest: entry %d, %q: %w", i, clip(e.Path), err)
		}
	}
	return nil
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}

// checkPlace checks the order and that the parent is a directory. dirs is the
// chain of directories that the entry before is in, or is.
func (m *Manifest) checkPlace(i int, dirs []string) ([]string, error) {
	e, prev := &m.Entries[i], &m.Entries[i-1]
	if !entry.Before(prev.Path, e.Path) {
		return nil, fmt.Errorf("comes after %q: out of order or twice", clip(prev.Path))
	}
	parent := "."
	if j := strings.LastIndexByte(e.Path, '/'); j >= 0 {
		parent = e.Path[:j]
	}
	for len(dirs) > 0 && dirs[len(dirs)-1] != parent {
		dirs = dirs[:len(dirs)-1]
	}
	if len(dirs) == 0 {
		return nil, errors.New("its parent is not a directory of the manifest")
	}
	if e.Type == entry.Dir {
		dirs = append(dirs, e.Path)
	}
	return dirs, nil
}

func checkEntry(e *entry.Entry) error {
	if err := checkPath(e.Path); err != nil {
		return err
	}
	if e.Type < entry.File || e.Type > entry.FIFO {
		return fmt.Errorf("unknown type %d", e.Type)
	}
	if e.Mode > 07777 {
		return fmt.Errorf("mode %#o", e.Mode)
	}
	device := e.Type == entry.CharDevice || e.Type == entry.BlockDevice
	switch {
	case !device && (e.Major != 0 || e.Minor != 0):
		return errors.New("a device number on what is no device")
	case (e.Type == entry.Symlink) != (e.Target != ""):
		return errors.New("a target belongs to a symbolic link, which has one")
	case len(e.Target) > MaxTarget || strings.IndexByte(e.Target, 0) >= 0:
		return errors.New("impossible target")
	case e.Type != entry.File && (e.Size != 0 || e.Holes != nil || e.Chunks != nil):
		return errors.New("content on what is no file")
	case e.Link != "" && !e.Type.Linkable():
		return errors.New("a directory that is a hard link")
	}
	if err := checkXattrs(e.Xattrs); err != nil {
		return err
	}
	if e.Type == entry.File && e.Link == "" {
		return checkContent(e)
	}
	return nil
}

func checkPath(p string) error {
	if p == "." {
		return nil
	}
	if len(p) > MaxPath {
		return fmt.Errorf("a path of %d bytes", len(p))
	}
	if strings.IndexByte(p, 0) >= 0 {
		return errors.New("NUL in a path")
	}
	for s, more := p, true; more; {
		var name string
		name, s, more = strings.Cut(s, "/")
		if name == "" || name == "." || name == ".." {
			return errors.New("not a clean relative path")
		}
		if len(name) > MaxName {
			return fmt.Errorf("a name of %d bytes", len(name))
		}
	}
	return nil
}

func checkXattrs(xs []entry.Xattr) error {
	for i, x := range xs {
		switch {
		case x.Name == "" || len(x.Name) > MaxName || strings.IndexByte(x.Name, 0) >= 0:
			return fmt.Errorf("xattr name %q", clip(x.Name))
		case len(x.Value) > MaxXattr:
			return fmt.Errorf("xattr %q of %d bytes", x.Name, len(x.Value))
		case i > 0 && xs[i-1].Name >= x.Name:
			return fmt.Errorf("xattr %q out of order or twice", x.Name)
		}
	}
	return nil
}

// checkContent checks that holes and chunks add up to the size.
func checkContent(e *entry.Entry) error {
	if e.Size < 0 {
		return fmt.Errorf("size %d", e.Size)
	}
	sum, end := int64(0), int64(-1)
	for _, h := range e.Holes {
		if h.Off <= end || h.Len <= 0 || h.Off < 0 || h.Off > math.MaxInt64-h.Len || h.Off+h.Len > e.Size {
			return fmt.Errorf("hole of %d bytes at %d: empty, touching, out of order or out of the file", h.Len, h.Off)
		}
		end = h.Off + h.Len
		sum += h.Len // cannot overflow: holes do not overlap
	}
	for _, c := range e.Chunks {
		if c.Size == 0 || c.Size > MaxChunk {
			return fmt.Errorf("a chunk of %d bytes", c.Size)
		}
		if sum > math.MaxInt64-int64(c.Size) {
			return errors.New("more content than a file can have")
		}
		sum += int64(c.Size)
	}
	if sum != e.Size {
		return fmt.Errorf("size %d, but holes and chunks are %d", e.Size, sum)
	}
	return nil
}

// checkLink checks a hard link against the earlier file that it names.
func (m *Manifest) checkLink(i int) error {
	e := &m.Entries[i]
	if e.Holes != nil || e.Chunks != nil {
		return errors.New("a hard link with content of its own")
	}
	if !entry.Before(e.Link, e.Path) {
		return fmt.Errorf("link to %q, which is not earlier", clip(e.Link))
	}
	// Lookup sees only what is sorted, and that is all before i.
	before := Manifest{Entries: m.Entries[:i]}
	to, ok := before.Lookup(e.Link)
	switch {
	case !ok:
		return fmt.Errorf("link to %q, which is not there", clip(e.Link))
	case to.Type != e.Type || to.Link != "":
		return fmt.Errorf("link to %q, which is not the first name of such an entry", clip(e.Link))
	case to.Size != e.Size || to.Target != e.Target || to.Major != e.Major || to.Minor != e.Minor || !entry.SameMeta(to, e):
		return fmt.Errorf("link to %q, whose metadata is different", clip(e.Link))
	}
	return nil
}
