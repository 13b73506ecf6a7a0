// Package site reads what people write: ingot.yaml and nodes/*.yaml of one directory.
//
// Reading is strict. Unknown keys, wrong types, values that contradict each other and
// nodes that could be mistaken for one another are problems, each with file, line, column
// and the source line, and all of them are reported at once (Problems).
package site

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ingot/internal/problem"
	"ingot/internal/strict"
)

// Problems is everything that is wrong with a site: an error, sorted by place.
type Problems = problem.List

// ErrNotSite is returned for a directory without an ingot.yaml.
var ErrNotSite = errors.New("not a site: it has no ingot.yaml")

// Site is one directory of configuration, read and checked.
type Site struct {
	Dir       string // absolute
	Server    Server
	State     string // file of the database, absolute
	Store     string // directory of the image store, absolute
	Networks  []Network
	Operators Operators
	Installer Installer
	Nodes     []*Node // by name, numbers in it by value: n2 before n10

	byName map[string]*Node // nil in a Site that was not loaded
	byMAC  map[MAC]nicRef
}

// Server is how the boot server answers.
type Server struct {
	HTTP    int        `yaml:"http"`    // TCP port of boot files and API
	Address netip.Addr `yaml:"address"` // the server's address where no network says another
	Loaders string     `yaml:"loaders"` // directory of boot loaders, absolute; empty: the built-in search
	TFTP    bool       `yaml:"tftp"`
	DHCP    bool       `yaml:"dhcp"` // false: answer no DHCP at all, on no network
}

// Network is one IPv4 subnet on which machines boot.
type Network struct {
	Name      string        `yaml:"name"`
	Interface string        `yaml:"interface"` // the server's; empty: reached through relays only
	Subnet    netip.Prefix  `yaml:"subnet"`
	Address   netip.Addr    `yaml:"address"` // the server's own address on it
	DHCP      string        `yaml:"dhcp"`    // full | proxy (another server gives the addresses) | off
	Range     Range         `yaml:"range"`   // given to machines without an address of their own
	Router    netip.Addr    `yaml:"router"`
	DNS       []netip.Addr  `yaml:"dns"`
	Domain    string        `yaml:"domain"`
	Lease     time.Duration `yaml:"lease"`      // of an installed or unknown machine
	BootLease time.Duration `yaml:"boot_lease"` // of firmware and boot loaders
}

// Operators are the people who may enter the nodes.
type Operators struct {
	SSHKeys []string `yaml:"ssh_keys"` // authorized_keys lines of root
}

// Installer is what the netboot environment is built from.
type Installer struct {
	Kernel  string   `yaml:"kernel"`  // a kernel package (linux-image-*.deb) to install with; empty: the kernel of the image
	Modules []string `yaml:"modules"` // kernel modules besides the usual ones
	Args    []string `yaml:"args"`    // kernel arguments of every installer boot
}

// document is ingot.yaml.
type document struct {
	Server    Server    `yaml:"server"`
	State     string    `yaml:"state"`
	Store     string    `yaml:"store"`
	Networks  []Network `yaml:"networks"`
	Operators Operators `yaml:"operators"`
	Installer Installer `yaml:"installer"`
}

// The names of the files of a site.
const (
	configFile = "ingot.yaml"
	nodesDir   = "nodes"
	nodeExt    = ".yaml"
)

// Load reads and checks the site in dir. What people wrote wrongly is returned as Problems;
// a directory that is no site as ErrNotSite.
func Load(dir string) (*Site, error) {
	return load(dir, nil)
}

// overlay replaces the text of files, by name relative to the site; nil text: the file is gone.
type overlay map[string][]byte

func load(dir string, over overlay) (*Site, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("load site %q: %w", dir, err)
	}
	text, err := os.ReadFile(filepath.Join(dir, configFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("load site %q: %w", dir, ErrNotSite)
	} else if err != nil {
		return nil, fmt.Errorf("load site: %w", err)
	}
	c := &checker{site: &Site{Dir: dir}}
	c.config(text)
	files, err := nodeFiles(dir, over, &c.probs)
	if err != nil {
		return nil, fmt.Errorf("load site: %w", err)
	}
	for _, f := range files {
		c.node(f)
	}
	c.all()
	if err := c.probs.Err(); err != nil {
		return nil, err
	}
	slices.SortFunc(c.site.Nodes, func(a, b *Node) int { return compareNames(a.Name, b.Name) })
	c.site.index()
	return c.site, nil
}

