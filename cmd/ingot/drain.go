package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/imager"
	"ingot/imager/wire"
	"ingot/internal/hooks"
	"ingot/inventory"
	"ingot/site"
)

func noDrainFlag() cli.Flag {
	return &cli.BoolFlag{Name: "no-drain", Usage: "do not take nodes out of service before their switch, nor back: for emergencies"}
}

// drainage takes the nodes of one run out of service and back, by the steps of
// their profiles.
type drainage struct {
	p          *program
	w          *world
	verb       string // that the steps are told: push, rollback, repair, drain, undrain
	off        bool   // nothing is drained
	deployment int64  // its number; 0: none is recorded
}

// service is a node as what stands before it sees it: a load balancer, a batch system.
type service struct {
	*drainage
	node           *site.Node
	say            func(format string, args ...any)
	show           func(task string) // what is being done; nil: nobody looks
	drain, undrain []hooks.Step
	env            []string

	begun bool // this run has begun to take it out
}

// of reads the steps of a node.
func (d *drainage) of(ctx context.Context, n *site.Node, screen *screen) (*service, error) {
	s := &service{drainage: d, node: n, say: screen.say}
	if d.off {
		return s, nil
	}
	r, err := resolveProfile(d.w.Site, n)
	if err != nil {
		return nil, err
	}
	at, _ := address(ctx, d.w.state, n) // a step that needs it says so
	for list, steps := range map[*[]hooks.Step][]hooks.Step{&s.drain: r.Profile.Drain, &s.undrain: r.Profile.Undrain} {
		for _, step := range steps {
			if step, err = step.For(hooks.Node{Name: n.Name, Address: at}); err != nil {
				return nil, err
			}
			*list = append(*list, step)
		}
	}
	s.env = hookEnv(os.Environ(), d, n.Name, at, r.Classes)
	return s, nil
}

// hookEnv is the environment of steps: that of the operator, and what is known
// of the node.
func hookEnv(ours []string, d *drainage, node, address string, classes []string) []string {
	number, dir := "", d.w.Dir
	if d.deployment != 0 {
		number = strconv.FormatInt(d.deployment, 10)
	}
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs // steps run in /
	}
	return append(append([]string{}, ours...), "INGOT_NODE="+node, "INGOT_ADDRESS="+address, "INGOT_CLASSES="+strings.Join(classes, " "),
		"INGOT_DEPLOYMENT="+number, "INGOT_VERB="+d.verb, "INGOT_SITE="+dir)
}

// run carries out steps; what the one that fails has said is shown.
func (s *service) run(ctx context.Context, what string, steps []hooks.Step) ([]hooks.Result, error) {
	r := &hooks.Runner{Env: s.env, Begin: func(step hooks.Step) {
		if s.show != nil {
			s.show(what + ": " + brief(step.String()))
		}
	}}
	done, err := r.Run(ctx, steps)
	var bad *hooks.StepError
	if errors.As(err, &bad) && len(bad.Output) > 1 { // the last line is in the error
		for _, line := range bad.Output {
			s.say("%s: %s: | %s", s.node.Name, what, line)
		}
	}
	if err != nil {
		return done, fmt.Errorf("%s: %w", what, err)
	}
	return done, nil
}

// brief cuts a text to what fits into a line that moves.
func brief(text string) string {
	const most = 60
	if r := []rune(text); len(r) > most {
		return string(r[:most-3]) + "..."
	}
	return text
}

// takeOut takes the node out of service. That it is out is recorded first: a
// controller that is killed leaves it so.
func (s *service) takeOut(ctx context.Context) ([]hooks.Result, error) {
	if s.off || len(s.drain) == 0 {
		return nil, nil
	}
	if err := s.w.state.SetDrained(ctx, inventory.Drained{Node: s.node.Name, Deployment: s.deployment, By: operator()}); err != nil {
		return nil, err
	}
	s.begun = true
	return s.run(ctx, "drain", s.drain)
}

// around has a node that switches drained before it. settle is told how the node
// ended, and says how that is with its service.
func (d *drainage) around(ctx context.Context, j *nodeJob, talk *imager.Talk) (settle func(error) error, err error) {
	s, err := d.of(ctx, j.node, j.bar.screen)
	if err != nil {
		return nil, err
	}
	s.show = func(task string) { j.bar.show(wire.Progress{Task: task}) }
	talk.BeforeSwitch = func(ctx context.Context) error {
		_, err := s.takeOut(ctx)
		return err
	}
	return func(err error) error { return s.settle(ctx, j.out, err, j.bar.switching()) }, nil
}

