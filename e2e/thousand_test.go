package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// figuresEnv is the file that TestThousand writes; `make bench` asks for it.
const figuresEnv = "INGOT_FIGURES"

// A figure is what one command came to on so many nodes.
type figure struct {
	Nodes    int     `json:"nodes"`
	What     string  `json:"what"`
	Seconds  float64 `json:"seconds"`
	CPU      float64 `json:"cpu"`      // seconds, of the controller alone
	Memory   int64   `json:"memory"`   // its peak, bytes
	Database int64   `json:"database"` // the state afterwards, bytes
}

// TestThousand has many small nodes: each has a tree and an address of its own
// and the real agent, which one real sshd starts in the tree whose address was
// dialled. The short form has twenty-four; with INGOT_FIGURES it measures a quarter of
// a thousand and a thousand.
func TestThousand(t *testing.T) {
	need(t)
	sizes := []int{24}
	out := os.Getenv(figuresEnv)
	if out != "" {
		sizes = []int{250, 1000}
	}
	var all []figure
	for _, n := range sizes {
		t.Run(fmt.Sprint(n), func(t *testing.T) { all = append(all, newCrowd(t, n).all()...) })
	}
	if out == "" {
		return
	}
	text, err := json.MarshalIndent(all, "", "\t")
	ok(t, err)
	ok(t, os.WriteFile(out, text, 0o644))
}

// crowd are many nodes of one site.
type crowd struct {
	t      *testing.T
	n      int
	r      *rig // runs ingot; it has no node
	nodes  string
	v1, v2 string
}

const crowdFiles = 100

// enter is what sshd does with whoever logs in: the command runs in the tree
// of the node whose address was dialled, with a /proc of its own.
const enter = `#!/bin/sh
set -- $SSH_CONNECTION
root=%s/$3
exec unshare --mount --propagation private sh -c 'mount --bind "$1" "$1" && mount -t proc proc "$1/proc" && exec chroot "$1" /bin/sh -c "$SSH_ORIGINAL_COMMAND"' sh "$root"
`

func newCrowd(t *testing.T, n int) *crowd {
	dir := t.TempDir()
	c := &crowd{t: t, n: n, nodes: filepath.Join(dir, "nodes"), v1: filepath.Join(dir, "v1"), v2: filepath.Join(dir, "v2")}
	b := &base{dir: dir, bin: filepath.Join(dir, "ingot"), site: filepath.Join(dir, "site")}
	run(t, "cp", builtIngot(), b.bin)
	c.r = &rig{t: t, base: b, site: b.site}
	for _, d := range []string{"nodes", ".ingot/keys"} {
		ok(t, os.MkdirAll(filepath.Join(b.site, d), 0o700))
	}
	put(t, b.site, "ingot.yaml", "state: .ingot/state.db\nstore: .ingot/store\nnetworks:\n  - {name: crowd, subnet: 10.50.0.0/16, address: 10.50.255.1}\n")
	run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(b.site, ".ingot/keys/id_ed25519"))
	c.plant()
	c.serve(dir)
	return c
}

