package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"ingot/imager/wire"
	"ingot/internal/hooks"
	"ingot/inventory"
	"ingot/site"
)

// A node comes back into service when it is known to be right, and stays out
// when it is not, or when somebody wants it so.
func TestFate(t *testing.T) {
	ours, theirs, hand := &inventory.Drained{Deployment: 7}, &inventory.Drained{Deployment: 3}, &inventory.Drained{}
	held := &inventory.Drained{Deployment: 3, Why: "it could not be reached"}
	broke := errors.New("it stays as it is, but check web: status 500")
	reverted := fmt.Errorf("node: %w", &revertedError{reason: "check web", now: wire.Generation{Number: 5}})
	refused := &wire.Error{Kind: "changed", Text: "a file changed", AsBefore: true}
	for _, tc := range []struct {
		name                   string
		was                    *inventory.Drained
		begun, unchanged, told bool
		err                    error
		want                   fate
	}{
		{"done and confirmed", ours, true, false, true, nil, fateBack},
		{"its drain failed", ours, true, false, false, errors.New("drain: step 1"), fateBack},
		{"interrupted while it was drained", ours, true, false, false, context.Canceled, fateBack},
		{"the connection broke before the word", ours, true, false, false, io.EOF, fateBack},
		{"the connection broke, and it has not switched", ours, true, false, true, &unswitchedError{4}, fateBack},
		{"the switch was put back", ours, true, false, true, refused, fateBack},
		{"reverted", ours, true, false, true, reverted, fateBack},
		{"a check fails, and it stays", ours, true, false, true, broke, fateStays},
		{"never heard of again", ours, true, false, true, io.EOF, fateStays},
		{"the node failed in its switch", ours, true, false, true, &wire.Error{Kind: "interrupted", Text: "rename"}, fateStays},
		{"it was never drained", nil, false, true, false, nil, fateAsItIs},
		{"failed before its drain", nil, false, false, false, broke, fateAsItIs},
		{"an operator put it back meanwhile", nil, true, false, true, nil, fateAsItIs},
		{"another deployment has it now", theirs, true, false, true, nil, fateAsItIs},
		{"an operator had taken it out", hand, true, false, true, nil, fateByHand},
		{"so he had, and nothing changes", hand, false, true, false, nil, fateByHand},
		{"so he had, and it failed", hand, false, false, false, broke, fateByHand},
		{"left by a controller that was killed, and right", theirs, false, true, false, nil, fateBack},
		{"left by a controller that was killed, and reverted", theirs, false, true, false, reverted, fateBack},
		{"left by a controller that was killed, and not reached", theirs, false, false, false, broke, fateLeft},
		{"left for a reason", held, false, true, false, nil, fateLeft},
		{"left for a reason, and reverted", held, false, true, false, reverted, fateLeft},
		{"left for a reason, and pushed to again", &inventory.Drained{Deployment: 7, Why: "it could not be reached"}, true, false, true, nil, fateBack},
	} {
		if got := fateOf(tc.was, 7, tc.begun, tc.unchanged, tc.told, tc.err); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}

// What cannot be put back into service is told of, and fails, whatever else is done.
func TestEndOutOfService(t *testing.T) {
	out := outcome{Node: "n1", State: stateDone, Done: wire.Done{Unchanged: true}}
	out.end(withHint(&outOfServiceError{errors.New("undrain: step 1")}, "try again"), nil, true)
	if out.State != stateDrained || out.Error != "undrain: step 1" || out.Hint != "try again" || out.err == nil {
		t.Errorf("%+v", out)
	}
	err := (&program{Stdout: io.Discard, Stderr: io.Discard}).ending(t.Context(), []outcome{{Node: "n2", State: stateDone}, out})
	if text, _, code := diagnose(err); code != exitSome || text != "1 node failed (n1): 1 done, 1 drained" {
		t.Errorf("exit %d: %s", code, text)
	}
}

// settling is the service of a node of a site of its own, with what it said.
func settling(t *testing.T, drain, undrain string) (*service, *strings.Builder) {
	t.Helper()
	db, err := inventory.Open(t.Context(), t.TempDir()+"/state.db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	said := &strings.Builder{}
	w := &world{Site: &site.Site{Dir: t.TempDir()}, state: db}
	return &service{drainage: &drainage{w: w, deployment: 7}, node: &site.Node{Name: "n1"}, say: func(format string, args ...any) { fmt.Fprintf(said, format+"\n", args...) },
		drain: []hooks.Step{{Run: drain}}, undrain: []hooks.Step{{Run: undrain}}, env: []string{"PATH=/usr/bin:/bin"}}, said
}

// The record says that a node is out before its first step, and until the last
// one of the way back has been done.
func TestSettle(t *testing.T) {
	switched := errors.New("it could not be reached after its switch")
	for _, tc := range []struct {
		name           string
		drain, undrain string
		err            error // of the push
		told           bool
		text           string // of the end; "" is none
		out            bool   // of service, afterwards
		why            string
	}{
		{"well", "true", "true", nil, true, "", false, ""},
		{"its drain fails", "echo busy; exit 3", "true", nil, false, "drain: step 1 (echo busy; exit 3): exit status 3: busy", false, ""},
		{"it cannot be put back", "true", "exit 4", nil, true, "it is generation 3, and still out of service: undrain: step 1 (exit 4): exit status 4", true, ""},
		{"neither", "exit 3", "exit 4", nil, false, "drain: step 1 (exit 3): exit status 3; it stays drained until `ingot undrain n1`", true, ""},
		{"not known", "true", "true", switched, true, switched.Error() + "; it stays drained until `ingot undrain n1`", true, switched.Error()},
		{"reverted, and cannot be put back", "true", "exit 4", &revertedError{reason: "a check", now: wire.Generation{Number: 5}}, true, "reverted, as generation 5: a check; it stays drained until `ingot undrain n1`", true, ""},
	} {
		s, said := settling(t, tc.drain, tc.undrain)
		_, err := s.takeOut(t.Context())
		if err == nil {
			err = tc.err
		}
		if was, _ := s.w.state.DrainedNode(t.Context(), "n1"); was == nil || was.Deployment != 7 || was.ByHand() {
			t.Errorf("%s: recorded in the drain: %+v", tc.name, was)
		}
		gaveUp, cancel := context.WithCancel(t.Context())
		cancel() // what has to be put back is, also when the operator has gone
		err = s.settle(gaveUp, &outcome{Done: wire.Done{Generation: wire.Generation{Number: 3}}}, err, tc.told)
		text := ""
		if err != nil {
			text = err.Error()
		}
		was, _ := s.w.state.DrainedNode(t.Context(), "n1")
		if text != tc.text || (was != nil) != tc.out || was != nil && was.Why != tc.why {
			t.Errorf("%s: %q, recorded %+v, want %q; said %q", tc.name, text, was, tc.text, said)
		}
		if tc.err != nil && !errors.Is(err, tc.err) {
			t.Errorf("%s: what it was is lost: %v", tc.name, err)
		}
	}
}

// Nothing is drained where nobody asks for it.
func TestNotDrained(t *testing.T) {
	off, _ := settling(t, "exit 3", "exit 4")
	off.off = true
	none, _ := settling(t, "", "")
	none.drain, none.undrain = nil, nil
	for _, s := range []*service{off, none} {
		_, err := s.takeOut(t.Context())
		if err == nil {
			err = s.settle(t.Context(), &outcome{}, nil, true)
		}
		if was, _ := s.w.state.DrainedNode(t.Context(), "n1"); err != nil || was != nil || s.begun {
			t.Errorf("%v, %+v", err, was)
		}
	}
}

func TestHookEnv(t *testing.T) {
	d := &drainage{w: &world{Site: &site.Site{Dir: "/srv/rack"}}, verb: "rollback", deployment: 12}
	ours := []string{"HOME=/home/ann", "INGOT_SITE=rack"}
	got := hookEnv(ours, d, "n1", "10.0.0.7", []string{"DEFAULT", "WEB"})
	want := []string{"HOME=/home/ann", "INGOT_SITE=rack", "INGOT_NODE=n1", "INGOT_ADDRESS=10.0.0.7", "INGOT_CLASSES=DEFAULT WEB", "INGOT_DEPLOYMENT=12", "INGOT_VERB=rollback", "INGOT_SITE=/srv/rack"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if d.deployment = 0; !slices.Contains(hookEnv(nil, d, "n1", "", nil), "INGOT_DEPLOYMENT=") {
		t.Error("a drain by hand has a deployment")
	}
}

func TestDrainedText(t *testing.T) {
	at := time.Date(2026, 11, 28, 12, 0, 0, 0, time.Local)
	for want, d := range map[string]*inventory.Drained{
		"":                                  nil,
		"since 2026-11-28 12:00:00, by ann": {By: "ann", Since: at},
		"since 2026-11-28 12:00:00, by ann, deployment 7":                  {By: "ann", Since: at, Deployment: 7},
		"since 2026-11-28 12:00:00, by ann, deployment 7: does not answer": {By: "ann", Since: at, Deployment: 7, Why: "does not answer"},
	} {
		if got := drainedText(d); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := someNames([]string{"n1", "n2", "n3", "n4", "n5", "n6"}); got != "node n1, n2, n3, n4, n5 and 1 other" {
		t.Error(got)
	}
}
