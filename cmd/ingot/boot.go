package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"ingot/installer"
	"ingot/internal/slogx"
	"ingot/inventory"
	"ingot/pxe"
	"ingot/site"
	"ingot/templates"
	"ingot/web"
)

// boots decides what machines get: it joins the site, the inventory and the
// templates for pxe and web. Nothing is prepared: profiles are rendered when
// a machine asks.
type boots struct {
	// config
	w   *world
	log *slog.Logger

	// state
	current atomic.Pointer[site.Site] // the last valid set
	events  chan inventory.Event
	logins  *logins
}

func newBoots(w *world, log *slog.Logger) *boots {
	b := &boots{w: w, log: log, events: make(chan inventory.Event, 4096)}
	b.current.Store(w.Site)
	b.logins = newLogins(w.state, b.addressOf, log)
	return b
}

// site returns the last valid set of what people wrote.
func (b *boots) site() *site.Site { return b.current.Load() }

// reload reads the site again; a set with problems changes nothing. What is
// bound to sockets stays as it was when the server started.
func (b *boots) reload() error {
	s, err := site.Load(b.site().Dir)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(s.Server, b.w.Server) || !reflect.DeepEqual(s.Networks, b.w.Networks) {
		b.log.Error("server: or networks: of ingot.yaml changed: restart `ingot serve` to apply that")
		s.Server, s.Networks = b.w.Server, b.w.Networks
	}
	b.current.Store(s)
	return nil
}

func (b *boots) addressOf(ctx context.Context, node string) (string, error) {
	s := b.site()
	n := s.Node(node)
	if n == nil {
		return "", fmt.Errorf("node %q: %w", node, inventory.ErrNotFound)
	}
	return address(ctx, b.w.state, n)
}

// Decide implements pxe.Decider.
func (b *boots) Decide(_ context.Context, req pxe.Request) (pxe.Answer, error) {
	var uuid string
	if req.UUID != nil {
		uuid = req.UUID.String()
	}
	s := b.site()
	ans := pxe.Answer{ScriptURL: scriptURL(netip.AddrPortFrom(req.Server, uint16(s.Server.HTTP)), req.MAC)}
	if n, _ := s.Match([]string{req.MAC.String()}, "", uuid); n != nil {
		ans.Known, ans.Name, ans.HostName = true, n.Name, n.Name
	}
	return ans, nil
}

// scriptURL is where iPXE fetches its script. iPXE expands the settings when
// it uses the name (usr/autoboot.c), so that serial and UUID come along.
func scriptURL(server netip.AddrPort, mac net.HardwareAddr) string {
	return fmt.Sprintf("http://%s/boot/%s.ipxe?uuid=${uuid}&serial=${serial:uristring}", server, mac)
}

// autoexec is what an iPXE of 2025 and later asks for before anything else (quirk 4.26).
func (b *boots) autoexec(_ context.Context, r pxe.TFTPRequest) ([]byte, error) {
	return fmt.Appendf(nil, "#!ipxe\ndhcp\nchain http://%s/boot/${netX/mac:hexhyp}.ipxe?uuid=${uuid}&serial=${serial:uristring}\n",
		netip.AddrPortFrom(r.Server, uint16(b.site().Server.HTTP))), nil
}

// ByMAC and ByIP implement pxe.Reservations: the static addresses of NICs.
func (b *boots) ByMAC(mac net.HardwareAddr) []pxe.Reservation {
	n, nic := b.site().NodeByMAC(mac.String())
	if n == nil {
		return nil
	}
	ip := nic.IP()
	if bond := n.InBond(nic.Name); bond != nil {
		ip = bond.IP() // before the bond exists its address is reached by any of its cards
	}
	if !ip.Address.IsValid() {
		return nil
	}
	return []pxe.Reservation{{MAC: mac, IP: ip.Address.Addr, HostName: n.Name}}
}

func (b *boots) ByIP(ip netip.Addr) (pxe.Reservation, bool) {
	for _, n := range b.site().Nodes {
		for _, nic := range n.NICs {
			if a := nic.IP().Address; a.IsValid() && a.Addr == ip {
				mac, err := net.ParseMAC(string(nic.MAC))
				return pxe.Reservation{MAC: mac, IP: ip, HostName: n.Name}, err == nil
			}
		}
	}
	return pxe.Reservation{}, false
}

// Event implements pxe.Events. It must not wait for a disk: events are
// gathered and written by writeEvents.
func (b *boots) Event(_ context.Context, e pxe.Event) {
	x := inventory.Event{Time: e.Time, Node: e.Node, Stage: e.Stage, Detail: e.Detail}
	if e.MAC != nil {
		x.MAC = e.MAC.String()
	} else if e.IP.IsValid() { // TFTP knows no MAC
		x.MAC, x.Node = b.macOf(e.IP)
	}
	if e.IP.IsValid() && !strings.Contains(x.Detail, e.IP.String()) {
		x.Detail = strings.TrimSpace(e.IP.String() + " " + x.Detail)
	}
	select {
	case b.events <- x:
	default:
		b.log.Error("event lost: the database does not keep up", slogx.Stage, e.Stage, slogx.MAC, x.MAC)
	}
}

