package e2e

import (
	"fmt"

	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// node is a machine made of namespaces: its own processes, mounts, name and
// network, a root tree on disk, and a real sshd.
type node struct {
	t      *testing.T
	root   string // its root, seen from outside
	cmd    *exec.Cmd
	addr   string // of its sshd
	proxy  *proxy // how the controller reaches it
	key    string // public host key
	link   string // our end of the cable
	number int
	first  string   // the script of process 1
	nodes  []string // devices that it has besides, from ours
}

// numbers gives each node a network of its own.
type numbers struct{ next atomic.Int32 }

const pidOne = pivot + `: >run/ready
exec /bin/busybox sh -c 'while :; do /bin/busybox sleep 1000 & wait; done'
`

// agentFirst starts the agent as the kernel does, and then what it takes for
// init: a shell that reads from us.
const agentFirst = pivot + `exec /.ingot/agent
`

const pivot = `set -e
cd "$1"
mount -t proc proc proc
mount -t tmpfs -o mode=755 dev dev
mknod -m 666 dev/null c 1 3; mknod -m 666 dev/zero c 1 5; mknod -m 666 dev/urandom c 1 9; mknod -m 666 dev/random c 1 8; mknod -m 666 dev/tty c 5 0
for d in "$@"; do [ ! -b "$d" ] || cp -a "$d" dev/; done
mount -t tmpfs -o mode=755 run run
mkdir run/sshd
pivot_root . .
/bin/busybox umount -l .
cd /
/bin/busybox hostname node
`

// boot starts a node on root, which is mounted here if it is not yet.
func boot(t *testing.T, root string, number int) *node {
	t.Helper()
	n := &node{t: t, root: root, first: pidOne, link: fmt.Sprintf("n%d", number), addr: fmt.Sprintf("10.9.%d.2", number)}
	if b, err := os.ReadFile(filepath.Join(root, "etc/ssh/ssh_host_ed25519_key.pub")); err == nil {
		n.key = strings.TrimSpace(string(b))
	}
	if err := exec.Command("mountpoint", "-q", root).Run(); err != nil {
		run(t, "mount", "--bind", root, root)
		t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	}
	run(t, "ip", "addr", "replace", fmt.Sprintf("10.9.%d.3/32", number), "dev", "lo")
	t.Cleanup(n.off)
	n.number = number
	n.on()
	n.proxy = newProxy(t, fmt.Sprintf("10.9.%d.3:22", number), n.addr+":22")
	return n
}

// cable connects the node with us.
func (n *node) cable() {
	t := n.t
	_ = exec.Command("ip", "link", "del", n.link).Run() // of a life before: the kernel is slow to take it away
	run(t, "ip", "link", "add", n.link, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(n.pid()))
	run(t, "ip", "addr", "add", fmt.Sprintf("10.9.%d.1/24", n.number), "dev", n.link)
	run(t, "ip", "link", "set", n.link, "up")
	for _, args := range [][]string{{"addr", "add", n.addr + "/24", "dev", "eth0"}, {"link", "set", "eth0", "up"}, {"link", "set", "lo", "up"}} {
		run(t, "nsenter", append([]string{"-t", strconv.Itoa(n.pid()), "-n", "ip"}, args...)...)
	}
}

// on starts the machine.
func (n *node) on() {
	n.t.Helper()
	n.cmd = exec.Command("/bin/sh", append([]string{"-c", n.first, "sh", n.root}, n.nodes...)...)
	stdin, err := n.cmd.StdinPipe()
	ok(n.t, err)
	out := &strings.Builder{}
	n.cmd.Stdout, n.cmd.Stderr = out, out
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	ok(n.t, n.cmd.Start())
	fmt.Fprintln(stdin, ": >/run/ready")
	eventually(n.t, "the node is up: "+out.String(), func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d/root/run/ready", n.pid()))
		return err == nil
	})
	n.cable()
	n.sshd()
}

func (n *node) pid() int { return n.cmd.Process.Pid }

// off pulls the plug: every process of the node dies at once.
func (n *node) off() {
	if n.cmd.ProcessState == nil {
		n.cmd.Process.Kill()
		n.cmd.Wait()
	}
}

// command is one that runs on the node.
func (n *node) command(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(n.pid()), "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--"}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin", "HOME=/root"}
	return cmd
}

