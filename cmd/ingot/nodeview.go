package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/imager/wire"
	"ingot/inventory"
	"ingot/site"
)

// nodeView is what `node list` and `node show` say of one node.
type nodeView struct {
	Name        string            `json:"name"`
	Classes     []string          `json:"classes"`
	Address     string            `json:"address,omitempty"`
	Serial      string            `json:"serial,omitempty"`
	UUID        string            `json:"uuid,omitempty"`
	NICs        []nicView         `json:"nics"`
	Vars        map[string]string `json:"vars,omitempty"`
	State       inventory.State   `json:"install_state,omitempty"`
	Task        string            `json:"task,omitempty"`
	Done        int64             `json:"done_bytes,omitempty"`
	Total       int64             `json:"total_bytes,omitempty"`
	Rate        int64             `json:"bytes_per_second,omitempty"`
	Reason      string            `json:"reason,omitempty"`
	Armed       string            `json:"installs,omitempty"` // the image of the installation
	Image       string            `json:"image,omitempty"`    // that the node runs
	Generation  int               `json:"generation,omitempty"`
	Since       *time.Time        `json:"since,omitempty"`
	Sides       *wire.Sides       `json:"sides,omitempty"`   // of a node that has two
	Drained     string            `json:"drained,omitempty"` // since when it is out of service, and why
	Drift       *driftLook        `json:"drift,omitempty"`   // as it was last looked for
	Health      *healthLook       `json:"health,omitempty"`  // after its last switch
	Seen        *time.Time        `json:"last_seen,omitempty"`
	Generations []generationView  `json:"generations,omitempty"`
}

// nicView is a card, bond or VLAN of a node.
type nicView struct {
	Name    string   `json:"name"`
	Kind    string   `json:"kind"` // card, bond, vlan
	MAC     string   `json:"mac,omitempty"`
	On      []string `json:"on,omitempty"` // the cards of a bond, what a VLAN is on
	VLAN    int      `json:"vlan,omitempty"`
	Address string   `json:"address,omitempty"` // static; else:
	DHCP    bool     `json:"dhcp,omitempty"`
	Network string   `json:"network,omitempty"`
	Boot    bool     `json:"boot,omitempty"`
}

type generationView struct {
	Number  int       `json:"number"`
	Kind    string    `json:"kind"`
	Image   string    `json:"image"`
	Digest  string    `json:"digest"`
	Overlay string    `json:"overlay,omitempty"`
	Within  string    `json:"path,omitempty"` // the part that was pushed
	Mode    string    `json:"mode"`
	By      string    `json:"by"`
	Reason  string    `json:"reason,omitempty"` // of a revert
	Time    time.Time `json:"time"`
}

func viewNode(ctx context.Context, w *world, n *site.Node, installs map[string]inventory.Install) (nodeView, error) {
	v := nodeView{Name: n.Name, Classes: append([]string{}, n.Classes...), Serial: n.Serial, UUID: n.UUID, NICs: viewNICs(n), Vars: map[string]string{}}
	for name, value := range n.Vars {
		v.Vars[name] = masked(name, value)
	}
	if a, err := address(ctx, w.state, n); err == nil {
		v.Address = a
	}
	if in, ok := installs[n.Name]; ok {
		v.State, v.Reason, v.Armed = in.State, in.Reason, in.Ref
		if in.State == inventory.Writing || in.State == inventory.Claimed {
			v.Task, v.Done, v.Total, v.Rate = in.Task, in.Done, in.Total, in.Rate
		}
	}
	generations, err := w.state.Generations(ctx, n.Name)
	if err != nil {
		return v, err
	}
	if v.Sides, err = w.sidesOfNode(ctx, n.Name); err != nil {
		return v, err
	}
	drained, err := w.state.DrainedNode(ctx, n.Name)
	if err != nil {
		return v, err
	}
	v.Drained = drainedText(drained)
	if v.Drift, err = w.driftOf(ctx, n.Name); err != nil {
		return v, err
	}
	if v.Health, err = w.healthOf(ctx, n.Name); err != nil {
		return v, err
	}
	if v.Seen, err = w.seen(ctx, n.Name); err != nil {
		return v, err
	}
	for _, g := range generations {
		v.Generations = append(v.Generations, generationView{g.Number, g.Kind, g.Ref, g.Image, g.Overlay, absolute(g.Within), g.Mode, g.By, g.Reason, g.Time})
		if waitingSide(v.Sides, g.Number) {
			continue // it does not run yet
		}
		if v.Generation, v.Since = g.Number, &g.Time; g.Within == "" || v.Image == "" {
			v.Image = partOf(g.Ref, g.Within)
		}
	}
	return v, nil
}

