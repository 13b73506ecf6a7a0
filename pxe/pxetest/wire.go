package pxetest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"ingot/pxe"
)

// A Wire sends a ROM's packets over a real interface, as raw frames: the ROM has no address. It needs CAP_NET_RAW.
type Wire struct {
	raw *pxe.Raw
}

// OpenWire opens an interface. Several ROMs may use one Wire, one after the other.
func OpenWire(iface string) (*Wire, error) {
	ifi, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, err
	}
	raw, err := pxe.OpenRaw(ifi, pxe.UDPTo(68))
	if err != nil {
		return nil, err
	}
	return &Wire{raw: raw}, errors.Join(raw.Promiscuous()) // for answers to the MACs that we invent
}

// Close closes the interface.
func (w *Wire) Close() error { return w.raw.Close() }

// Send broadcasts p.
func (w *Wire) Send(p *dhcpv4.DHCPv4) error {
	d := pxe.Datagram{SrcMAC: p.ClientHWAddr, DstMAC: net.HardwareAddr{255, 255, 255, 255, 255, 255},
		Src: netip.MustParseAddrPort("0.0.0.0:68"), Dst: netip.MustParseAddrPort("255.255.255.255:67"), Payload: p.ToBytes()}
	return w.raw.Send(d.Frame())
}

// An Answer is a reply and the frame that it came in.
type Answer struct {
	*dhcpv4.DHCPv4
	Frame pxe.Datagram
}

// ErrNoAnswer: nobody answered in time.
var ErrNoAnswer = errors.New("no answer")

// Ask sends p and waits for the first reply to it that accept (nil: any) takes.
func (w *Wire) Ask(ctx context.Context, p *dhcpv4.DHCPv4, wait time.Duration, accept func(Answer) bool) (Answer, error) {
	deadline := time.Now().Add(wait)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	w.raw.SetDeadline(deadline)
	if err := w.Send(p); err != nil {
		return Answer{}, err
	}
	buf := make([]byte, 1<<16)
	for {
		n, err := w.raw.Recv(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return Answer{}, fmt.Errorf("%w to %s of %s", ErrNoAnswer, p.MessageType(), p.ClientHWAddr)
		}
		if err != nil {
			return Answer{}, err
		}
		d, ok := pxe.ParseFrame(append([]byte(nil), buf[:n]...))
		if !ok {
			continue
		}
		got, err := dhcpv4.FromBytes(d.Payload)
		if err != nil || got.OpCode != dhcpv4.OpcodeBootReply || got.TransactionID != p.TransactionID {
			continue
		}
		if a := (Answer{got, d}); accept == nil || accept(a) {
			return a, nil
		}
	}
}

// A Boot is what an exchange led to.
type Boot struct {
	Offer, Ack Answer
	IP         netip.Addr
	Next       netip.Addr
	File       string // what the machine would fetch
	Took       time.Duration
}

// DORA is DISCOVER, OFFER, REQUEST, ACK, each asked up to three times. A NAK is an error.
func (w *Wire) DORA(ctx context.Context, r *ROM) (b Boot, err error) {
	start := time.Now()
	b.Offer, err = w.insist(ctx, r.Discover(), func(a Answer) bool { return a.MessageType() == dhcpv4.MessageTypeOffer })
	if err != nil {
		return b, err
	}
	b.Ack, err = w.insist(ctx, r.Request(b.Offer.DHCPv4), nil)
	if err != nil {
		return b, err
	}
	if b.Ack.MessageType() != dhcpv4.MessageTypeAck {
		return b, fmt.Errorf("%s was answered by %s: %s", r.MAC, b.Ack.MessageType(), b.Ack.Message())
	}
	b.IP, _ = netip.AddrFromSlice(b.Ack.YourIPAddr.To4())
	b.Next, _ = netip.AddrFromSlice(b.Ack.ServerIPAddr.To4())
	b.File = strings.TrimRight(string(b.Ack.Options[67]), "\x00")
	if b.File == "" {
		b.File = b.Ack.BootFileName
	}
	b.Took = time.Since(start)
	return b, nil
}

func (w *Wire) insist(ctx context.Context, p *dhcpv4.DHCPv4, accept func(Answer) bool) (a Answer, err error) {
	for _, wait := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
		if a, err = w.Ask(ctx, p, wait, accept); err == nil || ctx.Err() != nil {
			break
		}
	}
	return a, err
}

