package site

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Node is one machine: nodes/NAME.yaml.
type Node struct {
	Name    string            `yaml:"name,omitempty"`    // the file's name when not written
	Serial  string            `yaml:"serial,omitempty"`  // SMBIOS system serial number
	UUID    string            `yaml:"uuid,omitempty"`    // SMBIOS system UUID
	Classes []string          `yaml:"classes,omitempty"` // in order; later ones win
	NICs    []NIC             `yaml:"nics,omitempty"`
	Bonds   []Bond            `yaml:"bonds,omitempty"`
	VLANs   []VLAN            `yaml:"vlans,omitempty"`
	Gateway netip.Addr        `yaml:"gateway,omitzero"` // instead of the network's router
	DNS     []netip.Addr      `yaml:"dns,omitempty"`    // instead of the network's
	Domain  string            `yaml:"domain,omitempty"` // instead of the network's
	Vars    map[string]string `yaml:"vars,omitempty"`   // for templates and substituted files
}

// IP is how an interface gets its address: a static one, or DHCP when it is on a network
// or says so, or none.
type IP struct {
	Network string
	Address Address
	DHCP    bool
}

// Dynamic says whether the interface asks for its address.
func (ip IP) Dynamic() bool { return !ip.Address.IsValid() && (ip.DHCP || ip.Network != "") }

// NIC is one network card. Replacing a card means editing its mac.
type NIC struct {
	Name    string  `yaml:"name,omitempty"` // the interface's name on the node: eth0
	MAC     MAC     `yaml:"mac,omitempty"`
	Network string  `yaml:"network,omitempty"`
	Address Address `yaml:"address,omitzero"`
	DHCP    bool    `yaml:"dhcp,omitempty"`
	Boot    bool    `yaml:"boot,omitempty"` // the card that the machine boots from
	MTU     int     `yaml:"mtu,omitempty"`
}

// Bond is several cards that act as one.
type Bond struct {
	Name    string   `yaml:"name,omitempty"`
	NICs    []string `yaml:"nics,omitempty"`
	Mode    string   `yaml:"mode,omitempty"` // active-backup when not written
	Network string   `yaml:"network,omitempty"`
	Address Address  `yaml:"address,omitzero"`
	DHCP    bool     `yaml:"dhcp,omitempty"`
	MTU     int      `yaml:"mtu,omitempty"`
}

// VLAN is a tagged network on a card or a bond.
type VLAN struct {
	Name    string  `yaml:"name,omitempty"` // ON.ID when not written
	On      string  `yaml:"on,omitempty"`
	ID      int     `yaml:"id,omitempty"`
	Network string  `yaml:"network,omitempty"`
	Address Address `yaml:"address,omitzero"`
	DHCP    bool    `yaml:"dhcp,omitempty"`
	MTU     int     `yaml:"mtu,omitempty"`
}

// IP is how the card gets its address; a card that boots asks by DHCP unless it is in a bond
// (see Node.InBond) or says otherwise.
func (n NIC) IP() IP { return IP{n.Network, n.Address, n.DHCP || n.Boot} }

// IP is how the bond gets its address.
func (b Bond) IP() IP { return IP{b.Network, b.Address, b.DHCP} }

// IP is how the VLAN gets its address.
func (v VLAN) IP() IP { return IP{v.Network, v.Address, v.DHCP} }

// File is where the node is written, relative to the site.
func (n *Node) File() string { return filepath.Join(nodesDir, n.Name+nodeExt) }

// clone copies the interfaces, so that normalize does not change the original's.
func (n Node) clone() Node {
	n.NICs, n.Bonds, n.VLANs = slices.Clone(n.NICs), slices.Clone(n.Bonds), slices.Clone(n.VLANs)
	return n
}

// normalize fills in what goes without saying.
func (n *Node) normalize() {
	for i := range n.NICs {
		if n.NICs[i].Name == "" {
			n.NICs[i].Name = fmt.Sprintf("eth%d", i)
		}
	}
	for i := range n.Bonds {
		if n.Bonds[i].Mode == "" {
			n.Bonds[i].Mode = "active-backup"
		}
	}
	for i := range n.VLANs {
		if v := &n.VLANs[i]; v.Name == "" {
			v.Name = fmt.Sprintf("%s.%d", v.On, v.ID)
		}
	}
	if u := canonicalUUID(n.UUID); u != "" {
		n.UUID = u
	}
}

// InBond returns the bond that a card is part of, or nil.
func (n *Node) InBond(nic string) *Bond {
	for i, b := range n.Bonds {
		for _, name := range b.NICs {
			if name == nic {
				return &n.Bonds[i]
			}
		}
	}
	return nil
}

