package rack

import (
	"strings"
	"testing"
	"time"

	"ingot/lab"
)

// loginWait is four times what an idle machine takes.
const loginWait = 8 * time.Minute

// A BIOS machine: power-on to a login, while the server is killed in the
// middle of the installation and started again; the power cycle afterwards
// boots the disk.
func TestBIOSInstallSurvivesAKilledServer(t *testing.T) {
	b := newBench(t, false, lab.Machine{Name: "n1", Firmware: lab.BIOS})
	b.run("node", "set", "n1", "--install")
	b.serve()
	start := time.Now()
	b.must(b.rack.PowerOn("n1"))
	b.within(4*time.Minute, "a third of the image is written", func() bool {
		n := b.node("n1")
		return n.Total > 0 && n.Done > n.Total/3
	})
	b.server.Kill()
	time.Sleep(3 * time.Second)
	before := b.run("node", "keys", "n1")
	b.serve()
	b.seen(loginWait, "n1", "login", "with the node's host key", 1, "failed", "alarm")
	t.Logf("power-on to login, server killed for 3 s: %.0f s", time.Since(start).Seconds())
	if n := b.node("n1"); n.State != "installed" {
		t.Errorf("state %q, want installed", n.State)
	}
	if n := strings.Count(b.run("node", "timeline", "n1", "--all"), "attempt 1 of"); n != 1 {
		t.Errorf("%d attempts began, want one", n)
	}
	if after := b.run("node", "keys", "n1"); after != before {
		t.Errorf("address or keys changed when the server was killed:\n%s\n%s", before, after)
	}
	id := b.ssh("n1", "hostname; cat /etc/machine-id; sync")
	b.must(b.rack.Cycle("n1"))
	b.seen(loginWait, "n1", "login", "", 2, "failed", "alarm")
	if now := b.ssh("n1", "hostname; cat /etc/machine-id; sync"); now != id {
		t.Errorf("after the power cycle the node is %q, was %q", now, id)
	}
}
