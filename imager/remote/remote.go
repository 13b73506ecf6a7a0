// Package remote reaches a node over SSH: it pins the host key, uploads the agent and runs it.
package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"
	"golang.org/x/sys/unix"
)

// Kinds of failure; errors.Is tells them apart.
var (
	ErrHostKey = errors.New("the host key is not the one that was pinned")
	ErrNoPin   = errors.New("no host key is known for this host")
	ErrAuth    = errors.New("the node accepts none of the keys")
	ErrReach   = errors.New("the node cannot be reached")
)

// Target says which host is meant and how its identity and ours are proven.
type Target struct {
	// config
	Name string // for messages
	Addr string // host:port
	User string
	// Pinned are the host keys that are accepted, in authorized_keys form. When
	// it is empty, KnownHosts files decide (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT).
	Pinned     []string
	KnownHosts []string
	// Identities are private key files, tried in order before the keys of the ssh-agent.
	Identities []string
	// Dial opens the TCP connection; nil means net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Limit bounds what crosses the connection, together with others that
	// have the same; nil does not.
	Limit *Limit
	// Timeout bounds the connection and the handshake; 0 means 15 s.
	Timeout time.Duration
}

// Conn is one authenticated SSH connection.
type Conn struct {
	target Target
	client *ssh.Client
	agent  io.Closer // the ssh-agent's socket
	silent atomic.Bool
	gone   chan struct{} // closed when the connection has ended
}

// Silent reports whether the connection was given up since the peer said nothing.
func (c *Conn) Silent() bool { return c.silent.Load() }

// Dial connects to t. The context bounds the handshake only; a connection
// that is given up is closed with Close.
func Dial(ctx context.Context, t Target) (*Conn, error) {
	c, err := dial(ctx, t)
	if err != nil {
		return nil, fmt.Errorf("connect to %q (%s): %w", t.Name, t.Addr, err)
	}
	return c, nil
}

func dial(ctx context.Context, t Target) (*Conn, error) {
	if t.Timeout == 0 {
		t.Timeout = 15 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, t.Timeout)
	defer cancel()
	check, algos, err := t.hostKeyCheck()
	if err != nil {
		return nil, err
	}
	signers, sock, err := t.signers()
	if err != nil {
		return nil, err
	}
	c := &Conn{target: t, agent: sock, gone: make(chan struct{})}
	open := t.Dial
	if open == nil {
		open = (&net.Dialer{}).DialContext
	}
	nc, err := open(ctx, "tcp", t.Addr)
	if err != nil {
		if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("%w: %w", ErrReach, err)
		}
		return nil, errors.Join(err, c.closeAgent())
	}
	in := listen(nc)
	nc = in
	if t.Limit != nil {
		nc = limited{nc, t.Limit}
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	cfg := &ssh.ClientConfig{
		User: t.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(signers...)},
		HostKeyCallback: check, HostKeyAlgorithms: algos, Timeout: t.Timeout,
	}
	sc, chans, reqs, err := ssh.NewClientConn(nc, t.Addr, cfg)
	// sshd says two things now, and as it has not set TCP_NODELAY it keeps the
	// second, that a session is open, until the first is acknowledged: 40 ms.
	in.eager.Store(1)
	if !stop() && err == nil {
		sc.Close()
		err = ctx.Err()
	}
	if err != nil {
		nc.Close()
		switch {
		case strings.Contains(err.Error(), "unable to authenticate"):
			err = fmt.Errorf("%w: user %q, %d keys tried: %v", ErrAuth, t.User, len(signers), err)
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			err = fmt.Errorf("%w: it took the connection, but no SSH server answered within %s", ErrReach, t.Timeout)
		case ctx.Err() != nil:
			err = ctx.Err()
		case !errors.Is(err, ErrHostKey) && !errors.Is(err, ErrNoPin):
			err = fmt.Errorf("%w: %w", ErrReach, err)
		}
		return nil, errors.Join(err, c.closeAgent())
	}
	c.client = ssh.NewClient(sc, chans, reqs)
	go c.keepAlive(in)
	go func() { _ = c.client.Wait(); close(c.gone) }() // within asks again for the error
	return c, nil
}

