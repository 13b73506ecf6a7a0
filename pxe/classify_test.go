package pxe_test

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"ingot/pxe"
	"ingot/pxe/pxetest"
)

func TestClassify(t *testing.T) {
	opt := func(code uint8, b ...byte) func(*dhcpv4.DHCPv4) {
		return func(p *dhcpv4.DHCPv4) {
			if len(b) == 0 {
				delete(p.Options, code)
				return
			}
			p.Options[code] = b
		}
	}
	both := func(fs ...func(*dhcpv4.DHCPv4)) func(*dhcpv4.DHCPv4) {
		return func(p *dhcpv4.DHCPv4) {
			for _, f := range fs {
				f(p)
			}
		}
	}
	mac := func(s string) func(*dhcpv4.DHCPv4) {
		return func(p *dhcpv4.DHCPv4) { p.ClientHWAddr, _ = net.ParseMAC(s) }
	}
	ami := []byte{0, 0x00, 0x02, 0x00, 0x03, 0x00, 0x04, 0x00, 0x05, 0x00, 0x06, 0x00, 0x07, 0x00, 0x08, 0x00, 0x09}
	for _, c := range []struct {
		name  string
		kind  pxetest.Kind
		edit  func(*dhcpv4.DHCPv4)
		proxy bool
		want  string // stage firmware arch uuid(y/n) notes
		err   error
	}{
		{name: "BIOS", kind: pxetest.BIOS, want: "rom bios x86 BIOS y 0"},
		{name: "UEFI 7", kind: pxetest.UEFI, want: "rom uefi x64 UEFI y 0"},
		{name: "UEFI 9", kind: pxetest.UEFI, edit: opt(93, 0, 9), want: "rom uefi x64 UEFI y 0"},
		{name: "UEFI arm64", kind: pxetest.UEFI, edit: opt(93, 0, 11), want: "rom uefi arm64 UEFI y 0"},
		{name: "LoongArch is not RISC-V", kind: pxetest.UEFI, edit: opt(93, 0, 0x27), want: "rom uefi loongarch64 UEFI y 0"},
		{name: "HTTP", kind: pxetest.UEFIHTTP, want: "rom uefi-http x64 UEFI HTTP y 0"},
		{name: "HTTP class with a PXE arch", kind: pxetest.UEFIHTTP, edit: opt(93, 0, 7), want: "rom uefi-http x64 UEFI y 0"},
		{name: "iPXE", kind: pxetest.IPXE, want: "ipxe bios x86 BIOS y 0"},
		{name: "iPXE by 175 alone", kind: pxetest.IPXE, edit: opt(77), want: "ipxe bios x86 BIOS y 0"},
		{name: "iPXE by 77 alone", kind: pxetest.IPXE, edit: opt(175), want: "ipxe bios x86 BIOS y 0"},
		{name: "iPXE with RFC 3004 list", kind: pxetest.IPXE, edit: both(opt(175), opt(77, 4, 'i', 'P', 'X', 'E')), want: "ipxe bios x86 BIOS y 0"},
		{name: "iPXE, arch 9", kind: pxetest.IPXE, edit: opt(93, 0, 9), want: "ipxe uefi x64 UEFI y 0"},
		{name: "175 of an OS is no boot", kind: pxetest.OS, edit: opt(175, 1, 1, 1), want: "os none none n 0"},
		{name: "OS", kind: pxetest.OS, want: "os none none n 0"},
		{name: "installer", kind: pxetest.OS, edit: opt(60, []byte("ingot-installer")...), want: "installer none none n 0"},
		{name: "list in 93, unknown first", kind: pxetest.UEFI, edit: opt(93, 0xab, 0xcd, 0, 7), want: "rom uefi x64 UEFI y 0"},
		{name: "unknown arch", kind: pxetest.UEFI, edit: opt(93, 0xab, 0xcd), want: "rom none arch 43981 y 0"},
		{name: "odd 93", kind: pxetest.UEFI, edit: opt(93, 0, 7, 0), want: "rom uefi x64 UEFI y 1"},
		{name: "93 of one byte: class tells", kind: pxetest.UEFI, edit: opt(93, 7), want: "rom uefi x64 UEFI y 2"},
		{name: "no 93: class tells", kind: pxetest.UEFI, edit: opt(93), want: "rom uefi x64 UEFI y 1"},
		{name: "no 93, bare class: address only", kind: pxetest.UEFI, edit: both(opt(93), opt(60, []byte("PXEClient")...)), want: "os none none y 1"},
		{name: "class with arch that is no number", kind: pxetest.UEFI, edit: both(opt(93), opt(60, []byte("PXEClient:Arch:xx")...)), want: "os none none y 1"},
		{name: "Raspberry Pi says BIOS", kind: pxetest.BIOS, edit: mac("dc:a6:32:01:02:03"), want: "rom none Raspberry Pi y 0"},
		{name: "no UUID", kind: pxetest.BIOS, edit: opt(97), want: "rom bios x86 BIOS n 0"},
		{name: "UUID without type", kind: pxetest.BIOS, edit: opt(97, ami[1:]...), want: "rom bios x86 BIOS n 1"},
		{name: "UUID of type 1", kind: pxetest.BIOS, edit: opt(97, append([]byte{1}, ami[1:]...)...), want: "rom bios x86 BIOS n 1"},
		{name: "UUID of FF", kind: pxetest.BIOS, edit: opt(97, append([]byte{0}, strings.Repeat("\xff", 16)...)...), want: "rom bios x86 BIOS n 0"},
		{name: "UUID of 00", kind: pxetest.BIOS, edit: opt(97, make([]byte, 17)...), want: "rom bios x86 BIOS n 0"},
		{name: "UUID of AMI", kind: pxetest.BIOS, edit: opt(97, ami...), want: "rom bios x86 BIOS n 0"},
		{name: "UUID of AMI, not swapped", kind: pxetest.BIOS, edit: opt(97, 0, 3, 0, 2, 0, 4, 0, 5, 0, 0, 6, 0, 7, 0, 8, 0, 9), want: "rom bios x86 BIOS n 0"},
		{name: "class ends with NUL", kind: pxetest.UEFI, edit: both(opt(93), opt(60, []byte("PXEClient:Arch:00007\x00")...)), want: "rom uefi x64 UEFI y 1"},

		{name: "proxy: OS", kind: pxetest.OS, proxy: true, err: pxe.ErrNotPXE},
		{name: "proxy: ROM", kind: pxetest.BIOS, proxy: true, want: "rom bios x86 BIOS y 0"},
		{name: "a reply", edit: func(p *dhcpv4.DHCPv4) { p.OpCode = dhcpv4.OpcodeBootReply }, err: pxe.ErrNotForUs},
		{name: "BOOTP", edit: opt(53), err: pxe.ErrNotForUs},
		{name: "lease query", edit: opt(53, 10), err: pxe.ErrNotForUs},
		{name: "InfiniBand", edit: func(p *dhcpv4.DHCPv4) { p.HWType, p.ClientHWAddr = 32, nil }, err: pxe.ErrMalformed},
		{name: "hlen 16", edit: func(p *dhcpv4.DHCPv4) { p.ClientHWAddr = make([]byte, 16) }, err: pxe.ErrMalformed},
		{name: "no MAC", edit: mac("00:00:00:00:00:00"), err: pxe.ErrMalformed},
		{name: "group MAC", edit: mac("01:00:5e:00:00:01"), err: pxe.ErrMalformed},
		{name: "broadcast MAC", edit: mac("ff:ff:ff:ff:ff:ff"), err: pxe.ErrMalformed},
		{name: "relay loop", edit: func(p *dhcpv4.DHCPv4) { p.HopCount = 17 }, err: pxe.ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := pxetest.New(c.kind, 1).Discover()
			if c.edit != nil {
				c.edit(p)
			}
			p, err := pxe.Decode(p.ToBytes())
			check(t, err)
			r, err := pxe.Classify(p, pxe.Rx{Proxy: c.proxy})
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if c.err != nil {
				return
			}
			uuid := "n"
			if r.UUID != nil {
				uuid = "y"
			}
			if got := fmt.Sprintf("%s %s %s %s %d", r.Stage, r.Firmware, r.Arch, uuid, len(r.Notes)); got != c.want {
				t.Errorf("got  %q\nwant %q\nnotes %q", got, c.want, r.Notes)
			}
		})
	}
}

