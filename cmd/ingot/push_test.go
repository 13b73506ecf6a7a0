package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

// What happened to the last node says how a verb over several nodes ends.
func TestEndingOfSeveralNodes(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	broken := ofNode("n2", errors.New(`node "n2" has no address`))
	for _, tc := range []struct {
		name string
		ctx  context.Context
		all  int
		last error
		code int
		text string // of the error; "" is none
		said string
	}{
		{"all are well", t.Context(), 2, nil, exitDone, "", ""},
		{"the only one failed", t.Context(), 1, broken, exitFailed, `node "n2" has no address`, ""},
		{"one of three failed", t.Context(), 3, broken, exitSome, `node "n2" has no address; 1 of 3 nodes were not tried`, ""},
		{"interrupted", ctx, 3, ofNode("n2", errors.New("the connection broke")), exitInterrupted, "interrupted", `interrupted at node "n2": the connection broke; 1 of 3 nodes done before, 1 not tried`},
	} {
		var said strings.Builder
		p := &program{Stdout: io.Discard, Stderr: &said}
		err := p.ending(tc.ctx, []outcome{{Node: "n1"}, {Node: "n2", err: tc.last}}, tc.all)
		var text string
		var code int
		if err != nil {
			text, _, code = diagnose(err)
		}
		if code != tc.code || text != tc.text || strings.TrimSpace(said.String()) != tc.said {
			t.Errorf("%s: exit %d %q, said %q", tc.name, code, text, said.String())
		}
	}
}
