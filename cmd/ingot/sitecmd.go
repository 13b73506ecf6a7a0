package main

import (
	"errors"
	"fmt"
	"path/filepath"
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
	for _, n := range notes.Sorted() {
		p.say("note: %s", n)
	}
	all = all.Sorted()
	if c.Bool("json") {
		if all == nil {
			all = problem.List{}
		}
		if err := p.printJSON(all); err != nil {
			return err
		}
	}
	if len(all) == 0 {
		if !c.Bool("json") {
			fmt.Fprintf(p.Stdout, "%s: no problems: %d nodes, %d networks\n", s.Dir, len(s.Nodes), len(s.Networks))
		}
		return nil
	}
	return all
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
		verb{name: "list", aliases: []string{"ls"}, usage: "list the classes and their nodes", about: "Lists every class that a node has or a file of the config space is named for.",
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
			if nodes[class] == nil {
				order = append(order, class)
			}
			nodes[class] = append(nodes[class], n.Name)
		}
	}
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
	if len(nodes) != 1 {
		return usagef("class explain: %q names %d nodes, want one", c.Args().First(), len(nodes))
	}
	r, err := resolveProfile(s, nodes[0])
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return p.printJSON(map[string]any{"node": r.Node, "classes": r.Classes, "values": r.Values, "notes": r.Notes})
	}
	fmt.Fprintf(p.Stdout, "classes  %s\n\n", strings.Join(r.Classes, " "))
	rows := [][]string{{"KIND", "KEY", "VALUE", "CLASS", "FROM"}}
	for _, v := range r.Values {
		rows = append(rows, explainRow(v, v.Key))
		for _, o := range v.Overridden {
			rows = append(rows, explainRow(o, "  instead of"))
		}
	}
	for name, value := range nodes[0].Vars {
		rows = append(rows, []string{"var", name, value, "-", nodes[0].File()})
	}
	if err := p.table(rows); err != nil {
		return err
	}
	for _, n := range r.Notes {
		p.say("note: %s", n)
	}
	return nil
}

func explainRow(v classes.Value, key string) []string {
	from := v.File
	if v.Line > 0 {
		from = fmt.Sprintf("%s:%d", v.File, v.Line)
	}
	return []string{v.Kind, key, v.Value, v.Class, from}
}
