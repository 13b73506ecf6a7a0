package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"ingot/imager/wire"
	"ingot/rollback"
	"ingot/rollback/sides"
)

// How long the parts of a start from a side on trial may take.
const (
	startWait   = 10 * time.Minute // to the end of the system's start
	watchdogMax = 60               // seconds without a sign of the guard until the machine is reset
)

// startSide prepares a side for its init: what both share is mounted, and a
// trial is looked at. A side on trial for which that fails is left at once.
func startSide() error {
	conf, err := sidesHere()
	if conf == nil || err != nil {
		return err
	}
	if err := errors.Join(mountProc(), mountDev()); err != nil {
		return err
	}
	words, _ := os.ReadFile("/proc/cmdline")
	trying := slices.Contains(strings.Fields(string(words)), sides.TryWord)
	leave, err := writable("/")
	if err == nil {
		err = errors.Join(mountShared(conf), leave())
	}
	missing := err != nil
	if err == nil {
		err = atStart(conf, os.Stderr)
	}
	if err != nil && trying { // nobody would guard it
		fmt.Fprintf(os.Stderr, "ingot-agent: side %s is on trial: %v\n", conf.Side, err)
		time.Sleep(3 * time.Second)
		end(unix.LINUX_REBOOT_CMD_RESTART)
	}
	if missing {
		err = errors.Join(err, conf.Hide("/"))
	}
	return err
}

func mountShared(conf *sides.Config) error {
	if err := os.MkdirAll(shared, 0o700); err != nil {
		return err
	}
	path, err := findDevice(conf.Shared, 20*time.Second)
	if err != nil {
		return fmt.Errorf("what the sides share: %w", err)
	}
	check(path, conf.Shared.FSType, os.Stderr)
	if err := mountDevice(conf.Shared, shared, 0, 0); err != nil {
		return fmt.Errorf("what the sides share: %w", err)
	}
	_, err = conf.MountTrees("/")
	return err
}

// check has a file system checked as a boot does it: e2fsck(8), -p. Those of
// other types look after themselves when they are mounted. What it says is for
// people; whether the file system is of use the mount finds out.
func check(path, fstype string, say io.Writer) {
	if !strings.HasPrefix(fstype, "ext") {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), startWait)
	defer cancel()
	out, err := exec.CommandContext(ctx, "/sbin/e2fsck", "-p", path).CombinedOutput()
	var code *exec.ExitError
	if errors.As(err, &code) && code.ExitCode() == 1 { // errors were corrected
		err = nil
	}
	if err != nil {
		fmt.Fprintf(say, "ingot-agent: e2fsck %s: %v: %s\n", path, err, out)
	}
}

// atStart does what a side that starts has to do about a trial.
func atStart(conf *sides.Config, say io.Writer) error {
	t, err := sides.ReadTrial(shared)
	if err != nil || !t.Open() {
		return err
	}
	var env sides.Env
	if err := withEnv(conf, 5*time.Second, func(dir string) (err error) { env, err = conf.ReadEnv(dir); return err }); err != nil {
		fmt.Fprintf(say, "ingot-agent: %v\n", err)
		env = sides.Env{Side: conf.Side}
	}
	act, why := t.AtStart(conf.Side, env)
	switch act {
	case sides.Finish:
		_, err = sides.Change(shared, func(t *sides.Trial) error { t.Ended = time.Now().UTC(); return nil })
	case sides.Guard:
		if _, err = sides.Change(shared, func(t *sides.Trial) error { t.Starts = append(t.Starts, time.Now().UTC()); return nil }); err == nil {
			err = startSideGuard()
		}
	case sides.CameBack:
		err = cameBack(conf, env, why, say)
	}
	return err
}

// sidesNow tells what a node with two sides is at; nil for others, and where
// that cannot be known.
func sidesNow() *wire.Sides {
	conf, err := sidesHere()
	if conf == nil || err != nil {
		return nil
	}
	s := &wire.Sides{Runs: conf.Side}
	_ = withEnv(conf, 0, func(dir string) error {
		env, err := conf.ReadEnv(dir)
		s.Starts, s.Tries = env.Side, env.Try
		return err
	}) // then Starts is empty
	if t, err := sides.ReadTrial(shared); err == nil && t != nil {
		s.Side, s.Generation, s.From, s.Started, s.Open, s.Reason, s.By = t.Side, t.Generation, t.From, len(t.Starts), t.Open(), t.Reason, t.By
	}
	return s
}

