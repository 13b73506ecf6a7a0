package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"ingot/internal/slogx"
	"ingot/inventory"
	"ingot/pxe"
	"ingot/site"
	"ingot/web"
)

func (p *program) serveCommand() *cli.Command {
	return verb{
		name: "serve", usage: "answer machines that boot from the network",
		about: `Runs the boot server: DHCP, TFTP, HTTP and router advertisements on the interfaces of the
  site's networks. Edits of the site apply within a second; while they are wrong, the last valid
  set stays in force and every problem is logged. Leases, installations and events survive
  a kill: start it again and everything goes on.

  It refuses to start, with the reason, when a port is taken, an interface is missing or
  down, a loader is not there, or another DHCP server answers on the wire.`,
		examples: []string{
			"ingot serve --site /srv/rack",
			"ingot serve --beside-others     although another DHCP server answers (it will race with ours)",
		},
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "beside-others", Usage: "start although another DHCP server answers on the wire"},
			&cli.BoolFlag{Name: "debug", Usage: "log every packet and request"},
		},
		run: p.serve,
	}.command()
}

func (p *program) serve(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	level := slog.LevelInfo
	if c.Bool("debug") {
		level = slog.LevelDebug
	}
	log := p.logger(level)
	if _, err := w.siteKey(); err != nil {
		return err
	}
	b := newBoots(w, log)
	networks, err := networksOf(w.Site)
	if err != nil {
		return err
	}
	if err := others(c.Context, networks, c.Bool("beside-others"), log); err != nil {
		return err
	}
	return run(c.Context, w, b, networks, log)
}

// others looks for other DHCP servers before ours begins to answer.
func others(ctx context.Context, networks []pxe.Network, allow bool, log *slog.Logger) error {
	var found []string
	for _, iface := range interfaces(networks) {
		rogues, err := pxe.Probe(ctx, iface)
		if err != nil {
			return fmt.Errorf("look for other boot servers: %w", err)
		}
		for _, r := range rogues {
			if proxied(networks, iface) && !r.Proxy() {
				continue // the one that gives the addresses
			}
			found = append(found, r.String())
			log.Warn("another boot server answers", "server", r.String())
		}
	}
	if len(found) == 0 || allow {
		return nil
	}
	return withHint(fmt.Errorf("another boot server answers on the wire: %s", strings.Join(found, "; ")),
		"stop it, or set `dhcp: proxy` for the network so that it gives the addresses, or start with --beside-others")
}

func proxied(networks []pxe.Network, iface string) bool {
	for _, n := range networks {
		if n.Interface == iface && n.Proxy {
			return true
		}
	}
	return false
}

// listenHTTP binds the HTTP port on our address of each network, and on all
// addresses when there is none: packs hold /etc/shadow, and have no business
// on other networks.
func listenHTTP(ctx context.Context, s *site.Site, networks []pxe.Network) ([]net.Listener, error) {
	seen := map[string]bool{}
	var addrs []string
	add := func(a netip.Addr) {
		if a.IsValid() && !seen[a.String()] {
			seen[a.String()] = true
			addrs = append(addrs, a.String())
		}
	}
	add(s.Server.Address)
	for _, n := range networks {
		add(n.ServerIP)
	}
	if len(addrs) == 0 {
		addrs = []string{""}
	}
	var out []net.Listener
	for _, a := range addrs {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(a, strconv.Itoa(s.Server.HTTP)))
		if err != nil {
			for _, l := range out {
				l.Close()
			}
			return nil, withHint(fmt.Errorf("bind the HTTP port: %w", err), "`ss -ltnp sport = :%d` shows who holds it; server: http: in ingot.yaml chooses another; `ip -br addr` shows the addresses", s.Server.HTTP)
		}
		out = append(out, l)
	}
	return out, nil
}

// run binds everything, says so, and serves until ctx ends or a part fails.
func run(ctx context.Context, w *world, b *boots, networks []pxe.Network, log *slog.Logger) error {
	var loaders pxe.Loaders
	var err error
	if w.Server.TFTP || w.Server.DHCP {
		if loaders, err = pxe.FindLoaders(w.Server.Loaders); err != nil {
			return err
		}
	}
	listeners, err := listenHTTP(ctx, w.Site, networks)
	if err != nil {
		return err
	}
	httpd := &web.Server{State: w.state, Boots: b, Images: &storeImages{s: w.images}, Netboot: w.private("netboot"), Logs: w.private("logs"), Log: log}
	g, ctx := errgroup.WithContext(ctx)
	httpd.Loaders = loaders
	for _, l := range listeners {
		g.Go(func() error { return httpd.Serve(ctx, l) })
	}
	if err := b.tidy(ctx); err != nil {
		return err
	}
	g.Go(func() error { return b.follow(ctx) })
	g.Go(func() error { return b.writeEvents(ctx) })
	g.Go(func() error { return b.logins.run(ctx) })

	if w.Server.TFTP {
		t := &pxe.TFTP{Files: loaders, Script: b.autoexec, Events: b, Log: log}
		g.Go(func() error { return t.Serve(ctx) })
	}
	if w.Server.DHCP && len(networks) > 0 {
		arp := &pxe.Prober{}
		defer arp.Close()
		pool, err := pxe.OpenPool(ctx, pxe.PoolConfig{Store: leaseStore{w.state}, Reservations: b, Probe: arp.Probe, Log: log})
		if err != nil {
			return err
		}
		d := &pxe.DHCP{Networks: networks, Decider: b, Leases: pool, Events: b, Loaders: loaders, Log: log,
			LoaderURL: func(server netip.Addr) string {
				return fmt.Sprintf("http://%s/loader/", netip.AddrPortFrom(server, uint16(w.Server.HTTP)))
			},
			Ready: func() {
				log.Info("ready", "site", w.Dir, "http", listeners[0].Addr().String(), "networks", len(networks))
			}}
		g.Go(func() error { return d.Serve(ctx) })
		g.Go(func() error { return advertise(ctx, interfaces(networks), log) })
	}
	err = g.Wait()
	var busy *pxe.BusyError
	if errors.As(err, &busy) {
		return withHint(err, "%s", busy.Hint())
	}
	return err
}

