package pxetest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"ingot/pxe"
)

// A Store keeps leases in memory. It is safe for concurrent use.
type Store struct {
	mu     sync.Mutex
	leases map[netip.Addr]pxe.Lease
	saves  int
	full   bool
}

// ErrFull is what a full Store answers.
var ErrFull = errors.New("disk full")

// SetFull makes Save fail.
func (s *Store) SetFull(full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = full
}

// Saves counts the writes.
func (s *Store) Saves() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saves
}

// Load is LeaseStore's.
func (s *Store) Load(context.Context) ([]pxe.Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []pxe.Lease
	for _, l := range s.leases {
		out = append(out, l)
	}
	return out, nil
}

// Save is LeaseStore's.
func (s *Store) Save(_ context.Context, l pxe.Lease) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full {
		return ErrFull
	}
	if s.leases == nil {
		s.leases = map[netip.Addr]pxe.Lease{}
	}
	s.saves++
	s.leases[l.IP] = l
	return nil
}

// Delete is LeaseStore's.
func (s *Store) Delete(_ context.Context, l pxe.Lease) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.leases, l.IP)
	return nil
}

// Reserved is a list of reservations, to be changed before use only.
type Reserved []pxe.Reservation

// ByMAC is Reservations'.
func (r Reserved) ByMAC(mac net.HardwareAddr) (out []pxe.Reservation) {
	for _, v := range r {
		if v.MAC.String() == mac.String() {
			out = append(out, v)
		}
	}
	return out
}

// ByIP is Reservations'.
func (r Reserved) ByIP(ip netip.Addr) (pxe.Reservation, bool) {
	for _, v := range r {
		if v.IP == ip {
			return v, true
		}
	}
	return pxe.Reservation{}, false
}

// Decide is a Decider made of a function.
type Decide func(ctx context.Context, r pxe.Request) (pxe.Answer, error)

// Decide is Decider's.
func (f Decide) Decide(ctx context.Context, r pxe.Request) (pxe.Answer, error) { return f(ctx, r) }

// Events keeps what it gets.
type Events struct {
	mu  sync.Mutex
	all []pxe.Event
}

// Event is Events'.
func (e *Events) Event(_ context.Context, ev pxe.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
}

// Of returns the events of one stage.
func (e *Events) Of(stage string) (out []pxe.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.all {
		if stage == "" || ev.Stage == stage {
			out = append(out, ev)
		}
	}
	return out
}

// Wait returns the events of a stage once there are n, or what there is after two seconds: an event may follow its packet.
func (e *Events) Wait(stage string, n int) []pxe.Event {
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end) && len(e.Of(stage)) < n; {
		time.Sleep(5 * time.Millisecond)
	}
	return e.Of(stage)
}
