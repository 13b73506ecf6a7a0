package rack

import (
	"os"
	"path/filepath"
	"testing"

	"ingot/lab"
)

// installedDir keeps the machines that TestInstallationsSurvive installed, and
// their site, for the tests that begin with them.
func installedDir() string { return filepath.Join(os.Getenv("INGOT_RACK_DIR"), "installed") }

func installedDisk(name string) string { return filepath.Join(installedDir(), name+".disk") }

// newInstalled makes a bench with a store of its own whose machines, n1 with
// BIOS and n2 with UEFI and btrfs, are installed and off, and whose server runs.
func newInstalled(t *testing.T, machines ...lab.Machine) *bench {
	t.Helper()
	if why := os.Getenv(skipEnv); why != "" {
		t.Skip(why)
	}
	if _, err := os.Stat(installedDir()); err != nil && !t.Run("install", TestInstallationsSurvive) {
		t.FailNow()
	}
	b := assemble(t, machines)
	b.command("cp", "-a", filepath.Join(installedDir(), "site"), b.site)
	b.makeSite(true)
	for _, name := range b.rack.Machines() {
		m, err := b.rack.Machine(name)
		b.must(err)
		b.copyDisk(installedDisk(name), m.Disks[0].Path)
	}
	b.serve()
	return b
}

// keep ends a bench, and keeps its disks and its site.
func (b *bench) keep() {
	b.t.Helper()
	half := installedDir() + ".tmp"
	b.must(os.RemoveAll(half))
	b.must(os.Mkdir(half, 0o700))
	for _, name := range b.rack.Machines() {
		b.shutdown(name)
		m, err := b.rack.Machine(name)
		b.must(err)
		b.copyDisk(m.Disks[0].Path, filepath.Join(half, name+".disk"))
	}
	b.server.Stop()
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
