package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/inventory"
)

func (p *program) deploymentCommand() *cli.Command {
	return noun("deployment", "pushes, rollbacks and repairs of nodes, as they were recorded",
		verb{name: "list", aliases: []string{"ls"}, usage: "list deployments, newest first",
			about:    `Lists what was pushed to nodes and taken back, by whom, and how many nodes ended how.`,
			examples: []string{"ingot deployment list", "ingot deployment list --last 100", "ingot deployment list --json"},
			flags:    []cli.Flag{&cli.IntFlag{Name: "last", Usage: "the last `N`; 0: all", Value: 20}, jsonFlag()}, run: p.deploymentList}.command(),
		verb{name: "show", usage: "show how each node of a deployment ended, and why", args: "ID|last",
			about: `Shows a deployment node by node: done, unchanged, reverted (why), failed (why, and in which state the
  node is), unreachable, drained (done, but not back in service), interrupted, not tried; what the health checks found;
  and which nodes are still drained.`,
			examples: []string{"ingot deployment show 42", "ingot deployment show last"},
			flags:    []cli.Flag{jsonFlag()}, run: p.deploymentShow}.command(),
		verb{name: "resume", usage: "go on with a deployment that was interrupted, or has stopped", args: "ID|last",
			about: `Goes on where a deployment ended: with the nodes that it had not come to, and those that were in work
  when its controller was interrupted or killed. What each is asked for is what was recorded, the image by
  its digest. A node that waits for its confirmation is confirmed. Nodes that failed stay as they are and
  count towards --max-failures, unless --retry-failed. Nodes that something else was made of since are not
  touched: then it does not go on.`,
			examples: []string{"ingot deployment resume last", "ingot deployment resume 42 --retry-failed --max-failures 3"},
			flags: []cli.Flag{&cli.BoolFlag{Name: "retry-failed", Usage: "also the nodes that failed, went back, or could not be reached"},
				&cli.IntFlag{Name: "max-failures", Usage: "go on while no more than `N` nodes have failed", DefaultText: "as recorded"},
				&cli.IntFlag{Name: "parallel", Usage: "do at most `N` nodes at once", DefaultText: "as recorded"}, jsonFlag()}, run: p.deploymentResume}.command(),
		verb{name: "undo", usage: "take back what a deployment made of its nodes", args: "ID|last",
			about: `Takes each node that a deployment changed back to the generation that it was before, also where the
  controller was killed in the middle; ` + "`ingot rollback --deployment ID`" + ` is the same. It is a deployment of
  its own. A node that something else was made of since is refused, and left as it is.`,
			examples: []string{"ingot deployment undo last", "ingot deployment undo 42 --parallel 16"},
			flags:    append([]cli.Flag{confirmFlag(0)}, slices.Concat(waveFlags(), undoFlags())...),
			run:      func(c *cli.Context) error { return p.undo(c, c.Args().First(), 1) }}.command(),
	)
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
	Lives   bool             `json:"under_way"`         // somebody works at it
	Stopped string           `json:"stopped,omitempty"` // why not all nodes were begun
	Undoes  int64            `json:"undoes,omitempty"`
	Undone  []int64          `json:"taken_back_by,omitempty"`
	Plan    json.RawMessage  `json:"plan,omitempty"`
	Nodes   []deploymentNode `json:"nodes"`
}

type deploymentNode struct {
	Node       string    `json:"node"`
	Wave       int       `json:"wave"` // from 0
	State      string    `json:"state"`
	Was        int       `json:"was,omitempty"`
	Target     int       `json:"to,omitempty"` // of a rollback
	Generation int       `json:"generation,omitempty"`
	Changes    int       `json:"changes"`
	Sent       int64     `json:"sent_bytes"`
	Reason     string    `json:"reason,omitempty"`
	Health     []string  `json:"health,omitempty"`
	Sides      string    `json:"sides,omitempty"`   // of a node that has two
	Drained    bool      `json:"drained,omitempty"` // still, since then
	Changed    time.Time `json:"changed"`
}

func (w *world) viewDeployment(d inventory.Deployment) deploymentView {
	v := deploymentView{ID: d.ID, Kind: d.Kind, Image: d.Ref, Digest: d.Image, Command: d.Command, By: d.By, Begun: d.Begun, Stopped: d.Stopped, Undoes: d.Undoes,
		Nodes: []deploymentNode{}}
	if d.Plan != "" { // of versions that recorded none
		v.Plan = json.RawMessage(d.Plan)
	}
	if !d.Ended.IsZero() {
		v.Ended = &d.Ended
	} else {
		v.Lives = w.holderLives(d.Holder)
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

// took says how long it took, or that it is not over: somebody works at it, or
// whoever did was killed.
func (v deploymentView) took() string {
	switch {
	case v.Lives:
		return "under way"
	case v.Ended == nil:
		return "killed"
	}
	return v.Ended.Sub(v.Begun).Round(100 * time.Millisecond).String()
}

// besides is what else there is to say of some deployments, a line each.
func (v deploymentView) besides() string {
	var b strings.Builder
	if v.Stopped != "" {
		fmt.Fprintf(&b, "stopped     %s\n", v.Stopped)
	}
	if v.Undoes != 0 {
		fmt.Fprintf(&b, "takes back  deployment %d\n", v.Undoes)
	}
	for _, id := range v.Undone {
		fmt.Fprintf(&b, "taken back  by deployment %d\n", id)
	}
	if v.Ended == nil && !v.Lives {
		fmt.Fprintf(&b, "next        `ingot deployment resume %d` goes on, `ingot deployment undo %[1]d` takes back what is done\n", v.ID)
	}
	return b.String()
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
		v := w.viewDeployment(d)
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
	v := w.viewDeployment(d)
	undone, err := w.state.Undone(c.Context, d.ID)
	if err != nil {
		return err
	}
	for _, u := range undone {
		v.Undone = append(v.Undone, u.ID)
	}
	if c.Bool("json") {
		return p.printJSON(v)
	}
	fmt.Fprintf(p.Stdout, "deployment  %d\ncommand     %s\nby          %s\nbegun       %s\ntook        %s\nnodes       %s\n%s\n", v.ID, v.Command, v.By,
		v.Begun.Local().Format(time.DateTime), v.took(), v.states(), v.besides())
	rows := [][]string{{"NODE", "WAVE", "STATE", "WAS", "NOW", "CHANGES", "SENT", "REASON"}}
	for _, n := range v.Nodes {
		rows = append(rows, []string{n.Node, strconv.Itoa(n.Wave + 1), n.State, number(n.Was), number(n.Generation), fmt.Sprint(n.Changes), size(n.Sent), orElse(n.Reason, "-")})
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
		if n.Drained {
			fmt.Fprintf(p.Stdout, "\n%s: drained: `ingot undrain %[1]s` takes it back into service", n.Node)
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
