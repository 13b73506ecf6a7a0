package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"ingot/site"
)

// Folded names are a NODES expression of exactly these nodes.
func TestFold(t *testing.T) {
	for in, want := range map[string]string{
		"":                         "",
		"n1":                       "n1",
		"n01 n02 n03 n16":          "n[01-03,16]",
		"n8 n9 n10":                "n[8-10]",
		"n08 n09 n10 n11":          "n[08-11]",
		"n9 n09 n10":               "n[09-10],n9",
		"n0 n1":                    "n[0-1]",
		"db n2 n1 web-3a web-4a":   "db,n[1-2],web-[3-4]a",
		"rack1-n1 rack1-n2":        "rack1-n[1-2]",
		"n99999999999999999999999": "n99999999999999999999999",
		"same1 same1":              "same1",
	} {
		if got := fold(strings.Fields(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		s := &site.Site{}
		var names []string
		for range 1 + rng.IntN(12) {
			name := fmt.Sprintf([]string{"n%d", "n%02d", "n%03d", "x%da", "r1-%d", "db"}[rng.IntN(6)], rng.IntN(130))
			name, _, _ = strings.Cut(name, "%")
			if !slices.Contains(names, name) {
				names = append(names, name)
				s.Nodes = append(s.Nodes, &site.Node{Name: name})
			}
		}
		chosen, err := s.Select(fold(names))
		if err != nil || len(chosen) != len(names) {
			t.Fatalf("%q means %d nodes of %q, %v", fold(names), len(chosen), names, err)
		}
	}
}
