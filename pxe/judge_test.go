package pxe_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ingot/pxe"
	"ingot/pxe/pxetest"
)

func TestProbeNamesDnsmasq(t *testing.T) {
	if !inNetns(t) {
		return
	}
	needs(t, "dnsmasq")
	veth(t, "srv0", "cli0", "10.77.0.1/24")
	none, err := pxe.Probe(t.Context(), "srv0")
	check(t, err)
	if len(none) != 0 {
		t.Fatalf("found %v on an empty wire", none)
	}
	p := newPeer(t, "cli0")
	p.must(t, "ip", "addr", "add", "10.77.0.66/24", "dev", "cli0")
	background(t, p.cmd(t.Context(), "dnsmasq", "-d", "--conf-file=/dev/null", "--port=0", "--interface=cli0", "--bind-interfaces", "--no-ping",
		"--dhcp-range=10.77.0.200,10.77.0.210,1h", "--dhcp-boot=evil.0", "--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases")))
	var found []pxe.Rogue
	for range 5 {
		if found, err = pxe.Probe(t.Context(), "srv0"); len(found) > 0 {
			break
		}
	}
	check(t, err)
	if len(found) != 1 || found[0].IP != ip("10.77.0.66") || len(found[0].MAC) != 6 || found[0].BootFile != "evil.0" || found[0].Proxy() {
		t.Fatalf("found %+v", found)
	}
	t.Log(found[0].String())

	// The same server, seen in passing while ours answers.
	s := newSite(t, nil)
	start(t, s.dhcp.Serve, &s.dhcp.Ready)
	_, err = pxe.Probe(t.Context(), "srv0")
	check(t, err)
	r := s.events.Wait(pxe.EventRogue, 1)
	if len(r) != 1 || !strings.Contains(r[0].Detail, "10.77.0.66") || !strings.Contains(r[0].Detail, found[0].MAC.String()) {
		t.Errorf("rogue events: %v", r)
	}
}

func TestJudgeUdhcpc(t *testing.T) {
	if !inNetns(t) {
		return
	}
	needs(t, "busybox")
	veth(t, "srv0", "cli0", "10.77.0.1/24")
	arp := &pxe.Prober{}
	defer arp.Close()
	s := newSite(t, func(d *pxe.DHCP, c *pxe.PoolConfig) {
		d.Decider = always(pxe.Answer{Known: true, Name: "n07", HostName: "n07"})
		c.Probe = arp.Probe
	})
	start(t, s.dhcp.Serve, &s.dhcp.Ready)
	p := newPeer(t, "cli0")
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "hook"), []byte(`#!/bin/sh
echo "$1 $ip/$mask via $router dns $dns name $hostname lease $lease domain $domain"
[ $1 = bound ] && busybox ip addr add $ip/$mask dev $interface && touch $0.bound
exit 0
`), 0o755))
	check(t, os.WriteFile(filepath.Join(dir, "run"), []byte(`busybox udhcpc -i cli0 -s $1/hook -f -n & p=$!
until [ -e $1/hook.bound ]; do sleep 0.05; done
kill -USR2 $p # releases; -q -R would quit before there is anything to release
sleep 0.3; kill $p; wait
`), 0o755))
	out := p.must(t, "sh", filepath.Join(dir, "run"), dir)
	if !strings.Contains(out, "bound 10.77.0.1") || !strings.Contains(out, "/24 via 10.77.0.1 dns 10.77.0.1 name n07 lease 43200 domain example.org") {
		t.Errorf("udhcpc says:\n%s", out)
	}
	if len(s.events.Wait(pxe.EventRelease, 1)) != 1 {
		t.Errorf("udhcpc released, but there is no event: %v", s.events.Of(""))
	}

	// Its address is configured now, though released: the ARP probe finds it, and no other machine gets it.
	var leased []pxe.Lease
	leased, _ = s.store.Load(t.Context())
	check(t, s.dhcp.Leases.(*pxe.Pool).Forget(t.Context(), leased[0].IP))
	l, err := s.dhcp.Leases.Offer(t.Context(), pxe.LeaseQuery{MAC: pxetest.New(pxetest.OS, 9).MAC, Networks: s.dhcp.Networks, IP: leased[0].IP})
	check(t, err)
	if l.IP == leased[0].IP {
		t.Errorf("offered %s, which answers ARP", l.IP)
	}
}

