package pxe_test

import (
	"strings"
	"testing"
	"time"

	"ingot/pxe"
)

// TestRAJudgedByLinux: a kernel that listens takes the ULA prefix, and takes us for no router.
func TestRAJudgedByLinux(t *testing.T) {
	if !inNetns(t) {
		return
	}
	veth(t, "srv0", "cli0", "10.77.0.1/24")
	p := newPeer(t, "cli0")
	p.must(t, "sh", "-c", "ip link set cli0 down; echo 2 >/proc/sys/net/ipv6/conf/cli0/accept_ra; ip link set cli0 up")
	ra := &pxe.RA{Interfaces: []string{"srv0"}, ULA: true, Log: testLog(t)}
	start(t, ra.Serve, &ra.Ready)
	var addrs string
	for range 60 {
		if addrs = p.must(t, "ip", "-6", "addr", "show", "dev", "cli0"); strings.Contains(addrs, "inet6 fd") {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if !strings.Contains(addrs, "inet6 fd") || !strings.Contains(addrs, "deprecated") {
		t.Errorf("the client made no deprecated address of our prefix:\n%s", addrs)
	}
	if r := p.must(t, "ip", "-6", "route", "show", "default"); strings.TrimSpace(r) != "" {
		t.Errorf("the client took us for a router: %s", r)
	}
}

func TestRARefusesMissingInterface(t *testing.T) {
	err := (&pxe.RA{Interfaces: []string{"eno99"}}).Serve(t.Context())
	if err == nil || !strings.Contains(err.Error(), `"eno99"`) {
		t.Errorf("%v", err)
	}
}
