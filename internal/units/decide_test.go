package units

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"ingot/internal/command"
)

// running makes a unit that is active.
func running(name string, more ...func(*state)) state {
	s := state{name: name, names: []string{name}, load: "loaded", active: "active", killMode: "control-group"}
	for _, m := range more {
		m(&s)
	}
	return s
}

func replaced(paths ...string) *changed {
	var list []Change
	for _, p := range paths {
		list = append(list, Change{Path: p, Kind: Replaced})
	}
	return newChanged(list)
}

func TestDecide(t *testing.T) {
	for _, tt := range []struct {
		name    string
		changed *changed
		facts   facts
		want    string // Lines
	}{
		{"nothing", replaced("etc/motd"), facts{states: []state{running("a.service")}, elsewhere: 2, kernel: 90}, "2 processes of containers were not looked at"},
		{"stale program and library", replaced(), facts{
			processes: []Process{{PID: 8, Name: "nginx", Unit: "nginx.service", Runs: "/usr/sbin/nginx"}, {PID: 9, Name: "w", Unit: "nginx.service", Maps: []string{"/a", "/b"}, More: 2}},
			states:    []state{running("nginx.service")},
		}, "unit nginx.service: process 8 (nginx) runs the old /usr/sbin/nginx; process 9 (w) uses the old /a, /b and 2 more"},
		{"many processes", replaced(), facts{processes: many("a.service", 7)},
			"unit a.service: process 100 (p) runs the old /p; process 101 (p) runs the old /p; process 102 (p) runs the old /p; process 103 (p) runs the old /p; and 3 more reasons"},
		{"logins", replaced(), facts{processes: []Process{{PID: 5, Name: "bash", Unit: "session-1.scope", Runs: "/usr/bin/bash"}, {PID: 6, Name: "x", Maps: []string{"/y"}}}},
			"process 5 (bash) runs the old /usr/bin/bash, of session-1.scope\nprocess 6 (x) uses the old /y, of no unit"},
		{"process 1", replaced(), facts{processes: []Process{{PID: 1, Name: "systemd", Unit: "init.scope", Maps: []string{"/usr/lib/libc.so.6"}}}},
			"needs a reboot: process 1 (systemd) uses the old /usr/lib/libc.so.6"},
		{"the bus", replaced(), facts{processes: []Process{{PID: 7, Name: "dbus-daemon", Unit: "dbus.service", Runs: "/usr/bin/dbus-daemon"}}},
			"needs a reboot: dbus.service is concerned and not restarted: all that speaks on the bus would have to be restarted with it\n" +
				"unit dbus.service: not restarted by itself, all that speaks on the bus would have to be restarted with it: process 7 (dbus-daemon) runs the old /usr/bin/dbus-daemon"},
		{"own unit", replaced("usr/sbin/sshd"), facts{own: "ssh.service", states: []state{running("ssh.service", func(s *state) { s.programs = []string{"/usr/sbin/sshd"} })}},
			"unit ssh.service: not restarted by itself, ingot runs in it: its program /usr/sbin/sshd changed"},
		{"sshd that takes the logins along", replaced("sbin/sshd"), facts{states: []state{running("ssh.service", func(s *state) { s.programs = []string{"/usr/sbin/sshd"} })}},
			"unit ssh.service: not restarted by itself, logins may end with it (KillMode=control-group): its program /usr/sbin/sshd changed"},
		{"sshd", replaced("sbin/sshd"), facts{states: []state{running("ssh.service", func(s *state) { s.programs = []string{"/usr/sbin/sshd"}; s.killMode = "process" })}},
			"unit ssh.service: its program /usr/sbin/sshd changed"},
		{"a script and an environment", replaced("opt/app.py", "etc/default/app"), facts{states: []state{
			running("app.service", func(s *state) {
				s.programs = []string{"/usr/bin/python3", "/opt/app.py"}
				s.envFiles = []string{"/etc/default/app"}
			}),
			running("dead.service", func(s *state) { s.programs = []string{"/opt/app.py"}; s.active = "inactive" }),
		}}, "unit app.service: its program /opt/app.py changed; its environment /etc/default/app changed"},
		{"unit files", replaced("lib/systemd/system/a.service", "etc/systemd/system/t@.service.d/x.conf", "usr/lib/systemd/system/off.service"), facts{states: []state{
			running("a.service"), running("t@1.service"), running("t@2.service"), running("other.service"),
			running("off.service", func(s *state) { s.active = "failed" }),
		}}, "needs a daemon-reload: /lib/systemd/system/a.service changed\nneeds a daemon-reload: /etc/systemd/system/t@.service.d/x.conf changed\n" +
			"needs a daemon-reload: /usr/lib/systemd/system/off.service changed\n" +
			"unit a.service: /lib/systemd/system/a.service changed\nunit t@1.service: /etc/systemd/system/t@.service.d/x.conf changed\nunit t@2.service: /etc/systemd/system/t@.service.d/x.conf changed"},
		{"a file under another name", replaced("lib/systemd/system/real.service"), facts{states: []state{running("a.service", func(s *state) { s.fragment = "/usr/lib/systemd/system/real.service" })}},
			"needs a daemon-reload: /lib/systemd/system/real.service changed\nunit a.service: /lib/systemd/system/real.service changed"},
		{"wanted", newChanged([]Change{{Path: "etc/systemd/system/a.target.wants/x.service", Kind: Added}, {Path: "etc/systemd/system/a.target.wants/y.service", Kind: Deleted}}),
			facts{states: []state{running("x.service"), running("y.service")}},
			"needs a daemon-reload: x.service is wanted by a.target from the next boot on\nneeds a daemon-reload: y.service is no longer wanted by a.target"},
		{"a socket", replaced("etc/systemd/system/a.socket"), facts{states: []state{running("a.socket")}},
			"needs a daemon-reload: /etc/systemd/system/a.socket changed\nunit a.socket: not restarted by itself, a socket is not restarted: /etc/systemd/system/a.socket changed"},
		{"systemd knows better", replaced(), facts{states: []state{running("a.service", func(s *state) { s.reload = true }), running("b.service", func(s *state) { s.reload = true })}},
			"needs a daemon-reload: systemd sees that files of a.service changed"},
		{"a unit that refuses", replaced("usr/sbin/auditd"), facts{states: []state{running("auditd.service", func(s *state) { s.programs = []string{"/sbin/auditd"}; s.refuses = true })}},
			"needs a reboot: auditd.service is concerned and not restarted: it refuses to be restarted by hand\n" +
				"unit auditd.service: not restarted by itself, it refuses to be restarted by hand: its program /sbin/auditd changed"},
		{"kernel", replaced("boot/vmlinuz-6.1", "usr/lib/modules/6.1/a.ko", "usr/lib/modules/6.1/b.ko"), facts{release: "6.1"},
			"needs a reboot: a kernel changed: /boot/vmlinuz-6.1\nneeds a reboot: modules of the running kernel 6.1 changed"},
		{"blind", replaced("usr/sbin/x"), facts{notes: []string{"units: no systemctl on this node"}}, "not known: units: no systemctl on this node"},
		{"hostile names", replaced(), facts{processes: []Process{{PID: 5, Name: "a\x1b[2J\nb", Runs: "/usr/\x07" + strings.Repeat("x", 300)}}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := decide(tt.changed, tt.facts)
			lines := r.Lines()
			for _, l := range lines {
				if l != command.Line(l) {
					t.Errorf("not a line: %q", l)
				}
			}
			if tt.want == "" {
				return
			}
			var want []string
			for l := range strings.SplitSeq(tt.want, "\n") {
				want = append(want, command.Line(l))
			}
			if !slices.Equal(lines, want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
			}
			raw, err := json.Marshal(r)
			var again Report
			if err == nil {
				err = json.Unmarshal(raw, &again)
			}
			if err != nil || !reflect.DeepEqual(r, again) {
				t.Errorf("JSON: %v\n%+v\n%+v", err, r, again)
			}
		})
	}
}

