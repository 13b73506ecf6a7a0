// Package pxetest is a fake boot ROM: it asks for an address and fetches a loader the way firmware does, with firmware's
// moods. It serves tests, load runs and the lab; real firmware is the judge of both sides (pxe's TestFirmware).
package pxetest

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Kind is the program that a ROM pretends to be.
type Kind int

// The kinds.
const (
	BIOS Kind = iota // a card's PXE ROM
	UEFI
	UEFIHTTP
	IPXE
	OS // an ordinary DHCP client
)

// A ROM is one machine. The zero moods are a healthy machine.
type ROM struct {
	MAC  net.HardwareAddr
	Kind Kind
	Arch uint16 // option 93; zero: what Kind sends
	UUID [16]byte

	// Moods.
	NoUUID     bool // omits option 97, as some Intel cards do
	BrokenUUID bool // sends 16 bytes, without the type
	Forgetful  bool // the REQUEST has none of the PXE options
	ArchList   bool // an unknown value in front of the right one in option 93
	NoArch     bool // option 93 missing, the class tells
	NoHTTP     bool // iPXE built without HTTP
	Unicast    bool // clears the broadcast flag
	Server     netip.Addr
	ClientID   []byte
	Want       netip.Addr // option 50 of the DISCOVER
	Relay      netip.Addr // pretends that a relay passed the packet on
	RelayInfo  []byte
}

// New makes a machine with the locally administered MAC 02:49:4e:xx:xx:xx of number n.
func New(kind Kind, n int) *ROM {
	r := &ROM{Kind: kind, MAC: net.HardwareAddr{2, 0x49, 0x4e, byte(n >> 16), byte(n >> 8), byte(n)}}
	copy(r.UUID[:], "ingot fake rom")
	copy(r.UUID[10:], r.MAC)
	return r
}

func (r *ROM) arch() uint16 {
	if r.Arch != 0 {
		return r.Arch
	}
	return map[Kind]uint16{UEFI: 7, UEFIHTTP: 16}[r.Kind]
}

func (r *ROM) packet(t dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	p := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: 1, ClientHWAddr: r.MAC, Options: dhcpv4.Options{}, NumSeconds: 4}
	rand.Read(p.TransactionID[:])
	if !r.Unicast {
		p.SetBroadcast()
	}
	if r.Relay.IsValid() {
		p.GatewayIPAddr, p.HopCount = r.Relay.AsSlice(), 1
	}
	r.set(p, 53, byte(t))
	r.set(p, 57, 5, 192) // 1472
	if len(r.ClientID) > 0 {
		r.set(p, 61, r.ClientID...)
	}
	if len(r.RelayInfo) > 0 {
		r.set(p, 82, r.RelayInfo...)
	}
	return p
}

func (r *ROM) set(p *dhcpv4.DHCPv4, code uint8, b ...byte) { p.Options[code] = b }

// identify adds what makes the packet a boot.
func (r *ROM) identify(p *dhcpv4.DHCPv4) {
	if r.Kind == OS {
		r.set(p, 60, []byte("udhcp 1.35.0")...)
		r.set(p, 55, 1, 3, 6, 12, 15, 28, 42)
		return
	}
	class := "PXEClient"
	if r.Kind == UEFIHTTP {
		class = "HTTPClient"
	}
	r.set(p, 60, fmt.Appendf(nil, "%s:Arch:%05d:UNDI:003001", class, r.arch())...)
	r.set(p, 55, 1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66, 67, 97, 128, 129, 130, 131, 132, 133, 134, 135)
	r.set(p, 94, 1, 3, 1)
	if !r.NoArch {
		arch := binary.BigEndian.AppendUint16(nil, r.arch())
		if r.ArchList {
			arch = append([]byte{0xab, 0xcd}, arch...)
		}
		r.set(p, 93, arch...)
	}
	switch {
	case r.NoUUID:
	case r.BrokenUUID:
		r.set(p, 97, r.UUID[:]...)
	default:
		r.set(p, 97, append([]byte{0}, r.UUID[:]...)...)
	}
	if r.Kind == IPXE {
		r.set(p, 77, []byte("iPXE")...)
		// The features of Debian's build: PXE, NBI, iSCSI, AoE, HTTP, HTTPS, TFTP, DNS, BIOS images, ELF, FTP, menu.
		features := []byte{0x21, 1, 1, 0x12, 1, 1, 0x17, 1, 1, 0x15, 1, 1, 0x18, 1, 1}
		if !r.NoHTTP {
			features = append(features, 0x13, 1, 1, 0x14, 1, 1)
		}
		r.set(p, 175, append([]byte{0xb1, 5, 1, 0x1a, 0xf4, 0x10, 0, 0xeb, 3, 1, 0, 0}, features...)...)
	}
}

// Discover begins an exchange.
func (r *ROM) Discover() *dhcpv4.DHCPv4 {
	p := r.packet(dhcpv4.MessageTypeDiscover)
	r.identify(p)
	if r.Want.IsValid() {
		r.set(p, 50, r.Want.AsSlice()...)
	}
	return p
}

// Request takes an offer.
func (r *ROM) Request(offer *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	p := r.packet(dhcpv4.MessageTypeRequest)
	p.TransactionID = offer.TransactionID
	if !r.Forgetful {
		r.identify(p)
	}
	r.set(p, 50, offer.YourIPAddr.To4()...)
	r.set(p, 54, offer.ServerIdentifier().To4()...)
	return p
}

// Reboot asks for the address that it had, without an offer (INIT-REBOOT).
func (r *ROM) Reboot(ip netip.Addr) *dhcpv4.DHCPv4 {
	p := r.packet(dhcpv4.MessageTypeRequest)
	r.identify(p)
	r.set(p, 50, ip.AsSlice()...)
	return p
}

// Renew extends the lease of ip.
func (r *ROM) Renew(ip netip.Addr) *dhcpv4.DHCPv4 {
	p := r.packet(dhcpv4.MessageTypeRequest)
	r.identify(p)
	p.ClientIPAddr = ip.AsSlice()
	return p
}

// Decline says that somebody else is on the address of ack.
func (r *ROM) Decline(ack *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	p := r.packet(dhcpv4.MessageTypeDecline)
	r.set(p, 50, ack.YourIPAddr.To4()...)
	r.set(p, 54, ack.ServerIdentifier().To4()...)
	return p
}

// Release gives ip back.
func (r *ROM) Release(ip, server netip.Addr) *dhcpv4.DHCPv4 {
	p := r.packet(dhcpv4.MessageTypeRelease)
	p.ClientIPAddr = ip.AsSlice()
	r.set(p, 54, server.AsSlice()...)
	return p
}

// AskProxy is the request to port 4011 of a machine that has an address.
func (r *ROM) AskProxy(ip netip.Addr) *dhcpv4.DHCPv4 {
	p := r.packet(dhcpv4.MessageTypeRequest)
	r.identify(p)
	p.ClientIPAddr = ip.AsSlice()
	return p
}
