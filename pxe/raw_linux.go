package pxe

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Raw sends and receives Ethernet frames on one interface (AF_PACKET, packet(7)). It needs CAP_NET_RAW.
type Raw struct {
	Iface *net.Interface
	file  *os.File
}

// OpenRaw opens ifi for frames that filter lets through; a nil filter receives nothing. Frames that this host sends are
// not received.
func OpenRaw(ifi *net.Interface, filter []bpf.Instruction) (*Raw, error) {
	// Protocol 0 receives nothing: no frame slips in before the filter is set.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open raw socket on %q: %w (root or CAP_NET_RAW is needed)", ifi.Name, err)
	}
	r := &Raw{Iface: ifi, file: os.NewFile(uintptr(fd), "packet:"+ifi.Name)}
	if err := r.bind(fd, filter); err != nil {
		r.Close()
		return nil, fmt.Errorf("open raw socket on %q: %w", ifi.Name, err)
	}
	return r, nil
}

func (r *Raw) bind(fd int, filter []bpf.Instruction) error {
	proto := uint16(0)
	if filter != nil {
		if err := attach(fd, filter); err != nil {
			return err
		}
		proto = unix.ETH_P_ALL
	}
	return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(proto), Ifindex: r.Iface.Index})
}

func attach(fd int, filter []bpf.Instruction) error {
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return err
	}
	prog := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		prog[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
}

// UDPTo is the filter for unfragmented IPv4 UDP to port.
func UDPTo(port uint16) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: etherIPv4, SkipTrue: 8},
		bpf.LoadAbsolute{Off: 23, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 17, SkipTrue: 6},
		bpf.LoadAbsolute{Off: 20, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: 4},
		bpf.LoadMemShift{Off: 14},
		bpf.LoadIndirect{Off: 16, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(port), SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	}
}

func arpOnly() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: etherARP, SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	}
}

// Promiscuous lets frames to other MACs in, until Close.
func (r *Raw) Promiscuous() error {
	mreq := unix.PacketMreq{Ifindex: int32(r.Iface.Index), Type: unix.PACKET_MR_PROMISC}
	return r.control(func(fd int) error {
		return unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &mreq)
	})
}

func (r *Raw) control(fn func(fd int) error) error {
	c, err := r.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := c.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// Send sends a whole frame.
func (r *Raw) Send(frame []byte) error {
	c, err := r.file.SyscallConn()
	if err != nil {
		return err
	}
	to := &unix.SockaddrLinklayer{Ifindex: r.Iface.Index, Protocol: htons(binary.BigEndian.Uint16(frame[12:]))}
	var inner error
	err = c.Write(func(fd uintptr) bool {
		inner = unix.Sendto(int(fd), frame, 0, to)
		return inner != syscall.EAGAIN
	})
	if err == nil {
		err = inner
	}
	if err != nil {
		return fmt.Errorf("send frame on %q: %w", r.Iface.Name, err)
	}
	return nil
}

// Recv receives one frame that came in by the wire.
func (r *Raw) Recv(buf []byte) (int, error) {
	c, err := r.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	for {
		var n int
		var from unix.Sockaddr
		var inner error
		err := c.Read(func(fd uintptr) bool {
			n, from, inner = unix.Recvfrom(int(fd), buf, 0)
			return inner != syscall.EAGAIN
		})
		if err == nil {
			err = inner
		}
		if err != nil {
			return 0, fmt.Errorf("receive on %q: %w", r.Iface.Name, err)
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype != unix.PACKET_OUTGOING {
			return n, nil
		}
	}
}

// SetDeadline bounds Recv.
func (r *Raw) SetDeadline(t time.Time) error { return r.file.SetReadDeadline(t) }

// Close ends a waiting Recv too.
func (r *Raw) Close() error { return r.file.Close() }

func htons(n uint16) uint16 { return n<<8 | n>>8 }
