package remote

import (
	"bytes"
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
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/blake2b"
	"golang.org/x/crypto/ssh"

	"ingot/imager/wire"
	"ingot/internal/digest"
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

// An agent that is uploaded without SFTP arrives whole.
func TestUpload(t *testing.T) {
	binary := []byte("the agent")
	var uploads int
	s := serve(t, func(line string, ch ssh.Channel) uint32 {
		switch {
		case line == "sftp":
			ch.Close()
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
	if err := c.Upload(t.Context(), binary); err != nil || uploads != 1 {
		t.Errorf("Upload = %v; %d uploads without SFTP", err, uploads)
	}
}

// The command line becomes the agent only where that is the right program.
func TestAgentCommand(t *testing.T) {
	good := "#!/bin/sh\necho \"the agent: $*\"\n"
	only := t.TempDir() // a node without b2sum, and one whose b2sum is too old
	for _, name := range []string{"sh", "bash", "sha256sum", "uname"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(only, name)); err != nil {
			t.Fatal(err)
		}
	}
	old := t.TempDir()
	if err := os.CopyFS(old, os.DirFS(only)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(old, "b2sum"), []byte("#!/bin/sh\necho 'invalid option' >&2; exit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, node := range []struct {
		sh, tools string
		sum       digest.ID
	}{
		{"sh", os.Getenv("PATH"), blake2b.Sum256([]byte(good))}, {"bash", os.Getenv("PATH"), blake2b.Sum256([]byte(good))},
		{"sh", only, digest.Of([]byte(good))}, {"sh", old, digest.Of([]byte(good))},
	} {
		sh, tools, sum := node.sh, node.tools, node.sum
		for name, tc := range map[string]struct {
			plant func(path string) error
			want  string
		}{
			"the right one":  {func(p string) error { return os.WriteFile(p, []byte(good), 0o700) }, "the agent: receive\n"},
			"none":           {func(string) error { return nil }, ""},
			"another":        {func(p string) error { return os.WriteFile(p, []byte("#!/bin/sh\necho evil\n"), 0o700) }, ""},
			"half of it":     {func(p string) error { return os.WriteFile(p, []byte(good[:12]), 0o700) }, ""},
			"not executable": {func(p string) error { return os.WriteFile(p, []byte(good), 0o600) }, ""},
			"a directory":    {func(p string) error { return os.Mkdir(p, 0o700) }, ""},
			"a symbolic link": {func(p string) error {
				return errors.Join(os.WriteFile(p+".x", []byte(good), 0o700), os.Symlink(p+".x", p))
			}, ""},
		} {
			path := filepath.Join(t.TempDir(), "agent")
			if err := tc.plant(path); err != nil {
				t.Fatal(err)
			}
			command := strings.ReplaceAll(AgentCommand(digest.Of([]byte("x")), sum), AgentPath, path)
			cmd := exec.Command(sh, "-c", command)
			cmd.Env = []string{"PATH=" + tools}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %s: %v: %s", sh, name, err, out)
			}
			if tc.want != "" && string(out) != tc.want {
				t.Errorf("%s: %s: it says %q", sh, name, out)
			}
			var none *wire.NoAgentError
			if err := wire.New(bytes.NewReader(out), io.Discard).Greet("1"); tc.want == "" && (!errors.As(err, &none) || none.Machine == "") {
				t.Errorf("%s: %s: Greet = %v; it said %q", sh, name, err, out)
			}
		}
	}
}
