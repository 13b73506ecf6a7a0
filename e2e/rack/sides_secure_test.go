package rack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ingot/lab"
)

// A node whose image has Debian's shim and signed GRUB is installed, and boots
// on from its disk with Secure Boot: it gets a release, goes back, and comes
// back by itself from a release whose kernel nobody signed.
func TestSidesSecureBoot(t *testing.T) {
	if !long() {
		t.Skip("make campaign runs it")
	}
	b := newBench(t, true, lab.Machine{Name: "n1", Firmware: lab.UEFI})
	b.sidesProfile(slots)
	dir := filepath.Join(b.rack.Dir(), "signed")
	b.must(os.Mkdir(dir, 0o755))
	b.run("push", sidesImage, "--dir", dir)
	b.must(os.RemoveAll(filepath.Join(dir, ".ingot")))
	b.scatter(dir)
	b.otherKernel(dir, nil)
	b.run("image", "capture", dir, "app:signed")
	b.secondOf(sidesImage, "app:unsigned")
	b.installed(sidesImage)
	if text := b.ssh("n1", secureBoot); text != "0" {
		t.Errorf("Secure Boot is %q before it is switched on", text)
	}
	b.shutdown("n1")
	m, err := b.rack.Machine("n1")
	b.must(err)
	secure := lab.Machine{Name: "n1-secure", Firmware: lab.UEFI, Secure: true, MAC: m.MAC, DiskFirst: true, Disks: []lab.Disk{{Path: m.Disks[0].Path}}}
	b.must(b.rack.AddMachine(secure))
	b.restarted(secure.Name, b.rack.PowerOn)
	is := func(what, side, release string) {
		t.Helper()
		got := b.ssh("n1", secureBoot+"; tr ' ' '\\n' < /proc/cmdline | grep ingot.side=; grep -c 'release 2' /etc/issue.net; test -e "+bootMark+" && echo 2 || echo 1")
		count := map[string]string{"1": "0", "2": "1"}[release]
		if want := "1 ingot.side=" + side + " " + count + " " + release; strings.Join(strings.Fields(got), " ") != want {
			t.Errorf("%s: the node is %q, want %q", what, got, want)
		}
	}
	is("with Secure Boot", "a", "1")
	t.Log(b.run("push", "app:signed", "n1"))
	is("pushed", "b", "2")
	t.Log(b.run("rollback", "n1"))
	is("rolled back", "a", "1")
	out, err := b.try("push", "app:unsigned", "n1")
	if err == nil || !strings.Contains(out, "did not come as far as its init") {
		t.Errorf("a kernel that nobody signed: %v\n%s", err, out)
	}
	is("came back", "a", "1")
}

// secureBoot prints 1 where the firmware enforces signatures (UEFI 2.10, 3.3).
const secureBoot = `od -An -t u1 -j 4 /sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c | tr -d ' '`
