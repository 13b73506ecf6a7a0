package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/imager/wire"
	"ingot/rollback"
)

func TestGuardDuty(t *testing.T) {
	const num, window = 3, time.Minute
	for _, c := range []struct {
		name        string
		seen        seen
		idle, trial time.Duration
		want        duty
	}{
		{"before the switch", seen{current: 2}, time.Second, 0, dutyWait},
		{"a switch that never came", seen{current: 2}, guardIdle, 0, dutyOver},
		{"the switch is under way", seen{current: 2, journal: true, busy: true}, time.Hour, 0, dutyWait},
		{"whoever switched is gone", seen{current: 2, journal: true}, 0, 0, dutyRecover},
		{"committed, and whoever tidied up is gone", seen{current: 3, onTrial: true, journal: true}, 0, time.Hour, dutyRecover},
		{"on trial", seen{current: 3, onTrial: true}, time.Hour, window - 1, dutyWait},
		{"the time is up", seen{current: 3, onTrial: true}, time.Hour, window, dutyRevert},
		{"the time is up, but somebody is at work", seen{current: 3, onTrial: true, busy: true}, 0, window, dutyWait},
		{"confirmed", seen{current: 3}, 0, 0, dutyOver},
		{"taken back by somebody else", seen{current: 4}, 0, window, dutyOver},
		{"superseded by another trial", seen{current: 4, onTrial: true}, 0, window, dutyOver},
	} {
		if got := c.seen.next(num, window, c.idle, c.trial); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// A guard that is started again goes on with what is left of the time.
func TestGuardStartedAgain(t *testing.T) {
	g := &guardian{num: 2, window: time.Minute}
	dir := t.TempDir()
	m, src := treeOf(map[string]string{"motd": "one"})
	if _, err := pushTo(t, dir, wire.Request{}, m, src, nil); err != nil {
		t.Fatal(err)
	}
	n, err := rollback.Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	n.Now = func() time.Time { return time.Now().Add(-40 * time.Second) } // that long ago it was switched
	m, src = treeOf(map[string]string{"motd": "two"})
	p, err := n.Plan(t.Context(), rollback.Target{Manifest: m})
	if err != nil {
		t.Fatal(err)
	}
	p.Try(g.window)
	if err := n.Stage(t.Context(), p, src); err != nil {
		t.Fatal(err)
	}
	made, err := n.Switch(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	g.n, g.num = n, made.Number
	if since := g.since(seen{current: g.num, onTrial: true}); since < 39*time.Second || since > 50*time.Second {
		t.Errorf("the trial has lasted %s, want 40 s", since)
	}
}

// Who looks whether a lock is held must not keep it from who wants it.
func TestLockHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if _, held := lockHolder(path); held {
		t.Error("a file that is not there is held")
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("push, process 1\n"); err != nil {
		t.Fatal(err)
	}
	if _, held := lockHolder(path); held {
		t.Error("a file that nobody has locked is held")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	if who, held := lockHolder(path); !held || who != "push, process 1" {
		t.Errorf("held %v by %q", held, who)
	}
}
