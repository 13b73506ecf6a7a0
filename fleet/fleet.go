// Package fleet decides in which order the nodes of a deployment are done, how many at once, and when to stop; it touches none.
package fleet

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Policy says how a deployment goes about its nodes.
type Policy struct {
	Canary      int           `json:"canary,omitempty"`       // nodes of a first wave, none of which may fail; 0: there is none
	Batch       string        `json:"batch,omitempty"`        // nodes of each wave after it: a number, or a part of all such as 25%; "": all that are left
	MaxFailures int           `json:"max_failures,omitempty"` // so many nodes may fail; one more, and no further node is begun
	Pause       time.Duration `json:"pause,omitempty"`        // between two waves
	Parallel    int           `json:"parallel,omitempty"`     // nodes at once; less than 1 is 1
	AutoBack    Back          `json:"auto_rollback,omitempty"`
}

// Back says which nodes that are done are taken back when a deployment stops.
type Back string

// What is taken back: nothing, the nodes of the wave that failed, or all nodes.
const (
	BackNone Back = ""
	BackWave Back = "wave"
	BackAll  Back = "all"
)

// Check judges a policy as it was typed.
func (p Policy) Check() error {
	switch {
	case p.Parallel < 1:
		return fmt.Errorf("--parallel: want 1 or more, got %d", p.Parallel)
	case p.Canary < 0:
		return fmt.Errorf("--canary: want 0 or more, got %d", p.Canary)
	case p.MaxFailures < 0:
		return fmt.Errorf("--max-failures: want 0 or more, got %d", p.MaxFailures)
	case p.Pause < 0:
		return fmt.Errorf("--pause: want a time such as 5m, got %s", p.Pause)
	case p.AutoBack != BackNone && p.AutoBack != BackWave && p.AutoBack != BackAll:
		return fmt.Errorf("--auto-rollback: want %s or %s, got %q", BackWave, BackAll, p.AutoBack)
	}
	_, err := p.batch(1)
	return err
}

// batch is how many nodes a wave has, of so many in all.
func (p Policy) batch(nodes int) (int, error) {
	if p.Batch == "" {
		return max(nodes, 1), nil
	}
	text, part := strings.CutSuffix(p.Batch, "%")
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || part && n > 100 {
		return 0, fmt.Errorf("--batch: want a number of nodes or a part of them such as 25%%, got %q", p.Batch)
	}
	if part {
		n = (nodes*n + 99) / 100
	}
	return max(n, 1), nil
}

// Waves says for each of so many nodes, in their order, in which wave it is
// done. Wave 0 is the canary's where there is one, and the first otherwise. The
// policy has passed Check.
func (p Policy) Waves(nodes int) []int {
	out := make([]int, nodes)
	size, _ := p.batch(nodes)
	canary := min(p.Canary, nodes)
	for i := canary; i < nodes; i++ {
		out[i] = (i - canary) / size
		if canary > 0 {
			out[i]++
		}
	}
	return out
}

// Allowed is how many nodes may fail by the end of a wave.
func (p Policy) Allowed(wave int) int {
	if p.Canary > 0 && wave == 0 {
		return 0
	}
	return p.MaxFailures
}

// Result is how a node fared, as far as it matters to the others.
type Result uint8

// What a node means to those after it.
const (
	Done    Result = iota
	Skipped        // nothing was to be done
	Failed
)

// Stop is why no further nodes are begun. The zero value is none.
type Stop struct {
	Wave   int    // in which it stopped
	Reason string // "" when it did not
}

// Run does the nodes wave by wave: waves says of each in which it is, in
// ascending order; failed is how many have failed before. do does one and is
// called for several at once, begun in their order; pause is told before each
// pause, with what the wave before came to.
//
// When more nodes fail than may, or ctx ends, no further ones are begun; Run
// returns when those that were have ended.
func (p Policy) Run(ctx context.Context, waves []int, failed int, do func(i int) Result, pause func(wave int, done WaveDone, wait time.Duration)) Stop {
	r := &run{Policy: p, failed: failed}
	for first := 0; first < len(waves); {
		wave, last := waves[first], first
		for last < len(waves) && waves[last] == wave {
			last++
		}
		done := r.wave(ctx, wave, first, last, do)
		wait := p.Pause
		if last == len(waves) || done.Done+done.Failed == 0 || r.over(wave) || ctx.Err() != nil {
			wait = 0
		}
		pause(wave, done, wait)
		switch {
		case r.over(wave):
			return Stop{wave, p.why(wave, r.failed)}
		case ctx.Err() != nil:
			return Stop{wave, "interrupted"}
		}
		if wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return Stop{wave, "interrupted"}
			}
		}
		first = last
	}
	return Stop{}
}

func (p Policy) why(wave, failed int) string {
	if p.Canary > 0 && wave == 0 {
		return fmt.Sprintf("%d failed in the canary wave", failed)
	}
	return fmt.Sprintf("%d failed, --max-failures is %d", failed, p.MaxFailures)
}

// WaveDone counts how the nodes of a wave ended.
type WaveDone struct{ Nodes, Done, Skipped, Failed int }

type run struct {
	Policy

	mu     sync.Mutex
	failed int
}

func (r *run) over(wave int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed > r.Allowed(wave)
}

func (r *run) wave(ctx context.Context, wave, first, last int, do func(int) Result) (out WaveDone) {
	next := first
	out.Nodes = last - first
	take := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		if next == last || ctx.Err() != nil || r.failed > r.Allowed(wave) {
			return -1
		}
		next++
		return next - 1
	}
	var all sync.WaitGroup
	for range min(last-first, max(r.Parallel, 1)) {
		all.Go(func() {
			for i := take(); i >= 0; i = take() {
				result := do(i)
				r.mu.Lock()
				switch result {
				case Done:
					out.Done++
				case Skipped:
					out.Skipped++
				case Failed:
					out.Failed++
					r.failed++
				}
				r.mu.Unlock()
			}
		})
	}
	all.Wait()
	return out
}
