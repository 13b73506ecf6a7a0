package sshkey

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// ssh-keygen is the judge: it reads the private key and derives the public one.
func TestSSHKeygenReadsOurKeys(t *testing.T) {
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		t.Skip("ssh-keygen (package openssh-client) is not installed")
	}
	for _, kind := range Types() {
		p, err := New(kind, "root@n1")
		if err != nil {
			t.Fatal(err)
		}
		f := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(f, []byte(p.Private), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(keygen, "-y", "-f", f).CombinedOutput()
		if err != nil || !strings.HasPrefix(p.Public, strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(string(out)), "root@n1"))) {
			t.Errorf("%s: ssh-keygen says %q, %v; we say %q", kind, out, err, p.Public)
		}
	}
	if _, err := New("dsa", ""); err == nil {
		t.Error("a DSA key was made")
	}
}
