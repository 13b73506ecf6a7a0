package rack

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ingot/lab"
)

// goodRelease has a service, and a firewall that is a script.
var goodRelease = map[string]string{
	"etc/systemd/system/app.service":      "[Service]\nExecStart=/usr/local/bin/app\n[Install]\nWantedBy=multi-user.target\n",
	"etc/systemd/system/firewall.service": "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/local/sbin/firewall\n[Install]\nWantedBy=multi-user.target\n",
	"usr/local/bin/app":                   "#!/bin/sh\nexec sleep infinity\n",
	"usr/local/sbin/firewall":             "#!/bin/sh\nfor l in /sys/class/net/e*; do ip link set dev ${l##*/} up; done\n",
}

// badReleases break a node each in a way of their own.
var badReleases = []struct {
	name   string
	files  map[string]string // what is in them; "" for what they lack
	within time.Duration     // how long the node waits to be confirmed
	why    string            // what the record says
}{
	{"unit", map[string]string{"usr/local/bin/app": "#!/bin/sh\necho no configuration >&2\nexit 1\n"}, 40 * time.Second, "app.service"},
	{"sshd", map[string]string{"usr/sbin/sshd": "#!/bin/sh\nexit 1\n"}, 20 * time.Second, "nobody confirmed it"},
	{"network", map[string]string{"usr/local/sbin/firewall": "#!/bin/sh\nfor l in /sys/class/net/e*; do ip link set dev ${l##*/} down; done\n"}, 20 * time.Second, "nobody confirmed it"},
	{"libc", map[string]string{"usr/lib/x86_64-linux-gnu/libc.so.6": ""}, 20 * time.Second, "app.service"},
}

// A release that breaks a service, sshd, the network or the C library: the
// node comes back from each by itself, as it was, and the record says why. It
// comes back too when it is reset in the middle of a switch that takes libc away.
// The long form has a kernel that does not boot.
func TestBadReleases(t *testing.T) {
	b := newInstalled(t, lab.Machine{Name: "n1", Firmware: lab.BIOS})
	b.releases()
	b.on("n1")
	b.run("push", "app:good", "n1")
	b.ssh("n1", "systemctl daemon-reload && systemctl enable --now app firewall")
	b.write("profile/DEFAULT.yaml", b.read("profile/DEFAULT.yaml")+"restart: restart\nrestart_except: [ssh.service]\ncheck:\n  - {unit: app.service, retry_for: 5s}\n")
	b.run("push", "app:good", "n1") // nothing to do
	want := b.ssh("n1", look)
	for _, bad := range badReleases {
		t.Run(bad.name, func(t *testing.T) {
			begun := time.Now()
			out, err := b.try("push", "app:"+bad.name, "n1", "--confirm", bad.within.String())
			if err == nil || !strings.Contains(out, "reverted") || !strings.Contains(out, bad.why) {
				t.Errorf("push of a release that breaks the node: %v\n%s", err, out)
			}
			t.Logf("known after %.0f s: %s", time.Since(begun).Seconds(), lastLines(out, 1))
			b.recorded(t, "reverted", bad.why)
			b.cameBack(t, want)
		})
	}
	t.Run("reset in the switch", func(t *testing.T) {
		b.resetDuring(t, "app:libc", "n1: exchange", 60*time.Millisecond)
		b.cameBack(t, want)
	})
	if !long() {
		return
	}
	// The tree is switched, and the checks take their time.
	profile := b.read("profile/DEFAULT.yaml")
	b.write("profile/DEFAULT.yaml", profile+"  - {name: slow, exec: sleep 60, timeout: 90s}\n")
	t.Run("kernel that does not boot", func(t *testing.T) {
		b.resetDuring(t, "app:kernel", "n1: checks", time.Second)
		b.cameBack(t, want)
		b.recorded(t, "reverted", "booted before it was confirmed")
		if files := b.ssh("n1", "ls -A /.ingot/boot"); files != "initrd.img\nvmlinuz" {
			t.Errorf("/.ingot/boot holds %q", files)
		}
	})
	b.write("profile/DEFAULT.yaml", profile)
	t.Run("kernel that was confirmed and does not boot", func(t *testing.T) {
		b.run("push", "app:kernel", "n1", "--confirm", "0")
		logins := b.logins("n1")
		b.must(b.rack.Reset("n1"))
		b.choose(t, "n1", backEntry, 2)
		b.seen(loginWait, "n1", "login", "", logins+1, "failed", "alarm")
		b.cameBack(t, want)
		if list := b.ssh("n1", "/.ingot/agent generations"); !strings.Contains(list, "boot entry of the generation before") {
			t.Errorf("the generations do not say who went back:\n%s", list)
		}
	})
}

// backEntry is what the boot menu says of the last of its entries.
const backEntry = "(back to the generation before)"

