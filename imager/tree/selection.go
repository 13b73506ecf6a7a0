package tree

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"

	"ingot/internal/pattern"
)

// Selection says what of a tree becomes an image, and remembers what was
// sealed. It is good for one capture.
type Selection struct {
	all, seal, allowed pattern.List

	mu     sync.Mutex
	sealed map[string]struct{}
}

// SelectOptions say what is left out.
type SelectOptions struct {
	Live         bool     // the tree is that of a running system: leave out pattern.Live
	Seal         bool     // leave out, or blank, what makes a machine itself: pattern.Seal
	Exclude      []string // patterns; the last match wins, also over the lists above
	AllowChanged []string // patterns of what may change while it is captured
}

// NewSelection reads the patterns.
func NewSelection(o SelectOptions) (*Selection, error) {
	exclude, err := pattern.Parse(o.Exclude)
	if err != nil {
		return nil, fmt.Errorf("exclude: %w", err)
	}
	s := &Selection{sealed: map[string]struct{}{}}
	if s.allowed, err = pattern.Parse(o.AllowChanged); err != nil {
		return nil, fmt.Errorf("allow-changed: %w", err)
	}
	if o.Live {
		s.all = pattern.Live()
	}
	if o.Seal {
		s.seal = pattern.Seal()
	}
	s.all = s.all.With(s.seal).With(exclude)
	return s, nil
}

// Apply makes a capture follow the selection.
func (s *Selection) Apply(o *CaptureOptions) {
	o.Exclude, o.Blank, o.AllowChanged = s.out, s.blank, s.allowed.Match
	o.Within = func(path string) bool { return !s.all.Covers(path) }
}

// blanked is kept as an empty file: systemd then makes a machine ID and keeps
// the units as they are enabled; without the file it would take the boot for
// the first one, and set all of them to their presets (machine-id(5)).
const blanked = "etc/machine-id"

func (s *Selection) out(p string, isDir bool) bool {
	if !s.all.Match(p) || p == blanked && s.seal.Match(p) {
		return false
	}
	if !s.seal.Match(p) {
		return true
	}
	if isDir && needed(p) {
		return false
	}
	s.note(p)
	return true
}

// needed reports whether a directory stays although what is in it goes:
// services do not start without their directory of logs or caches.
func needed(dir string) bool {
	for _, top := range []string{"var/log/", "var/cache/"} {
		if strings.HasPrefix(dir, top) {
			return path.Dir(dir) != "var/log/journal" // named by the machine ID
		}
	}
	return false
}

func (s *Selection) blank(p string) bool {
	if p != blanked || !s.seal.Match(p) || !s.all.Match(p) {
		return false
	}
	s.note(p)
	return true
}

func (s *Selection) note(p string) {
	const probe = "\x01" // see looker.anyLeftOut
	if strings.HasSuffix(p, probe) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sealed[p] = struct{}{}
}

// Sealed returns what was left out or blanked because it makes a machine
// itself, sorted; what is below a directory of logs or caches by its directory.
func (s *Selection) Sealed() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for p := range s.sealed {
		for _, top := range []string{"var/log/", "var/cache/"} {
			if strings.HasPrefix(p, top) {
				p = top + "**"
			}
		}
		out = append(out, "/"+p)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
