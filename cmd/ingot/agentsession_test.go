package main

import (
	"io"
	"strings"
	"testing"
	"time"

	"ingot/imager"
	"ingot/imager/wire"
	"ingot/inventory"
	"ingot/site"
)

// A machine that is started anew leaves its first connection silent: that is no
// news once it has said over another one what became of it.
func TestSilentAndBack(t *testing.T) {
	p := &program{Stdout: io.Discard, Stderr: io.Discard}
	ended := func(done wire.Done, err error) error {
		j := &nodeJob{node: &site.Node{Name: "n1"}, s: &agentSession{}, bar: p.bar(), out: &outcome{}, drains: &drainage{off: true}}
		j.s.silent.Store(true)
		return p.changed(t.Context(), nil, j, wire.Request{}, &aftercare{}, nil, func(imager.Talk) (wire.Plan, wire.Done, error) { return wire.Plan{}, done, err },
			func(wire.Generation) inventory.Generation { return inventory.Generation{} })
	}
	back := wire.Done{Unchanged: true, Reverted: "check web", Generation: wire.Generation{Number: 5, Time: time.Now().Unix()}}
	if err := ended(back, nil); err == nil || err.Error() != "reverted, as generation 5: check web" {
		t.Errorf("a node that came back: %v", err)
	}
	if err := ended(wire.Done{}, io.EOF); err == nil || !strings.Contains(err.Error(), "fell silent") {
		t.Errorf("a node that did not: %v", err)
	}
}
