package wire

import "testing"

func TestSidesText(t *testing.T) {
	for _, tt := range []struct {
		s    Sides
		want string
	}{
		{Sides{Runs: "a", Starts: "a"}, "side a runs, side a starts next"},
		{Sides{Runs: "a"}, "side a runs, the boot loader's environment cannot be read"},
		{Sides{Runs: "a", Starts: "a", Tries: "b", Side: "b", Generation: 2, Open: true},
			"side a runs, side b is tried at the next start, side a starts after that; generation 2 on side b was not tried yet"},
		{Sides{Runs: "b", Starts: "a", Side: "b", Generation: 2, Started: 1, Open: true}, "side b runs, side a starts next; generation 2 on side b is on trial, started 1 time"},
		{Sides{Runs: "b", Starts: "b", Side: "b", Generation: 2, Started: 1, By: "me"}, "side b runs, side b starts next; generation 2 on side b was confirmed by me, started 1 time"},
		{Sides{Runs: "a", Starts: "a", Side: "b", Generation: 2, Reason: "check x: no"}, "side a runs, side a starts next; generation 2 on side b did not stay, started 0 times: check x: no"},
	} {
		if got := tt.s.String(); got != tt.want {
			t.Errorf("%+v is\n%q, want\n%q", tt.s, got, tt.want)
		}
	}
}
