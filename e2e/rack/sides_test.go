package rack

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ingot/lab"
)

// layout is how a node has two sides.
type layout struct{ update, sides, disks string }

var (
	slots = layout{"slots", "sides: {other: /other, shared: /shared, env: /env}\n", `disk_config disk1 disklabel:gpt-bios fstabkey:uuid
primary /boot/efi 64M vfat umask=0077
primary /env 16M ext2 rw
primary / 2G ext4 noatime
primary /other 2G ext4 noatime
primary /shared 512M- ext4 rw
`}
	systemdBoot = layout{"slots", "sides: {other: /other, shared: /shared, env: /boot/efi}\nloader: systemd-boot\n", `disk_config disk1 disklabel:gpt fstabkey:uuid
primary /boot/efi 256M vfat umask=0077
primary / 2G ext4 rw
primary /other 2G ext4 rw
primary /shared 512M- ext4 rw
`}
	subvolumes = layout{"btrfs", "sides: {env: /boot/efi}\n", `disk_config disk1 disklabel:gpt-bios fstabkey:uuid
primary /boot/efi 64M vfat umask=0077
primary / 4G- btrfs noatime
`}
)

// sidesProfile makes the nodes ones with two sides, and returns their profile.
func (b *bench) sidesProfile(l layout) string {
	b.t.Helper()
	b.write("disk_config/DEFAULT", l.disks)
	profile := strings.Replace(b.read("profile/DEFAULT.yaml"), "update: live\n", "update: "+l.update+"\n"+l.sides, 1)
	b.write("profile/DEFAULT.yaml", profile)
	return profile
}

// installed installs n1 with an image, and waits until one can log in.
func (b *bench) installed(image string) {
	b.t.Helper()
	b.run("node", "set", "n1", "--install", "--image", image)
	b.serve()
	b.must(b.rack.PowerOn("n1"))
	b.seen(loginWait, "n1", "login", "with the node's host key", 1, "failed", "alarm")
}

// A node with two sides is installed, gets another kernel and another release,
// is confirmed, and goes back; each time it is what its image is. What a
// database and the node's people wrote meanwhile stays.
func TestSides(t *testing.T) {
	if !long() {
		t.Skip("make campaign runs it")
	}
	for _, tt := range []struct {
		name string
		fw   lab.Firmware
		layout
	}{{"bios", lab.BIOS, slots}, {"uefi", lab.UEFI, slots}, {"btrfs", lab.UEFI, subvolumes}, {"systemd-boot", lab.UEFI, systemdBoot}} {
		t.Run(tt.name, func(t *testing.T) { sidesLoop(t, tt.fw, tt.layout) })
	}
}

