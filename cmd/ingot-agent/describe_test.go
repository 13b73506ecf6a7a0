package main

import (
	"errors"
	"fmt"
	"testing"

	"ingot/rollback"
)

// Only a switch that was put back is told of as one that changed nothing.
func TestAsBefore(t *testing.T) {
	io := errors.New("input/output error")
	for _, tc := range []struct {
		name string
		err  error
		want bool
	}{
		{"put back", notSwitched(rollback.Generation{}, io), true},
		{"put back, as a file changed", notSwitched(rollback.Generation{}, fmt.Errorf("switch: %w", rollback.ErrChanged)), true},
		{"waits for recovery", notSwitched(rollback.Generation{}, fmt.Errorf("%w: %w", rollback.ErrInterrupted, io)), false},
		{"made, and then failed", notSwitched(rollback.Generation{Number: 3}, io), false},
		{"in the time after", io, false},
		{"told later", errors.Join(notSwitched(rollback.Generation{}, io), nil), true},
	} {
		if e := describe(tc.err); e.AsBefore != tc.want || e.Text == "" {
			t.Errorf("%s: %+v", tc.name, e)
		}
	}
	if e := describe(notSwitched(rollback.Generation{}, rollback.ErrChanged)); e.Kind != "changed" || e.Hint == "" {
		t.Errorf("its kind is hidden: %+v", e)
	}
}
