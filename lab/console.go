package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// Line is a line of a console.
type Line struct {
	At   time.Duration // since power on, of its first character
	Text string        // without control characters
}

func (l Line) String() string { return fmt.Sprintf("[%8.3f] %s", l.At.Seconds(), l.Text) }

// ConsoleError says that a machine stopped on its way.
type ConsoleError struct {
	Machine string
	Saw     string // the text of FailOn, or "power off"
	Tail    []Line // the last lines of the console
}

func (e *ConsoleError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "machine %q: %s on its console; its last lines:", e.Machine, e.Saw)
	for _, l := range e.Tail {
		fmt.Fprintf(&b, "\n\t%s", l)
	}
	return b.String()
}

// console splits what a serial port says into lines, writes them to a log with their times, and wakes who
// waits for a text. Each power on has a new one; the log goes on.
type console struct {
	// config
	machine string
	failOn  []string
	log     io.Writer
	begin   time.Time
	onFail  func(saw string)

	// state
	mu     sync.Mutex
	filter ansi
	lines  []Line
	part   []byte        // of the line that has not ended: prompts do not end
	partAt time.Duration // of its first character
	cursor int           // line in which Expect found its text last
	offset int           // in that line, after the text
	failed *ConsoleError
	closed bool
	news   chan struct{} // closed when anything of the state changes
}

func newConsole(machine string, failOn []string, log io.Writer, onFail func(string)) *console {
	return &console{machine: machine, failOn: failOn, log: log, begin: time.Now(), onFail: onFail, news: make(chan struct{})}
}

// Write implements io.Writer; it never fails, so that the machine does not stop with a full log disk.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range p {
		switch r := c.filter.feed(b); r {
		case skipByte:
		case newLine:
			c.endLine()
		case '\b':
			c.part = c.part[:max(0, len(c.part)-1)]
		default:
			if len(c.part) == 0 {
				c.partAt = time.Since(c.begin)
			}
			c.part = append(c.part, r)
			if len(c.part) >= 4096 {
				c.endLine()
			}
		}
	}
	c.check(string(c.part))
	c.wake()
	return len(p), nil
}

// endLine ends the current line, unless it is empty.
func (c *console) endLine() {
	text := strings.TrimRight(string(c.part), " ")
	c.part = c.part[:0]
	if text == "" {
		return
	}
	l := Line{At: c.partAt, Text: text}
	c.lines = append(c.lines, l)
	fmt.Fprintln(c.log, l) // see Write
	c.check(text)
}

// check looks for the texts that mean failure.
func (c *console) check(text string) {
	if c.failed != nil || text == "" {
		return
	}
	for _, f := range c.failOn {
		if strings.Contains(text, f) {
			c.failed = c.errorOf(fmt.Sprintf("%q", f))
			c.onFail(f)
			return
		}
	}
}

// errorOf describes the console as it is.
func (c *console) errorOf(saw string) *ConsoleError {
	tail := append([]Line(nil), c.lines[max(0, len(c.lines)-12):]...)
	if len(c.part) > 0 {
		tail = append(tail, Line{At: c.partAt, Text: string(c.part)})
	}
	return &ConsoleError{Machine: c.machine, Saw: saw, Tail: tail}
}

// wake tells who waits that there is something new.
func (c *console) wake() {
	close(c.news)
	c.news = make(chan struct{})
}

// close ends the console with the machine.
func (c *console) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endLine()
	c.closed = true
	c.wake()
}

// expect waits for the next line with text in it, after the one that was found before.
func (c *console) expect(ctx context.Context, text string) (Line, error) {
	for {
		line, news, err := c.find(text)
		if err != nil || news == nil {
			return line, err
		}
		select {
		case <-news:
		case <-ctx.Done():
			c.mu.Lock()
			e := c.errorOf(fmt.Sprintf("no %q", text))
			c.mu.Unlock()
			return Line{}, errors.Join(ctx.Err(), e)
		}
	}
}

// find returns the line, or an error, or what to wait for.
func (c *console) find(text string) (Line, <-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, from := c.cursor, c.offset; i <= len(c.lines); i, from = i+1, 0 {
		l := Line{At: c.partAt, Text: string(c.part)}
		if i < len(c.lines) {
			l = c.lines[i]
		}
		from = min(from, len(l.Text)) // backspaces and spaces at the end may be gone
		if at := strings.Index(l.Text[from:], text); at >= 0 {
			c.cursor, c.offset = i, from+at+len(text)
			return l, nil, nil
		}
	}
	if c.failed != nil {
		return Line{}, nil, c.failed
	}
	if c.closed {
		return Line{}, nil, c.errorOf(fmt.Sprintf("power off and no %q", text))
	}
	return Line{}, c.news, nil
}

// all returns the lines so far.
func (c *console) all() []Line {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Line(nil), c.lines...)
}

// failure returns the error of a text that means failure, or nil.
func (c *console) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed == nil {
		return nil
	}
	return c.failed
}

// What ansi makes of a byte beside the byte itself.
const (
	skipByte = 0
	newLine  = '\n'
)

// ansi takes terminal control (ECMA-48) out of a stream. Firmware paints its screens: a cursor that is
// moved is taken for the end of a line.
type ansi struct{ state byte }

// feed returns skipByte, newLine, '\b' or b.
func (a *ansi) feed(b byte) byte {
	switch a.state {
	case 0x1b:
		a.state = 0
		if b == '[' || b == ']' || b == '(' || b == ')' {
			a.state = b
		}
		return skipByte
	case '(', ')': // a character set
		a.state = 0
		return skipByte
	case ']': // an operating system command, up to BEL
		if b == 7 {
			a.state = 0
		}
		return skipByte
	case '[':
		if b < 0x40 || b > 0x7e {
			return skipByte
		}
		a.state = 0
		if strings.IndexByte("HfJABEF", b) >= 0 {
			return newLine
		}
		return skipByte
	}
	switch {
	case b == 0x1b:
		a.state = b
		return skipByte
	case b == '\n' || b == '\r':
		return newLine
	case b == '\t':
		return ' '
	case b == '\b':
		return b
	case b < 0x20 || b == 0x7f:
		return skipByte
	}
	return b
}