// cameBack ends a trial on the side that was there before.
func cameBack(conf *sides.Config, env sides.Env, why string, say io.Writer) error {
	if env.Try != "" {
		if err := withEnv(conf, 0, func(dir string) error { return conf.WriteEnv(dir, sides.Env{Side: conf.Side}) }); err != nil {
			fmt.Fprintf(say, "ingot-agent: %v\n", err)
		}
	}
	n, err := rollback.Open("/", nil)
	if err != nil {
		return err
	}
	defer n.Close()
	n.Boots = true
	t, err := sides.ReadTrial(shared)
	if err != nil {
		return err
	}
	g, err := n.Current()
	if err != nil {
		return err
	}
	if g.Result != "reverted" || g.Of != t.Generation { // else it was recorded by a start that did not come to its end
		g, err = n.Again(context.Background(), t.Generation+1, func(g *rollback.Generation) {
			g.Of, g.Result, g.Reason, g.By = t.Generation, "reverted", why, "ingot-agent"
			g.Note = fmt.Sprintf("side %s came back as side %s", t.Side, conf.Side)
		})
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(say, "ingot-agent: generation %d: %s\n", g.Number, why)
	if err := saveList(n, conf.Side); err != nil {
		return err
	}
	_, err = sides.Change(shared, func(t *sides.Trial) error { t.Ended, t.Reason = time.Now().UTC(), why; return nil })
	return err
}

// startSideGuard starts the guard of this side as a process that init inherits.
func startSideGuard() error {
	c := exec.Command("/proc/self/exe", "guard-side")
	if log, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		defer log.Close()
		c.Stdout, c.Stderr = log, log
	}
	c.Dir = "/"
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.Args[0] = "@ingot-agent" // systemd's last round of kills leaves such alone
	return c.Start()
}

// guardSide is the whole life of a side's guard: it starts the machine anew
// unless the side is confirmed, and keeps a watchdog from doing that only while
// it runs itself.
func guardSide(c *cli.Context) error {
	conf, err := sidesHere()
	if err != nil || conf == nil {
		return err
	}
	signal.Ignore(unix.SIGHUP, unix.SIGTERM, unix.SIGINT, unix.SIGPIPE) // the machine is to be reset if it hangs on its way down
	dog := openWatchdog()
	begun := time.Now()
	for ; ; time.Sleep(time.Second) {
		dog.feed()
		t, err := sides.ReadTrial(shared)
		if err != nil {
			fmt.Fprintf(c.App.ErrWriter, "<3>ingot: %v\n", err)
			if time.Since(begun) > startWait {
				restart()
			}
			continue
		}
		if !t.Open() {
			return dog.release()
		}
		if t.Reason != "" {
			dog.feed()
			restart()
			time.Sleep(90 * time.Second)
			unix.Sync()
			return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		}
		if why := nextOf(c.Context, conf, t, begun); why != "" {
			fmt.Fprintf(c.App.ErrWriter, "<3>ingot: side %s does not stay: %s\n", conf.Side, why)
			_, _ = sides.Change(shared, func(t *sides.Trial) error { t.Reason = why; return nil })
		}
		if t.Up.IsZero() {
			dog.late()
		}
	}
}

// nextOf does what is next in a trial, and says why the side cannot stay.
func nextOf(ctx context.Context, conf *sides.Config, t *sides.Trial, begun time.Time) (why string) {
	note := func(fn func(*sides.Trial)) error {
		_, err := sides.Change(shared, func(t *sides.Trial) error { fn(t); return nil })
		return err
	}
	switch {
	case t.Up.IsZero() || t.Up.Before(t.Starts[len(t.Starts)-1]):
		if up(ctx) {
			_ = note(func(t *sides.Trial) { t.Up = time.Now().UTC() })
		} else if time.Since(begun) > startWait {
			return fmt.Sprintf("its system did not come to the end of its start within %s", startWait)
		}
	case t.Looked.IsZero():
		var what asked
		if err := json.Unmarshal(t.Asked, &what); err != nil {
			return fmt.Sprintf("what is to be looked at cannot be read: %v", err)
		}
		found := look(ctx, wire.Request{Ref: what.Ref, Checks: what.Checks})
		if n, err := rollback.Open("/", nil); err == nil {
			_ = n.Report(t.Generation, found) // for people
			n.Close()
		}
		if why = failures(found); why != "" {
			return why
		}
		_ = note(func(t *sides.Trial) { t.Looked = time.Now().UTC() })
	case t.Window == 0:
		if err := stay(conf, "its start"); err != nil {
			return fmt.Sprintf("the boot loader cannot be told: %v", err)
		}
	case time.Since(t.Up) > t.Window:
		return fmt.Sprintf("nobody confirmed it within %s", t.Window)
	}
	return ""
}

// up reports whether the system has come to the end of its start.
func up(ctx context.Context) bool {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, "systemctl", "is-system-running").Output()
	return slices.Contains([]string{"running", "degraded", "maintenance"}, strings.TrimSpace(string(out)))
}
