package main

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/urfave/cli/v2"
)

// commands returns every command of the program, nouns and verbs, with its words.
func commands(t *testing.T) map[string]*cli.Command {
	t.Helper()
	out := map[string]*cli.Command{}
	var walk func(prefix string, list []*cli.Command)
	walk = func(prefix string, list []*cli.Command) {
		for _, c := range list {
			out[prefix+c.Name] = c
			walk(prefix+c.Name+" ", c.Subcommands)
		}
	}
	walk("", (&program{Stdout: io.Discard, Stderr: io.Discard}).app().Commands)
	if len(out) < 25 {
		t.Fatalf("only %d commands: the walk is broken", len(out))
	}
	return out
}

// runHere runs the program in this process.
func runHere(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var o, e strings.Builder
	p := &program{Args: append([]string{"ingot"}, args...), Stdin: strings.NewReader(""), Stdout: &o, Stderr: &e}
	code = p.Run(context.Background())
	return o.String(), e.String(), code
}

// TestHelp reads every help page as a person does.
func TestHelp(t *testing.T) {
	pages := map[string]string{"": "ingot"}
	for name := range commands(t) {
		pages[name] = "ingot " + name
	}
	for name, full := range pages {
		t.Run(orElse(name, "ingot"), func(t *testing.T) {
			text, stderr, code := runHere(t, append(strings.Fields(name), "--help")...)
			if code != 0 || stderr != "" {
				t.Fatalf("exit %d, standard error %q", code, stderr)
			}
			if !strings.HasPrefix(text, "NAME\n  "+full+" - ") || !strings.Contains(text, "\nSYNOPSIS\n  "+full+" [") && !strings.Contains(text, "\nSYNOPSIS\n  "+full+" VERB") {
				t.Errorf("does not name itself %q", full)
			}
			checkPage(t, text)
		})
	}
}

func checkPage(t *testing.T, text string) {
	t.Helper()
	var sections []string
	for i, line := range strings.Split(text, "\n") {
		if n := utf8.RuneCountInString(line); n > 110 {
			t.Errorf("line %d has %d columns: %s", i+1, n, line)
		}
		switch {
		case line == "" || strings.HasPrefix(line, "  "):
			if strings.TrimRight(line, " ") != line {
				t.Errorf("line %d ends in spaces", i+1)
			}
		case strings.ToUpper(line) != line || strings.HasSuffix(line, ":"):
			t.Errorf("line %d is no heading: %q", i+1, line)
		default:
			sections = append(sections, line)
		}
		for _, foreign := range []string{"(default: false)", "[ --", "%!", "<no value>", "{{", "\t", "USAGE:", "GLOBAL"} {
			if strings.Contains(line, foreign) {
				t.Errorf("line %d has %q: %s", i+1, foreign, line)
			}
		}
	}
	order := " NAME SYNOPSIS DESCRIPTION VERBS OPTIONS NODES EXAMPLES EXIT STATUS "
	at := 0
	for _, s := range sections {
		k := strings.Index(order[at:], " "+s+" ")
		if k < 0 {
			t.Fatalf("section %q is unknown or out of order: %q", s, sections)
		}
		at += k + len(s)
	}
	for _, need := range []string{"EXAMPLES", "EXIT STATUS", "OPTIONS"} {
		if !strings.Contains(text, "\n"+need+"\n  ") {
			t.Errorf("no %s", need)
		}
	}
	if !strings.Contains(text, exitStatus) {
		t.Error("the exit codes are not those of exit.go")
	}
}

// TestExamplesParse takes each example of each page through the parser: the
// verb exists, its flags exist and its number of arguments is right.
func TestExamplesParse(t *testing.T) {
	pages := map[string][]string{"ingot": appPage((&program{}).app()).examples}
	for name, c := range commands(t) {
		if pages[name] = continued(pageOf(c, "ingot "+name).examples); len(pages[name]) == 0 || pages[name][0] == "" {
			t.Errorf("ingot %s has no example", name)
		}
		for _, e := range pages[name] {
			if len(c.Subcommands) == 0 && !strings.HasPrefix(e, "ingot "+name) {
				t.Errorf("ingot %s has an example of something else: %q", name, e)
			}
		}
	}
	for name, examples := range pages {
		for _, line := range examples {
			command, remark := splitExample(line)
			if strings.Contains(remark, exampleGap) || strings.HasPrefix(remark, "-") {
				t.Errorf("ingot %s: remark %q", name, remark)
			}
			words := shellWords(t, command)
			if end := slices.IndexFunc(words, func(w string) bool { return w == "&&" || w == ">>" }); end >= 0 {
				words = words[:end]
			}
			if why := parses(t, words); why != "" {
				t.Errorf("ingot %s: example %q: %s", name, command, why)
			}
		}
	}
	for _, bad := range []string{"ingot nod list", "ingot node list --frob", "ingot node set", "ingot push web:1 n1 --to 3", "ingot rollback n1 --confirm x", "other node list"} {
		if parses(t, strings.Fields(bad)) == "" {
			t.Errorf("%q parses: this test cannot fail", bad)
		}
	}
}

