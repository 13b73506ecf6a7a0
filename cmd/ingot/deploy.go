package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/fleet"
	"ingot/imager/wire"
	"ingot/inventory"
	"ingot/site"
)

// deployment is one that is being worked at.
type deployment struct {
	p      *program
	w      *world
	id     int64 // 0: a dry run, of which nothing is recorded
	plan   plan
	nodes  []*site.Node // in the order in which they are begun
	action nodeAction
	drains *drainage
	show   *show

	inWork map[string]bool // by node: when whoever worked at it before was killed

	mu     sync.Mutex
	rows   []inventory.DeploymentNode // beside nodes, as recorded
	failed int                        // before
	err    error                      // of the record
}

// deploy does a piece of work on the nodes of an expression, wave by wave, and
// tells the truth about each. It is recorded before it begins, so that whatever
// becomes of this process it can be gone on with, or taken back.
func (p *program) deploy(c *cli.Context, w *world, expr string, x work, image *release) error {
	policy, err := policyFlags(c)
	if err != nil {
		return err
	}
	nodes, err := selectNodes(w.Site, expr)
	if err != nil {
		return err
	}
	if nodes, err = ordered(w.Site, nodes, c.String("order")); err != nil {
		return err
	}
	d := &deployment{p: p, w: w, plan: plan{Work: x, Policy: policy, BWLimit: c.String("bwlimit")}, nodes: nodes}
	for i, wave := range policy.Waves(len(nodes)) {
		d.rows = append(d.rows, inventory.DeploymentNode{Node: nodes[i].Name, Wave: wave})
	}
	return d.carryOut(c, image, func(h *hold) (int64, error) { return d.begin(c.Context, h) })
}

// look asks each node of an expression something that changes nothing; one
// that cannot be asked stops no other.
func (p *program) look(c *cli.Context, w *world, expr string, x work) ([]outcome, error) {
	policy := fleet.Policy{Parallel: c.Int("parallel")}
	if err := policy.Check(); err != nil {
		return nil, usageError{err.Error()}
	}
	nodes, err := selectNodes(w.Site, expr)
	if err != nil {
		return nil, err
	}
	if _, err := w.siteKey(); err != nil {
		return nil, err
	}
	d := &deployment{p: p, w: w, plan: plan{Work: x, Policy: policy}, nodes: nodes, rows: make([]inventory.DeploymentNode, len(nodes))}
	if d.action, err = p.action(c.Context, w, x, nil); err != nil {
		return nil, err
	}
	d.show = &show{p: p, screen: p.screen(), only: len(nodes) == 1, quiet: true}
	defer d.show.screen.end()
	results, _ := d.run(c.Context)
	return results, nil
}

// ordered puts the nodes that an expression names first, in its order.
func ordered(s *site.Site, nodes []*site.Node, expr string) ([]*site.Node, error) {
	if expr == "" {
		return nodes, nil
	}
	first, err := s.SelectInOrder(expr)
	if err != nil {
		return nil, usagef("--order: %v", err)
	}
	left := map[*site.Node]bool{}
	for _, n := range nodes {
		left[n] = true
	}
	var out []*site.Node
	for _, n := range slices.Concat(first, nodes) {
		if left[n] {
			left[n], out = false, append(out, n)
		}
	}
	return out, nil
}

// carryOut does what there is to do; record writes it down under a hold.
func (d *deployment) carryOut(c *cli.Context, image *release, record func(*hold) (int64, error)) (err error) {
	if _, err := d.w.siteKey(); err != nil { // made at first use, once
		return err
	}
	if d.action, err = d.p.action(c.Context, d.w, d.plan.Work, image); err != nil {
		return err
	}
	if !d.plan.Work.DryRun {
		h, err := d.w.hold()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, h.Release()) }()
		if d.id, err = record(h); err != nil {
			return err
		}
	}
	x := &d.plan.Work
	d.drains = &drainage{p: d.p, w: d.w, verb: x.Kind, off: x.NoDrain || x.DryRun || x.NoReboot, deployment: d.id} // with --no-reboot nothing changes of what runs
	d.show = d.p.newShow(c, d)
	defer d.show.screen.end()
	if image != nil {
		shared := image.share(len(d.nodes))
		defer func() {
			if err := shared(); err != nil {
				d.p.say("note: %v", err)
			}
		}()
	}
	results, stop := d.run(c.Context)
	recorded := d.end(c.Context, results, stop)
	back, backErr := d.takeBack(c, results, stop)
	d.show.end(d, results, stop, back)
	return errors.Join(d.p.ending(c.Context, results), recorded, backErr)
}

// begin records a new deployment before any node is touched.
func (d *deployment) begin(ctx context.Context, h *hold) (int64, error) {
	x := &d.plan.Work
	dep := inventory.Deployment{Kind: x.Kind, Ref: x.Ref, Command: strings.Join(d.p.Args, " "), Plan: d.plan.encode(), Undoes: x.Undo, Holder: h.name, By: operator(), Nodes: d.rows}
	if x.Kind == "push" {
		dep.Image = x.Image.String()
	}
	id, err := d.w.state.BeginDeployment(ctx, dep, d.w.holderLives)
	return id, held(err)
}

// held adds the way out to an error about nodes that somebody else has in hand.
func held(err error) error {
	var other *inventory.HeldError
	if !errors.As(err, &other) {
		return err
	}
	return withHint(coded{other, exitBusy}, "wait until it has ended: `ingot deployment show %d` tells how far it is", other.Holds[0].Deployment)
}

