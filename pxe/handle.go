package pxe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"ingot/internal/slogx"
)

// handle takes one packet from bytes to answer.
func (s *DHCP) handle(ctx context.Context, p packet) {
	pkt, err := Decode(p.data)
	if err == nil {
		var req Request
		if req, err = Classify(pkt, p.rx); err == nil {
			s.answer(ctx, p.from, &req)
			return
		}
	}
	if errors.Is(err, ErrMalformed) {
		s.log.Warn("DHCP packet passed over", "iface", p.rx.Iface, "from", p.rx.Src, slogx.Err, err)
	}
}

// exchange is one request on its way to an answer.
type exchange struct {
	*DHCP
	conn *dhcpConn
	req  *Request
	ans  Answer
	nets []Network // the client may be on
}

func (s *DHCP) answer(ctx context.Context, c *dhcpConn, req *Request) {
	s.memory.complete(req, time.Now())
	x := &exchange{DHCP: s, conn: c, req: req, nets: candidates(s.Networks, req)}
	if len(x.nets) == 0 {
		s.log.Warn("DHCP request from a relay of no configured network", "relay", req.GIAddr, slogx.MAC, req.MAC.String())
		return
	}
	req.Network, req.Server = x.nets[0].Name, x.nets[0].ServerIP
	for _, n := range req.Notes {
		s.log.Debug("odd DHCP packet", slogx.MAC, req.MAC.String(), "note", n)
	}
	if !x.forUs(ctx) || !x.decide(ctx) {
		return
	}
	if x.nets[0].Proxy || req.Rx.Proxy {
		x.proxy(ctx)
		return
	}
	switch req.MessageType {
	case dhcpv4.MessageTypeDiscover:
		x.discover(ctx)
	case dhcpv4.MessageTypeRequest:
		x.request(ctx)
	case dhcpv4.MessageTypeDecline, dhcpv4.MessageTypeRelease:
		x.end(ctx)
	case dhcpv4.MessageTypeInform:
		x.inform(ctx)
	}
}

// forUs passes over a client that chose another server, and reports that server: its offer beat ours.
func (x *exchange) forUs(ctx context.Context) bool {
	id := x.req.ServerID
	if !id.IsValid() || x.ours(id) {
		return true
	}
	if x.req.MessageType == dhcpv4.MessageTypeRequest {
		if !x.nets[0].Proxy {
			x.event(ctx, EventIgnored, x.req.RequestedIP, "the client chose the server "+id.String())
		}
		x.foreign(ctx, Rogue{Iface: x.req.Rx.Iface, IP: id, Offered: x.req.RequestedIP}, x.req.MAC)
	}
	return false
}

func (s *DHCP) ours(id netip.Addr) bool {
	for _, n := range s.Networks {
		if n.ServerIP == id {
			return true
		}
	}
	return false
}

// decide asks the decider. When it fails, a booting machine gets no answer: it asks again, and an offer without a boot file
// would send it off for a minute. A running system keeps its address.
func (x *exchange) decide(ctx context.Context) bool {
	dctx, cancel := context.WithTimeout(ctx, decideTime)
	defer cancel()
	ans, err := x.Decider.Decide(dctx, *x.req)
	if err != nil {
		x.log.Error("decide what a machine gets", slogx.MAC, x.req.MAC.String(), slogx.Err, err)
		return !x.req.Boots()
	}
	x.ans = ans
	if ans.Ignore {
		x.log.Debug("machine ignored", slogx.MAC, x.req.MAC.String(), slogx.Node, ans.Name)
		x.event(ctx, EventIgnored, netip.Addr{}, "by the site's configuration")
	}
	return !ans.Ignore
}

func (x *exchange) query(ip netip.Addr) LeaseQuery {
	return LeaseQuery{MAC: x.req.MAC, Networks: x.nets, IP: ip, Boots: x.req.Boots() || x.req.Stage == StageInstaller,
		Hostname: firstOf(x.ans.HostName, x.ans.Name, x.req.Hostname), Relayed: x.req.GIAddr.IsValid()}
}

func (x *exchange) discover(ctx context.Context) {
	x.event(ctx, EventDiscover, netip.Addr{}, x.who())
	l, err := x.Leases.Offer(ctx, x.query(x.req.RequestedIP))
	if err != nil {
		x.log.Error("no address to offer", slogx.MAC, x.req.MAC.String(), slogx.Err, err)
		x.event(ctx, EventNoLease, netip.Addr{}, err.Error())
		return
	}
	x.reply(ctx, dhcpv4.MessageTypeOffer, l, EventOffer)
}

