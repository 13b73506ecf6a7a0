// Package problem says what is wrong in a file that people write, and where: every
// problem has a file, a line and a column, and is shown with its source line and a caret.
package problem

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that is wrong in a file. Line and Col count from 1, Col
// in characters; Line 0 means the file as a whole.
type Problem struct {
	File string
	Line int
	Col  int
	Text string // lower case, no full stop
	Code string // the source line, without its line end
}

// Error is `file:line:col: text`, followed by the source line and a caret where both are known.
func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
		if p.Col > 0 {
			fmt.Fprintf(&b, ":%d", p.Col)
		}
	}
	b.WriteString(": ")
	b.WriteString(p.Text)
	if strings.TrimSpace(p.Code) != "" {
		b.WriteString("\n    " + visible(p.Code))
		if p.Col > 0 {
			b.WriteString("\n    " + pad(p.Code, p.Col-1) + "^")
		}
	}
	return b.String()
}

// visible replaces what would move a terminal's cursor; tabs stay, pad repeats them.
func visible(code string) string {
	return strings.Map(func(r rune) rune { // bytes that are not UTF-8 come as U+FFFD
		if r != '\t' && (r < ' ' || r == 0x7f) {
			return '?'
		}
		return r
	}, code)
}

// pad is the white space that puts a caret under column n of code.
func pad(code string, n int) string {
	var b strings.Builder
	for _, r := range code {
		if n == 0 {
			break
		}
		n--
		if r == '\t' {
			b.WriteByte('\t')
		} else {
			b.WriteByte(' ')
		}
	}
	return b.String() + strings.Repeat(" ", n)
}

// List is several problems: an error as soon as it holds one.
type List []Problem

// Error shows every problem, one after another.
func (l List) Error() string {
	text := make([]string, len(l))
	for i, p := range l {
		text[i] = p.Error()
	}
	return strings.Join(text, "\n")
}

// Err is nil for an empty list, else the list sorted by file, line and column
// with repetitions removed.
func (l List) Err() error {
	if len(l) == 0 {
		return nil
	}
	return l.Sorted()
}

// Sorted returns the problems by file, line, column and text, each once.
func (l List) Sorted() List {
	out := slices.Clone(l)
	slices.SortStableFunc(out, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Col, b.Col), cmp.Compare(a.Text, b.Text))
	})
	return slices.Compact(out)
}

// Add appends problems.
func (l *List) Add(p ...Problem) { *l = append(*l, p...) }

// Source is a file's name and text, from which problems take their source line.
type Source struct {
	Name string
	Data []byte
}

// At is a problem at a place of the source.
func (s *Source) At(line, col int, format string, args ...any) Problem {
	return Problem{File: s.Name, Line: line, Col: col, Text: fmt.Sprintf(format, args...), Code: s.Line(line)}
}

// Line is the text of a line, counted from 1, without its end; empty when there is none.
func (s *Source) Line(n int) string {
	if n < 1 {
		return ""
	}
	rest := s.Data
	for i := 1; ; i++ {
		line, after, more := bytes.Cut(rest, []byte("\n"))
		if i == n {
			return strings.TrimRight(string(line), "\r")
		}
		if !more {
			return ""
		}
		rest = after
	}
}

// Nearest returns the candidate that looks most like word, or "" when none is near
// enough to be what was meant.
func Nearest(word string, candidates []string) string {
	best, dist := "", max(1, len(word)/3)+1
	for _, c := range candidates {
		if d := distance(strings.ToLower(word), strings.ToLower(c)); d < dist {
			best, dist = c, d
		}
	}
	return best
}

// Hint is ` (did you mean "x"?)` for the nearest candidate, or nothing.
func Hint(word string, candidates []string) string {
	if near := Nearest(word, candidates); near != "" {
		return fmt.Sprintf(" (did you mean %q?)", near)
	}
	return ""
}

// distance is the number of characters to insert, delete, replace or swap with the next.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	rows := make([][]int, len(x)+1)
	for i := range rows {
		rows[i] = make([]int, len(y)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(x); i++ {
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(x)][len(y)]
}