func (b *boots) macOf(ip netip.Addr) (mac, node string) {
	leases, err := b.w.state.Leases(context.Background())
	if err != nil {
		return "", ""
	}
	for _, l := range leases {
		if l.IP == ip {
			if n, _ := b.site().NodeByMAC(l.MAC); n != nil {
				node = n.Name
			}
			return l.MAC, node
		}
	}
	return "", ""
}

// writeEvents writes gathered events, many in one transaction, until ctx ends.
func (b *boots) writeEvents(ctx context.Context) error {
	const most = 500
	for {
		var batch []inventory.Event
		select {
		case e := <-b.events:
			batch = append(batch, e)
		case <-ctx.Done():
			if len(b.events) == 0 {
				return nil
			}
		}
		time.Sleep(20 * time.Millisecond)
		for len(b.events) > 0 && len(batch) < most {
			batch = append(batch, <-b.events)
		}
		if err := b.w.state.AddEvents(context.WithoutCancel(ctx), batch); err != nil {
			b.log.Error("events lost", "count", len(batch), slogx.Err, err)
		}
	}
}

func (b *boots) event(ctx context.Context, e inventory.Event) {
	if err := b.w.state.AddEvent(context.WithoutCancel(ctx), e); err != nil {
		b.log.Error("event lost", slogx.Stage, e.Stage, slogx.Err, err)
	}
}

// Script implements web.Boots: what a loader does next.
func (b *boots) Script(ctx context.Context, m web.Machine) (string, error) {
	s := b.site()
	n, how := s.Match([]string{m.MAC.String()}, literal(m.Serial), literal(m.UUID))
	seen := inventory.Machine{MAC: m.MAC.String(), UUID: literal(m.UUID), Serial: literal(m.Serial), IP: m.IP}
	if n != nil {
		seen.Node = n.Name
	}
	if err := b.w.state.SeeMachine(ctx, seen); err != nil {
		return "", err
	}
	if n == nil {
		b.event(ctx, inventory.Event{MAC: seen.MAC, Stage: "unknown", Detail: "recorded; told to boot its disk"})
		b.log.Warn("unknown machine; it boots its disk", slogx.MAC, m.MAC.String(), slogx.IP, m.IP, "serial", seen.Serial)
		return b.render(templates.Unknown, bootData{Machine: m})
	}
	if how != "mac" {
		b.log.Warn("the MAC is not in the node's file; matched otherwise", slogx.Node, n.Name, slogx.MAC, m.MAC.String(), "by", how)
	}
	in, err := b.w.state.Install(ctx, n.Name)
	if err != nil && !errors.Is(err, inventory.ErrNotFound) {
		return "", err
	}
	switch in.State {
	case inventory.Armed, inventory.Claimed, inventory.Writing:
		ip, err := b.ownAddress(ctx, n, m, how)
		if err != nil {
			b.event(ctx, inventory.Event{Node: n.Name, MAC: seen.MAC, Stage: "alarm", Detail: err.Error()})
			b.log.Error("boot script refused", slogx.Node, n.Name, slogx.Err, err)
			return b.render(templates.Local, bootData{Machine: m, Node: n})
		}
		if err := b.servable(s, n, in); err != nil { // an attempt is not spent on what cannot be served
			b.event(ctx, inventory.Event{Node: n.Name, MAC: seen.MAC, Stage: "refused", Detail: err.Error()})
			b.log.Error("no installation", slogx.Node, n.Name, slogx.Err, err)
			return b.render(templates.Failed, bootData{Machine: m, Node: n, Reason: err.Error()})
		}
		if in, err = b.w.state.BeginAttempt(ctx, n.Name, ip); err != nil {
			return "", err
		}
		if in.State != inventory.Failed {
			return b.install(ctx, s, n, m, in)
		}
	}
	b.logins.watch(n.Name)
	if in.State == inventory.Failed {
		b.event(ctx, inventory.Event{Node: n.Name, MAC: seen.MAC, Stage: "disk", Detail: "boots its disk; the last installation failed: " + in.Reason})
		return b.render(templates.Failed, bootData{Machine: m, Node: n, Reason: in.Reason})
	}
	b.event(ctx, inventory.Event{Node: n.Name, MAC: seen.MAC, Stage: "disk", Detail: "boots its disk"})
	return b.render(templates.Local, bootData{Machine: m, Node: n})
}