// within is what open returns, unless ctx or the connection ends before that.
// Package ssh waits for ever for a channel that it opens when the connection
// has just broken: its reader has dropped the channels, and not yet told its
// writers.
func within[T any](ctx context.Context, c *Conn, open func() (T, error)) (T, error) {
	type opened struct {
		it  T
		err error
	}
	done := make(chan opened, 1)
	go func() {
		it, err := open()
		done <- opened{it, err}
	}()
	var none T
	select {
	case o := <-done:
		return o.it, o.err
	case <-c.gone:
		return none, fmt.Errorf("the connection broke: %w", c.client.Wait())
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// keepAlive closes the connection when the peer is silent, so that a cut cable
// ends the wait.
func (c *Conn) keepAlive(in *heard) {
	ask := func() error {
		_, _, err := c.client.SendRequest("keepalive@openssh.com", true, nil)
		return err
	}
	watch(ask, in.last, func() { c.silent.Store(true); c.client.Close() })
}

// How often a peer is asked whether it is there, and how long it may be silent then.
const (
	askEvery  = 10 * time.Second
	mayBeMute = 30 * time.Second
)

// watch asks again and again until that fails, and gives up when neither an
// answer nor anything else is heard. On a slow line the answer comes behind
// all that was sent before it, megabytes perhaps.
func watch(ask func() error, last func() time.Time, giveUp func()) {
	for {
		time.Sleep(askEvery)
		asked := time.Now()
		answered := make(chan error, 1)
		go func() { answered <- ask() }()
		for waits := true; waits; {
			since := asked
			if at := last(); at.After(since) {
				since = at
			}
			left := mayBeMute - time.Since(since)
			if left <= 0 {
				giveUp()
				return
			}
			select {
			case err := <-answered:
				if err != nil {
					return
				}
				waits = false
			case <-time.After(left):
			}
		}
	}
}

// heard is a connection that knows when something came last, and can
// acknowledge at once what comes next (tcp(7), TCP_QUICKACK, which does not
// last). That is a packet more each time.
type heard struct {
	net.Conn
	at    atomic.Pointer[time.Time]
	quick func()       // nil where it is no TCP connection
	eager atomic.Int32 // how many times
}

// listen makes a connection a heard one.
func listen(c net.Conn) *heard {
	h := &heard{Conn: c}
	if tcp, ok := c.(*net.TCPConn); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			h.quick = func() {
				_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) }) // it is only slower without
			}
		}
	}
	return h
}

func (h *heard) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	if n > 0 {
		now := time.Now()
		h.at.Store(&now)
		if h.quick != nil && h.eager.Load() > 0 {
			h.eager.Add(-1)
			h.quick()
		}
	}
	return n, err
}

// last is when something was heard last; zero for never.
func (h *heard) last() time.Time {
	if at := h.at.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

func (t Target) hostKeyCheck() (ssh.HostKeyCallback, []string, error) {
	if len(t.Pinned) > 0 {
		var keys []ssh.PublicKey
		var algos []string
		for _, line := range t.Pinned {
			k, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
			if err != nil {
				return nil, nil, fmt.Errorf("pinned host key of %q: %w", t.Name, err)
			}
			keys = append(keys, k)
			algos = append(algos, algorithms(k.Type())...)
		}
		return func(_ string, _ net.Addr, got ssh.PublicKey) error {
			for _, k := range keys {
				if bytes.Equal(k.Marshal(), got.Marshal()) {
					return nil
				}
			}
			return fmt.Errorf("%w: it shows %s", ErrHostKey, ssh.FingerprintSHA256(got))
		}, algos, nil
	}
	var files []string
	for _, f := range t.KnownHosts {
		if _, err := os.Stat(f); err == nil {
			files = append(files, f)
		}
	}
	if len(files) == 0 {
		return nil, nil, fmt.Errorf("%w: looked in %s", ErrNoPin, strings.Join(t.KnownHosts, ", "))
	}
	kh, err := knownhosts.New(files...)
	if err != nil {
		return nil, nil, fmt.Errorf("known hosts: %w", err)
	}
	algos, err := knownAlgorithms(kh, t.Addr)
	if err != nil {
		return nil, nil, fmt.Errorf("known hosts: %w", err)
	}
	return func(host string, addr net.Addr, key ssh.PublicKey) error {
		err := kh(host, addr, key)
		var ke *knownhosts.KeyError
		if errors.As(err, &ke) && len(ke.Want) == 0 {
			return fmt.Errorf("%w in %s; it shows %s", ErrNoPin, strings.Join(files, ", "), ssh.FingerprintSHA256(key))
		} else if errors.As(err, &ke) {
			return fmt.Errorf("%w (%s:%d); it shows %s", ErrHostKey, ke.Want[0].Filename, ke.Want[0].Line, ssh.FingerprintSHA256(key))
		}
		return err
	}, algos, nil
}

// algorithms are those by which a key of a type may sign (RFC 8332 for RSA).
func algorithms(keyType string) []string {
	if keyType == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA}
	}
	return []string{keyType}
}

