package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/inventory"
	"ingot/site"
)

func (p *program) deploymentCommand() *cli.Command {
	return noun("deployment", "pushes, rollbacks and repairs of nodes, as they were recorded",
		verb{name: "list", aliases: []string{"ls"}, usage: "list deployments, newest first",
			about:    `Lists what was pushed to nodes and taken back, by whom, and how many nodes ended how.`,
			examples: []string{"ingot deployment list", "ingot deployment list --last 100", "ingot deployment list --json"},
			flags:    []cli.Flag{&cli.IntFlag{Name: "last", Usage: "the last `N`; 0: all", Value: 20}, jsonFlag()}, run: p.deploymentList}.command(),
		verb{name: "show", usage: "show how each node of a deployment ended, and why", args: "ID|last",
			about: `Shows a deployment node by node: done, unchanged, reverted (why), failed (why, and in which state the
  node is), interrupted, not tried; and what the health checks found.`,
			examples: []string{"ingot deployment show 42", "ingot deployment show last"},
			flags:    []cli.Flag{jsonFlag()}, run: p.deploymentShow}.command(),
	)
}

// record notes how the nodes of a deployment fare. That of a dry run notes nothing.
type record struct {
	db *inventory.DB
	id int64

	mu  sync.Mutex
	err error // the first
}

// begin records a deployment before any node is touched.
func (p *program) begin(c *cli.Context, w *world, f fleet, nodes []*site.Node) (*record, error) {
	if c.Bool("dry-run") || f.look {
		return &record{}, nil
	}
	dep := inventory.Deployment{Kind: f.kind, Ref: f.ref, Image: f.image, By: operator(), Command: strings.Join(p.Args, " ")}
	for _, n := range nodes {
		dep.Nodes = append(dep.Nodes, inventory.DeploymentNode{Node: n.Name})
	}
	id, err := w.state.BeginDeployment(c.Context, dep)
	return &record{db: w.state, id: id}, err
}

func (r *record) set(n inventory.DeploymentNode) {
	if r.db == nil {
		return
	}
	err := r.db.SetDeploymentNode(context.Background(), r.id, n)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = errors.Join(r.err, err)
}

func (r *record) started(node string) {
	r.set(inventory.DeploymentNode{Node: node, State: stateRunning})
}

func (r *record) ended(out outcome) {
	now := out.Done.Generation.Number
	if now == 0 {
		now = out.Plan.From // as far as it is known
	}
	var reverted *revertedError
	if errors.As(out.err, &reverted) {
		now = reverted.now
	}
	r.set(inventory.DeploymentNode{Node: out.Node, State: out.State, Was: out.Plan.From, Generation: now, Changes: len(out.Plan.Changes),
		Sent: out.Sent, Reason: out.Error, Health: out.Done.Health, Sides: r.sides(out.Node)})
}

// sides is what the node said of its sides last; empty where it has not two.
func (r *record) sides(node string) string {
	if r.db == nil {
		return ""
	}
	s, err := (&world{state: r.db}).sidesOfNode(context.Background(), node)
	if err != nil || s == nil {
		return ""
	}
	return s.String()
}

// end notes that the deployment is over; the error is that of the whole record.
func (r *record) end(results []outcome) error {
	if r.db == nil {
		return nil
	}
	for _, out := range results {
		if out.State == stateNotTried {
			r.set(inventory.DeploymentNode{Node: out.Node, State: out.State})
		}
	}
	return errors.Join(r.err, r.db.EndDeployment(context.Background(), r.id))
}

// deploymentView is what `deployment list` and `deployment show` say.
type deploymentView struct {
	ID      int64            `json:"id"`
	Kind    string           `json:"kind"`
	Image   string           `json:"image,omitempty"`
	Digest  string           `json:"digest,omitempty"`
	Command string           `json:"command"`
	By      string           `json:"by"`
	Begun   time.Time        `json:"begun"`
	Ended   *time.Time       `json:"ended,omitempty"`
	Nodes   []deploymentNode `json:"nodes"`
}

