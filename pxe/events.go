package pxe

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// Stages of events.
const (
	EventDiscover = "discover"
	EventOffer    = "offer"
	EventRequest  = "request"
	EventAck      = "ack"
	EventNak      = "nak"
	EventDecline  = "decline"
	EventRelease  = "release"
	EventInform   = "inform"
	EventIgnored  = "ignored"    // the decider said so, or another server was chosen
	EventNoLease  = "no-address" // nothing to give
	EventLoop     = "loop"       // loaders given again and again, never an iPXE
	EventLoading  = "loading"    // TFTP transfer begins
	EventLoader   = "loader"     // TFTP transfer done
	EventRogue    = "rogue"      // another DHCP server
)

// An Event is one step of a machine's boot.
type Event struct {
	Time   time.Time
	MAC    net.HardwareAddr // nil for TFTP, where only IP is known
	IP     netip.Addr
	Node   string // when the decider knew it
	Stage  string
	Detail string
}

// Events takes events. Event is called from the packet path, from several goroutines: it should queue and return.
type Events interface {
	Event(ctx context.Context, e Event)
}

func emit(ctx context.Context, to Events, e Event) {
	if to != nil {
		e.Time = time.Now()
		to.Event(ctx, e)
	}
}
