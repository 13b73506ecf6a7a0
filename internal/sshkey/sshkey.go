// Package sshkey makes SSH key pairs in OpenSSH's formats.
package sshkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// Pair is one key pair.
type Pair struct {
	Type    string // ed25519, ecdsa or rsa: the TYPE of /etc/ssh/ssh_host_TYPE_key
	Private string // PEM, as ssh-keygen(1) writes it
	Public  string // one line: type, key, comment
}

// Types are the kinds of host keys that Debian's sshd looks for.
func Types() []string { return []string{"ed25519", "ecdsa", "rsa"} }

// New makes a pair.
func New(kind, comment string) (Pair, error) {
	key, err := generate(kind)
	if err != nil {
		return Pair{}, fmt.Errorf("make %s key: %w", kind, err)
	}
	block, err := ssh.MarshalPrivateKey(key, comment)
	if err != nil {
		return Pair{}, fmt.Errorf("make %s key: %w", kind, err)
	}
	pub, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		return Pair{}, fmt.Errorf("make %s key: %w", kind, err)
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(pub))) + " " + comment
	return Pair{Type: kind, Private: string(pem.EncodeToMemory(block)), Public: line}, nil
}

func generate(kind string) (crypto.Signer, error) {
	switch kind {
	case "ed25519":
		_, k, err := ed25519.GenerateKey(rand.Reader)
		return k, err
	case "ecdsa":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "rsa":
		return rsa.GenerateKey(rand.Reader, 3072)
	}
	return nil, fmt.Errorf("unknown type, want one of %s", strings.Join(Types(), ", "))
}