// request is RFC 2131 4.3.2 in all its four cases: the address is named in option 50 (SELECTING, INIT-REBOOT) or in ciaddr
// (RENEWING, REBINDING).
func (x *exchange) request(ctx context.Context) {
	ip := x.req.RequestedIP
	if !ip.IsValid() {
		ip = x.req.CIAddr
	}
	if !ip.IsValid() {
		x.log.Warn("DHCP request for no address", slogx.MAC, x.req.MAC.String())
		return
	}
	x.event(ctx, EventRequest, ip, x.who())
	l, err := x.Leases.Commit(ctx, x.query(ip))
	switch {
	case refused(err):
		x.nak(ctx, ip, err)
	case err != nil:
		x.log.Error("lease not given", slogx.MAC, x.req.MAC.String(), slogx.IP, ip, slogx.Err, err)
		x.event(ctx, EventNoLease, ip, err.Error())
	default:
		x.reply(ctx, dhcpv4.MessageTypeAck, l, EventAck)
	}
}

func (x *exchange) nak(ctx context.Context, ip netip.Addr, why error) {
	srv := Server{Type: dhcpv4.MessageTypeNak, Network: x.nets[0], Message: why.Error()}
	if x.send(ctx, srv) {
		x.log.Info("address refused", slogx.MAC, x.req.MAC.String(), slogx.IP, ip, slogx.Err, why)
		x.event(ctx, EventNak, ip, why.Error())
	}
}

// end is RELEASE and DECLINE; neither is answered. A DECLINE names the address in option 50, a RELEASE in ciaddr.
func (x *exchange) end(ctx context.Context) {
	if x.req.MessageType == dhcpv4.MessageTypeRelease {
		if err := x.Leases.Release(ctx, x.query(x.req.CIAddr)); err != nil {
			x.log.Debug("release", slogx.MAC, x.req.MAC.String(), slogx.Err, err)
			return
		}
		x.event(ctx, EventRelease, x.req.CIAddr, "")
		return
	}
	if err := x.Leases.Decline(ctx, x.query(x.req.RequestedIP)); err != nil {
		x.log.Warn("decline", slogx.MAC, x.req.MAC.String(), slogx.Err, err)
		return
	}
	x.log.Warn("address is used by another machine: nobody gets it for 10 minutes", slogx.IP, x.req.RequestedIP, "found-by", x.req.MAC.String())
	x.event(ctx, EventDecline, x.req.RequestedIP, "another machine uses it")
}

// inform answers a client that has its address from elsewhere (RFC 2131 4.3.5): no yiaddr, no lease time.
func (x *exchange) inform(ctx context.Context) {
	x.event(ctx, EventInform, x.req.CIAddr, x.who())
	x.reply(ctx, dhcpv4.MessageTypeAck, Lease{}, EventAck)
}

// proxy answers without an address: a DISCOVER in proxy mode with an OFFER, anything that comes to 4011 with an ACK. The
// REQUEST at port 67 in proxy mode is for the other server.
func (x *exchange) proxy(ctx context.Context) {
	switch {
	case !x.req.Boots() || x.ans.NoBoot:
	case x.req.Rx.Proxy && x.req.MessageType == dhcpv4.MessageTypeRequest, x.req.Rx.Proxy && x.req.MessageType == dhcpv4.MessageTypeInform:
		x.event(ctx, EventRequest, x.req.CIAddr, x.who()+", port 4011")
		x.reply(ctx, dhcpv4.MessageTypeAck, Lease{}, EventAck)
	case !x.req.Rx.Proxy && x.req.MessageType == dhcpv4.MessageTypeDiscover:
		x.event(ctx, EventDiscover, netip.Addr{}, x.who()+", proxy")
		x.reply(ctx, dhcpv4.MessageTypeOffer, Lease{}, EventOffer)
	}
}

