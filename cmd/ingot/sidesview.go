package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"ingot/imager/wire"
	"ingot/inventory"
)

// factSides is what a node with two sides said of them last, in JSON.
const factSides = "sides"

// forgetSides is for a node that has not two sides any more.
func (w *world) forgetSides(ctx context.Context, node string) error {
	was, err := w.state.Fact(ctx, node, factSides)
	if errors.Is(err, inventory.ErrNotFound) || err == nil && was == "" {
		return nil
	}
	return errors.Join(err, w.state.SetFact(ctx, node, factSides, ""))
}

// learnSides records what a node says of its sides, and as an event when that
// is news; nil is no word about them.
func (w *world) learnSides(ctx context.Context, node string, s *wire.Sides) error {
	if s == nil {
		return nil
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	was, err := w.state.Fact(ctx, node, factSides)
	if err != nil && !errors.Is(err, inventory.ErrNotFound) {
		return err
	}
	if was == string(b) {
		return nil
	}
	return errors.Join(w.state.SetFact(ctx, node, factSides, string(b)), w.state.AddEvent(ctx, inventory.Event{Node: node, Stage: "sides", Detail: s.String()}))
}

// sidesOfNode is what a node said of its sides last; nil: it has not two.
func (w *world) sidesOfNode(ctx context.Context, node string) (*wire.Sides, error) {
	text, err := w.state.Fact(ctx, node, factSides)
	if errors.Is(err, inventory.ErrNotFound) || err == nil && text == "" {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := &wire.Sides{}
	if err := json.Unmarshal([]byte(text), s); err != nil {
		return nil, fmt.Errorf("node %q: what is recorded of its sides: %w", node, err)
	}
	return s, nil
}

// waitingSide reports whether a generation is on the side that does not run, and
// was not tried yet.
func waitingSide(s *wire.Sides, generation int) bool {
	return s != nil && s.Open && s.Started == 0 && s.Generation == generation && s.Side != s.Runs
}
