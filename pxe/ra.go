package pxe

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"ingot/internal/slogx"
)

// Times of RA.
const (
	raEvery     = 5 * time.Minute  // unsolicited
	raQuiet     = 30 * time.Minute // after another router's advertisement (RFC 4861: at most 1800 s apart)
	raLinkLocal = 3 * time.Second  // duplicate address detection takes 1 to 2 s (RFC 4862 5.4)
)

// RA answers IPv6 router solicitations with an advertisement that promises nothing.
//
// iPXE configures IPv6 beside IPv4, at every one of its stages, and boots when both are done. Without a router it solicits
// for 16 seconds first. Any advertisement ends the wait (iPXE ndp.c, ipv6conf_rx_router_advertisement): with the flags M
// and O clear it asks for no DHCPv6, with a router lifetime of 0 nobody takes us for a router, and without a prefix no host
// gets an address from it. When another router advertises on the wire, iPXE has its answer and RA stays silent.
type RA struct {
	Interfaces []string
	// ULA adds a prefix made from the interface's name, for hosts to make themselves addresses of (RFC 4193, 4862). They are
	// deprecated from the start: nobody prefers them. iPXE does not need it.
	ULA   bool
	Ready func() // called when every socket is open; may be nil
	Log   *slog.Logger

	log *slog.Logger
}

type raConn struct {
	*RA
	ifi *net.Interface
	pc  *ipv6.PacketConn

	mu     sync.Mutex
	router time.Time // when another router was last heard
	warned bool
}

// Serve opens a socket on every interface, failing at once when one does not exist, and answers until ctx ends.
func (s *RA) Serve(ctx context.Context) error {
	s.log = slogx.Or(s.Log)
	var conns []*raConn
	defer func() {
		for _, c := range conns {
			c.pc.Close()
		}
	}()
	for _, name := range s.Interfaces {
		c, err := s.open(ctx, name)
		if err != nil {
			return fmt.Errorf("advertise on %q: %w", name, err)
		}
		conns = append(conns, c)
	}
	if s.Ready != nil {
		s.Ready()
	}
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() { c.read(ctx) })
		wg.Go(func() { c.unsolicited(ctx) })
	}
	<-ctx.Done()
	for _, c := range conns {
		c.pc.SetReadDeadline(time.Now())
	}
	wg.Wait()
	return nil
}

func (s *RA) open(ctx context.Context, name string) (*raConn, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var inner error
		err := c.Control(func(fd uintptr) { inner = unix.BindToDevice(int(fd), name) })
		return errors.Join(err, inner)
	}}
	conn, err := lc.ListenPacket(ctx, "ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, err
	}
	c := &raConn{RA: s, ifi: ifi, pc: ipv6.NewPacketConn(conn)}
	if err := c.setup(); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

func (c *raConn) setup() error {
	var f ipv6.ICMPFilter
	f.SetAll(true)
	f.Accept(ipv6.ICMPTypeRouterSolicitation)
	f.Accept(ipv6.ICMPTypeRouterAdvertisement)
	return errors.Join(
		c.pc.SetICMPFilter(&f),
		c.pc.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface, true),
		c.pc.JoinGroup(c.ifi, &net.IPAddr{IP: net.ParseIP("ff02::2")}), // all routers: where solicitations go
		c.pc.SetMulticastInterface(c.ifi),
		c.pc.SetMulticastHopLimit(255), // RFC 4861 6.1.2: anything less was forwarded, and is dropped
		c.pc.SetMulticastLoopback(false),
	)
}

// wait gives duplicate address detection its time.
func (c *raConn) wait(ctx context.Context) {
	for end := time.Now().Add(raLinkLocal); ctx.Err() == nil && time.Now().Before(end); sleep(ctx, 200*time.Millisecond) {
		if _, ok := linkLocal(c.ifi); ok {
			return
		}
	}
}

