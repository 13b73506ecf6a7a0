package units

import (
	"context"
	"fmt"
	"slices"
	"time"

	"ingot/internal/command"
	"ingot/internal/systemd"
)

// Running lists the services that are active and that may be started by
// hand: whoever takes a change back starts those of them again that it ended.
func (s *Survey) Running(ctx context.Context) ([]string, error) {
	list, err := s.states(ctx, "*.service")
	if err != nil {
		return nil, fmt.Errorf("list the services that run: %w", err)
	}
	var out []string
	for i := range list {
		if x := &list[i]; x.active == "active" && x.load == "loaded" && !x.idle() && !x.refuses {
			out = append(out, x.name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// idle says of a unit that comes and goes with logins: nobody waits for it.
func (s *state) idle() bool {
	t := systemd.Template(s.name)
	return t == "user@.service" || t == "user-runtime-dir@.service"
}

// Restore starts the services of a list that do not run any more, all at once,
// so that systemd orders them. What is no unit any more is left.
func (s *Survey) Restore(ctx context.Context, names []string) []Done {
	if len(names) == 0 {
		return nil
	}
	failed := func(what string, err error) []Done {
		return []Done{{Action: Action{Verb: what}, Why: command.Line(err.Error())}}
	}
	before, err := s.states(ctx, names...)
	if err != nil {
		return failed("start what ran before", err)
	}
	var down []string
	stale := false
	for i := range before {
		if x := &before[i]; !x.running() && slices.Contains(names, x.name) && x.load == "loaded" {
			down, stale = append(down, x.name), stale || x.reload
		}
	}
	if len(down) == 0 {
		return nil
	}
	if stale {
		if err := s.Manager.Do(ctx, s.limit(), "daemon-reload"); err != nil {
			return failed("daemon-reload", err)
		}
	}
	begun := time.Now()
	_ = s.Manager.Do(ctx, s.limit(), "reset-failed", down...) // of one that did not fail it is none to reset
	startErr := s.Manager.Do(ctx, s.limit(), "start", down...)
	after, err := s.states(ctx, down...)
	if err != nil {
		return failed("start what ran before", err)
	}
	var out []Done
	for i := range after {
		x := &after[i]
		d := Done{Action: Action{Unit: x.name, Verb: "start"}, OK: x.running(), Why: "unit is " + x.active, Took: time.Since(begun)}
		if !d.OK && startErr != nil {
			d.Why = command.Line(fmt.Sprintf("%v; unit is %s", startErr, x.active))
		}
		out = append(out, d)
	}
	return out
}
