package units

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"ingot/internal/problem"
	"ingot/internal/systemd"
)

// What a policy does about units that are concerned: the words of a profile's `restart:`.
const (
	Tell    = "report"  // nothing but say
	Reload  = "reload"  // daemon-reload, then try-reload-or-restart: a unit that only reloads goes on with its old program
	Restart = "restart" // daemon-reload, then try-restart
)

// Modes are the words of `restart:`, the default first.
func Modes() []string { return []string{Tell, Reload, Restart} }

// Policy says what to do about units that are concerned. The zero value only tells.
type Policy struct {
	Restart string   `json:"restart,omitempty"` // Tell, Reload or Restart; "" is Tell
	Except  []string `json:"except,omitempty"`  // patterns of path.Match on names of units that are left alone
}

// CheckPattern judges a pattern of Policy.Except: NAME.service, or with *, ? and [a-z].
func CheckPattern(p string) error {
	switch _, err := path.Match(p, ""); {
	case err != nil:
		return fmt.Errorf("%q is not a pattern: %w", p, err)
	case p == "" || strings.ContainsAny(p, "/ \t\n"):
		return fmt.Errorf("%q is not the name of a unit, such as nginx.service or postgresql@*", p)
	case !strings.ContainsAny(p, "*?[") && systemd.Suffix(p) == "":
		return fmt.Errorf("%q matches no unit: write %s.service", p, p)
	}
	return nil
}

// CheckMode judges Policy.Restart.
func CheckMode(m string) error {
	if m == "" || slices.Contains(Modes(), m) {
		return nil
	}
	return fmt.Errorf("restart: %q is not one of %s%s", m, strings.Join(Modes(), ", "), problem.Hint(m, Modes()))
}

// Action is one thing that a policy does or leaves.
type Action struct {
	Unit string `json:"unit,omitempty"` // "" for a daemon-reload
	Verb string `json:"verb,omitempty"` // of systemctl; "" when nothing is done
	Skip string `json:"skip,omitempty"` // why nothing is done
}

// String is what a person reads before it is done.
func (a Action) String() string {
	switch {
	case a.Skip != "":
		return a.Unit + ": left alone: " + a.Skip
	case a.Unit == "":
		return a.Verb
	}
	return a.Verb + " " + a.Unit
}

// Plan says what a policy does, in order: the daemon-reload, then the units, those that others start after first. Units
// that are left alone come last. With Tell, or when nothing is concerned, there is none.
func (r Report) Plan(p Policy) []Action {
	verb := map[string]string{Reload: "try-reload-or-restart", Restart: "try-restart"}[p.Restart]
	if verb == "" {
		return nil
	}
	var out, left []Action
	if len(r.Reload) > 0 {
		out = append(out, Action{Verb: "daemon-reload"})
	}
	for _, u := range inOrder(r.Units) {
		switch {
		case u.Hold != "":
			left = append(left, Action{Unit: u.Name, Skip: u.Hold})
		case p.excepts(u.Name):
			left = append(left, Action{Unit: u.Name, Skip: "restart_except of its profile"})
		default:
			out = append(out, Action{Unit: u.Name, Verb: verb})
		}
	}
	return append(out, left...)
}

func (p Policy) excepts(unit string) bool {
	return slices.ContainsFunc(p.Except, func(pat string) bool {
		ok, err := path.Match(pat, unit)
		return ok || err != nil // a pattern that cannot be read may mean this one
	})
}

// inOrder sorts units so that each comes after those that it starts after; where they go
// round in a circle, and else, by name.
func inOrder(list []Unit) []Unit {
	byName := map[string]Unit{}
	var names []string
	for _, u := range list {
		byName[u.Name] = u
		names = append(names, u.Name)
	}
	slices.Sort(names)
	var out []Unit
	seen := map[string]bool{}
	var visit func(name string)
	visit = func(name string) {
		u, ok := byName[name]
		if !ok || seen[name] {
			return
		}
		seen[name] = true
		for _, a := range slices.Sorted(slices.Values(u.After)) {
			visit(a)
		}
		out = append(out, u)
	}
	for _, n := range names {
		visit(n)
	}
	return out
}