func many(unit string, n int) []Process {
	var out []Process
	for i := range n {
		out = append(out, Process{PID: 100 + i, Name: "p", Unit: unit, Runs: "/p"})
	}
	return out
}

func TestAReportIsBounded(t *testing.T) {
	var list []Change
	for i := range 3000 {
		list = append(list, Change{Path: fmt.Sprintf("etc/systemd/system/u%d.service", i), Kind: Replaced})
	}
	r := decide(newChanged(list), facts{processes: many("", 3000)})
	if len(r.Loose) != maxLoose || r.More != 3000-maxLoose || len(r.Reload) > maxLoose {
		t.Errorf("%d loose, %d more, %d reloads", len(r.Loose), r.More, len(r.Reload))
	}
}

func TestPlan(t *testing.T) {
	r := Report{Reload: []string{"x"}, Units: []Unit{
		{Name: "app.service", After: []string{"db@1.service", "gone.service"}}, {Name: "dbus.service", Hold: "why"}, {Name: "db@1.service", After: []string{"z.service"}},
		{Name: "loop1.service", After: []string{"loop2.service"}}, {Name: "loop2.service", After: []string{"loop1.service"}}, {Name: "z.service"},
	}}
	show := func(p Policy) string {
		var out []string
		for _, a := range r.Plan(p) {
			out = append(out, a.String())
		}
		return strings.Join(out, "\n")
	}
	for _, tt := range []struct {
		policy Policy
		want   string
	}{
		{Policy{}, ""}, {Policy{Restart: Tell}, ""}, {Policy{Restart: "always"}, ""},
		{Policy{Restart: Restart}, "daemon-reload\ntry-restart z.service\ntry-restart db@1.service\ntry-restart app.service\ntry-restart loop2.service\ntry-restart loop1.service\ndbus.service: left alone: why"},
		{Policy{Restart: Reload, Except: []string{"db@*", "loop*"}}, "daemon-reload\ntry-reload-or-restart z.service\ntry-reload-or-restart app.service\n" +
			"db@1.service: left alone: restart_except of its profile\ndbus.service: left alone: why\nloop2.service: left alone: restart_except of its profile\nloop1.service: left alone: restart_except of its profile"},
		{Policy{Restart: Restart, Except: []string{"["}}, "daemon-reload\nz.service: left alone: restart_except of its profile\ndb@1.service: left alone: restart_except of its profile\napp.service: left alone: restart_except of its profile\n" +
			"dbus.service: left alone: why\nloop2.service: left alone: restart_except of its profile\nloop1.service: left alone: restart_except of its profile"},
	} {
		if got := show(tt.policy); got != tt.want {
			t.Errorf("%+v:\n%s\nwant\n%s", tt.policy, got, tt.want)
		}
	}
	if got := (Report{}).Plan(Policy{Restart: Restart}); got != nil {
		t.Errorf("of nothing: %v", got)
	}
}

