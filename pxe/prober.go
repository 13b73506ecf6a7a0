package pxe

import (
	"context"
	"net"
	"net/netip"
	"sync"
)

// A Prober asks by ARP whether an address is in use. It keeps one socket for each interface: opening and closing a packet
// socket waits for the kernel's RCU, 20 ms and on a busy machine a second. The zero value works; Close it.
type Prober struct {
	mu    sync.Mutex
	socks map[string]*arpSocket
}

type arpSocket struct {
	raw *Raw

	mu      sync.Mutex
	waiters map[netip.Addr][]chan net.HardwareAddr
}

// Probe asks the wire whether a machine other than mac uses ip, until ctx ends. It is PoolConfig's Probe. When it cannot ask
// it says no: an address that nobody could check is better than no boot.
func (p *Prober) Probe(ctx context.Context, iface string, ip netip.Addr, mac net.HardwareAddr) bool {
	s, err := p.socket(iface)
	if err != nil {
		return false
	}
	heard := s.wait(ip)
	defer s.leave(ip, heard)
	if s.raw.Send(arpProbe(s.raw.Iface.HardwareAddr, ip)) != nil {
		p.drop(iface, s) // the interface was made anew: so is the socket, next time
		return false
	}
	for {
		select {
		case who := <-heard:
			if macKey(who) != macKey(mac) {
				return true
			}
		case <-ctx.Done():
			return false
		}
	}
}

// Close ends the sockets and their readers.
func (p *Prober) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.socks {
		s.raw.Close()
	}
	p.socks = nil
	return nil
}

func (p *Prober) socket(iface string) (*arpSocket, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.socks[iface]; s != nil {
		return s, nil
	}
	ifi, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, err
	}
	raw, err := OpenRaw(ifi, arpOnly())
	if err != nil {
		return nil, err
	}
	s := &arpSocket{raw: raw, waiters: map[netip.Addr][]chan net.HardwareAddr{}}
	if p.socks == nil {
		p.socks = map[string]*arpSocket{}
	}
	p.socks[iface] = s
	go func() {
		s.read()
		p.drop(iface, s)
	}()
	return s, nil
}

func (p *Prober) drop(iface string, s *arpSocket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.raw.Close()
	if p.socks[iface] == s {
		delete(p.socks, iface)
	}
}

// read tells the waiters who uses which address; it ends with the socket.
func (s *arpSocket) read() {
	buf := make([]byte, 128)
	for {
		n, err := s.raw.Recv(buf)
		if err != nil {
			return
		}
		if who, ip, ok := arpSender(append([]byte(nil), buf[:n]...)); ok {
			s.tell(ip, who)
		}
	}
}

func (s *arpSocket) tell(ip netip.Addr, who net.HardwareAddr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.waiters[ip] {
		select {
		case c <- who:
		default:
		}
	}
}

func (s *arpSocket) wait(ip netip.Addr) chan net.HardwareAddr {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := make(chan net.HardwareAddr, 4)
	s.waiters[ip] = append(s.waiters[ip], c)
	return c
}

func (s *arpSocket) leave(ip netip.Addr, c chan net.HardwareAddr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.waiters[ip]
	for i := range all {
		if all[i] == c {
			s.waiters[ip] = append(all[:i:i], all[i+1:]...)
			break
		}
	}
	if len(s.waiters[ip]) == 0 {
		delete(s.waiters, ip)
	}
}
