package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/internal/hooks"
	"ingot/site"
)

// stateUndrained is what `ingot undrain` leaves.
const stateUndrained = "undrained"

func (p *program) drainCommand() *cli.Command {
	return verb{name: "drain", usage: "take nodes out of service", args: "NODES",
		about: `Carries out the steps that the profile of each node has as drain:, here and in their order: commands
  and HTTP requests to what stands before the nodes, such as a load balancer or Slurm. Pushes and
  rollbacks do the same just before the switch of a node, and undrain: after it.

  The node stays out of service until ` + "`ingot undrain`" + `: pushes and rollbacks leave it drained, too. That it is
  drained is recorded before the first step; ` + "`ingot node show`" + ` tells it. When a step fails, or you give
  up, what has been done stays done: the same command tries again.`,
		examples: []string{"ingot drain n1 --dry-run", "ingot drain n1", "ingot drain @web --parallel 2"},
		flags:    drainFlags(), run: func(c *cli.Context) error { return p.drainNodes(c, "drain") }}.command()
}

func (p *program) undrainCommand() *cli.Command {
	return verb{name: "undrain", usage: "put nodes back into service", args: "NODES",
		about: `Carries out the steps that the profile of each node has as undrain:, whoever took it out of service: an
  operator, or a push that could not find out whether the node is right, was killed, or failed in this.
  Whether the node is right is not looked at.`,
		examples: []string{"ingot undrain n1", "ingot undrain @web --parallel 2"},
		flags:    drainFlags(), run: func(c *cli.Context) error { return p.drainNodes(c, "undrain") }}.command()
}

func drainFlags() []cli.Flag {
	return []cli.Flag{&cli.BoolFlag{Name: "dry-run", Usage: "show the steps, carry out none"}, parallelFlag(), jsonFlag()}
}

// drainView is how `drain` and `undrain` ended for one node.
type drainView struct {
	Node    string     `json:"node"`
	State   string     `json:"state"` // drained undrained planned failed interrupted, not tried
	Error   string     `json:"error,omitempty"`
	Hint    string     `json:"hint,omitempty"`
	Steps   []stepView `json:"steps"`
	Seconds float64    `json:"seconds"`
}

// stepView is one step; of a dry run, one that would be carried out.
type stepView struct {
	Step    string   `json:"step"`
	Command string   `json:"command,omitempty"`
	Error   string   `json:"error,omitempty"`
	Output  []string `json:"output,omitempty"` // of one that failed
	Seconds float64  `json:"seconds"`
}

// drainNodes is `ingot drain` and `ingot undrain`. One node that fails keeps no
// other from being done.
func (p *program) drainNodes(c *cli.Context, verb string) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	parallel := c.Int("parallel")
	if parallel < 1 {
		return usagef("--parallel: want 1 or more, got %d", parallel)
	}
	w, nodes, err := openNodes(c)
	if err != nil {
		return err
	}
	defer w.Close()
	screen := p.screen()
	defer screen.end()
	services, err := servicesOf(c.Context, &drainage{p: p, w: w, verb: verb}, nodes, screen)
	if err != nil {
		return err
	}
	views, results := make([]drainView, len(nodes)), make([]outcome, len(nodes))
	for i, n := range nodes {
		views[i], results[i] = drainView{Node: n.Name, State: stateNotTried, Steps: []stepView{}}, outcome{Node: n.Name, State: stateNotTried}
	}
	inPool(c.Context, len(nodes), parallel, func(i int) {
		views[i], results[i].err = services[i].byHand(c, verb)
		results[i].State = views[i].State
		services[i].tell(c, screen, views[i], len(nodes) == 1)
	})
	screen.end()
	if c.Bool("json") {
		if err := p.printJSON(views); err != nil {
			return err
		}
	}
	return p.ending(c.Context, results)
}

