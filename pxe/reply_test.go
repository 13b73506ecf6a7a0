package pxe_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"ingot/pxe"
	"ingot/pxe/pxetest"
)

func request(t *testing.T, p *dhcpv4.DHCPv4, rx pxe.Rx) pxe.Request {
	t.Helper()
	r, err := pxe.Classify(p, rx)
	check(t, err)
	return r
}

func offer() pxe.Server {
	return pxe.Server{Type: dhcpv4.MessageTypeOffer, Network: lan(), LeaseTime: time.Hour, LoaderURL: "http://10.77.0.1:8080/loader",
		Lease: pxe.Lease{IP: ip("10.77.0.123")}}
}

func TestReplyFile(t *testing.T) {
	long := "http://10.77.0.1/" + strings.Repeat("x", 200)
	for _, c := range []struct {
		name string
		rom  *pxetest.ROM
		ans  pxe.Answer
		edit func(*pxe.Server)
		file string // of the field
		o67  string // "=": the same
		err  error
	}{
		{name: "BIOS", rom: &pxetest.ROM{Kind: pxetest.BIOS}, file: "undionly.kpxe", o67: "="},
		{name: "UEFI", rom: &pxetest.ROM{Kind: pxetest.UEFI}, file: "snponly.efi", o67: "="},
		{name: "arm64", rom: &pxetest.ROM{Kind: pxetest.UEFI, Arch: 11}, file: "snponly-arm64.efi", o67: "="},
		{name: "chosen loader", rom: &pxetest.ROM{Kind: pxetest.UEFI}, edit: func(s *pxe.Server) { s.Loader = "ipxe.efi" }, file: "ipxe.efi", o67: "="},
		{name: "the site's file", rom: &pxetest.ROM{Kind: pxetest.UEFI}, ans: pxe.Answer{BootFile: "shimx64.efi"}, file: "shimx64.efi", o67: "="},
		{name: "the site's file is not for iPXE", rom: &pxetest.ROM{Kind: pxetest.IPXE}, ans: pxe.Answer{BootFile: "ipxe.efi", ScriptURL: script}, file: script, o67: "="},
		{name: "HTTP", rom: &pxetest.ROM{Kind: pxetest.UEFIHTTP}, file: "http://10.77.0.1:8080/loader/snponly.efi", o67: "="},
		{name: "HTTP, the site's file", rom: &pxetest.ROM{Kind: pxetest.UEFIHTTP}, ans: pxe.Answer{BootFile: "shimx64.efi"}, file: "http://10.77.0.1:8080/loader/shimx64.efi", o67: "="},
		{name: "HTTP, the site's URL", rom: &pxetest.ROM{Kind: pxetest.UEFIHTTP}, ans: pxe.Answer{BootFile: "http://x/y.efi"}, file: "http://x/y.efi", o67: "="},
		{name: "HTTP, no URL of ours", rom: &pxetest.ROM{Kind: pxetest.UEFIHTTP}, edit: func(s *pxe.Server) { s.LoaderURL = "" }, err: pxe.ErrNoHTTPURL},
		{name: "iPXE", rom: &pxetest.ROM{Kind: pxetest.IPXE}, ans: pxe.Answer{ScriptURL: script}, file: script, o67: "="},
		{name: "iPXE, no script", rom: &pxetest.ROM{Kind: pxetest.IPXE}},
		{name: "iPXE, long URL in 67 alone", rom: &pxetest.ROM{Kind: pxetest.IPXE}, ans: pxe.Answer{ScriptURL: long}, o67: long},
		{name: "URL of 256 bytes", rom: &pxetest.ROM{Kind: pxetest.IPXE}, ans: pxe.Answer{ScriptURL: long + strings.Repeat("y", 40)}, err: pxe.ErrBootFile},
		{name: "URL with a newline", rom: &pxetest.ROM{Kind: pxetest.IPXE}, ans: pxe.Answer{ScriptURL: "http://x/\n"}, err: pxe.ErrBootFile},
		{name: "iPXE without HTTP", rom: &pxetest.ROM{Kind: pxetest.IPXE, NoHTTP: true, Arch: 7}, ans: pxe.Answer{ScriptURL: script}, file: "tftp://10.77.0.1/snponly.efi", o67: "="},
		{name: "nothing", rom: &pxetest.ROM{Kind: pxetest.BIOS}, ans: pxe.Answer{NoBoot: true, ScriptURL: script}},
		{name: "OS", rom: &pxetest.ROM{Kind: pxetest.OS}, ans: pxe.Answer{BootFile: "x", ScriptURL: script}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.rom.MAC = pxetest.New(0, 1).MAC
			srv := offer()
			if c.edit != nil {
				c.edit(&srv)
			}
			p, _, err := pxe.Reply(request(t, c.rom.Discover(), pxe.Rx{}), c.ans, srv)
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if c.err != nil {
				return
			}
			p, err = dhcpv4.FromBytes(p.ToBytes())
			check(t, err)
			if c.o67 == "=" {
				c.o67 = c.file
			}
			if p.BootFileName != c.file || string(p.Options[67]) != c.o67 {
				t.Errorf("file %q, 67 %q; want %q, %q", p.BootFileName, p.Options[67], c.file, c.o67)
			}
			boots := c.rom.Kind != pxetest.OS && !c.ans.NoBoot
			if said := p.ServerIPAddr.String() == "10.77.0.1" && p.ServerHostName == "10.77.0.1" && string(p.Options[66]) == "10.77.0.1" && len(p.Options[150]) == 4; said != boots {
				t.Errorf("siaddr %s, sname %q, 66 %q, 150 %x", p.ServerIPAddr, p.ServerHostName, p.Options[66], p.Options[150])
			}
			if got := fmt.Sprintf("%x", p.Options[175]); (got == "b00101") != (c.rom.Kind == pxetest.IPXE) {
				t.Errorf("175 is %s", got)
			}
			if web := string(p.Options[60]) == "HTTPClient"; web != (c.rom.Kind == pxetest.UEFIHTTP) {
				t.Errorf("60 is %q", p.Options[60])
			}
		})
	}
}

