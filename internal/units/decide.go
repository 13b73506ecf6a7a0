package units

import (
	"fmt"
	"maps"
	"slices"

	"ingot/internal/systemd"
)

// decide makes a report of what changed and what was found. It is a pure function.
func decide(c *changed, f facts) Report {
	d := decision{changed: c, facts: f, units: map[string]*Unit{}, more: map[string]int{}}
	d.report = Report{Notes: f.notes, Elsewhere: f.elsewhere, Kernel: f.kernel}
	for _, p := range f.processes {
		d.process(p)
	}
	for _, x := range c.list {
		d.path(x)
	}
	for i := range f.states {
		d.state(&f.states[i])
	}
	d.finish()
	return d.report
}

type decision struct {
	changed *changed
	facts   facts
	report  Report
	units   map[string]*Unit
	more    map[string]int // reasons that were left out
}

// because notes why a unit is concerned.
func (d *decision) because(unit, format string, args ...any) {
	u := d.units[unit]
	if u == nil {
		u = &Unit{Name: unit}
		d.units[unit] = u
	}
	why := fmt.Sprintf(format, args...)
	switch {
	case slices.Contains(u.Why, why):
	case len(u.Why) == maxWhy:
		d.more[unit]++
	default:
		u.Why = append(u.Why, why)
	}
}

// process says whom a stale process concerns.
func (d *decision) process(p Process) {
	switch {
	case p.PID == 1:
		d.reboot("%s", p)
	case systemd.Suffix(p.Unit) == ".service":
		d.because(p.Unit, "%s", p)
	case len(d.report.Loose) < maxLoose:
		d.report.Loose = append(d.report.Loose, p)
	default:
		d.report.More++
	}
}

// state says whether a unit's program or environment changed. A unit's own file is d.path's.
func (d *decision) state(s *state) {
	if s.reload && len(d.report.Reload) == 0 {
		d.reload("systemd sees that files of %s changed", s.name)
	}
	if !s.running() {
		return
	}
	for _, p := range s.programs {
		if _, ok := d.changed.at(p); ok {
			d.because(s.name, "its program %s changed", p)
		}
	}
	for _, p := range s.envFiles {
		if _, ok := d.changed.at(p); ok {
			d.because(s.name, "its environment %s changed", p)
		}
	}
}

// path says what one change is to systemd and to the kernel.
func (d *decision) path(x Change) {
	if why := rebootFor(x, d.facts.release); why != "" {
		d.reboot("%s", why)
	}
	part := partOf(x.Path)
	verb := map[string]string{Added: "is new", Replaced: "changed", Deleted: "went"}[x.Kind]
	switch {
	case !part.reload:
		return
	case part.wanted != "" && x.Kind == Deleted:
		d.reload("%s is no longer wanted by %s", part.unit, part.wanted)
		return
	case part.wanted != "":
		d.reload("%s is wanted by %s from the next boot on", part.unit, part.wanted)
		return
	}
	d.reload("/%s %s", x.Path, verb)
	for i := range d.facts.states {
		s := &d.facts.states[i]
		if s.running() && (part.unit != "" && s.named(part.unit) || s.fragment != "" && canonical(s.fragment) == canonical(x.Path)) {
			d.because(s.name, "/%s %s", x.Path, verb)
		}
	}
}

func (d *decision) reload(format string, args ...any) {
	if len(d.report.Reload) < maxLoose {
		d.report.Reload = appendNew(d.report.Reload, fmt.Sprintf(format, args...))
	}
}

func (d *decision) reboot(format string, args ...any) {
	d.report.Reboot = appendNew(d.report.Reboot, fmt.Sprintf(format, args...))
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// finish puts the units in order.
func (d *decision) finish() {
	known := map[string]*state{}
	for i := range d.facts.states {
		known[d.facts.states[i].name] = &d.facts.states[i]
	}
	for _, name := range slices.Sorted(maps.Keys(d.units)) {
		u, reboot := d.units[name], false
		if n := d.more[name]; n > 0 {
			u.Why = append(u.Why, fmt.Sprintf("and %d more reasons", n))
		}
		u.Hold, reboot = heldBack(name, known[name], d.facts.own)
		if reboot {
			d.reboot("%s is concerned and not restarted: %s", name, u.Hold)
		}
		if s := known[name]; s != nil {
			for _, a := range s.after {
				if d.units[a] != nil && a != name {
					u.After = append(u.After, a)
				}
			}
		}
		d.report.Units = append(d.report.Units, *u)
	}
}
