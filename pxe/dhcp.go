package pxe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"

	"ingot/internal/slogx"
)

// Sizes of the packet path.
const (
	workers    = 64 // goroutines; packets of one machine always go to the same one, so they stay in order
	queueDepth = 32 // packets a worker may have waiting; more are dropped, as the client asks again
	decideTime = 2 * time.Second
)

// DHCP is the DHCP server: port 67 on the interface of every network, and 4011 beside it. Fill the fields, call Serve once.
type DHCP struct {
	Networks  []Network
	Decider   Decider
	Leases    Leases
	Events    Events                                         // may be nil
	LoaderURL func(server netip.Addr) string                 // directory URL of the loaders, for UEFI HTTP boot; nil: such machines get no answer
	Loaders   Loaders                                        // those that exist; empty: every name of LoadersFor is thought to
	Peers     []netip.Addr                                   // other DHCP servers that may be here: not reported
	Ready     func()                                         // called when every port is bound; may be nil
	Neighbour func(iface string, ip netip.Addr) (mac string) // names the MAC of a foreign server; nil: the kernel's table
	Log       *slog.Logger

	log     *slog.Logger
	conns   []*dhcpConn
	memory  memory
	rogues  rogueBook
	queues  [workers]chan packet
	dropped atomic.Int64
}

// dhcpConn is one bound port on one interface.
type dhcpConn struct {
	ifi  *net.Interface
	port int
	pc   *ipv4.PacketConn
	raw  *Raw // to send frames, and to see what other servers send
}

type packet struct {
	from *dhcpConn
	rx   Rx
	data []byte
}