func TestReplyDest(t *testing.T) {
	mac := pxetest.New(0, 1).MAC
	os := func(unicast bool) *pxetest.ROM { return &pxetest.ROM{MAC: mac, Kind: pxetest.OS, Unicast: unicast} }
	relayed := &pxetest.ROM{MAC: mac, Kind: pxetest.BIOS, Relay: ip("10.9.0.1"), RelayInfo: []byte{1, 2, 'a', 'b'}}
	from := pxe.Rx{Src: addrPort("10.77.0.50:4011"), Proxy: true}
	for _, c := range []struct {
		name string
		p    *dhcpv4.DHCPv4
		rx   pxe.Rx
		typ  dhcpv4.MessageType
		want string
		flag bool
	}{
		{"relay: to giaddr, not to the sender", relayed.Discover(), pxe.Rx{Src: addrPort("10.9.0.7:12345")}, dhcpv4.MessageTypeOffer, "udp 10.9.0.1:67", true},
		{"relayed NAK: broadcast beyond", (&pxetest.ROM{MAC: mac, Kind: pxetest.OS, Relay: ip("10.9.0.1"), Unicast: true}).Discover(), pxe.Rx{}, dhcpv4.MessageTypeNak, "udp 10.9.0.1:67", true},
		{"ROM: broadcast whatever it says", (&pxetest.ROM{MAC: mac, Kind: pxetest.BIOS, Unicast: true}).Discover(), pxe.Rx{}, dhcpv4.MessageTypeOffer, "broadcast 255.255.255.255:68", true},
		{"OS with the flag", os(false).Discover(), pxe.Rx{}, dhcpv4.MessageTypeOffer, "broadcast 255.255.255.255:68", true},
		{"OS without", os(true).Discover(), pxe.Rx{}, dhcpv4.MessageTypeOffer, "frame 10.77.0.123:68", false},
		{"renewal", os(true).Renew(ip("10.77.0.123")), pxe.Rx{}, dhcpv4.MessageTypeAck, "udp 10.77.0.123:68", false},
		{"NAK: always broadcast", os(true).Renew(ip("10.77.0.123")), pxe.Rx{}, dhcpv4.MessageTypeNak, "broadcast 255.255.255.255:68", false},
		{"4011: back to where it came from", (&pxetest.ROM{MAC: mac, Kind: pxetest.UEFI}).AskProxy(ip("10.77.0.50")), from, dhcpv4.MessageTypeAck, "udp 10.77.0.50:4011", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := offer()
			srv.Type = c.typ
			p, d, err := pxe.Reply(request(t, c.p, c.rx), pxe.Answer{ScriptURL: script}, srv)
			check(t, err)
			if got := fmt.Sprintf("%s %s", d.Via, d.Addr); got != c.want || p.IsBroadcast() != c.flag {
				t.Errorf("goes by %s, broadcast flag %v; want %s, %v", got, p.IsBroadcast(), c.want, c.flag)
			}
		})
	}

	p, _, err := pxe.Reply(request(t, relayed.Discover(), pxe.Rx{}), pxe.Answer{}, offer())
	check(t, err)
	raw := strings.TrimRight(string(p.ToBytes()), "\x00")
	if !strings.HasSuffix(raw, "\x52\x04\x01\x02ab\xff") {
		t.Errorf("option 82 is not last and unchanged: %x", raw[len(raw)-12:])
	}
}

func TestReplyNak(t *testing.T) {
	srv := offer()
	srv.Type, srv.Message = dhcpv4.MessageTypeNak, "wrong network"
	rom := pxetest.New(pxetest.UEFI, 1)
	p, _, err := pxe.Reply(request(t, rom.Reboot(ip("192.168.0.1")), pxe.Rx{}), pxe.Answer{ScriptURL: script}, srv)
	check(t, err)
	// RFC 2131 table 3: a NAK has no address, no boot file, no configuration.
	for _, code := range []uint8{1, 3, 6, 51, 66, 67} {
		if p.Options[code] != nil {
			t.Errorf("NAK has option %d", code)
		}
	}
	if !p.YourIPAddr.IsUnspecified() || p.BootFileName != "" || string(p.Options[56]) != "wrong network" || p.Options[54] == nil || p.Options[97] == nil {
		t.Errorf("NAK:\n%s", p.Summary())
	}
}
