package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"ingot/site"
)

func (p *program) nodeCommand() *cli.Command {
	return noun("node", "the machines of the site",
		verb{name: "add", aliases: []string{"new"}, usage: "write a new node's file", args: "NAME",
			about: `Writes nodes/NAME.yaml. A machine is known by the MAC of any of its cards, then by its serial
  number and UUID; the first --mac is the card that it boots from. What contradicts the rest of the
  site is refused, and nothing is written. More cards, bonds and VLANs go into the file by hand.`,
			examples: []string{"ingot node add n1 --mac 52:54:00:00:00:01", "ingot node add n2 --mac 52:54:00:00:00:02 --class WEB --class NORTH --address 10.77.0.12"},
			flags:    append([]cli.Flag{&cli.StringSliceFlag{Name: "mac", Usage: "the `MAC` of a card; may be repeated"}}, nodeFlags()...), run: p.nodeAdd}.command(),
		verb{name: "set", usage: "change nodes, or arm them for installation", args: "NODES",
			about: `Changes nodes/NAME.yaml, keeping its comments.

  With --install the next network boot installs the
  profile's image, or --image; the image is verified first, and a node whose image is damaged or
  missing is not armed. An armed node goes back to booting its disk with --disarm.`,
			examples: []string{"ingot node set n1 --install", "ingot node set n[01-16] --install --image web:2", "ingot node set n1 --class WEB --class DB",
				"ingot node set n1 --nic eth0=52:54:00:00:00:09       a card was replaced"},
			flags: append([]cli.Flag{
				&cli.BoolFlag{Name: "install", Usage: "install at the next network boot"},
				&cli.StringFlag{Name: "image", Usage: "with --install: this `IMAGE` instead of the profile's"},
				&cli.BoolFlag{Name: "disarm", Usage: "boot the disk after all"},
				&cli.StringSliceFlag{Name: "nic", Usage: "another MAC for a card of the node, as `NAME=MAC`"}}, nodeFlags()...), run: p.nodeSet}.command(),
		verb{name: "rm", usage: "remove nodes", args: "NODES",
			about:    "Removes the nodes' files, and what the server keeps about them: host keys, generations, facts. Their events stay.",
			examples: []string{"ingot node rm n9"}, flags: []cli.Flag{jsonFlag()}, run: p.nodeRemove}.command(),
		verb{name: "list", aliases: []string{"ls"}, usage: "list nodes and what they run", args: "[NODES]",
			about: "With --unknown it lists machines that asked to boot and are no node's.", examples: []string{"ingot node list", "ingot node list @WEB", "ingot node list --unknown"},
			flags: []cli.Flag{&cli.BoolFlag{Name: "unknown", Usage: "machines that nobody knows"}, jsonFlag()}, run: p.nodeList}.command(),
		verb{name: "show", usage: "show one node", args: "NODE", about: "Shows what is written about a node, what is known of it, and its generations.",
			examples: []string{"ingot node show n1"}, flags: []cli.Flag{jsonFlag()}, run: p.nodeShow}.command(),
		verb{name: "keys", usage: "print the SSH host keys of nodes, for known_hosts", args: "NODES",
			about: "Prints a line a key, as ssh(1) reads them from known_hosts: name and address, type, key.", examples: []string{"ingot node keys all >> ~/.ssh/known_hosts"},
			flags: []cli.Flag{jsonFlag()}, run: p.nodeKeys}.command(),
		verb{name: "timeline", usage: "show every step of a node's boots", args: "NODE",
			about: `Shows each step from the first DISCOVER to the login, with times, of the last boot or of all.
  When it stopped on the way, the step and the likely cause are named.`,
			examples: []string{"ingot node timeline n1", "ingot node timeline n1 --all", "ingot node timeline n1 --follow"},
			flags:    []cli.Flag{&cli.BoolFlag{Name: "all", Usage: "all boots, not only the last"}, &cli.BoolFlag{Name: "follow", Usage: "go on until interrupted"}, jsonFlag()},
			run:      p.nodeTimeline}.command(),
	)
}

func nodeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "class", Usage: "a `CLASS` of the node; may be repeated, later ones win"},
		&cli.StringFlag{Name: "address", Usage: "the static `ADDRESS` of the card that it boots from; an empty one: DHCP"},
		&cli.StringFlag{Name: "serial", Usage: "the machine's `SERIAL` number (SMBIOS system)"},
		&cli.StringFlag{Name: "uuid", Usage: "the machine's `UUID` (SMBIOS system)"},
		&cli.StringSliceFlag{Name: "var", Usage: "a variable for templates and scripts, as `NAME=VALUE`; may be repeated"},
		jsonFlag(),
	}
}

// applyNodeFlags puts what the flags say into n.
func applyNodeFlags(c *cli.Context, n *site.Node) error {
	if c.IsSet("class") {
		n.Classes = c.StringSlice("class")
	}
	if c.IsSet("serial") {
		n.Serial = c.String("serial")
	}
	if c.IsSet("uuid") {
		n.UUID = c.String("uuid")
	}
	if c.IsSet("address") {
		nic := n.BootNIC()
		if nic == nil {
			return usagef("node %q has no card to give an address to", n.Name)
		}
		nic.Address = site.Address{}
		if text := c.String("address"); text != "" {
			if err := nic.Address.UnmarshalText([]byte(text)); err != nil {
				return usagef("--address: %v", err)
			}
		}
	}
	for _, kv := range c.StringSlice("var") {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return usagef("--var %q: want NAME=VALUE", kv)
		}
		if n.Vars == nil {
			n.Vars = map[string]string{}
		}
		n.Vars[k] = v
	}
	return nil
}

func (p *program) nodeAdd(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	if _, err := openSite(c); err != nil {
		return err
	}
	n := site.Node{Name: c.Args().First()}
	for i, text := range c.StringSlice("mac") {
		var mac site.MAC
		if err := mac.UnmarshalText([]byte(text)); err != nil {
			return usagef("--mac: %v", err)
		}
		n.NICs = append(n.NICs, site.NIC{Name: fmt.Sprintf("eth%d", i), MAC: mac, Boot: i == 0})
	}
	if err := applyNodeFlags(c, &n); err != nil {
		return err
	}
	if len(n.NICs) == 0 && n.Serial == "" && n.UUID == "" {
		return withHint(usagef("node add: nothing tells the machine from others: want --mac, --serial or --uuid"), "`ingot node list --unknown` shows machines that asked to boot")
	}
	switch err := site.AddNode(siteDir(c), n); {
	case errors.Is(err, site.ErrExists):
		return withHint(err, "`ingot node set %s` changes a node that exists", n.Name)
	case err != nil:
		return err
	}
	if c.Bool("json") {
		return p.printJSON(nodeChange{Node: n.Name, State: "added"})
	}
	fmt.Fprintf(p.Stdout, "%s: added\n", n.Name)
	return nil
}

func (p *program) nodeSet(c *cli.Context) error {
	if err := checkSetFlags(c); err != nil {
		return err
	}
	w, nodes, err := openNodes(c)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := writeNodes(c, nodes); err != nil {
		return err
	}
	if w.Site, err = openSite(c); err != nil {
		return err
	}
	a := &armer{p: p, w: w, built: map[string]string{}}
	return p.changeNodes(c, nodes, func(n *site.Node) (string, error) {
		switch {
		case c.Bool("disarm"):
			return "disarmed: boots its disk", disarm(c.Context, w, n.Name)
		case c.Bool("install"):
			ref, err := a.arm(c.Context, w.Node(n.Name), c.String("image"))
			if err != nil {
				return "", fmt.Errorf("node %q is not armed: %w", n.Name, err)
			}
			return "armed: the next network boot installs " + ref, nil
		}
		return "changed", nil
	})
}

// ofFile are the flags of `node set` that change the node's file; those that
// are true are for one node alone.
func ofFile() map[string]bool {
	return map[string]bool{"class": false, "var": false, "address": true, "serial": true, "uuid": true, "nic": true}
}

