package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/inventory"
	"ingot/site"
)

func (p *program) nodeCommand() *cli.Command {
	return noun("node", "the machines of the site",
		verb{name: "add", aliases: []string{"new"}, usage: "write a new node's file", args: "NAME",
			about: `Writes nodes/NAME.yaml. The first --mac is the card that the machine boots from. What contradicts
  the rest of the site is refused, and nothing is written.`,
			examples: []string{"ingot node add n1 --mac 52:54:00:00:00:01", "ingot node add n2 --mac 52:54:00:00:00:02 --class WEB --class NORTH --address 10.77.0.12"},
			flags:    append(nodeFlags(), &cli.StringSliceFlag{Name: "mac", Usage: "`MAC` of a card; may be repeated", Required: true}), run: p.nodeAdd}.command(),
		verb{name: "set", usage: "change nodes, or arm them for installation", args: "NODES",
			about: `Changes nodes/NAME.yaml, keeping its comments. With --install the next network boot installs the
  profile's image, or --image; the image is verified first, and a node whose image is damaged or
  missing is not armed. An armed node goes back to booting its disk with --disarm.`,
			examples: []string{"ingot node set n1 --install", "ingot node set n[01-16] --install --image web:2", "ingot node set n1 --class WEB --class DB",
				"ingot node set n1 --nic eth0=52:54:00:00:00:09       a card was replaced"},
			flags: append(nodeFlags(),
				&cli.BoolFlag{Name: "install", Usage: "install at the next network boot"},
				&cli.StringFlag{Name: "image", Usage: "with --install: this `IMAGE` instead of the profile's"},
				&cli.BoolFlag{Name: "disarm", Usage: "boot the disk after all"},
				&cli.StringSliceFlag{Name: "nic", Usage: "`NAME=MAC`: the card NAME has another MAC now"}), run: p.nodeSet}.command(),
		verb{name: "rm", usage: "remove nodes", args: "NODES",
			about:    "Removes the nodes' files, and what the server keeps about them: host keys, generations, facts. Their events stay.",
			examples: []string{"ingot node rm n9"}, run: p.nodeRemove}.command(),
		verb{name: "list", aliases: []string{"ls"}, usage: "list nodes and what they run", args: "[NODES]",
			about: "With --unknown it lists machines that asked to boot and are no node's.", examples: []string{"ingot node list", "ingot node list @WEB", "ingot node list --unknown"},
			flags: []cli.Flag{&cli.BoolFlag{Name: "unknown", Usage: "machines that nobody knows"}, jsonFlag()}, run: p.nodeList}.command(),
		verb{name: "show", usage: "show one node", args: "NODE", about: "Shows what is written about a node, what is known of it, and its generations.",
			examples: []string{"ingot node show n1"}, flags: []cli.Flag{jsonFlag()}, run: p.nodeShow}.command(),
		verb{name: "keys", usage: "print the SSH host keys of nodes, for known_hosts", args: "NODES",
			about: "Prints a line a key, as ssh(1) reads them from known_hosts: name and address, type, key.", examples: []string{"ingot node keys all >> ~/.ssh/known_hosts"},
			run: p.nodeKeys}.command(),
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
		&cli.StringSliceFlag{Name: "class", Usage: "`CLASS` of the node; may be repeated, later ones win"},
		&cli.StringFlag{Name: "address", Usage: "static `ADDRESS` of the card that it boots from"},
		&cli.StringFlag{Name: "serial", Usage: "SMBIOS system `SERIAL` number"},
		&cli.StringFlag{Name: "uuid", Usage: "SMBIOS system `UUID`"},
		&cli.StringSliceFlag{Name: "var", Usage: "`NAME=VALUE` for templates and scripts"},
		jsonFlag(),
	}
}

// apply puts what the flags say into n.
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
		if !ok {
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
		mac, err := site.ParseMAC(text)
		if err != nil {
			return usagef("--mac: %v", err)
		}
		n.NICs = append(n.NICs, site.NIC{Name: fmt.Sprintf("eth%d", i), MAC: mac, Boot: i == 0})
	}
	if err := applyNodeFlags(c, &n); err != nil {
		return err
	}
	if err := site.AddNode(siteDir(c), n); err != nil {
		return withHint(err, "`ingot node set %s` changes a node that exists", n.Name)
	}
	return p.answerNode(c, n.Name, "added")
}

func (p *program) answerNode(c *cli.Context, node, what string) error {
	if c.Bool("json") {
		return p.printJSON(map[string]string{"node": node, "state": what})
	}
	fmt.Fprintf(p.Stdout, "%s: %s\n", node, what)
	return nil
}

