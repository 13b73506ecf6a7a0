package pxe_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"ingot/pxe"
	"ingot/pxe/pxetest"
)

// clock is a time that tests set.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

type pool struct {
	*pxe.Pool
	t     *testing.T
	store *pxetest.Store
	clock *clock
	nets  []pxe.Network
}

func newPool(t *testing.T, edit func(*pxe.PoolConfig)) *pool {
	t.Helper()
	n := lan()
	n.RangeFrom, n.RangeTo = ip("10.77.0.100"), ip("10.77.0.103")
	p := &pool{t: t, store: &pxetest.Store{}, clock: &clock{now: time.Unix(1e9, 0)}, nets: []pxe.Network{n}}
	cfg := pxe.PoolConfig{Store: p.store, Now: p.clock.Now, Log: testLog(t)}
	if edit != nil {
		edit(&cfg)
	}
	var err error
	p.Pool, err = pxe.OpenPool(t.Context(), cfg)
	check(t, err)
	return p
}

func mac(n int) net.HardwareAddr { return pxetest.New(0, n).MAC }

func (p *pool) query(n int, addr netip.Addr) pxe.LeaseQuery {
	return pxe.LeaseQuery{MAC: mac(n), Networks: p.nets, IP: addr}
}

func (p *pool) offer(n int) netip.Addr {
	p.t.Helper()
	l, err := p.Offer(p.t.Context(), p.query(n, netip.Addr{}))
	check(p.t, err)
	return l.IP
}

// lease is offer and commit.
func (p *pool) lease(n int) netip.Addr {
	p.t.Helper()
	a := p.offer(n)
	_, err := p.Commit(p.t.Context(), p.query(n, a))
	check(p.t, err)
	return a
}

func (p *pool) refuses(n int, addr string) {
	p.t.Helper()
	if _, err := p.Commit(p.t.Context(), p.query(n, ip(addr))); !errors.Is(err, pxe.ErrRefused) {
		p.t.Errorf("machine %d asks for %s: %v, want a refusal", n, addr, err)
	}
}

func TestPoolFillsAndIsExhausted(t *testing.T) {
	p := newPool(t, nil)
	seen := map[netip.Addr]bool{}
	for n := range 4 {
		seen[p.lease(n)] = true
	}
	if len(seen) != 4 {
		t.Errorf("4 machines got %v", seen)
	}
	_, err := p.Offer(t.Context(), p.query(9, netip.Addr{}))
	if !errors.Is(err, pxe.ErrNoAddress) || !strings.Contains(err.Error(), "10.77.0.100-10.77.0.103") {
		t.Errorf("exhausted: %v", err)
	}
	if p.lease(2) != p.lease(2) {
		t.Error("a machine's address changes")
	}
}

// TestPoolKeepsExpired is 4.41: an expired lease goes to another machine only when nothing else is free, and then the
// oldest first.
func TestPoolKeepsExpired(t *testing.T) {
	p := newPool(t, nil)
	first, second := p.lease(1), netip.Addr{}
	p.clock.Add(time.Hour)
	second = p.lease(2)
	p.clock.Add(48 * time.Hour)
	for n := 3; n <= 4; n++ {
		if a := p.lease(n); a == first || a == second {
			t.Fatalf("machine %d got the expired address %s although others were never used", n, a)
		}
	}
	if p.offer(1) != first {
		t.Error("the old owner does not find its address again")
	}
	p.clock.Add(2 * time.Minute) // that offer was not taken
	if a := p.lease(5); a != second {
		t.Errorf("took %s, but %s has been expired the longest", a, second)
	}
	if a := p.offer(2); a == second {
		t.Errorf("%s was given twice", a)
	}
}

