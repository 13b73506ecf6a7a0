package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// job is what one tool does for one work. Only run is measured.
type job struct {
	tool   string
	slow   bool                                      // two runs, not three
	before func(ctx context.Context) error           // makes the state that run needs
	run    string                                    // for bash, which stops at the first failure
	env    []string                                  // of run
	bytes  func(ctx context.Context) (int64, error)  // after each run: what the work costs in bytes
	start  func() error                              // just before run, to read counters
	check  func(ctx context.Context) (string, error) // after the first run: how the result is wrong
}

// row is what came of a job.
type row struct {
	Work, Tool string
	Seconds    []float64
	Memory     int64   // of the largest process on this side, bytes
	Node       int64   // of the largest process on the node, bytes; 0: no node, or not measured
	Bytes      int64   // stored or on the wire, the least of all runs; -1: not asked
	Disk       int64   // written to the machine's disk, bytes; 0: not measured
	CPU        float64 // seconds, and
	Database   int64   // bytes of the state, and
	Nodes      int     // how many, of works on many nodes; 0: others
	Wrong      string  // how the result is not what it should be; empty: it was compared and is right, or not compared
	Failed     string  // why there is no result
}

func (r row) best() float64 {
	if len(r.Seconds) == 0 {
		return 0
	}
	return slices.Min(r.Seconds)
}

// spread is how much slower the slowest run was than the fastest, as a fraction of it.
func (r row) spread() float64 {
	if len(r.Seconds) == 0 || r.best() == 0 {
		return 0
	}
	return slices.Max(r.Seconds)/r.best() - 1
}

// ok reports whether the tool did the work.
func (r row) ok() bool { return r.Failed == "" && len(r.Seconds) > 0 }

const fastRuns, slowRuns = 3, 2

// times is how often a tool is measured.
func (o options) times(slow bool) int {
	switch {
	case o.runs > 0:
		return o.runs
	case slow:
		return slowRuns
	}
	return fastRuns
}

// measure runs the jobs of a work in turn, again and again, so that whatever
// else the machine does hits all of them; each round begins with another one.
func (b *bench) measure(ctx context.Context, work string, jobs []job) error {
	jobs = slices.DeleteFunc(jobs, func(j job) bool { return !b.uses(j.tool) })
	rows := make([]row, len(jobs))
	for i, j := range jobs {
		rows[i] = row{Work: work, Tool: j.tool, Bytes: -1}
	}
	for round := range max(fastRuns, b.o.runs) {
		for k := range jobs {
			i := (k + round) % len(jobs)
			if rows[i].Failed != "" || round >= b.o.times(jobs[i].slow) {
				continue
			}
			if err := b.once(ctx, jobs[i], &rows[i]); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				rows[i].Failed = firstLine(err.Error())
				b.say("%s: %s failed: %v", work, jobs[i].tool, err)
			}
		}
	}
	b.rows = append(b.rows, rows...)
	return nil
}

// once prepares and runs a job once and adds to its row.
func (b *bench) once(ctx context.Context, j job, r *row) error {
	if j.before != nil {
		if err := j.before(ctx); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
	}
	unix.Sync() // what was written before must not be paid for now
	if j.start != nil {
		if err := j.start(); err != nil {
			return err
		}
	}
	took, memory, err := b.timed(ctx, j.run, j.env)
	if err != nil {
		return err
	}
	r.Seconds = append(r.Seconds, took.Seconds())
	r.Memory = max(r.Memory, memory)
	if j.bytes != nil {
		n, err := j.bytes(ctx)
		if err != nil {
			return err
		}
		if r.Bytes < 0 || n < r.Bytes {
			r.Bytes = n
		}
	}
	if j.check != nil && len(r.Seconds) == 1 {
		r.Wrong, err = j.check(ctx)
		if err != nil {
			return fmt.Errorf("compare: %w", err)
		}
	}
	b.say("%s: %s: %s, %s %s", r.Work, r.Tool, seconds(took.Seconds()), sizeOr(r.Bytes), r.Wrong)
	return nil
}

// timed runs a script and returns how long it took and the peak resident
// memory of its largest process. time(1) stands between: a child of ours would
// begin with our own peak (setmax_mm_hiwater_rss in the kernel's exec).
func (b *bench) timed(ctx context.Context, script string, env []string) (time.Duration, int64, error) {
	note := filepath.Join(b.dir, "time")
	cmd := command(ctx, "/usr/bin/time", "-q", "-o", note, "-f", "%M", "bash", "-euo", "pipefail", "-c", script)
	cmd.Env = append(b.env(), env...)
	out := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = out, out
	begin := time.Now()
	err := cmd.Run()
	took := time.Since(begin)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %s", err, tail([]byte(out.String()), 600))
	}
	text, err := os.ReadFile(note)
	if err != nil {
		return 0, 0, err
	}
	kib, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("what time(1) says: %w", err)
	}
	return took, kib << 10, nil
}

// command is a program that ends with all that it started when ctx does.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// env is what every program gets: nobody's configuration.
func (b *bench) env() []string {
	return []string{"PATH=" + filepath.Join(b.o.cache, "bin") + ":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + b.dir, "LC_ALL=C.UTF-8", "TMPDIR=" + b.dir}
}

// sh runs a script that is not measured.
func (b *bench) sh(ctx context.Context, script string, env ...string) error {
	cmd := command(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Env = append(b.env(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", firstLine(script), err, tail(out, 600))
	}
	return nil
}

// compare says how tree got differs from want, by every byte and all metadata
// that rsync knows; empty: in nothing.
func (b *bench) compare(ctx context.Context, want, got string, options ...string) (string, error) {
	args := append([]string{"-aHAXSn", "-@-1", "--numeric-ids", "--checksum", "--delete", "--itemize-changes"}, options...)
	cmd := exec.CommandContext(ctx, "rsync", append(args, want+"/", got+"/")...)
	cmd.Env = b.env()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("rsync: %w: %s", err, tail(out, 400))
	}
	return differences(string(out)), nil
}

// differences sums up what rsync itemizes; the top directory does not count.
func differences(out string) string {
	n, first := 0, []string(nil)
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasSuffix(line, " ./") {
			continue
		}
		if n++; n <= 3 {
			first = append(first, "`"+line+"`")
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d entries differ: %s", n, strings.Join(first, ", "))
}

// sizeOf is the length of all files below the paths.
func sizeOf(paths ...string) (int64, error) {
	var total int64
	for _, p := range paths {
		c, err := measureTree(p)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		total += c.bytes
	}
	return total, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}