func TestHeldBack(t *testing.T) {
	for unit, held := range map[string]bool{
		"init.scope": true, "dbus.service": true, "dbus-broker.service": true, "systemd-logind.service": true, "user@1000.service": true,
		"getty@tty1.service": true, "serial-getty@ttyS0.service": true, "gdm3.service": true, "lightdm.service": true, "networking.service": true,
		"x.mount": true, "x.socket": true, "x.target": true, "x.slice": true, "session-1.scope": true, "own.service": true,
		"nginx.service": false, "cron.timer": false, "x.path": false, "systemd-journald.service": false, "mydbus.service": false, "user-thing.service": false,
	} {
		if why, _ := heldBack(unit, nil, "own.service"); (why != "") != held {
			t.Errorf("%s: %q", unit, why)
		}
	}
}

func TestPatternsAndModes(t *testing.T) {
	for p, good := range map[string]bool{
		"nginx.service": true, "postgresql@*": true, "a?.timer": true, "[ab].service": true,
		"nginx": false, "": false, "[": false, "a b.service": false, "a/b.service": false,
	} {
		if err := CheckPattern(p); (err == nil) != good {
			t.Errorf("%q: %v", p, err)
		}
	}
	if err := CheckMode("restrat"); err == nil || !strings.Contains(err.Error(), `did you mean "restart"?`) {
		t.Error(err)
	}
	if CheckMode("") != nil || CheckMode(Reload) != nil {
		t.Error("good modes are refused")
	}
}
