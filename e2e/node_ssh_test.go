package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func sshCases() map[string]func(*testing.T, *base) {
	return map[string]func(*testing.T, *base){
		"another host key":     testOtherHostKey,
		"no key is accepted":   testNoKeyAccepted,
		"nobody answers":       testNobodyAnswers,
		"a shell that chats":   testChattyShell,
		"sshd without sftp":    testNoSFTP,
		"an agent from before": testOldAgent,
	}
}

// untouched asserts that a refused controller left nothing at all.
func (r *rig) untouched() {
	r.t.Helper()
	r.isFound()
	if _, err := os.Lstat(filepath.Join(r.node.root, ".ingot")); err == nil {
		r.t.Error("/.ingot was made on a node that was not to be touched")
	}
}

func testOtherHostKey(t *testing.T, b *base) {
	r := b.rig(t, "")
	key := filepath.Join(b.dir, r.name+"-other")
	run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
	r.write("x"+r.name, r.node.addr, 100+int(b.numbers.next.Add(1)))
	r.pin("x"+r.name, read(t, key+".pub"))
	shown := strings.Fields(run(t, "ssh-keygen", "-lf", filepath.Join(b.found, "etc/ssh/ssh_host_ed25519_key.pub")))[1]
	r.fails(1, []string{"host key", shown, "hint:"}, "push", "web:1", "x"+r.name)
	r.fails(1, []string{"host key", shown, "hint:"}, "image", "capture", "root@x"+r.name+":/", "stolen:1")

	r.unwrite("x" + r.name)
	r.write("y"+r.name, r.node.addr, 100+int(b.numbers.next.Add(1)))
	r.fails(1, []string{"no host key is known", "hint:"}, "push", "web:1", "y"+r.name)
	r.untouched()
}

func testNoKeyAccepted(t *testing.T, b *base) {
	r := b.rig(t, "")
	path := filepath.Join(r.node.root, "root/.ssh/authorized_keys")
	ok(t, os.Rename(path, path+".away"))
	r.fails(1, []string{"accepts none of the keys", "hint:", "id_ed25519.pub", "authorized_keys"}, "push", "web:1", r.name)
	if _, err := os.Lstat(filepath.Join(r.node.root, ".ingot")); err == nil {
		t.Error("/.ingot was made without a login")
	}
}

func testNobodyAnswers(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.direct()
	r.node.proxy.stalled.Store(true) // a host that accepts and is silent
	if res := r.fails(1, []string{r.name, "hint:"}, "push", "web:1", r.name); res.took > 25*time.Second {
		t.Errorf("a silent host took %s", res.took)
	}
	r.node.stopSSHD()
	if res := r.fails(1, []string{"d" + r.name, "connection refused", "hint:"}, "push", "web:1", "d"+r.name); res.took > 5*time.Second {
		t.Errorf("a refused connection took %s", res.took)
	}
	run(t, "nsenter", "-t", fmt.Sprint(r.node.pid()), "-n", "ip", "link", "set", "eth0", "down")
	if res := r.fails(1, []string{"d" + r.name, "hint:"}, "push", "web:1", "d"+r.name); res.took > 25*time.Second {
		t.Errorf("a host that is down took %s", res.took)
	}
	r.untouched()
}

// Debian's bash reads .bashrc for commands that come over SSH.
func testChattyShell(t *testing.T, b *base) {
	r := b.rig(t, "")
	put(t, r.node.root, "root/.bashrc", "echo Welcome to the machine\n")
	res := r.ingot("push", "web:1", r.name, "--dry-run")
	if res.code != 0 && !(strings.Contains(res.err, "Welcome to the machine") && strings.Contains(res.err, "hint:")) {
		t.Errorf("a shell that prints something: neither works nor says why: %s", res)
	}
}

func testNoSFTP(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.node.stopSSHD()
	path := filepath.Join(r.node.root, "run-sshd_config")
	ok(t, os.WriteFile(path, []byte(strings.ReplaceAll(read(t, filepath.Join(r.node.root, "etc/ssh/sshd_config")), "Subsystem", "#Subsystem")), 0o600))
	r.node.sshd("-f", "/run-sshd_config")
	ok(t, os.Remove(path))
	age(t, r.node.root)
	was := copyTree(t, r.node.root, filepath.Join(b.dir, r.name+"-was"))
	r.must("push", "web:1", r.name)
	r.is(b.v1)
	r.must("rollback", r.name)
	same(t, "after the rollback", was, r.node.root)
}

// Whatever lies where the agent belongs is replaced.
func testOldAgent(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	agent := filepath.Join(r.node.root, ".ingot/agent")
	for what, plant := range map[string]func() error{
		"an older one":    func() error { return os.WriteFile(agent, []byte("#!/bin/sh\necho an old protocol\n"), 0o700) },
		"half of it":      func() error { return os.Truncate(agent, 1<<20) },
		"not executable":  func() error { return os.Chmod(agent, 0o600) },
		"a symbolic link": func() error { return errors.Join(os.Remove(agent), os.Symlink("/usr/bin/true", agent)) },
		"a leftover":      func() error { return errors.Join(os.Remove(agent), os.Symlink("/etc/motd", agent+".new")) },
	} {
		r.node.idle()
		ok(t, plant())
		if res := r.ingot("push", "web:1", r.name); res.code != 0 || !strings.Contains(res.out, "unchanged") {
			t.Errorf("with %s in the agent's place: %s", what, res)
		}
		if st, err := os.Lstat(agent); err != nil || st.Mode() != 0o700 {
			t.Errorf("%s was not replaced: %v", what, fmt.Sprint(st, err))
		}
	}
	if got := read(t, filepath.Join(r.node.root, "etc/motd")); got != "release 1\n" {
		t.Errorf("the upload went through a symbolic link into /etc/motd: %.40q", got)
	}
}
