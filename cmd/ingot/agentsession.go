package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ingot/imager/remote"
	"ingot/imager/wire"
	"ingot/inventory"
	"ingot/site"
)

func interruptSignal() os.Signal { return unix.SIGTERM }

// agentSession is an agent that runs on a node and has been greeted.
type agentSession struct {
	ssh  *remote.Conn
	proc *remote.Process
	conn *wire.Conn
	end  context.CancelFunc // of the pings

	silent atomic.Bool // it was given up since it said nothing
}

// Close ends the agent's input and the connection.
func (s *agentSession) Close() error {
	defer s.end()
	return errors.Join(s.proc.WriteCloser.Close(), s.ssh.Close())
}

// hangUp ends the agent's input: it stops before its switch, or finishes that,
// and says so.
func (s *agentSession) hangUp() { s.proc.WriteCloser.Close() }

// explain adds what the agent said on its standard error to an end of stream
// that says nothing, and the exit code to what the node does not have. err is
// of this session: what was heard of later, over another one, needs none of it.
func (s *agentSession) explain(err error) error {
	var peer *wire.Error
	if err != nil && (s.silent.Load() || s.ssh.Silent()) {
		return fellSilent(err)
	}
	if errors.As(err, &peer) && peer.Kind == "notfound" {
		return withHint(coded{err, exitNotFound}, "%s", peer.Hint)
	}
	if errors.Is(err, wire.ErrGreeting) {
		text := s.proc.Stderr()
		if text != "" {
			err = fmt.Errorf("%w; and on standard error: %s", err, text)
		}
		return withHint(err, "something else than the agent answers: does root's login shell end or replace commands (/root/.bashrc, ForceCommand)?")
	}
	if err == nil || !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if text := s.proc.Stderr(); text != "" {
		return fmt.Errorf("the agent ended: %s", text)
	}
	return fmt.Errorf("%w: %v", errBroke, err) // explained: the end of a stream no longer
}

func fellSilent(err error) error {
	return withHint(fmt.Errorf("the node fell silent and was given up: %w", err), "is it alive? `ingot deployment resume last --retry-failed` tries again")
}

var errBroke = errors.New("the connection broke")

// address returns the IP address of a node: the static one of its NICs, bonds
// or VLANs, else the newest lease of any of its NICs.
func address(ctx context.Context, db *inventory.DB, n *site.Node) (string, error) {
	var ips []site.IP
	if b := n.BootNIC(); b != nil {
		ips = append(ips, b.IP())
	}
	for _, x := range n.NICs {
		ips = append(ips, x.IP())
	}
	for _, x := range n.Bonds {
		ips = append(ips, x.IP())
	}
	for _, x := range n.VLANs {
		ips = append(ips, x.IP())
	}
	for _, ip := range ips {
		if ip.Address.IsValid() {
			return ip.Address.Addr.String(), nil
		}
	}
	var macs []string
	for _, x := range n.NICs {
		macs = append(macs, string(x.MAC))
	}
	leases, err := db.LeasesOf(ctx, macs...)
	if err != nil {
		return "", err
	}
	var best netip.Addr
	var until time.Time
	for _, l := range leases {
		if l.Expires.After(until) && l.State == "bound" {
			best, until = l.IP, l.Expires
		}
	}
	if !best.IsValid() {
		return "", withHint(fmt.Errorf("node %q has no address: none is written, and it has no lease", n.Name), "is it switched on? `ingot node timeline %s`", n.Name)
	}
	return best.String(), nil
}

