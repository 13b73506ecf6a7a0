package strict

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"ingot/internal/problem"
)

type inner struct {
	Name string     `yaml:"name"`
	Addr netip.Addr `yaml:"addr"`
}

type outer struct {
	Text  string            `yaml:"text"`
	On    bool              `yaml:"on"`
	N     int               `yaml:"n"`
	For   time.Duration     `yaml:"for"`
	Items []inner           `yaml:"items"`
	Vars  map[string]string `yaml:"vars"`
	Sub   *inner            `yaml:"sub"`
}

func decode(text string) (outer, *Decoded, problem.List) {
	var out outer
	var probs problem.List
	d := Decode(Parse("f.yaml", []byte(text), &probs), &out, &probs)
	return out, d, probs.Sorted()
}

func TestDecode(t *testing.T) {
	out, d, probs := decode("text: 0012\non: true\nn: 5\nfor: 10m\nitems:\n  - name: a\n    addr: 10.0.0.1\n  - {name: b}\nvars: {a: 1, b: \"x\"}\nsub:\n")
	if len(probs) > 0 {
		t.Fatal(probs)
	}
	if out.Text != "0012" || !out.On || out.N != 5 || out.For != 10*time.Minute || len(out.Items) != 2 || out.Vars["a"] != "1" || out.Sub != nil {
		t.Errorf("decoded %+v", out)
	}
	if n := d.At("items[1].addr"); n.Line != 8 || n.Col != 5 {
		t.Errorf("absent value leads to %d:%d", n.Line, n.Col)
	}
	if n := d.At("items[0].addr"); n.Line != 7 || n.Col != 11 || n.Off != strings.Index(string(n.Source.Data), "10.0.0.1") {
		t.Errorf("place is %d:%d offset %d", n.Line, n.Col, n.Off)
	}
}

func TestProblems(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"unknown key", "text: a\nitmes: []\n", `f.yaml:2:1: unknown key "itmes" (did you mean "items"?)`},
		{"all at once", "on: maybe\nn: x\nfor: 3\n", "f.yaml:3:6:"},
		{"type", "items: 5\n", "f.yaml:1:8: wants a list"},
		{"map", "- a\n", "f.yaml:1:1: wants a map"},
		{"twice", "n: 1\nn: 2\n", `f.yaml:2:1: "n" is written twice (first on line 1)`},
		{"syntax", "a: [1\nb: 2\n", "not YAML"},
		{"address", "items: [{addr: 10.0.0.300}]\n", "f.yaml:1:16:"},
		{"merge", "sub:\n  <<: {name: x}\n", "merge keys"},
		{"tag", "text: !!str 5\n", "tags"},
		{"alias", "text: *nope\n", "no anchor"},
		{"documents", "n: 1\n---\nn: 2\n", "only one"},
		{"quoted number", "n: \"5\"\n", "wants a number"},
		{"empty item", "items:\n  -\n", "empty item"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, probs := decode(tt.text)
			if probs.Err() == nil || !strings.Contains(probs.Error(), tt.want) {
				t.Errorf("got %v\nwant %q", probs.Err(), tt.want)
			}
		})
	}
	if _, _, probs := decode("on: maybe\nn: x\nfor: 3\nzz: 1\n"); len(probs) != 4 {
		t.Errorf("%d problems of 4: %v", len(probs), probs)
	}
}

func TestAnchors(t *testing.T) {
	out, _, probs := decode("text: &x hello\nvars: {a: *x}\n")
	if len(probs) > 0 || out.Vars["a"] != "hello" {
		t.Errorf("%v %v", out, probs)
	}
}

func FuzzParse(f *testing.F) {
	seeds := []string{"a: 1\n", "- x\n- {b: [c]}\n", "a: &b 1\nc: *b\n", "a: |\n  x\n", "? a\n: b\n", "%YAML 1.2\n---\na", "a: 'q'\n\tb"}
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var probs problem.List
		var out outer
		Decode(Parse("f", data, &probs), &out, &probs)
		_ = probs.Err()
	})
}