// Serve binds every port, then answers until ctx ends, then finishes the packets that it has. It fails at once when an
// interface is missing, down or without its address, or when a port is taken (*BusyError), and later when an interface is
// removed: a socket stays bound to the one that is gone, so the caller must serve anew.
func (s *DHCP) Serve(ctx context.Context) error {
	s.log = slogx.Or(s.Log)
	defer s.close()
	if err := s.bind(ctx); err != nil {
		return fmt.Errorf("serve DHCP: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var done, readers sync.WaitGroup
	for i := range s.queues {
		s.queues[i] = make(chan packet, queueDepth)
		done.Go(func() { s.work(ctx, s.queues[i]) })
	}
	for _, c := range s.conns {
		readers.Go(func() { s.read(ctx, c) })
	}
	for _, c := range s.conns {
		if c.port == 67 {
			readers.Go(func() { s.watch(ctx, c.raw) })
		}
	}
	if s.Ready != nil {
		s.Ready()
	}
	err := s.stand(ctx)
	cancel()
	for _, c := range s.conns {
		c.pc.SetReadDeadline(time.Now()) // wakes the readers; the port stays open for the last answers
		c.raw.SetDeadline(time.Now())
	}
	readers.Wait()
	for _, q := range s.queues {
		close(q)
	}
	done.Wait()
	return err
}

// stand waits for the end of ctx, or of an interface.
func (s *DHCP) stand(ctx context.Context) error {
	for sleep(ctx, 5*time.Second); ctx.Err() == nil; sleep(ctx, 5*time.Second) {
		for _, c := range s.conns {
			if now, err := net.InterfaceByName(c.ifi.Name); err != nil || now.Index != c.ifi.Index {
				return fmt.Errorf("serve DHCP: interface %q was removed", c.ifi.Name)
			}
		}
	}
	return nil
}

func (s *DHCP) bind(ctx context.Context) error {
	if len(s.Networks) == 0 {
		return errors.New("no network is configured")
	}
	var errs []error
	for _, n := range s.Networks {
		if err := n.Validate(); err != nil {
			errs = append(errs, err)
		} else if ifi, err := checkInterface(n); err != nil {
			errs = append(errs, err)
		} else if err := s.listen(ctx, ifi); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *DHCP) listen(ctx context.Context, ifi *net.Interface) error {
	if slices.ContainsFunc(s.conns, func(c *dhcpConn) bool { return c.ifi.Index == ifi.Index }) {
		return nil // a second network on it
	}
	raw, err := OpenRaw(ifi, UDPTo(68))
	if err != nil {
		return err
	}
	for _, port := range []int{67, 4011} {
		// 0.0.0.0 and not our address: a broadcast is for 255.255.255.255, and a bound address would not get it.
		uc, err := listenUDP(ctx, netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port)), ifi.Name)
		if err != nil {
			raw.Close()
			return err
		}
		pc := ipv4.NewPacketConn(uc)
		s.conns = append(s.conns, &dhcpConn{ifi: ifi, port: port, pc: pc, raw: raw})
		if err := pc.SetControlMessage(ipv4.FlagInterface|ipv4.FlagDst, true); err != nil {
			return fmt.Errorf("ask for IP_PKTINFO on %q: %w", ifi.Name, err)
		}
	}
	return nil
}

func (s *DHCP) close() {
	for _, c := range s.conns {
		c.pc.Close()
		c.raw.Close()
	}
	s.conns = nil
}

// read takes packets from one port until ctx ends. Errors of the socket (an interface that goes away, ICMP that came back)
// are waited out: they end when the interface is back.
func (s *DHCP) read(ctx context.Context, c *dhcpConn) {
	buf := make([]byte, 4096)
	for ctx.Err() == nil {
		n, cm, src, err := c.pc.ReadFrom(buf)
		if err != nil {
			if ctx.Err() == nil {
				s.log.Warn("receive DHCP", "iface", c.ifi.Name, slogx.Err, err)
				sleep(ctx, time.Second)
			}
			continue
		}
		rx := Rx{Iface: c.ifi.Name, IfIndex: c.ifi.Index, Src: src.(*net.UDPAddr).AddrPort(), Proxy: c.port != 67}
		if cm != nil {
			rx.Dst = addr4(cm.Dst)
		}
		s.enqueue(packet{from: c, rx: rx, data: slices.Clone(buf[:n])})
	}
}

// enqueue never blocks: a full queue is a flood, and a client that is dropped asks again in 4 seconds.
func (s *DHCP) enqueue(p packet) {
	if len(p.data) < 34 { // up to the end of a MAC in chaddr (RFC 2131 figure 1)
		return
	}
	select {
	case s.queues[macHash(p.data[28:34])%workers] <- p:
	default:
		if n := s.dropped.Add(1); n&(n-1) == 0 { // 1, 2, 4, 8, ...: a flood must not fill the log too
			s.log.Warn("DHCP packets dropped: too many at once", "dropped", n)
		}
	}
}

func (s *DHCP) work(ctx context.Context, q <-chan packet) {
	for p := range q {
		s.safely(ctx, p)
	}
}

// safely keeps one bad packet from ending the loop.
func (s *DHCP) safely(ctx context.Context, p packet) {
	defer func() {
		if r := recover(); r != nil {
			s.log.Error("BUG: DHCP packet made us panic", "panic", fmt.Sprint(r), "packet", fmt.Sprintf("%x", p.data))
		}
	}()
	// The exchange is finished even when the server is told to stop: the deadline is its own.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	s.handle(ctx, p)
}

// transmit sends a reply out of the interface that the request came in by.
func (s *DHCP) transmit(c *dhcpConn, server netip.Addr, d Dest, payload []byte) error {
	if d.Via == ViaFrame {
		frame := Datagram{SrcMAC: c.ifi.HardwareAddr, DstMAC: d.MAC,
			Src: netip.AddrPortFrom(server, 67), Dst: d.Addr, Payload: payload}
		return c.raw.Send(frame.Frame())
	}
	cm := &ipv4.ControlMessage{Src: server.AsSlice()}
	if d.Via == ViaBroadcast {
		cm.IfIndex = c.ifi.Index
	}
	_, err := c.pc.WriteTo(payload, cm, net.UDPAddrFromAddrPort(d.Addr))
	return err
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
