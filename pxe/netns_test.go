package pxe_test

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// skip says why a test cannot run here, or fails when INGOT_NO_SKIP=1 says that it must.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("INGOT_NO_SKIP") == "1" {
		t.Fatalf("must not skip (INGOT_NO_SKIP=1): %s", why)
	}
	t.Skip(why)
}

func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			skip(t, p+" is not installed")
		}
	}
}

// inNetns runs the calling test again in a process with a network namespace of its own, which ends with it. It returns
// true in that process; in the first one it returns false when all is done.
func inNetns(t *testing.T) bool {
	t.Helper()
	if os.Getenv("INGOT_TEST_NETNS") == t.Name() {
		lo, err := netlink.LinkByName("lo")
		check(t, err)
		check(t, netlink.LinkSetUp(lo))
		return true
	}
	if os.Geteuid() != 0 {
		skip(t, "a network namespace needs root")
	}
	t.Parallel() // namespaces do not see each other
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=9m")
	cmd.Env = append(os.Environ(), "INGOT_TEST_NETNS="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil && strings.Contains(err.Error(), "operation not permitted"):
		skip(t, "no network namespace: "+err.Error())
	case err != nil:
		t.Fatalf("in its network namespace: %v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP"):
		skip(t, string(out))
	case !strings.Contains(string(out), "--- PASS: "+t.Name()):
		t.Fatalf("the test did not run in its network namespace:\n%s", out)
	}
	t.Logf("%s", out)
	return false
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// veth makes a cable: srv has address, cli has none.
func veth(t *testing.T, srv, cli, address string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = srv
	check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: cli}))
	addAddr(t, srv, address)
	up(t, srv)
	up(t, cli)
	running(t, srv)
	running(t, cli)
}

// running waits until the kernel has noticed the carrier, up to a second later: until then it drops what is sent.
func running(t *testing.T, name string) {
	t.Helper()
	for range 500 {
		l, err := netlink.LinkByName(name)
		check(t, err)
		if l.Attrs().OperState == netlink.OperUp {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s has no carrier", name)
}

func up(t *testing.T, name string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	check(t, err)
	check(t, netlink.LinkSetUp(l))
}

func addAddr(t *testing.T, name, address string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	check(t, err)
	a, err := netlink.ParseAddr(address)
	check(t, err)
	check(t, netlink.AddrAdd(l, a))
}

// peer is a second namespace with one end of the cable in it: another machine.
type peer struct{ pid int }

func newPeer(t *testing.T, iface string) peer {
	t.Helper()
	needs(t, "nsenter", "sleep")
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	check(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	l, err := netlink.LinkByName(iface)
	check(t, err)
	check(t, netlink.LinkSetNsPid(l, cmd.Process.Pid))
	p := peer{cmd.Process.Pid}
	p.must(t, "ip", "link", "set", "lo", "up")
	p.must(t, "ip", "link", "set", iface, "up")
	for range 500 {
		if strings.Contains(p.must(t, "ip", "link", "show", "dev", iface), "state UP") {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return p
}

func (p peer) cmd(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(p.pid), "-n", "--"}, args...)...)
}

func (p peer) run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := p.cmd(ctx, args...).CombinedOutput()
	return string(out), err
}

func (p peer) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := p.run(t, args...)
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return out
}

// background runs a program until the test ends.
func background(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	check(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%v:\n%s", cmd.Args, out.String())
		}
	})
}

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