// reply sends an OFFER or ACK with the boot information that is due.
func (x *exchange) reply(ctx context.Context, t dhcpv4.MessageType, l Lease, stage string) {
	n, ok := networkOf(x.nets, l.IP)
	if !ok {
		n = x.nets[0]
	}
	srv := Server{Type: t, Network: n, Lease: l, Proxy: n.Proxy || x.req.Rx.Proxy}
	if l.IP.IsValid() {
		srv.LeaseTime = n.leaseTime(x.req.Boots() || x.req.Stage == StageInstaller)
	}
	if x.LoaderURL != nil {
		srv.LoaderURL = x.LoaderURL(n.ServerIP)
	}
	loads := x.loader(ctx, &srv)
	if !x.send(ctx, srv) {
		return
	}
	if t == dhcpv4.MessageTypeAck && x.req.Rx.Proxy == n.Proxy { // 4011 after our own ACK is the same boot
		x.count(loads)
	}
	x.event(ctx, stage, l.IP, x.boots(&srv, loads))
}

// loader chooses the loader, and reports whether this answer hands one out. A machine that got one loader twice and never
// came back as iPXE gets the next kind; after six it gets none: it is in a loop, and a reader of the log should know.
func (x *exchange) loader(ctx context.Context, srv *Server) bool {
	if !x.req.Boots() || x.ans.NoBoot || x.ans.BootFile != "" || (x.req.Stage == StageIPXE && !x.req.NoHTTP) {
		return false // a boot file of the site's own may well never become an iPXE
	}
	n := x.memory.loads(x.req.MAC, time.Now())
	if n >= maxLoads {
		x.log.Error("machine loads its loader again and again and never comes back as iPXE: it gets none until it has been quiet for 5 minutes",
			slogx.MAC, x.req.MAC.String(), slogx.Node, x.ans.Name, "times", n, "arch", x.req.Arch.String(), "class", x.req.VendorClass)
		x.event(ctx, EventLoop, srv.Lease.IP, fmt.Sprintf("%d loaders in a row, no iPXE", n))
		x.ans.NoBoot = true
		return false
	}
	var names []string
	for _, name := range LoadersFor(x.req.Arch) {
		if x.Loaders.Empty() || x.Loaders.Has(name) {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		srv.Loader = names[min(n/perLoader, len(names)-1)]
	} else {
		x.log.Warn("no loader for this machine: it gets an address only", slogx.MAC, x.req.MAC.String(),
			"arch", x.req.Arch.String(), "want", LoadersFor(x.req.Arch))
		x.ans.NoBoot = true
		return false
	}
	return true
}

func (x *exchange) count(loader bool) {
	switch {
	case loader:
		x.memory.gaveLoader(x.req.MAC, x.req.XID, time.Now())
	case x.req.Stage == StageIPXE, x.req.Stage == StageInstaller:
		x.memory.reachedScript(x.req.MAC, time.Now())
	}
}

func (x *exchange) send(ctx context.Context, srv Server) bool {
	pkt, dest, err := Reply(*x.req, x.ans, srv)
	if err == nil {
		err = x.transmit(x.conn, srv.Network.ServerIP, dest, pkt.ToBytes())
	}
	if err != nil {
		x.log.Error("answer a machine", slogx.MAC, x.req.MAC.String(), "type", srv.Type.String(), "arch", x.req.Arch.String(), slogx.Err, err)
		x.event(ctx, EventIgnored, srv.Lease.IP, err.Error())
		return false
	}
	x.log.Debug("DHCP answer", slogx.MAC, x.req.MAC.String(), "type", srv.Type.String(), slogx.IP, srv.Lease.IP,
		"file", pkt.Options.Get(dhcpv4.OptionBootfileName), "via", dest.Via.String(), "to", dest.Addr)
	return true
}

func (x *exchange) event(ctx context.Context, stage string, ip netip.Addr, detail string) {
	emit(ctx, x.Events, Event{MAC: x.req.MAC, IP: ip, Node: x.ans.Name, Stage: stage, Detail: detail})
}

// who is the client in a few words.
func (x *exchange) who() string {
	switch {
	case x.req.Boots():
		return x.req.Stage.String() + ", " + x.req.Arch.String()
	case x.req.VendorClass != "":
		return x.req.Stage.String() + ", " + x.req.VendorClass
	}
	return x.req.Stage.String()
}

// boots is what the answer lets the machine boot.
func (x *exchange) boots(srv *Server, loader bool) string {
	switch {
	case !x.req.Boots():
		return ""
	case x.ans.BootFile != "" && x.req.Stage == StageROM:
		return x.ans.BootFile
	case loader:
		return srv.Loader
	case x.ans.NoBoot:
		return "nothing to boot"
	}
	return x.ans.ScriptURL
}
