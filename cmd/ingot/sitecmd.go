package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"ingot/classes"
	"ingot/classes/disks"
	"ingot/internal/problem"
	"ingot/site"
)

func (p *program) initCommand() *cli.Command {
	return verb{name: "init", usage: "begin a site: a directory of configuration", args: "DIR",
		about:    "Writes a commented example site into DIR: ingot.yaml, nodes/, and a config space whose classes install.",
		examples: []string{"ingot init /srv/rack"}, flags: []cli.Flag{jsonFlag()},
		run: func(c *cli.Context) error {
			if err := wantArgs(c, 1, 1); err != nil {
				return err
			}
			dir := c.Args().First()
			if err := site.Init(dir); err != nil {
				return err
			}
			if c.Bool("json") {
				return p.printJSON(map[string]string{"site": dir})
			}
			fmt.Fprintf(p.Stdout, "%s is a site now: read %s, then `ingot check --site %s`\n", dir, filepath.Join(dir, "ingot.yaml"), dir)
			return nil
		}}.command()
}

func (p *program) checkCommand() *cli.Command {
	return verb{name: "check", usage: "check all that people wrote",
		about:    "Reads ingot.yaml, every node and the whole config space, and reports every problem at once, with file, line and column.",
		examples: []string{"ingot check", "ingot check --json"}, flags: []cli.Flag{jsonFlag()}, run: p.check}.command()
}

func (p *program) check(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	var all problem.List
	gather := func(err error) error {
		var list problem.List
		if errors.As(err, &list) {
			all = append(all, list...)
			return nil
		}
		return err
	}
	s, err := openSite(c)
	if err := gather(err); err != nil {
		return err
	}
	dir := siteDir(c)
	notes, err := space(dir).Lint()
	if err := gather(err); err != nil {
		return err
	}
	if s != nil {
		if err := gather(templateSet(s).Lint()); err != nil {
			return err
		}
		for _, n := range s.Nodes {
			if _, err := resolveProfile(s, n); gather(err) != nil {
				return err
			}
		}
	}
	all = all.Sorted()
	if !c.Bool("json") {
		p.notes(notes.Sorted())
	}
	if c.Bool("json") {
		if err := p.printJSON(map[string]any{"problems": viewProblems(all), "notes": viewProblems(notes.Sorted())}); err != nil {
			return err
		}
	}
	if len(all) == 0 {
		if !c.Bool("json") {
			fmt.Fprintf(p.Stdout, "%s: no problems: %s, %s\n", s.Dir, count(len(s.Nodes), "node"), count(len(s.Networks), "network"))
		}
		return nil
	}
	return all
}

// problemView is a problem of a file that people write.
type problemView struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Text   string `json:"text"`
	Source string `json:"source,omitempty"` // the line
}

func viewProblems(list problem.List) []problemView {
	out := []problemView{}
	for _, x := range list {
		out = append(out, problemView{x.File, x.Line, x.Col, x.Text, x.Code})
	}
	return out
}

func (p *program) notes(list problem.List) {
	for _, n := range list {
		p.say("note: %s", n)
	}
}

// space is the config space of a site.
func space(dir string) *classes.Space {
	return &classes.Space{Dir: dir, CheckDisk: disks.Check}
}

// resolveProfile says what the classes of a node add up to.
func resolveProfile(s *site.Site, n *site.Node) (*classes.Resolved, error) {
	r, err := space(s.Dir).Resolve(n.Name, n.Classes)
	if err != nil {
		return nil, err
	}
	for k, v := range n.Vars {
		r.Vars[k] = v // the node's own file is the last word
	}
	return r, nil
}

func (p *program) classCommand() *cli.Command {
	return noun("class", "what classes say",
		verb{name: "list", aliases: []string{"ls"}, usage: "list the classes and their nodes", about: "Lists every class that a node has as far as the server knows: classes that scripts add on the\nnode are not among them, nor the one that is called like the node.",
			examples: []string{"ingot class list"}, flags: []cli.Flag{jsonFlag()}, run: p.classList}.command(),
		verb{name: "explain", usage: "show every value of a node, and where it came from", args: "NODE",
			about:    "Shows what the classes of a node add up to, each value with its class, file and line, and what it displaced.",
			examples: []string{"ingot class explain n1"}, flags: []cli.Flag{jsonFlag()}, run: p.classExplain}.command(),
	)
}

