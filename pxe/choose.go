package pxe

import (
	"fmt"
	"net"
	"net/netip"
	"time"
)

// A choice is an address for a client.
type choice struct {
	ip       netip.Addr
	network  Network
	reserved bool
	hostname string
	fresh    bool // the client did not have it before: somebody may be on it
}

// choose picks an address for q.MAC. In this order: the reservation; what the client has or had; what it asks for, if
// nobody ever had it; an address that nobody ever had; the one that has been expired the longest. So a client that was
// off for a year finds its old address as long as there are new ones for the others (4.41).
func (p *Pool) choose(q LeaseQuery) (choice, error) {
	for i := range q.Networks {
		n := &q.Networks[i]
		if r, ok := p.reservation(q.MAC, n); ok && p.free(r.IP, q.MAC) {
			return choice{ip: r.IP, network: *n, reserved: true, hostname: r.HostName}, nil
		} else if ok {
			// Its last tenant still has a lease, or a client declined it. A second machine on it would be worse.
			p.log.Warn("reserved address is in use by another machine", "ip", r.IP, "mac", q.MAC.String(),
				"holder", p.byIP[r.IP].MAC.String(), "state", string(p.byIP[r.IP].State))
		}
	}
	for _, pick := range []func(LeaseQuery, *Network) (netip.Addr, bool){p.own, p.wanted, p.never, p.oldest} {
		for i := range q.Networks {
			n := &q.Networks[i]
			if ip, ok := pick(q, n); ok {
				return choice{ip: ip, network: *n, fresh: !p.byMAC[macKey(q.MAC)][ip]}, nil
			}
		}
	}
	return choice{}, fmt.Errorf("%w for %s: %s", ErrNoAddress, q.MAC, p.why(q))
}

// why explains an empty hand.
func (p *Pool) why(q LeaseQuery) string {
	if len(q.Networks) == 0 {
		return "no network is configured here"
	}
	for i := range q.Networks {
		if n := &q.Networks[i]; n.RangeFrom.IsValid() {
			return fmt.Sprintf("network %q: every address of %s-%s is leased", n.Name, n.RangeFrom, n.RangeTo)
		}
	}
	return fmt.Sprintf("network %q has no range, and the machine no reservation", q.Networks[0].Name)
}

func (p *Pool) reservation(mac net.HardwareAddr, n *Network) (Reservation, bool) {
	if p.cfg.Reservations == nil {
		return Reservation{}, false
	}
	for _, r := range p.cfg.Reservations.ByMAC(mac) {
		if n.usable(r.IP) {
			return r, true
		}
	}
	return Reservation{}, false
}

// allowed: ip is mac's own reservation, or in the pool and reserved for nobody else.
func (p *Pool) allowed(n *Network, ip netip.Addr, mac net.HardwareAddr) bool {
	if p.cfg.Reservations != nil {
		if r, ok := p.cfg.Reservations.ByIP(ip); ok {
			return n.usable(ip) && macKey(r.MAC) == macKey(mac)
		}
	}
	return n.inRange(ip)
}

// free: nobody but mac holds ip now.
func (p *Pool) free(ip netip.Addr, mac net.HardwareAddr) bool {
	l, ok := p.byIP[ip]
	if !ok || !l.Expires.After(p.cfg.Now()) {
		return true
	}
	return l.State != LeaseDeclined && macKey(l.MAC) == macKey(mac)
}

func (p *Pool) own(q LeaseQuery, n *Network) (best netip.Addr, ok bool) {
	var when time.Time
	for ip := range p.byMAC[macKey(q.MAC)] {
		l := p.byIP[ip]
		if l.State == LeaseDeclined || !p.allowed(n, ip, q.MAC) || !p.free(ip, q.MAC) {
			continue
		}
		if !ok || l.Expires.After(when) || (l.Expires.Equal(when) && ip.Less(best)) {
			best, when, ok = ip, l.Expires, true
		}
	}
	return best, ok
}

func (p *Pool) wanted(q LeaseQuery, n *Network) (netip.Addr, bool) {
	_, had := p.byIP[q.IP]
	return q.IP, q.IP.IsValid() && !had && p.allowed(n, q.IP, q.MAC)
}

// never finds an address that nobody had. The walk begins at a place that the MAC says, so that a machine finds its address
// again even when the leases are lost.
func (p *Pool) never(q LeaseQuery, n *Network) (netip.Addr, bool) {
	if !n.RangeFrom.IsValid() {
		return netip.Addr{}, false
	}
	first := toUint(n.RangeFrom)
	size := toUint(n.RangeTo) - first + 1
	start := macHash(q.MAC)
	for i := range size {
		ip := fromUint(first + uint32((uint64(start)+uint64(i))%uint64(size)))
		if _, had := p.byIP[ip]; !had && p.allowed(n, ip, q.MAC) {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

func (p *Pool) oldest(q LeaseQuery, n *Network) (best netip.Addr, ok bool) {
	var when time.Time
	for ip, l := range p.byIP {
		if !p.free(ip, q.MAC) || !p.allowed(n, ip, q.MAC) {
			continue
		}
		if !ok || l.Expires.Before(when) || (l.Expires.Equal(when) && ip.Less(best)) {
			best, when, ok = ip, l.Expires, true
		}
	}
	return best, ok
}

func toUint(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func fromUint(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}