func TestPoolReservations(t *testing.T) {
	res := pxetest.Reserved{
		{MAC: mac(1), IP: ip("10.77.0.10"), HostName: "n01"},  // outside of the range
		{MAC: mac(2), IP: ip("10.77.0.101"), HostName: "n02"}, // inside
		{MAC: mac(3), IP: ip("192.168.5.5")},                  // of another network
		{MAC: mac(4), IP: ip("10.77.0.1")},                    // ours: never
	}
	p := newPool(t, func(c *pxe.PoolConfig) { c.Reservations = &res })
	if a := p.lease(1); a != ip("10.77.0.10") {
		t.Error(a)
	}
	if a := p.lease(3); !inRange(a) {
		t.Errorf("a reservation elsewhere: %s", a)
	}
	if a := p.lease(4); !inRange(a) {
		t.Errorf("a reservation of our own address: %s", a)
	}
	p.lease(5)
	if _, err := p.Offer(t.Context(), p.query(6, netip.Addr{})); !errors.Is(err, pxe.ErrNoAddress) {
		t.Errorf("the reserved address of the range went to another machine: %v", err)
	}
	p.refuses(6, "10.77.0.101")
	p.refuses(6, "10.77.0.10")
	p.refuses(1, "10.77.0.103") // it has a reservation: it must come back to it
	p.refuses(6, "10.77.0.1")
	p.refuses(6, "10.77.0.0")
	p.refuses(6, "10.77.0.255")

	// An edit applies at once, also against a lease that runs: its holder is refused, and until then nobody shares it.
	held := p.lease(3)
	res = append(res, pxe.Reservation{MAC: mac(7), IP: held})
	p.refuses(3, held.String())
	if _, err := p.Offer(t.Context(), p.query(7, netip.Addr{})); !errors.Is(err, pxe.ErrNoAddress) {
		t.Errorf("an address that another machine holds was offered: %v", err)
	}
	p.clock.Add(13 * time.Hour)
	if a := p.lease(7); a != held {
		t.Errorf("after the lease ran out: %s, want %s", a, held)
	}
}

func inRange(a netip.Addr) bool { return !a.Less(ip("10.77.0.100")) && !ip("10.77.0.103").Less(a) }

func TestPoolDecline(t *testing.T) {
	p := newPool(t, nil)
	a := p.lease(1)
	check(t, p.Decline(t.Context(), p.query(1, a)))
	if b := p.lease(1); b == a {
		t.Fatal("the declined address again")
	}
	for n := 2; n <= 3; n++ {
		if p.lease(n) == a {
			t.Fatal("the declined address for another machine")
		}
	}
	p.refuses(9, a.String())
	if err := p.Decline(t.Context(), p.query(9, a)); !errors.Is(err, pxe.ErrNotLeased) {
		t.Errorf("declined what it never had: %v", err)
	}
	// Quarantine outlives a restart.
	again, err := pxe.OpenPool(t.Context(), pxe.PoolConfig{Store: p.store, Now: p.clock.Now})
	check(t, err)
	if _, err := again.Offer(t.Context(), p.query(9, netip.Addr{})); !errors.Is(err, pxe.ErrNoAddress) {
		t.Errorf("after a restart the declined address is free: %v", err)
	}
	p.clock.Add(11 * time.Minute)
	if p.lease(9) != a {
		t.Error("after the quarantine it is still not free")
	}
}

func TestPoolStoreFails(t *testing.T) {
	p := newPool(t, nil)
	a := p.offer(1)
	p.store.SetFull(true)
	if _, err := p.Commit(t.Context(), p.query(1, a)); !errors.Is(err, pxe.ErrStore) || !errors.Is(err, pxetest.ErrFull) {
		t.Fatalf("%v", err)
	}
	p.clock.Add(2 * time.Minute) // the offer is over: had it become a lease in memory, it would be there for 12 h
	p.store.SetFull(false)
	for n := 2; n <= 5; n++ {
		p.lease(n)
	}
}

func TestPoolProbe(t *testing.T) {
	var asked []netip.Addr
	busy := map[netip.Addr]bool{}
	p := newPool(t, func(c *pxe.PoolConfig) {
		c.Reservations = pxetest.Reserved{{MAC: mac(1), IP: ip("10.77.0.10")}}
		c.Probe = func(ctx context.Context, _ string, a netip.Addr, _ net.HardwareAddr) bool {
			if d, ok := ctx.Deadline(); !ok || time.Until(d) > 200*time.Millisecond {
				t.Error("a probe without its deadline")
			}
			asked = append(asked, a)
			return busy[a]
		}
	})
	p.lease(1)
	if len(asked) != 0 {
		t.Errorf("asked for a reservation: %v", asked)
	}
	a := p.lease(2)
	p.lease(2)
	if fmt.Sprint(asked) != fmt.Sprintf("[%s]", a) {
		t.Errorf("asked %v for one new address %s", asked, a)
	}
	asked = nil
	far := p.query(3, netip.Addr{})
	far.Relayed = true
	_, err := p.Offer(t.Context(), far)
	check(t, err)
	if len(asked) != 0 {
		t.Error("asked by ARP behind a relay")
	}
	p.clock.Add(time.Hour)
	for _, x := range []string{"10.77.0.100", "10.77.0.101", "10.77.0.102", "10.77.0.103"} {
		busy[ip(x)] = ip(x) != a
	}
	if _, err := p.Offer(t.Context(), p.query(4, netip.Addr{})); !errors.Is(err, pxe.ErrNoAddress) {
		t.Errorf("every free address answers: %v", err)
	}
}

