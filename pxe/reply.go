package pxe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// A Server is our side of a reply.
type Server struct {
	Type      dhcpv4.MessageType // offer, ack or nak
	Network   Network
	Lease     Lease         // zero: boot information without an address (proxy, port 4011, INFORM)
	LeaseTime time.Duration // zero: none is named, as for INFORM (RFC 2131 4.3.5)
	Proxy     bool          // answer as a proxy: no address, PXEClient in option 60
	Loader    string        // file name of the loader; empty: the first of LoadersFor
	LoaderURL string        // directory URL of the loaders, for UEFI HTTP boot; empty: none
	Message   string        // option 56 of a NAK
}

// A Via is the way in which a reply travels.
type Via int

// The ways. ViaFrame is a raw Ethernet frame: the client has no address yet and cannot answer ARP for it.
const (
	ViaUDP Via = iota
	ViaBroadcast
	ViaFrame
)

func (v Via) String() string { return [...]string{"udp", "broadcast", "frame"}[v] }

// A Dest says where and how a reply is sent.
type Dest struct {
	Via  Via
	Addr netip.AddrPort
	MAC  net.HardwareAddr // ViaFrame
}

// Errors of Reply.
var (
	ErrBootFile  = errors.New("boot file cannot be told")
	ErrNoHTTPURL = errors.New("machine boots by HTTP, but loaders have no URL")
)

// Reply builds the answer to req. It is pure; the packet's ToBytes pads to 300 bytes, the least that BOOTP relays and some
// ROMs accept (RFC 951, RFC 1542 2.1).
func Reply(req Request, ans Answer, srv Server) (*dhcpv4.DHCPv4, Dest, error) {
	p := skeleton(&req, &srv)
	if srv.Type == dhcpv4.MessageTypeNak {
		if srv.Message != "" {
			set(p, dhcpv4.OptionMessage, []byte(srv.Message))
		}
		return p, destination(&req, p), nil
	}
	addAddress(p, &req, ans, &srv)
	if req.Boots() && !ans.NoBoot {
		if err := addBoot(p, &req, ans, &srv); err != nil {
			return nil, Dest{}, err
		}
	}
	return p, destination(&req, p), nil
}

// skeleton is what every reply has, a NAK too (RFC 2131 table 3).
func skeleton(req *Request, srv *Server) *dhcpv4.DHCPv4 {
	p := &dhcpv4.DHCPv4{
		OpCode:         dhcpv4.OpcodeBootReply,
		HWType:         1,
		ClientHWAddr:   slices.Clone(req.MAC),
		ClientIPAddr:   net.IPv4zero,
		YourIPAddr:     net.IPv4zero,
		ServerIPAddr:   net.IPv4zero,
		GatewayIPAddr:  ip4(req.GIAddr),
		Options:        dhcpv4.Options{},
		TransactionID:  dhcpv4.TransactionID(binary.BigEndian.AppendUint32(nil, req.XID)),
		ServerHostName: "",
	}
	if req.CIAddr.IsValid() && srv.Type == dhcpv4.MessageTypeAck {
		p.ClientIPAddr = ip4(req.CIAddr)
	}
	// A ROM has no IP stack before it has an address, and not every one takes unicast that it did not ask for by name:
	// broadcast to all of them, whatever their flag says. A relay obeys the flag too (RFC 1542 4.1.2).
	if req.Broadcast || req.Stage == StageROM {
		p.SetBroadcast()
	}
	set(p, dhcpv4.OptionDHCPMessageType, []byte{byte(srv.Type)})
	set(p, dhcpv4.OptionServerIdentifier, srv.Network.ServerIP.AsSlice())
	if len(req.MachineID) > 0 {
		// Option 97 comes back as it was sent, even when its length is wrong: PXE 2.1 ROMs drop an offer without it.
		set(p, dhcpv4.OptionClientMachineIdentifier, req.MachineID)
	}
	if len(req.ClientID) > 0 {
		set(p, dhcpv4.OptionClientIdentifier, req.ClientID) // RFC 6842
	}
	if len(req.RelayInfo) > 0 {
		set(p, dhcpv4.OptionRelayAgentInformation, req.RelayInfo) // RFC 3046 2.2: unchanged; the library writes it last
	}
	return p
}

