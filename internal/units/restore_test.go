package units

import (
	"context"
	"slices"
	"strings"
	"testing"

	"ingot/internal/systemd/systemdtest"
)

func TestRunning(t *testing.T) {
	f := systemdtest.New(t)
	f.Unit("app.service")
	f.Unit("exited.service", "SubState=exited")
	f.Unit("down.service", "ActiveState=inactive")
	f.Unit("bad.service", "ActiveState=failed")
	f.Unit("oneshot.service", "ActiveState=activating")
	f.Unit("user@0.service")
	f.Unit("user-runtime-dir@0.service")
	f.Unit("systemd-logind.service")
	f.Unit("refuses.service", "RefuseManualStart=yes")
	f.Unit("gone.service", "LoadState=not-found")
	f.Unit("app.timer")
	s := Survey{Manager: f.Manager()}
	got, err := s.Running(t.Context())
	if err != nil || strings.Join(got, " ") != "app.service exited.service systemd-logind.service" {
		t.Errorf("%q, %v", got, err)
	}
	f.Mood(`echo "Failed to connect to bus" >&2; exit 1`)
	if got, err := s.Running(t.Context()); err == nil || !strings.Contains(err.Error(), "connect to bus") {
		t.Errorf("%q, %v", got, err)
	}
}

func TestRestore(t *testing.T) {
	const up = `[ "$verb" != start ] || sed -i s/=failed/=active/ units/$u`
	names := []string{"app.service", "db.service", "fine.service", "gone.service"}
	for _, tt := range []struct {
		name  string
		names []string
		setup func(*systemdtest.Fake)
		calls string
		want  string
	}{
		{"what failed is started", names, func(f *systemdtest.Fake) {}, "reset-failed -- app.service db.service\nstart -- app.service db.service",
			"start app.service: done: unit is active\nstart db.service: done: unit is active"},
		{"all run", names, func(f *systemdtest.Fake) { f.Unit("app.service"); f.Unit("db.service") }, "", ""},
		{"none ran", nil, func(f *systemdtest.Fake) {}, "", ""},
		{"its file came back", names, func(f *systemdtest.Fake) { f.Unit("db.service", "ActiveState=failed", "NeedDaemonReload=yes") },
			"daemon-reload\nreset-failed -- app.service db.service\nstart -- app.service db.service",
			"start app.service: done: unit is active\nstart db.service: done: unit is active"},
		{"one stays down", names, func(f *systemdtest.Fake) {
			f.On("db.service", `[ "$verb" != start ] || { echo "Job for db.service failed." >&2; exit 1; }`)
		},
			"reset-failed -- app.service db.service\nstart -- app.service db.service",
			"start app.service: done: unit is active\nstart db.service: failed: systemctl start: exit status 1: Job for db.service failed.; unit is failed"},
		{"systemd is mute", names, func(f *systemdtest.Fake) { f.Mood(`echo "Failed to connect to bus" >&2; exit 1`) }, "show",
			"start what ran before: failed: systemctl show: exit status 1: Failed to connect to bus"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := systemdtest.New(t)
			for _, u := range []string{"app.service", "db.service"} {
				f.Unit(u, "ActiveState=failed")
				f.On(u, up)
			}
			f.Unit("fine.service")
			tt.setup(f)
			s := Survey{Manager: f.Manager()}
			if got := texts(s.Restore(t.Context(), tt.names)); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
			if tt.calls == "show" {
				return
			}
			if calls := strings.Join(f.Calls(), "\n"); calls != tt.calls {
				t.Errorf("calls\n%s\nwant\n%s", calls, tt.calls)
			}
		})
	}
}

// A restore whose time is over says so.
func TestRestoreIsCutShort(t *testing.T) {
	f := systemdtest.New(t)
	f.Unit("app.service", "ActiveState=failed")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := Survey{Manager: f.Manager()}
	got := s.Restore(ctx, []string{"app.service"})
	if len(got) != 1 || got[0].OK || slices.ContainsFunc(f.Calls(), func(c string) bool { return strings.HasPrefix(c, "start") }) {
		t.Errorf("%s, %q", texts(got), f.Calls())
	}
}
