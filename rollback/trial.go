package rollback

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ingot/internal/pattern"
	"ingot/internal/slogx"
)

// Trial says that a generation counts only once somebody has confirmed it.
// Until then whoever finds it may take it back: a guard when the time is up,
// the recovery at boot whatever the time. It is part of the record of the
// generation, so it becomes true and untrue in one step with the switch.
type Trial struct {
	Window    time.Duration `json:"window"`             // how long it may take, in nanoseconds
	Until     time.Time     `json:"until"`              // set by Switch; for people, and for a guard that was started again
	Ran       []string      `json:"ran,omitempty"`      // services that ran before the switch: a revert starts them again
	Reported  time.Time     `json:"reported,omitzero"`  // when all had been looked at after the switch; the zero time: not yet
	Confirmed time.Time     `json:"confirmed,omitzero"` // when; the zero time: not yet
	By        string        `json:"by,omitempty"`       // who confirmed it
	Stuck     string        `json:"stuck,omitempty"`    // why taking it back failed the last time
}

// Health is what was found when something was looked at after a switch.
type Health struct {
	What string `json:"what"` // such as "unit nginx.service"
	OK   bool   `json:"ok"`
	Why  string `json:"why,omitempty"` // of what is not OK
}

// Errors of trials.
var (
	// ErrOnTrial: the current generation waits for its confirmation (TrialError).
	ErrOnTrial = errors.New("waits for confirmation")
	// ErrNoTrial: there is nothing to confirm or to revert: it was confirmed,
	// taken back, or never on trial.
	ErrNoTrial = errors.New("not on trial")
)

// TrialError says which generation is on trial. errors.Is(err, ErrOnTrial).
type TrialError struct{ Generation Generation }

func (e *TrialError) Error() string {
	return fmt.Sprintf("generation %d waits for confirmation until %s", e.Generation.Number, e.Generation.Trial.Until.Local().Format(time.TimeOnly))
}

// Is makes it an ErrOnTrial.
func (e *TrialError) Is(target error) bool { return target == ErrOnTrial }

// OnTrial reports whether the generation waits for its confirmation.
func (g *Generation) OnTrial() bool { return g.Trial != nil && g.Trial.Confirmed.IsZero() }

// Try makes the generation of a plan one that has to be confirmed within a
// time of its switch; ran are the services that run. The plan must not be
// switched yet.
func (p *Plan) Try(window time.Duration, ran ...string) {
	p.Generation.Trial = &Trial{Window: window, Ran: ran}
}

// Next is the number that the generation of a plan will have.
func (p *Plan) Next() int { return max(p.to, max(p.Base, 1)+1) }

// Confirm ends the trial of the current generation, which must be num: it
// stays. Confirming what was confirmed is no error.
func (n *Node) Confirm(num int, by string) error {
	err := n.onTrial("confirm", num, func(g Generation) error {
		if g.Trial.Confirmed.IsZero() {
			g.Trial.Confirmed, g.Trial.By, g.Trial.Stuck = n.now().UTC(), by, ""
			if err := n.writeState(genDir(num, "meta.json"), encodeMeta(g)); err != nil {
				return err
			}
		}
		return n.usualPair(g.Volumes)
	})
	if err != nil {
		return fmt.Errorf("confirm generation %d: %w", num, err)
	}
	n.log().Info("confirmed", slogx.Gen, num)
	return nil
}

// Report records what was found when the current generation, which must be
// num, was looked at.
func (n *Node) Report(num int, health []Health) error {
	unlock, err := n.lockIdle("report")
	if err != nil {
		return fmt.Errorf("report on generation %d: %w", num, err)
	}
	defer unlock()
	g, err := n.Current()
	if err == nil && g.Number != num {
		err = fmt.Errorf("the node is at generation %d%s: %w", g.Number, inBrackets(g.Note), ErrStale)
	}
	if err == nil {
		g.Health = health
		if g.Trial != nil {
			g.Trial.Reported = n.now().UTC()
		}
		err = n.writeState(genDir(num, "meta.json"), encodeMeta(g))
	}
	if err != nil {
		return fmt.Errorf("report on generation %d: %w", num, err)
	}
	return nil
}