// ownAddress makes sure that a machine that is about to be given an attempt
// asks from the address that we leased to one of the node's own cards, and
// returns that address. Where another server gives the addresses nothing can
// be told, and it returns "".
func (b *boots) ownAddress(ctx context.Context, n *site.Node, m web.Machine, how string) (string, error) {
	if how != "mac" && len(n.NICs) > 0 {
		return "", fmt.Errorf("%s at %s was taken for the node by its %s, but its card is not in %s", m.MAC, m.IP, how, n.File())
	}
	s := b.site()
	ip, err := netip.ParseAddr(m.IP)
	if err != nil {
		return "", err
	}
	if !leasesOurs(s, ip) {
		return "", nil
	}
	leases, err := b.w.state.Leases(ctx)
	if err != nil {
		return "", err
	}
	for _, l := range leases {
		if l.MAC == m.MAC.String() && l.IP == ip && l.State == string(pxe.LeaseBound) {
			return m.IP, nil
		}
	}
	return "", fmt.Errorf("%s asked for the boot script of %s, but has no lease for it", ip, m.MAC)
}

// leasesOurs says whether a machine at ip must have its address from us: on
// networks where we give them, and everywhere else unless another server does.
func leasesOurs(s *site.Site, ip netip.Addr) bool {
	if !s.Server.DHCP {
		return false
	}
	if n := s.NetworkAt(ip); n != nil {
		return n.DHCP != "proxy" && n.DHCP != "off"
	}
	return !slices.ContainsFunc(s.Networks, func(n site.Network) bool { return n.DHCP == "proxy" || n.DHCP == "off" })
}

// servable says what would keep an installation from being served.
func (b *boots) servable(s *site.Site, n *site.Node, in inventory.Install) error {
	if _, err := resolveProfile(s, n); err != nil {
		return err
	}
	for _, f := range []string{"vmlinuz", "initrd"} {
		if _, err := os.Stat(b.w.private("netboot", in.Netboot, f)); err != nil {
			return fmt.Errorf("the installer is gone (arm the node again): %w", err)
		}
	}
	return nil
}

// literal drops what iPXE left unexpanded.
func literal(s string) string {
	if strings.Contains(s, "${") {
		return ""
	}
	return s
}

// install renders the script that starts the installer.
func (b *boots) install(ctx context.Context, s *site.Site, n *site.Node, m web.Machine, in inventory.Install) (string, error) {
	prof, err := resolveProfile(s, n)
	if err != nil {
		return "", err
	}
	args := append([]string{}, prof.Profile.Kernel.Args...)
	args = append(args, s.Installer.Args...)
	args = append(args, installer.Boot{Server: m.Server, Node: n.Name, Nonce: in.Nonce, MAC: m.MAC}.Args()...)
	base := fmt.Sprintf("%s/netboot/%s/", m.Server, in.Netboot)
	query := fmt.Sprintf("?node=%s&mac=%s", n.Name, m.MAC)
	b.event(ctx, inventory.Event{Node: n.Name, MAC: m.MAC.String(), Stage: "script", Detail: fmt.Sprintf("installs %s, attempt %d", in.Ref, in.Attempt)})
	return b.render(templates.Install, bootData{Machine: m, Node: n, Ref: in.Ref, Attempt: in.Attempt, Kernel: base + "vmlinuz" + query, Initrd: base + "initrd" + query, Args: args})
}

// Job implements web.Boots: the profile of a claimed installation.
func (b *boots) Job(ctx context.Context, in inventory.Install) (installer.Job, error) {
	s := b.site()
	n := s.Node(in.Node)
	if n == nil {
		return installer.Job{}, fmt.Errorf("node %q: %w", in.Node, inventory.ErrNotFound)
	}
	return renderJob(ctx, b.w, s, n, in)
}

// Installed implements web.Boots: generation 1 exists. A repeat of the same
// session changes nothing.
func (b *boots) Installed(ctx context.Context, in inventory.Install, end installer.Ending) error {
	const session = "install.session"
	if last, err := b.w.state.Fact(ctx, in.Node, session); err == nil && last == in.Token {
		return nil
	}
	for _, t := range end.Tasks {
		if err := b.w.state.SetFact(ctx, in.Node, "install."+t.Task, fmt.Sprintf("%.1f s", t.Seconds)); err != nil {
			return err
		}
	}
	if err := b.w.state.SetFact(ctx, in.Node, "classes", strings.Join(end.Classes, " ")); err != nil {
		return err
	}
	mode := "live"
	if n := b.site().Node(in.Node); n != nil {
		r, err := resolveProfile(b.site(), n)
		if err == nil && r.Profile.HostKeys == "image" {
			if err := b.w.state.DropHostKeys(ctx, in.Node); err != nil { // the image has brought its own
				return err
			}
		}
		if err == nil {
			mode = r.Profile.Update
		}
	}
	if err := errors.Join(b.w.state.SetFact(ctx, in.Node, factGiven, ""), b.w.state.SetFact(ctx, in.Node, factParts, "")); err != nil { // nothing of it is left on the disk
		return err
	}
	err := b.w.state.AddGeneration(ctx, inventory.Generation{Node: in.Node, Number: 1, Ref: in.Ref, Image: in.Image, Overlay: end.Overlay, Mode: mode, Kind: "install", By: in.By})
	if err != nil {
		return err
	}
	return b.w.state.SetFact(ctx, in.Node, session, in.Token)
}
