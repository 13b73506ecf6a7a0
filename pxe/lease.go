package pxe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

// LeaseState is what became of an address. Expiry is not a state: a bound lease whose time is over is expired.
type LeaseState string

// The states of a lease. Offered lives in memory only; the others are saved.
const (
	LeaseOffered  LeaseState = "offered"
	LeaseBound    LeaseState = "bound"
	LeaseReleased LeaseState = "released"
	LeaseDeclined LeaseState = "declined" // another machine uses the address; nobody gets it until Expires
)

// A Lease ties an address to a MAC: never to a client id, which changes between ROM, iPXE, installer and OS (4.8).
type Lease struct {
	MAC      net.HardwareAddr
	IP       netip.Addr
	Expires  time.Time
	State    LeaseState
	Hostname string
	Iface    string
	Reserved bool // by a Reservation at the time it was given; not stored
}

// A Reservation gives a machine an address for good. It may lie inside of a pool's range; nobody else gets it then.
type Reservation struct {
	MAC      net.HardwareAddr
	IP       netip.Addr
	HostName string
}

// Reservations are asked for every packet, so that an edit applies at once; answers should come from memory.
// An implementation must be safe for concurrent use.
type Reservations interface {
	ByMAC(mac net.HardwareAddr) []Reservation // usually one; a machine with a place in two networks has two
	ByIP(ip netip.Addr) (Reservation, bool)
}

// A LeaseStore keeps leases over restarts, keyed by IP. Save is durable when it returns: the ACK waits for it.
type LeaseStore interface {
	Load(ctx context.Context) ([]Lease, error)
	Save(ctx context.Context, l Lease) error
	Delete(ctx context.Context, l Lease) error
}

// A LeaseQuery asks for an address for one machine.
type LeaseQuery struct {
	MAC      net.HardwareAddr
	Networks []Network  // those that the client may be on, the likeliest first
	IP       netip.Addr // the address asked for, released or declined
	Hostname string
	Boots    bool // firmware or iPXE: a short lease
	Relayed  bool // the client is not on our wire: no ARP
}

// Errors of Leases.
var (
	ErrNoAddress = errors.New("no free address")  // the pool is exhausted, or there is none: stay silent
	ErrRefused   = errors.New("address refused")  // the client must not use the address it asks for: NAK
	ErrNotLeased = errors.New("no lease to end")  // RELEASE or DECLINE of something that is not the client's
	ErrStore     = errors.New("lease not stored") // the store failed: no ACK
)

// Leases hands out addresses. Pool is the implementation; the interface is for proxies and tests.
type Leases interface {
	Offer(ctx context.Context, q LeaseQuery) (Lease, error)
	Commit(ctx context.Context, q LeaseQuery) (Lease, error)
	Release(ctx context.Context, q LeaseQuery) error
	Decline(ctx context.Context, q LeaseQuery) error
}
