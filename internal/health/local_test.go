package health

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ingot/internal/systemd"
	"ingot/internal/systemd/systemdtest"
)

func TestExec(t *testing.T) {
	for script, want := range map[string]struct {
		ok  bool
		why string
	}{
		"exit 0":                                {true, "exit status 0"},
		"echo all well; true":                   {true, "all well"},
		"echo a; echo b >&2; exit 7":            {false, "exit status 7: b"},
		"exit 7":                                {false, "exit status 7"},
		"kill -9 $$":                            {false, "signal: killed"},
		`printf 'x\033[2J\a\000y\r\n\n'; false`: {false, "exit status 1: x?"},
		"no-such-program-here":                  {false, "exit status 127: "},
		"read x && echo $x":                     {false, "exit status 1"},
		"pwd":                                   {true, "/"},
		`test "$INGOT_IMAGE/$INGOT_TIMEOUT" = web:7/30 && echo "$INGOT_CHECK"`:    {true, `exec test "$INGOT_IMAGE/$INGOT_TIMEOUT"`},
		"yes $(printf %05000d 1) | head -c 3000000; echo; echo the end; exit 2":   {false, "exit status 2: the end"},
		`printf '%s' "$(yes long | head -c 100000 | tr '\n' ' ')"; exit 1`:        {false, "exit status 1: "},
		"trap '' TERM; (trap '' TERM; sleep 600) & echo started; exit 0":          {true, "started"},
		"echo \"$HOME $(id -u) $LANG\" | grep -q '^/root [0-9]* C.UTF-8$' && pwd": {true, "/"},
	} {
		r := Runner{Env: []string{"INGOT_IMAGE=web:7"}}
		got := r.Run(t.Context(), []Check{{Exec: script, Timeout: 30 * time.Second, RetryFor: time.Millisecond}})[0]
		if got.OK != want.ok || !strings.HasPrefix(got.Why, want.why) || len(got.Why) > 200 || strings.ContainsAny(got.Why, "\n\r\a\x1b\x00") {
			t.Errorf("%s: %v %q", script, got.OK, got.Why)
		}
	}
}

