package rack

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"ingot/lab"
)

// loginWait is four times what an idle machine takes.
const loginWait = 8 * time.Minute

// Two machines at once. n1, with BIOS: power-on to a login, while the server is
// killed in the middle of the installation and started again; the power cycle
// afterwards boots the disk. n2, with UEFI and btrfs: the power is cut in the
// middle of the writing; the next power-on installs by itself, and the disk is
// booted although the firmware's boot order has the network first. Both are
// kept for the tests that begin with machines that are installed.
func TestInstallationsSurvive(t *testing.T) {
	b := newBench(t, false, lab.Machine{Name: "n1", Firmware: lab.BIOS}, lab.Machine{Name: "n2", Firmware: lab.UEFI})
	b.run("node", "set", "n2", "--class", "BTRFS")
	b.write("disk_config/BTRFS", strings.Replace(disksText, "ext4 rw", "btrfs rw", 1))
	b.run("node", "set", "all", "--install")
	b.serve()
	start := time.Now()
	for _, n := range b.rack.Machines() {
		b.must(b.rack.PowerOn(n))
	}
	third := func(name string) func() bool {
		return func() bool {
			n := b.node(name)
			return n.Total > 0 && n.Done > n.Total/3
		}
	}
	b.within(4*time.Minute, "a third of the image is written to n2", third("n2"))
	b.must(b.rack.PowerOff("n2"))
	if n := b.node("n2"); n.State != "writing" {
		t.Errorf("after the power cut the state is %q, want writing", n.State)
	}
	b.within(4*time.Minute, "a third of the image is written to n1", third("n1"))
	if n := b.node("n1"); n.State != "writing" {
		t.Errorf("the server is not killed in the middle of anything: n1 is %q", n.State)
	}
	b.server.Kill()
	time.Sleep(3 * time.Second)
	before := b.hostKeys("n1")
	b.serve()
	b.must(b.rack.PowerOn("n2"))
	b.seen(loginWait, "n1", "login", "with the node's host key", 1, "failed", "alarm")
	t.Logf("n1, power-on to login, server killed for 3 s: %.0f s", time.Since(start).Seconds())
	if n := b.node("n1"); n.State != "installed" {
		t.Errorf("state %q, want installed", n.State)
	}
	if n := strings.Count(b.run("node", "timeline", "n1", "--all"), "attempt 1 of"); n != 1 {
		t.Errorf("%d attempts began, want one", n)
	}
	if after := b.hostKeys("n1"); after != before {
		t.Errorf("address or keys changed when the server was killed:\n%s\n%s", before, after)
	}
	id := b.ssh("n1", "hostname; cat /etc/machine-id; sync")
	b.must(b.rack.Cycle("n1"))
	b.seen(time.Minute, "n2", "attempt", "attempt 2 of 4; the one before stopped in state writing at write the image", 1)
	b.seen(loginWait, "n2", "login", "with the node's host key", 1, "failed", "alarm")
	if out := b.ssh("n2", "hostname; test -d /sys/firmware/efi && echo uefi; findmnt -no FSTYPE /boot/efi; findmnt -no FSTYPE /"); out != "n2\nuefi\nvfat\nbtrfs" {
		t.Errorf("n2 says %q", out)
	}
	b.seen(loginWait, "n1", "login", "", 2, "failed", "alarm")
	if now := b.ssh("n1", "hostname; cat /etc/machine-id; sync"); now != id {
		t.Errorf("after the power cycle the node is %q, was %q", now, id)
	}
	if !t.Failed() {
		b.keep()
	}
}

