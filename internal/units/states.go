package units

import (
	"context"
	"slices"
	"strings"
	"time"

	"ingot/internal/systemd"
)

const ask = 10 * time.Second // a question to systemd

// state is a loaded unit.
type state struct {
	name     string
	names    []string // with aliases
	load     string   // loaded | not-found | masked | ...
	active   string   // active | reloading | inactive | failed | ...
	fragment string   // its file
	reload   bool     // systemd has seen that its files changed
	refuses  bool     // to be stopped or started by hand
	killMode string   // systemd.kill(5)
	programs []string // absolute paths of ExecStart: the program and its arguments, among which are scripts
	envFiles []string
	after    []string
}

// running says whether the unit has anything that could be stale.
func (s *state) running() bool {
	return s.active == "active" || s.active == "reloading" || s.active == "activating"
}

// named says whether a unit file of this name, or a directory of additions to it without its ".d", is of the unit:
// its name, an alias, its template, or the beginning of its name up to a dash (systemd.unit(5)).
func (s *state) named(file string) bool {
	suffix := systemd.Suffix(file)
	prefix := strings.TrimSuffix(file, suffix)
	for _, n := range s.names {
		if n == file || systemd.Template(n) == file {
			return true
		}
		if strings.HasSuffix(prefix, "-") && strings.HasPrefix(n, prefix) && systemd.Suffix(n) == suffix {
			return true
		}
	}
	return false
}

// states asks systemd about units; patterns stand for the loaded ones.
func (s *Survey) states(ctx context.Context, names ...string) ([]state, error) {
	limit := s.Ask
	if limit == 0 {
		limit = ask
	}
	list, err := s.Manager.Show(ctx, limit, []string{"Id", "Names", "LoadState", "ActiveState", "FragmentPath", "NeedDaemonReload",
		"RefuseManualStart", "RefuseManualStop", "KillMode", "ExecStart", "EnvironmentFiles", "After"}, names...)
	if err != nil {
		return nil, err
	}
	out := []state{}
	for _, p := range list {
		if p["Id"] != "" {
			out = append(out, newState(p))
		}
	}
	return out, nil
}

func newState(p systemd.Properties) state {
	s := state{
		name: p["Id"], names: strings.Fields(p["Names"]), load: p["LoadState"], active: p["ActiveState"], fragment: p["FragmentPath"],
		reload: p["NeedDaemonReload"] == "yes", refuses: p["RefuseManualStart"] == "yes" || p["RefuseManualStop"] == "yes",
		killMode: p["KillMode"], after: strings.Fields(p["After"]),
	}
	if !slices.Contains(s.names, s.name) {
		s.names = append(s.names, s.name)
	}
	for line := range strings.Lines(p["ExecStart"]) {
		s.programs = append(s.programs, parseExec(line)...)
	}
	for line := range strings.Lines(p["EnvironmentFiles"]) {
		file, _, _ := strings.Cut(strings.TrimSpace(line), " (") // /etc/default/x (ignore_errors=yes)
		s.envFiles = append(s.envFiles, file)
	}
	return s
}

// parseExec returns the absolute paths in one value of ExecStart:
//
//	{ path=/usr/bin/python3 ; argv[]=/usr/bin/python3 /opt/app.py ; ignore_errors=no ; ... }
func parseExec(value string) []string {
	var out []string
	_, rest, ok := strings.Cut(value, "path=")
	if !ok {
		return nil
	}
	program, rest, _ := strings.Cut(rest, " ; ")
	words := []string{program}
	if _, argv, ok := strings.Cut(rest, "argv[]="); ok {
		argv, _, _ = strings.Cut(argv, " ; ignore_errors=")
		words = append(words, strings.Fields(argv)...)
	}
	for _, w := range words {
		if strings.HasPrefix(w, "/") && !slices.Contains(out, w) {
			out = append(out, w)
		}
	}
	return out
}
