package health

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// tries answers a check: with an error until it has been asked so often.
func tries(good int, answer time.Duration) func(context.Context, Check) (string, error) {
	n := 0
	return func(ctx context.Context, _ Check) (string, error) {
		n++
		if !sleep(ctx, answer) {
			return "", context.Cause(ctx)
		}
		if n < good {
			return "", fmt.Errorf("not yet %d", n)
		}
		return "fine", nil
	}
}

func TestRetries(t *testing.T) {
	for _, tt := range []struct {
		name  string
		check Check
		good  int           // the try that holds
		takes time.Duration // each try
		want  Result
	}{
		{"at once", Check{}, 1, 0, Result{OK: true, Why: "fine", Tries: 1}},
		{"later", Check{}, 21, 0, Result{OK: true, Why: "fine", Tries: 21, Took: 20 * time.Second}},
		{"at the last moment", Check{RetryFor: 5 * time.Second}, 6, 0, Result{OK: true, Why: "fine", Tries: 6, Took: 5 * time.Second}},
		{"too late", Check{RetryFor: 5 * time.Second}, 7, 0, Result{Why: "not yet 6", Tries: 6, Took: 5 * time.Second}},
		{"one try", Check{RetryFor: time.Millisecond}, 2, 0, Result{Why: "not yet 1", Tries: 1}},
		{"slow but in time", Check{Timeout: 4 * time.Second}, 2, 3 * time.Second, Result{OK: true, Why: "fine", Tries: 2, Took: 7 * time.Second}},
		{"hangs", Check{Timeout: 4 * time.Second, RetryFor: 6 * time.Second}, 1, time.Hour, Result{Why: "not done within 4s", Tries: 2, Took: 9 * time.Second}},
		{"defaults", Check{}, 99, time.Hour, Result{Why: "not done within 10s", Tries: 3, Took: 32 * time.Second}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tt.check.Exec = "x"
				tt.want.Check = tt.check
				r := Runner{try: tries(tt.good, tt.takes)}
				if got := r.Run(t.Context(), []Check{tt.check})[0]; got != tt.want {
					t.Errorf("got  %+v\nwant %+v", got, tt.want)
				}
				if b := Budget([]Check{tt.check}); tt.want.Took > b {
					t.Errorf("took %s, of a budget of %s", tt.want.Took, b)
				}
			})
		})
	}
}

func TestTheEndOfAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, tt := range map[string]struct {
			takes time.Duration
			want  string
		}{
			"while it waits": {500 * time.Millisecond, "not yet 5"},
			"in the first":   {time.Hour, "cut short: the window is over"},
			"in a later one": {4 * time.Second, "cut short; the try before: not yet 1"},
		} {
			ctx, cancel := context.WithTimeoutCause(t.Context(), 7*time.Second, errors.New("the window is over"))
			r := Runner{try: tries(99, tt.takes)}
			got := r.until(ctx, Check{Exec: "x", Timeout: time.Minute})
			cancel()
			if got.OK || got.Why != tt.want {
				t.Errorf("%s: %+v", name, got)
			}
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int32
		r := Runner{try: func(ctx context.Context, c Check) (string, error) {
			n := now.Add(1)
			defer now.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			sleep(ctx, time.Second)
			return c.Exec, nil
		}}
		var checks []Check
		for i := range 3*pool + 1 {
			checks = append(checks, Check{Exec: fmt.Sprintf("n%d", i)})
		}
		begun := time.Now()
		for i, got := range r.Run(t.Context(), checks) {
			if !got.OK || got.Why != checks[i].Exec || got.Check != checks[i] {
				t.Errorf("%d: %+v", i, got)
			}
		}
		if took := time.Since(begun); took != 4*time.Second || most.Load() != pool {
			t.Errorf("took %s, %d at once", took, most.Load())
		}
	})
	if got := (&Runner{}).Run(t.Context(), nil); len(got) != 0 {
		t.Error(got)
	}
}

// What comes over a wire is judged where it is run.
func TestWhatCannotBeRun(t *testing.T) {
	r := Runner{try: func(context.Context, Check) (string, error) { t.Error("it was run"); return "", nil }}
	for _, c := range []Check{{}, {Exec: "a", TCP: "b:1"}, {Unit: "--x"}, {Exec: "a", Timeout: -time.Second}, {Exec: "a", Timeout: 1 << 62}} {
		if got := r.Run(t.Context(), []Check{c})[0]; got.OK || !strings.HasPrefix(got.Why, "cannot be run: ") {
			t.Errorf("%+v", got)
		}
	}
}

func TestResultsAreOneLine(t *testing.T) {
	r := Runner{try: func(context.Context, Check) (string, error) {
		return "", errors.New("\x1b[2J" + strings.Repeat("many\nlines\x00", 100))
	}}
	got := r.Run(t.Context(), []Check{{Exec: "a\nb", RetryFor: time.Millisecond}})[0]
	if len(got.Why) > 200 || strings.ContainsAny(got.Why, "\n\x00\x1b") || !strings.HasPrefix(got.Why, "many lines?") {
		t.Errorf("%q", got.Why)
	}
	if s := got.String(); !strings.HasPrefix(s, "exec a ...: failed: many") {
		t.Errorf("%q", s)
	}
	hostile := Result{Check: Check{Name: "a\x1bcb\n"}, Why: "x\ny", OK: true} // as another program may send it
	if s := hostile.String(); strings.ContainsAny(s, "\n\x1b") {
		t.Errorf("%q", s)
	}
	if f := Failed([]Result{got, hostile}); len(f) != 1 || f[0].OK {
		t.Errorf("%+v", f)
	}
}
