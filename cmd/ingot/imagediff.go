package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"ingot/imager"
	"ingot/imager/store"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/pattern"
)

func (p *program) imageDiffVerb() *cli.Command {
	return verb{name: "diff", usage: "show what differs between two images", args: "A B",
		about: `Lists what was added to B (A), removed (D), changed (M) and renamed (R), with what differs: content and its size in
  bytes, mode, owner, times, attributes, targets, hard links. Names that hold newlines and the like are quoted.

  The exit status is 0 whether or not they differ, as that of git diff; with --exit-code it is 1 when they do.`,
		examples: []string{"ingot image diff web:1 web:2", "ingot image diff web:1 web:2 --path '/etc/**'", "ingot image diff web:1 web:2 --stat     what a push would move"},
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "stat", Usage: "count by directory at the top of the tree"},
			&cli.StringSliceFlag{Name: "path", Usage: "only paths like `PATTERN`; may be repeated"},
			&cli.BoolFlag{Name: "exit-code", Usage: "exit with 1 when there is a difference"},
			jsonFlag(),
		}, run: p.imageDiff}.command()
}

func (p *program) imageDiff(c *cli.Context) error {
	if err := wantArgs(c, 2, 2); err != nil {
		return err
	}
	only, err := pattern.Parse(c.StringSlice("path"))
	if err != nil {
		return usagef("--path: %v", err)
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	var names [2]string
	var trees [2]*manifest.Manifest
	for i := range trees {
		names[i] = c.Args().Get(i)
		id, err := resolveImage(c.Context, w, names[i])
		if err != nil {
			return err
		}
		if trees[i], err = w.images.Manifest(c.Context, id); err != nil {
			return err
		}
	}
	list := imager.Diff(trees[0], trees[1])
	if !only.Empty() {
		list = slices.DeleteFunc(list, func(e imager.DiffEntry) bool { return !only.Match(e.Path) && !only.Match(e.From) })
	}
	if err := p.showDiff(c, w.images, list); err != nil {
		return err
	}
	if len(list) > 0 && c.Bool("exit-code") {
		return fmt.Errorf("images %q and %q differ in %d places", names[0], names[1], len(list))
	}
	return nil
}

func (p *program) showDiff(c *cli.Context, s *store.Store, list []imager.DiffEntry) error {
	switch {
	case c.Bool("json"):
		v, err := viewDiff(c.Context, s, list, !c.Bool("stat"))
		if err != nil {
			return err
		}
		return p.printJSON(v)
	case len(list) == 0:
		p.say("no difference")
		return nil
	case c.Bool("stat"):
		v, err := viewDiff(c.Context, s, list, false)
		if err != nil {
			return err
		}
		return p.table(diffRows(v))
	}
	return writeDiff(p.Stdout, list)
}

// writeDiff writes a line for each entry.
func writeDiff(w io.Writer, list []imager.DiffEntry) error {
	letters := map[imager.DiffKind]string{imager.Added: "A", imager.Removed: "D", imager.Changed: "M", imager.Renamed: "R"}
	for _, e := range list {
		line := letters[e.Kind] + " "
		if e.From != "" {
			line += shown(e.From) + " -> "
		}
		line += shown(e.Path)
		switch {
		case e.Kind == imager.Added:
			line += "  " + described(e.B)
		case e.Kind == imager.Removed:
			line += "  " + described(e.A)
		case len(e.What) > 0:
			line += "  " + strings.Join(differences(e.What), ", ")
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

// shown is a path as people read it: quoted where it holds what a terminal
// should not get, or what makes the line ambiguous.
func shown(path string) string {
	if path != "." {
		path = "/" + path
	}
	odd := func(r rune) bool { return !unicode.IsPrint(r) || r == '\\' || r == '"' || r == ' ' }
	if !utf8.ValidString(path) || strings.ContainsFunc(path, odd) {
		return strconv.Quote(path)
	}
	return path
}

// described is what an entry is.
func described(e *entry.Entry) string {
	s := imager.TypeName(e.Type)
	switch {
	case e.Link != "":
		return "hard link to " + shown(e.Link)
	case e.Type == entry.File:
		s += fmt.Sprintf(" %d", e.Size)
	case e.Type == entry.Symlink:
		return s + " -> " + strconv.Quote(e.Target)
	}
	return fmt.Sprintf("%s %04o", s, e.Mode)
}

// differences are those of one entry as people read them.
func differences(list []imager.Difference) []string {
	var out []string
	for _, d := range list {
		a, b := d.A, d.B
		what, xattr := strings.CutPrefix(d.What, "xattr ")
		switch {
		case xattr:
			what, a, b = "xattr "+shortQuote(what, true), shortQuote(a, false), shortQuote(b, false)
		case what == "target":
			a, b = strconv.Quote(a), strconv.Quote(b)
		case what == "content" && a == b:
			out = append(out, "content "+a)
			continue
		}
		out = append(out, fmt.Sprintf("%s %s -> %s", what, orElse(a, "none"), orElse(b, "none")))
	}
	return out
}

// shortQuote quotes the value of an attribute, or its name where it has to be;
// a long value is cut.
func shortQuote(s string, name bool) string {
	const most = 40
	switch {
	case s == "":
		return ""
	case name && shown(s) == "/"+s:
		return s
	case len(s) > most:
		return strconv.Quote(s[:most]) + "..."
	}
	return strconv.Quote(s)
}

// diffView is `image diff --json`. What is not UTF-8 is quoted as Go quotes it.
type diffView struct {
	Entries []diffEntryView         `json:"entries,omitempty"` // not with --stat
	Dirs    map[string]diffStatView `json:"directories"`       // by directory at the top; "." is the top itself
	Total   diffStatView            `json:"total"`
}

type diffEntryView struct {
	Path        string           `json:"path"`
	From        string           `json:"from,omitempty"`
	Kind        string           `json:"kind"`
	Type        string           `json:"type"`
	Bytes       int64            `json:"bytes"` // in B; of what was removed, in A
	NewBytes    int64            `json:"new_bytes"`
	Differences []differenceView `json:"differences,omitempty"`
}

type differenceView struct {
	What string `json:"what"`
	A    string `json:"a"`
	B    string `json:"b"`
}

type diffStatView struct {
	Added     int   `json:"added"`
	Removed   int   `json:"removed"`
	Changed   int   `json:"changed"`
	Renamed   int   `json:"renamed"`
	Bytes     int64 `json:"bytes"`      // of content: what B has more, or less
	NewBytes  int64 `json:"new_bytes"`  // of chunks that A has nowhere: what a push moves
	NewStored int64 `json:"new_stored"` // these as the store has them, compressed
}

func viewDiff(ctx context.Context, s *store.Store, list []imager.DiffEntry, entries bool) (diffView, error) {
	v := diffView{Dirs: map[string]diffStatView{}}
	stats := map[string]*imager.DiffStat{}
	for i := range list {
		e := &list[i]
		at := e.B
		if at == nil {
			at = e.A
		}
		top := text(imager.Top(e.Path, at.Type))
		if stats[top] == nil {
			stats[top] = &imager.DiffStat{}
		}
		stats[top].Add(e)
		if entries {
			v.Entries = append(v.Entries, viewDiffEntry(e, at))
		}
	}
	for top, st := range stats {
		one, err := viewStat(ctx, s, st)
		if err != nil {
			return v, err
		}
		v.Dirs[top] = one
		v.Total = v.Total.plus(one)
	}
	return v, nil
}

func viewDiffEntry(e *imager.DiffEntry, at *entry.Entry) diffEntryView {
	v := diffEntryView{Path: text(e.Path), From: text(e.From), Kind: string(e.Kind), Type: imager.TypeName(at.Type), Bytes: at.Size}
	for _, c := range e.New {
		v.NewBytes += int64(c.Size)
	}
	for _, d := range e.What {
		v.Differences = append(v.Differences, differenceView{text(d.What), text(d.A), text(d.B)})
	}
	return v
}

func viewStat(ctx context.Context, s *store.Store, st *imager.DiffStat) (diffStatView, error) {
	stored, err := s.StoredSize(ctx, st.New)
	return diffStatView{st.Added, st.Removed, st.Changed, st.Renamed, st.Bytes, st.NewBytes, stored}, err
}

func (a diffStatView) plus(b diffStatView) diffStatView {
	return diffStatView{a.Added + b.Added, a.Removed + b.Removed, a.Changed + b.Changed, a.Renamed + b.Renamed,
		a.Bytes + b.Bytes, a.NewBytes + b.NewBytes, a.NewStored + b.NewStored}
}

func diffRows(v diffView) [][]string {
	rows := [][]string{{"DIRECTORY", "ADDED", "REMOVED", "CHANGED", "RENAMED", "SIZE", "NEW", "COMPRESSED"}}
	row := func(name string, s diffStatView) {
		sign := "+"
		if s.Bytes < 0 {
			sign = "-"
		}
		rows = append(rows, []string{name, fmt.Sprint(s.Added), fmt.Sprint(s.Removed), fmt.Sprint(s.Changed), fmt.Sprint(s.Renamed),
			sign + size(max(s.Bytes, -s.Bytes)), size(s.NewBytes), size(s.NewStored)})
	}
	var tops []string
	for top := range v.Dirs {
		tops = append(tops, top)
	}
	slices.Sort(tops)
	for _, top := range tops {
		name := top
		if top != "." && !strings.HasPrefix(top, `"`) {
			name = shown(top)
		}
		row(name, v.Dirs[top])
	}
	row("total", v.Total)
	return rows
}