// servicesOf reads the steps of nodes; each has to have some.
func servicesOf(ctx context.Context, d *drainage, nodes []*site.Node, screen *screen) (out []*service, err error) {
	var none []string
	for _, n := range nodes {
		s, err := d.of(ctx, n, screen)
		if err != nil {
			return nil, ofNode(n.Name, err)
		}
		if len(s.drain) == 0 {
			none = append(none, n.Name)
		}
		out = append(out, s)
	}
	if len(none) > 0 {
		r, err := resolveProfile(d.w.Site, d.w.Node(none[0]))
		if err != nil {
			return nil, err
		}
		var files []string
		for _, class := range r.Classes {
			files = append(files, "profile/"+class+".yaml")
		}
		return nil, withHint(fmt.Errorf("no class of %s says how to take it out of service", someNames(none)),
			"write drain: and undrain: into %s; docs/DRAIN.md has examples", strings.Join(files, " or "))
	}
	return out, nil
}

// someNames names nodes.
func someNames(names []string) string {
	const most = 5
	text := "node " + strings.Join(names[:min(most, len(names))], ", ")
	if len(names) > most {
		text += " and " + count(len(names)-most, "other")
	}
	return text
}

// byHand takes the node out of service, or back, for an operator.
func (s *service) byHand(c *cli.Context, verb string) (drainView, error) {
	begun := time.Now()
	steps, run, state := s.drain, s.takeOut, stateDrained
	if verb == "undrain" {
		steps, run, state = s.undrain, s.putBack, stateUndrained
	}
	v := drainView{Node: s.node.Name, State: state, Steps: []stepView{}}
	if c.Bool("dry-run") {
		v.State = statePlanned
		for _, step := range steps {
			v.Steps = append(v.Steps, viewStep(hooks.Result{Step: step}))
		}
		return v, nil
	}
	done, err := run(c.Context)
	v.Seconds = time.Since(begun).Seconds()
	for _, r := range done {
		v.Steps = append(v.Steps, viewStep(r))
	}
	var bad *hooks.StepError
	if errors.As(err, &bad) && len(v.Steps) > 0 {
		v.Steps[len(v.Steps)-1].Output = bad.Output
	}
	switch {
	case err == nil:
	case c.Context.Err() != nil:
		v.State, v.Error = stateInterrupted, "interrupted: not all of its steps were done"
	default:
		v.State, v.Error = stateFailed, err.Error()
	}
	if err != nil {
		err = withHint(ofNode(s.node.Name, err), "`ingot %s %s` tries again%s", verb, s.node.Name, map[string]string{"drain": fmt.Sprintf(", `ingot undrain %s` puts it back", s.node.Name)}[verb])
		_, v.Hint, _ = diagnose(err)
	}
	return v, err
}

func viewStep(r hooks.Result) stepView {
	v := stepView{Step: r.Step.String(), Command: r.Step.Run + r.Step.Until, Seconds: r.Took.Seconds()}
	if r.Err != nil {
		v.Error = r.Err.Error()
	}
	return v
}

// tell says how it ended for the node. The error of the only one is left for the end.
func (s *service) tell(c *cli.Context, screen *screen, v drainView, only bool) {
	switch {
	case v.Error != "" && only:
	case v.Error != "":
		screen.say("%s: %s: %s", v.Node, v.State, v.Error)
		if v.Hint != "" {
			screen.say("%s: hint: %s", v.Node, v.Hint)
		}
	case c.Bool("json"):
	case v.State == statePlanned:
		for i, step := range v.Steps {
			screen.answer(fmt.Sprintf("%s: %s: step %d: %s\n", v.Node, s.verb, i+1, strings.ReplaceAll(strings.TrimSpace(orElse(step.Command, step.Step)), "\n", "\n"+v.Node+":   ")))
		}
	case v.State == stateDrained:
		screen.answer(fmt.Sprintf("%s: drained, until `ingot undrain %[1]s` (%.1f s)\n", v.Node, v.Seconds))
	default:
		screen.answer(fmt.Sprintf("%s: in service (%.1f s)\n", v.Node, v.Seconds))
	}
}
