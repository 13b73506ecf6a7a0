package rack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ingot/lab"
)

const sidesDisks = `disk_config disk1 disklabel:gpt-bios fstabkey:uuid
primary /boot/efi 64M vfat umask=0077
primary /env 16M ext2 rw
primary / 2G ext4 rw
primary /other 2G ext4 rw
primary /shared 512M- ext4 rw
`

const sidesProfile = "sides: {other: /other, shared: /shared, env: /env}\n"

// A node with two sides is installed, gets another kernel and another release,
// is confirmed, and goes back.
func TestSides(t *testing.T) {
	if !long() {
		t.Skip("make campaign runs it")
	}
	for _, fw := range []lab.Firmware{lab.BIOS, lab.UEFI} {
		t.Run(string(fw), func(t *testing.T) { sidesLoop(t, fw) })
	}
}

func sidesLoop(t *testing.T, fw lab.Firmware) {
	b := newBench(t, true, lab.Machine{Name: "n1", Firmware: fw})
	b.write("disk_config/DEFAULT", sidesDisks)
	b.write("profile/DEFAULT.yaml", strings.Replace(b.read("profile/DEFAULT.yaml"), "update: live\n", "update: slots\n"+sidesProfile, 1))
	b.second("app:2")
	b.run("node", "set", "n1", "--install")
	b.serve()
	b.must(b.rack.PowerOn("n1"))
	b.seen(loginWait, "n1", "login", "with the node's host key", 1, "failed", "alarm")
	t.Log(b.ssh("n1", "cat /proc/cmdline; cat /etc/fstab; findmnt -n -o TARGET,SOURCE,FSTYPE | grep -v cgroup; cat /.ingot/sides.json; systemctl is-system-running; systemctl --failed"))
	is := func(what, side, release string) {
		t.Helper()
		got := b.ssh("n1", "tr ' ' '\\n' < /proc/cmdline | grep ingot.side=; cat /etc/issue.net; test -e "+bootMark+" && echo initramfs of 2 || echo initramfs of 1; cat /var/lib/data; cat /home/data")
		t.Logf("%s: %q", what, got)
		if !strings.HasPrefix(got, "ingot.side="+side+"\n") || strings.Contains(got, "release 2") != (release == "2") || !strings.Contains(got, "initramfs of "+release) || !strings.HasSuffix(got, "kept\nkept") {
			t.Errorf("%s: the node is %q, want side %s, release %s", what, got, side, release)
		}
	}
	b.ssh("n1", "echo kept > /var/lib/data; echo kept > /home/data")
	is("installed", "a", "1")
	out := b.run("push", "app:2", "n1")
	t.Log(out)
	is("pushed", "b", "2")
	t.Log(b.ssh("n1", "cat /.ingot/shared/ingot/trial.json; /.ingot/agent generations"))
	t.Log(b.run("rollback", "n1"))
	is("rolled back", "a", "1")
	t.Log(b.ssh("n1", "cat /.ingot/shared/ingot/trial.json; /.ingot/agent generations"), b.run("node", "show", "n1"))

	// An image of the node has what both sides share, and what they do not.
	b.run("image", "capture", "root@n1:/", "live:1", "--allow-changed", "/var/**")
	dir := filepath.Join(b.rack.Dir(), "live")
	b.must(os.Mkdir(dir, 0o755))
	b.run("push", "live:1", "--dir", dir)
	for _, path := range []string{"var/lib/dpkg/status", "var/lib/data", "home/data", "etc/issue.net"} {
		if _, err := os.Stat(filepath.Join(dir, path)); err != nil {
			t.Errorf("the image of the node: %v", err)
		}
	}

	// What waits for the next start is given up.
	if out := b.run("push", "app:2", "n1", "--no-reboot"); !strings.Contains(out, "starts the next time") {
		t.Errorf("a push that waits says\n%s", out)
	}
	is("pushed for later", "a", "1")
	if out := b.run("rollback", "n1"); !strings.Contains(out, "not tried") {
		t.Errorf("giving it up says\n%s", out)
	}
	logins := b.logins("n1")
	b.must(b.rack.Reset("n1"))
	b.seen(loginWait, "n1", "login", "", logins+1, "failed", "alarm")
	is("given up, and started", "a", "1")
}