// onTrial runs fn, under the lock, on the current generation, which must be
// num and be or have been on trial.
func (n *Node) onTrial(what string, num int, fn func(Generation) error) error {
	unlock, err := n.lockIdle(what)
	if err != nil {
		return err
	}
	defer unlock()
	g, err := n.Current()
	if err != nil {
		return err
	}
	if g.Number != num {
		return fmt.Errorf("the node is at generation %d%s: %w", g.Number, inBrackets(g.Note), ErrNoTrial)
	}
	if g.Trial == nil {
		return ErrNoTrial
	}
	return fn(g)
}

func inBrackets(note string) string {
	if note == "" {
		return ""
	}
	return " (" + note + ")"
}

// Revert takes the current generation, which must be num and on trial, back
// to the one before it, and records why. What the node changed since in files
// that go is kept with the generation that is left. The plan says what became
// of the files. A revert that fails is noted in the trial and may be tried again.
func (n *Node) Revert(ctx context.Context, num int, why string) (Generation, *Plan, error) {
	g, p, err := n.revert(ctx, num, why)
	switch {
	case err == nil:
		n.log().Warn("reverted", slogx.Gen, num, "why", why)
		return g, p, nil
	case !errors.Is(err, ErrNoTrial) && !errors.Is(err, ErrBusy) && !errors.Is(err, ErrInterrupted):
		err = errors.Join(err, n.onTrial("note", num, func(g Generation) error {
			g.Trial.Stuck = err.Error()
			return n.writeState(genDir(num, "meta.json"), encodeMeta(g))
		}))
	}
	return g, nil, fmt.Errorf("revert generation %d (%s): %w", num, why, err)
}

// TakeBack takes the current generation back to the one before it for somebody
// who asks no questions: what the node changed since is dealt with as by Revert.
func (n *Node) TakeBack(ctx context.Context, by string) (Generation, *Plan, error) {
	g, err := n.Current()
	if err != nil {
		return g, nil, fmt.Errorf("take back: %w", err)
	}
	made, p, err := n.wayBack(ctx, g, func(p *Plan) { p.Generation.By = by })
	if err != nil {
		return g, nil, fmt.Errorf("take back generation %d: %w", g.Number, err)
	}
	return made, p, nil
}

// wayBack goes back from a generation to the one before it; say completes the record.
func (n *Node) wayBack(ctx context.Context, g Generation, say func(*Plan)) (Generation, *Plan, error) {
	p, err := n.planRevert(ctx, g)
	if err != nil {
		return g, nil, err
	}
	say(p)
	if err = n.Stage(ctx, p, nil); err == nil {
		g, err = n.Switch(ctx, p)
	}
	return g, p, err
}

// planRevert plans the way back from a generation on trial. What the node
// wrote into a file whose content both generations have is all that there is
// of it: such a file stays as it is.
func (n *Node) planRevert(ctx context.Context, g Generation) (*Plan, error) {
	policy := Policy{Default: Take}
	for {
		p, err := n.PlanRollback(ctx, g.From, policy, g.By)
		if err == nil {
			err = p.Err()
		}
		if err != nil || len(p.Need) == 0 {
			return p, err
		}
		keep, err := p.written()
		if err != nil {
			return nil, err
		}
		policy.Keep = policy.Keep.With(keep)
	}
}

// written are patterns of the files that lack content since the node changed
// them; others that lack content are damaged.
func (p *Plan) written() (pattern.List, error) {
	changed := map[string]bool{}
	for _, c := range p.Conflicts {
		changed[c.Path] = c.Now != nil && c.Action == Take
	}
	var keep []string
	lacking := p.lacking()
	for _, note := range lacking {
		if !changed[note.Path] {
			return pattern.List{}, &DamagedError{Notes: lacking}
		}
		keep = append(keep, pattern.Quote(note.Path))
	}
	if len(keep) == 0 {
		return pattern.List{}, &DamagedError{}
	}
	return pattern.Parse(keep)
}

func (n *Node) revert(ctx context.Context, num int, why string) (Generation, *Plan, error) {
	g, err := n.idle()
	if err != nil {
		return g, nil, err
	}
	if g.Number != num || !g.OnTrial() {
		return g, nil, fmt.Errorf("the node is at generation %d%s: %w", g.Number, inBrackets(g.Note), ErrNoTrial)
	}
	return n.wayBack(ctx, g, func(p *Plan) {
		p.Generation.Result, p.Generation.Reason = "reverted", why
		p.Generation.Note = fmt.Sprintf("revert of %d to %d: %s", num, p.To, why)
	})
}
