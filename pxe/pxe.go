// Package pxe answers machines that boot from the network and decides nothing about what they get.
//
// A packet takes one way through it:
//
//	bytes -> Classify (pure: who asks, with which firmware, at which stage of its boot)
//	      -> Decider  (the caller's: what this machine gets)
//	      -> Leases   (which address; Pool is the implementation, on a LeaseStore)
//	      -> Reply    (pure: every option of the answer, and how it must travel)
//	      -> the wire (relay, raw frame or broadcast, out of the interface it came in by)
//
// DHCP, TFTP and RA are the three servers. Each has a Serve(ctx) that binds first and fails fast, and drains when ctx ends.
// Probe finds other DHCP servers before ours starts to answer. The package pxetest holds the other side: a fake boot ROM.
//
// The numbers in comments such as "RFC 2131 4.3.2" are RFC sections; "seen with" names the firmware that taught us a line.
package pxe

import (
	"context"
	"errors"
	"net/netip"
)

// Errors of Classify. Everything else that it returns wraps ErrMalformed.
var (
	// ErrNotForUs: a reply, a lease query, a BOOTP packet without DHCP; nothing is wrong and nothing is logged.
	ErrNotForUs = errors.New("not a DHCP request")
	// ErrNotPXE: a request to a proxy (port 4011 or proxy mode) from a client that does not boot from the network; nothing is logged.
	ErrNotPXE = errors.New("not a network boot")
	// ErrMalformed: for us but wrong; it is logged.
	ErrMalformed = errors.New("malformed request")
)

// A Decider says what a machine gets. It is called for every packet that will be answered, DISCOVER and REQUEST alike,
// from several goroutines at once, and has two seconds. It must give the same answer to both packets of one exchange:
// some firmware boots what the OFFER said, other what the ACK said.
type Decider interface {
	Decide(ctx context.Context, req Request) (Answer, error)
}

// An Answer is a Decider's decision.
//
// For a machine that only has to boot its disk, give a ScriptURL with a script that does so. NoBoot looks simpler, but
// OVMF retries an answer without a boot file for 61 s, and other UEFI firmware hangs for good.
type Answer struct {
	Known     bool   // Name is a node of the site
	Name      string // the node's name, for logs and events
	HostName  string // option 12; empty: what the lease or the client says
	BootFile  string // for firmware, instead of the default loader: a name on our TFTP server, or a URL
	ScriptURL string // http URL of the boot script that iPXE runs; it may name the machine by token, never by address (4.10)
	Ignore    bool   // stay silent: another server answers this machine
	NoBoot    bool   // an address, nothing to boot
}

// Rx says where a packet came in.
type Rx struct {
	Iface   string
	IfIndex int
	Src     netip.AddrPort
	Dst     netip.Addr
	Proxy   bool // port 4011, or port 67 of a network in proxy mode: only machines that boot from the network matter
}
