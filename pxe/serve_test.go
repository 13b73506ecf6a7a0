package pxe_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"ingot/pxe"
	"ingot/pxe/pxetest"
)

const script = "http://10.77.0.1:8080/boot.ipxe"

func lan() pxe.Network {
	return pxe.Network{Name: "lan", Interface: "srv0", ServerIP: ip("10.77.0.1"), Prefix: netip.MustParsePrefix("10.77.0.0/24"),
		RangeFrom: ip("10.77.0.100"), RangeTo: ip("10.77.0.199"), Router: ip("10.77.0.1"), DNS: []netip.Addr{ip("10.77.0.1")}, Domain: "example.org"}
}

// site is a server under test with everything around it.
type site struct {
	dhcp   *pxe.DHCP
	store  *pxetest.Store
	events *pxetest.Events
}

func always(a pxe.Answer) pxetest.Decide {
	return func(context.Context, pxe.Request) (pxe.Answer, error) { return a, nil }
}

// log writes to the test, unless it is over.
func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func newSite(t *testing.T, edit func(*pxe.DHCP, *pxe.PoolConfig)) *site {
	t.Helper()
	s := &site{store: &pxetest.Store{}, events: &pxetest.Events{}}
	s.dhcp = &pxe.DHCP{Networks: []pxe.Network{lan()}, Decider: always(pxe.Answer{ScriptURL: script}), Events: s.events,
		LoaderURL: func(a netip.Addr) string { return "http://" + a.String() + ":8080/loader" }, Log: testLog(t)}
	cfg := pxe.PoolConfig{Store: s.store, Log: testLog(t)}
	if edit != nil {
		edit(s.dhcp, &cfg)
	}
	pool, err := pxe.OpenPool(t.Context(), cfg)
	check(t, err)
	if s.dhcp.Leases == nil {
		s.dhcp.Leases = pool
	}
	return s
}

