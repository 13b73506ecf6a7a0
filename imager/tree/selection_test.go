package tree

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func plantMachine(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range []string{"etc/hostname", "etc/machine-id", "etc/ssh/ssh_host_rsa_key", "etc/ssh/sshd_config", "root/.ssh/authorized_keys", "root/.bash_history", "root/.profile",
		"var/log/syslog", "var/log/nginx/access.log", "var/log/journal/0123/system.journal", "var/cache/man/de/index.db", "var/lib/dhcp/lease", "var/lib/systemd/credential.secret",
		"var/lib/cloud/instances/i-1/x", "var/lib/cloud/scripts/y", "var/lib/app/data", "proc/1/stat", "tmp/x", "home/joe/.bash_history", "home/joe/letter"} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, f)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, f), []byte(f), 0o640))
	}
	return dir
}

func selected(t *testing.T, dir string, o SelectOptions) (paths string, sealed []string, blank int64) {
	t.Helper()
	s, err := NewSelection(o)
	must(t, err)
	var opts CaptureOptions
	s.Apply(&opts)
	m, _ := captureDir(t, dir, opts)
	var out []string
	for _, e := range m.Entries {
		if e.Type != 2 || strings.HasPrefix(e.Path, "var/log") || strings.HasPrefix(e.Path, "var/cache") {
			out = append(out, e.Path)
		}
	}
	id, _ := m.Lookup("etc/machine-id")
	return strings.Join(out, " "), s.Sealed(), id.Size
}

func TestSelection(t *testing.T) {
	dir := plantMachine(t)
	all, sealed, id := selected(t, dir, SelectOptions{})
	if len(strings.Fields(all)) != 20+7 || sealed != nil || id == 0 {
		t.Errorf("a directory as it is: %s, sealed %q, %d", all, sealed, id)
	}
	live, sealed, id := selected(t, dir, SelectOptions{Live: true})
	if strings.Contains(live, "proc/") || strings.Contains(live, "tmp/") || !strings.Contains(live, "syslog") || sealed != nil || id == 0 {
		t.Errorf("unsealed: %s, sealed %q, %d", live, sealed, id)
	}
	got, sealed, id := selected(t, dir, SelectOptions{Live: true, Seal: true, Exclude: []string{"/home/**", "!/root/.ssh/**"}})
	if want := "etc/machine-id etc/ssh/sshd_config root/.profile root/.ssh/authorized_keys var/cache var/cache/man var/cache/man/de var/lib/app/data var/lib/cloud/scripts/y var/log var/log/journal var/log/nginx"; got != want {
		t.Errorf("sealed:\n%s, want\n%s", got, want)
	}
	if id != 0 {
		t.Error("the machine ID is not blank")
	}
	if want := []string{"/etc/hostname", "/etc/machine-id", "/etc/ssh/ssh_host_rsa_key", "/root/.bash_history", "/var/cache/**",
		"/var/lib/cloud/instances/i-1", "/var/lib/dhcp/lease", "/var/lib/systemd/credential.secret", "/var/log/**"}; !slices.Equal(sealed, want) {
		t.Errorf("says that it sealed\n%q, want\n%q", sealed, want)
	}
	for _, o := range []SelectOptions{{Exclude: []string{"a//b"}}, {AllowChanged: []string{"["}}} {
		if _, err := NewSelection(o); err == nil {
			t.Errorf("%+v: taken", o)
		}
	}
}
