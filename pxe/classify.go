package pxe

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Stage is how far a machine has come when it asks.
type Stage int

// The stages. One machine asks as ROM, then as iPXE, then as installer or as its operating system, with the same MAC and
// often with a different client id each time.
const (
	StageOS        Stage = iota // any other DHCP client
	StageROM                    // the firmware's own PXE or HTTP boot: it gets a loader
	StageIPXE                   // iPXE, ours or the card's: it gets the boot script
	StageInstaller              // ingot's installer environment
)

func (s Stage) String() string {
	return [...]string{"os", "rom", "ipxe", "installer"}[s]
}

// InstallerClass is the vendor class (option 60) by which ingot's installer environment makes itself known.
const InstallerClass = "ingot-installer"

// A Request is what a packet says, in our words. Slices are copies.
type Request struct {
	MAC         net.HardwareAddr
	UUID        *UUID // nil: none sent, or one that many machines share
	Arch        Arch
	Firmware    Firmware
	Stage       Stage
	MessageType dhcpv4.MessageType

	ClientArchRaw []byte // option 93 as sent: a list of 16-bit values
	VendorClass   string // option 60
	UserClass     string // option 77
	Hostname      string // option 12: the client's word, never a node's identity
	NoHTTP        bool   // an iPXE that was built without HTTP: it cannot fetch a script

	RequestedIP netip.Addr // option 50
	ServerID    netip.Addr // option 54: the server that the client chose
	CIAddr      netip.Addr // the client's address, when it has one
	GIAddr      netip.Addr // the relay's
	XID         uint32
	Hops        uint8
	Secs        uint16 // since the client began to ask
	Broadcast   bool   // the client cannot take unicast yet

	MachineID []byte // option 97 as sent, echoed
	ClientID  []byte // option 61 as sent, echoed (RFC 6842), never a key: ROM, iPXE, installer and OS send different ones
	RelayInfo []byte // option 82 as sent, echoed

	Rx      Rx
	Network string     // name of the network that answers; set by DHCP before Decide
	Server  netip.Addr // our address on it, for URLs; set by DHCP before Decide
	Notes   []string   // what was odd about the packet but did not stop us; logged
}

// Boots reports whether the client is booting from the network: only then does it get boot information.
func (r *Request) Boots() bool { return r.Stage == StageROM || r.Stage == StageIPXE }

