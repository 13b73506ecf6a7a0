package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"ingot/imager/wire"
)

// size renders bytes for people.
func size(n int64) string { return humanize.Bytes(uint64(max(n, 0))) }

// screen is where several pieces of work at once are watched: on a terminal a
// line that moves for each that is active, and what is said above them.
// Elsewhere a line every five seconds for each.
type screen struct {
	p        *program
	progress func(who string, w wire.Progress, rate int64) // for machines, instead; nil: for people

	mu    sync.Mutex
	group *mpb.Progress // nil where no terminal is, and after the end
}

func (p *program) screen() *screen {
	s := &screen{p: p}
	if p.terminal() {
		s.group = mpb.New(mpb.WithOutput(p.Stderr), mpb.WithWidth(40))
	}
	return s
}

// say tells the person something on the side.
func (s *screen) say(format string, args ...any) {
	s.write(s.p.Stderr, fmt.Sprintf(format+"\n", args...))
}

// answer writes to standard output.
func (s *screen) answer(text string) { s.write(s.p.Stdout, text) }

func (s *screen) write(w io.Writer, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f, ok := w.(*os.File); ok && s.group != nil && term.IsTerminal(int(f.Fd())) {
		if _, err := s.group.Write([]byte(text)); err == nil { // above the lines that move
			return
		}
	}
	fmt.Fprint(w, text)
}

// end removes the lines that move.
func (s *screen) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.group != nil {
		s.group.Shutdown()
		s.group = nil
	}
}

// bar shows the progress of one piece of work.
type bar struct {
	// config
	screen *screen
	label  string
	place  int // among the lines
	alone  bool

	// state
	mu   sync.Mutex
	line *mpb.Bar
	task string
	told bool // the node was told to switch
	last time.Time
	done int64 // at last
}

// bar is a line of the screen.
func (s *screen) bar(label string, place int) *bar {
	return &bar{screen: s, label: label, place: place}
}

// bar is a screen for one piece of work alone.
func (p *program) bar() *bar { return &bar{screen: p.screen(), alone: true} }

func (b *bar) show(w wire.Progress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.told = b.told || w.Task == "switch"
	if b.screen.progress != nil {
		b.tell(w)
		return
	}
	if b.screen.group == nil {
		if w.Task != b.task || time.Since(b.last) > 5*time.Second {
			b.task, b.last = w.Task, time.Now()
			b.screen.say("%s%s", b.label, plainProgress(w))
		}
		return
	}
	if w.Task != b.task {
		b.stop()
		b.task = w.Task
		b.line = b.begin(w)
	}
	if w.Total > 0 {
		b.line.SetTotal(w.Total, false)
	}
	b.line.SetCurrent(w.Done)
}

// tell tells machines, once a second of each task.
func (b *bar) tell(w wire.Progress) {
	since := time.Since(b.last)
	if w.Task == b.task && since < time.Second {
		return
	}
	var rate int64
	if w.Task == b.task && w.Total > 0 {
		rate = int64(float64(w.Done-b.done) / since.Seconds())
	}
	b.task, b.last, b.done = w.Task, time.Now(), w.Done
	b.screen.progress(strings.TrimSuffix(b.label, ": "), w, rate)
}

// begin adds a line for a task: a bar where it is known how much there is to do.
func (b *bar) begin(w wire.Progress) *mpb.Bar {
	place, name := mpb.BarPriority(b.place), mpb.PrependDecorators(decor.Name(b.label+w.Task+" ", decor.WCSyncSpaceR))
	if w.Total == 0 {
		return b.screen.group.AddSpinner(0, place, name)
	}
	return b.screen.group.AddBar(w.Total, place, name, mpb.AppendDecorators(decor.CountersKibiByte("% .0f / % .0f"), decor.Name("  "),
		decor.AverageSpeed(decor.SizeB1024(0), "% .0f"), decor.Name("  "), decor.AverageETA(decor.ET_STYLE_GO)))
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

// switching reports whether the node was told to switch: from then on it may have.
func (b *bar) switching() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.told
}

func (b *bar) stop() {
	if b.line != nil {
		b.line.Abort(true)
		b.line = nil
	}
}

func (b *bar) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stop()
	b.task = ""
	if b.alone {
		b.screen.end()
	}
}

// commandContext is exec.CommandContext with a tool that is asked to end
// before it is killed, so that it can clean up (mmdebstrap unmounts).
func commandContext(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.Cancel = func() error { return c.Process.Signal(interruptSignal()) }
	c.WaitDelay = 20 * time.Second
	return c
}
