package main

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/urfave/cli/v2"
)

// page is what --help shows of one command, laid out like a manual page.
type page struct {
	name     string // the whole command: ingot node set
	usage    string // one line
	synopsis string // behind the name
	verbs    [][2]string
	about    string // paragraphs, of any width
	options  [][2]string
	nodes    bool // explain NODES
	examples []string
}

const (
	helpWidth  = 96 // columns of a line of text
	helpColumn = 26 // widest left column; what is wider stands on a line of its own
)

// pageOf describes a command. A verb keeps its paragraphs in Description and its
// examples, a line each, in UsageText.
func pageOf(c *cli.Command, name string) page {
	p := page{name: name, usage: c.Usage, about: c.Description, options: optionsOf(c.Flags)}
	if len(c.Subcommands) == 0 {
		p.synopsis = strings.TrimSpace("[OPTIONS] " + c.ArgsUsage)
		p.nodes = strings.Contains(c.ArgsUsage, "NODES")
		p.examples = strings.Split(c.UsageText, "\n")
		return p
	}
	p.synopsis = "VERB [ARGUMENTS]"
	for _, s := range c.Subcommands {
		p.verbs = append(p.verbs, [2]string{strings.Join(s.Names(), ", "), s.Usage})
		first, _, _ := strings.Cut(s.UsageText, "\n")
		p.examples = append(p.examples, first)
	}
	return p
}

// optionsOf lists flags; those that every command has come last.
func optionsOf(flags []cli.Flag) (out [][2]string) {
	common := map[string]int{"json": 1, "site": 2, "help": 3}
	flags = slices.Clone(flags)
	if !slices.Contains(flags, cli.HelpFlag) {
		flags = append(flags, cli.HelpFlag)
	}
	slices.SortStableFunc(flags, func(a, b cli.Flag) int { return common[a.Names()[0]] - common[b.Names()[0]] })
	for _, f := range flags {
		out = append(out, optionOf(f))
	}
	return out
}

// optionOf is `--name VALUE` and what it means. The value's name is quoted in
// the flag's usage, as package flag has it.
func optionOf(f cli.Flag) [2]string {
	d, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return [2]string{"--" + f.Names()[0], ""}
	}
	left := "--" + f.Names()[0]
	for _, short := range f.Names()[1:] {
		left = "-" + short + ", " + left
	}
	usage := d.GetUsage()
	if d.TakesValue() {
		_, value, _ := strings.Cut(usage, "`")
		value, _, _ = strings.Cut(value, "`")
		left += " " + orElse(value, "VALUE")
	}
	usage = strings.ReplaceAll(usage, "`", "")
	if def := d.GetDefaultText(); def != "" && d.TakesValue() && def != `""` {
		usage += fmt.Sprintf(" (default: %s)", strings.Trim(def, `"`))
	}
	return [2]string{left, usage}
}

func (p page) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "NAME\n  %s - %s\n\nSYNOPSIS\n  %s %s\n", p.name, p.usage, p.name, p.synopsis)
	if p.about != "" {
		b.WriteString("\nDESCRIPTION\n")
		for i, para := range strings.Split(p.about, "\n\n") {
			if i > 0 {
				b.WriteString("\n")
			}
			for _, line := range wrap(para, helpWidth-2) {
				b.WriteString("  " + line + "\n")
			}
		}
	}
	columns(&b, "VERBS", p.verbs)
	columns(&b, "OPTIONS", p.options)
	if p.nodes {
		b.WriteString("\nNODES\n  Names, ranges n[01-16], classes @WEB, or all; joined by commas.\n")
	}
	b.WriteString("\nEXAMPLES\n")
	for _, line := range aligned(p.examples) {
		b.WriteString("  " + line + "\n")
	}
	b.WriteString("\nEXIT STATUS\n  " + exitStatus + "\n")
	return b.String()
}

// template is the page as a template that says the page.
func (p page) template() string { return strings.ReplaceAll(p.String(), "{{", `{{"{{"}}`) }

// columns writes pairs side by side, the right one wrapped.
func columns(b *strings.Builder, heading string, rows [][2]string) {
	if len(rows) == 0 {
		return
	}
	width := 0
	for _, r := range rows {
		if n := utf8.RuneCountInString(r[0]); n <= helpColumn {
			width = max(width, n)
		}
	}
	b.WriteString("\n" + heading + "\n")
	for _, r := range rows {
		left := r[0]
		for _, line := range wrap(r[1], helpWidth-width-4) {
			if utf8.RuneCountInString(left) > width {
				b.WriteString("  " + left + "\n")
				left = ""
			}
			fmt.Fprintf(b, "  %-*s  %s\n", width, left, line)
			left = ""
		}
	}
}

// wrap breaks text into lines of at most width characters; there is at least one.
func wrap(text string, width int) []string {
	lines := []string{""}
	for _, word := range strings.Fields(text) {
		last := &lines[len(lines)-1]
		switch {
		case *last == "":
			*last = word
		case utf8.RuneCountInString(*last)+1+utf8.RuneCountInString(word) <= width:
			*last += " " + word
		default:
			lines = append(lines, word)
		}
	}
	return lines
}

// exampleGap separates an example from the remark about it.
const exampleGap = "   "

// splitExample parts an example from its remark.
func splitExample(line string) (command, remark string) {
	command, remark, _ = strings.Cut(line, exampleGap)
	return command, strings.TrimSpace(remark)
}

// aligned puts the remarks of examples below one another.
func aligned(examples []string) []string {
	width := 0
	for _, e := range examples {
		if command, remark := splitExample(e); remark != "" {
			width = max(width, utf8.RuneCountInString(command))
		}
	}
	out := make([]string, len(examples))
	for i, e := range examples {
		command, remark := splitExample(e)
		out[i] = strings.TrimRight(fmt.Sprintf("%-*s%s%s", width, command, exampleGap, remark), " ")
	}
	return out
}

// appPage is what `ingot --help` shows.
func appPage(app *cli.App) page {
	p := page{name: app.Name, usage: app.Usage, synopsis: "[--site DIR] VERB [ARGUMENTS]", nodes: true,
		options: append(optionsOf(app.Flags), optionOf(cli.VersionFlag)),
		examples: []string{
			"ingot init rack && cd rack                       begin a site",
			"ingot image build debian:12 --debian bookworm    make a golden image",
			"ingot node add n1 --mac 52:54:00:00:00:01 --class WEB",
			"ingot node set n1 --install                      the next network boot installs it",
			"ingot serve                                      answer machines that boot from the network",
			"ingot push web:2 n1                              make a running node equal to an image",
			"ingot rollback n1                                and take it back",
		}}
	for _, c := range app.Commands {
		p.verbs = append(p.verbs, [2]string{strings.Join(c.Names(), ", "), c.Usage})
	}
	return p
}
