package pxe_test

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"ingot/pxe"
)

// readPcap reads a little-endian capture of Ethernet frames: libpcap's classic format.
func readPcap(t *testing.T, file string) (frames [][]byte) {
	t.Helper()
	b, err := os.ReadFile(file)
	check(t, err)
	if len(b) < 24 || binary.LittleEndian.Uint32(b) != 0xa1b2c3d4 || binary.LittleEndian.Uint32(b[20:]) != 1 {
		t.Fatalf("%s is no capture of Ethernet", file)
	}
	for b = b[24:]; len(b) >= 16; {
		n := int(binary.LittleEndian.Uint32(b[8:]))
		frames = append(frames, b[16:16+n])
		b = b[16+n:]
	}
	return frames
}

// TestGolden classifies and answers every packet that firmware sent in TestFirmware, and compares the whole with what was
// judged right: NAME.golden. INGOT_UPDATE=1 writes it anew, to be read before it is committed.
func TestGolden(t *testing.T) {
	captures, err := filepath.Glob("testdata/*.pcap")
	check(t, err)
	if len(captures) < 4 {
		t.Fatalf("%d captures, want 4 or more", len(captures))
	}
	for _, file := range captures {
		t.Run(filepath.Base(file), func(t *testing.T) {
			var out strings.Builder
			frames := readPcap(t, file)
			if len(frames) < 2 {
				t.Fatalf("%d packets", len(frames))
			}
			for i, f := range frames {
				d, ok := pxe.ParseFrame(f)
				if !ok {
					t.Fatalf("packet %d is no UDP", i)
				}
				golden(t, &out, i, d)
			}
			name := strings.TrimSuffix(file, ".pcap") + ".golden"
			if os.Getenv("INGOT_UPDATE") == "1" {
				check(t, os.WriteFile(name, []byte(out.String()), 0o644))
			}
			want, err := os.ReadFile(name)
			check(t, err)
			if out.String() != string(want) {
				t.Errorf("differs from %s (INGOT_UPDATE=1 writes it anew); now:\n%s", name, out.String())
			}
		})
	}
}

func golden(t *testing.T, out *strings.Builder, i int, d pxe.Datagram) {
	t.Helper()
	pkt, err := pxe.Decode(d.Payload)
	check(t, err)
	r, err := pxe.Classify(pkt, pxe.Rx{Iface: "srv0", IfIndex: 2, Src: d.Src, Dst: d.Dst.Addr(), Proxy: d.Dst.Port() == 4011})
	check(t, err)
	fmt.Fprintf(out, "# packet %d: %s from %s: stage %s, firmware %s, arch %s (%x), uuid %v\n", i, r.MessageType, r.MAC, r.Stage, r.Firmware, r.Arch, r.ClientArchRaw, r.UUID)
	fmt.Fprintf(out, "  vendor class %q, user class %q, broadcast %v, client id %x, no-http %v, notes %q\n", r.VendorClass, r.UserClass, r.Broadcast, r.ClientID, r.NoHTTP, r.Notes)
	srv := pxe.Server{Type: dhcpv4.MessageTypeOffer, Network: lan(), LeaseTime: 10 * time.Minute,
		Lease: pxe.Lease{MAC: r.MAC, IP: ip("10.77.0.123"), Hostname: "n01", Reserved: true}, LoaderURL: "http://10.77.0.1:8080/loader"}
	if r.MessageType == dhcpv4.MessageTypeRequest {
		srv.Type = dhcpv4.MessageTypeAck
	}
	reply, dest, err := pxe.Reply(r, pxe.Answer{ScriptURL: script}, srv)
	check(t, err)
	fmt.Fprintf(out, "  answer by %s to %s: %s\n", dest.Via, dest.Addr, reply.MessageType())
	for code := range 255 {
		if v, ok := reply.Options[uint8(code)]; ok {
			fmt.Fprintf(out, "    %3d %s\n", code, printable(v))
		}
	}
	fmt.Fprintf(out, "%s", indent(hex.Dump(reply.ToBytes())))
}

func printable(b []byte) string {
	for _, c := range b {
		if c < ' ' || c > '~' {
			return hex.EncodeToString(b)
		}
	}
	return fmt.Sprintf("%q", b)
}

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimSuffix(s, "\n"), "\n", "\n    ") + "\n"
}
