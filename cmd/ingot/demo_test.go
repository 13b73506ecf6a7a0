package main

import "testing"

func TestSteadyLeavesOutTimesOfVolatileDirectoriesAlone(t *testing.T) {
	in := ".d..t...... tmp/\n.d..t...... var/log/\n.d..t...... etc/\n.d...p..... tmp/\n>fcst...... etc/motd\n*deleting   opt/x\n"
	want := ".d..t...... etc/\n.d...p..... tmp/\n>fcst...... etc/motd\n*deleting   opt/x"
	if got := steady(in); got != want {
		t.Errorf("steady = %q, want %q", got, want)
	}
}
