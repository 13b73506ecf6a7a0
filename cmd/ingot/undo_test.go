package main

import (
	"errors"
	"strings"
	"testing"

	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/inventory"
)

// What a deployment made of a node is taken back when it is there, and nothing
// else is.
func TestUndoable(t *testing.T) {
	one, two, three := digest.Of([]byte("1")), digest.Of([]byte("2")), digest.Of([]byte("3"))
	gen := func(n int, kind string, image digest.ID) wire.Generation {
		return wire.Generation{Number: n, Kind: kind, Image: image, Ref: kind}
	}
	push := inventory.Deployment{ID: 7, Kind: "push", Image: two.String()}
	back := inventory.Deployment{ID: 8, Kind: "rollback"}
	done, running := inventory.DeploymentNode{Node: "n1", State: stateDone, Was: 4, Generation: 5}, inventory.DeploymentNode{Node: "n1", State: stateRunning, Was: 4}
	was := gen(4, "push", one)
	trial := gen(5, "push", two)
	trial.Trial = 1
	waiting := gen(5, "push", two) // on the other side
	here := was
	here.Current = true
	for _, x := range []struct {
		name string
		dep  inventory.Deployment
		row  inventory.DeploymentNode
		kept []wire.Generation
		want string // "" go on; "=" already; else what the error says
	}{
		{"done", push, done, []wire.Generation{was, gen(5, "push", two)}, ""},
		{"killed after the switch", push, running, []wire.Generation{was, gen(5, "push", two)}, ""},
		{"killed, on trial", push, running, []wire.Generation{was, trial}, ""},
		{"killed before the switch", push, running, []wire.Generation{was}, "="},
		{"it went back by itself", push, running, []wire.Generation{was, gen(5, "push", two), gen(6, "revert", one)}, "="},
		{"taken back before", push, done, []wire.Generation{was, gen(5, "push", two), gen(6, "rollback", one)}, "="},
		{"another push since", push, done, []wire.Generation{was, gen(5, "push", two), gen(6, "push", three)}, "generation 6 of it, push of push"},
		{"the same as before by another push", push, done, []wire.Generation{was, gen(5, "push", two), gen(6, "push", one)}, "generation 6"},
		{"rolled back to something else", push, done, []wire.Generation{was, gen(5, "push", two), gen(6, "rollback", three)}, "generation 6"},
		{"somebody else's push instead", push, running, []wire.Generation{was, gen(5, "push", three)}, "generation 5"},
		{"a rollback on the console instead", push, running, []wire.Generation{was, gen(5, "rollback", three)}, "generation 5"},
		{"what it was is gone", push, done, []wire.Generation{gen(5, "push", two)}, "does not keep generation 4"},
		{"it keeps none", push, done, nil, "keeps no generation"},
		{"installed anew", push, done, []wire.Generation{gen(1, "install", two)}, "="},
		{"a rollback", back, done, []wire.Generation{was, gen(5, "rollback", two)}, ""},
		{"not the one that was recorded", push, inventory.DeploymentNode{Node: "n1", State: stateDone, Was: 4, Generation: 6}, []wire.Generation{was, gen(5, "push", two)}, "generation 5"},
		{"on the other side, not started", push, running, []wire.Generation{here, waiting}, ""},
	} {
		err := undoable(x.dep, x.row, x.kept)
		var already *alreadyError
		switch {
		case x.want == "" && err == nil, x.want == "=" && errors.As(err, &already):
		case x.want != "" && x.want != "=" && err != nil && !errors.As(err, &already) && strings.Contains(err.Error(), x.want):
		default:
			t.Errorf("%s: %v, want %q", x.name, err, x.want)
		}
	}
}