// addAddress adds the address and what a host needs to use it. Options are sent whether option 55 asks for them or not:
// ROMs forget to ask for what they use.
func addAddress(p *dhcpv4.DHCPv4, req *Request, ans Answer, srv *Server) {
	if srv.Proxy {
		return
	}
	n := &srv.Network
	if srv.Lease.IP.IsValid() {
		p.YourIPAddr = ip4(srv.Lease.IP)
	}
	if srv.LeaseTime > 0 {
		secs := uint32(srv.LeaseTime / time.Second)
		setUint32(p, dhcpv4.OptionIPAddressLeaseTime, secs)
		setUint32(p, dhcpv4.OptionRenewTimeValue, secs/2) // T1, T2: RFC 2131 4.4.5
		setUint32(p, dhcpv4.OptionRebindingTimeValue, secs/8*7)
	}
	set(p, dhcpv4.OptionSubnetMask, net.CIDRMask(n.Prefix.Bits(), 32))
	set(p, dhcpv4.OptionBroadcastAddress, lastAddr(n.Prefix).AsSlice())
	if n.Router.IsValid() {
		// A client behind a relay cannot reach us without it.
		set(p, dhcpv4.OptionRouter, n.Router.AsSlice())
	}
	var dns []byte
	for _, a := range n.DNS {
		dns = append(dns, a.AsSlice()...)
	}
	if len(dns) > 0 {
		set(p, dhcpv4.OptionDomainNameServer, dns)
	}
	if n.Domain != "" {
		set(p, dhcpv4.OptionDomainName, []byte(n.Domain))
	}
	if name := firstOf(ans.HostName, srv.Lease.Hostname); name != "" && (ans.HostName != "" || srv.Lease.Reserved) {
		set(p, dhcpv4.OptionHostName, []byte(name)) // ours only: echoing the client's own word would make it look like ours
	}
}

// addBoot adds what the machine boots.
func addBoot(p *dhcpv4.DHCPv4, req *Request, ans Answer, srv *Server) error {
	server := srv.Network.ServerIP
	file, err := bootFile(req, ans, srv)
	if err != nil {
		return err
	}
	// siaddr is where ROMs fetch the file; option 66 is text and often ignored, 150 is Cisco's list of the same (RFC 5859).
	// Say it everywhere: which place a ROM reads is not written anywhere.
	p.ServerIPAddr = ip4(server)
	p.ServerHostName = server.String()
	set(p, dhcpv4.OptionTFTPServerName, []byte(server.String()))
	set(p, dhcpv4.GenericOptionCode(150), server.AsSlice())
	if file != "" {
		// `file` holds 127 characters and a NUL. A longer URL goes into option 67 alone; iPXE and EDK2 read it there.
		if len(file) <= 127 {
			p.BootFileName = file
		}
		set(p, dhcpv4.OptionBootfileName, []byte(file))
	}
	switch {
	case req.Stage == StageIPXE:
		// no-pxedhcp: we are the only server, so do not wait 3 s for a proxy's offer (iPXE dhcp.c). In proxy mode this
		// packet is the proxy's offer, and the same word ends the wait.
		set(p, dhcpv4.GenericOptionCode(175), []byte{ipxeNoProxy, 1, 1})
	case req.Firmware == UEFIHTTP:
		// UEFI 2.10 24.7.2: an HTTP boot offer says HTTPClient, or it is passed over.
		set(p, dhcpv4.OptionClassIdentifier, []byte("HTTPClient"))
	}
	switch {
	case req.Arch == ArchRPi:
		// The ROM of a Pi looks for this name in the PXE boot menu (43.9) and otherwise drops the offer.
		set(p, dhcpv4.OptionVendorSpecificInformation, raspberryMenu())
	case srv.Proxy && req.Firmware != UEFIHTTP:
		addProxy(p, req)
	}
	return nil
}