// knownAlgorithms are those of the keys that are known for addr. A host that
// has keys of several types shows the one that is asked for: without this it
// may be one that is not in the file, which looks as if somebody stood in
// between. Nil is any: nothing is known, or an authority vouches for the host.
func knownAlgorithms(kh ssh.HostKeyCallback, addr string) ([]string, error) {
	err := kh(addr, &net.TCPAddr{}, nobodysKey{})
	var ke *knownhosts.KeyError
	if !errors.As(err, &ke) {
		return nil, err
	}
	var algos []string
	for _, k := range ke.Want {
		if authority(k) {
			return nil, nil
		}
		algos = append(algos, algorithms(k.Key.Type())...)
	}
	return algos, nil
}

// authority reports whether a line of a known_hosts file names one that signs
// host keys; package knownhosts keeps that to itself.
func authority(k knownhosts.KnownKey) bool {
	b, err := os.ReadFile(k.Filename)
	if err != nil {
		return false
	}
	lines := strings.Split(string(b), "\n")
	return k.Line <= len(lines) && strings.HasPrefix(strings.TrimSpace(lines[max(k.Line, 1)-1]), "@cert-authority")
}

// nobodysKey is a public key that no file knows.
type nobodysKey struct{}

func (nobodysKey) Type() string    { return "nobody" }
func (nobodysKey) Marshal() []byte { return []byte("nobody") }
func (nobodysKey) Verify([]byte, *ssh.Signature) error {
	return errors.New("nobody's key verifies nothing")
}

// signers gathers the keys of the ssh-agent and of the identity files. Files
// that are missing or locked by a passphrase are passed over.
func (t Target) signers() ([]ssh.Signer, io.Closer, error) {
	var out []ssh.Signer
	var tried []string
	for _, f := range t.Identities {
		pem, err := os.ReadFile(f)
		if err != nil {
			tried = append(tried, err.Error())
			continue
		}
		s, err := ssh.ParsePrivateKey(pem)
		if err != nil {
			tried = append(tried, fmt.Sprintf("%s: %v", f, err))
			continue
		}
		out = append(out, s)
	}
	var sock net.Conn
	if path := os.Getenv("SSH_AUTH_SOCK"); path != "" {
		if c, err := net.Dial("unix", path); err == nil {
			sock = c
			if more, err := agent.NewClient(c).Signers(); err == nil {
				out = append(out, more...)
			}
		}
	}
	if len(out) == 0 {
		return nil, nil, fmt.Errorf("no SSH key to log in with: %s", strings.Join(append(tried, "no key in the ssh-agent"), "; "))
	}
	if sock == nil {
		return out, nil, nil
	}
	return out, sock, nil
}

// DefaultIdentities returns site first, if not empty, and the usual key files
// of the person who runs ingot.
func DefaultIdentities(site string) []string {
	var out []string
	if site != "" {
		out = append(out, site)
	}
	if home, err := os.UserHomeDir(); err == nil {
		for _, n := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
			out = append(out, filepath.Join(home, ".ssh", n))
		}
	}
	return out
}

// Close ends the connection.
func (c *Conn) Close() error {
	return errors.Join(c.client.Close(), c.closeAgent())
}

func (c *Conn) closeAgent() error {
	if c.agent == nil {
		return nil
	}
	return c.agent.Close()
}