// start serves until the test ends and fails it when serving fails.
func start(t *testing.T, serve func(context.Context) error, ready *func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	up, done := make(chan struct{}), make(chan error, 1)
	*ready = func() { close(up) }
	go func() { done <- serve(ctx) }()
	select {
	case <-up:
	case err := <-done:
		t.Fatalf("serve: %v", err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}

func wire(t *testing.T, iface string) *pxetest.Wire {
	t.Helper()
	w, err := pxetest.OpenWire(iface)
	check(t, err)
	t.Cleanup(func() { w.Close() })
	return w
}

func TestServeBootsEveryMood(t *testing.T) {
	if !inNetns(t) {
		return
	}
	veth(t, "srv0", "cli0", "10.77.0.1/24")
	s := newSite(t, nil)
	start(t, s.dhcp.Serve, &s.dhcp.Ready)
	w := wire(t, "cli0")

	for i, c := range []struct {
		name string
		kind pxetest.Kind
		mood func(*pxetest.ROM)
		file string
		via  string // "broadcast" or "frame"
	}{
		{"BIOS", pxetest.BIOS, nil, "undionly.kpxe", "broadcast"},
		{"UEFI", pxetest.UEFI, nil, "snponly.efi", "broadcast"},
		{"UEFI that says 9", pxetest.UEFI, func(r *pxetest.ROM) { r.Arch = 9 }, "snponly.efi", "broadcast"},
		{"UEFI HTTP", pxetest.UEFIHTTP, nil, "http://10.77.0.1:8080/loader/snponly.efi", "broadcast"},
		{"iPXE", pxetest.IPXE, nil, script, "broadcast"},
		{"iPXE, unicast", pxetest.IPXE, func(r *pxetest.ROM) { r.Unicast = true }, script, "frame"},
		{"ROM, unicast flag is not believed", pxetest.BIOS, func(r *pxetest.ROM) { r.Unicast = true }, "undionly.kpxe", "broadcast"},
		{"iPXE without HTTP", pxetest.IPXE, func(r *pxetest.ROM) { r.NoHTTP = true }, "tftp://10.77.0.1/undionly.kpxe", "broadcast"},
		{"no UUID", pxetest.BIOS, func(r *pxetest.ROM) { r.NoUUID = true }, "undionly.kpxe", "broadcast"},
		{"broken UUID", pxetest.UEFI, func(r *pxetest.ROM) { r.BrokenUUID = true }, "snponly.efi", "broadcast"},
		{"forgetful", pxetest.UEFI, func(r *pxetest.ROM) { r.Forgetful = true }, "snponly.efi", "broadcast"},
		{"forgetful iPXE", pxetest.IPXE, func(r *pxetest.ROM) { r.Forgetful = true }, script, "broadcast"},
		{"list in 93", pxetest.UEFI, func(r *pxetest.ROM) { r.ArchList = true }, "snponly.efi", "broadcast"},
		{"no 93", pxetest.UEFI, func(r *pxetest.ROM) { r.NoArch = true }, "snponly.efi", "broadcast"},
		{"OS", pxetest.OS, nil, "", "broadcast"},
		{"OS, unicast", pxetest.OS, func(r *pxetest.ROM) { r.Unicast = true }, "", "frame"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rom := pxetest.New(c.kind, i+1)
			if c.mood != nil {
				c.mood(rom)
			}
			b, err := w.DORA(t.Context(), rom)
			check(t, err)
			if b.File != c.file {
				t.Errorf("boots %q, want %q", b.File, c.file)
			}
			if b.IP.Less(ip("10.77.0.100")) || ip("10.77.0.199").Less(b.IP) {
				t.Errorf("address %s is not of the pool", b.IP)
			}
			via := "frame"
			if b.Ack.Frame.Dst.Addr() == ip("255.255.255.255") {
				via = "broadcast"
			}
			if via != c.via || (via == "frame" && b.Ack.Frame.DstMAC.String() != rom.MAC.String()) {
				t.Errorf("answered by %s to %s, want %s", via, b.Ack.Frame.DstMAC, c.via)
			}
			if n := len(b.Ack.Frame.Payload); n < 300 {
				t.Errorf("the answer has %d bytes; BOOTP wants 300", n)
			}
			if b.Took > 500*time.Millisecond {
				t.Errorf("took %s", b.Took)
			}
		})
	}
	for _, stage := range []string{pxe.EventDiscover, pxe.EventOffer, pxe.EventRequest, pxe.EventAck} {
		if n := len(s.events.Wait(stage, 16)); n != 16 {
			t.Errorf("%d events %q, want 16", n, stage)
		}
	}
}

func TestServeLeaseLife(t *testing.T) {
	if !inNetns(t) {
		return
	}
	veth(t, "srv0", "cli0", "10.77.0.1/24")
	rom := pxetest.New(pxetest.OS, 1)
	fixed := pxetest.New(pxetest.OS, 2)
	s := newSite(t, func(_ *pxe.DHCP, c *pxe.PoolConfig) {
		c.Reservations = pxetest.Reserved{{MAC: fixed.MAC, IP: ip("10.77.0.10"), HostName: "n01"}}
	})
	start(t, s.dhcp.Serve, &s.dhcp.Ready)
	w := wire(t, "cli0")
	ask := func(p *dhcpv4.DHCPv4) (pxetest.Answer, error) { return w.Ask(t.Context(), p, time.Second, nil) }
	kind := func(p *dhcpv4.DHCPv4, want dhcpv4.MessageType) pxetest.Answer {
		t.Helper()
		a, err := ask(p)
		check(t, err)
		if a.MessageType() != want {
			t.Fatalf("got %s %q, want %s", a.MessageType(), a.Message(), want)
		}
		return a
	}

	b, err := w.DORA(t.Context(), rom)
	check(t, err)
	if n := s.store.Saves(); n != 1 {
		t.Errorf("%d writes for one lease, want 1: before the ACK, none for the OFFER", n)
	}
	if got := b.Ack.IPAddressLeaseTime(0); got != 12*time.Hour {
		t.Errorf("lease time %s", got)
	}
	kind(rom.Reboot(b.IP), dhcpv4.MessageTypeAck)
	kind(rom.Reboot(ip("192.168.1.5")), dhcpv4.MessageTypeNak) // moved here from another network
	other := pxetest.New(pxetest.OS, 3)
	kind(other.Reboot(b.IP), dhcpv4.MessageTypeNak)
	kind(other.Reboot(ip("10.77.0.10")), dhcpv4.MessageTypeNak)

	f, err := w.DORA(t.Context(), fixed)
	check(t, err)
	if f.IP != ip("10.77.0.10") || f.Ack.HostName() != "n01" {
		t.Errorf("reserved: %s %q", f.IP, f.Ack.HostName())
	}

	check(t, w.Send(rom.Decline(b.Ack.DHCPv4)))
	again, err := w.DORA(t.Context(), rom)
	check(t, err)
	if again.IP == b.IP {
		t.Errorf("declined address %s was given again", b.IP)
	}
	if len(s.events.Wait(pxe.EventDecline, 1)) != 1 {
		t.Error("no decline event")
	}

	s.store.SetFull(true) // no durable lease, no ACK
	if a, err := ask(pxetest.New(pxetest.OS, 4).Reboot(ip("10.77.0.150"))); !errors.Is(err, pxetest.ErrNoAnswer) {
		t.Errorf("answered %v although the lease could not be stored", a)
	}
	s.store.SetFull(false)

	chosen := rom.Request(again.Ack.DHCPv4) // the client takes another server's offer
	chosen.Options[54] = []byte{10, 77, 0, 66}
	if a, err := ask(chosen); !errors.Is(err, pxetest.ErrNoAnswer) {
		t.Errorf("answered %v to a request for another server", a)
	}
	if r := s.events.Wait(pxe.EventRogue, 1); len(r) != 1 || !strings.Contains(r[0].Detail, "10.77.0.66") {
		t.Errorf("rogue events: %v", r)
	}

	// A restart with the same store: the machine keeps its address, and no other gets it.
	pool, err := pxe.OpenPool(t.Context(), pxe.PoolConfig{Store: s.store})
	check(t, err)
	if _, err := pool.Commit(t.Context(), pxe.LeaseQuery{MAC: other.MAC, Networks: []pxe.Network{lan()}, IP: again.IP}); !errors.Is(err, pxe.ErrRefused) {
		t.Errorf("after a restart another machine got %s: %v", again.IP, err)
	}
	l, err := pool.Offer(t.Context(), pxe.LeaseQuery{MAC: rom.MAC, Networks: []pxe.Network{lan()}})
	check(t, err)
	if l.IP != again.IP {
		t.Errorf("after a restart %s, before %s", l.IP, again.IP)
	}
}

func TestServeGarbage(t *testing.T) {
	if !inNetns(t) {
		return
	}
	veth(t, "srv0", "cli0", "10.77.0.1/24")
	calls := 0
	s := newSite(t, func(d *pxe.DHCP, _ *pxe.PoolConfig) {
		d.Decider = pxetest.Decide(func(context.Context, pxe.Request) (pxe.Answer, error) {
			if calls++; calls == 1 {
				panic("a decider with a bug")
			}
			return pxe.Answer{ScriptURL: script}, nil
		})
	})
	start(t, s.dhcp.Serve, &s.dhcp.Ready)
	w := wire(t, "cli0")
	rom := pxetest.New(pxetest.BIOS, 1)
	if a, err := w.Ask(t.Context(), rom.Discover(), 300*time.Millisecond, nil); !errors.Is(err, pxetest.ErrNoAnswer) {
		t.Fatalf("%v %v", a, err)
	}
	good := rom.Discover().ToBytes()
	raw, err := pxe.OpenRaw(mustIface(t, "cli0"), nil)
	check(t, err)
	defer raw.Close()
	for n := 0; n <= len(good); n += 7 {
		d := pxe.Datagram{SrcMAC: rom.MAC, DstMAC: rom.MAC, Src: netip.MustParseAddrPort("0.0.0.0:68"),
			Dst: netip.MustParseAddrPort("255.255.255.255:67"), Payload: good[:n]}
		for i := range d.DstMAC {
			d.DstMAC = append(d.DstMAC[:i:i], 255)
		}
		check(t, raw.Send(d.Frame()))
	}
	if _, err := w.DORA(t.Context(), rom); err != nil {
		t.Fatalf("after garbage: %v", err)
	}
}

func TestServeLoop(t *testing.T) {
	if !inNetns(t) {
		return
	}
	veth(t, "srv0", "cli0", "10.77.0.1/24")
	s := newSite(t, nil)
	start(t, s.dhcp.Serve, &s.dhcp.Ready)
	w := wire(t, "cli0")
	rom := pxetest.New(pxetest.UEFI, 1)
	var files []string
	for range 7 {
		b, err := w.DORA(t.Context(), rom)
		check(t, err)
		files = append(files, b.File)
	}
	want := "[snponly.efi snponly.efi ipxe.efi ipxe.efi ipxe.efi ipxe.efi ]"
	if fmt.Sprint(files) != want {
		t.Errorf("loaders of a machine that never reaches iPXE: %q, want %s", files, want)
	}
	if len(s.events.Wait(pxe.EventLoop, 1)) == 0 {
		t.Error("no loop event")
	}
	rom.Kind, rom.Arch = pxetest.IPXE, 7
	b, err := w.DORA(t.Context(), rom)
	check(t, err)
	if b.File != script {
		t.Errorf("iPXE at last: %q", b.File)
	}
	rom.Kind = pxetest.UEFI
	if b, err = w.DORA(t.Context(), rom); err != nil || b.File != "snponly.efi" {
		t.Errorf("after it reached iPXE: %q %v", b.File, err)
	}
}

func TestServePort4011AndProxy(t *testing.T) {
	if !inNetns(t) {
		return
	}
	veth(t, "srv0", "cli0", "10.77.0.1/24")
	s := newSite(t, func(d *pxe.DHCP, _ *pxe.PoolConfig) { d.Networks[0].Proxy = true })
	start(t, s.dhcp.Serve, &s.dhcp.Ready)
	w := wire(t, "cli0")
	offer := func(r *pxetest.ROM) (pxetest.Answer, error) {
		return w.Ask(t.Context(), r.Discover(), 300*time.Millisecond, nil)
	}
	if a, err := offer(pxetest.New(pxetest.OS, 1)); !errors.Is(err, pxetest.ErrNoAnswer) {
		t.Errorf("a proxy answered an ordinary client: %v", a)
	}
	bios, err := offer(pxetest.New(pxetest.BIOS, 2))
	check(t, err)
	if string(bios.Options[60]) != "PXEClient" || fmt.Sprintf("%x", bios.Options[43]) != "060108ff" || !bios.YourIPAddr.IsUnspecified() || bios.BootFileName != "undionly.kpxe" {
		t.Errorf("proxy offer to BIOS:\n%s", bios.Summary())
	}
	rom := pxetest.New(pxetest.UEFI, 3)
	uefi, err := offer(rom)
	check(t, err)
	if _, has := uefi.Options[43]; has || uefi.BootFileName != "snponly.efi" {
		t.Errorf("proxy offer to UEFI:\n%s", uefi.Summary())
	}

	// 4011 by unicast from another machine.
	p := newPeer(t, "cli0")
	p.must(t, "ip", "addr", "add", "10.77.0.50/24", "dev", "cli0")
	exe, err := os.Executable()
	check(t, err)
	cmd := p.cmd(t.Context(), exe, "-test.run=^TestHelperAskProxy$", "-test.v")
	cmd.Env = append(os.Environ(), "INGOT_ASK_PROXY=10.77.0.50")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ack from 10.77.0.1: snponly.efi PXEClient") {
		t.Errorf("port 4011: %v\n%s", err, out)
	}
}

