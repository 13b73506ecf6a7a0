package units

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ingot/internal/systemd"
	"ingot/internal/systemd/systemdtest"
)

func texts(list []Done) string {
	var out []string
	for _, d := range list {
		out = append(out, d.String())
	}
	return strings.Join(out, "\n")
}

func TestApply(t *testing.T) {
	units := []Unit{{Name: "app.service", After: []string{"db.service"}}, {Name: "db.service"}, {Name: "dbus.service", Hold: "why"}, {Name: "odd.service"}}
	for _, tt := range []struct {
		name  string
		setup func(*systemdtest.Fake)
		mode  string
		calls string
		want  string
	}{
		{"restart", func(f *systemdtest.Fake) {}, Restart,
			"daemon-reload\ntry-restart -- db.service\ntry-restart -- app.service\ntry-restart -- odd.service",
			"daemon-reload: done: unit files are read again\ntry-restart db.service: done: unit is active\ntry-restart app.service: done: unit is active\ntry-restart odd.service: done: unit is active\ndbus.service: left alone: why"},
		{"reload", func(f *systemdtest.Fake) {}, Reload,
			"daemon-reload\ntry-reload-or-restart -- db.service\ntry-reload-or-restart -- app.service\ntry-reload-or-restart -- odd.service", ""},
		{"report", func(f *systemdtest.Fake) {}, Tell, "", ""},
		{"no daemon-reload, no restart", func(f *systemdtest.Fake) {
			f.Mood(`[ "$1" != daemon-reload ] || { echo "Reload failed" >&2; exit 1; }`)
		}, Restart,
			"daemon-reload",
			"daemon-reload: failed: systemctl daemon-reload: exit status 1: Reload failed\ntry-restart db.service: failed: not tried: the daemon-reload failed\n" +
				"try-restart app.service: failed: not tried: the daemon-reload failed\ntry-restart odd.service: failed: not tried: the daemon-reload failed\ndbus.service: left alone: why"},
		{"one fails", func(f *systemdtest.Fake) {
			f.On("db.service", `sed -i s/=active/=failed/ units/db.service; echo "Job for db.service failed because the control process exited with error code." >&2; exit 1`)
			f.On("odd.service", `sed -i s/=active/=failed/ units/odd.service`)
		}, Restart, "daemon-reload\ntry-restart -- db.service\ntry-restart -- app.service\ntry-restart -- odd.service",
			"daemon-reload: done: unit files are read again\ntry-restart db.service: failed: systemctl try-restart: exit status 1: Job for db.service failed because the control process exited with error code.; unit is failed\n" +
				"try-restart app.service: done: unit is active\ntry-restart odd.service: failed: unit is failed after it\ndbus.service: left alone: why"},
		{"one cannot start again", func(f *systemdtest.Fake) {
			f.Unit("db.service", "LoadState=not-found")
			f.Unit("app.service", "LoadState=masked")
			f.Unit("odd.service", "ActiveState=inactive")
		}, Restart, "daemon-reload",
			"daemon-reload: done: unit files are read again\ntry-restart db.service: failed: unit is not-found: it runs on as it is\ntry-restart app.service: failed: unit is masked: it runs on as it is\n" +
				"try-restart odd.service: done: it does not run any more\ndbus.service: left alone: why"},
		{"one hangs", func(f *systemdtest.Fake) { f.On("db.service", "sleep 600") }, Restart,
			"daemon-reload\ntry-restart -- db.service\ntry-restart -- app.service\ntry-restart -- odd.service",
			"daemon-reload: done: unit files are read again\ntry-restart db.service: failed: systemctl try-restart: not done within 3s: systemd goes on with it\n" +
				"try-restart app.service: done: unit is active\ntry-restart odd.service: done: unit is active\ndbus.service: left alone: why"},
		{"systemd is mute", func(f *systemdtest.Fake) { f.Mood(`[ "$1" != show ] || exit 0`) }, Restart, "daemon-reload",
			"daemon-reload: done: unit files are read again\ntry-restart db.service: failed: systemctl show: it speaks of 0 units instead of one\ntry-restart app.service: failed: systemctl show: it speaks of 0 units instead of one\n" +
				"try-restart odd.service: failed: systemctl show: it speaks of 0 units instead of one\ndbus.service: left alone: why"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := systemdtest.New(t)
			for _, u := range units {
				f.Unit(u.Name)
			}
			tt.setup(f)
			s := Survey{Manager: f.Manager(), Ask: time.Minute, perJob: time.Minute}
			if tt.name == "one hangs" {
				s.perJob = 3 * time.Second
			}
			got := texts(s.Apply(t.Context(), Report{Reload: []string{"x"}, Units: units}, Policy{Restart: tt.mode}))
			if tt.want != "" && got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
			if calls := strings.Join(f.Calls(), "\n"); calls != tt.calls {
				t.Errorf("calls\n%s\nwant\n%s", calls, tt.calls)
			}
		})
	}
}

