package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
)

// apart is a work that other tools have no part in: it is measured by itself,
// and has a part of the page that says when.
type apart struct {
	name, title, about string
	measure            func(ctx context.Context, o options) ([]row, error)
}

func aparts() []apart {
	return []apart{{"machines", "Machines", machinesNote, machines}, {"fleet", "Many nodes", fleetNote, fleet}}
}

// onlyApart reports whether nothing else was asked for: then no trees are needed.
func (o options) onlyApart() bool {
	return len(o.works) > 0 && !slices.ContainsFunc(works(), func(w group) bool { return o.does(w.name) })
}

// measureApart measures the works of this kind that were asked for, and writes
// the part of each into the page.
func measureApart(ctx context.Context, o options) error {
	for _, a := range aparts() {
		if !o.does(a.name) {
			continue
		}
		begin := time.Now()
		rows, err := a.measure(ctx, o)
		if err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		r := report{rows: rows, took: time.Since(begin), date: begin, machine: machine(ctx, o.cache)}
		for _, w := range r.works() {
			fmt.Printf("%s\n%s\n", strings.ToUpper(w), r.tableOf(w).text())
		}
		if o.part == "" {
			continue
		}
		page, err := os.ReadFile(o.part)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(o.part, []byte(withPart(string(page), a.name, a.markdown(r, output(ctx, o.ingot, "--version")))), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (a apart) markdown(r report, version string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "## %s\n\n`make bench WORK=%s` measured this part on %s, in %s: %s, on %s.\n\n%s\n\n", a.title, a.name, r.date.UTC().Format("2006-01-02 15:04 UTC"),
		r.took.Round(time.Second), version, r.machine[0].value, a.about)
	for _, w := range r.works() {
		fmt.Fprintf(&b, "### %s\n\n", strings.ToUpper(w[:1])+w[1:])
		if about := notes()[w]; about != "" {
			b.WriteString(about + "\n\n")
		}
		b.WriteString(r.tableOf(w).markdown() + "\n")
	}
	return b.String()
}

// tableOf is the table of a work apart.
func (r report) tableOf(work string) table {
	if slices.ContainsFunc(r.rows, func(row row) bool { return row.Work == work && row.Nodes > 0 }) {
		return r.crowded(work)
	}
	return r.results(work)
}

// A part of the page stands between a line that names it and one that ends it.
const partEnd = "<!-- end -->\n"

func partBegin(name string) string { return "<!-- " + name + " -->\n" }

// withPart is a page with a part in its place, or at its end.
func withPart(page, name, text string) string {
	text = partBegin(name) + text + partEnd
	if before, rest, ok := strings.Cut(page, partBegin(name)); ok {
		_, after, _ := strings.Cut(rest, partEnd)
		return before + text + after
	}
	return strings.TrimRight(page, "\n") + "\n\n" + text
}

// parts are those of a page, with their marks.
func parts(page string) string {
	var b strings.Builder
	for _, a := range aparts() {
		if _, rest, ok := strings.Cut(page, partBegin(a.name)); ok {
			text, _, _ := strings.Cut(rest, partEnd)
			b.WriteString("\n" + partBegin(a.name) + text + partEnd)
		}
	}
	return b.String()
}