// do runs a command on the node that must succeed.
func (n *node) do(args ...string) string {
	n.t.Helper()
	out, err := n.command(args...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("on the node: %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (n *node) sshd(options ...string) {
	n.t.Helper()
	n.do(append([]string{"/usr/sbin/sshd"}, options...)...)
	eventually(n.t, "sshd listens", func() bool {
		c, err := net.DialTimeout("tcp", n.addr+":22", time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// stopSSHD ends the listener; sessions live on.
func (n *node) stopSSHD() {
	n.t.Helper()
	n.do("/bin/busybox", "sh", "-c", "kill $(cat /run/sshd.pid)")
	eventually(n.t, "sshd is gone", func() bool {
		c, err := net.DialTimeout("tcp", n.addr+":22", time.Second)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
}

// processes lists those of the node by name, as numbers of our namespace.
func (n *node) processes(name string) []int {
	want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid_for_children", n.pid()))
	ok(n.t, err)
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	ok(n.t, err)
	var out []int
	for _, c := range comms {
		dir := filepath.Dir(c)
		if got, err := os.Readlink(dir + "/ns/pid"); err != nil || got != want {
			continue
		}
		if b, err := os.ReadFile(c); err == nil && strings.TrimSpace(string(b)) == name {
			pid, err := strconv.Atoi(filepath.Base(dir))
			ok(n.t, err)
			out = append(out, pid)
		}
	}
	return out
}

// kill sends a signal to the node's processes of one name and says how many there were.
func (n *node) kill(name string, sig syscall.Signal) int {
	pids := n.processes(name)
	for _, pid := range pids {
		syscall.Kill(pid, sig)
	}
	return len(pids)
}

// idle waits until no agent runs on the node.
func (n *node) idle() {
	n.t.Helper()
	eventually(n.t, "the agent ends", func() bool { return len(n.processes("agent")) == 0 })
}

// staging reports whether a push is writing into its stage now.
func (n *node) staging() bool {
	slots, _ := filepath.Glob(n.root + "/.ingot/stage/*/undo/*")
	return len(slots) > 0
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("did not happen within 20 s: %s", what)
		}
	}
}

// proxy is the network between controller and node: it counts and it breaks.
type proxy struct {
	up, down atomic.Int64 // bytes to the node, from the node
	cutUp    atomic.Int64 // connections break after that many bytes to the node; 0: never
	cutDown  atomic.Int64 // the same for bytes from the node
	stallUp  atomic.Int64 // stalled from that many bytes to the node on; 0: never
	stalled  atomic.Bool  // nothing passes, nobody is told

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func newProxy(t *testing.T, listen, to string) *proxy {
	t.Helper()
	p := &proxy{conns: map[net.Conn]bool{}}
	l, err := net.Listen("tcp", listen)
	ok(t, err)
	t.Cleanup(func() { l.Close(); p.cut() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c, to)
		}
	}()
	return p
}

func (p *proxy) serve(c net.Conn, to string) {
	d, err := net.DialTimeout("tcp", to, 5*time.Second)
	if err != nil {
		c.Close()
		return
	}
	p.mu.Lock()
	p.conns[c], p.conns[d] = true, true
	p.mu.Unlock()
	go p.pass(c, d, &p.down, &p.cutDown, nil)
	p.pass(d, c, &p.up, &p.cutUp, &p.stallUp)
	p.mu.Lock()
	delete(p.conns, c)
	delete(p.conns, d)
	p.mu.Unlock()
}

func (p *proxy) pass(to, from net.Conn, count, limit, stall *atomic.Int64) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 16<<10)
	for {
		k, err := from.Read(buf)
		if total := count.Load() + int64(k); stall != nil && stall.Load() > 0 && total > stall.Load() {
			stall.Store(0)
			p.stalled.Store(true)
		}
		for p.stalled.Load() {
			time.Sleep(10 * time.Millisecond)
		}
		total := count.Add(int64(k))
		if limit != nil && limit.Load() > 0 && total > limit.Load() {
			return
		}
		if _, werr := to.Write(buf[:k]); err != nil || werr != nil {
			return
		}
	}
}

// cut ends all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func (p *proxy) reset() {
	p.up.Store(0)
	p.down.Store(0)
	p.cutUp.Store(0)
	p.cutDown.Store(0)
	p.stallUp.Store(0)
}
