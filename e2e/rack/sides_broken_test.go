package rack

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ingot/lab"
)

// brokenSides are releases that do not come up, each in a way of its own.
var brokenSides = []struct {
	name  string
	files map[string]string // as in badReleases; of kernel and initramfs by the link that leads to them
	why   string            // what the record says
}{
	{"kernel", map[string]string{"vmlinuz": "not a kernel\n"}, "did not come as far as its init"},
	{"initramfs", map[string]string{"initrd.img": "not an archive\n"}, "did not come as far as its init"},
	{"driver", nil, "did not come as far as its init"},
	{"init", map[string]string{"usr/lib/systemd/systemd": "#!/bin/sh\nexit 1\n"}, "not to the end of its start"},
	{"libc", map[string]string{"usr/lib/x86_64-linux-gnu/libc.so.6": ""}, "not to the end of its start"},
	{"hang", map[string]string{"usr/local/bin/app": hang}, "not to the end of its start"},
	{"sshd", map[string]string{"usr/sbin/sshd": "#!/bin/sh\nexit 1\n"}, "nobody confirmed it"},
	{"network", map[string]string{"usr/lib/systemd/systemd-networkd": "#!/bin/sh\nexit 1\n"}, "nobody confirmed it"},
	{"unit", map[string]string{"usr/local/bin/app": "#!/bin/sh\nexit 1\n"}, "app.service"},
}

// hang takes all processors for good, from everybody: sched(7).
const hang = `#!/bin/sh
exec chrt -f 99 sh -c 'echo -1 > /proc/sys/kernel/sched_rt_runtime_us
for i in 1 2 3 4; do while :; do :; done & done
while :; do :; done'
`

// noDriver is run by an initramfs that lacks the drivers of all disks.
const noDriver = "rm -rf /lib/modules/*/kernel/drivers/block"

// Whatever is wrong with the side that is tried, the node comes back to the one
// that it had, by itself, and says why; ten times in a row.
func TestBrokenSides(t *testing.T) {
	if !long() {
		t.Skip("make campaign runs it")
	}
	b := newBench(t, true, lab.Machine{Name: "n1", Firmware: lab.BIOS, ExtraArgs: []string{"-device", "i6300esb", "-action", "watchdog=reset"}})
	profile := b.sidesProfile(slots)
	b.brokenSides()
	b.installed("app:good")
	b.write("profile/DEFAULT.yaml", profile+"check:\n  - {unit: app.service, retry_for: 5s}\n")
	for _, bad := range brokenSides {
		t.Run(bad.name, func(t *testing.T) {
			begun := time.Now()
			out, err := b.try("push", "app:"+bad.name, "n1", "--confirm", "40s")
			if err == nil || !strings.Contains(out, "reverted") || !strings.Contains(out, bad.why) {
				t.Errorf("push of a release that does not come up: %v\n%s", err, out)
			}
			t.Logf("known after %.0f s, there and back in %.0f s: %s", time.Since(begun).Seconds(), b.thereAndBack(), lastLines(out, 1))
			b.recorded(t, "reverted", bad.why)
			b.onFirst(t)
		})
	}
	t.Run("root", b.lostRoot)
	t.Run("shared", b.lostShared)
}

// lostShared takes away what both sides share. The node comes up for somebody
// to log in, and no service begins anew with nothing.
func (b *bench) lostShared(t *testing.T) {
	dev := b.ssh("n1", "findmnt -n -o SOURCE /.ingot/shared")
	b.ssh("n1", "sync; dd if=/dev/zero of="+dev+" bs=1M count=64 conv=fsync")
	b.restarted("n1", b.rack.Reset)
	got := b.ssh("n1", "findmnt -n -o SOURCE /var/lib; touch /var/lib/x 2> /dev/null && echo written || echo refused")
	if got != "shared-file-system-is-missing\nrefused" {
		t.Errorf("without what both sides share the node says %q", got)
	}
}

// thereAndBack is how long the last trial of a side took, in seconds: from the
// moment the boot loader was told until the side of before had started again.
func (b *bench) thereAndBack() float64 {
	b.t.Helper()
	var trial struct{ Made, Ended time.Time }
	b.must(json.Unmarshal([]byte(b.ssh("n1", "cat /.ingot/shared/ingot/trial.json")), &trial))
	return trial.Ended.Sub(trial.Made).Seconds()
}

func (b *bench) onFirst(t *testing.T) {
	t.Helper()
	if got := b.ssh("n1", "tr ' ' '\\n' < /proc/cmdline | grep ingot.side=; systemctl is-active app"); got != "ingot.side=a\nactive" {
		t.Errorf("the node is %q", got)
	}
}

// lostRoot takes away the file system of a side that is to be tried. The node
// comes back; what to do about it is said, and then a push works again.
func (b *bench) lostRoot(t *testing.T) {
	b.run("push", "app:unit", "n1", "--no-reboot")
	dev := b.ssh("n1", `blkid -U "$(tr -d '[:space:]' < /.ingot/sides.json | sed 's/.*"b":{[^}]*"uuid":"\([^"]*\)".*/\1/')"`)
	uuid := b.ssh("n1", "blkid -o value -s UUID "+dev)
	b.ssh("n1", "dd if=/dev/zero of="+dev+" bs=1M count=64 conv=fsync")
	begun := time.Now()
	b.restarted("n1", b.rack.Reset)
	t.Logf("there again after %.0f s", time.Since(begun).Seconds())
	b.onFirst(t)
	if list := b.ssh("n1", "/.ingot/agent generations"); !strings.Contains(list, "revert ") || !strings.Contains(list, "did not come as far as its init") {
		t.Errorf("the generations do not say what became of the side:\n%s", list)
	}
	out, err := b.try("push", "app:good", "n1")
	if err == nil || !strings.Contains(out, "mkfs.ext4 -U "+uuid) {
		t.Errorf("a push to a side that is gone: %v\n%s", err, out)
	}
	b.ssh("n1", "mkfs.ext4 -q -U "+uuid+" "+dev)
	t.Log(b.run("push", "app:better", "n1", "--confirm", "2m"))
	if got := b.ssh("n1", "tr ' ' '\\n' < /proc/cmdline | grep ingot.side="); got != "ingot.side=b" {
		t.Errorf("after the push to the side that was made again the node is on %q", got)
	}
}

// brokenSides captures the golden image with a service, and each broken release.
func (b *bench) brokenSides() {
	b.t.Helper()
	dir := b.goodTree("app")
	b.captureWith(dir, "better", map[string]string{"etc/issue.net": "better\n"})
	for _, bad := range brokenSides {
		if bad.files == nil {
			initrd, err := os.ReadFile(filepath.Join(dir, "initrd.img"))
			b.must(err)
			bad.files = map[string]string{"initrd.img": string(b.early(noDriver)) + string(initrd)}
		}
		b.captureWith(dir, bad.name, bad.files)
	}
}