// choose goes down the boot menu, when it shows an entry the next time, and starts that.
func (b *bench) choose(t *testing.T, node, entry string, down int) {
	t.Helper()
	shown := func() (n int) {
		lines, err := b.rack.Lines(node)
		b.must(err)
		for _, l := range lines {
			n += strings.Count(l.Text, entry)
		}
		return n
	}
	before := shown()
	for end := time.Now().Add(2 * time.Minute); shown() == before; time.Sleep(50 * time.Millisecond) { // the menu waits a second
		if time.Now().After(end) {
			t.Fatalf("the boot menu did not show %q", entry)
		}
	}
	b.must(b.rack.Send(node, strings.Repeat("\x0e", down)+"\r")) // Ctrl-N
}

// look tells what a node is, in a way that a broken one cannot.
const look = `set -e; sha256sum /usr/local/bin/app /usr/local/sbin/firewall /usr/sbin/sshd /usr/lib/x86_64-linux-gnu/libc.so.6; systemctl is-active app firewall ssh; ls /.ingot/journal 2>/dev/null || echo settled`

// releases captures the golden image with the good and the bad releases.
func (b *bench) releases() {
	b.t.Helper()
	dir := b.goodTree("app", "firewall")
	for _, bad := range badReleases {
		b.captureWith(dir, bad.name, bad.files)
	}
	b.captureWith(dir, "kernel", map[string]string{"vmlinuz": strings.Repeat("not a kernel\n", 1000)})
}

// goodTree captures the golden image with the good release, of which some units
// are enabled, as app:good, and returns the tree.
func (b *bench) goodTree(units ...string) (dir string) {
	b.t.Helper()
	dir = filepath.Join(b.rack.Dir(), "release")
	b.must(os.Mkdir(dir, 0o755))
	b.run("push", image, "--dir", dir)
	b.must(os.RemoveAll(filepath.Join(dir, ".ingot")))
	b.put(dir, goodRelease)
	wants := filepath.Join(dir, "etc/systemd/system/multi-user.target.wants")
	b.must(os.MkdirAll(wants, 0o755))
	for _, unit := range units {
		b.must(os.Symlink("/etc/systemd/system/"+unit+".service", filepath.Join(wants, unit+".service")))
	}
	b.run("image", "capture", dir, "app:good")
	return dir
}

// captureWith captures a tree as app:NAME with one file changed, or gone; of a
// link that leads to it.
func (b *bench) captureWith(dir, name string, files map[string]string) {
	b.t.Helper()
	for file, text := range files { // one
		if to, err := os.Readlink(filepath.Join(dir, file)); err == nil {
			file = to
		}
		path, kept := filepath.Join(dir, file), filepath.Join(b.rack.Dir(), "kept")
		b.command("cp", "-a", path, kept)
		b.put(dir, map[string]string{file: text})
		b.run("image", "capture", dir, "app:"+name)
		b.must(os.RemoveAll(path))
		b.must(os.Rename(kept, path))
	}
}

// put writes files into a tree, programs among them; one without a text goes.
func (b *bench) put(dir string, files map[string]string) {
	b.t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		b.must(os.MkdirAll(filepath.Dir(path), 0o755))
		if text == "" {
			b.must(os.Remove(path))
			continue
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		b.must(os.WriteFile(path, []byte(text), mode))
		b.must(os.Chmod(path, mode))
	}
}

// recorded checks how the last deployment ended for n1.
func (b *bench) recorded(t *testing.T, state, why string) {
	t.Helper()
	out := b.run("deployment", "show", "last", "--json")
	var d struct {
		Nodes []struct{ Node, State, Reason string }
	}
	b.must(json.Unmarshal([]byte(out), &d))
	if len(d.Nodes) != 1 || d.Nodes[0].State != state || !strings.Contains(d.Nodes[0].Reason, why) {
		t.Errorf("deployment show says %+v, want %s because of %q", d.Nodes, state, why)
	}
	if text := b.run("deployment", "show", "last"); !strings.Contains(text, why) {
		t.Errorf("deployment show does not say %q:\n%s", why, text)
	}
}

// cameBack checks that a node is what it was, within a minute.
func (b *bench) cameBack(t *testing.T, want string) {
	t.Helper()
	got := ""
	b.within(time.Minute, "the node is what it was", func() bool {
		c := exec.Command("ssh", append(b.sshOptions("n1"), "root@"+b.node("n1").Address, "--", look)...)
		out, _ := c.CombinedOutput()
		got = strings.TrimSpace(string(out))
		return got == want
	})
}

// resetDuring presses the button when the push says what it is at.
func (b *bench) resetDuring(t *testing.T, ref, line string, later time.Duration) {
	t.Helper()
	logins := b.logins("n1")
	out, err := b.pushUntil(ref, line, func(*os.Process) {
		time.Sleep(later)
		b.must(b.rack.Reset("n1"))
	})
	if err == nil {
		t.Errorf("a push whose node was reset: %s", out)
	}
	t.Logf("the push: %s", lastLines(out, 2))
	b.seen(loginWait, "n1", "login", "", logins+1, "failed", "alarm")
	show := b.run("deployment", "show", "last")
	t.Logf("%s\n%s", show, b.ssh("n1", "/.ingot/agent generations"))
	if !strings.Contains(show, "booted before it was confirmed") && !strings.Contains(show, "still generation") {
		t.Errorf("deployment show does not say what became of the node:\n%s", show)
	}
}
