package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"ingot/inventory"
)

// What a node was when it was last heard of, as facts: when that was, and what
// its checks said after its last switch, in JSON.
const (
	factSeen   = "seen"
	factHealth = "health"
)

// healthLook is what the checks of a generation said.
type healthLook struct {
	Looked     time.Time `json:"looked"`
	Generation int       `json:"generation"`
	Checks     []string  `json:"checks"` // a line each
	Failed     int       `json:"failed"`
}

func (w *world) saw(ctx context.Context, node string) error {
	return w.state.SetFact(ctx, node, factSeen, time.Now().UTC().Format(time.RFC3339))
}

// seen is when a node was last connected to; nil: never.
func (w *world) seen(ctx context.Context, node string) (*time.Time, error) {
	text, err := w.state.Fact(ctx, node, factSeen)
	if errors.Is(err, inventory.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, fmt.Errorf("node %q: when it was seen: %w", node, err)
	}
	return &at, nil
}

func (w *world) sawHealth(ctx context.Context, node string, generation int, lines []string) error {
	b, err := json.Marshal(healthLook{time.Now().Round(0), generation, append([]string{}, lines...), len(failedChecks(lines))})
	if err != nil {
		return err
	}
	return w.state.SetFact(ctx, node, factHealth, string(b))
}

// healthOf is what the checks of a node said last; nil: nothing.
func (w *world) healthOf(ctx context.Context, node string) (*healthLook, error) {
	text, err := w.state.Fact(ctx, node, factHealth)
	if errors.Is(err, inventory.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	l := &healthLook{}
	if err := json.Unmarshal([]byte(text), l); err != nil {
		return nil, fmt.Errorf("node %q: what is recorded of its health: %w", node, err)
	}
	return l, nil
}

// health is what is known of a node's health, in a few words; "" for nothing.
// What was seen of a generation says nothing of the next.
func (v nodeView) health() string {
	l := v.Health
	switch {
	case l == nil || l.Generation != v.Generation:
		return ""
	case l.Failed > 0:
		return fmt.Sprintf("%d of %s failed", l.Failed, count(len(l.Checks), "check"))
	}
	return "ok"
}
