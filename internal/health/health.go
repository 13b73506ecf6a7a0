// Package health is what must hold on a node after a change, and whether it does.
//
// A check is judged again until it holds or its time is over, so that a service may take a while to start. Nothing
// here needs the C library, nsswitch.conf or resolv.conf of the node to work.
package health

import (
	"strings"
	"time"
)

// Who carries a check out.
const (
	Node       = "node"
	Controller = "controller" // the server: what it sees of the node over the network
)

// Defaults and bounds of a check.
const (
	Timeout  = 10 * time.Second // of one try
	RetryFor = 30 * time.Second
	Longest  = time.Hour // that a check may ask for, of either
)

// Address stands for the node's address in TCP and HTTP: At puts it in.
const Address = "{address}"

// Check is one condition: exactly one of Unit, TCP, HTTP and Exec. It travels as JSON.
type Check struct {
	Name string `yaml:"name" json:"name,omitempty"` // of the check, for people; "" is what it looks at

	Unit string `yaml:"unit" json:"unit,omitempty"` // systemd unit that must be active, and stay so
	TCP  string `yaml:"tcp" json:"tcp,omitempty"`   // HOST:PORT that must accept a connection
	HTTP string `yaml:"http" json:"http,omitempty"` // URL that must answer a GET
	Exec string `yaml:"exec" json:"exec,omitempty"` // command line of /bin/sh that must exit with 0

	Status   int  `yaml:"status" json:"status,omitempty"`     // that HTTP must answer; 0 is any from 200 to 299
	Insecure bool `yaml:"insecure" json:"insecure,omitempty"` // HTTP: any TLS certificate will do

	Timeout  time.Duration `yaml:"timeout" json:"timeout_ns,omitempty"`     // of one try; 0 is the constant
	RetryFor time.Duration `yaml:"retry_for" json:"retry_for_ns,omitempty"` // how long after the first try another one may begin; 0 is the constant
	From     string        `yaml:"from" json:"from,omitempty"`              // Node or Controller; "" is Node
}

// String is the name of the check, or what it looks at.
func (c Check) String() string {
	switch {
	case c.Name != "":
		return c.Name
	case c.Unit != "":
		return "unit " + c.Unit
	case c.TCP != "":
		return "tcp " + c.TCP
	case c.HTTP != "":
		return "http " + c.HTTP
	}
	line, _, more := strings.Cut(strings.TrimSpace(c.Exec), "\n")
	if more {
		line += " ..."
	}
	return "exec " + line
}

// withDefaults fills in what is not said.
func (c Check) withDefaults() Check {
	if c.Timeout == 0 {
		c.Timeout = Timeout
	}
	if c.RetryFor == 0 {
		c.RetryFor = RetryFor
	}
	if c.From == "" {
		c.From = Node
	}
	return c
}

// Split parts checks into those that the node carries out and those of the controller, each with the node's address,
// an IP address or a host name, in its place.
func Split(checks []Check, address string) (node, controller []Check) {
	for _, c := range checks {
		c = c.At(address)
		if c.From == Controller {
			controller = append(controller, c)
		} else {
			node = append(node, c)
		}
	}
	return node, controller
}

// At puts the node's address in the place of Address.
func (c Check) At(address string) Check {
	c.HTTP = strings.ReplaceAll(c.HTTP, Address, HostInURL(address))
	if strings.Contains(address, ":") {
		address = "[" + address + "]"
	}
	c.TCP = strings.ReplaceAll(c.TCP, Address, address)
	return c
}

// HostInURL is an IP address or a host name as the host of an URL: IPv6 as RFC 3986,
// section 3.2.2, a zone as RFC 6874 has it.
func HostInURL(address string) string {
	if !strings.Contains(address, ":") {
		return address
	}
	return "[" + strings.ReplaceAll(address, "%", "%25") + "]"
}