// dialAgent connects to a node of the site by name, or to any other host that
// known_hosts knows, and starts the agent there, uploading it when needed. A
// node of another architecture than arch, unless that is "", is left as it is.
func (p *program) dialAgent(ctx context.Context, w *world, user, host, arch string) (*agentSession, error) {
	key, err := w.siteKey()
	if err != nil {
		return nil, err
	}
	home, _ := os.UserHomeDir()
	t := remote.Target{Name: host, Addr: host, User: user, Identities: remote.DefaultIdentities(key), Limit: p.limit,
		KnownHosts: []string{filepath.Join(home, ".ssh", "known_hosts"), "/etc/ssh/ssh_known_hosts"}}
	if n := w.Node(host); n != nil {
		if t.Addr, err = address(ctx, w.state, n); err != nil {
			return nil, err
		}
		keys, err := w.state.HostKeys(ctx, n.Name)
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			t.Pinned = append(t.Pinned, k.Public)
		}
	}
	if _, _, err := net.SplitHostPort(t.Addr); err != nil {
		t.Addr = net.JoinHostPort(t.Addr, "22")
	}
	return p.startAgent(ctx, t, arch)
}

// greetWait is how long an agent may take to start.
const greetWait = 30 * time.Second

func (p *program) startAgent(ctx context.Context, t remote.Target, want string) (*agentSession, error) {
	programs, err := agentDigests()
	if err != nil {
		return nil, err
	}
	c, err := remote.Dial(ctx, t)
	if errors.Is(err, remote.ErrReach) {
		return nil, withHint(err, "is it switched on, and does sshd run there? `ssh %s@%s` tries the same", t.User, strings.TrimSuffix(t.Addr, ":22"))
	}
	if err != nil {
		return nil, err
	}
	s, err := greetAgent(ctx, c, remote.AgentCommand(programs...))
	var none *wire.NoAgentError
	if errors.As(err, &none) {
		if err = p.uploadAgent(ctx, c, none.Machine, want); err == nil {
			s, err = greetAgent(ctx, c, remote.AgentPath+" receive")
		} else if c.Silent() {
			err = fellSilent(err)
		}
	}
	if err != nil {
		c.Close() // it may be closed already
		return nil, &startError{t.Name, err}
	}
	if err := fitsArch(want, s.conn.PeerArch()); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// startError says that a node was reached, and that no agent began to work there.
type startError struct {
	node string
	err  error
}

func (e *startError) Error() string { return fmt.Sprintf("agent on %q: %v", e.node, e.err) }
func (e *startError) Unwrap() error { return e.err }

// fitsArch says why an image whose programs are for arch want has no business
// on a node of another one.
func fitsArch(want, node string) error {
	if want == "" || want == node {
		return nil
	}
	return withHint(fmt.Errorf("the image is for %s, the node is %s: nothing was changed", want, node), "capture or build one on a machine like it")
}

func (p *program) uploadAgent(ctx context.Context, c *remote.Conn, machine, want string) error {
	arch, err := archOf(machine)
	if err == nil {
		err = fitsArch(want, arch)
	}
	if err != nil {
		return err
	}
	program, err := p.agent(arch)
	if err != nil {
		return err
	}
	return c.Upload(ctx, program)
}

// greetAgent runs a command line that becomes the agent, and greets it.
func greetAgent(ctx context.Context, c *remote.Conn, command string) (*agentSession, error) {
	proc, err := c.Start(ctx, command)
	if err != nil && c.Silent() {
		err = fellSilent(err)
	}
	if err != nil {
		return nil, err
	}
	s := &agentSession{ssh: c, proc: proc, conn: wire.New(proc, proc)}
	late := time.AfterFunc(greetWait, func() { c.Close() })
	err = s.conn.Greet(version)
	if !late.Stop() && err != nil {
		err = withHint(fmt.Errorf("it did not greet within %s", greetWait), "does the node still answer, or does its login shell wait for something (/root/.bashrc)? `ssh USER@NODE true` has to end")
	}
	if err != nil {
		return nil, errors.Join(s.explain(err), proc.Close())
	}
	var alive context.Context
	alive, s.end = context.WithCancel(ctx)
	context.AfterFunc(alive, func() { c.Close() }) // an operator who gives up need not wait for a network that is gone
	s.conn.KeepAlive(alive, wire.Ping, wire.Silence, func() { s.silent.Store(true); c.Close() })
	return s, nil
}
