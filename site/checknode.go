package site

import (
	"fmt"
	"net/netip"
	"slices"

	"ingot/internal/problem"
	"ingot/internal/strict"
)

// identity checks what a node is recognised by.
func (c *checker) identity(d *strict.Decoded, n *Node) {
	who := fmt.Sprintf("node %q", n.Name)
	if n.Serial != "" {
		if JunkSerial(n.Serial) {
			d.Bad("serial", "%q is what boards say that have no serial number: it cannot tell machines apart", n.Serial)
		} else {
			c.take(d, "serial", "the serial number", n.Serial, who)
		}
	}
	if n.UUID != "" {
		u := canonicalUUID(n.UUID)
		switch {
		case u == "":
			d.Bad("uuid", "%q is not a UUID such as 4c4c4544-0051-3610-8054-b4c04f4e4d32", n.UUID)
		case JunkUUID(u):
			d.Bad("uuid", "%q is shared by many boards: it cannot tell machines apart", n.UUID)
		default:
			c.take(d, "uuid", "the UUID", min(u, swapUUID(u)), who)
		}
	}
	for i, nic := range n.NICs {
		if nic.MAC != "" {
			c.take(d, fmt.Sprintf("nics[%d].mac", i), "the MAC", string(nic.MAC), who)
		}
	}
}

func (c *checker) classes(d *strict.Decoded, n *Node) {
	seen := map[string]bool{}
	for i, class := range n.Classes {
		path := fmt.Sprintf("classes[%d]", i)
		switch {
		case class == "DEFAULT" || class == "LAST":
			d.Bad(path, "%s is in every list by itself: remove it", class)
		case class == n.Name:
			d.Bad(path, "the host name is in the list by itself: remove it")
		case !isClass(class):
			d.Bad(path, "%q cannot be a class: use letters, digits and underscores", class)
		case seen[class]:
			d.Bad(path, "%q is in the list twice", class)
		}
		seen[class] = true
	}
}

// others checks the gateway, names of servers and variables.
func (c *checker) others(d *strict.Decoded, n *Node) {
	if n.Gateway.IsValid() {
		reach := false
		for _, ip := range n.ips() {
			p := c.site.Prefix(ip)
			if net := c.site.NetworkOf(ip); net != nil && net.Subnet.IsValid() {
				p = net.Subnet
			}
			reach = reach || ip.Dynamic() && ip.Network == "" || p.IsValid() && p.Contains(n.Gateway)
		}
		if !reach {
			d.Bad("gateway", "%s is on no network of this node", n.Gateway)
		}
	}
	if n.Domain != "" && !isDomain(n.Domain) {
		d.Bad("domain", "%q is not a domain", n.Domain)
	}
	for name := range n.Vars {
		if !isVar(name) {
			d.Bad("vars."+name, "%q cannot be a variable: use letters, digits and underscores", name)
		}
	}
}

// ips are the addresses of all interfaces, in the order of the file.
func (n *Node) ips() []IP {
	var out []IP
	for _, x := range n.NICs {
		out = append(out, x.IP())
	}
	for _, x := range n.Bonds {
		out = append(out, x.IP())
	}
	for _, x := range n.VLANs {
		out = append(out, x.IP())
	}
	return out
}

func bondModes() []string {
	return []string{"balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"}
}

func (c *checker) interfaces(d *strict.Decoded, n *Node) {
	names := map[string]string{} // interface -> path
	boot := false
	for i := range n.NICs {
		nic, path := &n.NICs[i], fmt.Sprintf("nics[%d]", i)
		if nic.MAC == "" && !d.Has(path+".mac") {
			d.Bad(path, "a card needs its mac")
		}
		if nic.Boot && boot {
			d.Bad(path+".boot", "another card is the boot card already")
		}
		boot = boot || nic.Boot
		c.iface(d, n, names, path, nic.Name, nic.MTU, nic.IP())
	}
	for i := range n.Bonds {
		c.bond(d, n, names, i)
	}
	for i := range n.VLANs {
		c.vlan(d, n, names, i)
	}
}

