package main

import (
	"strings"
	"testing"

	"ingot/imager/wire"
	"ingot/inventory"
	"ingot/site"
)

// What a node says of its sides is kept, and told once when it is news; a
// generation that waits for the next start is not what runs.
func TestLearnSides(t *testing.T) {
	ctx := t.Context()
	db, err := inventory.Open(ctx, t.TempDir()+"/state.db")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	w := &world{state: db, Site: &site.Site{}}
	s := &wire.Sides{Runs: "a", Starts: "a", Tries: "b", Side: "b", Generation: 2, From: 1, Open: true}
	for range 2 {
		if err := w.learnSides(ctx, "n1", s); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.learnSides(ctx, "n1", nil); err != nil { // an answer that says nothing of them
		t.Fatal(err)
	}
	events, err := w.state.Events(ctx, "n1", nil, 0, 0)
	if err != nil || len(events) != 1 || events[0].Stage != "sides" || !strings.Contains(events[0].Detail, "side b is tried at the next start") {
		t.Errorf("events %+v, %v", events, err)
	}
	for i, kind := range []string{"install", "push"} { // an installation forgets what was before
		if err := w.state.AddGeneration(ctx, inventory.Generation{Node: "n1", Number: i + 1, Ref: "x:" + kind, Image: "00", Kind: kind}); err != nil {
			t.Fatal(err)
		}
	}
	shown := func() int {
		t.Helper()
		v, err := viewNode(ctx, w, &site.Node{Name: "n1"}, nil)
		if err != nil || v.Sides == nil {
			t.Fatalf("%+v, %v", v.Sides, err)
		}
		return v.Generation
	}
	if got := shown(); got != 1 {
		t.Errorf("generation %d runs, want 1: 2 was not tried yet", got)
	}
	s = &wire.Sides{Runs: "b", Starts: "b", Side: "b", Generation: 2, From: 1, Started: 1, By: "me"}
	if err := w.learnSides(ctx, "n1", s); err != nil {
		t.Fatal(err)
	}
	if got := shown(); got != 2 {
		t.Errorf("generation %d runs, want 2", got)
	}
	if err := w.learn(ctx, "n1", wire.Kept{}); err != nil { // it was installed anew, with one root
		t.Fatal(err)
	}
	if s, err := w.sidesOfNode(ctx, "n1"); s != nil || err != nil {
		t.Errorf("a node with one root has the sides %+v, %v", s, err)
	}
}
