package e2e

import "testing"

// TestNode runs every case on a node of its own.
func TestNode(t *testing.T) {
	need(t)
	t.Parallel()
	b := newBase(t)
	cases := map[string]func(*testing.T, *base){}
	for _, set := range []map[string]func(*testing.T, *base){sshCases(), pushCases(), cutCases(), trialCases(), archCases(), captureCases(), fidelityCases(), hostileCases(), poolCases(), sidesCases(), drainCases(), driftCases()} {
		for name, fn := range set {
			cases[name] = fn
		}
	}
	for name, fn := range cases {
		t.Run(name, func(t *testing.T) { t.Parallel(); fn(t, b) })
	}
}