type deploymentNode struct {
	Node       string    `json:"node"`
	State      string    `json:"state"`
	Was        int       `json:"was,omitempty"`
	Generation int       `json:"generation,omitempty"`
	Changes    int       `json:"changes"`
	Sent       int64     `json:"sent_bytes"`
	Reason     string    `json:"reason,omitempty"`
	Health     []string  `json:"health,omitempty"`
	Sides      string    `json:"sides,omitempty"` // of a node that has two
	Changed    time.Time `json:"changed"`
}

func viewDeployment(d inventory.Deployment) deploymentView {
	v := deploymentView{ID: d.ID, Kind: d.Kind, Image: d.Ref, Digest: d.Image, Command: d.Command, By: d.By, Begun: d.Begun, Nodes: []deploymentNode{}}
	if !d.Ended.IsZero() {
		v.Ended = &d.Ended
	}
	for _, n := range d.Nodes {
		v.Nodes = append(v.Nodes, deploymentNode(n))
	}
	return v
}

// states counts how the nodes ended.
func (v deploymentView) states() string {
	n := map[string]int{}
	for _, x := range v.Nodes {
		n[x.State]++
	}
	return tally(n)
}

// took says how long it took, or that it is not over.
func (v deploymentView) took() string {
	if v.Ended == nil {
		return "not ended"
	}
	return v.Ended.Sub(v.Begun).Round(100 * time.Millisecond).String()
}

func (p *program) deploymentList(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	list, err := w.state.Deployments(c.Context, c.Int("last"))
	if err != nil {
		return err
	}
	views := []deploymentView{}
	rows := [][]string{{"ID", "KIND", "IMAGE", "WHEN", "TOOK", "BY", "NODES"}}
	for _, d := range list {
		v := viewDeployment(d)
		views = append(views, v)
		rows = append(rows, []string{fmt.Sprint(v.ID), v.Kind, orElse(v.Image, "-"), v.Begun.Local().Format(time.DateTime), v.took(), v.By, v.states()})
	}
	if c.Bool("json") {
		return p.printJSON(views)
	}
	return p.table(rows)
}

func (p *program) deploymentShow(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	d, err := deploymentOf(c, w, c.Args().First())
	if err != nil {
		return err
	}
	v := viewDeployment(d)
	if c.Bool("json") {
		return p.printJSON(v)
	}
	fmt.Fprintf(p.Stdout, "deployment  %d\ncommand     %s\nby          %s\nbegun       %s\ntook        %s\nnodes       %s\n\n", v.ID, v.Command, v.By,
		v.Begun.Local().Format(time.DateTime), v.took(), v.states())
	rows := [][]string{{"NODE", "STATE", "WAS", "NOW", "CHANGES", "SENT", "REASON"}}
	for _, n := range v.Nodes {
		rows = append(rows, []string{n.Node, n.State, number(n.Was), number(n.Generation), fmt.Sprint(n.Changes), size(n.Sent), orElse(n.Reason, "-")})
	}
	if err := p.table(rows); err != nil {
		return err
	}
	for _, n := range v.Nodes {
		for _, line := range n.Health {
			fmt.Fprintf(p.Stdout, "\n%s: %s", n.Node, line)
		}
		if n.Sides != "" {
			fmt.Fprintf(p.Stdout, "\n%s: %s", n.Node, n.Sides)
		}
	}
	if len(v.Nodes) > 0 {
		fmt.Fprintln(p.Stdout)
	}
	return nil
}

// number is a generation for people.
func number(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

func deploymentOf(c *cli.Context, w *world, arg string) (d inventory.Deployment, err error) {
	if arg == "last" {
		list, err := w.state.Deployments(c.Context, 1)
		if err == nil && len(list) == 0 {
			err = fmt.Errorf("the last deployment: %w", inventory.ErrNotFound)
		}
		if err != nil {
			return d, err
		}
		return list[0], nil
	}
	id, err := strconv.ParseInt(arg, 10, 64)
	if err != nil || id < 1 {
		return d, usagef("deployment %q: want a number, such as `ingot deployment list` shows, or last", arg)
	}
	return w.state.Deployment(c.Context, id)
}
