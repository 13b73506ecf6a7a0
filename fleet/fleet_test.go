package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestWaves(t *testing.T) {
	for _, x := range []struct {
		p     Policy
		nodes int
		want  string
	}{
		{Policy{}, 4, "0 0 0 0"},
		{Policy{Canary: 1}, 4, "0 1 1 1"},
		{Policy{Canary: 9}, 2, "0 0"},
		{Policy{Batch: "3"}, 7, "0 0 0 1 1 1 2"},
		{Policy{Canary: 1, Batch: "25%"}, 8, "0 1 1 2 2 3 3 4"},
		{Policy{Batch: "1%"}, 3, "0 1 2"},
		{Policy{Batch: "34%"}, 5, "0 0 1 1 2"}, // rounded up
		{Policy{Batch: "100%"}, 3, "0 0 0"},
		{Policy{Canary: 2, Batch: "2"}, 0, ""},
	} {
		if got := strings.Trim(fmt.Sprint(x.p.Waves(x.nodes)), "[]"); got != x.want {
			t.Errorf("%+v of %d: %s, want %s", x.p, x.nodes, got, x.want)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, x := range []struct {
		p    Policy
		says string
	}{
		{Policy{Parallel: 1, Batch: "25%", Canary: 1, MaxFailures: 2, Pause: time.Minute, AutoBack: BackWave}, ""},
		{Policy{}, "--parallel"},
		{Policy{Parallel: 1, Canary: -1}, "--canary"},
		{Policy{Parallel: 1, MaxFailures: -1}, "--max-failures"},
		{Policy{Parallel: 1, Pause: -1}, "--pause"},
		{Policy{Parallel: 1, AutoBack: "some"}, "--auto-rollback"},
		{Policy{Parallel: 1, Batch: "0"}, "--batch"},
		{Policy{Parallel: 1, Batch: "101%"}, "--batch"},
		{Policy{Parallel: 1, Batch: "x%"}, "--batch"},
		{Policy{Parallel: 1, Batch: "2.5"}, "--batch"},
	} {
		err := x.p.Check()
		if (err == nil) != (x.says == "") || err != nil && !strings.Contains(err.Error(), x.says) {
			t.Errorf("%+v: %v, want %q", x.p, err, x.says)
		}
	}
}

// deployment is a run with results that are known before.
type deployment struct {
	mu     sync.Mutex
	begun  []int
	most   int // at once
	now    int
	pauses []string
}

func (d *deployment) run(ctx context.Context, p Policy, waves []int, before int, results map[int]Result, at func(i int)) Stop {
	return p.Run(ctx, waves, before, func(i int) Result {
		d.mu.Lock()
		d.begun = append(d.begun, i)
		d.now++
		d.most = max(d.most, d.now)
		d.mu.Unlock()
		if at != nil {
			at(i)
		}
		time.Sleep(time.Millisecond)
		d.mu.Lock()
		d.now--
		d.mu.Unlock()
		return results[i]
	}, func(wave int, done WaveDone, wait time.Duration) {
		d.pauses = append(d.pauses, fmt.Sprintf("%d:%d/%d/%d/%d:%s", wave, done.Nodes, done.Done, done.Skipped, done.Failed, wait))
	})
}

func TestRun(t *testing.T) {
	fails := func(list ...int) map[int]Result {
		out := map[int]Result{}
		for _, i := range list {
			out[i] = Failed
		}
		return out
	}
	for _, x := range []struct {
		name    string
		p       Policy
		nodes   int
		before  int
		results map[int]Result
		begun   int
		stop    Stop
		pauses  []string
	}{
		{"all is well", Policy{Parallel: 3, Batch: "2"}, 5, 0, nil, 5, Stop{}, []string{"0:2/2/0/0:0s", "1:2/2/0/0:0s", "2:1/1/0/0:0s"}},
		{"the first failure stops", Policy{Parallel: 1}, 5, 0, fails(1), 2, Stop{0, "1 failed, --max-failures is 0"}, []string{"0:5/1/0/1:0s"}},
		{"two may fail", Policy{Parallel: 1, MaxFailures: 2}, 6, 0, fails(0, 2), 6, Stop{}, []string{"0:6/4/0/2:0s"}},
		{"the third stops", Policy{Parallel: 1, MaxFailures: 2}, 9, 0, fails(0, 2, 4), 5, Stop{0, "3 failed, --max-failures is 2"}, []string{"0:9/2/0/3:0s"}},
		{"none of the canary may", Policy{Parallel: 1, Canary: 1, MaxFailures: 2}, 4, 0, fails(0), 1, Stop{0, "1 failed in the canary wave"}, []string{"0:1/0/0/1:0s"}},
		{"what failed before counts", Policy{Parallel: 1, MaxFailures: 1}, 4, 1, fails(1), 2, Stop{0, "2 failed, --max-failures is 1"}, []string{"0:4/1/0/1:0s"}},
		{"a pause after what changed", Policy{Parallel: 2, Batch: "2", Pause: time.Millisecond}, 6, 0, map[int]Result{2: Skipped, 3: Skipped}, 6, Stop{},
			[]string{"0:2/2/0/0:1ms", "1:2/0/2/0:0s", "2:2/2/0/0:0s"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			d := &deployment{}
			if got := d.run(t.Context(), x.p, x.p.Waves(x.nodes), x.before, x.results, nil); got != x.stop {
				t.Errorf("it ended with %+v, want %+v", got, x.stop)
			}
			if len(d.begun) != x.begun || d.most > x.p.Parallel || !slices.Equal(d.pauses, x.pauses) {
				t.Errorf("begun %v, %d at once, pauses %v", d.begun, d.most, d.pauses)
			}
		})
	}
}

// What has begun when one too many fails is finished; no wave begins before
// the one before has ended.
func TestRunTogether(t *testing.T) {
	p := Policy{Parallel: 4, Batch: "4"}
	d := &deployment{}
	stop := d.run(t.Context(), p, p.Waves(8), 0, map[int]Result{1: Failed}, nil)
	if stop.Reason == "" || len(d.begun) != 4 || d.pauses[0] != "0:4/3/0/1:0s" {
		t.Errorf("%+v, begun %v, %v", stop, d.begun, d.pauses)
	}
}

func TestRunInterrupted(t *testing.T) {
	for _, at := range []int{0, 3} {
		ctx, cancel := context.WithCancel(t.Context())
		p := Policy{Parallel: 2, Batch: "2", Pause: time.Millisecond}
		d := &deployment{}
		stop := d.run(ctx, p, p.Waves(8), 0, nil, func(i int) {
			if i == at {
				cancel()
			}
		})
		if stop.Reason != "interrupted" || len(d.begun) > at+2 {
			t.Errorf("%+v, begun %v", stop, d.begun)
		}
		cancel()
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := Policy{Parallel: 1, Batch: "1", Pause: time.Hour}
	begun := time.Now()
	time.AfterFunc(50*time.Millisecond, cancel)
	if stop := (&deployment{}).run(ctx, p, p.Waves(2), 0, nil, nil); stop.Reason != "interrupted" || time.Since(begun) > time.Minute {
		t.Errorf("in a pause: %+v after %s", stop, time.Since(begun))
	}
}
