package installer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"ingot/classes/disks"
	"ingot/imager/store"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/rollback/sides"
)

// Target is where the new system is mounted while it is installed.
const Target = "/target"

// Run is one installation.
type Run struct {
	// config
	Client  *Client
	Boot    Boot
	Console io.Writer // what people at the machine see
	Facts   map[string]string
	// LoadModule loads the kernel module of a file system; nil: all are built in.
	LoadModule func(ctx context.Context, name string) error

	// state
	log      *slog.Logger
	text     *tail // everything that was logged, for the report
	job      Job
	image    *manifest.Manifest // of the image
	overlay  *manifest.Manifest
	target   *manifest.Manifest // image and overlay: what is written
	index    *store.Index
	plan     *disks.Plan
	sides    *sides.Config // nil: one root file system
	envMount disks.Mount   // of a node with two sides
	written  map[string]written
	mounts   []mounted
	mu       sync.Mutex
	now      Progress
	started  chan Progress // tasks that have begun, however short they are
	times    []TaskTime
	ending   Ending
}

// written is what the writer knows of a file: its chunks are those of the manifest.
type written struct{ stat entry.Stat }

// tail keeps the last bytes that were written to it.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const tailMax = 1 << 20 // bytes; six times as many in JSON at worst, which the server takes

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p)
	if over := t.buf.Len() - tailMax; over > 0 {
		t.buf.Next(over)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}

// NewLog returns a logger for people at the console that also keeps the text.
func (r *Run) NewLog() *slog.Logger {
	r.text = &tail{}
	r.log = slog.New(slog.NewTextHandler(io.MultiWriter(r.Console, r.text), &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				a.Value = slog.StringValue(a.Value.Time().Format("15:04:05.000"))
			}
			return a
		}}))
	return r.log
}

// Install runs all tasks. When it returns nil the machine may be rebooted;
// else the disk does not boot, or is as it was when nothing had been written,
// and the error says why. Report tells the server either way.
func (r *Run) Install(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.started = make(chan Progress, 32) // more than there are tasks
	go r.report(ctx)
	err := r.tasks(ctx)
	r.ending.Tasks = r.times
	if err != nil {
		r.ending.Reason = err.Error()
		r.log.Error("the installation failed", "reason", err.Error())
		r.keepLog()
	}
	if left := r.unmount(); left != nil { // everything has been synced: a mount that is busy loses nothing
		r.log.Warn("unmount", "err", left)
	}
	return err
}

// Report tells the server how the installation ended, and returns once the
// server has it or patience ends. It may be called again.
func (r *Run) Report(ctx context.Context) error {
	r.ending.Log = r.text.String()
	return r.Client.End(ctx, r.ending)
}

func (r *Run) tasks(ctx context.Context) error {
	for _, t := range []struct {
		name    string
		writing bool
		fn      func(context.Context) error
	}{
		{"claim the profile", false, r.claim},
		{"check", false, r.check},
		{"partition", true, func(ctx context.Context) error {
			// The server may know better by now: the node was disarmed, or another attempt began.
			if err := r.Client.Begin(ctx, Progress{Task: "partition"}); err != nil {
				return err
			}
			return r.partition(ctx)
		}},
		{"write the image", true, r.write},
		{"configure", true, r.configure},
		{"scripts", true, r.scripts},
		{"boot loader", true, r.bootLoader},
		{"record", true, r.record},
		{"finish", true, r.finish},
	} {
		start := time.Now()
		r.progress(func(p *Progress) { *p = Progress{Task: t.name, Writing: t.writing} })
		r.started <- Progress{Task: t.name, Writing: t.writing}
		r.log.Info("task: " + t.name)
		if err := t.fn(ctx); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
		r.times = append(r.times, TaskTime{t.name, time.Since(start).Seconds()})
	}
	return nil
}

func (r *Run) claim(ctx context.Context) (err error) {
	r.job, err = r.Client.Claim(ctx, Claim{Node: r.Boot.Node, Nonce: r.Boot.Nonce, Client: randomHex(16), Facts: r.Facts})
	if err == nil {
		r.log.Info("profile", "node", r.job.Node, "image", r.job.Ref, "classes", strings.Join(r.job.Classes, " "), "attempt", r.job.Attempt)
	}
	return err
}

// Good says that the last Install ended well.
func (r *Run) Good() bool { return r.ending.Reason == "" && r.ending.Manifest != "" }

// PowerOff says that the profile wants the machine off when it is installed.
func (r *Run) PowerOff() bool { return r.job.Finish == "poweroff" }

// progress changes what is reported next.
func (r *Run) progress(fn func(*Progress)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fn(&r.now)
}

// report tells the server each second how far the installation is, and the
// console every few seconds, until ctx ends. A report that fails is no
// failure of the installation.
func (r *Run) report(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var last Progress
	var rate meter
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case p := <-r.started:
			r.tell(ctx, p)
			continue
		case <-tick.C:
		}
		r.mu.Lock()
		p := r.now
		r.mu.Unlock()
		if p == last {
			continue
		}
		if p.Task != last.Task {
			rate = meter{}
		}
		last = p
		rate.add(time.Now(), p.Done)
		p.Rate = rate.perSecond()
		if p.Total > 0 && n%3 == 0 {
			fmt.Fprintf(r.Console, "%s: %s\n", p.Task, rate.line(p.Done, p.Total))
		}
		r.tell(ctx, p)
	}
}

func (r *Run) tell(ctx context.Context, p Progress) {
	if !r.Client.Claimed() {
		return
	}
	if err := r.Client.Report(ctx, p); err != nil && ctx.Err() == nil {
		r.log.Warn("report", "err", err)
	}
}

// keepLog leaves the log on the new file system, if there is one, for whoever
// takes the disk out of a machine whose network failed.
func (r *Run) keepLog() {
	if len(r.mounts) == 0 {
		return
	}
	if err := r.put("/var/log/ingot/install.log", r.text.String(), 0o640); err != nil {
		r.log.Warn("the log stays with the server alone", "err", err)
	}
}

// meter measures a rate over the last seconds.
type meter struct {
	at   []time.Time
	done []int64
}

const meterWindow = 5

func (m *meter) add(t time.Time, done int64) {
	m.at, m.done = append(m.at, t), append(m.done, done)
	if len(m.at) > meterWindow {
		m.at, m.done = m.at[1:], m.done[1:]
	}
}

// perSecond is the rate of the window, or 0 when there is none yet.
func (m *meter) perSecond() int64 {
	n := len(m.at) - 1
	if n < 1 || m.done[n] <= m.done[0] {
		return 0
	}
	return int64(float64(m.done[n]-m.done[0]) / m.at[n].Sub(m.at[0]).Seconds())
}

// line renders `310 of 735 MB, 42%, 45 MB/s, 9 s left`.
func (m *meter) line(done, total int64) string {
	s := fmt.Sprintf("%d of %d MB, %d%%", done/1e6, total/1e6, 100*done/max(total, 1))
	rate := m.perSecond()
	if rate == 0 {
		return s
	}
	return fmt.Sprintf("%s, %d MB/s, %s left", s, rate/1e6, time.Duration((total-done)/rate)*time.Second)
}