func (p *program) classList(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	s, err := openSite(c)
	if err != nil {
		return err
	}
	type row struct {
		Class string   `json:"class"`
		Nodes []string `json:"nodes"`
	}
	var order []string
	nodes := map[string][]string{}
	for _, n := range s.Nodes {
		list, err := space(s.Dir).List(n.Classes, n.Name)
		if err != nil {
			return err
		}
		for _, class := range list {
			if class == n.Name {
				continue
			}
			if nodes[class] == nil {
				order = append(order, class)
			}
			nodes[class] = append(nodes[class], n.Name)
		}
	}
	rank := func(class string) int { return map[string]int{"DEFAULT": -1, "LAST": 1}[class] }
	slices.SortFunc(order, func(a, b string) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b)) })
	rows, out := [][]string{{"CLASS", "NODES"}}, []row{}
	for _, class := range order {
		out = append(out, row{class, nodes[class]})
		rows = append(rows, []string{class, strings.Join(nodes[class], " ")})
	}
	if c.Bool("json") {
		return p.printJSON(out)
	}
	return p.table(rows)
}

func (p *program) classExplain(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	s, err := openSite(c)
	if err != nil {
		return err
	}
	nodes, err := selectNodes(s, c.Args().First())
	if err != nil {
		return err
	}
	if err := justOne(c, nodes); err != nil {
		return err
	}
	r, err := resolveProfile(s, nodes[0])
	if err != nil {
		return err
	}
	values := withNodeVars(nodes[0], r.Values)
	if c.Bool("json") {
		return p.printJSON(map[string]any{"node": r.Node, "classes": r.Classes, "values": viewValues(values), "notes": viewProblems(r.Notes)})
	}
	fmt.Fprintf(p.Stdout, "classes  %s\n\n", strings.Join(r.Classes, " "))
	rows := [][]string{{"KIND", "KEY", "VALUE", "CLASS", "FROM"}}
	for _, v := range values {
		rows = append(rows, explainRow(v, v.Key))
		for _, o := range v.Overridden {
			rows = append(rows, explainRow(o, "  instead of"))
		}
	}
	if err := p.table(rows); err != nil {
		return err
	}
	p.notes(r.Notes)
	return nil
}

// withNodeVars adds the variables of a node's own file, which win over those of
// its classes.
func withNodeVars(n *site.Node, values []classes.Value) []classes.Value {
	values = slices.Clone(values)
	for _, name := range slices.Sorted(maps.Keys(n.Vars)) {
		v := classes.Value{Kind: "var", Key: name, Value: masked(name, n.Vars[name]), Class: "-", File: n.File()}
		same := func(o classes.Value) bool { return o.Kind == "var" && o.Key == name }
		if i := slices.IndexFunc(values, same); i >= 0 {
			v.Overridden = append([]classes.Value{values[i]}, values[i].Overridden...)
			values[i] = v
		} else {
			values = append(values, v)
		}
	}
	return values
}

// masked is the value of a variable for people's eyes: names that end in PW
// hold secrets, as in package classes.
func masked(name, value string) string {
	if strings.HasSuffix(name, "PW") && value != "" {
		return "********"
	}
	return value
}

// valueView is a value of a node and where it came from.
type valueView struct {
	Kind      string      `json:"kind"` // profile, var, disk, file, script
	Key       string      `json:"key"`
	Value     string      `json:"value"`
	Class     string      `json:"class"`
	File      string      `json:"file"`
	Line      int         `json:"line,omitempty"`
	InsteadOf []valueView `json:"instead_of,omitempty"`
}

func viewValues(list []classes.Value) []valueView {
	out := []valueView{}
	for _, v := range list {
		out = append(out, valueView{v.Kind, v.Key, v.Value, v.Class, v.File, v.Line, viewValues(v.Overridden)})
	}
	return out
}

func explainRow(v classes.Value, key string) []string {
	from := v.File
	if v.Line > 0 {
		from = fmt.Sprintf("%s:%d", v.File, v.Line)
	}
	return []string{v.Kind, key, v.Value, v.Class, from}
}
