package tree

import (
	"errors"
	"testing"
	"time"

	"ingot/internal/torture"
)

// Whatever comes and goes while a tree is captured, either it is captured or
// what would not hold still is named: nothing else comes of it.
func TestTurmoil(t *testing.T) {
	dir := t.TempDir()
	torture.Turmoil(t, dir)
	captured, refused := 0, 0
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		_, _, err := Capture(t.Context(), dir, CaptureOptions{pauses: []time.Duration{}})
		switch {
		case err == nil:
			captured++
		case errors.Is(err, ErrChanged):
			refused++
		default:
			t.Fatal(err)
		}
	}
	t.Logf("%d captured, %d refused", captured, refused)
}
