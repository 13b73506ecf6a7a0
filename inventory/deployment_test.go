package inventory

import (
	"errors"
	"slices"
	"testing"
)

func nobody(string) bool { return false }

func TestDeployment(t *testing.T) {
	ctx, d := t.Context(), open(t)
	if _, err := d.Deployment(ctx, 1); !errors.Is(err, ErrNotFound) {
		t.Errorf("a deployment that is not there: %v", err)
	}
	id, err := d.BeginDeployment(ctx, Deployment{Kind: "push", Ref: "web:2", Image: "abc", Command: "push web:2 @web", By: "root@here",
		Nodes: []DeploymentNode{{Node: "n2"}, {Node: "n1", Wave: 1}}}, nobody)
	if err != nil {
		t.Fatal(err)
	}
	done := DeploymentNode{Node: "n1", State: "reverted", Was: 3, Generation: 5, Changes: 7, Sent: 1 << 40, Reason: "check \"web\": status 503", Health: []string{"ok ssh", "bad web"}, Sides: "side a runs"}
	if err := d.SetDeploymentNode(ctx, id, done); err != nil {
		t.Fatal(err)
	}
	if err := d.SetDeploymentNode(ctx, id, DeploymentNode{Node: "n3"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a node that is not of it: %v", err)
	}
	got, err := d.Deployment(ctx, id)
	if err != nil || len(got.Nodes) != 2 || got.Nodes[0].Node != "n2" || got.Nodes[0].State != NodeWaiting || !got.Ended.IsZero() || got.Begun.IsZero() {
		t.Fatalf("%+v, %v", got, err)
	}
	n := got.Nodes[1]
	if n.Changed.IsZero() || !slices.Equal(n.Health, done.Health) {
		t.Errorf("%+v", n)
	}
	n.Changed, n.Health, done.Health = done.Changed, nil, nil
	if n.Node != done.Node || n.State != done.State || n.Was != 3 || n.Generation != 5 || n.Changes != 7 || n.Sent != 1<<40 || n.Reason != done.Reason {
		t.Errorf("%+v, want %+v", n, done)
	}
	if err := d.EndDeployment(ctx, id, ""); err != nil {
		t.Fatal(err)
	}
	second, err := d.BeginDeployment(ctx, Deployment{Kind: "rollback", Command: "rollback n1", By: "x", Nodes: []DeploymentNode{{Node: "n1"}}}, nobody)
	if err != nil || second <= id {
		t.Fatalf("the next is %d, %v", second, err)
	}
	list, err := d.Deployments(ctx, 0)
	if err != nil || len(list) != 2 || list[0].ID != second || list[1].ID != id || list[1].Ended.IsZero() || len(list[1].Nodes) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err = d.Deployments(ctx, 1); err != nil || len(list) != 1 || list[0].ID != second {
		t.Errorf("the newest: %+v, %v", list, err)
	}
	if err := d.EndDeployment(ctx, 99, ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("the end of one that is not there: %v", err)
	}
}

// Nodes that a living deployment has in hand are refused to others, by name;
// those of one that was killed, or has ended, are not.
func TestHeld(t *testing.T) {
	ctx, d := t.Context(), open(t)
	alive := func(holder string) bool { return holder == "living" }
	of := func(holder string, nodes ...string) Deployment {
		dep := Deployment{Kind: "push", Ref: "web:2", By: "ann@here", Holder: holder}
		for _, n := range nodes {
			dep.Nodes = append(dep.Nodes, DeploymentNode{Node: n})
		}
		return dep
	}
	dead, err := d.BeginDeployment(ctx, of("dead", "n1", "n2"), alive)
	if err != nil {
		t.Fatal(err)
	}
	first, err := d.BeginDeployment(ctx, of("living", "n2", "n3"), alive)
	if err != nil {
		t.Fatalf("beside one that was killed: %v", err)
	}
	var held *HeldError
	_, err = d.BeginDeployment(ctx, of("other", "n3", "n4"), alive)
	if !errors.As(err, &held) || len(held.Holds) != 1 || held.Holds[0].Node != "n3" || held.Holds[0].Deployment != first || held.Holds[0].By != "ann@here" || held.Holds[0].Since.IsZero() {
		t.Errorf("a node in the hands of another: %v", err)
	}
	if err := d.TakeDeployment(ctx, dead, of("", "n1", "n2").Nodes, "other", alive); !errors.As(err, &held) || held.Holds[0].Node != "n2" {
		t.Errorf("taken up while another has a node of it: %v", err)
	}
	if err := d.TakeDeployment(ctx, first, of("", "n2").Nodes, "other", alive); !errors.As(err, &held) {
		t.Errorf("taken up while it is under way: %v", err)
	}
	if list, err := d.Deployments(ctx, 0); err != nil || len(list) != 2 {
		t.Errorf("%d deployments, %v", len(list), err)
	}
	if err := d.EndDeployment(ctx, first, "stopped: 3 failed"); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Deployment(ctx, first); err != nil || got.Stopped != "stopped: 3 failed" || got.Holder != "" {
		t.Errorf("%+v, %v", got, err)
	}
	if err := d.TakeDeployment(ctx, dead, of("", "n1", "n2").Nodes, "living", alive); err != nil {
		t.Errorf("taken up: %v", err)
	}
	if err := d.TakeDeployment(ctx, 99, nil, "living", alive); !errors.Is(err, ErrNotFound) {
		t.Errorf("one that is not there: %v", err)
	}
}

func TestSuperseded(t *testing.T) {
	ctx, d := t.Context(), open(t)
	var ids []int64
	for i := range 3 {
		dep := Deployment{Kind: "push", Undoes: int64(i / 2), Nodes: []DeploymentNode{{Node: "n1"}, {Node: "n2"}, {Node: "n3"}}}
		id, err := d.BeginDeployment(ctx, dep, nobody)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	for _, x := range []struct {
		id int64
		n  DeploymentNode
	}{{ids[0], DeploymentNode{Node: "n1", State: "done", Was: 2}}, {ids[1], DeploymentNode{Node: "n1", State: "done", Was: 3}}, {ids[2], DeploymentNode{Node: "n1", State: "reverted", Was: 4}},
		{ids[1], DeploymentNode{Node: "n2", State: "unchanged", Was: 3}}, {ids[2], DeploymentNode{Node: "n3", State: "unreachable"}}} {
		if err := d.SetDeploymentNode(ctx, x.id, x.n); err != nil {
			t.Fatal(err)
		}
	}
	got, err := d.Superseded(ctx, ids[0])
	if err != nil || len(got) != 1 || got["n1"] != ids[2] {
		t.Errorf("%v, %v", got, err)
	}
	if got, err = d.Superseded(ctx, ids[2]); err != nil || len(got) != 0 {
		t.Errorf("of the last: %v, %v", got, err)
	}
	undone, err := d.Undone(ctx, ids[0])
	if err != nil || len(undone) != 1 || undone[0].ID != ids[2] {
		t.Errorf("taken back by %+v, %v", undone, err)
	}
}