// partOf names an image of which perhaps only a path was pushed.
func partOf(ref, within string) string {
	if within == "" {
		return ref
	}
	return fmt.Sprintf("%q of %s", absolute(within), ref)
}

// absolute is a path from the top; "" is none.
func absolute(within string) string {
	if within == "" {
		return ""
	}
	return "/" + strings.TrimPrefix(within, "/")
}

func viewNICs(n *site.Node) []nicView {
	out := []nicView{}
	add := func(v nicView, ip site.IP) {
		v.Address, v.DHCP, v.Network = ip.Address.String(), ip.Dynamic(), ip.Network
		out = append(out, v)
	}
	for _, x := range n.NICs {
		ip := x.IP()
		if n.InBond(x.Name) != nil {
			ip = site.IP{}
		}
		add(nicView{Name: x.Name, Kind: "card", MAC: string(x.MAC), Boot: x.Boot}, ip)
	}
	for _, x := range n.Bonds {
		add(nicView{Name: x.Name, Kind: "bond", On: x.NICs}, x.IP())
	}
	for _, x := range n.VLANs {
		add(nicView{Name: x.Name, Kind: "vlan", On: []string{x.On}, VLAN: x.ID}, x.IP())
	}
	return out
}

// String is one line about a card, bond or VLAN.
func (v nicView) String() string {
	var words []string
	add := func(ok bool, format string, args ...any) {
		if ok {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	add(v.MAC != "", "%s", v.MAC)
	add(v.VLAN > 0, "id %d", v.VLAN)
	add(len(v.On) > 0, "on %s", strings.Join(v.On, " "))
	add(v.Address != "", "%s", v.Address)
	add(v.DHCP, "dhcp")
	add(v.Boot, "boots")
	return strings.Join(words, ", ")
}

// state is how far an installation is, in a few words.
func (v nodeView) state() string {
	switch {
	case v.Total > 0 && v.Rate > 0:
		left := time.Duration((v.Total-v.Done)/v.Rate) * time.Second
		return fmt.Sprintf("%s: %s %d%%, %s/s, %s left", v.State, v.Task, 100*v.Done/v.Total, size(v.Rate), left)
	case v.Total > 0:
		return fmt.Sprintf("%s: %s %d%%", v.State, v.Task, 100*v.Done/v.Total)
	case v.Task != "":
		return fmt.Sprintf("%s: %s", v.State, v.Task)
	}
	return string(v.State)
}

// standing is how far its installation is, and whether it is out of service.
func (v nodeView) standing() string {
	if v.Drained == "" {
		return v.state()
	}
	return strings.TrimSpace(v.state() + " drained")
}

// moment is a time for people.
func moment(at *time.Time) string {
	if at == nil {
		return "-"
	}
	return at.Local().Format(time.DateTime)
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
	rows := [][]string{{"NODE", "ADDRESS", "CLASSES", "STATE", "IMAGE", "GENERATION", "SINCE", "DRIFT", "HEALTH", "LAST SEEN"}}
	for _, n := range nodes {
		v, err := viewNode(c.Context, w, n, installs)
		if err != nil {
			return err
		}
		views = append(views, v)
		since, gen := moment(v.Since), number(v.Generation)
		rows = append(rows, []string{v.Name, orElse(v.Address, "-"), orElse(strings.Join(v.Classes, " "), "-"), orElse(v.standing(), "-"), orElse(v.Image, "-"), gen, since,
			v.drifted(), orElse(v.health(), "-"), moment(v.Seen)})
	}
	if c.Bool("json") {
		return p.printJSON(views)
	}
	return p.table(rows)
}

// machineView is a machine that is no node's.
type machineView struct {
	MAC     string    `json:"mac"`
	Address string    `json:"address,omitempty"`
	Serial  string    `json:"serial,omitempty"`
	UUID    string    `json:"uuid,omitempty"`
	First   time.Time `json:"first_seen"`
	Last    time.Time `json:"last_seen"`
}

func (p *program) unknownMachines(c *cli.Context, w *world) error {
	all, err := w.state.Machines(c.Context)
	if err != nil {
		return err
	}
	rows := [][]string{{"MAC", "ADDRESS", "SERIAL", "UUID", "FIRST SEEN", "LAST SEEN"}}
	unknown := []machineView{}
	for _, m := range all {
		if n, _ := w.Match([]string{m.MAC}, m.Serial, m.UUID); n != nil {
			continue
		}
		unknown = append(unknown, machineView{m.MAC, m.IP, m.Serial, m.UUID, m.First, m.Last})
		rows = append(rows, []string{m.MAC, orElse(m.IP, "-"), orElse(m.Serial, "-"), orElse(m.UUID, "-"), m.First.Local().Format(time.DateTime), m.Last.Local().Format(time.DateTime)})
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
	w, nodes, err := openNodes(c)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := justOne(c, nodes); err != nil {
		return err
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
	classes, err := w.state.Fact(c.Context, v.Name, "classes")
	if err != nil && !errors.Is(err, inventory.ErrNotFound) {
		return err
	}
	return p.printNode(v, classes)
}

// printNode shows a node; classes are those that its installation found.
func (p *program) printNode(v nodeView, classes string) error {
	install := "never armed"
	if v.State != "" {
		install = strings.TrimSpace(v.state() + " " + v.Armed)
	}
	rows := [][]string{{"name", v.Name}, {"classes", orElse(strings.Join(v.Classes, " "), "-")}, {"on the node", classes}, {"address", orElse(v.Address, "-")},
		{"serial", v.Serial}, {"uuid", v.UUID}, {"installation", install}, {"reason", v.Reason}, {"drained", v.Drained}}
	if v.Sides != nil {
		rows = append(rows, []string{"sides", v.Sides.String()})
	}
	rows = append(rows, []string{"drift", v.drift()}, []string{"health", v.health()})
	if v.Seen != nil {
		rows = append(rows, []string{"last seen", moment(v.Seen)})
	}
	for _, nic := range v.NICs {
		rows = append(rows, []string{nic.Kind + " " + nic.Name, nic.String()})
	}
	for _, name := range slices.Sorted(maps.Keys(v.Vars)) {
		rows = append(rows, []string{"var " + name, v.Vars[name]})
	}
	if err := p.table(slices.DeleteFunc(rows, func(r []string) bool { return r[1] == "" })); err != nil {
		return err
	}
	if len(v.Generations) == 0 {
		return nil
	}
	gens := [][]string{{"GENERATION", "KIND", "IMAGE", "DIGEST", "WHEN", "BY", "NOTE"}}
	for _, g := range v.Generations {
		gens = append(gens, []string{fmt.Sprint(g.Number), g.Kind, partOf(g.Image, g.Within), fmt.Sprintf("%.12s", g.Digest), g.Time.Local().Format(time.DateTime), g.By, g.Reason})
	}
	fmt.Fprintln(p.Stdout)
	return p.table(gens)
}

func (p *program) nodeKeys(c *cli.Context) error {
	if err := wantArgs(c, 1, 1); err != nil {
		return err
	}
	w, nodes, err := openNodes(c)
	if err != nil {
		return err
	}
	defer w.Close()
	all := []keyView{}
	for _, n := range nodes {
		hosts := []string{n.Name}
		if a, err := address(c.Context, w.state, n); err == nil {
			hosts = append(hosts, a)
		}
		keys, err := w.state.HostKeys(c.Context, n.Name)
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			p.say("note: %s: no keys are kept yet; arming it makes them", n.Name)
		}
		for _, k := range keys {
			f := strings.Fields(k.Public)
			all = append(all, keyView{n.Name, hosts, f[0], f[1]})
		}
	}
	if c.Bool("json") {
		return p.printJSON(all)
	}
	for _, k := range all {
		fmt.Fprintf(p.Stdout, "%s %s %s\n", strings.Join(k.Hosts, ","), k.Type, k.Key)
	}
	return nil
}

// keyView is an SSH host key as known_hosts has it.
type keyView struct {
	Node  string   `json:"node"`
	Hosts []string `json:"hosts"`
	Type  string   `json:"type"`
	Key   string   `json:"key"`
}
