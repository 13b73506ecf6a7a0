package installer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"

	"ingot/internal/slogx"
)

// VendorClass is DHCP option 60 (RFC 2132 9.13) of ingot's installer, by which
// the server tells it from the firmware and the loader of the same machine.
const VendorClass = "ingot-installer"

// linkWait bounds the wait for a NIC to appear and for its link; switches that
// run spanning tree without PortFast take half a minute to forward.
const linkWait = 60 * time.Second

// BringUp configures the NIC with the MAC by DHCP and keeps its lease until
// ctx ends. It returns the address.
func BringUp(ctx context.Context, mac net.HardwareAddr, log *slog.Logger) (net.IP, error) {
	link, err := waitLink(ctx, mac)
	if err != nil {
		return nil, err
	}
	log = slogx.Or(log).With("interface", link.Attrs().Name)
	client, err := nclient4.New(link.Attrs().Name, nclient4.WithTimeout(2*time.Second), nclient4.WithRetry(30))
	if err != nil {
		return nil, fmt.Errorf("dhcp on %q: %w", link.Attrs().Name, err)
	}
	lease, err := client.Request(ctx, dhcpv4.WithOption(dhcpv4.OptClassIdentifier(VendorClass)),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionInterfaceMTU))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("dhcp on %q (%s): %w", link.Attrs().Name, mac, err), client.Close())
	}
	if err := apply(link, lease.ACK); err != nil {
		return nil, errors.Join(err, client.Close())
	}
	go renew(ctx, client, lease, log)
	return lease.ACK.YourIPAddr, nil
}

// waitLink finds the NIC by its MAC (its name may differ from boot to boot),
// sets it up and waits for its link.
func waitLink(ctx context.Context, mac net.HardwareAddr) (netlink.Link, error) {
	deadline := time.Now().Add(linkWait)
	for {
		link, err := findLink(mac)
		if err != nil {
			return nil, err
		}
		if link != nil {
			if err := netlink.LinkSetUp(link); err != nil {
				return nil, fmt.Errorf("set %q up: %w", link.Attrs().Name, err)
			}
			carrier, err := os.ReadFile("/sys/class/net/" + link.Attrs().Name + "/carrier")
			if err == nil && strings.TrimSpace(string(carrier)) == "1" {
				return link, nil
			}
		}
		if time.Now().After(deadline) {
			if link == nil {
				return nil, fmt.Errorf("no network interface has the MAC %s that this machine booted from; present: %s (hint: its driver may be missing, see installer: modules: in ingot.yaml)", mac, present())
			}
			return nil, fmt.Errorf("interface %q (%s) has no link after %s: check the cable and the switch port", link.Attrs().Name, mac, linkWait)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func findLink(mac net.HardwareAddr) (netlink.Link, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	for _, l := range links {
		if bytes.Equal(l.Attrs().HardwareAddr, mac) {
			return l, nil
		}
	}
	return nil, nil
}

func present() string {
	links, err := netlink.LinkList()
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, l := range links {
		if len(l.Attrs().HardwareAddr) > 0 {
			out = append(out, l.Attrs().Name+" "+l.Attrs().HardwareAddr.String())
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}

// apply sets the address, the default route and the MTU that ack gives.
func apply(link netlink.Link, ack *dhcpv4.DHCPv4) error {
	name := link.Attrs().Name
	mask := ack.SubnetMask()
	if mask == nil {
		mask = ack.YourIPAddr.DefaultMask()
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: ack.YourIPAddr, Mask: mask}}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("set address %s on %q: %w", addr.IPNet, name, err)
	}
	if mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options); err == nil && mtu >= 576 {
		if err := netlink.LinkSetMTU(link, int(mtu)); err != nil {
			return fmt.Errorf("set MTU %d on %q: %w", mtu, name, err)
		}
	}
	if routers := ack.Router(); len(routers) > 0 {
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: routers[0]}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("set default route by %s on %q: %w", routers[0], name, err)
		}
	}
	return nil
}

// renew asks for the lease again at half its time (RFC 2131 4.4.5, T1).
func renew(ctx context.Context, client *nclient4.Client, lease *nclient4.Lease, log *slog.Logger) {
	defer client.Close()
	for {
		wait := max(lease.ACK.IPAddressLeaseTime(10*time.Minute)/2, 5*time.Second)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		next, err := client.Renew(ctx, lease, dhcpv4.WithOption(dhcpv4.OptClassIdentifier(VendorClass)))
		if err != nil {
			log.Warn("renew the lease", slogx.Err, err)
			continue
		}
		lease = next
	}
}
