package hooks

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"ingot/internal/command"
	"ingot/internal/health"
)

const (
	pause    = 500 * time.Millisecond // between two tries of Until
	maxLines = 20                     // of an output that is shown
)

// Runner carries steps out.
type Runner struct {
	Env   []string   // the whole environment of commands
	Begin func(Step) // is told of each step before it; nil: nobody is
	Shell string     // "" is /bin/sh

	pause time.Duration // 0: the constant
}

// Result is what became of a step.
type Result struct {
	Step Step
	Err  error
	Took time.Duration
}

// StepError is the error of a step. It wraps a *command.LimitError when the
// time was up, and the cause of the context that ended.
type StepError struct {
	Number int // from 1
	Step   Step
	Err    error
	Output []string // the last lines that the command or the server said, printable
}

func (e *StepError) Error() string {
	text := fmt.Sprintf("step %d (%s): %v", e.Number, command.Line(e.Step.String()), e.Err)
	if len(e.Output) > 0 {
		text += ": " + e.Output[len(e.Output)-1]
	}
	return text
}

func (e *StepError) Unwrap() error { return e.Err }

// Run carries out steps in their order. The first that fails ends it, with a
// *StepError; so does the end of ctx. What a step has started is killed when it
// ends, as command.Run says.
func (r *Runner) Run(ctx context.Context, steps []Step) (done []Result, err error) {
	for i, s := range steps {
		if r.Begin != nil {
			r.Begin(s)
		}
		begun := time.Now()
		out, err := r.step(ctx, s)
		done = append(done, Result{s, err, time.Since(begun)})
		if err != nil {
			return done, &StepError{i + 1, s, err, lines(out)}
		}
	}
	return done, nil
}

// step carries out one step; out is what a command, the last of several tries, or a server said.
func (r *Runner) step(ctx context.Context, s Step) (out []byte, err error) {
	if f := s.Faults(); len(f) > 0 {
		return nil, fmt.Errorf("cannot be run: %s", f[0].Text)
	}
	limit := s.timeout()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, &command.LimitError{Limit: limit})
	defer cancel()
	switch {
	case s.HTTP != nil:
		return s.HTTP.ask(ctx)
	case s.Until != "":
		return r.until(ctx, s.Until, limit)
	}
	return r.shell(ctx, s.Run, limit)
}

// until tries a command until it exits with 0 or ctx ends.
func (r *Runner) until(ctx context.Context, script string, limit time.Duration) (out []byte, err error) {
	wait := r.pause
	if wait == 0 {
		wait = pause
	}
	var last error
	for {
		said, err := r.shell(ctx, script, limit)
		switch {
		case err == nil:
			return said, nil
		case ctx.Err() != nil && last == nil: // cut short
			return said, err
		case ctx.Err() == nil:
			out, last = said, err
			sleep(ctx, wait)
		}
		if ctx.Err() != nil {
			return out, fmt.Errorf("%w: %w", context.Cause(ctx), last)
		}
	}
}

func (r *Runner) shell(ctx context.Context, script string, limit time.Duration) ([]byte, error) {
	shell, out := r.Shell, &command.Ends{}
	if shell == "" {
		shell = "/bin/sh"
	}
	err := command.Run(ctx, command.Command{Argv: []string{shell, "-c", script}, Env: r.Env, Limit: limit, Out: out, Err: out})
	return out.Bytes(), err
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// ask sends the request and returns what was answered.
func (q *Request) ask(ctx context.Context) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, q.method(), q.URL, strings.NewReader(q.Body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "ingot-hook")
	for k, v := range q.Header {
		req.Header.Set(k, v)
	}
	out := &command.Ends{}
	_, err = health.Ask(req, health.Answer{Status: q.Expect, Insecure: q.Insecure}, out)
	return out.Bytes(), err
}

// lines are the last lines of an output that say anything, printable.
func lines(out []byte) []string {
	var list []string
	for _, l := range strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' || r == '\r' }) {
		if l = command.Line(l); l != "" {
			list = append(list, l)
		}
	}
	return list[max(0, len(list)-maxLines):]
}
