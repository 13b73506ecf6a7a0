package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"ingot/imager/wire"
	"ingot/inventory"
)

// factDrift is what was found when a node was last compared with what it was
// given, in JSON.
const factDrift = "drift"

// driftLook is one look for drift of a whole node.
type driftLook struct {
	Looked     time.Time `json:"looked"`
	Generation int       `json:"generation"`         // it was compared with
	Checksum   bool      `json:"checksum,omitempty"` // every file was read
	Paths      int       `json:"paths"`              // that differ, and that a repair puts back
	Left       int       `json:"left,omitempty"`     // that differ, and that a repair leaves
}

func lookOf(generation int, list []wire.Drift, full bool, when time.Time) driftLook {
	l := driftLook{Looked: when.Round(0), Generation: generation, Checksum: full}
	for _, d := range list {
		if d.Left != "" {
			l.Left++
		} else {
			l.Paths++
		}
	}
	return l
}

func (w *world) sawDrift(ctx context.Context, node string, l driftLook) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return w.state.SetFact(ctx, node, factDrift, string(b))
}

// driftOf is what was last seen of a node; nil: nobody looked.
func (w *world) driftOf(ctx context.Context, node string) (*driftLook, error) {
	text, err := w.state.Fact(ctx, node, factDrift)
	if errors.Is(err, inventory.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	l := &driftLook{}
	if err := json.Unmarshal([]byte(text), l); err != nil {
		return nil, fmt.Errorf("node %q: what is recorded of its drift: %w", node, err)
	}
	return l, nil
}

// drift is what was last seen of a node's drift, in a few words; "" where there
// is nothing to look at. What was seen of a generation says nothing of the next.
func (v nodeView) drift() string {
	l := v.Drift
	switch {
	case v.Generation == 0:
		return ""
	case l == nil || l.Generation != v.Generation || v.Since != nil && l.Looked.Before(*v.Since):
		return fmt.Sprintf("not looked for since generation %d was made", v.Generation)
	}
	text := "none"
	if l.Paths > 0 {
		text = count(l.Paths, "path")
	}
	if l.Left > 0 {
		text += fmt.Sprintf(", %d left on purpose", l.Left)
	}
	text += ", looked at " + l.Looked.Local().Format(time.DateTime)
	if l.Checksum {
		text += ", every file read"
	}
	return text
}

// drifted is drift for a list.
func (v nodeView) drifted() string {
	l := v.Drift
	switch {
	case l == nil || l.Generation != v.Generation || v.Since != nil && l.Looked.Before(*v.Since):
		return "-"
	case l.Paths == 0:
		return "none"
	}
	return count(l.Paths, "path")
}

// driftView is what `drift` says of one node.
type driftView struct {
	Node       string       `json:"node"`
	State      string       `json:"state"` // same, differs; or as that of a push which did not come to an end
	Error      string       `json:"error,omitempty"`
	Hint       string       `json:"hint,omitempty"`
	Generation int          `json:"generation,omitempty"` // it was compared with
	Drift      []wire.Drift `json:"drift"`                // in tree order
	Notes      []string     `json:"notes,omitempty"`
	Seconds    float64      `json:"seconds"`
}

// The states of a node that was looked at.
const (
	stateSame    = "same"
	stateDiffers = "differs"
)

func viewDrift(results []outcome) []driftView {
	out := []driftView{}
	for _, r := range results {
		v := driftView{Node: r.Node, State: r.State, Error: r.Error, Hint: r.Hint, Generation: r.Plan.From, Drift: r.Plan.Drift, Notes: r.Plan.Notes, Seconds: r.Seconds}
		if v.Drift == nil {
			v.Drift = []wire.Drift{}
		}
		if r.State == stateDone {
			v.State = stateSame
			if lookOf(0, v.Drift, false, time.Time{}).Paths > 0 {
				v.State = stateDiffers
			}
		}
		out = append(out, v)
	}
	return out
}

// differing are the nodes of which something is to be put back.
func differing(views []driftView) (out []string) {
	for _, v := range views {
		if v.State == stateDiffers {
			out = append(out, v.Node)
		}
	}
	return out
}

// driftText is the answer for people: a line for what is alike on whichever
// nodes, in the order in which it is met, then the sums.
func driftText(views []driftView) string {
	who := map[string][]string{}
	var lines []string
	add := func(node, line string) {
		if who[line] == nil {
			lines = append(lines, line)
		}
		who[line] = append(who[line], node)
	}
	for _, v := range views {
		for _, d := range v.Drift {
			line := fmt.Sprintf("%-8s %q  %s", d.Kind, "/"+wire.PathOf(d.Path), d.Why)
			if d.Left != "" {
				line = fmt.Sprintf("left     %q  %s, %s: %s", "/"+wire.PathOf(d.Path), d.Kind, d.Why, d.Left)
			}
			add(v.Node, line)
		}
	}
	for _, v := range views {
		l := lookOf(v.Generation, v.Drift, false, time.Time{})
		switch v.State {
		case stateSame:
			add(v.Node, fmt.Sprintf("nothing differs from generation %d", v.Generation))
		case stateDiffers:
			verb := "differs"
			if l.Paths > 1 {
				verb = "differ"
			}
			add(v.Node, fmt.Sprintf("%s %s from generation %d", count(l.Paths, "path"), verb, v.Generation))
		}
	}
	var b strings.Builder
	for _, line := range lines {
		fmt.Fprintf(&b, "%s: %s\n", fold(who[line]), line)
	}
	return b.String()
}