// advertise answers router solicitations; without IPv6 on the wire it only
// costs iPXE its 16 seconds of waiting, so that is no reason to stop.
func advertise(ctx context.Context, ifaces []string, log *slog.Logger) error {
	ra := &pxe.RA{Interfaces: ifaces, Log: log}
	if err := ra.Serve(ctx); err != nil && ctx.Err() == nil {
		log.Warn("no router advertisements: iPXE will wait for one at each boot", slogx.Err, err)
	}
	return nil
}

// networksOf turns the site's networks into those that we answer on.
func networksOf(s *site.Site) ([]pxe.Network, error) {
	var out []pxe.Network
	var errs []error
	for _, n := range s.Networks {
		if n.DHCP == "off" {
			continue
		}
		if n.Interface == "" { // reached through relays: their packets come in by the network that we are on
			for _, near := range s.Networks {
				if near.Interface != "" {
					n.Interface, n.Address = near.Interface, near.Address
					break
				}
			}
		}
		if !n.Address.IsValid() {
			n.Address = s.Server.Address
		}
		x := pxe.Network{Name: n.Name, Interface: n.Interface, ServerIP: n.Address, Prefix: n.Subnet, RangeFrom: n.Range.First, RangeTo: n.Range.Last,
			Router: n.Router, DNS: n.DNS, Domain: n.Domain, LeaseTime: n.Lease, BootLeaseTime: n.BootLease, Proxy: n.DHCP == "proxy"}
		if err := x.Validate(); err != nil {
			errs = append(errs, err)
		}
		out = append(out, x)
	}
	return out, errors.Join(errs...)
}

func interfaces(networks []pxe.Network) []string {
	var out []string
	seen := map[string]bool{"": true}
	for _, n := range networks {
		if !seen[n.Interface] {
			seen[n.Interface] = true
			out = append(out, n.Interface)
		}
	}
	return out
}

// leaseStore keeps pxe's leases in the inventory.
type leaseStore struct{ db *inventory.DB }

func (l leaseStore) Load(ctx context.Context) ([]pxe.Lease, error) {
	all, err := l.db.Leases(ctx)
	if err != nil {
		return nil, err
	}
	var out []pxe.Lease
	for _, x := range all {
		mac, err := net.ParseMAC(x.MAC)
		if err != nil {
			return nil, fmt.Errorf("lease of %s: %w", x.IP, err)
		}
		out = append(out, pxe.Lease{MAC: mac, IP: x.IP, Expires: x.Expires, State: pxe.LeaseState(x.State), Hostname: x.HostName, Iface: x.Iface})
	}
	return out, nil
}

func (l leaseStore) Save(ctx context.Context, x pxe.Lease) error {
	return l.db.SaveLease(ctx, inventory.Lease{MAC: x.MAC.String(), IP: x.IP, State: string(x.State), HostName: x.Hostname, Iface: x.Iface, Expires: x.Expires})
}

func (l leaseStore) Delete(ctx context.Context, x pxe.Lease) error {
	return l.db.DeleteLease(ctx, x.IP)
}

// eventsKept is how long events are kept.
const eventsKept = 90 * 24 * time.Hour

// tidy takes up what a server before this one left: it forgets old events, and
// goes on waiting for the logins of machines that were sent to their disks.
func (b *boots) tidy(ctx context.Context) error {
	if err := b.w.state.ForgetEvents(ctx, time.Now().Add(-eventsKept)); err != nil {
		return err
	}
	for _, n := range b.site().Nodes {
		last, err := b.w.state.Events(ctx, n.Name, nil, 0, 1)
		if err != nil {
			return err
		}
		if len(last) == 1 && last[0].Stage == "disk" && time.Since(last[0].Time) < loginWait {
			b.logins.watch(n.Name)
		}
	}
	return nil
}

// follow reloads the site when its files change, and keeps the last valid set.
// It begins with a reload: somebody may have edited while the server started.
func (b *boots) follow(ctx context.Context) error {
	stamp := ""
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := stampOf(b.site().Dir)
		if now == stamp {
			continue
		}
		first := stamp == ""
		stamp = now
		if err := b.reload(); err != nil {
			b.log.Error("the site has problems; the last valid set stays in force", slogx.Err, err)
			continue
		}
		if !first {
			b.log.Info("the site was read again", "nodes", len(b.site().Nodes))
		}
	}
}

// stampOf changes when ingot.yaml or a node's file does.
func stampOf(dir string) string {
	var b strings.Builder
	add := func(path string) {
		if st, err := os.Stat(path); err == nil {
			fmt.Fprintf(&b, "%s %d %d\n", path, st.ModTime().UnixNano(), st.Size())
		}
	}
	add(dir + "/ingot.yaml")
	add(dir + "/nodes")
	entries, err := os.ReadDir(dir + "/nodes")
	if err != nil {
		return b.String()
	}
	for _, e := range entries {
		add(dir + "/nodes/" + e.Name())
	}
	return b.String()
}
