// Package units finds the units and processes of a running node that a change of its files concerns, and
// reloads or restarts units.
//
// Survey.Look reads the node; Decide, a pure function, makes a Report of what was found; Report.Plan says what a policy
// does about it; Survey.Apply does it. Before a switch the report says what will be stale, after it what is.
package units

import (
	"fmt"
	"strings"

	"ingot/internal/command"
)

// The kinds of changes that matter: what rollback.Kind calls them.
const (
	Added    = "add"
	Replaced = "replace"
	Deleted  = "delete"
)

// A Change is one path of a plan. Of other kinds (metadata, times) nothing follows.
type Change struct {
	Path string // relative to the top of the tree, as in entry.Path
	Kind string
	Dev  uint64 // Replaced, Deleted: of the inode that is or was displaced, as stat(2) gives it
	Ino  uint64
}

// Report is what a change means for what runs. It travels as JSON.
type Report struct {
	Reload []string  `json:"daemon_reload"` // why systemd has to read its files again; none: it need not
	Units  []Unit    `json:"units"`         // active ones that are concerned, by name
	Loose  []Process `json:"loose"`         // stale processes that no restart of a unit renews: logins, programs without unit
	Reboot []string  `json:"reboot"`        // why only a reboot brings all of the change into effect

	Notes     []string `json:"notes"`     // what could not be found out
	Elsewhere int      `json:"elsewhere"` // processes of containers: not looked at
	Kernel    int      `json:"kernel"`    // threads of the kernel: not looked at
	More      int      `json:"more"`      // loose processes beyond maxLoose
}

// Unit is one that runs something that was changed.
type Unit struct {
	Name  string   `json:"name"`
	Why   []string `json:"why"`             // at most maxWhy, and how many more
	Hold  string   `json:"hold,omitempty"`  // why it is never restarted by itself
	After []string `json:"after,omitempty"` // those of the report that it starts after
}

// Process is one that uses files which are no longer in the tree, or will not be.
type Process struct {
	PID  int    `json:"pid"`
	Name string `json:"name"` // comm of proc(5)
	Unit string `json:"unit"` // from its control group; "" where it has none

	Runs string   `json:"runs,omitempty"` // the program that it executes, where that is such a file
	Maps []string `json:"maps,omitempty"` // others, the program aside; at most maxMaps
	More int      `json:"more,omitempty"` // others beyond those
}

// Bounds of a report, so that a node where everything is stale can still be read about.
const (
	maxWhy   = 4
	maxMaps  = 3
	maxLoose = 50
)

// String is one printable line.
func (p Process) String() string {
	s := fmt.Sprintf("process %d (%s)", p.PID, p.Name)
	switch {
	case p.Runs != "":
		s += " runs the old " + p.Runs
	case len(p.Maps) > 0:
		s += " uses the old " + strings.Join(p.Maps, ", ")
	}
	if p.Runs == "" && p.More > 0 {
		s += fmt.Sprintf(" and %d more", p.More)
	}
	return command.Line(s)
}

// String is one printable line.
func (u Unit) String() string {
	s := u.Name + ": " + strings.Join(u.Why, "; ")
	if u.Hold != "" {
		s = u.Name + ": not restarted by itself, " + u.Hold + ": " + strings.Join(u.Why, "; ")
	}
	return command.Line(s)
}

// Empty says that nothing that runs is concerned.
func (r Report) Empty() bool {
	return len(r.Reload) == 0 && len(r.Units) == 0 && len(r.Loose) == 0 && len(r.Reboot) == 0
}

// Lines are the report for people, each printable and of at most command.MaxLine bytes.
func (r Report) Lines() []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, command.Line(fmt.Sprintf(format, args...))) }
	for _, w := range r.Reboot {
		add("needs a reboot: %s", w)
	}
	for _, w := range r.Reload {
		add("needs a daemon-reload: %s", w)
	}
	for _, u := range r.Units {
		add("unit %s", u)
	}
	for _, p := range r.Loose {
		where := "of no unit"
		if p.Unit != "" {
			where = "of " + p.Unit
		}
		add("%s, %s", p, where)
	}
	if r.More > 0 {
		add("%d more such processes", r.More)
	}
	for _, n := range r.Notes {
		add("not known: %s", n)
	}
	if r.Elsewhere > 0 {
		add("%d processes of containers were not looked at", r.Elsewhere)
	}
	return out
}