// BootNIC is the card that is marked so, else the first one with a MAC, else nil.
func (n *Node) BootNIC() *NIC {
	for i := range n.NICs {
		if n.NICs[i].Boot {
			return &n.NICs[i]
		}
	}
	for i := range n.NICs {
		if n.NICs[i].MAC != "" {
			return &n.NICs[i]
		}
	}
	return nil
}

// MAC is a hardware address in lower case with colons, of 6, 8 or 20 bytes.
type MAC string

// ParseMAC reads the usual spellings: colons, dashes, dots, upper case.
func ParseMAC(text string) (MAC, error) {
	hw, err := net.ParseMAC(text)
	if err != nil {
		return "", fmt.Errorf("%q is not a MAC address such as 52:54:00:12:34:56", text)
	}
	return MAC(hw.String()), nil
}

// UnmarshalText reads a MAC that belongs to one card: no group address, not all zero.
func (m *MAC) UnmarshalText(text []byte) error {
	mac, err := ParseMAC(string(text))
	if err != nil {
		return err
	}
	hw, _ := net.ParseMAC(string(mac))
	if hw[0]&1 != 0 && len(hw) == 6 {
		return fmt.Errorf("%q is a group address, not one card's", text)
	}
	if strings.Trim(string(mac), "0:") == "" {
		return fmt.Errorf("%q is not a card's address", text)
	}
	*m = mac
	return nil
}

// Address is a static address, with its prefix length where it is on no network of the site.
type Address struct {
	Addr netip.Addr
	Bits int // 0: that of the network
}

// IsValid says whether there is an address.
func (a Address) IsValid() bool { return a.Addr.IsValid() }

// IsZero says that there is none.
func (a Address) IsZero() bool { return !a.IsValid() }

func (a Address) String() string {
	switch {
	case !a.IsValid():
		return ""
	case a.Bits > 0:
		return netip.PrefixFrom(a.Addr, a.Bits).String()
	}
	return a.Addr.String()
}

// MarshalText writes the address as people do.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads `10.77.0.5` or `192.168.4.5/24`.
func (a *Address) UnmarshalText(text []byte) error {
	if strings.Contains(string(text), "/") {
		p, err := netip.ParsePrefix(string(text))
		if err != nil || p.Bits() == 0 {
			return fmt.Errorf("%q is not an address with its prefix length such as 192.168.4.5/24", text)
		}
		*a = Address{p.Addr(), p.Bits()}
		return nil
	}
	addr, err := netip.ParseAddr(string(text))
	if err != nil {
		return fmt.Errorf("%q is not an IP address", text)
	}
	*a = Address{Addr: addr}
	return nil
}

// Range is a range of addresses, both ends included.
type Range struct{ First, Last netip.Addr }

// IsValid says whether there is a range.
func (r Range) IsValid() bool { return r.First.IsValid() }

// Contains says whether an address is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return r.IsValid() && a.IsValid() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

func (r Range) String() string {
	if !r.IsValid() {
		return ""
	}
	return r.First.String() + "-" + r.Last.String()
}

// MarshalText writes the range as people do.
func (r Range) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads `10.77.0.100-10.77.0.199`.
func (r *Range) UnmarshalText(text []byte) error {
	first, last, ok := strings.Cut(string(text), "-")
	a, err1 := netip.ParseAddr(strings.TrimSpace(first))
	b, err2 := netip.ParseAddr(strings.TrimSpace(last))
	if !ok || err1 != nil || err2 != nil {
		return fmt.Errorf("%q is not a range such as 10.77.0.100-10.77.0.199", text)
	}
	if a.BitLen() != b.BitLen() || b.Less(a) {
		return fmt.Errorf("%q ends before it begins", text)
	}
	*r = Range{a, b}
	return nil
}

// compareNames orders names, runs of digits by their value: n2 < n10.
func compareNames(a, b string) int {
	x, y := a, b
	for x != "" && y != "" {
		if isDigit(x[0]) && isDigit(y[0]) {
			p, q := digits(x), digits(y)
			m, err1 := strconv.ParseUint(p, 10, 64)
			n, err2 := strconv.ParseUint(q, 10, 64)
			if err1 == nil && err2 == nil && m != n {
				if m < n {
					return -1
				}
				return 1
			}
			if p != q {
				return strings.Compare(p, q)
			}
			x, y = x[len(p):], y[len(q):]
			continue
		}
		if x[0] != y[0] {
			return strings.Compare(x, y)
		}
		x, y = x[1:], y[1:]
	}
	return strings.Compare(a, b)
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func digits(s string) string {
	n := 0
	for n < len(s) && isDigit(s[n]) {
		n++
	}
	return s[:n]
}