// continued joins lines that end with a backslash with the next, as a shell does.
func continued(lines []string) []string {
	return strings.Split(strings.ReplaceAll(strings.Join(lines, "\n"), " \\\n", ""), "\n")
}

// parses runs a command line with every verb's action replaced by a check of
// the number of its arguments.
func parses(t *testing.T, args []string) string {
	t.Helper()
	if len(args) == 0 || args[0] != "ingot" {
		return "is not a command of ingot"
	}
	app := (&program{Stdout: io.Discard, Stderr: io.Discard}).app()
	ran := false
	var replace func(list []*cli.Command)
	replace = func(list []*cli.Command) {
		for _, c := range list {
			if len(c.Subcommands) == 0 {
				c.Action = func(x *cli.Context) error {
					ran = true
					return wantSynopsis(x)
				}
			}
			replace(c.Subcommands)
		}
	}
	replace(app.Commands)
	if err := app.Run(reorder(app, args)); err != nil {
		return err.Error()
	}
	if !ran {
		return "no verb ran"
	}
	return ""
}

// wantSynopsis compares the number of arguments with the synopsis.
func wantSynopsis(c *cli.Context) error {
	low, high := 0, 0
	for _, word := range strings.Fields(c.Command.ArgsUsage) {
		switch {
		case strings.Contains(word, "..."):
			high = 99
		case strings.HasPrefix(word, "["):
			high++
		case word != "--":
			low++
			high++
		}
	}
	return wantArgs(c, low, high)
}

// shellWords splits a command as a shell does, single quotes only.
func shellWords(t *testing.T, line string) []string {
	t.Helper()
	var out []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			out = append(out, part)
		} else {
			out = append(out, strings.Fields(part)...)
		}
	}
	return out
}

// TestVerbsAreAlike holds the promises that every verb makes.
func TestVerbsAreAlike(t *testing.T) {
	talk := map[string]string{"serve": "logs until it ends", "lab exec": "its output is the command's", "lab power": "has no answer", "lab demo": "a table for people"}
	for name, c := range commands(t) {
		flags := map[string]cli.Flag{}
		for _, f := range c.Flags {
			flags[f.Names()[0]] = f
			if r, ok := f.(cli.RequiredFlag); ok && r.IsRequired() {
				t.Errorf("ingot %s: the library prints help on standard output when --%s is missing: check it in the verb", name, f.Names()[0])
			}
		}
		if flags["site"] == nil {
			t.Errorf("ingot %s has no --site", name)
		}
		if len(c.Subcommands) == 0 && flags["json"] == nil && talk[name] == "" {
			t.Errorf("ingot %s has no --json", name)
		}
		if c.Usage == "" || strings.HasSuffix(c.Usage, ".") || c.Usage[:1] != strings.ToLower(c.Usage[:1]) {
			t.Errorf("ingot %s: usage %q: want a lower-case phrase", name, c.Usage)
		}
	}
}

func TestWrap(t *testing.T) {
	for _, tt := range []struct {
		text  string
		width int
		want  string
	}{
		{"", 5, ""},
		{"a b c", 5, "a b c"},
		{"a b  c\n d", 3, "a b|c d"},
		{"longerthanwidth x", 5, "longerthanwidth|x"},
		{"ä ö ü", 5, "ä ö ü"},
	} {
		if got := strings.Join(wrap(tt.text, tt.width), "|"); got != tt.want {
			t.Errorf("wrap(%q, %d) = %q, want %q", tt.text, tt.width, got, tt.want)
		}
	}
}