func (c *checker) bond(d *strict.Decoded, n *Node, names map[string]string, i int) {
	b, path := &n.Bonds[i], fmt.Sprintf("bonds[%d]", i)
	if b.Name == "" {
		d.Bad(path, "a bond needs a name")
	}
	if !slices.Contains(bondModes(), b.Mode) {
		d.Bad(path+".mode", "%q is not a mode%s; one of %v", b.Mode, problem.Hint(b.Mode, bondModes()), bondModes())
	}
	if len(b.NICs) == 0 {
		d.Bad(path, "a bond needs nics: the names of its cards")
	}
	for j, name := range b.NICs {
		at := fmt.Sprintf("%s.nics[%d]", path, j)
		k := slices.IndexFunc(n.NICs, func(nic NIC) bool { return nic.Name == name })
		switch {
		case k < 0:
			d.Bad(at, "no card is called %q%s", name, problem.Hint(name, nicNames(n)))
		case n.InBond(name) != b || slices.Index(b.NICs, name) != j:
			d.Bad(at, "card %q is in a bond already", name)
		case n.NICs[k].Address.IsValid() && !n.NICs[k].Boot:
			d.Bad(at, "card %q has an address of its own: in a bond only the bond has one", name)
		}
	}
	c.iface(d, n, names, path, b.Name, b.MTU, b.IP())
}

func (c *checker) vlan(d *strict.Decoded, n *Node, names map[string]string, i int) {
	v, path := &n.VLANs[i], fmt.Sprintf("vlans[%d]", i)
	if v.ID < 1 || v.ID > 4094 {
		d.Bad(path+".id", "a VLAN needs an id from 1 to 4094, this is %d", v.ID)
	}
	if _, ok := names[v.On]; !ok {
		known := nicNames(n)
		for _, b := range n.Bonds {
			known = append(known, b.Name)
		}
		d.Bad(path+".on", "a VLAN needs on: a card or a bond of this node, not %q%s", v.On, problem.Hint(v.On, known))
	}
	for _, o := range n.VLANs[:i] {
		if o.On == v.On && o.ID == v.ID {
			d.Bad(path+".id", "VLAN %d is on %s already", v.ID, v.On)
		}
	}
	c.iface(d, n, names, path, v.Name, v.MTU, v.IP())
}

func nicNames(n *Node) []string {
	var out []string
	for _, nic := range n.NICs {
		out = append(out, nic.Name)
	}
	return out
}

// iface checks what cards, bonds and VLANs have in common.
func (c *checker) iface(d *strict.Decoded, n *Node, names map[string]string, path, name string, mtu int, ip IP) {
	if first, ok := names[name]; ok && name != "" {
		d.Bad(path+".name", "%q is the name of %s already", name, first)
	}
	names[name] = path
	if name != "" && !isIface(name) {
		d.Bad(path+".name", "%q cannot be an interface: at most 15 letters, digits, dots and dashes", name)
	}
	if d.Has(path+".mtu") && (mtu < 68 || mtu > 65535) {
		d.Bad(path+".mtu", "an MTU is from 68 to 65535")
	}
	if ip.Network != "" && c.site.Network(ip.Network) == nil {
		var known []string
		for _, net := range c.site.Networks {
			known = append(known, net.Name)
		}
		d.Bad(path+".network", "no network is called %q%s", ip.Network, problem.Hint(ip.Network, known))
		return
	}
	c.address(d, n, path, ip)
}

func (c *checker) address(d *strict.Decoded, n *Node, path string, ip IP) {
	if !ip.Address.IsValid() {
		return
	}
	a, at := ip.Address, path+".address"
	if d.Has(path+".dhcp") && ip.DHCP && d.At(path+".dhcp").Text == "true" {
		d.Bad(path+".dhcp", "an address is written too: either dhcp or address")
	}
	net := c.site.NetworkOf(ip)
	switch {
	case net == nil && a.Bits == 0:
		d.Bad(at, "%s is on no network of ingot.yaml: write its prefix length too, such as %s/24", a, a)
		return
	case net == nil:
		if why := unusable(netip.PrefixFrom(a.Addr, a.Bits), a.Addr); why != "" {
			d.Bad(at, "%s", why)
		}
	case !net.Subnet.IsValid():
		return
	case a.Bits > 0 && a.Bits != net.Subnet.Bits():
		d.Bad(at, "network %q has the prefix length %d, not %d", net.Name, net.Subnet.Bits(), a.Bits)
	case unusable(net.Subnet, a.Addr) != "":
		d.Bad(at, "%s (network %q)", unusable(net.Subnet, a.Addr), net.Name)
	case net.Range.Contains(a.Addr):
		d.Bad(at, "%s is in the range %s that network %q gives to others: choose one outside it", a, net.Range, net.Name)
	}
	c.take(d, at, "address", a.Addr.String(), fmt.Sprintf("node %q", n.Name))
}