// brokenSides are releases that do not come up, each in a way of its own.
var brokenSides = []struct {
	name  string
	files map[string]string // as in badReleases; of kernel and initramfs by the link that leads to them
	why   string            // what the record says
}{
	{"kernel", map[string]string{"vmlinuz": "not a kernel\n"}, "did not come as far as its init"},
	{"initramfs", map[string]string{"initrd.img": "not an archive\n"}, "did not come as far as its init"},
	{"init", map[string]string{"usr/lib/systemd/systemd": "#!/bin/sh\nexit 1\n"}, "not to the end of its start"},
	{"libc", map[string]string{"usr/lib/x86_64-linux-gnu/libc.so.6": ""}, "not to the end of its start"},
	{"sshd", map[string]string{"usr/sbin/sshd": "#!/bin/sh\nexit 1\n"}, "nobody confirmed it"},
	{"network", map[string]string{"usr/lib/systemd/systemd-networkd": "#!/bin/sh\nexit 1\n"}, "nobody confirmed it"},
	{"unit", map[string]string{"usr/local/bin/app": "#!/bin/sh\nexit 1\n"}, "app.service"},
}

// Whatever is wrong with the side that is tried, the node comes back to the one
// that it had, by itself, and says why.
func TestBrokenSides(t *testing.T) {
	if !long() {
		t.Skip("make campaign runs it")
	}
	b := newBench(t, true, lab.Machine{Name: "n1", Firmware: lab.BIOS})
	b.write("disk_config/DEFAULT", sidesDisks)
	profile := strings.Replace(b.read("profile/DEFAULT.yaml"), "update: live\n", "update: slots\n"+sidesProfile, 1)
	b.write("profile/DEFAULT.yaml", profile)
	b.brokenSides()
	b.run("node", "set", "n1", "--install", "--image", "app:good")
	b.serve()
	b.must(b.rack.PowerOn("n1"))
	b.seen(loginWait, "n1", "login", "with the node's host key", 1, "failed", "alarm")
	b.write("profile/DEFAULT.yaml", profile+"check:\n  - {unit: app.service, retry_for: 5s}\n")
	for _, bad := range brokenSides {
		t.Run(bad.name, func(t *testing.T) {
			begun := time.Now()
			out, err := b.try("push", "app:"+bad.name, "n1", "--confirm", "40s")
			if err == nil || !strings.Contains(out, "reverted") || !strings.Contains(out, bad.why) {
				t.Errorf("push of a release that does not come up: %v\n%s", err, out)
			}
			t.Logf("known after %.0f s: %s", time.Since(begun).Seconds(), lastLines(out, 1))
			b.recorded(t, "reverted", bad.why)
			if got := b.ssh("n1", "tr ' ' '\\n' < /proc/cmdline | grep ingot.side=; systemctl is-active app"); got != "ingot.side=a\nactive" {
				t.Errorf("the node is %q", got)
			}
		})
	}
}

// brokenSides captures the golden image with a service, and each broken release.
func (b *bench) brokenSides() {
	b.t.Helper()
	dir := filepath.Join(b.rack.Dir(), "release")
	b.must(os.Mkdir(dir, 0o755))
	b.run("push", image, "--dir", dir)
	b.must(os.RemoveAll(filepath.Join(dir, ".ingot")))
	b.put(dir, goodRelease)
	wants := filepath.Join(dir, "etc/systemd/system/multi-user.target.wants")
	b.must(os.MkdirAll(wants, 0o755))
	b.must(os.Symlink("/etc/systemd/system/app.service", filepath.Join(wants, "app.service")))
	b.run("image", "capture", dir, "app:good")
	for _, bad := range brokenSides {
		b.captureWith(dir, bad.name, bad.files)
	}
}
