package rack

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ingot/lab"
)

// busy is what a node does while it is captured: one loop writes a number to
// one file and, when that is durable, to another; another loop has apt install
// and remove packages of some 3,000 files.
const busy = `set -e
cat > /root/count <<'END'
#!/bin/sh
i=0
while [ ! -e /root/stop ]; do i=$((i+1)); echo $i >> /srv/first; sync -d /srv/first; echo $i >> /srv/second; sync -d /srv/second; done
touch /root/counted
END
cat > /root/apt <<'END'
#!/bin/sh
export DEBIAN_FRONTEND=noninteractive
while [ ! -e /root/stop ]; do apt-get -q -y install /root/debs/*.deb && apt-get -q -y remove manpages manpages-dev && echo round >> /root/rounds || exit; done
touch /root/installed
END
chmod 755 /root/count /root/apt
touch /srv/first /srv/second
for job in count apt; do setsid /root/$job >/root/$job.log 2>&1 </dev/null & done`

const quiet = `touch /root/stop; while [ ! -e /root/counted ] || [ ! -e /root/installed ]; do sleep 1; done; cat /root/rounds`

// A live Debian node is captured while it writes. One whose root can be
// snapshot gives an image that is true to the snapshot; of another the
// capture is refused, and says which files would not hold still.
func TestCaptureWhileTheNodeWrites(t *testing.T) {
	b := newInstalled(t, lab.Machine{Name: "n1", Firmware: lab.BIOS}, lab.Machine{Name: "n2", Firmware: lab.UEFI})
	was := b.logins("n2")
	b.must(b.rack.PowerOn("n2"))
	b.on("n1")
	b.seen(loginWait, "n2", "login", "", was+1, "failed", "alarm")
	for _, n := range []string{"n1", "n2"} {
		b.ssh(n, "mkdir -p /root/debs")
		for _, deb := range debs(t) {
			b.upload(n, deb, "/root/debs/")
		}
	}
	if fs := b.ssh("n2", "findmnt -no FSTYPE /"); fs != "btrfs" {
		t.Fatalf("the root of n2 is %s", fs)
	}
	t.Run("refused", b.captureRefused)
	t.Run("snapshot", b.captureOfSnapshots)
}

// captureRefused: nothing is published of a tree that does not hold still; what
// is allowed to change is named; when it is quiet again all is well.
func (b *bench) captureRefused(t *testing.T) {
	b.ssh("n1", busy)
	b.within(time.Minute, "apt is at work", func() bool { return b.ssh("n1", "pgrep -x dpkg || true") != "" })
	out, err := b.try("image", "capture", "root@n1:/", "live:1")
	if err == nil || !strings.Contains(out, `"srv/first"`) || !strings.Contains(out, `"srv/second"`) || !strings.Contains(out, "hint:") {
		t.Errorf("capture of a node that writes: %v\n%s", err, out)
	}
	t.Logf("refused: %s", lastLines(out, 4))
	if out, err := b.try("image", "show", "live:1"); err == nil {
		t.Errorf("it was published all the same: %s", out)
	}
	// The loop may change what it writes; apt may not. So this one is refused
	// for apt's files, or apt was between two changes: then all is consistent.
	out, err = b.try("image", "capture", "root@n1:/", "live:2", "--allow-changed", "/srv/**", "--allow-changed", "/root/**")
	t.Logf("apt alone: %v: %s", err, lastLines(out, 4))
	switch {
	case err == nil:
		b.consistent(t, "live:2")
	case !slices.ContainsFunc(aptChanges(), func(dir string) bool { return strings.Contains(out, `"`+dir) }):
		t.Errorf("refused, but not for what apt changes: %s", out)
	}
	t.Logf("rounds of apt: %q", b.ssh("n1", quiet))
	b.run("image", "capture", "root@n1:/", "live:3")
	b.run("image", "verify", "live:3")
	if first, second := b.counts(t, "live:3"); first != second || first < 10 {
		t.Errorf("a quiet node: %d and %d lines", first, second)
	}
}

// aptChanges returns where apt and dpkg write for these packages, logs and
// caches, which images do not have, aside.
func aptChanges() []string {
	return []string{"var/lib/dpkg", "var/lib/apt", "usr/share/man", "usr/share/doc", "usr/share/lintian"}
}

// captureOfSnapshots: a root on btrfs is captured from a snapshot by itself.
func (b *bench) captureOfSnapshots(t *testing.T) {
	b.ssh("n2", busy)
	b.within(time.Minute, "apt is at work", func() bool { return b.ssh("n2", "pgrep -x dpkg || true") != "" })
	for _, name := range []string{"snap:1", "snap:2"} {
		if out := b.run("image", "capture", "root@n2:/", name); !strings.Contains(out, "captured from a btrfs snapshot") {
			t.Errorf("not from a snapshot: %s", out)
		}
		first, second := b.counts(t, name)
		if first != second && first != second+1 || second == 0 {
			t.Errorf("%s holds %d lines of the file that is written first and %d of the second: no moment had that", name, first, second)
		}
		b.consistent(t, name)
	}
	if left := b.ssh("n2", "ls -A /.ingot/snapshots"); left != "" {
		t.Errorf("left on the node: %q", left)
	}
	b.ssh("n2", quiet)
}

// written writes an image to a directory of this machine.
func (b *bench) written(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(b.site, "..", "written", strings.ReplaceAll(name, ":", "-"))
	b.must(os.MkdirAll(dir, 0o755))
	b.run("push", name, "--dir", dir)
	return dir
}

// counts returns how many lines the two files of an image have, and sees that
// they are whole lines from 1 on.
func (b *bench) counts(t *testing.T, name string) (first, second int) {
	t.Helper()
	dir := b.written(t, name)
	count := func(file string) int {
		text, err := os.ReadFile(filepath.Join(dir, "srv", file))
		b.must(err)
		lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
		for i, l := range lines {
			if l != strconv.Itoa(i+1) {
				t.Fatalf("%s: line %d of %s is %q", name, i+1, file, l)
			}
		}
		return len(lines)
	}
	return count("first"), count("second")
}

// consistent has dpkg judge whether what it says is installed is there. The
// image's own dpkg, since it knows what its database looks like.
func (b *bench) consistent(t *testing.T, name string) {
	t.Helper()
	dir := b.written(t, name)
	for _, pkg := range []string{"manpages", "manpages-dev"} {
		script := `s=$(dpkg-query -W -f '${Status}' ` + pkg + ` 2>/dev/null || true); echo "$s"; [ "$s" != "install ok installed" ] || dpkg --verify ` + pkg
		out := b.command("chroot", dir, "/bin/sh", "-c", script)
		status, wrong, _ := strings.Cut(out, "\n")
		t.Logf("%s: %s is %q", name, pkg, status)
		if strings.Contains(wrong, "/") {
			t.Errorf("%s: %s is %q, but dpkg --verify says:\n%.2000s", name, pkg, status, wrong)
		}
	}
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
