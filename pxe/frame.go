package pxe

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// Ethernet types.
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
)

// A Datagram is an IPv4 UDP datagram with the Ethernet addresses around it.
type Datagram struct {
	SrcMAC, DstMAC net.HardwareAddr
	Src, Dst       netip.AddrPort
	Payload        []byte
}

// Frame builds the Ethernet frame of d: RFC 894, 791 and 768, both checksums filled in.
func (d *Datagram) Frame() []byte {
	udpLen := 8 + len(d.Payload)
	b := make([]byte, 0, 14+20+udpLen)
	b = append(append(b, d.DstMAC...), d.SrcMAC...)
	b = binary.BigEndian.AppendUint16(b, etherIPv4)

	ip := len(b)
	b = append(b, 0x45, 0x10) // version 4, 20 bytes; low delay
	b = binary.BigEndian.AppendUint16(b, uint16(20+udpLen))
	b = append(b, 0, 0, 0x40, 0, 64, 17, 0, 0) // id 0, don't fragment, TTL, UDP, checksum
	b = append(append(b, ip4(d.Src.Addr())...), ip4(d.Dst.Addr())...)
	binary.BigEndian.PutUint16(b[ip+10:], checksum(0, b[ip:]))

	udp := len(b)
	b = binary.BigEndian.AppendUint16(b, d.Src.Port())
	b = binary.BigEndian.AppendUint16(b, d.Dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(udpLen))
	b = append(b, 0, 0)
	b = append(b, d.Payload...)
	sum := checksum(17+uint32(udpLen)+sum16(b[ip+12:ip+20]), b[udp:])
	if sum == 0 {
		sum = 0xffff // RFC 768: zero means "no checksum"
	}
	binary.BigEndian.PutUint16(b[udp+6:], sum)
	return b
}

// ParseFrame reads an Ethernet frame. It does not check the UDP checksum: a packet of this host or of a virtual machine on
// it comes without one, the "hardware" would have added it. Payload points into b.
func ParseFrame(b []byte) (Datagram, bool) {
	if len(b) < 14+20+8 || binary.BigEndian.Uint16(b[12:]) != etherIPv4 {
		return Datagram{}, false
	}
	ip := b[14:]
	hlen, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	fragment := binary.BigEndian.Uint16(ip[6:])&0x3fff != 0
	if ip[0]>>4 != 4 || hlen < 20 || ip[9] != 17 || fragment || total > len(ip) || total < hlen+8 {
		return Datagram{}, false
	}
	udp := ip[hlen:total]
	n := int(binary.BigEndian.Uint16(udp[4:]))
	if n < 8 || n > len(udp) {
		return Datagram{}, false
	}
	return Datagram{
		DstMAC: net.HardwareAddr(b[:6]), SrcMAC: net.HardwareAddr(b[6:12]),
		Src:     netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:16])), binary.BigEndian.Uint16(udp)),
		Dst:     netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[16:20])), binary.BigEndian.Uint16(udp[2:])),
		Payload: udp[8:n],
	}, true
}

func sum16(b []byte) (s uint32) {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

// checksum is RFC 1071.
func checksum(start uint32, b []byte) uint16 {
	s := start + sum16(b)
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// arpProbe asks who has ip without saying who asks (RFC 5227 2.1.1: sender address 0.0.0.0), so that no cache learns it.
func arpProbe(src net.HardwareAddr, ip netip.Addr) []byte {
	b := make([]byte, 0, 42)
	b = append(append(b, broadcastMAC()...), src...)
	b = binary.BigEndian.AppendUint16(b, etherARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, request
	b = append(append(b, src...), 0, 0, 0, 0)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, ip.AsSlice()...)
}

// arpSender reads who an ARP packet is from: a reply, and a request too, prove that its sender uses the address.
func arpSender(b []byte) (net.HardwareAddr, netip.Addr, bool) {
	if len(b) < 42 || binary.BigEndian.Uint16(b[12:]) != etherARP || [6]byte(b[14:20]) != [6]byte{0, 1, 8, 0, 6, 4} {
		return nil, netip.Addr{}, false
	}
	return net.HardwareAddr(b[22:28]), netip.AddrFrom4([4]byte(b[28:32])), true
}

func broadcastMAC() net.HardwareAddr { return net.HardwareAddr{255, 255, 255, 255, 255, 255} }