func sidesLoop(t *testing.T, fw lab.Firmware, l layout) {
	b := newBench(t, true, lab.Machine{Name: "n1", Firmware: fw})
	profile := b.sidesProfile(l)
	b.secondOf(sidesImage, "app:2")
	one, two := b.listed(sidesImage), b.listed("app:2")
	b.installed(sidesImage)
	t.Log(b.ssh("n1", "cat /proc/cmdline; cat /etc/fstab; findmnt -n -o TARGET,SOURCE,FSTYPE,OPTIONS | grep -v cgroup; cat /.ingot/sides.json; systemctl is-system-running; systemctl --failed"))
	data := func(what string) { // to be there from now on
		b.ssh("n1", fmt.Sprintf("redis-cli set %[1]s %[1]s && touch /home/%[1]s && echo %[1]s >> /etc/ours && echo %[1]s >> /etc/motd", what))
	}
	kept := ""
	is := func(what, side, release string) {
		t.Helper()
		mark := "no "
		if release == "2" {
			mark = "a "
		}
		got := b.ssh("n1", "tr ' ' '\\n' < /proc/cmdline | grep ingot.side=; test -e "+bootMark+" && echo a mark || echo no mark; for k in $(redis-cli --raw keys '*' | sort); do echo $(redis-cli --raw get $k); done; ls /home | sort; cat /etc/ours; tail -n "+fmt.Sprint(len(strings.Fields(kept)))+" /etc/motd")
		want := strings.Fields("ingot.side=" + side + " " + mark + "mark" + strings.Repeat(" "+kept, 4))
		if strings.Join(strings.Fields(got), " ") != strings.Join(want, " ") {
			t.Errorf("%s: the node is %q, want %q", what, strings.Fields(got), want)
		}
		list := one
		if release == "2" {
			list = two
		}
		b.differs(t, what, list)
	}
	data("a-first")
	kept = "a-first"
	is("installed", "a", "1")
	if out, err := b.try("push", "app:2", "n1"); err == nil || !strings.Contains(out, `"etc/motd" changed`) || !strings.Contains(out, `"etc/ours" added`) {
		t.Errorf("a push over changed files: %v\n%s", err, out)
	}
	b.write("profile/DEFAULT.yaml", profile+"local_changes: {keep: [/etc/motd, /etc/ours]}\n")
	t.Log(b.run("push", "app:2", "n1"))
	is("pushed", "b", "2")
	for _, args := range [][]string{{"node", "show", "n1"}, {"node", "timeline", "n1", "--all"}, {"deployment", "show", "last"}} {
		if out := b.run(args...); !strings.Contains(out, "side b runs, side b starts next") || !strings.Contains(out, "started 1 time") {
			t.Errorf("%q says nothing of the sides:\n%s", args, out)
		}
	}
	data("b-second")
	kept += " b-second"

	// A file that differs between the sides, and that the node changed on this one.
	b.ssh("n1", "echo ours >> /etc/issue.net")
	if out, err := b.try("rollback", "n1"); err == nil || !strings.Contains(out, "issue.net") {
		t.Errorf("a rollback over a changed file: %v\n%s", err, out)
	}
	t.Log(b.run("rollback", "n1", "--take", "/etc/issue.net"))
	is("rolled back", "a", "1")
	t.Log(b.ssh("n1", "cat /.ingot/shared/ingot/trial.json; /.ingot/agent generations"), b.run("node", "show", "n1"))
	data("c-third")
	kept += " c-third"
	t.Log(b.run("rollback", "n1"))
	is("rolled forward", "b", "2")
	if text := b.ssh("n1", "cat /etc/issue.net"); text != "release 2\nours" {
		t.Errorf("the side is not as it was left: /etc/issue.net is %q", text)
	}
	t.Log(b.run("rollback", "n1", "--take", "/etc/issue.net"))
	is("rolled back again", "a", "1")

	// An image of the node has what both sides share, and what they do not.
	b.run("image", "capture", "root@n1:/", "live:1", "--allow-changed", "/var/**")
	dir := filepath.Join(b.rack.Dir(), "live")
	b.must(os.Mkdir(dir, 0o755))
	b.run("push", "live:1", "--dir", dir)
	for _, path := range []string{"var/lib/dpkg/status", "var/lib/redis/dump.rdb", "home/c-third", "etc/issue.net"} {
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
	b.restarted("n1", b.rack.Reset)
	is("given up, and started", "a", "1")
}

// restarted does something to a machine of n1 that starts it, and waits until
// somebody can log in. It asks the machine: the server hears nothing of one that
// boots from its disk.
func (b *bench) restarted(machine string, do func(string) error) {
	b.t.Helper()
	const bootID = "cat /proc/sys/kernel/random/boot_id"
	before, _ := b.trySSH("n1", bootID) // it may be off
	b.must(do(machine))
	b.within(loginWait, "somebody can log in to n1", func() bool {
		now, err := b.trySSH("n1", bootID)
		return err == nil && now != before
	})
}

// listing prints of each file of a tree, without what a node has for itself,
// what find(1) and sha256sum(1) say: judges that know nothing of ingot.
const listing = `set -e; cd "$1"; LC_ALL=C; export LC_ALL
find . -xdev \( -path ./.ingot -o -path ./home -o -path ./root -o -path ./var/lib -o -path ./var/log -o -path ./var/cache -o -path ./boot/efi -o -path ./tmp -o -path ./var/tmp -o -path ./run -o -path ./proc -o -path ./sys -o -path ./dev \) -prune \
	-o -type d -printf '%y %m %U %G - %p\n' -o -type l -printf '%y %U %G %l - %p\n' -o -printf '%y %m %U %G %s %T@ %n %p\n'
find . -xdev \( -path ./.ingot -o -path ./home -o -path ./root -o -path ./var/lib -o -path ./var/log -o -path ./var/cache -o -path ./boot/efi -o -path ./tmp -o -path ./var/tmp -o -path ./run -o -path ./proc -o -path ./sys -o -path ./dev \) -prune -o -type f -print0 | xargs -0 sha256sum
find ./var/lib/dpkg -type f -print0 | xargs -0 sha256sum`

// listed is the listing of an image.
func (b *bench) listed(ref string) map[string]bool {
	b.t.Helper()
	dir := b.t.TempDir()
	b.run("push", ref, "--dir", dir)
	b.must(os.RemoveAll(filepath.Join(dir, ".ingot")))
	return lines(b.command("sh", "-c", listing, "sh", dir))
}

func lines(text string) map[string]bool {
	out := map[string]bool{}
	for line := range strings.Lines(text) {
		out[line] = true
	}
	return out
}

// ofTheNode are the files that are not those of the image: its names and keys,
// what the installation writes, and what the test does.
var ofTheNode = []string{"./etc", "./etc/fstab", "./etc/hostname", "./etc/hosts", "./etc/issue.net", "./lost+found", "./etc/machine-id", "./etc/resolv.conf", "./etc/motd", "./etc/ours", "./etc/ssh", "./etc/systemd/network", "./boot", "./boot/grub", "./etc/.updated", "./var/.updated"}

// differs compares the node that runs with the listing of an image.
func (b *bench) differs(t *testing.T, what string, want map[string]bool) {
	t.Helper()
	c := exec.Command("ssh", append(b.sshOptions("n1"), "root@"+b.node("n1").Address, "--", "sh -s /")...)
	c.Stdin = strings.NewReader(listing)
	text, err := c.Output()
	b.must(err)
	got := lines(string(text))
	if len(got) < 10000 {
		t.Fatalf("%s: the node lists only %d lines", what, len(got))
	}
	var bad []string
	for x, y := range map[string]map[string]bool{"-": got, "+": want} { // - what it should have
		from := want
		if x == "+" {
			from = got
		}
		for line := range from {
			_, path, _ := strings.Cut(line, " ./")
			if !y[line] && !own("./"+strings.TrimSpace(path)) {
				bad = append(bad, x+line)
			}
		}
	}
	if len(bad) > 0 {
		t.Errorf("%s: %d lines are not those of the image:\n%s", what, len(bad), strings.Join(bad[:min(len(bad), 20)], ""))
	}
	t.Logf("%s: compared %d lines", what, len(got))
}

// own reports whether a path is one of those of the node, or in one but /etc and /boot.
func own(path string) bool {
	for _, p := range ofTheNode {
		if path == p || strings.HasPrefix(path, p+"/") && p != "./etc" && p != "./boot" {
			return true
		}
	}
	return false
}