func (p *program) nodeSet(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	if c.Bool("install") && c.Bool("disarm") {
		return usagef("node set: --install and --disarm contradict each other")
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	nodes, err := selectNodes(w.Site, c.Args().First())
	if err != nil {
		return err
	}
	if err := writeNodes(c, nodes); err != nil {
		return err
	}
	if w.Site, err = openSite(c); err != nil {
		return err
	}
	for _, n := range nodes {
		switch {
		case c.Bool("disarm"):
			if err := w.state.Disarm(c.Context, n.Name); err != nil {
				return err
			}
			err = p.answerNode(c, n.Name, "disarmed: boots its disk")
		case c.Bool("install"):
			ref, e := p.arm(c.Context, w, w.Node(n.Name), c.String("image"))
			if e != nil {
				return fmt.Errorf("node %q is not armed: %w", n.Name, e)
			}
			err = p.answerNode(c, n.Name, "armed: the next network boot installs "+ref)
		default:
			err = p.answerNode(c, n.Name, "changed")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeNodes changes the nodes' files as the flags say.
func writeNodes(c *cli.Context, nodes []*site.Node) error {
	changes := false
	for _, f := range []string{"class", "address", "serial", "uuid", "var", "nic"} {
		changes = changes || c.IsSet(f)
	}
	if !changes {
		if !c.Bool("install") && !c.Bool("disarm") {
			return usagef("node set: nothing to change; see `ingot node set --help`")
		}
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
	mac, err := site.ParseMAC(text)
	if !ok || err != nil {
		return usagef("--nic %q: want NAME=MAC", kv)
	}
	for i := range n.NICs {
		if n.NICs[i].Name == name {
			n.NICs[i].MAC = mac
			return nil
		}
	}
	return usagef("--nic: node %q has no card %q", n.Name, name)
}

// arm verifies everything that an installation needs, and only then lets the
// next network boot of n install.
func (p *program) arm(ctx context.Context, w *world, n *site.Node, ref string) (string, error) {
	if n.BootNIC() == nil && n.Serial == "" && n.UUID == "" {
		return "", withHint(errors.New("nothing tells the machine: it has no MAC, serial or UUID"), "add its card: nics: in %s", n.File())
	}
	prof, err := resolveProfile(w.Site, n)
	if err != nil {
		return "", err
	}
	if ref == "" {
		ref = prof.Profile.Image
	}
	if ref == "" {
		return "", withHint(errors.New("its classes name no image"), "set image: in profile/CLASS.yaml, or use --image")
	}
	if prof.Disk == nil {
		return "", withHint(errors.New("none of its classes has a disk_config"), "write disk_config/DEFAULT; `ingot init` shows an example")
	}
	id, err := resolveImage(ctx, w, ref)
	if err != nil {
		return "", err
	}
	if err := w.images.VerifyCached(ctx, id); err != nil {
		return "", fmt.Errorf("image %q cannot be installed: %w", ref, err)
	}
	if _, err := renderOverlay(ctx, w, n, prof, id); err != nil {
		return "", err
	}
	if _, err := w.hostKeys(ctx, n.Name); err != nil {
		return "", err
	}
	o, err := imageOptions(ctx, w, id)
	if err != nil {
		return "", err
	}
	env, err := p.buildNetboot(ctx, w, o)
	if err != nil {
		return "", err
	}
	return ref, w.state.Arm(ctx, n.Name, ref, id.String(), env.Key.String(), operator())
}

func (p *program) nodeRemove(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	nodes, err := selectNodes(w.Site, c.Args().First())
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if err := site.RemoveNode(w.Dir, n.Name); err != nil {
			return err
		}
		if err := w.state.Forget(c.Context, n.Name); err != nil {
			return err
		}
		if err := p.answerNode(c, n.Name, "removed"); err != nil {
			return err
		}
	}
	return nil
}

// nodeView is what `node list` and `node show` say of one node.
type nodeView struct {
	Name        string                 `json:"name"`
	Classes     []string               `json:"classes"`
	Address     string                 `json:"address,omitempty"`
	State       inventory.State        `json:"install_state,omitempty"`
	Task        string                 `json:"task,omitempty"`
	Done        int64                  `json:"done_bytes,omitempty"`
	Total       int64                  `json:"total_bytes,omitempty"`
	Reason      string                 `json:"reason,omitempty"`
	Image       string                 `json:"image,omitempty"`
	Generation  int                    `json:"generation,omitempty"`
	Since       *time.Time             `json:"since,omitempty"`
	Generations []inventory.Generation `json:"generations,omitempty"`
}

func viewNode(ctx context.Context, w *world, n *site.Node, installs map[string]inventory.Install) (nodeView, error) {
	v := nodeView{Name: n.Name, Classes: n.Classes}
	if a, err := address(ctx, w.Site, w.state, n); err == nil {
		v.Address = a
	}
	if in, ok := installs[n.Name]; ok {
		v.State, v.Reason = in.State, in.Reason
		if in.State == inventory.Writing || in.State == inventory.Claimed {
			v.Task, v.Done, v.Total = in.Task, in.Done, in.Total
		}
	}
	var err error
	if v.Generations, err = w.state.Generations(ctx, n.Name); err != nil {
		return v, err
	}
	if k := len(v.Generations); k > 0 {
		g := v.Generations[k-1]
		v.Image, v.Generation, v.Since = g.Ref, g.Number, &g.Time
	}
	return v, nil
}

func (p *program) nodeList(c *cli.Context) error {
	if err := wantArgs(c, 0, 1); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	if c.Bool("unknown") {
		return p.unknownMachines(c, w)
	}
	expr := "all"
	if c.Args().Present() {
		expr = c.Args().First()
	}
	nodes := w.Nodes
	if expr != "all" {
		if nodes, err = selectNodes(w.Site, expr); err != nil {
			return err
		}
	}
	installs, err := w.state.Installs(c.Context)
	if err != nil {
		return err
	}
	views := []nodeView{}
	rows := [][]string{{"NODE", "ADDRESS", "CLASSES", "STATE", "IMAGE", "GENERATION", "SINCE"}}
	for _, n := range nodes {
		v, err := viewNode(c.Context, w, n, installs)
		if err != nil {
			return err
		}
		views = append(views, v)
		since, gen, state := "", "", string(v.State)
		if v.Since != nil {
			since, gen = v.Since.Local().Format(time.DateTime), fmt.Sprint(v.Generation)
		}
		if v.Total > 0 {
			state = fmt.Sprintf("%s: %s %d%%", state, v.Task, 100*v.Done/v.Total)
		} else if v.Task != "" {
			state += ": " + v.Task
		}
		rows = append(rows, []string{v.Name, orElse(v.Address, "-"), orElse(strings.Join(v.Classes, " "), "-"), orElse(state, "-"), orElse(v.Image, "-"), orElse(gen, "-"), orElse(since, "-")})
	}
	if c.Bool("json") {
		return p.printJSON(views)
	}
	return p.table(rows)
}

func (p *program) unknownMachines(c *cli.Context, w *world) error {
	all, err := w.state.Machines(c.Context)
	if err != nil {
		return err
	}
	rows := [][]string{{"MAC", "ADDRESS", "SERIAL", "UUID", "FIRST SEEN", "LAST SEEN"}}
	unknown := []inventory.Machine{}
	for _, m := range all {
		if n, _ := w.Match([]string{m.MAC}, m.Serial, m.UUID); n != nil {
			continue
		}
		unknown = append(unknown, m)
		rows = append(rows, []string{m.MAC, m.IP, orElse(m.Serial, "-"), orElse(m.UUID, "-"), m.First.Local().Format(time.DateTime), m.Last.Local().Format(time.DateTime)})
	}
	if c.Bool("json") {
		return p.printJSON(unknown)
	}
	return p.table(rows)
}

func (p *program) nodeShow(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	nodes, err := selectNodes(w.Site, c.Args().First())
	if err != nil {
		return err
	}
	if len(nodes) != 1 {
		return usagef("node show: %q names %d nodes, want one", c.Args().First(), len(nodes))
	}
	installs, err := w.state.Installs(c.Context)
	if err != nil {
		return err
	}
	v, err := viewNode(c.Context, w, nodes[0], installs)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return p.printJSON(v)
	}
	rows := [][]string{{"name", v.Name}, {"classes", orElse(strings.Join(v.Classes, " "), "-")}, {"address", orElse(v.Address, "-")},
		{"installation", orElse(string(v.State), "never armed")}, {"reason", v.Reason}}
	for _, nic := range nodes[0].NICs {
		rows = append(rows, []string{"card " + nic.Name, string(nic.MAC)})
	}
	var shown [][]string
	for _, r := range rows {
		if r[1] != "" {
			shown = append(shown, r)
		}
	}
	if err := p.table(shown); err != nil {
		return err
	}
	gens := [][]string{{"GENERATION", "KIND", "IMAGE", "DIGEST", "WHEN", "BY"}}
	for _, g := range v.Generations {
		gens = append(gens, []string{fmt.Sprint(g.Number), g.Kind, g.Ref, fmt.Sprintf("%.12s", g.Image), g.Time.Local().Format(time.DateTime), g.By})
	}
	if len(gens) > 1 {
		fmt.Fprintln(p.Stdout)
		return p.table(gens)
	}
	return nil
}

func (p *program) nodeKeys(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	nodes, err := selectNodes(w.Site, c.Args().First())
	if err != nil {
		return err
	}
	for _, n := range nodes {
		hosts := n.Name
		if a, err := address(c.Context, w.Site, w.state, n); err == nil {
			hosts += "," + a
		}
		keys, err := w.state.HostKeys(c.Context, n.Name)
		if err != nil {
			return err
		}
		for _, k := range keys {
			f := strings.Fields(k.Public)
			fmt.Fprintf(p.Stdout, "%s %s %s\n", hosts, f[0], f[1])
		}
	}
	return nil
}
