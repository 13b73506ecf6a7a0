package systemd_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"ingot/internal/command"
	"ingot/internal/systemd"
	"ingot/internal/systemd/systemdtest"
)

func TestShow(t *testing.T) {
	f := systemdtest.New(t)
	f.Unit("a.service", "ExecStart={ path=/bin/a ; }", "ExecStart={ path=/bin/b ; }", "Empty=")
	f.Unit("b.socket", "ActiveState=failed")
	got, err := f.Manager().Show(t.Context(), time.Minute, []string{"Id", "ExecStart"}, "b.socket", "c.service", "a.service")
	if err != nil || len(got) != 3 {
		t.Fatalf("%v %v", got, err)
	}
	if got[0]["ActiveState"] != "failed" || got[1]["LoadState"] != "not-found" || got[2]["ExecStart"] != "{ path=/bin/a ; }\n{ path=/bin/b ; }" {
		t.Errorf("%q", got)
	}
	if all, err := f.Manager().Show(t.Context(), time.Minute, []string{"Id"}, "*"); err != nil || len(all) != 2 {
		t.Errorf("%v %v", all, err)
	}
}

func TestMoods(t *testing.T) {
	for name, tt := range map[string]struct{ mood, want string }{
		"broken": {`echo "Failed to connect to bus: No such file or directory" >&2; exit 1`, "systemctl show: exit status 1: Failed to connect to bus: No such file or directory"},
		"silent": {"exit 4", "systemctl show: exit status 4"},
		"slow":   {"sleep 600", "systemctl show: not done within 300ms"},
		"killed": {"kill -SEGV $$", "systemctl show: signal: segmentation fault"},
		"noisy":  {"exec yes 0123456789012345678901234567890123456789 | head -c 40000000", "systemctl show: printed more than"},
	} {
		f := systemdtest.New(t)
		f.Mood(tt.mood)
		limit := time.Minute
		if name == "slow" {
			limit = 300 * time.Millisecond
		}
		_, err := f.Manager().Show(t.Context(), limit, []string{"Id"}, "a.service")
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
		var le *command.LimitError
		if errors.As(err, &le) != (name == "slow") {
			t.Errorf("%s: %#v", name, err)
		}
	}
	m := systemd.Manager{Systemctl: "/nowhere/systemctl"}
	if err := m.Do(t.Context(), time.Minute, "daemon-reload"); !errors.Is(err, systemd.ErrMissing) {
		t.Errorf("missing: %v", err)
	}
}

func TestDo(t *testing.T) {
	f := systemdtest.New(t)
	f.On("b.service", "exit 5")
	if err := f.Manager().Do(t.Context(), time.Minute, "try-restart", "a.service"); err != nil {
		t.Error(err)
	}
	if err := f.Manager().Do(t.Context(), time.Minute, "try-restart", "b.service"); err == nil {
		t.Error("no error")
	}
	if err := f.Manager().Do(t.Context(), time.Minute, "daemon-reload"); err != nil {
		t.Error(err)
	}
	if got := f.Calls(); !slices.Equal(got, []string{"try-restart -- a.service", "try-restart -- b.service", "daemon-reload"}) {
		t.Errorf("%q", got)
	}
}

func TestNames(t *testing.T) {
	for unit, want := range map[string][2]string{
		"a.service": {".service", ""}, "getty@tty1.service": {".service", "getty@.service"}, "getty@.service": {".service", ""},
		"a@1.2.socket": {".socket", "a@.socket"}, "a": {"", ""}, "a@b": {"", ""}, "a.conf": {"", ""}, "-.mount": {".mount", ""},
	} {
		if got := [2]string{systemd.Suffix(unit), systemd.Template(unit)}; got != want {
			t.Errorf("%s: %q", unit, got)
		}
	}
}

func FuzzParseShow(f *testing.F) {
	for _, s := range []string{"", "A=1\nB=2\n\nA=3\n", "A=1\nA=2", "\n\n\n", "=x\nno\nA==\n", "A=1\r\n\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := systemd.ParseShow(b)
		var again strings.Builder
		for _, p := range got {
			if len(p) == 0 {
				t.Error("a unit without properties")
			}
			for _, k := range slices.Sorted(maps.Keys(p)) {
				for v := range strings.SplitSeq(p[k], "\n") {
					fmt.Fprintf(&again, "%s=%s\n", k, v)
				}
			}
			again.WriteString("\n")
		}
		if twice := systemd.ParseShow([]byte(again.String())); !slices.EqualFunc(got, twice, maps.Equal) {
			t.Errorf("%q: %q, then %q", b, got, twice)
		}
	})
}

func FuzzCheckName(f *testing.F) {
	for _, s := range []string{"", "a.service", "a@b.service", "@.service", "a@.socket", "-.mount", ".service", "a b.service", "--x.service"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if systemd.CheckName(s) == nil && (systemd.Suffix(s) == "" || len(s) > 255 || strings.ContainsAny(s, " \n/*?[")) {
			t.Errorf("%q is taken", s)
		}
	})
}
