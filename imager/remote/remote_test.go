package remote

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// server is a small SSH server; command says what it does with a command line.
type server struct {
	addr, key string // key: the public half of one of its keys
	identity  string // a key file that it accepts
}

func newKey(t *testing.T) (ssh.Signer, ed25519.PrivateKey) {
	t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return s, priv
}

func serve(t *testing.T, command func(line string, ch ssh.Channel) uint32) server {
	t.Helper()
	t.Setenv("SSH_AUTH_SOCK", "")
	host, _ := newKey(t)
	login, priv := newKey(t)
	block, err := ssh.MarshalPrivateKey(priv, "")
	if err != nil {
		t.Fatal(err)
	}
	identity := filepath.Join(t.TempDir(), "id")
	if err := os.WriteFile(identity, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
		if string(k.Marshal()) != string(login.PublicKey().Marshal()) {
			return nil, errors.New("who?")
		}
		return nil, nil
	}}
	cfg.AddHostKey(host)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	second, err := ssh.NewSignerFromKey(other) // which clients like better, unless told
	if err != nil {
		t.Fatal(err)
	}
	cfg.AddHostKey(second)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go session(nc, cfg, command)
		}
	}()
	return server{l.Addr().String(), string(ssh.MarshalAuthorizedKey(host.PublicKey())), identity}
}

func session(nc net.Conn, cfg *ssh.ServerConfig, command func(string, ssh.Channel) uint32) {
	defer nc.Close()
	_, chans, reqs, err := ssh.NewServerConn(nc, cfg)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(reqs)
	for nch := range chans {
		ch, reqs, err := nch.Accept()
		if err != nil {
			return
		}
		go func() {
			for r := range reqs {
				if r.Type == "subsystem" {
					r.Reply(true, nil)
					go command(string(r.Payload[4:]), ch)
					continue
				}
				if r.Type != "exec" {
					r.Reply(false, nil)
					continue
				}
				r.Reply(true, nil)
				go func() {
					code := command(string(r.Payload[4:]), ch)
					ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{code}))
					ch.Close()
				}()
			}
		}()
	}
}

func (s server) target() Target {
	return Target{Name: "n1", Addr: s.addr, User: "root", Pinned: []string{s.key}, Identities: []string{s.identity}, Timeout: 2 * time.Second}
}

func TestDialRefuses(t *testing.T) {
	s := serve(t, nil)
	other, _ := newKey(t)
	_, stranger := newKey(t)
	block, err := ssh.MarshalPrivateKey(stranger, "")
	if err != nil {
		t.Fatal(err)
	}
	strange := filepath.Join(t.TempDir(), "id")
	if err := os.WriteFile(strange, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	mute, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	hostKey, _ := ssh.ParsePublicKey(mustParse(t, s.key).Marshal())
	for name, tc := range map[string]struct {
		change func(*Target)
		kind   error
		want   string
	}{
		"another host key":     {func(t *Target) { t.Pinned = []string{string(ssh.MarshalAuthorizedKey(other.PublicKey()))} }, ErrHostKey, ssh.FingerprintSHA256(hostKey)},
		"a pin that is no key": {func(t *Target) { t.Pinned = []string{"ssh-ed25519 nonsense"} }, nil, "pinned host key"},
		"no pin":               {func(t *Target) { t.Pinned = nil; t.KnownHosts = []string{"/nonexistent"} }, ErrNoPin, "/nonexistent"},
		"an unknown key":       {func(t *Target) { t.Identities = []string{strange} }, ErrAuth, "1 keys tried"},
		"no key at all":        {func(t *Target) { t.Identities = []string{"/nonexistent"} }, nil, "no SSH key"},
		"nobody listens":       {func(t *Target) { t.Addr = closed.Addr().String() }, ErrReach, "refused"},
		"a host that is mute":  {func(t *Target) { t.Addr = mute.Addr().String() }, ErrReach, "no SSH server answered within 2s"},
	} {
		t.Run(name, func(t *testing.T) {
			target := s.target()
			tc.change(&target)
			start := time.Now()
			c, err := Dial(t.Context(), target)
			if err == nil {
				c.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), `"n1"`) && name != "a pin that is no key" {
				t.Errorf("Dial = %v, want %q", err, tc.want)
			}
			if tc.kind != nil && !errors.Is(err, tc.kind) {
				t.Errorf("Dial = %v, want the kind %v", err, tc.kind)
			}
			if took := time.Since(start); took > 4*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

func mustParse(t *testing.T, line string) ssh.PublicKey {
	t.Helper()
	k, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestCommandsOfHostileNodes(t *testing.T) {
	s := serve(t, func(line string, ch ssh.Channel) uint32 {
		switch line {
		case "fail":
			io.WriteString(ch.Stderr(), "no\x1b[2J such thing")
			return 3
		case "flood":
			for {
				if _, err := ch.Write(make([]byte, 64<<10)); err != nil {
					return 0
				}
			}
		case "hang":
			time.Sleep(time.Minute)
		}
		io.WriteString(ch, "fine")
		return 0
	})
	c, err := Dial(t.Context(), s.target())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if out, err := c.Output(t.Context(), "work"); err != nil || string(out) != "fine" {
		t.Errorf("Output = %q, %v", out, err)
	}
	for line, want := range map[string]string{"fail": "no\ufffd[2J such thing", "flood": "more than", "hang": "deadline"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		start := time.Now()
		_, err := c.Output(ctx, line)
		cancel()
		if err == nil || !strings.Contains(err.Error(), want) || time.Since(start) > 3*time.Second {
			t.Errorf("%s: %v after %s, want %q", line, err, time.Since(start), want)
		}
	}
}

// A node says what the digest of its agent is; the same file is not sent twice.
func TestEnsureAgentSendsWhatDiffers(t *testing.T) {
	binary := []byte("the agent")
	const sum = "ec5d1a6a3ba0af7b8a0ff3ba8dba7b5ee4a1ab1b0ba5c2cbb1dab2d1b5ab4ab1"
	var uploads, sums int
	s := serve(t, func(line string, ch ssh.Channel) uint32 {
		switch {
		case line == "sftp":
			ch.Close()
		case strings.Contains(line, "sha256sum"):
			sums++
			io.WriteString(ch, "Welcome!\n"+sum+"  "+AgentPath+"\n")
		case strings.Contains(line, "cat >$t"):
			uploads++
			if b, err := io.ReadAll(ch); err != nil || string(b) != string(binary) {
				return 1
			}
		}
		return 0
	})
	c, err := Dial(t.Context(), s.target())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent, err := c.EnsureAgent(t.Context(), binary)
	if !sent || err != nil || uploads != 1 || sums != 1 {
		t.Errorf("EnsureAgent = %v, %v; %d uploads without SFTP, %d looks", sent, err, uploads, sums)
	}
}
