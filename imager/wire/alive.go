package wire

import (
	"context"
	"io"
	"sync/atomic"
	"time"
)

// Pings are sent every Ping; a peer that is silent for Silence is given up.
// A cut cable tells nobody: without this a node would stay busy with a
// controller that is gone until TCP notices, which takes two hours.
const (
	Ping    = 10 * time.Second
	Silence = 60 * time.Second
)

// KeepAlive sends pings until ctx ends and calls giveUp, once, when a read or
// a write has been waiting for the peer longer than silence. It does not wait.
func (c *Conn) KeepAlive(ctx context.Context, ping, silence time.Duration, giveUp func()) {
	go c.sendPings(ctx, ping)
	go func() {
		tick := time.NewTicker(silence / 8)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if c.reading.longerThan(silence) || c.writing.longerThan(silence) {
				giveUp()
				return
			}
		}
	}()
}

func (c *Conn) sendPings(ctx context.Context, ping time.Duration) {
	tick := time.NewTicker(ping)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := c.SendRaw(KindPing, nil); err != nil {
			return // whoever reads learns of it
		}
	}
}

// moment is when something began; nil when it is over. It holds monotonic time.
type moment struct{ at atomic.Pointer[time.Time] }

func (m *moment) begin() {
	now := time.Now()
	m.at.Store(&now)
}

func (m *moment) end() { m.at.Store(nil) }

func (m *moment) longerThan(d time.Duration) bool {
	at := m.at.Load()
	return at != nil && time.Since(*at) > d
}

type watchedReader struct {
	r  io.Reader
	at *moment
}

func (w watchedReader) Read(p []byte) (int, error) {
	w.at.begin()
	defer w.at.end()
	return w.r.Read(p)
}

// watchedWriter writes in small pieces, so that a slow line is not taken for a dead one.
type watchedWriter struct {
	w  io.Writer
	at *moment
}

func (w watchedWriter) Write(p []byte) (n int, err error) {
	defer w.at.end()
	for len(p) > 0 && err == nil {
		var k int
		w.at.begin()
		k, err = w.w.Write(p[:min(len(p), 16<<10)])
		n, p = n+k, p[k:]
	}
	return n, err
}
