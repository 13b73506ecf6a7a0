package main

import (
	"context"
	"fmt"
	"strings"

	"ingot/classes"
	"ingot/imager/wire"
	"ingot/internal/health"
	"ingot/internal/units"
	"ingot/site"
)

// unwell says that a node which stays as it is does not hold what its profile asks for.
func (p *program) unwell(n *site.Node, lines []string) error {
	bad := failedChecks(lines)
	if len(bad) == 0 {
		return nil
	}
	return fmt.Errorf("it stays as it is, but %s", strings.Join(bad, "; "))
}

// failedChecks are what the lines about checks say of those that failed.
func failedChecks(lines []string) (bad []string) {
	for _, line := range lines {
		if why, failed := strings.CutPrefix(line, "failed"); failed {
			bad = append(bad, strings.TrimSpace(why))
		}
	}
	return bad
}

// aftercare is what a profile asks for in and after a switch.
type aftercare struct {
	node, control []health.Check // on the node, and from here
	units         units.Policy
	never         []string // what is never rolled back
	local         wire.Local
	keep          wire.Keep
}

func afterOf(ctx context.Context, w *world, n *site.Node, profile *classes.Profile) *aftercare {
	host, err := address(ctx, w.state, n)
	if err != nil {
		host = n.Name // as it is dialled
	}
	a := &aftercare{units: units.Policy{Restart: profile.Restart, Except: profile.RestartExcept},
		never: profile.Never, local: wire.Local{Keep: profile.Local.Keep, Take: profile.Local.Take}}
	for _, m := range profile.Local.Merge {
		a.local.Merge = append(a.local.Merge, wire.Merge(m))
	}
	a.keep.Generations = profile.Retention.Keep
	a.keep.Bytes, _ = profile.Retention.Bytes() // judged when the profile was read
	a.node, a.control = health.Split(profile.Check, host)
	return a
}

func (a *aftercare) ask(req *wire.Request) {
	req.Checks, req.Units, req.Never, req.Usual, req.Retention = a.node, a.units, a.never, a.local, a.keep
}

// controller runs the checks that are run from here; why is "" when all hold.
func (a *aftercare) controller(ctx context.Context) (why string, said []string) {
	if len(a.control) == 0 {
		return "", nil
	}
	results := (&health.Runner{}).Run(ctx, a.control)
	for _, r := range results {
		said = append(said, "from here: "+r.String())
	}
	var bad []string
	for _, r := range health.Failed(results) {
		bad = append(bad, fmt.Sprintf("check %s from the controller: %s", r.Check, r.Why))
	}
	return strings.Join(bad, "; "), said
}
