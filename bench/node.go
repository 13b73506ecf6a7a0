package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	nodeName = "node1"
	nodeLink = "node1" // our end of the cable
	nodeAddr = "10.9.1.2"
	ourAddr  = "10.9.1.1"
)

// copyOnNode is where the node keeps a full copy of tree A, as people do who
// roll back with rsync. Nobody compares or deletes what is in /var/cache.
const copyOnNode = "/var/cache/copy"

// node is a machine made of namespaces: its own processes, mounts, name and
// network, a root tree on the disk where the trees are, and a real sshd.
type node struct {
	root  string
	cmd   *exec.Cmd
	state string // what bring brought it to
}

// pidOne mounts what a system has and becomes the node's first process.
const pidOne = `set -e
cd "$1"
mount -t proc proc proc
mount -t tmpfs -o mode=755 dev dev
mknod -m 666 dev/null c 1 3; mknod -m 666 dev/zero c 1 5; mknod -m 666 dev/urandom c 1 9; mknod -m 666 dev/random c 1 8; mknod -m 666 dev/tty c 5 0
mount -t tmpfs -o mode=755 run run
mkdir -p run/sshd
pivot_root . .
/bin/umount -l .
cd /
/bin/hostname node
: >run/ready
while :; do /bin/sleep 1000; done
`

// plug makes the cable. Nothing but what is asked for is to be on it.
const plug = `set -e
ip link add $LINK type veth peer name eth0 netns $PID
sysctl -q -w net.ipv6.conf.$LINK.disable_ipv6=1
ip addr add $OURS/24 dev $LINK
ip link set $LINK up
nsenter -t $PID -n sysctl -q -w net.ipv6.conf.eth0.disable_ipv6=1
nsenter -t $PID -n ip addr add $THEIRS/24 dev eth0
nsenter -t $PID -n ip link set eth0 up
nsenter -t $PID -n ip link set lo up
`

// bootNode starts a node on a copy of tree A.
func (b *bench) bootNode(ctx context.Context) (*node, error) {
	n := &node{root: filepath.Join(b.dir, "node")}
	err := b.sh(ctx, `cp -a "$A" "$ROOT"; cp -a "$A" "$ROOT$COPY"
mkdir -p "$ROOT/root/.ssh"; cp "$KEY.pub" "$ROOT/root/.ssh/authorized_keys"; chmod 700 "$ROOT/root/.ssh"
ssh-keygen -q -t ed25519 -N '' -f "$ROOT/etc/ssh/ssh_host_ed25519_key"
mount --bind "$ROOT" "$ROOT"`, "A="+b.trees.a, "ROOT="+n.root, "COPY="+copyOnNode, "KEY="+b.key())
	if err != nil {
		return nil, fmt.Errorf("make the node's tree: %w", err)
	}
	n.cmd = exec.CommandContext(ctx, "/bin/sh", "-c", pidOne, "sh", n.root)
	out := &bytes.Buffer{}
	n.cmd.Stdout, n.cmd.Stderr = out, out
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	if err := n.cmd.Start(); err != nil {
		return nil, err
	}
	if err := until(func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d/root/run/ready", n.cmd.Process.Pid))
		return err == nil
	}); err != nil {
		return nil, errors.Join(fmt.Errorf("the node does not start: %w: %s", err, out), n.off())
	}
	if err := b.connect(ctx, n); err != nil {
		return nil, errors.Join(err, n.off())
	}
	return n, nil
}

// connect plugs the cable in, starts sshd and makes its host key known.
func (b *bench) connect(ctx context.Context, n *node) error {
	pid := strconv.Itoa(n.cmd.Process.Pid)
	if err := b.sh(ctx, plug, "LINK="+nodeLink, "PID="+pid, "OURS="+ourAddr, "THEIRS="+nodeAddr); err != nil {
		return err
	}
	if err := b.sh(ctx, "nsenter -t $PID -m -u -i -n -p -r -w -- /usr/sbin/sshd", "PID="+pid); err != nil {
		return err
	}
	if err := until(func() bool {
		c, err := net.DialTimeout("tcp", nodeAddr+":22", time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	}); err != nil {
		return fmt.Errorf("the node's sshd: %w", err)
	}
	host, err := os.ReadFile(filepath.Join(n.root, "etc/ssh/ssh_host_ed25519_key.pub"))
	if err != nil {
		return err
	}
	known := filepath.Join(b.dir, ".ssh", "known_hosts")
	config := fmt.Sprintf("Host %s\n HostName %s\n User root\n IdentityFile %s\n IdentitiesOnly yes\n BatchMode yes\n UserKnownHostsFile %s\n", nodeName, nodeAddr, b.key(), known)
	return errors.Join(os.MkdirAll(filepath.Dir(known), 0o700),
		os.WriteFile(known, fmt.Appendf(nil, "%s,%s %s", nodeName, nodeAddr, host), 0o600),
		os.WriteFile(filepath.Join(b.dir, "ssh_config"), []byte(config), 0o600))
}

// off pulls the plug: every process of the node dies at once.
func (n *node) off() error {
	if n == nil || n.cmd == nil || n.cmd.ProcessState != nil {
		return nil
	}
	err := n.cmd.Process.Kill()
	_ = n.cmd.Wait() // it was killed
	return err
}

func until(cond func() bool) error {
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return errors.New("nothing within 20 s")
		}
	}
	return nil
}

// wire is how many bytes our end of the cable has sent and received.
func wire() (int64, error) {
	b, err := os.ReadFile("/proc/self/net/dev")
	if err != nil {
		return 0, err
	}
	return linkBytes(string(b), nodeLink)
}

// linkBytes reads the counters of a link from /proc/net/dev: received bytes are
// the first number and sent bytes the ninth.
func linkBytes(text, link string) (int64, error) {
	for line := range strings.Lines(text) {
		name, rest, found := strings.Cut(line, ":")
		if !found || strings.TrimSpace(name) != link {
			continue
		}
		f := strings.Fields(rest)
		if len(f) < 9 {
			return 0, fmt.Errorf("link %s: %d counters in %q", link, len(f), line)
		}
		rx, err := strconv.ParseInt(f[0], 10, 64)
		tx, err2 := strconv.ParseInt(f[8], 10, 64)
		return rx + tx, errors.Join(err, err2)
	}
	return 0, fmt.Errorf("there is no link %s", link)
}

// peak watches the node until stop is closed and returns the peak resident
// memory of the largest process of a program.
func (n *node) peak(program string, stop <-chan struct{}) int64 {
	var most int64
	for {
		for _, dir := range n.processes() {
			if b, err := os.ReadFile(dir + "/status"); err == nil {
				if name, hwm := statusPeak(string(b)); name == program {
					most = max(most, hwm)
				}
			}
		}
		select {
		case <-stop:
			return most
		case <-time.After(3 * time.Millisecond):
		}
	}
}

// processes are the directories in /proc of the node's processes.
func (n *node) processes() []string {
	want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid_for_children", n.cmd.Process.Pid))
	if err != nil {
		return nil
	}
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	var out []string
	for _, dir := range all {
		if got, err := os.Readlink(dir + "/ns/pid"); err == nil && got == want {
			out = append(out, dir)
		}
	}
	return out
}

// statusPeak reads Name and VmHWM, in bytes, of /proc/PID/status.
func statusPeak(text string) (name string, peak int64) {
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		f := strings.Fields(value)
		switch {
		case len(f) == 0:
		case key == "Name":
			name = f[0]
		case key == "VmHWM":
			if kib, err := strconv.ParseInt(f[0], 10, 64); err == nil {
				peak = kib << 10
			}
		}
	}
	return name, peak
}