// putBack takes the node back into service.
func (s *service) putBack(ctx context.Context) ([]hooks.Result, error) {
	done, err := s.run(ctx, "undrain", s.undrain)
	if err == nil {
		err = s.w.state.Undrained(ctx, s.node.Name)
	}
	return done, err
}

// fate is what becomes of a node's place in service when its part of a deployment has ended.
type fate uint8

const (
	fateAsItIs fate = iota // it was not taken out, or somebody else did
	fateByHand             // an operator took it out: it waits for him
	fateLeft               // it was left so before, and this run has not made it right
	fateBack
	fateStays // nobody knows that it is right
)

// fateOf decides. was is what is recorded of the node, nil where it is in
// service; begun says that this run has taken it out, err how it ended, told
// whether the node was told to switch.
func fateOf(was *inventory.Drained, deployment int64, begun, unchanged, told bool, err error) fate {
	switch {
	case was == nil:
		return fateAsItIs
	case was.ByHand():
		return fateByHand
	case begun && was.Deployment != deployment:
		return fateAsItIs
	case begun && (!told || serves(err)):
		return fateBack
	case begun:
		return fateStays
	case was.Why != "":
		return fateLeft
	case err == nil && unchanged, errors.As(err, new(*revertedError)): // whoever took it out was killed, or could not put it back
		return fateBack
	}
	return fateLeft
}

// serves reports whether a node that was told to switch is known to be what it
// was, or what it is to be.
func serves(err error) bool {
	var peer *wire.Error
	return err == nil || errors.As(err, new(*revertedError)) || errors.As(err, new(*unswitchedError)) || errors.As(err, &peer) && peer.AsBefore
}

// outOfServiceError says that a node is what it is to be, and is still out of service.
type outOfServiceError struct{ err error }

func (e *outOfServiceError) Error() string { return e.err.Error() }
func (e *outOfServiceError) Unwrap() error { return e.err }

// settle puts the node back into service, or leaves it out, by how its part of
// the deployment ended: with err, perhaps after it was told to switch.
func (s *service) settle(ctx context.Context, out *outcome, err error, told bool) error {
	if s.off || len(s.drain) == 0 {
		return err
	}
	ctx, name := context.WithoutCancel(ctx), s.node.Name
	was, dberr := s.w.state.DrainedNode(ctx, name)
	if dberr != nil {
		return errors.Join(err, dberr)
	}
	unchanged, done := out.Done.Unchanged, err
	if errors.As(err, new(*alreadyError)) {
		unchanged, done = true, nil
	}
	switch fateOf(was, s.deployment, s.begun, unchanged, told, done) {
	case fateByHand:
		s.say("%s: note: it stays drained, %s: `ingot undrain %[1]s` takes it back into service", name, drainedText(was))
	case fateLeft:
		s.say("%s: note: it is still drained, %s: `ingot undrain %[1]s` takes it back into service", name, drainedText(was))
	case fateBack:
		_, back := s.putBack(ctx)
		switch {
		case back == nil:
		case err == nil:
			return withHint(&outOfServiceError{fmt.Errorf("it is generation %d, and still out of service: %w", out.Done.Generation.Number, back)},
				"`ingot undrain %s` tries again", name)
		default:
			s.say("%s: still out of service: %v", name, back)
			return stillOut(name, err)
		}
	case fateStays:
		hold := inventory.Drained{Node: name, Deployment: s.deployment, By: operator(), Why: err.Error()}
		return errors.Join(stillOut(name, err), s.w.state.SetDrained(ctx, hold))
	case fateAsItIs:
	}
	return err
}

// drainedText says since when, by whom and why a node is out of service; "" for
// one that is not.
func drainedText(d *inventory.Drained) string {
	if d == nil {
		return ""
	}
	text := "since " + d.Since.Local().Format(time.DateTime) + ", by " + d.By
	if !d.ByHand() {
		text += fmt.Sprintf(", deployment %d", d.Deployment)
	}
	if d.Why != "" {
		text += ": " + d.Why
	}
	return text
}

// stillOut adds to how a node ended that it stays out of service.
func stillOut(name string, err error) error {
	return fmt.Errorf("%w; it stays drained until `ingot undrain %s`", err, name)
}