func TestExecAtItsLimit(t *testing.T) {
	for name, script := range map[string]string{
		"hangs":          "echo waiting; exec sleep 600",
		"ignores":        "trap '' TERM INT HUP; echo waiting; while :; do sleep 600; done",
		"prints":         "while :; do echo waiting; done",
		"child ignores":  "(trap '' TERM; exec sleep 600) & echo waiting; wait",
		"stopped itself": "echo waiting; kill -STOP $$",
	} {
		begun := time.Now()
		got := (&Runner{}).Run(t.Context(), []Check{{Exec: script, Timeout: 300 * time.Millisecond, RetryFor: time.Millisecond}})[0]
		if got.OK || got.Why != "not done within 300ms: waiting" || time.Since(begun) > 20*time.Second {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// A node that lost its shell, or the libraries of it, fails its checks and says so.
func TestExecWithoutShell(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad")
	syscall.ForkLock.RLock()
	err := os.WriteFile(bad, []byte("\x7fELF no program at all"), 0o755)
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	for shell, want := range map[string]string{
		filepath.Join(dir, "gone"): `start "` + dir + `/gone": no such file or directory`,
		dir:                        `start "` + dir + `": permission denied`,
		bad:                        `start "` + bad + `": exec format error`,
	} {
		r := Runner{Shell: shell}
		if got := r.Run(t.Context(), []Check{{Exec: "true", RetryFor: time.Millisecond}})[0]; got.OK || got.Why != want {
			t.Errorf("%s: %+v", shell, got)
		}
	}
}

// The children of a check that is cut short die with it.
func TestExecCutShort(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "pid")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(file); err == nil {
				cancel()
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	got := (&Runner{}).Run(ctx, []Check{{Exec: "sleep 600 & echo $! > " + file + ".new; mv " + file + ".new " + file + "; wait", Timeout: time.Minute}})[0]
	if got.OK || got.Why != "cut short: context canceled" {
		t.Errorf("%+v", got)
	}
	b, _ := os.ReadFile(file)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			break
		}
		if time.Now().After(end) {
			syscall.Kill(pid, syscall.SIGKILL)
			t.Fatal("the child lives on")
		}
	}
}

func TestUnit(t *testing.T) {
	up := []string{"SubState=running", "Result=success", "InvocationID=aa", "NRestarts=0"}
	for name, tt := range map[string]struct {
		props []string
		mood  string // of the fake; n is the number of calls
		ok    bool
		why   string
	}{
		"active":         {up, "", true, "unit is active (running)"},
		"restarted once": {append([]string{"NRestarts=3"}, up[:3]...), "", true, "unit is active (running), restarted 3 times before"},
		"a mount":        {[]string{"SubState=mounted"}, "", true, "unit is active (mounted)"},
		"failed":         {[]string{"ActiveState=failed", "SubState=failed", "Result=exit-code"}, "", false, "unit is failed (failed, Result=exit-code)"},
		"restarting":     {[]string{"ActiveState=activating", "SubState=auto-restart", "Result=signal"}, "", false, "unit is activating (auto-restart, Result=signal)"},
		"reloading":      {[]string{"ActiveState=reloading", "SubState=reload"}, "", false, "unit is reloading (reload)"},
		"stopped":        {[]string{"ActiveState=inactive", "SubState=dead", "Result=success"}, "", false, "unit is inactive (dead)"},
		"masked":         {[]string{"LoadState=masked", "ActiveState=inactive"}, "", false, "unit is masked"},
		"not there":      {nil, "", false, "unit is not-found"},
		"dies":           {up, `[ $n -lt 2 ] || sed -i s/ActiveState=active/ActiveState=failed/ units/x.service`, false, "unit is failed (running)"},
		"flaps":          {up, `[ $n -lt 2 ] || sed -i s/NRestarts=0/NRestarts=1/ units/x.service`, false, "unit flaps: restarted within 10ms (NRestarts 0, then 1)"},
		"started again":  {up, `[ $n -lt 2 ] || sed -i s/=aa/=bb/ units/x.service`, false, "unit flaps: started again within 10ms"},
		"broken":         {up, `echo "System has not been booted with systemd as init system (PID 1). Can't operate." >&2; exit 1`, false, "systemctl show: exit status 1: System has not been booted"},
		"hangs":          {up, "sleep 600", false, "not done within"},
		"hangs later":    {up, "[ $n -lt 2 ] || sleep 600", false, "not done within"},
		"says nothing":   {up, "exit 0", false, "systemctl show: it speaks of 0 units"},
		"says nonsense":  {[]string{"ActiveState="}, "", false, "systemctl show: it says no ActiveState"},
	} {
		t.Run(name, func(t *testing.T) {
			f := systemdtest.New(t)
			if tt.props != nil {
				f.Unit("x.service", tt.props...)
			}
			f.Mood("n=$(grep -c . log)\n" + tt.mood)
			c := Check{Unit: "x.service", Timeout: 30 * time.Second, RetryFor: time.Millisecond}
			r := Runner{Manager: f.Manager(), settle: 10 * time.Millisecond}
			if strings.HasPrefix(name, "hangs") {
				c.Timeout = settle + time.Millisecond
			}
			got := r.Run(t.Context(), []Check{c})[0]
			if got.OK != tt.ok || !strings.Contains(got.Why, tt.why) {
				t.Errorf("%v %q", got.OK, got.Why)
			}
		})
	}
}

// A unit that takes a while to start is waited for.
func TestUnitComesUp(t *testing.T) {
	f := systemdtest.New(t)
	f.Unit("x.service", "ActiveState=activating", "SubState=start")
	f.Mood(`[ $(grep -c . log) -lt 4 ] || sed -i s/activating/active/ units/x.service`)
	r := Runner{Manager: f.Manager(), settle: time.Millisecond, pause: time.Millisecond}
	if got := r.Run(t.Context(), []Check{{Unit: "x.service"}})[0]; !got.OK || got.Tries != 4 {
		t.Errorf("%+v", got)
	}
}

func TestUnitWithoutSystemd(t *testing.T) {
	r := Runner{Manager: systemd.Manager{Systemctl: "/nowhere/systemctl"}}
	got := r.Run(t.Context(), []Check{{Unit: "x.service", RetryFor: time.Millisecond}})[0]
	if got.OK || got.Why != "no systemctl on this node (/nowhere/systemctl)" {
		t.Errorf("%+v", got)
	}
}
