package units

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ingot/internal/command"
)

// perJob is how long a daemon-reload or a restart may take. systemd itself gives a service 90 s to stop and as much to
// start (DefaultTimeoutStopSec= of systemd-system.conf(5)).
const perJob = 3 * time.Minute

// Done is what became of an Action.
type Done struct {
	Action
	OK   bool          `json:"ok"`  // true also for what was left alone on purpose
	Why  string        `json:"why"` // one printable line
	Took time.Duration `json:"took_ns"`
}

// String is one printable line.
func (d Done) String() string {
	word := "failed"
	if d.OK {
		word = "done"
	}
	if d.Skip != "" {
		return command.Line(d.Action.String())
	}
	return command.Line(fmt.Sprintf("%s: %s: %s", d.Action, word, d.Why))
}

// Apply does what Report.Plan says, one after another, and goes on after a failure: a node with one unit restarted and one
// not is what the report says. But when systemd cannot read its files again, nothing is restarted, as that would be with old
// ones. What is not done when ctx ends has failed.
func (s *Survey) Apply(ctx context.Context, r Report, p Policy) []Done {
	var out []Done
	stop := "" // why nothing else is done
	for _, a := range r.Plan(p) {
		d := Done{Action: a}
		switch {
		case a.Skip != "":
			d.OK, d.Why = true, a.Skip
		case stop != "":
			d.Why = stop
		default:
			d = s.do(ctx, a)
			if a.Unit == "" && !d.OK {
				stop = "not tried: the daemon-reload failed"
			}
			if ctx.Err() != nil {
				stop = command.Line(fmt.Sprintf("not tried: %v", context.Cause(ctx)))
			}
		}
		out = append(out, d)
	}
	return out
}

func (s *Survey) do(ctx context.Context, a Action) Done {
	d := Done{Action: a}
	begun := time.Now()
	why, err := "unit files are read again", error(nil)
	if a.Unit == "" {
		err = s.Manager.Do(ctx, s.limit(), a.Verb)
	} else {
		why, err = s.unit(ctx, a)
	}
	d.OK, d.Why, d.Took = err == nil, command.Line(why), time.Since(begun)
	if err != nil {
		d.Why = command.Line(err.Error())
	}
	return d
}

// unit restarts one unit, if systemd can start it again: to stop a unit whose file is gone would be for good.
func (s *Survey) unit(ctx context.Context, a Action) (string, error) {
	before, err := s.one(ctx, a.Unit)
	switch {
	case err != nil:
		return "", err
	case before.load != "loaded":
		return "", fmt.Errorf("unit is %s: it runs on as it is", before.load)
	case !before.running():
		return "it does not run any more", nil
	}
	err = s.Manager.Do(ctx, s.limit(), a.Verb, a.Unit)
	var limit *command.LimitError
	if errors.As(err, &limit) {
		return "", fmt.Errorf("%w: systemd goes on with it", err)
	}
	after, lookErr := s.one(ctx, a.Unit)
	switch {
	case err != nil && lookErr == nil:
		return "", fmt.Errorf("%w; unit is %s", err, after.active)
	case err != nil:
		return "", err
	case lookErr != nil:
		return "", lookErr
	case !after.running():
		return "", fmt.Errorf("unit is %s after it", after.active)
	}
	return "unit is " + after.active, nil
}

func (s *Survey) one(ctx context.Context, unit string) (state, error) {
	list, err := s.states(ctx, unit)
	if err != nil {
		return state{}, err
	}
	if len(list) != 1 {
		return state{}, fmt.Errorf("systemctl show: it speaks of %d units instead of one", len(list))
	}
	return list[0], nil
}

func (s *Survey) limit() time.Duration {
	if s.perJob > 0 {
		return s.perJob
	}
	return perJob
}
