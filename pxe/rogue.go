package pxe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"

	"ingot/internal/slogx"
)

// probeWait is how long Probe listens: dnsmasq pings an address for 3 s before its first offer unless no-ping is set, so a
// server can still be missed; watch finds it later.
const probeWait = 1500 * time.Millisecond

// rogueAgain is how often the same foreign server is reported.
const rogueAgain = 10 * time.Minute

// A Rogue is a DHCP server that is not ours.
type Rogue struct {
	Iface    string
	IP       netip.Addr       // its server id (option 54), or the sender when it names none
	MAC      net.HardwareAddr // nil when only its server id was seen
	Offered  netip.Addr       // the address that it offered; invalid: a proxy
	BootFile string
	Next     netip.Addr // siaddr
}

// Proxy reports whether the server gives no addresses, only boot information.
func (r *Rogue) Proxy() bool { return !r.Offered.IsValid() }

func (r *Rogue) String() string {
	s := fmt.Sprintf("DHCP server %s", r.IP)
	if len(r.MAC) > 0 {
		s += fmt.Sprintf(" (%s)", r.MAC)
	}
	s += " on " + r.Iface
	if r.Proxy() {
		s += " gives no addresses"
	} else {
		s += " offers " + r.Offered.String()
	}
	if r.BootFile != "" {
		s += fmt.Sprintf(", boot file %q", r.BootFile)
	}
	return s
}

// Probe asks on iface who else answers: a DISCOVER as PXE firmware sends it, with an invented, locally administered MAC.
// Call it before Serve, as it would find our own server too. The address that a server holds for the invented MAC is never
// asked for, and free again in a minute.
func Probe(ctx context.Context, iface string) ([]Rogue, error) {
	ifi, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, fmt.Errorf("look for other DHCP servers: interface %q: %w", iface, err)
	}
	raw, err := OpenRaw(ifi, UDPTo(68))
	if err != nil {
		return nil, fmt.Errorf("look for other DHCP servers: %w", err)
	}
	defer raw.Close()
	if err := raw.Promiscuous(); err != nil { // some servers answer to the MAC although they are told to broadcast
		return nil, fmt.Errorf("look for other DHCP servers on %q: %w", iface, err)
	}
	pkt := probePacket()
	// The frame comes from our own MAC: hypervisors drop frames of invented senders, and switches learn them.
	d := Datagram{SrcMAC: ifi.HardwareAddr, DstMAC: broadcastMAC(), Src: netip.MustParseAddrPort("0.0.0.0:68"),
		Dst: netip.MustParseAddrPort("255.255.255.255:67"), Payload: pkt.ToBytes()}
	if err := raw.Send(d.Frame()); err != nil {
		return nil, fmt.Errorf("look for other DHCP servers: %w", err)
	}
	return collect(ctx, raw, pkt.TransactionID)
}

func collect(ctx context.Context, raw *Raw, xid dhcpv4.TransactionID) ([]Rogue, error) {
	var out []Rogue
	raw.SetDeadline(time.Now().Add(probeWait))
	defer context.AfterFunc(ctx, func() { raw.SetDeadline(time.Now()) })()
	buf := make([]byte, 1<<16)
	for {
		n, err := raw.Recv(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return out, ctx.Err()
		}
		if err != nil {
			return out, err
		}
		r, pkt, ok := readOffer(buf[:n], raw.Iface.Name)
		if ok && pkt.TransactionID == xid && !slices.ContainsFunc(out, func(o Rogue) bool { return o.IP == r.IP }) {
			out = append(out, r)
		}
	}
}

func probePacket() *dhcpv4.DHCPv4 {
	p := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: 1, Options: dhcpv4.Options{}}
	random := make([]byte, 10)
	rand.Read(random)
	p.ClientHWAddr = append(net.HardwareAddr{random[0]&^1 | 2}, random[1:6]...)
	p.TransactionID = dhcpv4.TransactionID(random[6:])
	p.SetBroadcast()
	set(p, dhcpv4.OptionDHCPMessageType, []byte{byte(dhcpv4.MessageTypeDiscover)})
	set(p, dhcpv4.OptionClassIdentifier, []byte("PXEClient:Arch:00007:UNDI:003016"))
	set(p, dhcpv4.OptionClientSystemArchitectureType, binary.BigEndian.AppendUint16(nil, uint16(ArchEFIBC)))
	set(p, dhcpv4.OptionClientNetworkInterfaceIdentifier, []byte{1, 3, 16})
	set(p, dhcpv4.OptionClientMachineIdentifier, append(append(make([]byte, 11), p.ClientHWAddr[:4]...), 0, 1))
	set(p, dhcpv4.OptionParameterRequestList, []byte{1, 3, 6, 12, 15, 43, 54, 60, 66, 67, 97})
	return p
}

