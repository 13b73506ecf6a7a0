// Package strict reads YAML that people write: unknown keys, wrong types and repeated keys
// are problems with a place, all of them are reported at once, and every value remembers
// the line it came from.
package strict

import (
	"bytes"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"ingot/internal/problem"
)

// Kind is what a Node is.
type Kind uint8

// The kinds of nodes.
const (
	Null Kind = iota
	Scalar
	List
	Map
)

// Node is one value of a document, with the place it came from.
type Node struct {
	Kind   Kind
	Source *problem.Source
	Line   int
	Col    int
	Off    int    // offset of a scalar's first byte in the source, -1 when it cannot be known
	Len    int    // bytes of a scalar in the source
	Text   string // Scalar: the text as written, quotes resolved
	Quoted bool   // Scalar: written in quotes or as a block
	Flow   bool   // Map, List: written in braces or brackets
	Items  []*Node
	Fields []Field
}

// Field is one key of a map.
type Field struct {
	Key  string
	Line int
	Col  int
	Node *Node
}

// maxNodes bounds what aliases can make of a small file.
const maxNodes = 200_000

// Problem is a problem at this node.
func (n *Node) Problem(format string, args ...any) problem.Problem {
	return n.Source.At(n.Line, n.Col, format, args...)
}

// Field returns the value of a key, or nil.
func (n *Node) Field(key string) *Node {
	if n == nil {
		return nil
	}
	for i := range n.Fields {
		if n.Fields[i].Key == key {
			return n.Fields[i].Node
		}
	}
	return nil
}

// Parse reads one YAML document. The result is never nil: an empty file is a Null node.
// What is wrong is added to probs; a syntax error hides the rest of its file.
func Parse(name string, data []byte, probs *problem.List) *Node {
	b := &builder{src: &problem.Source{Name: name, Data: data}, starts: lineStarts(data), probs: probs, anchors: map[string]ast.Node{}}
	empty := &Node{Source: b.src, Line: 1, Col: 1}
	if !utf8.Valid(data) {
		line := 1 + bytes.Count(data[:validLen(data)], []byte("\n"))
		probs.Add(b.src.At(line, 0, "not YAML: this line is not UTF-8"))
		return empty
	}
	file, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		probs.Add(b.syntax(err))
		return empty
	}
	var doc *Node
	for _, d := range file.Docs {
		if d.Body == nil {
			continue
		}
		if doc != nil {
			probs.Add(b.at(d.Body.GetToken(), "only one YAML document is allowed in this file"))
			break
		}
		doc = b.node(d.Body)
	}
	if doc == nil {
		return empty
	}
	return doc
}

// validLen is the length of the longest beginning of data that is UTF-8.
func validLen(data []byte) int {
	n := 0
	for n < len(data) {
		r, size := utf8.DecodeRune(data[n:])
		if r == utf8.RuneError && size == 1 {
			break
		}
		n += size
	}
	return n
}

type builder struct {
	src     *problem.Source
	starts  []int // offsets of lines
	probs   *problem.List
	anchors map[string]ast.Node
	open    []string // aliases being followed, against loops
	count   int
}

