package rack

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"testing"

	"ingot/lab"
)

// The controller is killed while a node starts from its other side. Whoever goes
// on waits for the node and confirms it; whoever takes it back while it is on
// trial has it start as it was.
func TestSidesResumed(t *testing.T) {
	if !long() {
		t.Skip("make campaign runs it")
	}
	b := newBench(t, true, lab.Machine{Name: "n1", Firmware: lab.BIOS})
	b.sidesProfile(slots)
	b.secondOf(sidesImage, "app:2")
	one, two := b.listed(sidesImage), b.listed("app:2")
	b.installed(sidesImage)
	side := func() string {
		out, _ := b.trySSH("n1", "tr ' ' '\\n' < /proc/cmdline | grep ingot.side=")
		return strings.TrimPrefix(out, "ingot.side=")
	}
	const ends = "grep -c ended /.ingot/shared/ingot/trial.json"

	b.killedInStart("push", "app:2", "n1", "--confirm", "5m", "--json")
	out := b.run("deployment", "resume", "last")
	if !strings.Contains(out, "on trial already") || side() != "b" || b.ssh("n1", ends) != "1" {
		t.Errorf("gone on with: side %q\n%s", side(), out)
	}
	b.differs(t, "confirmed by another controller", two)
	if out := b.run("deployment", "show", "last"); !strings.Contains(out, "done") || strings.Contains(out, "killed") {
		t.Errorf("the record says\n%s", out)
	}
	b.run("rollback", "n1")

	b.killedInStart("push", "app:2", "n1", "--confirm", "5m", "--json")
	b.within(loginWait, "n1 runs from its other side", func() bool { return side() == "b" })
	if out, err := b.try("push", sidesImage, "n1"); err == nil || !strings.Contains(out, "waits to be started or confirmed") {
		t.Errorf("a push of something else to a node that is on trial: %v\n%s", err, out)
	}
	out = b.run("deployment", "undo", "3") // after the push that went on, and its rollback
	if !strings.Contains(out, "is given up") || side() != "a" {
		t.Errorf("taken back on trial: side %q\n%s", side(), out)
	}
	b.differs(t, "taken back by another controller", one)
	if out := b.run("node", "timeline", "n1", "--all"); !strings.Contains(out, "taken back by") {
		t.Errorf("the timeline says\n%s", out)
	}
	if out := b.run("deployment", "undo", "3"); !strings.Contains(out, "unchanged") {
		t.Errorf("taken back twice:\n%s", out)
	}
	t.Log(b.run("push", "app:2", "n1"))
	b.differs(t, "pushed again", two)
}

// killedInStart types a command and kills it when it waits for a node to be
// confirmed, which has just been told to start.
func (b *bench) killedInStart(args ...string) {
	b.t.Helper()
	c := exec.Command(binary(), args...)
	c.Env = append(os.Environ(), "INGOT_SITE="+b.site)
	out, err := c.StdoutPipe()
	b.must(err)
	b.must(c.Start())
	defer c.Wait() // killed
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		if strings.Contains(lines.Text(), `"task":"confirm`) {
			b.must(c.Process.Kill())
			return
		}
	}
	b.t.Fatalf("ingot %s ended before it confirmed: %v", strings.Join(args, " "), lines.Err())
}