// run does the nodes.
func (d *deployment) run(ctx context.Context) ([]outcome, fleet.Stop) {
	results := make([]outcome, len(d.nodes))
	waves := make([]int, len(d.nodes))
	for i, n := range d.nodes {
		results[i], waves[i] = outcome{Node: n.Name, Wave: d.rows[i].Wave, State: stateNotTried}, d.rows[i].Wave
	}
	d.show.begin(d)
	policy := d.plan.Policy
	if d.plan.Work.DryRun || d.plan.Work.look { // nothing is spread
		policy.MaxFailures, policy.Canary, policy.Pause = len(d.nodes), 0, 0
		clear(waves)
	}
	stop := policy.Run(ctx, waves, d.failed, func(i int) fleet.Result {
		d.started(i)
		results[i] = d.oneNode(ctx, i)
		d.ended(i, results[i])
		d.show.node(d.id, results[i])
		return results[i].result()
	}, func(wave int, done fleet.WaveDone, wait time.Duration) { d.show.wave(d, wave, done, wait) })
	return results, stop
}

// result is what an outcome means to the nodes after it.
func (out *outcome) result() fleet.Result {
	switch out.State {
	case stateDone, statePlanned:
		return fleet.Done
	case stateUnchanged:
		return fleet.Skipped
	}
	return fleet.Failed
}

func (d *deployment) set(row inventory.DeploymentNode) {
	if d.id == 0 {
		return
	}
	d.note(d.w.state.SetDeploymentNode(context.Background(), d.id, row))
}

// note keeps an error of the record for the end: the nodes come first.
func (d *deployment) note(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = errors.Join(d.err, err)
}

func (d *deployment) started(i int) {
	d.rows[i].State, d.rows[i].Reason = stateRunning, ""
	d.set(d.rows[i])
}

// planned records what a node was, before anything of it is changed: whoever
// takes this up when we are gone has to know.
func (d *deployment) planned(i int, plan wire.Plan) error {
	if plan.Refused != nil || len(plan.Changes) == 0 {
		return nil
	}
	d.rows[i].Was, d.rows[i].Target = max(plan.From, 1), plan.To
	if d.id == 0 {
		return nil
	}
	return d.w.state.SetDeploymentNode(context.Background(), d.id, d.rows[i])
}

func (d *deployment) ended(i int, out outcome) {
	row := &d.rows[i]
	if row.Was == 0 {
		row.Was = out.Plan.From
	}
	row.State, row.Changes, row.Sent, row.Reason, row.Health = out.State, len(out.Plan.Changes), out.Sent, out.Error, out.Done.Health
	row.Generation = out.Done.Generation.Number
	if row.Generation == 0 {
		row.Generation = out.Plan.From // as far as it is known
	}
	var reverted *revertedError
	if errors.As(out.err, &reverted) {
		row.Generation = reverted.now.Number
	}
	if d.id != 0 && len(row.Health) > 0 && (out.State == stateDone || out.State == stateDrained || out.State == stateFailed) {
		d.note(d.w.sawHealth(context.Background(), out.Node, row.Generation, row.Health))
	}
	if d.id != 0 {
		if s, err := d.w.sidesOfNode(context.Background(), out.Node); err == nil && s != nil {
			row.Sides = s.String()
		}
	}
	d.set(*row)
}

// end notes that the deployment is over; the error is that of the whole record.
func (d *deployment) end(ctx context.Context, results []outcome, stop fleet.Stop) error {
	if d.id == 0 {
		return nil
	}
	for i, out := range results {
		if out.State == stateNotTried {
			d.rows[i].State = stateNotTried
			d.set(d.rows[i])
		}
	}
	return errors.Join(d.err, d.w.state.EndDeployment(context.WithoutCancel(ctx), d.id, stop.Reason))
}

// policyFlags reads how nodes are gone about.
func policyFlags(c *cli.Context) (fleet.Policy, error) {
	p := fleet.Policy{Canary: c.Int("canary"), Batch: c.String("batch"), MaxFailures: c.Int("max-failures"), Pause: c.Duration("pause"),
		Parallel: c.Int("parallel"), AutoBack: fleet.Back(c.String("auto-rollback"))}
	if err := p.Check(); err != nil {
		return p, usageError{err.Error()}
	}
	return p, nil
}

// waveFlags are the options of policyFlags.
func waveFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "canary", Usage: "do `N` nodes first, of which none may fail"},
		&cli.StringFlag{Name: "batch", Usage: "then go on in waves of `N` nodes, or of a part of all, such as 25%", DefaultText: "all that are left"},
		&cli.IntFlag{Name: "max-failures", Usage: "go on while no more than `N` nodes have failed"},
		&cli.DurationFlag{Name: "pause", Usage: "wait `TIME` between two waves, such as 5m"},
		parallelFlag(),
		&cli.StringFlag{Name: "order", Usage: "begin with the nodes of `NODES`, in this order: @db,@web,n7"},
	}
}

// autoBackFlag takes back what has been done when a deployment stops.
func autoBackFlag() cli.Flag {
	return &cli.StringFlag{Name: "auto-rollback", Usage: "when it stops for failures, take back the nodes that are done: `wave` (of that wave) or all", DefaultText: "none"}
}

// summary is the result of all nodes together, for people.
func (d *deployment) summary() string {
	name := "dry run: "
	if d.id != 0 {
		name = fmt.Sprintf("deployment %d: ", d.id)
	}
	text := name + d.plan.Work.String() + " on " + count(len(d.nodes), "node")
	if waves := d.rows[len(d.rows)-1].Wave - d.rows[0].Wave + 1; waves > 1 {
		text += fmt.Sprintf(" in %d waves", waves)
	}
	return text
}