func TestJudgeTFTP(t *testing.T) {
	if !inNetns(t) {
		return
	}
	needs(t, "tftp", "curl")
	loaders, err := pxe.FindLoaders("")
	if err != nil {
		skip(t, err.Error())
	}
	veth(t, "srv0", "cli0", "10.77.0.1/24")
	events := &pxetest.Events{}
	srv := &pxe.TFTP{Files: loaders, Events: events, Log: testLog(t), Script: func(_ context.Context, r pxe.TFTPRequest) ([]byte, error) {
		return fmt.Appendf(nil, "#!ipxe\nchain http://%s:8080/boot.ipxe # for %s\n", r.Server, r.Client), nil
	}}
	start(t, srv.Serve, &srv.Ready)
	p := newPeer(t, "cli0")
	p.must(t, "ip", "addr", "add", "10.77.0.50/24", "dev", "cli0")
	dir := t.TempDir()
	same := func(got, name string) {
		t.Helper()
		a, err := os.ReadFile(got)
		check(t, err)
		f, err := loaders.Open(name)
		check(t, err)
		b, err := io.ReadAll(f)
		check(t, err)
		if string(a) != string(b) {
			t.Errorf("%s differs from %s: %d bytes against %d", got, name, len(a), len(b))
		}
	}
	for i, c := range []struct{ ask, name string }{
		{"undionly.kpxe", "undionly.kpxe"}, {"/snponly.efi", "snponly.efi"}, {"//boot//IPXE.EFI", "ipxe.efi"}, {`\x64\snponly.efi`, "snponly.efi"},
	} {
		got := filepath.Join(dir, fmt.Sprint("hpa", i))
		p.must(t, "tftp", "-m", "binary", "10.77.0.1", "-c", "get", c.ask, got)
		same(got, c.name)
	}
	for _, blk := range []string{"512", "1024", "1468", "65464"} {
		got := filepath.Join(dir, "curl"+blk)
		p.must(t, "curl", "-sS", "--tftp-blksize", blk, "-o", got, "tftp://10.77.0.1/snponly.efi")
		same(got, "snponly.efi")
	}
	for _, name := range []string{"autoexec.ipxe", "x64/autoexec.ipxe"} {
		if out := p.must(t, "curl", "-sS", "tftp://10.77.0.1/"+name); !strings.Contains(out, "chain http://10.77.0.1:8080/boot.ipxe # for 10.77.0.50") {
			t.Errorf("%s: %q", name, out)
		}
	}
	for _, name := range []string{"nothing.efi", "../../../etc/passwd", "/etc/passwd"} {
		if out, err := p.run(t, "curl", "-sS", "--path-as-is", "tftp://10.77.0.1/"+name); err == nil {
			t.Errorf("%s was served: %q", name, out)
		}
	}
	if out, err := p.run(t, "curl", "-sS", "-T", os.Args[0], "tftp://10.77.0.1/new"); err == nil {
		t.Errorf("a write was taken: %s", out)
	}
	if n := len(events.Wait(pxe.EventLoader, 10)); n != 10 {
		t.Errorf("%d loader events, want 10: %v", n, events.Of(""))
	}

	// As firmware: tsize alone, abort, again.
	f, err := pxetest.Fetch(t.Context(), ip("10.77.0.1"), "ipxe.efi\xff", 9000)
	check(t, err)
	if f.Size != len(f.Data) || f.Size == 0 || f.BlkSize != 1468 {
		t.Errorf("tsize %d, %d bytes, blksize %d", f.Size, len(f.Data), f.BlkSize)
	}
	err = (&pxe.TFTP{}).Serve(t.Context())
	if err == nil || !strings.Contains(err.Error(), "UDP port 69 is taken by") {
		t.Errorf("second TFTP server: %v", err)
	}
}
