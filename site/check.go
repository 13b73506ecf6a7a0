package site

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ingot/internal/problem"
	"ingot/internal/strict"
)

// checker collects a site and everything that is wrong with it.
type checker struct {
	site  *Site
	probs problem.List
	conf  *strict.Decoded
	docs  []*strict.Decoded // of site.Nodes, by index

	taken map[string]string // "mac 52:..": who has it, and where
}

const (
	alnum = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	lower = "abcdefghijklmnopqrstuvwxyz0123456789"
)

// made says whether s begins with one of first, goes on with those and rest, and has at
// most limit bytes.
func made(s, first, rest string, limit int) bool {
	return s != "" && len(s) <= limit && strings.Contains(first, s[:1]) && strings.Trim(s[1:], first+rest) == ""
}

// isHost: RFC 1123 section 2.1, in lower case only, so that names compare as they look.
func isHost(s string) bool { return made(s, lower, "-", 63) && !strings.HasSuffix(s, "-") }

// isClass: what can be the name of a file in the config space.
func isClass(s string) bool { return made(s, alnum+"_", ".+-", 200) }

// isIface: IFNAMSIZ is 16 with the final zero.
func isIface(s string) bool { return made(s, alnum, "_.-", 15) }

// isVar: a variable of the shell.
func isVar(s string) bool { return made(s, alnum+"_", "", 200) && !isDigit(s[0]) }

func isDomain(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if !isHost(strings.ToLower(label)) {
			return false
		}
	}
	return len(s) <= 253
}

// node reads one node file.
func (c *checker) node(f nodeFile) {
	n := &Node{}
	root := strict.Parse(f.file, f.text, &c.probs)
	d := strict.Decode(root, n, &c.probs)
	switch {
	case !isHost(f.name):
		c.probs.Add(problem.Problem{File: f.file, Text: fmt.Sprintf("%q cannot be a host name: use letters a-z, digits and dashes, at most 63", f.name)})
	case f.name == "all":
		c.probs.Add(problem.Problem{File: f.file, Text: `"all" means all nodes: choose another name`})
	case n.Name != "" && n.Name != f.name:
		d.Bad("name", "the file's name says %q: rename the file or remove this line", f.name)
	}
	n.Name = f.name
	n.normalize()
	c.site.Nodes = append(c.site.Nodes, n)
	c.docs = append(c.docs, d)
}

// all checks what was read, alone and together.
func (c *checker) all() {
	c.taken = map[string]string{}
	c.server()
	for i := range c.site.Networks {
		c.network(i)
	}
	c.keys()
	for i, n := range c.site.Nodes {
		c.identity(c.docs[i], n)
		c.classes(c.docs[i], n)
		c.interfaces(c.docs[i], n)
		c.others(c.docs[i], n)
	}
}

// take notes that something is used once; the second user gets a problem.
func (c *checker) take(d *strict.Decoded, path, what, value, who string) {
	key := what + " " + value
	if first, ok := c.taken[key]; ok {
		d.Bad(path, "%s %s is already that of %s", what, value, first)
		return
	}
	at := d.At(path)
	c.taken[key] = fmt.Sprintf("%s (%s:%d)", who, at.Source.Name, at.Line)
}

func (c *checker) server() {
	s := c.site.Server
	if s.HTTP < 1 || s.HTTP > 65535 {
		c.conf.Bad("server.http", "%d is not a TCP port", s.HTTP)
	}
	if s.Address.IsValid() && (!s.Address.Is4() || s.Address.IsUnspecified()) {
		c.conf.Bad("server.address", "%s is not an IPv4 address that machines can reach", s.Address)
	}
	for i, a := range c.site.Installer.Args {
		if strings.ContainsAny(a, "\n\r\x00") || a == "" {
			c.conf.Bad(fmt.Sprintf("installer.args[%d]", i), "%q is not a kernel argument", a)
		}
	}
	for i, m := range c.site.Installer.Modules {
		if !made(m, alnum+"_", "-", 100) {
			c.conf.Bad(fmt.Sprintf("installer.modules[%d]", i), "%q is not the name of a kernel module", m)
		}
	}
}

func (c *checker) network(i int) {
	n, path := c.site.Networks[i], fmt.Sprintf("networks[%d]", i)
	bad := func(key, format string, args ...any) { c.conf.Bad(path+key, format, args...) }
	switch {
	case n.Name == "":
		bad("", "a network needs a name")
	case !isClass(n.Name):
		bad(".name", "%q is not a name: use letters, digits, dots and dashes", n.Name)
	default:
		c.take(c.conf, path+".name", "the network name", n.Name, "another network")
	}
	if n.Interface != "" {
		if !isIface(n.Interface) {
			bad(".interface", "%q is not the name of a network interface", n.Interface)
		}
		c.take(c.conf, path+".interface", "the interface", n.Interface, fmt.Sprintf("network %q", n.Name))
	}
	if n.DHCP != "full" && n.DHCP != "proxy" && n.DHCP != "off" {
		bad(".dhcp", "%q is not one of full, proxy, off", n.DHCP)
	}
	if n.Domain != "" && !isDomain(n.Domain) {
		bad(".domain", "%q is not a domain", n.Domain)
	}
	if n.BootLease > n.Lease {
		bad(".boot_lease", "%s is longer than the lease of %s", n.BootLease, n.Lease)
	}
	c.subnet(i, path, bad)
}