func (c *raConn) read(ctx context.Context) {
	buf := make([]byte, 1500)
	for ctx.Err() == nil {
		n, cm, src, err := c.pc.ReadFrom(buf)
		if err != nil {
			sleep(ctx, 100*time.Millisecond)
			continue
		}
		if n < 8 || cm == nil || cm.HopLimit != 255 {
			continue
		}
		switch ipv6.ICMPType(buf[0]) {
		case ipv6.ICMPTypeRouterSolicitation:
			c.log.Debug("router solicitation", "iface", c.ifi.Name, "from", src)
			c.wait(ctx) // an interface that has just got its carrier
			c.send()
		case ipv6.ICMPTypeRouterAdvertisement:
			c.heard(src)
		}
	}
}

// heard notes another router, so that we do not speak beside it. Were it this host's own radvd, our lifetime of 0 would
// even take its default route away.
func (c *raConn) heard(src net.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.router.IsZero() {
		c.log.Info("an IPv6 router is here already: no advertisements from us", "iface", c.ifi.Name, "router", src)
	}
	c.router = time.Now()
}

// unsolicited speaks at the start, when there is a link-local address, and then now and again.
func (c *raConn) unsolicited(ctx context.Context) {
	for ctx.Err() == nil {
		c.wait(ctx)
		// Without a carrier the kernel makes no address; that is not worth a word until a machine asks.
		if ifi, err := net.InterfaceByName(c.ifi.Name); err == nil && ifi.Flags&net.FlagRunning != 0 && ctx.Err() == nil {
			c.send()
		}
		sleep(ctx, raEvery)
	}
}

// send advertises to all nodes. RFC 4861 6.2.6 wants up to half a second of delay and 3 s between two: this is not a router
// whose answers a network waits for, but a machine in its boot is waiting for this one, so it goes at once.
func (c *raConn) send() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.router.IsZero() && time.Since(c.router) < raQuiet {
		return
	}
	src, ok := linkLocal(c.ifi)
	err := errors.New("no link-local address")
	if ok {
		cm := &ipv6.ControlMessage{HopLimit: 255, Src: src.AsSlice(), IfIndex: c.ifi.Index}
		_, err = c.pc.WriteTo(c.advertisement(), cm, &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: c.ifi.Name})
	}
	if err != nil && !c.warned {
		c.warned = true
		c.log.Warn(fmt.Sprintf("cannot advertise: iPXE will wait 16 s at every stage for IPv6; is it switched off? sysctl net.ipv6.conf.%s.disable_ipv6=0 net.ipv6.conf.%s.addr_gen_mode=0",
			c.ifi.Name, c.ifi.Name), "iface", c.ifi.Name, slogx.Err, err)
	}
}

// advertisement is RFC 4861 4.2; the kernel fills in the checksum (RFC 3542 3.1).
func (c *raConn) advertisement() []byte {
	b := make([]byte, 16) // hop limit, flags, router lifetime, reachable time, retransmission timer: 0 = "not from me"
	b[0] = 134
	if len(c.ifi.HardwareAddr) == 6 {
		b = append(append(b, 1, 1), c.ifi.HardwareAddr...) // source link-layer address: 4.6.1
	}
	if c.ULA {
		b = append(b, 3, 4, 64, 0xc0)                 // prefix information: 4.6.2; on link, autonomous
		b = binary.BigEndian.AppendUint32(b, 2*60*60) // valid for two hours
		b = append(b, make([]byte, 8)...)             // preferred for none; reserved
		p := ulaPrefix(c.ifi.Name).Addr().As16()
		b = append(b, p[:]...)
	}
	return b
}

// ulaPrefix is fd00::/8 and 40 bits that stand for the name (RFC 4193 3.2).
func ulaPrefix(name string) netip.Prefix {
	sum := sha256.Sum256([]byte("ingot ula " + name))
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:6], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// linkLocal is the interface's link-local address once duplicate address detection has let it be used.
func linkLocal(ifi *net.Interface) (netip.Addr, bool) {
	link, err := netlink.LinkByIndex(ifi.Index)
	if err != nil {
		return netip.Addr{}, false
	}
	addrs, _ := netlink.AddrList(link, netlink.FAMILY_V6)
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ok && ip.IsLinkLocalUnicast() && a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 {
			return ip, true
		}
	}
	return netip.Addr{}, false
}