func TestApplyIsCutShort(t *testing.T) {
	f := systemdtest.New(t)
	for _, u := range []string{"a.service", "b.service"} {
		f.Unit(u)
		f.On(u, "touch begun; sleep 600")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(f.Dir, "begun")); err == nil {
				cancel(errors.New("the window is over"))
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	s := Survey{Manager: f.Manager()}
	got := s.Apply(ctx, Report{Units: []Unit{{Name: "a.service"}, {Name: "b.service"}}}, Policy{Restart: Restart})
	if len(got) != 2 || got[0].OK || got[1].OK || got[1].Why != "not tried: the window is over" || !strings.Contains(got[0].Why, "the window is over") {
		t.Errorf("%s", texts(got))
	}
	if calls := f.Calls(); !slices.Equal(calls, []string{"try-restart -- a.service"}) {
		t.Errorf("%q", calls)
	}
}

// Look and Apply together, on units as systemctl shows them.
func TestLookAndApply(t *testing.T) {
	proc := t.TempDir()
	f := systemdtest.New(t)
	f.Unit("a.service", "FragmentPath=/lib/systemd/system/a.service", "ExecStart={ path=/usr/sbin/a ; argv[]=/usr/sbin/a -f ; ignore_errors=no ; pid=7 }", "NeedDaemonReload=no")
	f.Unit("b.service", "EnvironmentFiles=/etc/default/b (ignore_errors=yes)", "After=a.service basic.target")
	f.Unit("c.service", "ExecStart={ path=/usr/sbin/a ; argv[]=/usr/sbin/a ; ignore_errors=no }", "ActiveState=inactive")
	f.Unit("d.service")
	s := Survey{Proc: proc, Manager: f.Manager()}
	r, err := s.Look(t.Context(), []Change{{Path: "usr/sbin/a", Kind: Replaced}, {Path: "etc/default/b", Kind: Replaced}, {Path: "usr/lib/systemd/system/a.service", Kind: Deleted}})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(r.Lines(), "\n"); got != "needs a daemon-reload: /usr/lib/systemd/system/a.service went\n"+
		"unit a.service: /usr/lib/systemd/system/a.service went; its program /usr/sbin/a changed\nunit b.service: its environment /etc/default/b changed" {
		t.Errorf("got\n%s", got)
	}
	s.Apply(t.Context(), r, Policy{Restart: Restart})
	if calls := f.Calls(); !slices.Equal(calls, []string{"daemon-reload", "try-restart -- a.service", "try-restart -- b.service"}) {
		t.Errorf("%q", calls)
	}
	s.Manager = systemd.Manager{Systemctl: "/nowhere/systemctl"}
	if r, err := s.Look(t.Context(), nil); err != nil || !strings.HasPrefix(strings.Join(r.Lines(), "\n"), "not known: units: no systemctl on this node") {
		t.Errorf("%+v %v", r, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Look(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