func (b *builder) syntax(err error) problem.Problem {
	var se *yaml.SyntaxError
	if errors.As(err, &se) && se.GetToken() != nil {
		return b.at(se.GetToken(), "not YAML: %s", se.GetMessage())
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	return b.src.At(0, 0, "not YAML: %s", text)
}

func (b *builder) at(tk *token.Token, format string, args ...any) problem.Problem {
	line, col := place(tk)
	return b.src.At(line, col, format, args...)
}

func place(tk *token.Token) (line, col int) {
	if tk == nil || tk.Position == nil {
		return 1, 1
	}
	return tk.Position.Line, tk.Position.Column
}

func (b *builder) node(n ast.Node) *Node {
	b.count++
	if b.count > maxNodes {
		if b.count == maxNodes+1 {
			b.probs.Add(b.at(n.GetToken(), "more than %d values in one file", maxNodes))
		}
		return &Node{Source: b.src, Line: 1, Col: 1}
	}
	line, col := place(n.GetToken())
	out := &Node{Source: b.src, Line: line, Col: col, Off: -1}
	switch v := n.(type) {
	case *ast.NullNode:
	case *ast.MappingNode:
		out.Kind, out.Flow = Map, v.IsFlowStyle
		for i, mv := range v.Values {
			if i == 0 && !v.IsFlowStyle {
				out.Line, out.Col = place(mv.Key.GetToken())
			}
			b.field(out, mv)
		}
	case *ast.MappingValueNode:
		out.Kind = Map
		out.Line, out.Col = place(v.Key.GetToken())
		b.field(out, v)
	case *ast.SequenceNode:
		out.Kind, out.Flow = List, v.IsFlowStyle
		for _, item := range v.Values {
			out.Items = append(out.Items, b.node(item))
		}
	case *ast.AnchorNode:
		b.anchors[v.Name.GetToken().Value] = v.Value
		return b.node(v.Value)
	case *ast.AliasNode:
		return b.alias(v)
	case *ast.TagNode:
		b.probs.Add(b.at(v.GetToken(), "YAML tags such as %s are not used here", v.GetToken().Value))
		return b.node(v.Value)
	case *ast.LiteralNode:
		out.Kind, out.Quoted, out.Text = Scalar, true, v.Value.Value
	default:
		b.scalar(out, n)
	}
	return out
}

func (b *builder) scalar(out *Node, n ast.Node) {
	tk := n.GetToken()
	out.Kind, out.Text = Scalar, tk.Value
	out.Quoted = tk.Type == token.DoubleQuoteType || tk.Type == token.SingleQuoteType
	if out.Quoted {
		return
	}
	out.Text = strings.TrimSpace(out.Text)
	if off := b.offset(out.Line, out.Col); off >= 0 && bytes.HasPrefix(b.src.Data[off:], []byte(out.Text)) {
		out.Off, out.Len = off, len(out.Text)
	}
}

// offset of a place in the source, -1 when it has none.
func (b *builder) offset(line, col int) int {
	if line > len(b.starts) {
		return -1
	}
	off := b.starts[line-1]
	for range col - 1 {
		if off >= len(b.src.Data) || b.src.Data[off] >= 0x80 {
			return -1
		}
		off++
	}
	return off
}

// lineStarts are the offsets at which the lines of data begin.
func lineStarts(data []byte) []int {
	starts := []int{0}
	for i, c := range data {
		if c == '\n' {
			starts = append(starts, i+1)
		}
	}
	return starts
}

func (b *builder) alias(v *ast.AliasNode) *Node {
	name := v.Value.GetToken().Value
	target, ok := b.anchors[name]
	for _, o := range b.open {
		ok = ok && o != name
	}
	if !ok {
		b.probs.Add(b.at(v.GetToken(), "alias *%s has no anchor before it", name))
		line, col := place(v.GetToken())
		return &Node{Source: b.src, Line: line, Col: col}
	}
	b.open = append(b.open, name)
	out := b.node(target)
	b.open = b.open[:len(b.open)-1]
	return out
}

func (b *builder) field(m *Node, mv *ast.MappingValueNode) {
	tk := mv.Key.GetToken()
	if k, ok := mv.Key.(*ast.MappingKeyNode); ok {
		tk = k.Value.GetToken()
	}
	line, col := place(tk)
	if mv.Key.IsMergeKey() {
		b.probs.Add(b.src.At(line, col, "merge keys (<<) are not used here: write the keys out, or use a class"))
		return
	}
	key := strings.TrimSpace(tk.Value)
	for _, f := range m.Fields {
		if f.Key == key {
			b.probs.Add(b.src.At(line, col, "%q is written twice (first on line %d)", key, f.Line))
			return
		}
	}
	value := b.node(mv.Value)
	if value.Kind == Null {
		value.Line, value.Col = line, col
	}
	m.Fields = append(m.Fields, Field{Key: key, Line: line, Col: col, Node: value})
}
