package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/inventory"
	"ingot/pxe"
	"ingot/site"
)

func (p *program) nodeTimeline(c *cli.Context) error {
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
	events, err := nodeEvents(c.Context, w, nodes[0], 0)
	if err != nil {
		return err
	}
	if !c.Bool("all") {
		events = lastBoot(events)
	}
	if c.Bool("follow") {
		return p.followTimeline(c, w, nodes[0], events)
	}
	if c.Bool("json") {
		return p.printJSON(timelineView(events, time.Now()))
	}
	printEvents(p, events, time.Time{})
	if text := verdict(events, time.Now()); text != "" {
		if len(events) > 0 {
			fmt.Fprintln(p.Stdout)
		}
		fmt.Fprintln(p.Stdout, text)
	}
	if list := phases(lastBoot(events)); len(list) > 0 {
		fmt.Fprintln(p.Stdout)
		return p.table(phaseRows(list))
	}
	return nil
}

func nodeEvents(ctx context.Context, w *world, n *site.Node, after int64) ([]inventory.Event, error) {
	var macs []string
	for _, nic := range n.NICs {
		macs = append(macs, string(nic.MAC))
	}
	events, err := w.state.Events(ctx, n.Name, macs, after, 0)
	// Those of DHCP and TFTP are written in batches, a moment later than others.
	slices.SortStableFunc(events, func(a, b inventory.Event) int { return a.Time.Compare(b.Time) })
	return events, err
}

func (p *program) followTimeline(c *cli.Context, w *world, n *site.Node, events []inventory.Event) error {
	var start time.Time
	var last int64
	for {
		if len(events) > 0 {
			if start.IsZero() {
				start = events[0].Time
			}
			for _, e := range events {
				last = max(last, e.ID)
			}
			if c.Bool("json") {
				for _, e := range events {
					if err := json.NewEncoder(p.Stdout).Encode(viewEvent(e, start)); err != nil {
						return err
					}
				}
			} else {
				printEvents(p, events, start)
			}
		}
		select {
		case <-c.Context.Done():
			return nil
		case <-time.After(500 * time.Millisecond):
		}
		var err error
		if events, err = nodeEvents(c.Context, w, n, last); err != nil {
			return err
		}
	}
}

// stepOf is what an event means for a boot: its stage, "ipxe " before it where
// the loader asks by DHCP; empty for what is no step of a boot, such as a
// running system that renews its lease, or a push. who remembers by MAC which
// program asked last, since our answers do not repeat it.
func stepOf(e inventory.Event, who map[string]string) string {
	switch e.Stage {
	case "discover", "request":
		who[e.MAC] = asker(e.Detail)
	case "offer", "ack", "nak", "no-address":
	case "armed", "attempt", "loading", "loader", "script", "kernel", "initrd", "claim", "task", "installed", "failed", "disk", "unknown", "login",
		"refused", "broken-off", "alarm":
		return e.Stage
	default:
		return ""
	}
	switch who[e.MAC] {
	case "os", "installer":
		return ""
	case "ipxe":
		return "ipxe " + e.Stage
	}
	return e.Stage
}

// asker is the program that a DHCP event speaks of: pxe.Stage, behind the
// address where there is one.
func asker(detail string) string {
	for _, word := range strings.Fields(detail)[:min(2, len(strings.Fields(detail)))] {
		switch word = strings.TrimRight(word, ","); word {
		case pxe.StageOS.String(), pxe.StageROM.String(), pxe.StageIPXE.String(), pxe.StageInstaller.String():
			return word
		}
	}
	return ""
}

// lastBoot cuts off what is over: it begins at the last arming, or with the
// first step after a login, or where the firmware asks again after the disk's
// turn. A running system that renews its lease is left out.
func lastBoot(events []inventory.Event) []inventory.Event {
	var out []inventory.Event
	last, who := "", map[string]string{}
	for _, e := range events {
		s := stepOf(e, who)
		over := last == "login" || s == "discover" && (last == "disk" || last == "failed" || last == "unknown")
		switch {
		case s == "armed" || over && s != "" && s != "login":
			out = out[:0:0]
		case s == "" && last == "login" && (e.Stage == "discover" || e.Stage == "offer" || e.Stage == "request" || e.Stage == "ack"):
			continue
		}
		out = append(out, e)
		last = orElse(s, last)
	}
	return out
}

func printEvents(p *program, events []inventory.Event, start time.Time) {
	for _, e := range events {
		if start.IsZero() {
			start = e.Time
			fmt.Fprintf(p.Stdout, "from %s\n", start.Local().Format(time.DateTime))
		}
		fmt.Fprintf(p.Stdout, "%9.3f  %-10s %s\n", e.Time.Sub(start).Seconds(), e.Stage, e.Detail)
	}
}

