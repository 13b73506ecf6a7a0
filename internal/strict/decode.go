package strict

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"ingot/internal/problem"
)

// Decoded tells where the values of a decoded document came from, by path:
// "nics[0].mac". Paths of absent values lead to the nearest value around them.
type Decoded struct {
	root  *Node
	nodes map[string]*Node
	probs *problem.List
}

// Decode stores a node into out, a pointer to a struct, and adds what does not fit to
// probs: unknown keys, wrong types, bad values. A null value leaves its field as it is,
// so that defaults are set before. Keys are the `yaml` tags.
func Decode(n *Node, out any, probs *problem.List) *Decoded {
	d := &Decoded{root: n, nodes: map[string]*Node{"": n}, probs: probs}
	d.value(n, reflect.ValueOf(out).Elem(), "")
	return d
}

// Has says whether a value was written at path.
func (d *Decoded) Has(path string) bool { return d.nodes[path] != nil }

// At is the node at path, or the nearest one around it.
func (d *Decoded) At(path string) *Node {
	for {
		if n := d.nodes[path]; n != nil {
			return n
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return d.root
		}
		path = path[:i]
	}
}

// Bad adds a problem at path.
func (d *Decoded) Bad(path, format string, args ...any) {
	d.probs.Add(d.At(path).Problem(format, args...))
}

func (d *Decoded) value(n *Node, v reflect.Value, path string) {
	d.nodes[path] = n
	if n.Kind == Null {
		return
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		d.text(n, u)
		return
	}
	if v.Type() == reflect.TypeFor[time.Duration]() {
		d.duration(n, v)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.structure(n, v, path)
	case reflect.Slice:
		d.slice(n, v, path)
	case reflect.Map:
		d.mapping(n, v, path)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), path)
	case reflect.String:
		if d.want(n, Scalar, "a text") {
			v.SetString(n.Text)
		}
	case reflect.Bool:
		d.boolean(n, v)
	case reflect.Int:
		d.integer(n, v)
	default:
		panic(fmt.Sprintf("BUG: strict cannot decode into %s", v.Type()))
	}
}

func (d *Decoded) want(n *Node, k Kind, what string) bool {
	if n.Kind != k {
		d.probs.Add(n.Problem("wants %s, found %s", what, n.what()))
	}
	return n.Kind == k
}

func (n *Node) what() string {
	switch n.Kind {
	case Scalar:
		return fmt.Sprintf("%q", n.Text)
	case List:
		return "a list"
	case Map:
		return "a map"
	}
	return "nothing"
}

func (d *Decoded) text(n *Node, u encoding.TextUnmarshaler) {
	if !d.want(n, Scalar, "a text") {
		return
	}
	if err := u.UnmarshalText([]byte(n.Text)); err != nil {
		d.probs.Add(n.Problem("%v", err))
	}
}

func (d *Decoded) duration(n *Node, v reflect.Value) {
	if !d.want(n, Scalar, "a duration such as 10m") {
		return
	}
	dur, err := time.ParseDuration(n.Text)
	if err != nil || dur < 0 {
		d.probs.Add(n.Problem("%q is not a duration such as 90s, 10m or 1h", n.Text))
		return
	}
	v.SetInt(int64(dur))
}

func (d *Decoded) boolean(n *Node, v reflect.Value) {
	switch {
	case !d.want(n, Scalar, "true or false"):
	case n.Quoted || (n.Text != "true" && n.Text != "false"):
		d.probs.Add(n.Problem("wants true or false, found %q", n.Text))
	default:
		v.SetBool(n.Text == "true")
	}
}

func (d *Decoded) integer(n *Node, v reflect.Value) {
	if !d.want(n, Scalar, "a number") {
		return
	}
	i, err := strconv.Atoi(n.Text)
	if err != nil || n.Quoted {
		d.probs.Add(n.Problem("wants a number, found %q", n.Text))
		return
	}
	v.SetInt(int64(i))
}

func (d *Decoded) slice(n *Node, v reflect.Value, path string) {
	if !d.want(n, List, "a list") {
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Items), len(n.Items)))
	for i, item := range n.Items {
		if item.Kind == Null {
			d.probs.Add(item.Problem("an empty item in a list"))
		}
		d.value(item, v.Index(i), fmt.Sprintf("%s[%d]", path, i))
	}
}

func (d *Decoded) mapping(n *Node, v reflect.Value, path string) {
	if !d.want(n, Map, "a map") {
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for _, f := range n.Fields {
		item := reflect.New(v.Type().Elem()).Elem()
		d.value(f.Node, item, join(path, f.Key))
		v.SetMapIndex(reflect.ValueOf(f.Key).Convert(v.Type().Key()), item)
	}
}

func (d *Decoded) structure(n *Node, v reflect.Value, path string) {
	if !d.want(n, Map, "a map of keys") {
		return
	}
	fields := map[string]int{}
	var known []string
	for i := range v.NumField() {
		if key := tag(v.Type().Field(i)); key != "" {
			fields[key] = i
			known = append(known, key)
		}
	}
	for _, f := range n.Fields {
		i, ok := fields[f.Key]
		if !ok {
			d.probs.Add(n.Source.At(f.Line, f.Col, "unknown key %q%s", f.Key, suggest(f.Key, known)))
			continue
		}
		d.value(f.Node, v.Field(i), join(path, f.Key))
	}
}

func suggest(key string, known []string) string {
	if hint := problem.Hint(key, known); hint != "" {
		return hint
	}
	return "; known here: " + strings.Join(known, ", ")
}

// tag is the key of a struct's field, empty for one that is not written.
func tag(f reflect.StructField) string {
	key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	if key == "-" {
		return ""
	}
	return key
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
