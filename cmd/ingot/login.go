package main

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"

	"ingot/imager/remote"
	"ingot/internal/slogx"
	"ingot/inventory"
)

// loginWait is how long a machine that was sent to its disk is watched.
const loginWait = 15 * time.Minute

// logins waits for machines that boot their disk to answer on SSH with the
// host key that the server keeps for them: the last step of a timeline.
type logins struct {
	// config
	state *inventory.DB
	addr  func(ctx context.Context, node string) (string, error)
	log   *slog.Logger

	// state
	wake    chan string
	mu      sync.Mutex
	watched map[string]bool
}

func newLogins(state *inventory.DB, addr func(context.Context, string) (string, error), log *slog.Logger) *logins {
	return &logins{state: state, addr: addr, log: log, wake: make(chan string, 1024), watched: map[string]bool{}}
}

// watch begins to wait for node, unless it is being waited for already.
func (l *logins) watch(node string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.watched[node] {
		return
	}
	select {
	case l.wake <- node:
		l.watched[node] = true
	default: // a thousand machines at once: the timeline of some ends a step early
	}
}

func (l *logins) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case node := <-l.wake:
			wg.Go(func() {
				l.wait(ctx, node)
				l.mu.Lock()
				delete(l.watched, node)
				l.mu.Unlock()
			})
		}
	}
}

func (l *logins) wait(ctx context.Context, node string) {
	ctx, cancel := context.WithTimeout(ctx, loginWait)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		addr, err := l.addr(ctx, node)
		if err != nil {
			continue
		}
		key, err := remote.HostKey(ctx, net.JoinHostPort(addr, "22"))
		if err != nil {
			l.log.Debug("no login yet", slogx.Node, node, slogx.Err, err)
			continue
		}
		l.record(context.WithoutCancel(ctx), node, addr, key)
		return
	}
}

func (l *logins) record(ctx context.Context, node, addr, key string) {
	e := inventory.Event{Node: node, Stage: "alarm", Detail: "SSH answers at " + addr + " with a host key that is not the node's"}
	keys, err := l.state.HostKeys(ctx, node)
	if err != nil {
		l.log.Error("host keys", slogx.Node, node, slogx.Err, err)
		return
	}
	for _, k := range keys {
		if remote.SameKey(k.Public, key) {
			e.Stage, e.Detail = "login", "SSH answers at "+addr+" with the node's host key"
		}
	}
	if len(keys) == 0 {
		e.Stage, e.Detail = "login", "SSH answers at "+addr+"; no host key is kept for this node"
	}
	if err := l.state.AddEvent(ctx, e); err != nil {
		l.log.Error("event lost", slogx.Node, node, slogx.Err, err)
	}
	l.log.Info(e.Stage, slogx.Node, node, "detail", e.Detail)
}
