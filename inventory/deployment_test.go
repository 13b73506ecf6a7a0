package inventory

import (
	"errors"
	"slices"
	"testing"
)

func TestDeployment(t *testing.T) {
	ctx, d := t.Context(), open(t)
	if _, err := d.Deployment(ctx, 1); !errors.Is(err, ErrNotFound) {
		t.Errorf("a deployment that is not there: %v", err)
	}
	id, err := d.BeginDeployment(ctx, Deployment{Kind: "push", Ref: "web:2", Image: "abc", Command: "push web:2 @web", By: "root@here",
		Nodes: []DeploymentNode{{Node: "n2"}, {Node: "n1"}}})
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
	if err := d.EndDeployment(ctx, id); err != nil {
		t.Fatal(err)
	}
	second, err := d.BeginDeployment(ctx, Deployment{Kind: "rollback", Command: "rollback n1", By: "x", Nodes: []DeploymentNode{{Node: "n1"}}})
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
	if err := d.EndDeployment(ctx, 99); !errors.Is(err, ErrNotFound) {
		t.Errorf("the end of one that is not there: %v", err)
	}
}