func (c *checker) subnet(i int, path string, bad func(key, format string, args ...any)) {
	n := c.site.Networks[i]
	if !n.Subnet.IsValid() {
		if !c.conf.Has(path + ".subnet") {
			bad("", "a network needs its subnet, such as 10.77.0.0/24")
		}
		return
	}
	if !n.Subnet.Addr().Is4() {
		bad(".subnet", "only IPv4 networks can boot machines yet")
		return
	}
	if n.Subnet != n.Subnet.Masked() {
		bad(".subnet", "%s has host bits: the network is %s", n.Subnet, n.Subnet.Masked())
	}
	for _, o := range c.site.Networks[:i] {
		if o.Subnet.IsValid() && o.Subnet.Overlaps(n.Subnet) {
			bad(".subnet", "%s overlaps %s of network %q", n.Subnet, o.Subnet, o.Name)
		}
	}
	inside := func(key string, a netip.Addr) bool {
		if !a.IsValid() {
			return false
		}
		if why := unusable(n.Subnet, a); why != "" {
			bad(key, "%s", why)
			return false
		}
		return true
	}
	if inside(".address", n.Address) {
		c.take(c.conf, path+".address", "address", n.Address.String(), "the server on network "+n.Name)
	} else if n.Interface != "" && !n.Address.IsValid() && !c.conf.Has(path+".address") {
		bad("", "network %q needs address: the server's own address on it", n.Name)
	}
	if inside(".router", n.Router) && n.Router != n.Address {
		c.take(c.conf, path+".router", "address", n.Router.String(), "the router of network "+n.Name)
	}
	if n.Range.IsValid() && inside(".range", n.Range.First) && inside(".range", n.Range.Last) {
		for _, a := range []netip.Addr{n.Address, n.Router} {
			if n.Range.Contains(a) {
				bad(".range", "the range %s contains %s, which is the server's or the router's", n.Range, a)
			}
		}
	}
	if n.Range.IsValid() && n.DHCP == "proxy" {
		bad(".range", "a range is of no use with dhcp: proxy, where another server gives the addresses")
	}
}

// unusable says why an address cannot be a machine's in a subnet; empty: it can.
func unusable(p netip.Prefix, a netip.Addr) string {
	switch {
	case !p.Contains(a):
		return fmt.Sprintf("%s is not in %s", a, p.Masked())
	case p.Bits() < 31 && a == p.Masked().Addr():
		return fmt.Sprintf("%s is the address of the network itself", a)
	case p.Bits() < 31 && !p.Contains(a.Next()):
		return fmt.Sprintf("%s is the broadcast address of %s", a, p.Masked())
	}
	return ""
}

func (c *checker) keys() {
	for i, k := range c.site.Operators.SSHKeys {
		path := fmt.Sprintf("operators.ssh_keys[%d]", i)
		if err := checkKey(k); err != nil {
			c.conf.Bad(path, "%v", err)
		} else {
			c.take(c.conf, path, "the key", shortKey(k), "the list")
		}
	}
}

func shortKey(k string) string {
	blob := strings.Fields(k)[1]
	return "..." + blob[max(0, len(blob)-43):]
}

// checkKey checks the shape of a line of authorized_keys: type, base64, comment
// (sshd(8), AUTHORIZED_KEYS FILE FORMAT), where the blob repeats its type (RFC 4253 section 6.6).
func checkKey(line string) error {
	if strings.Contains(line, "PRIVATE KEY") {
		return fmt.Errorf("this is a private key: it must stay secret, make a new pair; the public key is in the file that ends in .pub")
	}
	fields := strings.Fields(line)
	if len(fields) < 2 || strings.ContainsAny(line, "\n\r") {
		return fmt.Errorf("not a public SSH key: one line such as `ssh-ed25519 AAAA... you@example`")
	}
	types := []string{"ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
		"sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"}
	if !slices.Contains(types, fields[0]) {
		return fmt.Errorf("%q is not a type of SSH key: %s", fields[0], strings.Join(types, ", "))
	}
	blob, err := base64.StdEncoding.DecodeString(fields[1])
	if err != nil || len(blob) < 4 {
		return fmt.Errorf("the key is damaged: its second word is not base64")
	}
	n := binary.BigEndian.Uint32(blob)
	if uint64(n)+4 >= uint64(len(blob)) || string(blob[4:4+n]) != fields[0] {
		return fmt.Errorf("the key is damaged: it does not hold a key of type %s", fields[0])
	}
	if fields[0] == "ssh-ed25519" && len(blob) != 51 {
		return fmt.Errorf("the key is damaged: an ssh-ed25519 key has 51 bytes, this one %d", len(blob))
	}
	return nil
}
