package remote

import (
	"net"
	"sync"
	"time"
)

// Limit bounds what crosses some connections, both ways and all together. It
// counts what SSH sends, so what it has encrypted and the agent's upload too.
type Limit struct {
	rate int64 // bytes a second

	mu   sync.Mutex
	next time.Time // when the next byte may go
}

// NewLimit returns a limit of rate bytes a second; it is to be positive.
func NewLimit(rate int64) *Limit { return &Limit{rate: rate} }

// piece is how much goes at once: some of it every 50 ms.
func (l *Limit) piece() int { return int(min(max(l.rate/20, 1<<10), 32<<10)) }

// wait takes n bytes of the budget and returns when they may go. What was not
// used is not saved up.
func (l *Limit) wait(n int) {
	l.mu.Lock()
	now := time.Now()
	if l.next.Before(now) {
		l.next = now
	}
	at := l.next
	l.next = at.Add(time.Duration(int64(n) * int64(time.Second) / l.rate))
	l.mu.Unlock()
	time.Sleep(at.Sub(now))
}

// limited is a connection under a limit.
type limited struct {
	net.Conn
	l *Limit
}

func (c limited) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), c.l.piece())])
	c.l.wait(n)
	return n, err
}

func (c limited) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		var k int
		part := p[:min(len(p), c.l.piece())]
		c.l.wait(len(part))
		k, err = c.Conn.Write(part)
		n, p = n+k, p[k:]
	}
	return n, err
}
