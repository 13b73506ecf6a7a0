package pxe

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"ingot/internal/slogx"
)

// Times of a Pool.
const (
	offerHold       = time.Minute      // an OFFER keeps its address for one client: ROMs take up to 32 s between attempts
	quarantine      = 10 * time.Minute // a declined address is not given to anybody
	probeBudget     = 200 * time.Millisecond
	probeCandidates = 3 // give up on probing after as many addresses that answered
)

// PoolConfig is what a Pool works with. Store is required.
type PoolConfig struct {
	Store        LeaseStore
	Reservations Reservations // nil: none
	// Probe asks whether a machine other than mac uses ip; nil: nobody is asked. It has 200 ms and is called only for pool
	// addresses that the client did not have before. Prober.Probe asks by ARP.
	Probe func(ctx context.Context, iface string, ip netip.Addr, mac net.HardwareAddr) bool
	Now   func() time.Time // nil: time.Now
	Log   *slog.Logger
}

// A Pool implements Leases on a LeaseStore. It is safe for concurrent use.
type Pool struct {
	cfg PoolConfig
	log *slog.Logger

	mu    sync.Mutex
	byIP  map[netip.Addr]Lease
	byMAC map[[6]byte]map[netip.Addr]bool
}

// OpenPool loads the leases of the store.
func OpenPool(ctx context.Context, cfg PoolConfig) (*Pool, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	leases, err := cfg.Store.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("load leases: %w", err)
	}
	p := &Pool{cfg: cfg, log: slogx.Or(cfg.Log), byIP: map[netip.Addr]Lease{}, byMAC: map[[6]byte]map[netip.Addr]bool{}}
	for _, l := range leases {
		if len(l.MAC) != 6 || !l.IP.Is4() {
			p.log.Warn("lease passed over: no Ethernet or IPv4 address", slogx.MAC, l.MAC, slogx.IP, l.IP)
			continue
		}
		p.put(l)
	}
	return p, nil
}

// All returns a copy of every lease, expired ones too, in no order.
func (p *Pool) All() []Lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Lease, 0, len(p.byIP))
	for _, l := range p.byIP {
		out = append(out, l)
	}
	return out
}

// Offer chooses an address and holds it for a minute, in memory: a DISCOVER costs no write.
func (p *Pool) Offer(ctx context.Context, q LeaseQuery) (Lease, error) {
	for range probeCandidates {
		l, fresh, err := p.hold(q)
		if err != nil || !fresh || q.Relayed || p.cfg.Probe == nil {
			return l, err
		}
		if !p.answers(ctx, l) {
			return l, nil
		}
		// Somebody configured it by hand, or our store was lost: leave it alone for a while and take the next one.
		p.log.Warn("address answers although it is not leased", slogx.IP, l.IP, "for", l.MAC.String())
		if err := p.ban(ctx, l); err != nil {
			return Lease{}, err
		}
	}
	return Lease{}, fmt.Errorf("%w: the first %d free addresses answer", ErrNoAddress, probeCandidates)
}

func (p *Pool) answers(ctx context.Context, l Lease) bool {
	ctx, cancel := context.WithTimeout(ctx, probeBudget)
	defer cancel()
	said := make(chan bool, 1)
	go func() { said <- p.cfg.Probe(ctx, l.Iface, l.IP, l.MAC) }()
	select {
	case used := <-said:
		return used
	case <-ctx.Done(): // also when opening a socket takes long: the OFFER does not wait
		return false
	}
}

// hold picks under the lock and marks the address as offered. fresh says that another client may be on it.
func (p *Pool) hold(q LeaseQuery) (l Lease, fresh bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, err := p.choose(q)
	if err != nil {
		return Lease{}, false, err
	}
	old, had := p.byIP[c.ip]
	if had && macKey(old.MAC) == macKey(q.MAC) && old.State == LeaseBound && old.Expires.After(p.cfg.Now()) {
		old.Reserved = c.reserved
		old.Hostname = firstOf(c.hostname, q.Hostname, old.Hostname)
		return old, false, nil // a bound lease stays bound: its owner only asks again
	}
	l = Lease{MAC: q.MAC, IP: c.ip, Expires: p.cfg.Now().Add(offerHold), State: LeaseOffered,
		Hostname: firstOf(c.hostname, q.Hostname), Iface: c.network.Interface, Reserved: c.reserved}
	p.put(l)
	return l, c.fresh, nil
}

// Commit makes the lease of q.IP durable. Only then may an ACK be sent: a server that forgets an ACK over a restart gives
// the address away twice.
func (p *Pool) Commit(ctx context.Context, q LeaseQuery) (Lease, error) {
	l, undo, err := p.bind(q)
	if err != nil {
		return Lease{}, err
	}
	if err := p.cfg.Store.Save(ctx, l); err != nil {
		p.mu.Lock()
		undo()
		p.mu.Unlock()
		return Lease{}, fmt.Errorf("%w: %s for %s: %w", ErrStore, l.IP, l.MAC, err)
	}
	return l, nil
}

