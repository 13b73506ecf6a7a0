package health

import (
	"context"
	"fmt"
	"sync"
	"time"

	"ingot/internal/command"
	"ingot/internal/systemd"
)

const (
	pool   = 16              // checks at once
	pause  = time.Second     // between two tries
	settle = 2 * time.Second // that a unit is watched for
)

// Runner carries checks out. The zero value is right for a node and for the
// server; it is safe for concurrent use.
type Runner struct {
	Manager systemd.Manager
	Shell   string   // "" is /bin/sh
	Env     []string // added to the environment of commands: INGOT_NODE=..., INGOT_IMAGE=...

	settle, pause time.Duration                                // 0: the constants
	try           func(context.Context, Check) (string, error) // nil: the real one
}

// Result is what became of a check.
type Result struct {
	Check Check         `json:"check"`
	OK    bool          `json:"ok"`
	Why   string        `json:"why"` // one printable line of at most command.MaxLine bytes, of the last try
	Tries int           `json:"tries"`
	Took  time.Duration `json:"took_ns"`
}

// String is one line for people, printable whatever the check is called.
func (r Result) String() string {
	word := "failed"
	if r.OK {
		word = "ok"
	}
	return fmt.Sprintf("%s: %s: %s", command.Line(r.Check.String()), word, command.Line(r.Why))
}

// Failed returns the results that are not OK.
func Failed(results []Result) []Result {
	var out []Result
	for _, r := range results {
		if !r.OK {
			out = append(out, r)
		}
	}
	return out
}

// Budget is the longest that Run takes for checks, give or take what it takes to kill a program:
// what a time limit for all of them has to be at least.
func Budget(checks []Check) time.Duration {
	var most time.Duration
	for _, c := range checks {
		c = c.withDefaults()
		most = max(most, c.RetryFor+c.Timeout)
	}
	return most * time.Duration((len(checks)+pool-1)/pool)
}

// Run carries out all checks, several at once, and returns a result for each in the order of checks. Those that have
// not held when ctx ends have failed. It does not look at From: Split does.
func (r *Runner) Run(ctx context.Context, checks []Check) []Result {
	out := make([]Result, len(checks))
	next := make(chan int)
	var done sync.WaitGroup
	for range min(pool, len(checks)) {
		done.Go(func() {
			for i := range next {
				out[i] = r.until(ctx, checks[i])
			}
		})
	}
	for i := range checks {
		next <- i
	}
	close(next)
	done.Wait()
	return out
}

// until tries a check until it holds or its time is over.
func (r *Runner) until(ctx context.Context, c Check) Result {
	begun := time.Now()
	res := Result{Check: c}
	if f := c.Faults(); len(f) > 0 {
		res.Why = command.Line("cannot be run: " + f[0].Text)
		return res
	}
	c = c.withDefaults()
	for last := ""; ; last = res.Why {
		res.Why, res.OK = r.once(ctx, c)
		res.Tries++
		res.Took = time.Since(begun)
		switch {
		case res.OK:
			return res
		case ctx.Err() != nil && last != "":
			res.Why = command.Line("cut short; the try before: " + last)
			return res
		case res.Took+r.pauseTime() > c.RetryFor || !sleep(ctx, r.pauseTime()):
			return res
		}
	}
}

// once tries a check once and says why it holds, or why not, in one line.
func (r *Runner) once(ctx context.Context, c Check) (why string, ok bool) {
	limited, cancel := context.WithTimeoutCause(ctx, c.Timeout, &command.LimitError{Limit: c.Timeout})
	defer cancel()
	try := r.try
	if try == nil {
		try = r.real
	}
	why, err := "", ctx.Err()
	if err == nil {
		why, err = try(limited, c)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return command.Line(fmt.Sprintf("cut short: %v", context.Cause(ctx))), false
	case err != nil:
		return command.Line(err.Error()), false
	}
	return command.Line(why), true
}

func (r *Runner) real(ctx context.Context, c Check) (string, error) {
	switch {
	case c.Unit != "":
		return r.unit(ctx, c)
	case c.TCP != "":
		return connect(ctx, c)
	case c.HTTP != "":
		return get(ctx, c)
	}
	return r.exec(ctx, c)
}

func (r *Runner) pauseTime() time.Duration {
	if r.pause > 0 {
		return r.pause
	}
	return pause
}

// sleep says whether the time passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