type eventView struct {
	Time    time.Time `json:"time"`
	Seconds float64   `json:"seconds"` // since the first event shown
	MAC     string    `json:"mac,omitempty"`
	Stage   string    `json:"stage"`
	Detail  string    `json:"detail,omitempty"`
}

func viewEvent(e inventory.Event, start time.Time) eventView {
	return eventView{e.Time, e.Time.Sub(start).Seconds(), e.MAC, e.Stage, e.Detail}
}

func timelineView(events []inventory.Event, now time.Time) map[string]any {
	list := []eventView{}
	for _, e := range events {
		list = append(list, viewEvent(e, events[0].Time))
	}
	return map[string]any{"events": list, "verdict": verdict(events, now), "phases": phases(lastBoot(events))}
}

// quiet is how long nothing happens before a boot is said to have stopped.
const quiet = 90 * time.Second

// verdict says, for a timeline that has stopped on its way, where and most
// likely why; it is empty while things go on and when all went well.
func verdict(events []inventory.Event, now time.Time) string {
	if len(events) == 0 {
		return "Nothing has been seen of this machine yet: is it switched on, and set to boot from the network?"
	}
	last, stage, who := events[0], "", map[string]string{}
	for _, e := range events {
		if s := stepOf(e, who); s != "" {
			last, stage = e, s
		}
	}
	if stage == "failed" {
		return "Failed: " + last.Detail + ".\nThe log is in SITE/.ingot/logs; `ingot node set NODE --install` tries again."
	}
	cause, ok := causes()[stage]
	if !ok || now.Sub(last.Time) < quiet {
		return ""
	}
	return fmt.Sprintf("Stopped at %q, %s ago. Likely: %s", last.Stage, now.Sub(last.Time).Round(time.Second), cause)
}

// causes are the likely reasons why nothing follows a step.
func causes() map[string]string {
	return map[string]string{
		"armed":         "the machine is off, boots its disk first, or its network does not reach this server (VLAN, cable, another interface).",
		"discover":      "it was seen, but not answered; see the log of `ingot serve`.",
		"offer":         "our offer does not reach it (spanning tree that is still learning: set PortFast; a relay without a way back), or another DHCP server was faster.",
		"request":       "the lease could not be written; see the log of `ingot serve`.",
		"ipxe discover": "the loader was seen, but not answered; see the log of `ingot serve`.",
		"ipxe offer":    "our offer does not reach the loader (a relay without a way back), or another DHCP server was faster.",
		"ipxe ack":      "the loader did not fetch its script: HTTP is blocked by a firewall between it and this server (server: http: in ingot.yaml is the port).",
		"ack":           "the firmware did not ask for a loader: TFTP (udp/69) or HTTP is blocked by a firewall between it and this server.",
		"loading":       "the transfer of the loader broke off: packets of 1,468 bytes do not get through (tunnel, MTU), or the cable was pulled.",
		"loader":        "the loader did not come up: it may not know this network card; try ipxe.efi instead of snponly.efi for its class.",
		"script":        "the kernel was not fetched: the loader reached us once and then no more; look at the machine's console.",
		"kernel":        "the initramfs was not fetched: the machine may be short of memory (1 GiB is enough), or the link broke.",
		"initrd":        "the installer did not report: the kernel does not start, or lacks the driver of this network card (installer: modules: in ingot.yaml).",
		"claim":         "the installer holds the profile and does not go on: look at its console.",
		"task":          "the installer stopped in this task: power or network was lost. A power cycle tries again, three times at most.",
		"attempt":       "the boot script was not rendered; see the log of `ingot serve`.",
		"refused":       "the installation cannot be served, for the reason given; mend it and switch the machine on again, no attempt is used up.",
		"unknown":       "the machine is no node of this site: `ingot node list --unknown`, `ingot node add`.",
		"ipxe request":  "the lease could not be written; see the log of `ingot serve`.",
		"alarm":         "a machine asked for what is not its own: see SECURITY.md, and whether two machines share a MAC or a serial number.",
		"no-address":    "the network's range: is used up, or the machine is on a network that ingot.yaml does not describe.",
		"nak":           "the machine insists on an address that it must not have; it should begin anew by itself.",
		"broken-off":    "the transfer of kernel or initramfs broke off: a cable, a switch, or a machine that was switched off.",
		"installed":     "the machine did not come back to the network after its installation: does it boot its disk first, and not answer on SSH?",
		"disk":          "the system on the disk does not answer on SSH: look at its console; does it have a network configuration and sshd?",
	}
}
