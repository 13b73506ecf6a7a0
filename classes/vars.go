package classes

import (
	"errors"
	"io/fs"
	"slices"
	"strings"

	"ingot/internal/problem"
)

// Assignment is one NAME=value of a class/CLASS.var file that needs no shell to understand.
type Assignment struct {
	Name  string
	Value string
	Line  int
}

// vars reads class/CLASS.var of every class in order.
func (s *Space) vars(r *Resolved, _ *problem.List) error {
	chain := map[string][]Value{}
	var order []string
	for _, class := range r.Classes {
		file := "class/" + class + ".var"
		text, err := s.readFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		assigned, shell, notes := ParseVars(file, text, r.Vars)
		r.Notes.Add(notes...)
		for _, name := range shell {
			delete(r.Vars, name) // the shell on the node decides
			delete(chain, name)
		}
		for _, a := range assigned {
			if slices.Contains(shell, a.Name) {
				continue
			}
			if chain[a.Name] == nil {
				order = append(order, a.Name)
			}
			r.Vars[a.Name] = a.Value
			chain[a.Name] = append([]Value{{Kind: "var", Key: a.Name, Value: masked(a), Class: class, File: file, Line: a.Line}}, chain[a.Name]...)
		}
	}
	for _, name := range order {
		if c := chain[name]; c != nil {
			c[0].Overridden = c[1:]
			r.Values = append(r.Values, c[0])
			delete(chain, name)
		}
	}
	return nil
}

// masked is a value for people's eyes: names that end in PW hold secrets, by FAI's custom.
func masked(a Assignment) string {
	if strings.HasSuffix(a.Name, "PW") && a.Value != "" {
		return "********"
	}
	return a.Value
}

// varParser reads the part of the shell's language that is plain.
type varParser struct {
	src   *problem.Source
	text  string
	pos   int
	line  int
	depth int // inside if, case, loops, functions
	known map[string]string
	out   []Assignment

	doubts []string // variables that lines for the shell assign
	notes  problem.List
}

// ParseVars reads the plain assignments of a .var file: `NAME=value`, quoted or not, with
// comments, and with $NAME of variables known before. Lines that need a shell are noted,
// and so are the variables that they assign: those get their value on the node only. Secrets
// are values like others here; Resolved.Values masks those whose names end in PW.
func ParseVars(file string, text []byte, known map[string]string) (assigned []Assignment, shell []string, notes problem.List) {
	p := &varParser{src: &problem.Source{Name: file, Data: text}, text: string(text), line: 1, known: map[string]string{}}
	for k, v := range known {
		p.known[k] = v
	}
	for p.pos < len(p.text) {
		p.statement()
	}
	return p.out, p.doubts, p.notes
}

// statement reads a line.
func (p *varParser) statement() {
	start, line := p.pos, p.line
	p.blanks()
	if p.end() {
		p.rest()
		return
	}
	if p.depth == 0 {
		if found, ok := p.assignments(); ok {
			p.out = append(p.out, found...)
			for _, a := range found {
				p.known[a.Name] = a.Value
			}
			p.rest()
			return
		}
	}
	p.pos, p.line = start, line
	p.shell()
}

// assignments reads `[export] A=x B=y` up to the end of the line; ok is false when a shell
// is needed.
func (p *varParser) assignments() (found []Assignment, ok bool) {
	for _, word := range []string{"export ", "readonly ", "declare -x "} {
		if strings.HasPrefix(p.text[p.pos:], word) {
			p.pos += len(word)
			p.blanks()
			break
		}
	}
	local := map[string]string{}
	for !p.end() {
		line := p.line
		name := p.name()
		if name == "" || p.peek() != '=' {
			return nil, false
		}
		p.pos++
		value, ok := p.word(local)
		if !ok {
			return nil, false
		}
		local[name] = value
		found = append(found, Assignment{name, value, line})
		p.blanks()
		if p.peek() == ';' {
			p.pos++
			p.blanks()
		}
	}
	return found, true
}

func (p *varParser) peek() byte {
	if p.pos < len(p.text) {
		return p.text[p.pos]
	}
	return 0
}

func (p *varParser) blanks() {
	for p.peek() == ' ' || p.peek() == '\t' {
		p.pos++
	}
}

// end of the line, or a comment, which begins after a blank.
func (p *varParser) end() bool {
	c := p.peek()
	return p.pos >= len(p.text) || c == '\n' || c == '#'
}

// rest skips to the next line.
func (p *varParser) rest() {
	for p.pos < len(p.text) && p.text[p.pos] != '\n' {
		p.pos++
	}
	if p.pos < len(p.text) {
		p.pos++
		p.line++
	}
}

func (p *varParser) name() string {
	start := p.pos
	for c := p.peek(); c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || p.pos > start && '0' <= c && c <= '9'; c = p.peek() {
		p.pos++
	}
	return p.text[start:p.pos]
}

