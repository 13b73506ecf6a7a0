package lab

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// makeBridge makes the rack's switch: no spanning tree, no delay before it forwards, no snooping, so that
// the first packet of a machine arrives.
func makeBridge(o Options) error {
	off := false
	attrs := netlink.NewLinkAttrs()
	attrs.Name = o.Bridge
	br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("make bridge %q: %w", o.Bridge, err)
	}
	// sysfs, since netlink has no field for them. Duplicate address detection would keep the link-local
	// address away for its first second.
	for file, value := range map[string]string{
		"/sys/class/net/" + o.Bridge + "/bridge/stp_state":       "0",
		"/sys/class/net/" + o.Bridge + "/bridge/forward_delay":   "0",
		"/proc/sys/net/ipv6/conf/" + o.Bridge + "/accept_dad":    "0",
		"/proc/sys/net/ipv6/conf/" + o.Bridge + "/dad_transmits": "0",
	} {
		if err := os.WriteFile(file, []byte(value), 0); err != nil && !os.IsNotExist(err) { // a kernel without IPv6
			return fmt.Errorf("set up bridge %q: %w", o.Bridge, err)
		}
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: o.Addr.Addr().AsSlice(), Mask: net.CIDRMask(o.Addr.Bits(), o.Addr.Addr().BitLen())}}
	if err := netlink.AddrAdd(br, addr); err != nil {
		return fmt.Errorf("give bridge %q the address %s: %w", o.Bridge, o.Addr, err)
	}
	if err := netlink.LinkSetUp(br); err != nil {
		return fmt.Errorf("set bridge %q up: %w", o.Bridge, err)
	}
	return nil
}

// makeTap makes a machine's port on the bridge.
func makeTap(bridge, name string) error {
	br, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find bridge %q: %w", bridge, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.MasterIndex = br.Attrs().Index
	tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
	if err := netlink.LinkAdd(tap); err != nil {
		return fmt.Errorf("make tap %q: %w", name, err)
	}
	return setLink(name, true)
}

// setLink sets a link up or down.
func setLink(name string, up bool) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %q: %w", name, err)
	}
	set := netlink.LinkSetDown
	if up {
		set = netlink.LinkSetUp
	}
	if err := set(link); err != nil {
		return fmt.Errorf("set link %q: %w", name, err)
	}
	return nil
}

// macOf makes a MAC address out of a machine's name, in QEMU's range.
func macOf(name string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // never fails
	sum := h.Sum32()
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", byte(sum>>16), byte(sum>>8), byte(sum))
}

// advertise sends router advertisements (RFC 4861 section 4.2) that say nothing: no router, no prefix, no
// DHCPv6. Debian's iPXE solicits routers and waits 16 seconds in "Configuring" when nobody answers; it
// does so in each of its stages. It returns when ctx ends.
func advertise(ctx context.Context, bridge string) error {
	link, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find bridge %q: %w", bridge, err)
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMPV6)
	if err != nil {
		return fmt.Errorf("advertise a router: %w", err)
	}
	defer unix.Close(fd)
	index := link.Attrs().Index
	for opt, value := range map[int]int{unix.IPV6_MULTICAST_HOPS: 255, unix.IPV6_MULTICAST_IF: index, unix.IPV6_MULTICAST_LOOP: 0} {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, opt, value); err != nil {
			return fmt.Errorf("advertise a router: %w", err)
		}
	}
	// Type 134, code 0, checksum (by the kernel), hop limit 64, no flags, lifetime 0, times unspecified.
	ra := []byte{134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	all := &unix.SockaddrInet6{Addr: [16]byte{0xff, 0x02, 15: 1}, ZoneId: uint32(index)}
	for tick := time.Tick(500 * time.Millisecond); ; {
		_ = unix.Sendto(fd, ra, 0, all) // without a machine that is on there is no address to send from
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		}
	}
}

// short returns a socket's address by way of an open directory: a path in sun_path has 107 bytes at most,
// which the directories of tests pass. The directory is to be closed when the socket is there.
func short(dir, name string) (addr string, open *os.File, err error) {
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, err
	}
	return filepath.Join("/proc/self/fd", fmt.Sprint(f.Fd()), name), f, nil
}

// deleteLink deletes a link; one that is gone is no error.
func deleteLink(name string) error {
	link, err := netlink.LinkByName(name)
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("delete link %q: %w", name, err)
	}
	return nil
}
