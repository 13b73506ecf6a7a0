package pxe_test

import (
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"ingot/pxe/pxetest"
)

func mustIface(t *testing.T, name string) *net.Interface {
	t.Helper()
	ifi, err := net.InterfaceByName(name)
	check(t, err)
	return ifi
}

// TestHelperAskProxy is the client of TestServePort4011AndProxy, run in the other namespace: EDK2 asks port 4011 from its
// own address.
func TestHelperAskProxy(t *testing.T) {
	own := os.Getenv("INGOT_ASK_PROXY")
	if own == "" {
		t.Skip("only as a child of TestServePort4011AndProxy")
	}
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(own), Port: 68})
	check(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	_, err = c.WriteTo(pxetest.New(pxetest.UEFI, 3).AskProxy(ip(own)).ToBytes(), &net.UDPAddr{IP: net.IPv4(10, 77, 0, 1), Port: 4011})
	check(t, err)
	buf := make([]byte, 1500)
	n, from, err := c.ReadFromUDP(buf)
	check(t, err)
	p, err := dhcpv4.FromBytes(buf[:n])
	check(t, err)
	fmt.Printf("ack from %s: %s %s\n", from.IP, p.BootFileName, p.Options[60])
}