// readOffer reads an OFFER or ACK from a frame.
func readOffer(frame []byte, iface string) (Rogue, *dhcpv4.DHCPv4, bool) {
	d, ok := ParseFrame(frame)
	if !ok || d.Src.Port() != 67 {
		return Rogue{}, nil, false
	}
	pkt, err := Decode(d.Payload)
	if err != nil || pkt.OpCode != dhcpv4.OpcodeBootReply {
		return Rogue{}, nil, false
	}
	if t := pkt.MessageType(); t != dhcpv4.MessageTypeOffer && t != dhcpv4.MessageTypeAck {
		return Rogue{}, nil, false
	}
	r := Rogue{Iface: iface, IP: addr4(pkt.Options.Get(dhcpv4.OptionServerIdentifier)), MAC: slices.Clone(d.SrcMAC),
		Offered: addr4(pkt.YourIPAddr), Next: addr4(pkt.ServerIPAddr),
		BootFile: firstOf(pkt.BootFileName, text(pkt.Options.Get(dhcpv4.OptionBootfileName)))}
	if !r.IP.IsValid() {
		r.IP = d.Src.Addr()
	}
	return r, pkt, true
}

// watch looks at the answers that others send: their OFFERs and ACKs pass by when they are broadcast.
func (s *DHCP) watch(ctx context.Context, raw *Raw) {
	buf := make([]byte, 1<<16)
	for ctx.Err() == nil {
		n, err := raw.Recv(buf)
		if err != nil {
			sleep(ctx, time.Second)
			continue
		}
		if r, pkt, ok := readOffer(buf[:n], raw.Iface.Name); ok && !s.ours(r.IP) {
			s.foreign(ctx, r, pkt.ClientHWAddr)
		}
	}
}

// foreign reports a foreign server: once in ten minutes for each. Beside a proxy there is one, and should be.
func (s *DHCP) foreign(ctx context.Context, r Rogue, client net.HardwareAddr) {
	proxy := slices.ContainsFunc(s.Networks, func(n Network) bool { return n.Interface == r.Iface && n.Proxy })
	if proxy || slices.Contains(s.Peers, r.IP) || !s.rogues.news(r, time.Now()) {
		return
	}
	mac := r.MAC.String()
	if mac == "" {
		mac = s.neighbour(r.Iface, r.IP)
	}
	s.log.Warn("another DHCP server answers on our network: machines will boot from whichever is faster",
		"iface", r.Iface, slogx.IP, r.IP, slogx.MAC, mac, "client", client.String(), "offers", r.Offered, "boot-file", r.BootFile)
	emit(ctx, s.Events, Event{MAC: client, IP: r.IP, Stage: EventRogue, Detail: fmt.Sprintf("DHCP server %s (%s) on %s", r.IP, mac, r.Iface)})
}

// neighbour names the MAC of ip from the kernel's ARP table; "" when we never spoke with it.
func (s *DHCP) neighbour(iface string, ip netip.Addr) string {
	if s.Neighbour != nil {
		return s.Neighbour(iface, ip)
	}
	link, err := netlink.LinkByName(iface)
	if err != nil {
		return ""
	}
	all, _ := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
	for _, n := range all {
		if addr4(n.IP.To4()) == ip {
			return n.HardwareAddr.String()
		}
	}
	return ""
}

// rogueBook remembers who was reported when. A server seen by its server id alone is news again once its MAC is known.
type rogueBook struct {
	mu   sync.Mutex
	seen map[rogueKey]time.Time
}

type rogueKey struct {
	iface string
	ip    netip.Addr
	mac   bool
}

func (b *rogueBook) news(r Rogue, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.seen == nil || len(b.seen) > 1024 {
		b.seen = map[rogueKey]time.Time{}
	}
	k, named := rogueKey{r.Iface, r.IP, len(r.MAC) > 0}, rogueKey{r.Iface, r.IP, true}
	for _, old := range []rogueKey{k, named} {
		if at, ok := b.seen[old]; ok && now.Sub(at) < rogueAgain {
			return false
		}
	}
	b.seen[k] = now
	return true
}
