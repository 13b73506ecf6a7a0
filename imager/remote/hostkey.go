package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// HostKey connects to addr and returns the host key that answers, as an
// authorized_keys line. It does not log in.
func HostKey(ctx context.Context, addr string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", fmt.Errorf("ask %s for its host key: %w", addr, err)
	}
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { nc.Close() })()
	var line string
	stop := errors.New("seen enough")
	_, _, _, err = ssh.NewClientConn(nc, addr, &ssh.ClientConfig{
		User: "root", HostKeyAlgorithms: []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoRSASHA512},
		HostKeyCallback: func(_ string, _ net.Addr, k ssh.PublicKey) error {
			line = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))
			return stop
		},
	})
	if line == "" {
		return "", fmt.Errorf("ask %s for its host key: %w", addr, err)
	}
	return line, nil
}

// SameKey reports whether two authorized_keys lines hold the same key,
// whatever their comments.
func SameKey(a, b string) bool {
	fa, fb := strings.Fields(a), strings.Fields(b)
	return len(fa) > 1 && len(fb) > 1 && fa[0] == fb[0] && fa[1] == fb[1]
}
