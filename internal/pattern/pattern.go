// Package pattern matches paths of a tree against ordered lists of patterns,
// as sites write them in node_owned, --keep and --take.
//
// A pattern begins with a slash and is matched component by component: `*`,
// `?` and `[a-z]` stay within a component, `**` as a whole component stands for
// any number of them. `/x/**` matches everything in /x but not /x itself; `/x`
// matches /x and, when it is a directory, everything in it. A pattern behind
// `!` takes out what earlier patterns put in: the last one that matches wins.
package pattern

import (
	"fmt"
	"path"
	"strings"
)

// List is an ordered list of patterns. The zero List matches nothing.
// It is immutable and safe for concurrent use.
type List struct {
	pats []pat
}

// pat is one parsed pattern.
type pat struct {
	text  string
	not   bool
	comps []string
}

// Parse reads patterns in order. Every malformed one is an error that names it.
func Parse(texts []string) (List, error) {
	l := List{pats: make([]pat, 0, len(texts))}
	for _, t := range texts {
		p, err := parse(t)
		if err != nil {
			return List{}, fmt.Errorf("pattern %q: %w", t, err)
		}
		l.pats = append(l.pats, p)
	}
	return l, nil
}

func parse(text string) (pat, error) {
	p := pat{text: text}
	rest, not := strings.CutPrefix(text, "!")
	p.not = not
	if !strings.HasPrefix(rest, "/") {
		return pat{}, fmt.Errorf("must begin with a slash")
	}
	rest = strings.TrimSuffix(rest[1:], "/")
	if rest == "" {
		return pat{}, fmt.Errorf("names the whole tree; write /** for everything in it")
	}
	p.comps = strings.Split(rest, "/")
	for _, c := range p.comps {
		if err := checkComponent(c); err != nil {
			return pat{}, err
		}
	}
	return p, nil
}

func checkComponent(c string) error {
	switch {
	case c == "":
		return fmt.Errorf("has an empty component (two slashes in a row)")
	case c == "." || c == "..":
		return fmt.Errorf("has the component %q, which no path has", c)
	case c != "**" && strings.Contains(c, "**"):
		return fmt.Errorf("has ** inside the component %q; it must stand alone", c)
	}
	if _, err := path.Match(c, ""); err != nil {
		return fmt.Errorf("has the malformed component %q: %w", c, err)
	}
	return nil
}

// Match reports whether the list takes in p, a path relative to the top as in
// entry.Path. The top itself (".") is never matched.
func (l List) Match(p string) bool {
	if p == "." || p == "" || len(l.pats) == 0 {
		return false
	}
	comps := strings.Split(p, "/")
	for i := len(l.pats) - 1; i >= 0; i-- {
		if match(l.pats[i].comps, comps) {
			return !l.pats[i].not
		}
	}
	return false
}

// Covers reports whether everything in the directory dir is taken in, so that a
// walk need not enter it. It may answer false where true would be right, never
// the other way around.
func (l List) Covers(dir string) bool {
	var comps []string
	if dir != "." {
		comps = strings.Split(dir, "/")
	}
	for i := len(l.pats) - 1; i >= 0; i-- {
		p := l.pats[i]
		switch {
		case p.not && reaches(p.comps, comps):
			return false
		case !p.not && swallows(p.comps, comps):
			return true
		}
	}
	return false
}

// Below returns those patterns that might say something of what is in the
// directory dir, so that a walk need not ask the others. In dir and below it
// Match and Covers of the two lists are the same.
func (l List) Below(dir string) List {
	if len(l.pats) == 0 || dir == "." {
		return l
	}
	comps := strings.Split(dir, "/")
	var out List
	for _, p := range l.pats {
		if reaches(p.comps, comps) {
			out.pats = append(out.pats, p)
		}
	}
	return out
}

// With returns the list followed by more.
func (l List) With(more List) List {
	out := make([]pat, 0, len(l.pats)+len(more.pats))
	return List{pats: append(append(out, l.pats...), more.pats...)}
}

// Strings returns the patterns as they were written.
func (l List) Strings() []string {
	out := make([]string, len(l.pats))
	for i, p := range l.pats {
		out[i] = p.text
	}
	return out
}

// Quote returns the pattern that matches a path relative to the top, and when
// it is a directory what is in it, whatever characters are in its name.
func Quote(path string) string {
	return "/" + strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

// Empty reports whether the list has no patterns.
func (l List) Empty() bool { return len(l.pats) == 0 }

// match reports whether pattern p takes in path c or a directory above it.
func match(p, c []string) bool {
	for len(p) > 0 {
		if len(c) == 0 {
			return false
		}
		if p[0] == "**" {
			return matchAny(p[1:], c)
		}
		if ok, _ := path.Match(p[0], c[0]); !ok {
			return false
		}
		p, c = p[1:], c[1:]
	}
	return true // what is left of c lies within what the pattern names
}

// matchAny matches what follows a `**` against c and every tail of it.
func matchAny(rest, c []string) bool {
	if len(rest) == 0 {
		return len(c) > 0
	}
	for i := range c {
		if match(rest, c[i:]) {
			return true
		}
	}
	return false
}

// swallows reports whether p matches every path below dir.
func swallows(p, dir []string) bool {
	if len(dir) > 0 && match(p, dir) {
		return true
	}
	if p[len(p)-1] != "**" {
		return false
	}
	head := p[:len(p)-1]
	return len(head) == 0 || len(dir) > 0 && match(head, dir)
}

// reaches reports whether p might match some path below dir.
func reaches(p, dir []string) bool {
	for len(p) > 0 && len(dir) > 0 {
		if p[0] == "**" {
			return true
		}
		if ok, _ := path.Match(p[0], dir[0]); !ok {
			return false
		}
		p, dir = p[1:], dir[1:]
	}
	return true
}
