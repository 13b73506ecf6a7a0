package pxe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A BusyError says that a port is taken, and by whom as far as the kernel tells.
type BusyError struct {
	Port    int
	Iface   string // "" for all
	Holders []string
	Err     error
}

func (e *BusyError) Error() string {
	s := fmt.Sprintf("UDP port %d", e.Port)
	if e.Iface != "" {
		s += fmt.Sprintf(" on interface %q", e.Iface)
	}
	if len(e.Holders) == 0 {
		return s + " is taken by a process that cannot be named (of another user or container)"
	}
	return s + " is taken by " + strings.Join(e.Holders, " and ")
}

func (e *BusyError) Unwrap() error { return e.Err }

// Hint is the way out.
func (e *BusyError) Hint() string {
	all := strings.Join(e.Holders, " ")
	switch {
	case strings.Contains(all, "dnsmasq") && e.Port == 69:
		return "stop it (systemctl stop dnsmasq) or take enable-tftp out of its configuration"
	case strings.Contains(all, "dnsmasq"):
		return "stop it (systemctl stop dnsmasq), or keep it off this interface with except-interface= and bind-dynamic; libvirt's: virsh net-destroy default"
	case strings.Contains(all, "ingot"):
		return "another ingot serve runs already"
	case e.Port == 69:
		return "stop it (systemctl stop tftpd-hpa, or atftpd, or inetd)"
	}
	return "stop it (systemctl stop isc-dhcp-server, or kea-dhcp4-server), or give ingot an interface of its own"
}

// listenUDP binds a UDP port, on one interface when iface is set. It never sets SO_REUSEADDR or SO_REUSEPORT: a second
// copy must fail, not share. SO_BINDTODEVICE lets a server on another interface (libvirt's dnsmasq) live beside ours.
func listenUDP(ctx context.Context, addr netip.AddrPort, iface string) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var inner error
		err := c.Control(func(fd uintptr) {
			inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
			if inner == nil && iface != "" {
				inner = unix.BindToDevice(int(fd), iface)
			}
		})
		return errors.Join(err, inner)
	}}
	pc, err := lc.ListenPacket(ctx, "udp4", addr.String())
	switch {
	case err == nil:
		return pc.(*net.UDPConn), nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, &BusyError{Port: int(addr.Port()), Iface: iface, Holders: holders(int(addr.Port())), Err: err}
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return nil, fmt.Errorf("bind UDP port %d: %w (root, or CAP_NET_BIND_SERVICE and CAP_NET_RAW, is needed)", addr.Port(), err)
	}
	return nil, fmt.Errorf("bind UDP port %d: %w", addr.Port(), err)
}

// holders names the processes of this network namespace that have a UDP port: /proc/net/udp (proc(5)) gives the socket's
// inode, /proc/PID/fd who has it. thread-self, as the main thread may be in another namespace.
func holders(port int) []string {
	inodes := map[string]bool{}
	for _, table := range []string{"/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"} {
		for _, ino := range udpInodes(table, port) {
			inodes["socket:["+ino+"]"] = true
		}
	}
	if len(inodes) == 0 {
		return nil
	}
	var out []string
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err != nil || !inodes[target] {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		comm, _ := os.ReadFile("/proc/" + pid + "/comm")
		who := fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(comm)), pid)
		if !slices.Contains(out, who) {
			out = append(out, who)
		}
	}
	return out
}

func udpInodes(table string, port int) (out []string) {
	f, err := os.Open(table)
	if err != nil {
		return nil
	}
	defer f.Close()
	want := fmt.Sprintf(":%04X", port)
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if col := strings.Fields(sc.Text()); len(col) > 9 && strings.HasSuffix(col[1], want) {
			out = append(out, col[9])
		}
	}
	return out
}