// plant makes the trees: those of the images, and one for each node, which all
// have the agent already, as one file.
func (c *crowd) plant() {
	t := c.t
	rnd := rand.New(rand.NewPCG(50, 50))
	for _, d := range []string{"bin", "dev", "etc", "proc", "run", "tmp", "root/.ssh", "var/lib", "usr/share/app"} {
		ok(t, os.MkdirAll(filepath.Join(c.v1, d), 0o755))
	}
	run(t, "cp", "/bin/busybox", filepath.Join(c.v1, "bin/busybox"))
	for _, tool := range []string{"sh", "sha256sum", "uname", "mount"} {
		ok(t, os.Symlink("busybox", filepath.Join(c.v1, "bin", tool)))
	}
	ok(t, unix.Mknod(filepath.Join(c.v1, "dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	put(t, c.v1, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
	put(t, c.v1, "etc/group", "root:x:0:\n")
	for i := range crowdFiles {
		put(t, c.v1, fmt.Sprintf("usr/share/app/f%03d", i), noise(rnd, 2000+rnd.IntN(4000)))
	}
	age(t, c.v1)
	copyTree(t, c.v1, c.v2)
	put(t, c.v2, "usr/share/app/f007", noise(rnd, 4000)) // one in a hundred
	age(t, c.v2)
	ok(t, os.MkdirAll(c.nodes, 0o755))
	run(t, "mount", "-t", "tmpfs", "-o", "mode=755,size=16g", "crowd", c.nodes)
	t.Cleanup(func() { unix.Unmount(c.nodes, unix.MNT_DETACH) })
	agent := filepath.Join(c.nodes, "agent")
	run(t, "cp", filepath.Join(filepath.Dir(builtIngot()), "ingot-agent-"+goarch(t)), agent)
	ok(t, os.Chmod(agent, 0o700))
	for i := range c.n {
		root := filepath.Join(c.nodes, crowdAddress(i))
		copyTree(t, c.v1, root)
		ok(t, os.Mkdir(filepath.Join(root, ".ingot"), 0o700))
		ok(t, os.Link(agent, filepath.Join(root, ".ingot/agent")))
		name := fmt.Sprintf("s%04d", i)
		put(t, c.r.site, "nodes/"+name+".yaml", fmt.Sprintf("nics:\n  - {name: eth0, mac: \"52:54:00:01:%02x:%02x\", network: crowd, address: %s, boot: true}\n", i>>8, i&255, crowdAddress(i)))
	}
	c.r.must("image", "capture", c.v1, "small:1")
	c.r.must("image", "capture", c.v2, "small:2")
}

func crowdAddress(i int) string { return fmt.Sprintf("10.50.%d.%d", 1+i/250, 1+i%250) }

// goarch is this machine's, as Go calls it.
func goarch(t *testing.T) string {
	t.Helper()
	machine := strings.TrimSpace(run(t, "uname", "-m"))
	if machine == "aarch64" {
		return "arm64"
	}
	return "amd64"
}

var rootLine = regexp.MustCompile(`(?m)^root:.*$`)

// serve starts the sshd of all nodes.
func (c *crowd) serve(dir string) {
	t := c.t
	key := filepath.Join(dir, "host")
	run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
	ok(t, os.MkdirAll("/run/sshd", 0o755))
	script := filepath.Join(dir, "enter")
	ok(t, os.WriteFile(script, fmt.Appendf(nil, enter, c.nodes), 0o755))
	keys := filepath.Join(dir, "authorized_keys")
	run(t, "cp", filepath.Join(c.r.site, ".ingot/keys/id_ed25519.pub"), keys)
	run(t, "ip", "route", "replace", "local", "10.50.0.0/16", "dev", "lo")
	config := filepath.Join(dir, "sshd_config") // it has port 22 of all addresses: other tests' nodes have to wait
	ok(t, os.WriteFile(config, fmt.Appendf(nil, "Port 22\nListenAddress 0.0.0.0\nHostKey %s\nAuthorizedKeysFile %s\nForceCommand %s\nUsePAM no\nStrictModes no\nMaxStartups 500\nPermitRootLogin yes\nPidFile none\n", key, keys, script), 0o600))
	// Root's shell is sh for this sshd, whatever it is on this machine and does at a login.
	passwd := filepath.Join(dir, "passwd")
	ok(t, os.WriteFile(passwd, rootLine.ReplaceAll([]byte(read(t, "/etc/passwd")), []byte("root:x:0:0:root:/:/bin/sh")), 0o644))
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `mount --bind "$1" /etc/passwd && exec /usr/sbin/sshd -D -e -f "$2"`, "sh", passwd, config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said strings.Builder
	cmd.Stderr = &said
	ok(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("sshd said:\n%.3000s", said.String())
		}
	})
	eventually(t, "sshd listens", func() bool {
		conn, err := net.Dial("tcp", crowdAddress(0)+":22")
		return err == nil && conn.Close() == nil
	})
	public := strings.Join(strings.Fields(read(t, key+".pub"))[:2], " ")
	ok(t, os.MkdirAll(filepath.Join(dir, ".ssh"), 0o700))
	ok(t, os.WriteFile(filepath.Join(dir, ".ssh/known_hosts"), []byte("* "+public+"\n"), 0o600))
}

// all brings the nodes to the first image, and measures a release of one file
// in a hundred, the same again, and the way back.
func (c *crowd) all() (figures []figure) {
	c.must("push", "small:1", "all", "--parallel", "16")
	for _, x := range []struct {
		what, tree string
		args       []string
	}{
		{"push of one file in a hundred", c.v2, []string{"push", "small:2", "all", "--parallel", "16", "--confirm", "2m"}},
		{"the same push again", c.v2, []string{"push", "small:2", "all", "--parallel", "16", "--confirm", "2m"}},
		{"rollback of all", c.v1, []string{"rollback", "--deployment", "2", "--parallel", "16"}},
	} {
		f := c.measured(x.what, x.args...)
		figures = append(figures, f)
		c.t.Logf("%+v", f)
		c.are(x.tree)
	}
	return figures
}

func (c *crowd) must(args ...string) {
	c.t.Helper()
	c.measured("", args...)
}

// measured runs ingot, which must be done with all nodes.
func (c *crowd) measured(what string, args ...string) figure {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), c.r.base.bin, append([]string{"--site", c.r.site}, args...)...)
	cmd.Env = []string{"HOME=" + c.r.base.dir, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.Getenv("TMPDIR")}
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	begun := time.Now()
	w := weighed(c.t, cmd)
	took := time.Since(begun)
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		c.t.Fatalf("ingot %s: exit %d: %.3000s", strings.Join(args, " "), code, errOut.String())
	}
	if n := strings.Count(out.String(), "generation"); n != c.n {
		c.t.Errorf("ingot %s: %d of %d nodes are told of", strings.Join(args, " "), n, c.n)
	}
	f := figure{Nodes: c.n, What: what, Seconds: took.Seconds(), CPU: w.cpu.Seconds(), Memory: w.mb << 20}
	for _, name := range []string{"state.db", "state.db-wal"} {
		if st, err := os.Stat(filepath.Join(c.r.site, ".ingot", name)); err == nil {
			f.Database += st.Size()
		}
	}
	return f
}

// are asserts of some nodes that they are a tree, and of all that the file that
// differs is.
func (c *crowd) are(tree string) {
	c.t.Helper()
	want := read(c.t, filepath.Join(tree, "usr/share/app/f007"))
	for i := range c.n {
		root := filepath.Join(c.nodes, crowdAddress(i))
		if read(c.t, filepath.Join(root, "usr/share/app/f007")) != want {
			c.t.Errorf("node %d is not what it should be", i)
		}
		if i%(c.n/4) == 0 {
			same(c.t, fmt.Sprintf("node %d", i), tree, root, nodeOwned()...)
		}
	}
}