// bind marks q.IP as bound in memory when q.MAC may have it. undo, called under the lock, takes it back.
func (p *Pool) bind(q LeaseQuery) (l Lease, undo func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, ok := networkOf(q.Networks, q.IP)
	if !ok {
		return Lease{}, nil, fmt.Errorf("%w: %s is on none of our networks here", ErrRefused, q.IP)
	}
	res, reserved := p.reservation(q.MAC, &n)
	switch {
	case reserved && res.IP != q.IP && p.free(res.IP, q.MAC):
		return Lease{}, nil, fmt.Errorf("%w: %s has %s reserved", ErrRefused, q.MAC, res.IP)
	case !p.allowed(&n, q.IP, q.MAC):
		return Lease{}, nil, fmt.Errorf("%w: %s is not for %s", ErrRefused, q.IP, q.MAC)
	case !p.free(q.IP, q.MAC):
		return Lease{}, nil, fmt.Errorf("%w: %s is in use", ErrRefused, q.IP)
	}
	old, had := p.byIP[q.IP]
	reserved = reserved && res.IP == q.IP
	l = Lease{MAC: q.MAC, IP: q.IP, Expires: p.cfg.Now().Add(n.leaseTime(q.Boots)), State: LeaseBound,
		Hostname: firstOf(q.Hostname, old.Hostname), Iface: n.Interface, Reserved: reserved}
	if reserved && res.HostName != "" {
		l.Hostname = res.HostName
	}
	p.put(l)
	return l, func() {
		if p.drop(q.IP); had {
			p.put(old)
		}
	}, nil
}

// Release ends a lease. The address stays the client's as long as others are free.
func (p *Pool) Release(ctx context.Context, q LeaseQuery) error {
	return p.end(ctx, q, LeaseReleased, 0)
}

// Decline takes an address out of use: the client found another machine on it (RFC 2131 4.3.3).
func (p *Pool) Decline(ctx context.Context, q LeaseQuery) error {
	return p.end(ctx, q, LeaseDeclined, quarantine)
}

func (p *Pool) end(ctx context.Context, q LeaseQuery, state LeaseState, hold time.Duration) error {
	p.mu.Lock()
	l, ok := p.byIP[q.IP]
	if !ok || macKey(l.MAC) != macKey(q.MAC) || (l.State != LeaseBound && l.State != LeaseOffered) {
		p.mu.Unlock()
		return fmt.Errorf("%w: %s of %s", ErrNotLeased, q.IP, q.MAC)
	}
	l.State, l.Expires = state, p.cfg.Now().Add(hold)
	p.put(l)
	p.mu.Unlock()
	return p.save(ctx, l)
}

// ban quarantines an address that answered a probe.
func (p *Pool) ban(ctx context.Context, l Lease) error {
	l.State, l.Expires = LeaseDeclined, p.cfg.Now().Add(quarantine)
	p.mu.Lock()
	p.put(l)
	p.mu.Unlock()
	return p.save(ctx, l)
}

func (p *Pool) save(ctx context.Context, l Lease) error {
	if err := p.cfg.Store.Save(ctx, l); err != nil {
		return fmt.Errorf("%w: %s for %s: %w", ErrStore, l.IP, l.MAC, err)
	}
	return nil
}

// Forget removes an address from memory and store: for an operator, and for tests.
func (p *Pool) Forget(ctx context.Context, ip netip.Addr) error {
	p.mu.Lock()
	l, ok := p.byIP[ip]
	p.drop(ip)
	p.mu.Unlock()
	if !ok {
		return fmt.Errorf("%w: %s", ErrNotLeased, ip)
	}
	return p.cfg.Store.Delete(ctx, l)
}

func (p *Pool) put(l Lease) {
	p.drop(l.IP)
	p.byIP[l.IP] = l
	k := macKey(l.MAC)
	if p.byMAC[k] == nil {
		p.byMAC[k] = map[netip.Addr]bool{}
	}
	p.byMAC[k][l.IP] = true
}

func (p *Pool) drop(ip netip.Addr) {
	old, ok := p.byIP[ip]
	if !ok {
		return
	}
	k := macKey(old.MAC)
	delete(p.byIP, ip)
	if delete(p.byMAC[k], ip); len(p.byMAC[k]) == 0 {
		delete(p.byMAC, k)
	}
}

func macKey(m net.HardwareAddr) (k [6]byte) {
	copy(k[:], m)
	return k
}

func networkOf(nets []Network, ip netip.Addr) (Network, bool) {
	for _, n := range nets {
		if n.Prefix.Contains(ip) {
			return n, true
		}
	}
	return Network{}, false
}

func macHash(m net.HardwareAddr) uint32 {
	h := fnv.New32a()
	h.Write(m)
	return h.Sum32()
}

// refused says whether err means a NAK.
func refused(err error) bool { return errors.Is(err, ErrRefused) }
