package rollback

import (
	"fmt"
	"strings"

	"ingot/internal/entry"
)

// Change is one step of a plan for people and machines.
type Change struct {
	Kind    Kind
	Path    string
	Why     string // what differs, or where it comes from
	OldSize int64  // bytes of content, 0 for what has none
	NewSize int64

	Dev, Ino uint64 // of the inode that is displaced or changed, when it was scanned; 0 where there is none
}

// Changes itemises the plan, but for directory times: those follow from the others.
// Of one for the other side it says what differs from the side that runs.
func (p *Plan) Changes() []Change {
	if p.shown != nil {
		return p.shown
	}
	where := "the image"
	if p.To != 0 {
		where = fmt.Sprintf("generation %d", p.To)
	}
	if p.Repair {
		where = fmt.Sprintf("generation %d", p.Base)
	}
	var out []Change
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.Kind == Times {
			continue
		}
		c := Change{Kind: s.Kind, Path: s.Path, Why: s.why(where)}
		if s.Old != nil {
			c.OldSize = s.Old.Size
			c.Dev, c.Ino = s.stat.Dev, s.stat.Ino
		}
		if s.New != nil {
			c.NewSize = s.New.Size
		}
		out = append(out, c)
	}
	return out
}

// Local returns how many bytes of what is to be staged are on the node already.
func (p *Plan) Local() int64 {
	var n int64
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.content == nil || s.Kind != Replace && s.Kind != Add || s.link != s.slot {
			continue
		}
		_, linked := p.links[s.slot]
		for _, c := range s.content.Chunks {
			if _, ok := p.local[c.ID]; ok || linked {
				n += int64(c.Size)
			}
		}
	}
	return n
}

// why says what differs between the two sides of a step.
func (s *Step) why(where string) string {
	switch {
	case s.Old == nil:
		return "new in " + where + ": " + what(s.New)
	case s.New == nil:
		return "not in " + where + ": " + what(s.Old)
	}
	return strings.Join(differing(s.Kind, s.Old, s.New), ", ")
}

// what describes an entry.
func what(e *entry.Entry) string {
	switch {
	case e.Link != "":
		return fmt.Sprintf("hard link to %q", "/"+e.Link)
	case e.Type == entry.File:
		return fmt.Sprintf("file of %d bytes", e.Size)
	case e.Type == entry.Symlink:
		return fmt.Sprintf("symbolic link to %q", e.Target)
	case e.Type == entry.CharDevice || e.Type == entry.BlockDevice:
		return fmt.Sprintf("device %d:%d", e.Major, e.Minor)
	}
	return strings.TrimPrefix(typeName(e.Type), "a ")
}

func differing(kind Kind, a, b *entry.Entry) []string {
	var out []string
	add := func(differs bool, format string, args ...any) {
		if differs {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	sameType := a.Type == b.Type
	replaced := kind == Replace && sameType && b.Type == entry.File
	add(!sameType, "%s to %s", what(a), what(b))
	add(replaced && a.Size != b.Size, "content, %d to %d bytes", a.Size, b.Size)
	add(replaced && a.Size == b.Size && a.Link == b.Link, "content, %d bytes", b.Size)
	add(replaced && a.Link != b.Link && b.Link != "", "hard link to %q", "/"+b.Link)
	add(replaced && a.Link != b.Link && b.Link == "", "no longer a hard link to %q", "/"+a.Link)
	add(sameType && a.Target != b.Target, "leads to %q instead of %q", b.Target, a.Target)
	add(sameType && (a.Major != b.Major || a.Minor != b.Minor), "device %d:%d to %d:%d", a.Major, a.Minor, b.Major, b.Minor)
	add(a.Mode != b.Mode && b.Type != entry.Symlink, "mode %04o to %04o", a.Mode, b.Mode)
	add(a.UID != b.UID || a.GID != b.GID, "owner %d:%d to %d:%d", a.UID, a.GID, b.UID, b.GID)
	out = append(out, xattrsDiffer(a, b)...)
	add(a.ModTime != b.ModTime, "time")
	return out
}

func xattrsDiffer(a, b *entry.Entry) []string {
	had := map[string]string{}
	for _, x := range a.Xattrs {
		had[x.Name] = x.Value
	}
	var out []string
	for _, x := range b.Xattrs {
		if v, ok := had[x.Name]; !ok {
			out = append(out, fmt.Sprintf("xattr %q added", x.Name))
		} else if v != x.Value {
			out = append(out, fmt.Sprintf("xattr %q changed", x.Name))
		}
		delete(had, x.Name)
	}
	for _, x := range a.Xattrs {
		if _, gone := had[x.Name]; gone {
			out = append(out, fmt.Sprintf("xattr %q removed", x.Name))
		}
	}
	return out
}
