// Package systemdtest is a systemctl for tests, whose units are files and which has moods.
package systemdtest

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ingot/internal/systemd"
)

// Fake is a directory with a program `systemctl`. For each call it adds a line to the file `log`, then runs the shell
// code in `mood`, then does what is asked: `show` prints `units/NAME`, other verbs run `on/NAME`.
type Fake struct {
	Dir string

	t testing.TB
}

const program = `#!/bin/sh
cd "${0%/*}" || exit 1
while :; do
	case $1 in
	--no-pager|--no-ask-password) shift ;;
	*) break ;;
	esac
done
echo "$*" >> log
[ ! -f mood ] || . ./mood
verb=$1
shift
case $verb in
show)
	shift 2
	case $1 in
	'*'*) cd units && set -- $1 && cd .. ;;
	esac
	for u; do
		if [ -f "units/$u" ]; then
			cat "units/$u"
		else
			printf 'Id=%s\nLoadState=not-found\nActiveState=inactive\nSubState=dead\n' "$u"
		fi
		echo
	done
	;;
daemon-reload) ;;
*)
	shift
	for u; do
		[ ! -f "on/$u" ] || . "./on/$u"
	done
	;;
esac
`

// New makes a Fake without units.
func New(t testing.TB) *Fake {
	t.Helper()
	f := &Fake{Dir: t.TempDir(), t: t}
	for _, d := range []string{"units", "on"} {
		if err := os.Mkdir(filepath.Join(f.Dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f.write("systemctl", program, 0o755)
	return f
}

// Manager asks the Fake.
func (f *Fake) Manager() systemd.Manager {
	return systemd.Manager{Systemctl: filepath.Join(f.Dir, "systemctl")}
}

// Unit sets the properties of a unit, lines KEY=VALUE; those that every unit has come by themselves.
func (f *Fake) Unit(name string, properties ...string) {
	f.t.Helper()
	lines := []string{"Id=" + name, "Names=" + name}
	for _, d := range []string{"LoadState=loaded", "ActiveState=active"} {
		if key, _, _ := strings.Cut(d, "="); !strings.Contains("\n"+strings.Join(properties, "\n"), "\n"+key+"=") {
			lines = append(lines, d)
		}
	}
	f.write("units/"+name, strings.Join(append(lines, properties...), "\n")+"\n", 0o644)
}

// Mood sets shell code that each call runs first; $1 is the verb.
func (f *Fake) Mood(code string) {
	f.t.Helper()
	f.write("mood", code+"\n", 0o644)
}

// On sets shell code that a verb which changes the unit runs; $verb is the verb.
func (f *Fake) On(unit, code string) {
	f.t.Helper()
	f.write("on/"+unit, code+"\n", 0o644)
}

// Calls are the arguments of all calls so far but for `show`, the options that every call has aside.
func (f *Fake) Calls() []string {
	f.t.Helper()
	b, err := os.ReadFile(filepath.Join(f.Dir, "log"))
	if err != nil && !os.IsNotExist(err) {
		f.t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSuffix(line, "\n"); !strings.HasPrefix(line, "show ") {
			out = append(out, line)
		}
	}
	return out
}

// write writes a file that is whole when it appears, with no process forked meanwhile: it would inherit the open
// file, and a program that is open for writing cannot be executed (ETXTBSY of execve(2)).
func (f *Fake) write(name, text string, mode os.FileMode) {
	f.t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	path := filepath.Join(f.Dir, name)
	err := os.WriteFile(path+".new", []byte(text), mode)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}