func TestServeRefuses(t *testing.T) {
	if !inNetns(t) {
		return
	}
	veth(t, "srv0", "cli0", "10.77.0.1/24")
	serve := func(edit func(*pxe.Network)) error {
		s := newSite(t, func(d *pxe.DHCP, _ *pxe.PoolConfig) { edit(&d.Networks[0]) })
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		s.dhcp.Ready = func() { t.Error("was ready"); cancel() }
		return s.dhcp.Serve(ctx)
	}
	has := func(err error, words ...string) {
		t.Helper()
		for _, w := range words {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("error %v does not say %q", err, w)
			}
		}
	}
	has(serve(func(n *pxe.Network) { n.Interface = "eno99" }), `"eno99" does not exist`, "srv0")
	has(serve(func(n *pxe.Network) { n.ServerIP = ip("10.77.0.2") }), `has not the address 10.77.0.2`, "ip addr add")
	has(serve(func(n *pxe.Network) { n.RangeTo = ip("10.77.1.5") }), "not inside")

	s := newSite(t, nil)
	start(t, s.dhcp.Serve, &s.dhcp.Ready)
	second := newSite(t, nil)
	err := second.dhcp.Serve(t.Context())
	has(err, "UDP port 67", "srv0", "is taken by", filepath.Base(os.Args[0])[:3], fmt.Sprintf("pid %d", os.Getpid()))
	var be *pxe.BusyError
	if !errors.As(err, &be) || be.Hint() == "" {
		t.Errorf("no BusyError with a hint: %v", err)
	}

	check(t, exec.Command("ip", "link", "set", "cli0", "down").Run())
	has(serve(func(n *pxe.Network) { n.Interface = "cli0" }), `"cli0" is down`, "ip link set cli0 up")
}

func TestServeNoticesRemovedInterface(t *testing.T) {
	if !inNetns(t) {
		return
	}
	veth(t, "srv0", "cli0", "10.77.0.1/24")
	s := newSite(t, nil)
	s.dhcp.Ready = func() { check(t, exec.Command("ip", "link", "del", "srv0").Run()) }
	if err := s.dhcp.Serve(t.Context()); err == nil || !strings.Contains(err.Error(), `interface "srv0" was removed`) {
		t.Errorf("%v", err)
	}
}
