package health

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ingot/internal/command"
)

// exec runs a command line. Its environment is PATH, HOME, LANG, those of Runner.Env, and
//
//	INGOT_CHECK    the name of the check, or what it looks at
//	INGOT_TIMEOUT  seconds until it is killed, at least 1
//
// It runs in / as the user of the agent, which is root, without a terminal or input.
func (r *Runner) exec(ctx context.Context, c Check) (string, error) {
	shell := r.Shell
	if shell == "" {
		shell = "/bin/sh"
	}
	out := &command.Ends{}
	err := command.Run(ctx, command.Command{
		Argv: []string{shell, "-c", c.Exec}, Env: append(environment(c), r.Env...),
		Limit: c.Timeout, Out: out, Err: out,
	})
	last := command.LastLine(out.Bytes())
	switch {
	case err != nil && last != "":
		return "", fmt.Errorf("%w: %s", err, last)
	case err == nil && last == "":
		return "exit status 0", nil
	}
	return last, err
}

func environment(c Check) []string {
	seconds := max(1, int(c.Timeout/time.Second))
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8",
		"INGOT_CHECK=" + command.Line(c.String()), fmt.Sprintf("INGOT_TIMEOUT=%d", seconds),
	}
}

// state is what a unit is at one moment.
type state struct {
	load, active, sub, result string

	// invocation is another one after each start of the unit; restarts counts those that
	// systemd did by itself (systemd.exec(5), org.freedesktop.systemd1(5)).
	invocation, restarts string
}

// unit says whether a unit is active, and still the same one a short time later: a service that
// dies at once and is restarted is active for moments.
func (r *Runner) unit(ctx context.Context, c Check) (string, error) {
	before, err := r.state(ctx, c)
	if err == nil {
		err = before.err()
	}
	if err != nil {
		return "", err
	}
	watch := r.settle
	if watch == 0 {
		watch = settle
	}
	if !sleep(ctx, watch) {
		return "", context.Cause(ctx)
	}
	after, err := r.state(ctx, c)
	if err == nil {
		err = after.err()
	}
	if err == nil {
		err = stays(before, after, watch)
	}
	if err != nil {
		return "", err
	}
	return after.String(), nil
}

func (r *Runner) state(ctx context.Context, c Check) (state, error) {
	units, err := r.Manager.Show(ctx, c.Timeout, []string{"LoadState", "ActiveState", "SubState", "Result", "InvocationID", "NRestarts"}, c.Unit)
	if err != nil {
		return state{}, err
	}
	if len(units) != 1 {
		return state{}, fmt.Errorf("systemctl show: it speaks of %d units instead of one", len(units))
	}
	p := units[0]
	return state{p["LoadState"], p["ActiveState"], p["SubState"], p["Result"], p["InvocationID"], p["NRestarts"]}, nil
}

func (s state) String() string {
	if s.restarts != "" && s.restarts != "0" {
		return fmt.Sprintf("unit is %s (%s), restarted %s times before", s.active, s.sub, s.restarts)
	}
	return fmt.Sprintf("unit is %s (%s)", s.active, s.sub)
}

// err says why a unit in this state is not up.
func (s state) err() error {
	switch {
	case s.active == "":
		return errors.New("systemctl show: it says no ActiveState")
	case s.active == "active":
		return nil
	case s.load != "loaded" && s.load != "":
		return fmt.Errorf("unit is %s", s.load) // not-found, masked, bad-setting, error
	case s.result != "" && s.result != "success":
		return fmt.Errorf("unit is %s (%s, Result=%s)", s.active, s.sub, s.result)
	}
	return fmt.Errorf("unit is %s (%s)", s.active, s.sub)
}

// stays compares two states of a unit that is active in both.
func stays(before, after state, watch time.Duration) error {
	switch {
	case before.restarts != after.restarts:
		return fmt.Errorf("unit flaps: restarted within %s (NRestarts %s, then %s)", watch, before.restarts, after.restarts)
	case before.invocation != after.invocation:
		return fmt.Errorf("unit flaps: started again within %s", watch)
	}
	return nil
}
