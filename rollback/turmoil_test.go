package rollback

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ingot/internal/entry"
	"ingot/internal/torture"
)

// A program that makes, changes and removes files all the time, where they are
// kept, does not get in the way of pushes.
func TestTurmoil(t *testing.T) {
	w := newWorld(t, 7, 60, 30)
	n := w.node()
	torture.Turmoil(t, filepath.Join(w.dir, "busy"))
	goal, back := w.goal(), Target{Manifest: w.mold, Image: "old:1", By: "test"}
	goal.Policy = Policy{Keep: list(t, "/busy")}
	back.Policy = goal.Policy
	pushes := 0
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); pushes++ {
		to := goal
		if pushes%2 == 1 {
			to = back
		}
		_, err := push(n, to, w.src)
		ok(t, err)
	}
	t.Logf("%d pushes", pushes)
	want := w.mold
	if pushes%2 == 1 {
		want = w.mnew
	}
	got := snapshot(t, w.dir)
	got.Entries = slices.DeleteFunc(got.Entries, func(e entry.Entry) bool { return e.Path == "busy" || strings.HasPrefix(e.Path, "busy/") })
	same(t, "what nobody stirs", want, got)
}