// checkSetFlags refuses a `node set` that contradicts itself or says nothing.
func checkSetFlags(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	changes := c.Bool("install") || c.Bool("disarm")
	for f := range ofFile() {
		changes = changes || c.IsSet(f)
	}
	switch {
	case c.Bool("install") && c.Bool("disarm"):
		return usagef("node set: --install and --disarm contradict each other")
	case c.IsSet("image") && !c.Bool("install"):
		return withHint(usagef("node set: --image goes with --install"), "to change what a class installs, edit image: in profile/CLASS.yaml")
	case !changes:
		return withHint(usagef("node set: nothing to change"), "see `ingot node set --help`")
	}
	return nil
}

// writeNodes changes the nodes' files as the flags say.
func writeNodes(c *cli.Context, nodes []*site.Node) error {
	changes := false
	for f, single := range ofFile() {
		if single && c.IsSet(f) && len(nodes) > 1 {
			return usagef("node set: --%s is one machine's own, and %q names %d", f, c.Args().First(), len(nodes))
		}
		changes = changes || c.IsSet(f)
	}
	if !changes {
		return nil
	}
	for _, n := range nodes {
		if err := applyNodeFlags(c, n); err != nil {
			return err
		}
		for _, kv := range c.StringSlice("nic") {
			if err := replaceNIC(n, kv); err != nil {
				return err
			}
		}
		if err := site.SetNode(siteDir(c), *n); err != nil {
			return err
		}
	}
	return nil
}

func replaceNIC(n *site.Node, kv string) error {
	name, text, ok := strings.Cut(kv, "=")
	if !ok {
		return usagef("--nic %q: want NAME=MAC, such as eth0=52:54:00:12:34:56", kv)
	}
	var mac site.MAC
	if err := mac.UnmarshalText([]byte(text)); err != nil {
		return usagef("--nic: %v", err)
	}
	var cards []string
	for i := range n.NICs {
		if n.NICs[i].Name == name {
			n.NICs[i].MAC = mac
			return nil
		}
		cards = append(cards, n.NICs[i].Name)
	}
	return usagef("--nic: node %q has no card %q, it has: %s", n.Name, name, orElse(strings.Join(cards, " "), "none"))
}

// nodeChange is what became of one node, for the answer.
type nodeChange struct {
	Node  string `json:"node"`
	State string `json:"state"`
	Error string `json:"error,omitempty"`
}

// changeNodes does one thing to every node, whatever becomes of the others,
// and tells the truth about each.
func (p *program) changeNodes(c *cli.Context, nodes []*site.Node, fn func(n *site.Node) (state string, err error)) error {
	changes, errs := []nodeChange{}, []error{}
	for _, n := range nodes {
		if c.Context.Err() != nil {
			return c.Context.Err()
		}
		state, err := fn(n)
		if err != nil {
			errs = append(errs, err)
			changes = append(changes, nodeChange{n.Name, "failed", err.Error()})
			continue
		}
		changes = append(changes, nodeChange{n.Name, state, ""})
		if !c.Bool("json") {
			fmt.Fprintf(p.Stdout, "%s: %s\n", n.Name, state)
		}
	}
	if c.Bool("json") {
		if err := p.printJSON(changes); err != nil {
			return err
		}
	}
	err := errors.Join(errs...)
	if len(errs) > 0 && len(errs) < len(nodes) {
		return coded{fmt.Errorf("%d of %d nodes failed:\n%w", len(errs), len(nodes), err), exitSome}
	}
	return err
}

func (p *program) nodeRemove(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	w, nodes, err := openNodes(c)
	if err != nil {
		return err
	}
	defer w.Close()
	return p.changeNodes(c, nodes, func(n *site.Node) (string, error) {
		// What is kept first: while the file is there the verb can be repeated.
		if err := w.state.Forget(c.Context, n.Name); err != nil {
			return "", err
		}
		return "removed", site.RemoveNode(w.Dir, n.Name)
	})
}