// word reads the value of an assignment.
func (p *varParser) word(local map[string]string) (string, bool) {
	var b strings.Builder
	for {
		c := p.peek()
		switch {
		case p.pos >= len(p.text) || strings.IndexByte(" \t\n;", c) >= 0:
			return b.String(), true
		case c == '\'':
			end := strings.IndexByte(p.text[p.pos+1:], '\'')
			if end < 0 {
				return "", false
			}
			p.take(&b, p.text[p.pos+1:p.pos+1+end], end+2)
		case c == '"':
			if !p.double(&b, local) {
				return "", false
			}
		case c == '\\' && p.pos+1 < len(p.text):
			if p.text[p.pos+1] == '\n' {
				p.line++
			} else {
				b.WriteByte(p.text[p.pos+1])
			}
			p.pos += 2
		case c == '$':
			if !p.variable(&b, local) {
				return "", false
			}
		case strings.IndexByte("`(){}[]&|<>*?~!\\", c) >= 0:
			return "", false
		default:
			b.WriteByte(c)
			p.pos++
		}
	}
}

func (p *varParser) take(b *strings.Builder, text string, n int) {
	b.WriteString(text)
	p.line += strings.Count(text, "\n")
	p.pos += n
}

// double reads "...".
func (p *varParser) double(b *strings.Builder, local map[string]string) bool {
	p.pos++
	for p.pos < len(p.text) {
		switch c := p.text[p.pos]; c {
		case '"':
			p.pos++
			return true
		case '`':
			return false
		case '$':
			if !p.variable(b, local) {
				return false
			}
		case '\\':
			next := p.text[p.pos+1:]
			switch {
			case next != "" && strings.IndexByte("$`\"\\", next[0]) >= 0:
				b.WriteByte(next[0])
				p.pos += 2
			case next != "" && next[0] == '\n':
				p.line++
				p.pos += 2
			default:
				b.WriteByte(c)
				p.pos++
			}
		default:
			p.take(b, p.text[p.pos:p.pos+1], 1)
		}
	}
	return false
}

// variable reads $NAME or ${NAME} of a known variable.
func (p *varParser) variable(b *strings.Builder, local map[string]string) bool {
	p.pos++
	brace := p.peek() == '{'
	if brace {
		p.pos++
	}
	name := p.name()
	value, ok := local[name]
	if !ok {
		value, ok = p.known[name]
	}
	if name == "" || !ok {
		return false
	}
	if brace {
		if p.peek() != '}' {
			return false
		}
		p.pos++
	}
	b.WriteString(value)
	return true
}

// shell leaves a line to the shell on the node and remembers what it may assign.
func (p *varParser) shell() {
	line := p.src.Line(p.line)
	if p.depth == 0 {
		col := len(line) - len(strings.TrimLeft(line, " \t")) + 1
		p.notes.Add(p.src.At(p.line, col, "needs a shell: it runs on the node, templates on the server do not see it"))
	}
	start := p.pos
	p.rest()
	if !unfinished(p.text[start:p.pos]) {
		p.hereDocument(line)
	}
	for p.pos < len(p.text) && unfinished(p.text[start:p.pos]) {
		p.rest()
	}
	for line := range strings.Lines(p.text[start:p.pos]) {
		line, _, _ = strings.Cut(line, " #")
		p.words(strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\n;&|()", r) }))
	}
}

func (p *varParser) words(words []string) {
	for i, w := range words {
		switch w {
		case "if", "case", "for", "while", "until", "select", "{":
			p.depth++
		case "fi", "esac", "done", "}":
			p.depth = max(0, p.depth-1)
		}
		if name, _, ok := strings.Cut(w, "="); ok {
			name, _, _ = strings.Cut(strings.TrimSuffix(name, "+"), "[")
			p.doubt(strings.TrimLeft(name, `"'{$:`))
		}
		if (w == "read" || w == "for" || w == "unset" || w == "local" || w == "getopts") && i+1 < len(words) {
			p.doubt(words[i+1])
		}
	}
}

// unfinished says whether text stops inside quotes or parentheses, or with a backslash.
func unfinished(text string) bool {
	var quote byte
	depth := 0
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\' && quote != '\'':
			i++
			if i >= len(text)-1 {
				return true
			}
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case c == '(':
			depth++
		case c == ')':
			depth = max(0, depth-1)
		case c == '#' && (i == 0 || text[i-1] == ' ' || text[i-1] == '\t' || text[i-1] == '\n'):
			for i < len(text) && text[i] != '\n' {
				i++
			}
		}
	}
	return quote != 0 || depth > 0
}

// hereDocument skips the lines up to the word after <<.
func (p *varParser) hereDocument(line string) {
	_, after, ok := strings.Cut(line, "<<")
	if !ok || strings.HasPrefix(after, "<") {
		return
	}
	fields := strings.FieldsFunc(strings.TrimPrefix(after, "-"), func(r rune) bool { return strings.ContainsRune(" \t;&|()'\"\\", r) })
	if len(fields) == 0 {
		return
	}
	for p.pos < len(p.text) {
		done := strings.TrimSpace(p.src.Line(p.line)) == fields[0]
		p.rest()
		if done {
			return
		}
	}
}

func isName(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == "" && (s[0] < '0' || s[0] > '9')
}

func (p *varParser) doubt(name string) {
	if !isName(name) {
		return
	}
	if !slices.Contains(p.doubts, name) {
		p.doubts = append(p.doubts, name)
	}
	delete(p.known, name)
}
