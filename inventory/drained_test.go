package inventory

import (
	"testing"
	"time"
)

func TestDrained(t *testing.T) {
	ctx, d := t.Context(), open(t)
	now := time.Unix(1000, 0)
	d.now = func() time.Time { return now }
	dep, err := d.BeginDeployment(ctx, Deployment{Kind: "push", Command: "push", By: "ann", Nodes: []DeploymentNode{{Node: "n1"}, {Node: "n2"}, {Node: "n3"}}}, nobody)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := d.DrainedNode(ctx, "n1"); n != nil || err != nil {
		t.Errorf("a node in service: %+v, %v", n, err)
	}
	set := func(n Drained) {
		t.Helper()
		if err := d.SetDrained(ctx, n); err != nil {
			t.Fatal(err)
		}
	}
	set(Drained{Node: "n3", By: "bob"})
	set(Drained{Node: "n1", Deployment: dep, By: "ann"})
	set(Drained{Node: "n9", Deployment: dep + 7, By: "ann"})
	set(Drained{Node: "n3", Deployment: dep, By: "ann"}) // bob took it out: it stays his
	now = now.Add(time.Minute)
	set(Drained{Node: "n1", Deployment: dep, By: "ann", Why: "it does not answer"})
	n, err := d.DrainedNode(ctx, "n1")
	if err != nil || n == nil || *n != (Drained{"n1", dep, "ann", time.Unix(1000, 0), "it does not answer"}) || n.ByHand() {
		t.Errorf("%+v, %v", n, err)
	}
	list, err := d.DrainedNodes(ctx)
	if err != nil || len(list) != 3 || list[0].Node != "n1" || list[1].Node != "n3" || !list[1].ByHand() || list[1].By != "bob" {
		t.Errorf("%+v, %v", list, err)
	}
	got, err := d.Deployment(ctx, dep)
	if err != nil || len(got.Nodes) != 3 || !got.Nodes[0].Drained || got.Nodes[1].Drained || got.Nodes[2].Drained {
		t.Errorf("of the deployment: %+v, %v", got.Nodes, err)
	}
	// How the node ends is another thing than whether it is in service.
	if err := d.SetDeploymentNode(ctx, dep, DeploymentNode{Node: "n1", State: "done"}); err != nil {
		t.Fatal(err)
	}
	if got, _ = d.Deployment(ctx, dep); !got.Nodes[0].Drained {
		t.Error("forgotten when the node ended")
	}
	for range 2 { // the second time there is nothing to forget
		if err := d.Undrained(ctx, "n1"); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ = d.Deployment(ctx, dep); got.Nodes[0].Drained {
		t.Error("in service, and the deployment does not know")
	}
	if n, err := d.DrainedNode(ctx, "n1"); n != nil || err != nil {
		t.Errorf("in service again: %+v, %v", n, err)
	}
	if list, _ = d.DrainedNodes(ctx); len(list) != 2 {
		t.Errorf("the others: %+v", list)
	}
}