// addProxy marks a reply as a proxy's. From a server that gives addresses option 60 is left out: it would make a client
// start the proxy procedure and ask port 4011 of that host, one more exchange for nothing.
func addProxy(p *dhcpv4.DHCPv4, req *Request) {
	set(p, dhcpv4.OptionClassIdentifier, []byte("PXEClient"))
	if req.Firmware == BIOS {
		// PXE_DISCOVERY_CONTROL = 8: no discovery, boot the file named here (PXE 2.1 2.2.1). UEFI firmware is given no
		// option 43: much of it ignores this bypass, and without 43 it asks port 4011, the BINL way, which always works.
		set(p, dhcpv4.OptionVendorSpecificInformation, []byte{6, 1, 8, 255})
	}
}

// raspberryMenu is option 43 with a boot menu of one entry (PXE 2.1: 9 menu, 10 prompt; type 0 is the local disk's).
func raspberryMenu() []byte {
	const name = "Raspberry Pi Boot"
	b := []byte{6, 1, 3, 10, 4, 0, 'P', 'X', 'E', 9, byte(3 + len(name)), 0, 0, byte(len(name))}
	return append(append(b, name...), 255)
}

// bootFile is the name or URL that the machine boots.
func bootFile(req *Request, ans Answer, srv *Server) (string, error) {
	loader := srv.Loader
	if names := LoadersFor(req.Arch); loader == "" && len(names) > 0 {
		loader = names[0]
	}
	var file string
	switch {
	case req.Stage == StageIPXE && !req.NoHTTP:
		file = ans.ScriptURL // never a loader, not even the one of the answer: that is the endless loop
	case ans.BootFile != "":
		file = ans.BootFile
	case req.Stage == StageIPXE && loader != "":
		// A card's iPXE without HTTP cannot fetch the script: hand it ours. By full URL: iPXE resolves a bare name against
		// the next server that it remembers, which is not always the one of this offer.
		file = "tftp://" + srv.Network.ServerIP.String() + "/" + loader
	default:
		file = loader
	}
	if req.Firmware == UEFIHTTP && req.Stage == StageROM && file != "" && !strings.Contains(file, "://") {
		if srv.LoaderURL == "" {
			return "", ErrNoHTTPURL
		}
		file = strings.TrimSuffix(srv.LoaderURL, "/") + "/" + file
	}
	if len(file) > 255 || strings.ContainsFunc(file, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return "", fmt.Errorf("%w: %q has %d bytes or odd characters; an option holds 255 of ASCII", ErrBootFile, file, len(file))
	}
	return file, nil
}

// destination is RFC 2131 4.1, in its order: relay, client that has an address, broadcast, raw frame.
func destination(req *Request, p *dhcpv4.DHCPv4) Dest {
	client := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 68) }
	broadcast := Dest{Via: ViaBroadcast, Addr: client(netip.AddrFrom4([4]byte{255, 255, 255, 255}))}
	nak := p.MessageType() == dhcpv4.MessageTypeNak
	switch {
	case req.GIAddr.IsValid():
		// To the relay, at the server port: not to where the packet came from.
		if nak {
			p.SetBroadcast() // 4.3.2: the relay must broadcast it, the client may have no address that works
		}
		return Dest{Via: ViaUDP, Addr: netip.AddrPortFrom(req.GIAddr, 67)}
	case req.Rx.Proxy && req.CIAddr.IsValid() && req.Rx.Src.IsValid() && !req.Rx.Src.Addr().IsUnspecified():
		return Dest{Via: ViaUDP, Addr: req.Rx.Src} // 4011: the client listens where it asked from, 68 or 4011
	case nak:
		return broadcast // 4.1: always
	case req.CIAddr.IsValid():
		return Dest{Via: ViaUDP, Addr: client(req.CIAddr)}
	case p.IsBroadcast(), !p.YourIPAddr.IsGlobalUnicast():
		return broadcast
	}
	return Dest{Via: ViaFrame, Addr: client(addr4(p.YourIPAddr)), MAC: req.MAC}
}

func set(p *dhcpv4.DHCPv4, code dhcpv4.OptionCode, b []byte) {
	p.Options[code.Code()] = slices.Clone(b)
}

func setUint32(p *dhcpv4.DHCPv4, code dhcpv4.OptionCode, n uint32) {
	set(p, code, binary.BigEndian.AppendUint32(nil, n))
}

func ip4(a netip.Addr) net.IP {
	if !a.IsValid() {
		return net.IPv4zero.To4()
	}
	return a.AsSlice()
}

func firstOf(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}
