package rack

import (
	"net"
	"strings"
	"testing"
	"time"
)

// Another DHCP server on the wire: named, with its address, and no hang. With
// the operator's word the server starts beside it.
func TestSecondServerIsNamed(t *testing.T) {
	b := newBench(t, false)
	b.command("ip", "link", "add", "name", "rogue0", "type", "veth", "peer", "name", "rogue1")
	b.command("ip", "link", "set", "rogue1", "master", b.rack.Bridge(), "up")
	b.command("ip", "addr", "add", "10.77.0.66/24", "dev", "rogue0")
	b.command("ip", "link", "set", "rogue0", "up")
	// A host of its own would be a namespace of its own; bound to its interface it is as foreign to us.
	rogue, err := b.rack.Start("rogue", "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=rogue0", "--bind-interfaces", "--no-ping",
		"--dhcp-range=10.77.0.200,10.77.0.220,5m", "--dhcp-authoritative", "--dhcp-leasefile=/dev/null", "--user=root")
	b.must(err)
	time.Sleep(time.Second)
	start := time.Now()
	out, err := b.try("serve")
	if err == nil || !strings.Contains(out, "10.77.0.66") || !strings.Contains(out, "hint:") {
		t.Errorf("serve beside another server: %v\n%s", err, out)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %s to say so", took)
	}
	rogue.Stop()
	b.serve()
}

// What keeps the server from starting is said at once, with the way out.
func TestServeRefusesClearly(t *testing.T) {
	b := newBench(t, false)
	yaml := b.read("ingot.yaml")
	refused := func(what string, want ...string) {
		t.Helper()
		start := time.Now()
		out, err := b.try("serve")
		for _, w := range want {
			if err == nil || !strings.Contains(out, w) {
				t.Errorf("%s: %v, want %q in\n%s", what, err, w, out)
			}
		}
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("%s: it took %s to say so", what, took)
		}
	}
	tftp, err := net.ListenPacket("udp4", "0.0.0.0:69")
	b.must(err)
	refused("busy TFTP port", "69", "hint:")
	b.must(tftp.Close())
	dhcp, err := net.ListenPacket("udp4", "0.0.0.0:67")
	b.must(err)
	refused("busy DHCP port", "67", "hint:")
	b.must(dhcp.Close())
	http, err := net.Listen("tcp", ":8080")
	b.must(err)
	refused("busy HTTP port", "8080", "hint:")
	b.must(http.Close())
	b.write("ingot.yaml", strings.Replace(yaml, "interface: "+b.rack.Bridge(), "interface: nosuch0", 1))
	refused("missing interface", "nosuch0")
	b.write("ingot.yaml", strings.Replace(yaml, "address: 10.77.0.1", "address: 10.77.0.2", 1))
	refused("address that is not there", "10.77.0.2")
	b.write("ingot.yaml", yaml+"server: {loaders: /nonexistent}\n")
	refused("missing loaders", "/nonexistent")
	b.write("ingot.yaml", yaml)
	b.command("ip", "link", "set", b.rack.Bridge(), "down")
	refused("interface that is down", b.rack.Bridge(), "down")
	b.command("ip", "link", "set", b.rack.Bridge(), "up")
}

// Leases survive kill -9: a client that asks again gets its address, and
// another one does not.
func TestLeasesSurviveAKill(t *testing.T) {
	b := newBench(t, false)
	b.command("ip", "link", "add", "name", "c0", "type", "veth", "peer", "name", "c1")
	b.command("ip", "link", "set", "c1", "master", b.rack.Bridge(), "up")
	b.command("ip", "link", "set", "c0", "up")
	ask := func(mac string) string {
		t.Helper()
		b.command("ip", "link", "set", "c0", "address", mac)
		out := b.command("busybox", "udhcpc", "-i", "c0", "-f", "-n", "-q", "-t", "8", "-T", "1", "-s", "/bin/true")
		_, rest, ok := strings.Cut(out, "lease of ")
		if !ok {
			t.Fatalf("udhcpc got no lease:\n%s", out)
		}
		return strings.Fields(rest)[0]
	}
	b.serve()
	first := ask("52:54:00:aa:00:01")
	b.server.Kill()
	b.serve()
	other := ask("52:54:00:aa:00:02")
	again := ask("52:54:00:aa:00:01")
	if again != first || other == first {
		t.Errorf("first %s, after the kill %s; another client got %s", first, again, other)
	}
}
