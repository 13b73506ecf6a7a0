package main

import (
	"context"
	"fmt"
	"os/exec"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"ingot/imager/wire"
)

// size renders bytes for people.
func size(n int64) string { return humanize.Bytes(uint64(max(n, 0))) }

// bar shows the progress of one long piece of work: a line that moves on a
// terminal, and elsewhere a line every five seconds.
type bar struct {
	// config
	p     *program
	label string

	// state
	mu    sync.Mutex
	group *mpb.Progress
	line  *mpb.Bar
	task  string
	last  time.Time
}

func (p *program) bar() *bar { return &bar{p: p} }

// barOf is a bar for one node.
func (p *program) barOf(node string) *bar { return &bar{p: p, label: node + ": "} }

func (b *bar) show(w wire.Progress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.p.terminal() {
		if w.Task != b.task || time.Since(b.last) > 5*time.Second {
			b.task, b.last = w.Task, time.Now()
			b.p.say("%s%s", b.label, plainProgress(w))
		}
		return
	}
	if w.Task != b.task {
		b.stop()
		b.task = w.Task
		b.group = mpb.New(mpb.WithOutput(b.p.Stderr), mpb.WithWidth(40))
		b.line = b.group.AddBar(w.Total, mpb.PrependDecorators(decor.Name(b.label+w.Task+" ")),
			mpb.AppendDecorators(decor.CountersKibiByte("% .0f / % .0f"), decor.Name("  "), decor.AverageSpeed(decor.SizeB1024(0), "% .0f"), decor.Name("  "), decor.AverageETA(decor.ET_STYLE_GO)))
	}
	if w.Total > 0 {
		b.line.SetTotal(w.Total, false)
	}
	b.line.SetCurrent(w.Done)
}

func plainProgress(w wire.Progress) string {
	switch {
	case w.Total > 0:
		return fmt.Sprintf("%s: %s of %s", w.Task, size(w.Done), size(w.Total))
	case w.Done > 0:
		return fmt.Sprintf("%s: %s", w.Task, size(w.Done))
	}
	return w.Task
}

func (b *bar) stop() {
	if b.line == nil {
		return
	}
	b.line.SetTotal(-1, true)
	b.group.Wait()
	b.line, b.group = nil, nil
}

func (b *bar) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stop()
	b.task = ""
}

// commandContext is exec.CommandContext with a tool that is asked to end
// before it is killed, so that it can clean up (mmdebstrap unmounts).
func commandContext(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.Cancel = func() error { return c.Process.Signal(interruptSignal()) }
	c.WaitDelay = 20 * time.Second
	return c
}