// An installed node is armed again, and then a pack is damaged: the node says
// which and ends as failed; its half-written disk says that it does not boot; it
// is not installed by a power cycle, and is when somebody arms it again. This
// second installation keeps the host keys of the first.
func TestDamagedPackFailsAndIsInstalledLater(t *testing.T) {
	b := newInstalled(t, lab.Machine{Name: "n1", Firmware: lab.BIOS})
	keys, logins := b.hostKeys("n1"), b.logins("n1")
	b.run("node", "set", "n1", "--install")
	undo := b.damagePack()
	if out, err := b.try("node", "set", "n1", "--install"); err == nil || !strings.Contains(out, "pack") {
		t.Errorf("arming with a damaged pack: %v, %q", err, out)
	}
	b.must(b.rack.PowerOn("n1"))
	b.seen(5*time.Minute, "n1", "failed", "pack", 1)
	ctx := t.Context()
	line, err := b.rack.Expect(ctx, "n1", "INSTALLATION FAILED")
	b.must(err)
	t.Logf("console: %s", line)
	if n := b.node("n1"); n.State != "failed" || !strings.Contains(n.Reason, "pack") {
		t.Errorf("the server says %+v", n)
	}
	if log := b.command("sh", "-c", "cat "+b.site+"/.ingot/logs/n1/*.log"); !strings.Contains(log, "the installation failed") {
		t.Error("the server kept no log of the failure")
	}
	b.must(b.rack.Cycle("n1"))
	if _, err := b.rack.Expect(ctx, "n1", "FAILED"); err != nil { // the boot script
		t.Error(err)
	}
	if _, err := b.rack.Expect(ctx, "n1", "was not finished; it does not boot"); err != nil { // the boot sector
		t.Error(err)
	}
	if n := b.node("n1"); n.State != "failed" {
		t.Errorf("after a power cycle the state is %q", n.State)
	}
	undo()
	b.run("node", "set", "n1", "--install")
	b.must(b.rack.Cycle("n1"))
	b.seen(loginWait, "n1", "login", "", logins+1, "alarm")
	if now := b.hostKeys("n1"); now != keys {
		t.Errorf("the host keys changed with the second installation:\n%s\n%s", keys, now)
	}
	b.ssh("n1", "true")
}

// The cable is pulled: for a while, and the installation goes on; for longer
// than the installer's patience, and it ends as failed, says so in both places
// and installs when it is armed again, with the host keys of the first attempt.
func TestCableCuts(t *testing.T) {
	b := newBench(t, false, lab.Machine{Name: "n1", Firmware: lab.BIOS})
	text := b.read("ingot.yaml")
	b.write("ingot.yaml", text+"installer:\n  args: [ingot.patience=25]\n")
	b.run("node", "set", "n1", "--install")
	b.serve()
	b.must(b.rack.PowerOn("n1"))
	written := func(part int64) {
		t.Helper()
		b.within(4*time.Minute, fmt.Sprintf("%d%% of the image is written", part), func() bool {
			n := b.node("n1")
			return n.Total > 0 && n.Done > n.Total*part/100
		})
	}
	written(20)
	b.must(b.rack.SetLink("n1", false))
	time.Sleep(12 * time.Second)
	b.must(b.rack.SetLink("n1", true))
	written(50)
	if n := b.node("n1"); n.State != "writing" {
		t.Errorf("after a short cut the state is %q, want writing", n.State)
	}
	b.seen(time.Second, "n1", "claim", "", 1, "failed", "alarm")
	keys := b.hostKeys("n1")

	b.must(b.rack.SetLink("n1", false))
	ctx := t.Context()
	line, err := b.rack.Expect(ctx, "n1", "INSTALLATION FAILED")
	b.must(err)
	t.Logf("console: %s", line)
	if n := b.node("n1"); n.State != "writing" {
		t.Errorf("the server cannot know yet, and says %q", n.State)
	}
	b.must(b.rack.SetLink("n1", true))
	b.seen(2*time.Minute, "n1", "failed", "no answer from", 1)
	b.run("node", "set", "n1", "--install")
	b.seen(loginWait, "n1", "login", "with the node's host key", 1, "alarm")
	if now := b.hostKeys("n1"); now != keys {
		t.Errorf("the host keys changed with the second attempt:\n%s\n%s", keys, now)
	}
	b.ssh("n1", "true")
}

// What one machine takes, alone: `make boot-time` prints where the time goes.
// It measures and does not judge.
func TestBootTime(t *testing.T) {
	if os.Getenv("INGOT_BOOT_TIME") == "" {
		t.Skip("a measurement: make boot-time")
	}
	for _, fw := range []lab.Firmware{lab.BIOS, lab.UEFI} {
		t.Run(string(fw), func(t *testing.T) {
			b := newBench(t, false, lab.Machine{Name: "n1", Firmware: fw})
			b.run("node", "set", "n1", "--install")
			b.serve()
			start := time.Now()
			b.must(b.rack.PowerOn("n1"))
			b.seen(loginWait, "n1", "login", "with the node's host key", 1, "failed", "alarm")
			t.Logf("%s, alone: power-on to SSH login %.0f s\n%s", fw, time.Since(start).Seconds(), b.run("node", "timeline", "n1"))
		})
	}
}
