package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

// What happened to the nodes says how a verb over several of them ends.
func TestEndingOfSeveralNodes(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	done, left := outcome{Node: "n1", State: stateDone}, outcome{Node: "n3", State: stateNotTried}
	same := outcome{Node: "n4", State: stateUnchanged}
	broken := outcome{Node: "n2", State: stateFailed, err: ofNode("n2", errors.New(`node "n2" has no address`))}
	cut := outcome{Node: "n2", State: stateInterrupted, err: ofNode("n2", context.Canceled)}
	for _, tc := range []struct {
		name    string
		ctx     context.Context
		results []outcome
		code    int
		text    string // of the error; "" is none
		said    string
	}{
		{"all are well", t.Context(), []outcome{done, same}, exitDone, "", ""},
		{"the only one failed", t.Context(), []outcome{broken}, exitFailed, `node "n2" has no address`, ""},
		{"one of three failed", t.Context(), []outcome{done, broken, left}, exitSome, "1 node failed (n2): 1 done, 1 failed, 1 not tried", ""},
		{"none was begun", t.Context(), []outcome{left}, exitSome, "nothing was begun: 1 not tried", ""},
		{"interrupted", ctx, []outcome{done, cut, left}, exitInterrupted, "interrupted", "1 done, 1 interrupted, 1 not tried"},
		{"interrupted and failed", ctx, []outcome{same, broken, cut, left}, exitInterrupted, "interrupted", "1 unchanged, 1 interrupted, 1 failed, 1 not tried"},
		{"the only one interrupted", ctx, []outcome{cut}, exitInterrupted, "interrupted", ""},
		{"interrupted when all was over", ctx, []outcome{done, same}, exitDone, "", ""},
	} {
		var said strings.Builder
		p := &program{Stdout: io.Discard, Stderr: &said}
		err := p.ending(tc.ctx, tc.results)
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

// Who gives up before the switch changed nothing; after it the node's word
// counts, and without one nothing is claimed.
func TestEndOfOneNode(t *testing.T) {
	broke, gone := errors.New("rename: input/output error"), context.Canceled
	for _, tc := range []struct {
		name        string
		err, gaveUp error
		told        bool
		state, text string
	}{
		{"well", nil, nil, true, stateDone, ""},
		{"well, and given up too late", nil, gone, true, stateDone, ""},
		{"failed", broke, nil, false, stateFailed, broke.Error()},
		{"given up", io.EOF, gone, false, stateInterrupted, "interrupted before its switch: nothing was changed"},
		{"given up, and never heard of again", errSilent, gone, false, stateInterrupted, "interrupted before its switch: nothing was changed"},
		{"given up, and the switch failed", broke, gone, true, stateFailed, broke.Error()},
		{"told, and never heard of again", errSilent, gone, true, stateInterrupted, errSilent.Error()},
	} {
		out := outcome{Node: "n1", State: stateDone}
		if out.end(tc.err, tc.gaveUp, tc.told); out.State != tc.state || out.Error != tc.text || (out.err == nil) != (tc.err == nil) {
			t.Errorf("%s: %s %q, %v", tc.name, out.State, out.Error, out.err)
		}
	}
}
