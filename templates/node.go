package templates

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"

	"ingot/classes"
	"ingot/site"
)

// NodeFile is one file of a node that follows from nodes/NAME.yaml. It belongs to root:root.
type NodeFile struct {
	Path string // /etc/hostname
	Mode uint32
	Data []byte
}

// Iface is a network interface as the networkd templates see it.
type Iface struct {
	Name    string
	Kind    string // "" a card, "bond", "vlan"
	MAC     string // of a card
	Address string // 10.77.0.11/24
	DHCP    bool
	Gateway string
	DNS     []string
	Domain  string
	MTU     int
	VLANs   []string // on this interface
	Bond    string   // that this card is part of
	Mode    string   // of a bond
	ID      int      // of a VLAN
	Idle    bool     // has no address: only carries others, or nothing
}

// nodeData is what the templates of node files see.
type nodeData struct {
	Node    *site.Node
	Site    *site.Site
	Vars    map[string]string
	Classes []string

	Address string // the node's first static address
	Domain  string
	DNS     []string
	Iface   Iface // networkd templates only
}

// Vars are the variables of a node: class/*.var, over them those of nodes/NAME.yaml, and
// HOSTNAME, DOMAIN and IPADDR where they are known and not set.
func Vars(st *site.Site, n *site.Node, r *classes.Resolved) map[string]string {
	vars := map[string]string{"HOSTNAME": n.Name}
	if d := domain(st, n); d != "" {
		vars["DOMAIN"] = d
	}
	if a := address(st, n); a.IsValid() {
		vars["IPADDR"] = a.Addr().String()
	}
	if r != nil {
		maps.Copy(vars, r.Vars)
	}
	maps.Copy(vars, n.Vars)
	return vars
}

// Node renders the files of a node: host name, hosts, resolv.conf and, when its profile
// says network: networkd, /etc/systemd/network. A template that renders to nothing makes no
// file.
func (s *Set) Node(st *site.Site, n *site.Node, r *classes.Resolved) ([]NodeFile, error) {
	data := nodeData{Node: n, Site: st, Vars: Vars(st, n, r), Classes: r.Classes, Domain: domain(st, n), DNS: nameservers(st, n)}
	if a := address(st, n); a.IsValid() {
		data.Address = a.Addr().String()
	}
	var out []NodeFile
	add := func(name, path string) error {
		text, err := s.Render(name, data)
		if err == nil && strings.TrimSpace(string(text)) != "" {
			out = append(out, NodeFile{path, 0o644, text})
		}
		return err
	}
	for _, name := range []string{"hostname", "hosts", "resolv.conf"} {
		if err := add(name, "/etc/"+name); err != nil {
			return nil, fmt.Errorf("files of node %q: %w", n.Name, err)
		}
	}
	if r.Profile.Network != "networkd" {
		return out, nil
	}
	for _, i := range Ifaces(st, n) {
		data.Iface = i
		kinds := []string{"network"}
		switch {
		case i.Kind != "":
			kinds = append(kinds, "netdev")
		case i.MAC != "":
			kinds = append(kinds, "link")
		}
		for _, kind := range kinds {
			// 10- comes before what distributions install.
			if err := add("networkd."+kind, fmt.Sprintf("/etc/systemd/network/10-%s.%s", i.Name, kind)); err != nil {
				return nil, fmt.Errorf("files of node %q: %w", n.Name, err)
			}
		}
	}
	return out, nil
}

// Ifaces are the interfaces of a node: cards, bonds, VLANs, in the order of the file. One of
// them at most gets the default route.
func Ifaces(st *site.Site, n *site.Node) []Iface {
	var out []Iface
	var ips []site.IP
	for _, c := range n.NICs {
		ip := c.IP()
		if boot := n.BootNIC(); boot != nil && boot.Name == c.Name && !ip.Address.IsValid() {
			ip.DHCP = true // it is booted over, whether or not anybody wrote so
		}
		i := Iface{Name: c.Name, MAC: string(c.MAC), MTU: c.MTU}
		if b := n.InBond(c.Name); b != nil {
			i.Bond, ip = b.Name, site.IP{}
		}
		out, ips = append(out, i), append(ips, ip)
	}
	for _, b := range n.Bonds {
		out = append(out, Iface{Name: b.Name, Kind: "bond", Mode: b.Mode, MTU: b.MTU})
		ips = append(ips, b.IP())
	}
	for _, v := range n.VLANs {
		out = append(out, Iface{Name: v.Name, Kind: "vlan", ID: v.ID, MTU: v.MTU})
		ips = append(ips, v.IP())
	}
	for i := range out {
		for _, v := range n.VLANs {
			if v.On == out[i].Name {
				out[i].VLANs = append(out[i].VLANs, v.Name)
			}
		}
		out[i].address(st, n, ips[i])
	}
	route(st, n, out, ips)
	return out
}

func (i *Iface) address(st *site.Site, n *site.Node, ip site.IP) {
	i.DHCP = ip.Dynamic()
	p := st.Prefix(ip)
	i.Idle = !i.DHCP && !p.IsValid()
	if !p.IsValid() {
		return
	}
	i.Address = p.String()
	net := st.NetworkOf(ip)
	i.Domain = n.Domain
	servers := n.DNS
	if net != nil && i.Domain == "" {
		i.Domain = net.Domain
	}
	if net != nil && len(servers) == 0 {
		servers = net.DNS
	}
	i.DNS = texts(servers)
}

// route puts the default route on the interface that reaches the node's gateway, else on
// the first with a static address on a network that has a router.
func route(st *site.Site, n *site.Node, ifaces []Iface, ips []site.IP) {
	for i := range ifaces {
		p := st.Prefix(ips[i])
		if !p.IsValid() {
			continue
		}
		if n.Gateway.IsValid() {
			if p.Masked().Contains(n.Gateway) {
				ifaces[i].Gateway = n.Gateway.String()
				return
			}
			continue
		}
		if net := st.NetworkOf(ips[i]); net != nil && net.Router.IsValid() && net.Router != p.Addr() {
			ifaces[i].Gateway = net.Router.String()
			return
		}
	}
}

// addresses are the addresses of the interfaces, those of cards in a bond left out.
func addresses(n *site.Node) []site.IP {
	var ips []site.IP
	for _, c := range n.NICs {
		if n.InBond(c.Name) == nil {
			ips = append(ips, c.IP())
		}
	}
	for _, b := range n.Bonds {
		ips = append(ips, b.IP())
	}
	for _, v := range n.VLANs {
		ips = append(ips, v.IP())
	}
	return ips
}

func address(st *site.Site, n *site.Node) netip.Prefix {
	for _, ip := range addresses(n) {
		if p := st.Prefix(ip); p.IsValid() {
			return p
		}
	}
	return netip.Prefix{}
}

func domain(st *site.Site, n *site.Node) string {
	if n.Domain != "" {
		return n.Domain
	}
	for _, ip := range addresses(n) {
		if net := st.NetworkOf(ip); net != nil && net.Domain != "" {
			return net.Domain
		}
	}
	return ""
}

func nameservers(st *site.Site, n *site.Node) []string {
	if len(n.DNS) > 0 {
		return texts(n.DNS)
	}
	for _, ip := range addresses(n) {
		if net := st.NetworkOf(ip); net != nil && len(net.DNS) > 0 {
			return texts(net.DNS)
		}
	}
	return nil
}

func texts(addrs []netip.Addr) []string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}