func (r *Request) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// Decode reads a DHCP packet. A missing end option (255), which some embedded clients leave out, is forgiven.
func Decode(b []byte) (*dhcpv4.DHCPv4, error) {
	pkt, err := dhcpv4.FromBytes(b)
	if err != nil {
		pkt, err = dhcpv4.FromBytes(append(slices.Clip(b), 255))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return pkt, nil
}

// Classify says who sent pkt. It is pure. The error is ErrNotForUs or ErrNotPXE, to be passed over in silence, or wraps
// ErrMalformed.
func Classify(pkt *dhcpv4.DHCPv4, rx Rx) (Request, error) {
	if pkt.OpCode != dhcpv4.OpcodeBootRequest || !asked(pkt.MessageType()) {
		return Request{}, ErrNotForUs
	}
	if err := checkHardware(pkt); err != nil {
		return Request{}, err
	}
	r := Request{
		MAC:           slices.Clone(pkt.ClientHWAddr),
		MessageType:   pkt.MessageType(),
		ClientArchRaw: option(pkt, dhcpv4.OptionClientSystemArchitectureType),
		VendorClass:   text(option(pkt, dhcpv4.OptionClassIdentifier)),
		UserClass:     userClass(option(pkt, dhcpv4.OptionUserClassInformation)),
		Hostname:      text(option(pkt, dhcpv4.OptionHostName)),
		RequestedIP:   addr4(option(pkt, dhcpv4.OptionRequestedIPAddress)),
		ServerID:      addr4(option(pkt, dhcpv4.OptionServerIdentifier)),
		CIAddr:        addr4(pkt.ClientIPAddr),
		GIAddr:        addr4(pkt.GatewayIPAddr),
		XID:           binary.BigEndian.Uint32(pkt.TransactionID[:]),
		Hops:          pkt.HopCount,
		Secs:          pkt.NumSeconds,
		Broadcast:     pkt.IsBroadcast(),
		MachineID:     option(pkt, dhcpv4.OptionClientMachineIdentifier),
		ClientID:      option(pkt, dhcpv4.OptionClientIdentifier),
		RelayInfo:     option(pkt, dhcpv4.OptionRelayAgentInformation),
		Rx:            rx,
	}
	r.readUUID()
	r.readArch()
	r.readStage(pkt)
	if rx.Proxy && !r.Boots() {
		return r, ErrNotPXE
	}
	return r, nil
}

func asked(t dhcpv4.MessageType) bool {
	switch t {
	case dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeDecline,
		dhcpv4.MessageTypeRelease, dhcpv4.MessageTypeInform:
		return true
	}
	return false
}

// checkHardware wants an Ethernet address. InfiniBand (RFC 4390: type 32, length 0, chaddr zero) is not supported; cards
// that squeeze 6 bytes out of their GUID look like Ethernet and work.
func checkHardware(pkt *dhcpv4.DHCPv4) error {
	mac := pkt.ClientHWAddr
	if pkt.HWType != 1 || len(mac) != 6 {
		return fmt.Errorf("%w: hardware type %d with %d address bytes, want Ethernet", ErrMalformed, pkt.HWType, len(mac))
	}
	if mac[0]&1 != 0 || [6]byte(mac) == [6]byte{} {
		return fmt.Errorf("%w: %q is no machine's address", ErrMalformed, mac.String())
	}
	if pkt.HopCount > 16 { // RFC 1542 4.1.1: a relay loop
		return fmt.Errorf("%w: %d relays", ErrMalformed, pkt.HopCount)
	}
	return nil
}

// readUUID keeps option 97 when it can be an identity. Some Intel cards omit it, others send a wrong length: both boot.
func (r *Request) readUUID() {
	if len(r.MachineID) == 0 {
		return
	}
	u, err := parseMachineID(r.MachineID)
	if err != nil {
		r.note("%v (%d bytes)", err, len(r.MachineID))
		return
	}
	if !u.Junk() {
		r.UUID = &u
	}
}

// readArch takes the first known value of option 93, which RFC 4578 2.1 allows to be a list. A client that says PXEClient
// or HTTPClient without option 93 has it in the vendor class: "PXEClient:Arch:00007:UNDI:003016".
func (r *Request) readArch() {
	r.Arch = ArchNone
	for i := 0; i+1 < len(r.ClientArchRaw); i += 2 {
		a := Arch(binary.BigEndian.Uint16(r.ClientArchRaw[i:]))
		if _, ok := a.info(); ok {
			r.Arch = a
			break
		}
		if i == 0 {
			r.Arch = a // unknown, but better than nothing in a log
		}
	}
	if len(r.ClientArchRaw)%2 != 0 {
		r.note("option 93 has %d bytes", len(r.ClientArchRaw))
	}
	if parts := strings.Split(r.VendorClass, ":"); r.Arch == ArchNone && len(parts) > 2 && parts[1] == "Arch" {
		if n, err := strconv.ParseUint(parts[2], 10, 16); err == nil {
			r.Arch = Arch(n)
			r.note("no option 93: architecture from vendor class %q", r.VendorClass)
		}
	}
	if r.Arch == ArchBIOS && raspberry(r.MAC) && strings.HasPrefix(r.VendorClass, "PXEClient") {
		r.Arch = ArchRPi // the ROM of Pi 3, 4 and 5 says "BIOS"
	}
	r.Firmware = r.Arch.Firmware()
}

// raspberry knows the makers' prefixes of Raspberry Pi boards.
func raspberry(mac net.HardwareAddr) bool {
	switch [3]byte(mac[:3]) {
	case [3]byte{0xb8, 0x27, 0xeb}, [3]byte{0xdc, 0xa6, 0x32}, [3]byte{0xe4, 0x5f, 0x01},
		[3]byte{0x28, 0xcd, 0xc1}, [3]byte{0xd8, 0x3a, 0xdd}:
		return true
	}
	return false
}

// readStage: iPXE says so in option 77 and sends its own options in 175 (iPXE dhcp.h, DHCP_EB_ENCAP). It also says
// "PXEClient" in option 60, as the ROM that it replaces did, so it must be looked for first.
func (r *Request) readStage(pkt *dhcpv4.DHCPv4) {
	encap := pkt.Options.Get(dhcpv4.GenericOptionCode(175))
	pxe, web := strings.HasPrefix(r.VendorClass, "PXEClient"), strings.HasPrefix(r.VendorClass, "HTTPClient")
	switch {
	case strings.HasPrefix(r.VendorClass, InstallerClass):
		r.Stage = StageInstaller
	case r.UserClass == "iPXE" || r.UserClass == "gPXE" || (pxe && len(encap) > 0):
		r.Stage = StageIPXE
		_, listed := subOption(encap, ipxeFeaturePXE)
		_, listedEFI := subOption(encap, ipxeFeatureEFI)
		_, http := subOption(encap, ipxeFeatureHTTP)
		r.NoHTTP = (listed || listedEFI) && !http
	case (pxe || web) && r.Arch == ArchNone:
		// Without an architecture no loader can be chosen, and a wrong one hangs the machine.
		r.note("vendor class %q without architecture: address only", r.VendorClass)
	case pxe || web:
		r.Stage = StageROM
	}
	if r.Stage == StageROM && web {
		r.Firmware = UEFIHTTP
	}
}

// Sub-options of 175 (iPXE dhcp.h: DHCP_EB_FEATURE_*), present when the feature was built in.
const (
	ipxeNoProxy     = 0xb0 // no-pxedhcp
	ipxeFeatureHTTP = 0x13
	ipxeFeaturePXE  = 0x21
	ipxeFeatureEFI  = 0x24
)

// subOption finds a sub-option in a chain of code, length, value.
func subOption(b []byte, code byte) ([]byte, bool) {
	for len(b) >= 2 && b[0] != 255 {
		if b[0] == 0 {
			b = b[1:]
			continue
		}
		n := int(b[1])
		if len(b) < 2+n {
			return nil, false
		}
		if b[0] == code {
			return b[2 : 2+n], true
		}
		b = b[2+n:]
	}
	return nil, false
}

func option(pkt *dhcpv4.DHCPv4, code dhcpv4.OptionCode) []byte {
	return slices.Clone(pkt.Options.Get(code))
}

// text trims the NUL that some ROMs count into a string, and drops what would spoil a log line.
func text(b []byte) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c == '\uFFFD' {
			return -1
		}
		return c
	}, string(b))
}

// userClass reads option 77. RFC 3004 wants a list of length-prefixed strings; iPXE sends the bare text.
func userClass(b []byte) string {
	if len(b) > 1 && int(b[0]) <= len(b)-1 && b[0] < ' ' {
		b = b[1 : 1+int(b[0])]
	}
	return text(b)
}

// addr4 is the zero Addr for 0.0.0.0 and for anything that is not four bytes.
func addr4(b []byte) netip.Addr {
	if len(b) == 16 {
		b = net.IP(b).To4()
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok || !a.Is4() || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}
