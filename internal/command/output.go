package command

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// keepEach is how much of each end of an output is kept where nobody says.
const keepEach = 4 << 10

// MaxLine is the most that Line returns, in bytes.
const MaxLine = 200

// Ends is a writer that keeps the beginning and the end of what is written, so that a
// program may print for ever. It is safe for concurrent use; the zero value is ready.
type Ends struct {
	Keep int // bytes of each end; 0: 4096

	mu         sync.Mutex
	head, tail []byte
	lost       int64
}

// Write never fails.
func (e *Ends) Write(b []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n, keep := len(b), e.Keep
	if keep <= 0 {
		keep = keepEach
	}
	if room := min(keep-len(e.head), len(b)); room > 0 {
		e.head = append(e.head, b[:room]...)
		b = b[room:]
	}
	if over := len(b) - keep; over > 0 {
		e.lost += int64(over)
		b = b[over:]
	}
	if over := len(e.tail) + len(b) - keep; over > 0 {
		e.lost += int64(over)
		e.tail = append(e.tail[:0], e.tail[over:]...)
	}
	e.tail = append(e.tail, b...)
	return n, nil
}

// Bytes returns what was kept, with a line in between that says how much was not.
func (e *Ends) Bytes() []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := append([]byte{}, e.head...)
	if e.lost > 0 {
		out = fmt.Appendf(out, "\n[%d bytes left out]\n", e.lost)
	}
	return append(out, e.tail...)
}

// Lost is the number of bytes that were not kept.
func (e *Ends) Lost() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.lost
}

// escapes are the sequences that move a terminal's cursor, colour its text or set its title: ECMA-48, section 5.4, and OSC.
var escapes = regexp.MustCompile(`\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(\x07|\x1b\\)?|[ -/]*[0-~])`)

// Line makes one printable line of at most MaxLine bytes of any text: what a program or a server says may
// hold anything. Escape sequences go, white space becomes one space, what is not printable a question mark.
func Line(text string) string {
	text = strings.Join(strings.Fields(escapes.ReplaceAllString(text, "")), " ")
	text = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
	if len(text) <= MaxLine {
		return text
	}
	const more = "..."
	cut := MaxLine - len(more)
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + more
}

// LastLine is the last line of an output that says anything, as Line gives it.
func LastLine(out []byte) string {
	lines := strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' || r == '\r' })
	for i := len(lines) - 1; i >= 0; i-- {
		if l := Line(lines[i]); l != "" {
			return l
		}
	}
	return ""
}
