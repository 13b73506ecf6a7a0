package main

import (
	"io"
	"slices"
	"strings"
	"testing"
)

func TestReorder(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"nothing", "ingot", "ingot"},
		{"flags behind arguments", "ingot push web:2 n1 --dry-run", "ingot push --dry-run web:2 n1"},
		{"a value that stands apart", "ingot push web:2 --keep /etc/** n1", "ingot push --keep /etc/** web:2 n1"},
		{"a value that is joined", "ingot push web:2 --keep=/etc/** n1", "ingot push --keep=/etc/** web:2 n1"},
		{"a switch takes no value", "ingot node set n1 --install extra", "ingot node set --install n1 extra"},
		{"several, in order", "ingot node add n1 --class A --mac M --class B", "ingot node add --class A --mac M --class B n1"},
		{"--site before the verb", "ingot --site /s node list", "ingot --site /s node list"},
		{"--site between the words", "ingot node --site /s list n1", "ingot node --site /s list n1"},
		{"--site behind", "ingot node list n1 --site /s", "ingot node list --site /s n1"},
		{"alias", "ingot node ls n1 --json", "ingot node ls --json n1"},
		{"one dash", "ingot node ls n1 -json", "ingot node ls -json n1"},
		{"unknown flag", "ingot node ls n1 --frob x", "ingot node ls --frob n1 x"},
		{"value missing", "ingot node ls n1 --site", "ingot node ls --site n1"},
		{"unknown verb", "ingot frob --bar x", "ingot frob --bar x"},
		{"unknown verb of a noun", "ingot node frob --bar", "ingot node frob --bar"},
		{"behind -- nothing is a flag", "ingot image show -- --json", "ingot image show -- --json"},
		{"arguments before --", "ingot image capture /a --json -- --b", "ingot image capture --json -- /a --b"},
		{"another program's flags", "ingot lab exec n1 -- uptime -p", "ingot lab exec -- n1 uptime -p"},
		{"- is no flag", "ingot image show - --json", "ingot image show --json -"},
		{"help as a word", "ingot help node set", "ingot node set --help"},
		{"help alone", "ingot help", "ingot --help"},
		{"version as a word", "ingot version", "ingot --version"},
		{"help as an argument", "ingot node show help", "ingot node show help"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := strings.Fields(tt.in)
			kept := slices.Clone(in)
			got := reorder((&program{Stdout: io.Discard, Stderr: io.Discard}).app(), in)
			if strings.Join(got, " ") != tt.want {
				t.Errorf("got  %q\nwant %q", strings.Join(got, " "), tt.want)
			}
			if !slices.Equal(in, kept) {
				t.Errorf("the caller's words were changed: %q", in)
			}
		})
	}
	if got := reorder((&program{}).app(), nil); len(got) != 0 {
		t.Errorf("no words at all: %q", got)
	}
}

func TestFlagWidth(t *testing.T) {
	flags := findCommand(findCommand((&program{}).app().Commands, "node").Subcommands, "set").Flags
	tests := []struct {
		words string
		want  int
	}{
		{"--install n1", 1},
		{"--image web:1", 2},
		{"-image web:1", 2},
		{"--image=web:1 n1", 1},
		{"--image=", 1},
		{"--image", 1},
		{"--class A", 2},
		{"--frob x", 1},
		{"--help x", 1},
	}
	for _, tt := range tests {
		if got := flagWidth(flags, strings.Fields(tt.words)); got != tt.want {
			t.Errorf("%q: %d words, want %d", tt.words, got, tt.want)
		}
	}
}

// FuzzReorder moves words and invents none.
func FuzzReorder(f *testing.F) {
	for _, seed := range []string{"push web:2 n1 --dry-run", "node set n1 --class A -- --b", "help node", "--site", "-", "-- --", "node ls --site=x --", "= -= --="} {
		f.Add(seed)
	}
	app := (&program{Stdout: io.Discard, Stderr: io.Discard}).app()
	f.Fuzz(func(t *testing.T, line string) {
		in := append([]string{"ingot"}, strings.Fields(line)...)
		got := reorder(app, in)
		if got[0] != "ingot" {
			t.Fatalf("the program's name moved: %q", got)
		}
		a, b := slices.Clone(in), slices.Clone(got)
		for i := range a {
			if i == 1 && (a[i] == "help" || a[i] == "version") {
				a[i] = "--" + a[i]
			}
		}
		slices.Sort(a)
		slices.Sort(b)
		if !slices.Equal(a, b) {
			t.Fatalf("%q became %q", in, got)
		}
	})
}