// TFTP opcodes (RFC 1350, 2347).
const (
	opRRQ, opDATA, opACK, opERROR, opOACK = 1, 3, 4, 5, 6
)

// ErrTFTP is the server's error packet.
var ErrTFTP = errors.New("tftp error")

// A Fetched is a file that came by TFTP.
type Fetched struct {
	Data    []byte
	Size    int // what tsize had said
	BlkSize int // what was agreed on
}

// Fetch gets a file as firmware does: asks for its size alone, aborts, and asks again with blksize (RFC 2348).
func Fetch(ctx context.Context, server netip.Addr, name string, blksize int) (f Fetched, err error) {
	f.Size, err = sizeOf(ctx, server, name)
	if err != nil {
		return f, err
	}
	c, err := dial(ctx)
	if err != nil {
		return f, err
	}
	defer c.Close()
	err = c.get(netip.AddrPortFrom(server, 69), rrq(name, "blksize", fmt.Sprint(blksize), "tsize", "0"), &f)
	return f, err
}

func sizeOf(ctx context.Context, server netip.Addr, name string) (int, error) {
	c, err := dial(ctx)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	p, from, err := c.ask(netip.AddrPortFrom(server, 69), rrq(name, "tsize", "0"))
	if err != nil {
		return 0, err
	}
	abort := append([]byte{0, opERROR, 0, 8}, "TFTP Aborted\x00"...)
	if _, err := c.WriteToUDPAddrPort(abort, from); err != nil {
		return 0, err
	}
	if p[1] != opOACK {
		return 0, fmt.Errorf("asked %s for the size of %q: no option in the answer", server, name)
	}
	var n int
	_, err = fmt.Sscan(options(p[2:])["tsize"], &n)
	return n, err
}

type tftpConn struct{ *net.UDPConn }

func dial(ctx context.Context) (*tftpConn, error) {
	c, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return nil, err
	}
	if d, ok := ctx.Deadline(); ok {
		err = c.SetDeadline(d)
	} else {
		err = c.SetDeadline(time.Now().Add(30 * time.Second))
	}
	return &tftpConn{c}, err
}

// ask sends a packet and takes the answer, from whatever port it comes.
func (c *tftpConn) ask(to netip.AddrPort, p []byte) ([]byte, netip.AddrPort, error) {
	if _, err := c.WriteToUDPAddrPort(p, to); err != nil {
		return nil, to, err
	}
	buf := make([]byte, 1<<16)
	n, from, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		return nil, to, err
	}
	if n < 4 {
		return nil, to, fmt.Errorf("%w: packet of %d bytes", ErrTFTP, n)
	}
	if buf[1] == opERROR {
		return nil, to, fmt.Errorf("%w %d: %s", ErrTFTP, buf[3], strings.TrimRight(string(buf[4:n]), "\x00"))
	}
	return buf[:n], from, nil
}

func (c *tftpConn) get(to netip.AddrPort, first []byte, f *Fetched) error {
	f.BlkSize = 512
	p, from, err := c.ask(to, first)
	for err == nil {
		block := uint16(0)
		switch p[1] {
		case opOACK:
			fmt.Sscan(options(p[2:])["blksize"], &f.BlkSize)
		case opDATA:
			block = binary.BigEndian.Uint16(p[2:])
			f.Data = append(f.Data, p[4:]...)
			if len(p)-4 < f.BlkSize {
				_, err = c.WriteToUDPAddrPort(ack(block), from)
				return err
			}
		default:
			return fmt.Errorf("%w: opcode %d", ErrTFTP, p[1])
		}
		p, from, err = c.ask(from, ack(block))
	}
	return err
}

func ack(block uint16) []byte { return binary.BigEndian.AppendUint16([]byte{0, opACK}, block) }

func rrq(name string, opts ...string) []byte {
	p := append([]byte{0, opRRQ}, name...)
	p = append(p, "\x00octet\x00"...)
	for _, o := range opts {
		p = append(append(p, o...), 0)
	}
	return p
}

func options(b []byte) map[string]string {
	words := strings.Split(string(b), "\x00")
	m := map[string]string{}
	for i := 0; i+1 < len(words); i += 2 {
		m[strings.ToLower(words[i])] = words[i+1]
	}
	return m
}