type nodeFile struct {
	name string // of the node, from the file's
	file string // relative to the site
	text []byte
}

func nodeFiles(dir string, over overlay, probs *problem.List) ([]nodeFile, error) {
	entries, err := os.ReadDir(filepath.Join(dir, nodesDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var files []nodeFile
	for _, e := range entries {
		file := filepath.Join(nodesDir, e.Name())
		name, isYAML := strings.CutSuffix(e.Name(), nodeExt)
		switch {
		case strings.HasPrefix(e.Name(), ".") || e.IsDir():
			continue
		case strings.HasSuffix(e.Name(), ".yml"):
			probs.Add(problem.Problem{File: file, Text: "node files end in .yaml: rename it"})
			continue
		case !isYAML:
			continue
		}
		if _, ok := over[file]; ok {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return nil, err
		}
		files = append(files, nodeFile{name, file, text})
	}
	for file, text := range over {
		if text != nil {
			files = append(files, nodeFile{strings.TrimSuffix(filepath.Base(file), nodeExt), file, text})
		}
	}
	slices.SortFunc(files, func(a, b nodeFile) int { return strings.Compare(a.file, b.file) })
	return files, nil
}

// config reads ingot.yaml.
func (c *checker) config(text []byte) {
	doc := document{
		Server: Server{HTTP: 8080, TFTP: true, DHCP: true},
		State:  ".ingot/state.db",
		Store:  ".ingot/store",
	}
	c.conf = strict.Decode(strict.Parse(configFile, text, &c.probs), &doc, &c.probs)
	s := c.site
	s.Server, s.Networks, s.Operators, s.Installer = doc.Server, doc.Networks, doc.Operators, doc.Installer
	s.State, s.Store = s.under(doc.State), s.under(doc.Store)
	s.Server.Loaders, s.Installer.Kernel = s.under(doc.Server.Loaders), s.under(doc.Installer.Kernel)
	for i := range s.Networks {
		s.Networks[i].defaults()
	}
}

func (n *Network) defaults() {
	if n.DHCP == "" {
		n.DHCP = "full"
	}
	if n.Lease == 0 {
		n.Lease = 10 * time.Minute
	}
	if n.BootLease == 0 {
		n.BootLease = min(n.Lease, 2*time.Minute)
	}
}

// under makes a path of the site absolute; an empty one stays empty.
func (s *Site) under(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(s.Dir, path)
}

// Network returns the network of a name, or nil.
func (s *Site) Network(name string) *Network {
	for i := range s.Networks {
		if s.Networks[i].Name == name {
			return &s.Networks[i]
		}
	}
	return nil
}

// NetworkAt returns the network whose subnet contains an address, or nil.
func (s *Site) NetworkAt(addr netip.Addr) *Network {
	for i := range s.Networks {
		if s.Networks[i].Subnet.IsValid() && s.Networks[i].Subnet.Contains(addr) {
			return &s.Networks[i]
		}
	}
	return nil
}

// NetworkOf is the network that a NIC, VLAN or bond is on: the one it names, else the one
// that contains its address, else nil.
func (s *Site) NetworkOf(ip IP) *Network {
	if ip.Network != "" {
		return s.Network(ip.Network)
	}
	if ip.Address.IsValid() {
		return s.NetworkAt(ip.Address.Addr)
	}
	return nil
}

// Prefix is a static address with the length of its network; invalid when there is no
// address or no length for it.
func (s *Site) Prefix(ip IP) netip.Prefix {
	if !ip.Address.IsValid() {
		return netip.Prefix{}
	}
	if ip.Address.Bits > 0 {
		return netip.PrefixFrom(ip.Address.Addr, ip.Address.Bits)
	}
	if n := s.NetworkOf(ip); n != nil {
		return netip.PrefixFrom(ip.Address.Addr, n.Subnet.Bits())
	}
	return netip.Prefix{}
}
