package remote

import (
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Two connections under one limit, one that sends and one that receives, take
// the time that all their bytes together take at the rate, and nothing is lost.
func TestLimit(t *testing.T) {
	for _, rate := range []int64{20_000, 1_000_000, 1 << 40} {
		synctest.Test(t, func(t *testing.T) { // time is what the limit waits
			const n = 300_000
			l := NewLimit(rate)
			var wg sync.WaitGroup
			start := time.Now()
			for i := range 2 {
				near, far := net.Pipe()
				var from, to net.Conn = limited{near, l}, far
				if i == 1 {
					from, to = far, limited{near, l}
				}
				wg.Go(func() {
					if k, err := from.Write(make([]byte, n)); k != n || err != nil {
						t.Errorf("wrote %d: %v", k, err)
					}
					from.Close()
				})
				wg.Go(func() {
					if b, err := io.ReadAll(to); len(b) != n || err != nil {
						t.Errorf("read %d: %v", len(b), err)
					}
				})
			}
			wg.Wait()
			took, want := time.Since(start).Seconds(), 2*n/float64(rate)
			// The first piece does not wait, nor what follows the last.
			if slack := 2 * float64(l.piece()) / float64(rate); took > want+0.001 || took < want-slack-0.001 {
				t.Errorf("at %d bytes/s %d bytes took %.3f s, want %.3f", rate, 2*n, took, want)
			}
		})
	}
}

// An answer that comes late because of all that comes before it is waited for;
// a peer that is silent is given up.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		at, asked := start, 0
		talk := time.NewTicker(20 * time.Second) // less often than it may be silent
		go func() {
			for range 15 {
				at = <-talk.C
			}
		}()
		ask := func() error {
			if asked++; asked > 1 {
				<-t.Context().Done() // the line was cut
				return nil
			}
			time.Sleep(2 * time.Minute)
			return nil
		}
		var gone time.Duration
		end := make(chan struct{})
		go watch(ask, func() time.Time { return at }, func() { gone = time.Since(start); close(end) })
		<-end
		if gone != 5*time.Minute+mayBeMute {
			t.Errorf("given up after %s, asked %d times", gone, asked)
		}
	})
}
