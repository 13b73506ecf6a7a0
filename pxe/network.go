package pxe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// A Network is one IPv4 subnet that we answer on. Two networks may share an interface (aliases, or networks behind a
// relay, whose requests come in by that interface too).
type Network struct {
	Name      string
	Interface string
	ServerIP  netip.Addr   // our address on Interface: option 54, siaddr
	Prefix    netip.Prefix // of the clients; behind a relay ServerIP is outside of it
	RangeFrom netip.Addr   // first and last address of the pool; zero: reservations only
	RangeTo   netip.Addr
	Router    netip.Addr
	DNS       []netip.Addr
	Domain    string

	LeaseTime     time.Duration // zero: 12 h
	BootLeaseTime time.Duration // to firmware and iPXE, which are gone in a minute; zero: 10 min

	// Proxy: another server gives the addresses, and we add boot information to its answers (PXE 2.1, proxyDHCP).
	Proxy bool
}

// Validate reports every problem of n, joined.
func (n *Network) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("network %q: "+format, append([]any{n.Name}, args...)...))
	}
	if n.Interface == "" {
		bad("no interface")
	}
	if !n.ServerIP.Is4() {
		bad("server address %q is not IPv4", n.ServerIP)
	}
	if !n.Prefix.IsValid() || !n.Prefix.Addr().Is4() {
		bad("prefix %q is not IPv4", n.Prefix)
	} else {
		n.validateRange(bad)
	}
	if n.LeaseTime < 0 || n.BootLeaseTime < 0 {
		bad("negative lease time")
	}
	return errors.Join(errs...)
}

func (n *Network) validateRange(bad func(string, ...any)) {
	if n.Router.IsValid() && !n.Prefix.Contains(n.Router) {
		bad("router %s is outside of %s", n.Router, n.Prefix)
	}
	if !n.RangeFrom.IsValid() && !n.RangeTo.IsValid() {
		return
	}
	for _, a := range []netip.Addr{n.RangeFrom, n.RangeTo} {
		if !a.IsValid() || !n.Prefix.Contains(a) {
			bad("range %s-%s is not inside of %s", n.RangeFrom, n.RangeTo, n.Prefix)
			return
		}
	}
	if n.RangeTo.Less(n.RangeFrom) {
		bad("range %s-%s ends before it begins", n.RangeFrom, n.RangeTo)
	}
}

func (n *Network) inRange(a netip.Addr) bool {
	return n.RangeFrom.IsValid() && !a.Less(n.RangeFrom) && !n.RangeTo.Less(a) && n.usable(a)
}

// usable: an address that a client may have at all: not ours, not the router's, not the subnet's first and last.
func (n *Network) usable(a netip.Addr) bool {
	if !n.Prefix.Contains(a) || a == n.ServerIP || a == n.Router {
		return false
	}
	return n.Prefix.Bits() > 30 || (a != n.Prefix.Masked().Addr() && a != lastAddr(n.Prefix))
}

func (n *Network) leaseTime(boots bool) time.Duration {
	t, def := n.LeaseTime, 12*time.Hour
	if boots {
		t, def = n.BootLeaseTime, 10*time.Minute
	}
	if t == 0 {
		return def
	}
	return t
}

func lastAddr(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(a)
}

// candidates are the networks that may serve r: those of the relay's subnet, else those of the interface. RFC 2131 4.3.1:
// giaddr, when it is set, and not the interface says where the client is.
func candidates(nets []Network, r *Request) []Network {
	var out []Network
	for _, n := range nets {
		if n.Interface == r.Rx.Iface && (!r.GIAddr.IsValid() || n.Prefix.Contains(r.GIAddr)) {
			out = append(out, n)
		}
	}
	// The network of the address that the client has, or wants back, comes first; the order of the configuration else.
	has := func(n Network) int {
		switch {
		case r.CIAddr.IsValid() && n.Prefix.Contains(r.CIAddr):
			return 0
		case r.RequestedIP.IsValid() && n.Prefix.Contains(r.RequestedIP):
			return 1
		case n.Prefix.Contains(n.ServerIP):
			return 2
		}
		return 3 // a network behind a relay, and the client is on our own wire
	}
	slices.SortStableFunc(out, func(a, b Network) int { return has(a) - has(b) })
	return out
}

// checkInterface opens the interface of n and proves that we can answer on it. It asks the kernel by netlink, not /sys: a
// network namespace often has another namespace's /sys.
func checkInterface(n Network) (*net.Interface, error) {
	ifi, err := net.InterfaceByName(n.Interface)
	if err != nil {
		all, _ := net.Interfaces()
		var names []string
		for _, i := range all {
			names = append(names, i.Name)
		}
		return nil, fmt.Errorf("network %q: interface %q does not exist (there are %q)", n.Name, n.Interface, names)
	}
	if ifi.Flags&net.FlagUp == 0 {
		return nil, fmt.Errorf("network %q: interface %q is down: ip link set %s up", n.Name, n.Interface, n.Interface)
	}
	addrs, err := ifi.Addrs()
	if err != nil {
		return nil, fmt.Errorf("network %q: addresses of interface %q: %w", n.Name, n.Interface, err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == n.ServerIP {
			return ifi, nil
		}
	}
	return nil, fmt.Errorf("network %q: interface %q has not the address %s (it has %v): ip addr add %s/%d dev %s",
		n.Name, n.Interface, n.ServerIP, addrs, n.ServerIP, n.Prefix.Bits(), n.Interface)
}
