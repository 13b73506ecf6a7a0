package rack

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"ingot/lab"
)

// release makes 400 files of a second release on a node.
const release = `set -e; mkdir -p /opt/app; for i in $(seq 400); do echo "release 2, file $i" > /opt/app/$i; done
echo release 2 > /etc/issue.net; chmod 600 /etc/issue.net; sync`

// state tells whether a node is the old or the new release, and anything in between.
const state = `echo "$(ls /opt/app 2>/dev/null | wc -l) files, issue $(grep -c 'release 2' /etc/issue.net), journal $(ls /.ingot/journal 2>/dev/null | wc -l)"`

// A node is captured and changed; its image is pushed back to it, and the
// power is cut in the middle of the switch. Whatever the moment, the node
// boots and is exactly the old or exactly the new generation; then the push
// is finished and taken back by one command.
func TestPowerCutInTheSwitch(t *testing.T) {
	b := newInstalled(t, lab.Machine{Name: "n1", Firmware: lab.BIOS})
	b.on("n1")
	before := b.ssh("n1", "cp -a /etc/issue.net /root/issue.old; "+state)
	b.ssh("n1", release)
	t.Log(b.run("image", "capture", "root@n1:/", "app:2"))
	b.ssh("n1", "rm -rf /opt/app; cp -a /root/issue.old /etc/issue.net; rm /root/issue.old; sync")
	if out := b.run("push", "app:2", "n1", "--dry-run"); !strings.Contains(out, " to add, 1 to replace, 0 to delete") {
		t.Errorf("dry run: %q", out)
	}
	b.cutAtTheSwitch()
	b.on("n1")
	after := b.ssh("n1", state)
	t.Logf("before %q, after the power cut %q", before, after)
	if after != before && after != "400 files, issue 1, journal 0" {
		t.Errorf("after the power cut the node is %q: neither old nor new", after)
	}
	t.Log(b.run("push", "app:2", "n1"))
	if got := b.ssh("n1", state); got != "400 files, issue 1, journal 0" {
		t.Errorf("after the push the node is %q", got)
	}
	b.run("push", "app:2", "n1") // nothing to do is done, too
	if after == before {
		t.Log(b.run("rollback", "n1"))
		if got := b.ssh("n1", state); got != before {
			t.Errorf("after the rollback the node is %q, want %q", got, before)
		}
	}
}

// cutAtTheSwitch pushes and pulls the cord when the agent says that it switches.
func (b *bench) cutAtTheSwitch() {
	b.t.Helper()
	if _, err := b.pushUntil("app:2", "n1: exchange", func(push *os.Process) {
		time.Sleep(30 * time.Millisecond)
		b.must(b.rack.PowerOff("n1"))
		b.must(push.Kill()) // it would wait for the node to come back
	}); err == nil {
		b.t.Log("the push had ended before the cord was pulled")
	}
}

// pushUntil pushes to n1 and does something as soon as a line is said. It
// returns all that was said.
func (b *bench) pushUntil(ref, line string, do func(push *os.Process)) (string, error) {
	b.t.Helper()
	c := exec.Command(binary(), "push", ref, "n1")
	c.Env = append(os.Environ(), "INGOT_SITE="+b.site)
	pipe, err := c.StderrPipe()
	b.must(err)
	b.must(c.Start())
	var said strings.Builder
	done := false
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if !done && strings.Contains(lines.Text(), line) {
			done = true
			do(c.Process)
		}
	}
	return said.String(), c.Wait()
}
