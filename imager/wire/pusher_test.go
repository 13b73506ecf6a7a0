package wire

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"ingot/internal/digest"
)

// Questions do not wait for answers: the peer here answers none before it has
// heard all. Each gets its own answer.
func TestQuestionsInFlight(t *testing.T) {
	a, b := pair(t)
	p := NewPusher(a)
	const n = 4
	go func() {
		var asked [][]digest.ID
		for range n {
			f, err := b.Next(nil)
			if err != nil {
				return
			}
			ids, _ := b.IDs(f)
			asked = append(asked, ids)
		}
		for _, ids := range asked {
			b.SendIDs(KindMissing, ids)
		}
	}()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			ids := []digest.ID{digest.Of(fmt.Append(nil, i)), digest.Of(fmt.Append(nil, i, "x"))}
			if got, err := p.Missing(t.Context(), ids); err != nil || !slices.Equal(got, ids) {
				t.Errorf("question %d: %v, %v", i, got, err)
			}
		})
	}
	wg.Wait()
}