func TestPoolAliases(t *testing.T) {
	p := newPool(t, func(c *pxe.PoolConfig) {
		c.Reservations = pxetest.Reserved{{MAC: mac(1), IP: ip("10.88.0.7")}}
	})
	alias := lan()
	alias.Name, alias.Prefix, alias.ServerIP, alias.Router = "alias", netip.MustParsePrefix("10.88.0.0/24"), ip("10.88.0.1"), netip.Addr{}
	alias.RangeFrom, alias.RangeTo = netip.Addr{}, netip.Addr{}
	p.nets = append(p.nets, alias)
	if a := p.lease(1); a != ip("10.88.0.7") {
		t.Errorf("reserved on the second network of the wire: %s", a)
	}
	if a := p.lease(2); !inRange(a) {
		t.Error(a)
	}
	if a := p.query(3, ip("10.88.0.8")); true {
		if _, err := p.Commit(t.Context(), a); !errors.Is(err, pxe.ErrRefused) {
			t.Errorf("a network without range gave %s: %v", a.IP, err)
		}
	}
}

// TestPoolNeverTwice is the promise: whatever clients do, in whatever order, no two have one address at one time; and what
// the store has is what was promised.
func TestPoolNeverTwice(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	p := newPool(t, nil)
	holder := map[netip.Addr]int{} // by what the clients believe
	until := map[netip.Addr]time.Time{}
	for range 5000 {
		n := rnd.IntN(7)
		switch rnd.IntN(6) {
		case 0, 1:
			if l, err := p.Offer(t.Context(), p.query(n, netip.Addr{})); err == nil && until[l.IP].After(p.clock.Now()) && holder[l.IP] != n {
				t.Fatalf("%s offered to %d while %d has it", l.IP, n, holder[l.IP])
			}
		case 2, 3:
			a := p.nets[0].RangeFrom
			for range rnd.IntN(4) {
				a = a.Next()
			}
			l, err := p.Commit(t.Context(), p.query(n, a))
			if err != nil {
				continue
			}
			if until[a].After(p.clock.Now()) && holder[a] != n {
				t.Fatalf("%s given to %d while %d has it", a, n, holder[a])
			}
			holder[a], until[a] = n, l.Expires
		case 4:
			p.clock.Add(time.Duration(rnd.IntN(int(8 * time.Hour))))
		case 5:
			for a, h := range holder {
				if h == n && until[a].After(p.clock.Now()) {
					end := p.Release
					if rnd.IntN(2) == 0 {
						end = p.Decline
					}
					check(t, end(t.Context(), p.query(n, a)))
					delete(until, a)
					break
				}
			}
		}
	}
	stored, _ := p.store.Load(t.Context())
	for _, l := range stored {
		if u := until[l.IP]; l.State == pxe.LeaseBound && !u.Equal(l.Expires) {
			t.Errorf("stored %+v, promised until %s", l, u)
		}
	}
}

func TestPoolConcurrent(t *testing.T) {
	p := newPool(t, nil)
	p.nets[0].RangeTo = ip("10.77.0.199")
	var mu sync.Mutex
	got := map[netip.Addr]int{}
	var wg sync.WaitGroup
	for n := range 100 {
		wg.Go(func() {
			l, err := p.Offer(t.Context(), p.query(n, netip.Addr{}))
			if err == nil {
				l, err = p.Commit(t.Context(), p.query(n, l.IP))
			}
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			got[l.IP]++
		})
	}
	wg.Wait()
	if len(got) != 100 {
		t.Errorf("100 machines got %d addresses", len(got))
	}
}