func TestDecodeForgivesMissingEnd(t *testing.T) {
	b := pxetest.New(pxetest.BIOS, 1).Discover().ToBytes()
	cut := b[:strings.LastIndexByte(string(b), 255)]
	if _, err := pxe.Decode(cut); err != nil {
		t.Error(err)
	}
	if _, err := pxe.Decode(cut[:len(cut)-1]); !errors.Is(err, pxe.ErrMalformed) {
		t.Errorf("a cut option: %v", err)
	}
}

func TestUUIDOrder(t *testing.T) {
	// What QEMU's -uuid 1ab05e11-0000-4000-8000-000000000042 put on the wire: testdata/*.pcap.
	p := pxetest.New(pxetest.BIOS, 1).Discover()
	p.Options[97] = []byte{0, 0x11, 0x5e, 0xb0, 0x1a, 0, 0, 0, 0x40, 0x80, 0, 0, 0, 0, 0, 0, 0x42}
	r, err := pxe.Classify(p, pxe.Rx{})
	check(t, err)
	if got := r.UUID.String(); got != "1ab05e11-0000-4000-8000-000000000042" {
		t.Error(got)
	}
}

func TestCleanName(t *testing.T) {
	for in, want := range map[string]string{
		"undionly.kpxe":                   "undionly.kpxe",
		"/UNDIONLY.KPXE":                  "undionly.kpxe",
		`\boot\x64\\snponly.efi`:          "boot/x64/snponly.efi",
		"//boot//ipxe.efi":                "boot/ipxe.efi",
		"ipxe.efi\xff":                    "ipxe.efi",
		"ipxe.efi\x00junk":                "ipxe.efi",
		"ipxe.efi;traceparent=00-01":      "ipxe.efi",
		" ipxe.efi\r\n":                   "ipxe.efi",
		"../../etc/passwd":                "etc/passwd",
		"a/../../../b":                    "b",
		"":                                "",
		"/":                               "",
		strings.Repeat("../", 99) + "x":   "x",
		"\xff":                            "",
		`..\..\windows\system32\drivers`:  "windows/system32/drivers",
		"./ipxe.efi":                      "ipxe.efi",
		"tftp/..\x00/../../../etc/shadow": "",
	} {
		if got := pxe.CleanName(in); got != want {
			t.Errorf("CleanName(%q) = %q, want %q", in, got, want)
		}
	}
}

