package rack

import (
	"os"
	"path/filepath"
	"testing"

	"ingot/lab"
)

// installedDir keeps a machine that was installed, and its site, for the tests
// that begin with one.
func installedDir() string { return filepath.Join(os.Getenv("INGOT_RACK_DIR"), "installed") }

func installedDisk() string { return filepath.Join(installedDir(), "disk") }

// newInstalled makes a bench with a store of its own whose machine n1, with
// BIOS, is installed and off, and whose server runs. The first test that asks
// for one installs it.
func newInstalled(t *testing.T, machines ...lab.Machine) *bench {
	t.Helper()
	if why := os.Getenv(skipEnv); why != "" {
		t.Skip(why)
	}
	if _, err := os.Stat(installedDir()); err != nil && !t.Run("install", keepInstalled) {
		t.FailNow()
	}
	b := assemble(t, machines)
	b.command("cp", "-a", filepath.Join(installedDir(), "site"), b.site)
	b.makeSite(true)
	m, err := b.rack.Machine("n1")
	b.must(err)
	b.copyDisk(installedDisk(), m.Disks[0].Path)
	b.serve()
	return b
}

// keepInstalled installs a machine and keeps it. TestBIOSInstallSurvivesAKilledServer
// comes before and keeps its own, where it is run.
func keepInstalled(t *testing.T) {
	b := newBench(t, false, lab.Machine{Name: "n1", Firmware: lab.BIOS})
	b.run("node", "set", "n1", "--install")
	b.serve()
	b.on("n1")
	b.keep()
}

// keep ends a bench, and keeps the disk of n1 and the site.
func (b *bench) keep() {
	b.t.Helper()
	b.shutdown("n1")
	b.server.Stop()
	m, err := b.rack.Machine("n1")
	b.must(err)
	half := installedDir() + ".tmp"
	b.must(os.RemoveAll(half))
	b.must(os.Mkdir(half, 0o700))
	b.copyDisk(m.Disks[0].Path, filepath.Join(half, "disk"))
	b.command("cp", "-a", b.site, filepath.Join(half, "site"))
	b.must(os.RemoveAll(installedDir()))
	b.must(os.Rename(half, installedDir()))
}

func (b *bench) copyDisk(from, to string) {
	b.t.Helper()
	b.command("cp", "--sparse=always", "--reflink=auto", from, to)
}

// on switches a machine on and waits until somebody can log in.
func (b *bench) on(name string) {
	b.t.Helper()
	logins := b.logins(name)
	b.must(b.rack.PowerOn(name))
	b.seen(loginWait, name, "login", "", logins+1, "failed", "alarm")
}

// logins counts how often a machine has come up.
func (b *bench) logins(name string) (n int) {
	b.t.Helper()
	for _, e := range b.events(name) {
		if e.Stage == "login" {
			n++
		}
	}
	return n
}