// FuzzClassify: no packet makes us panic, and what is answered is well-formed and goes back to who asked.
func FuzzClassify(f *testing.F) {
	for k := pxetest.BIOS; k <= pxetest.OS; k++ {
		r := pxetest.New(k, int(k))
		r.BrokenUUID, r.ArchList = k == pxetest.UEFI, k == pxetest.BIOS
		r.RelayInfo, r.Relay = []byte{1, 2, 3, 4}, ip("10.77.0.254")
		f.Add(r.Discover().ToBytes(), k == pxetest.UEFI)
		f.Add(r.Renew(ip("10.77.0.101")).ToBytes(), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, proxy bool) {
		p, err := pxe.Decode(b)
		if err != nil {
			if !errors.Is(err, pxe.ErrMalformed) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		r, err := pxe.Classify(p, pxe.Rx{Proxy: proxy})
		if err != nil {
			if !errors.Is(err, pxe.ErrMalformed) && !errors.Is(err, pxe.ErrNotForUs) && !errors.Is(err, pxe.ErrNotPXE) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		out, dest, err := pxe.Reply(r, pxe.Answer{ScriptURL: script}, pxe.Server{Type: dhcpv4.MessageTypeOffer, Network: lan(),
			Lease: pxe.Lease{IP: ip("10.77.0.123")}, LoaderURL: "http://10.77.0.1:8080/loader", Proxy: proxy})
		if err != nil {
			t.Fatal(err)
		}
		raw := out.ToBytes()
		back, err := dhcpv4.FromBytes(raw)
		if err != nil || len(raw) < 300 {
			t.Fatalf("answer of %d bytes: %v", len(raw), err)
		}
		if back.TransactionID != p.TransactionID || back.ClientHWAddr.String() != p.ClientHWAddr.String() || !dest.Addr.IsValid() {
			t.Fatalf("answer to somebody else: %s", back.Summary())
		}
		if string(back.Options[82]) != string(p.Options[82]) || string(back.Options[97]) != string(p.Options[97]) {
			t.Fatal("82 or 97 is not echoed as it came")
		}
		if r.Stage == pxe.StageIPXE && !r.NoHTTP && strings.HasSuffix(back.BootFileName, ".efi") {
			t.Fatal("iPXE was given a loader")
		}
	})
}
