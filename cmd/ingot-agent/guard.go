package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"ingot/internal/units"
	"ingot/rollback"
)

// A guard is a process of its own that takes a generation back when nobody
// confirms it in time, whatever became of the network, of sshd, and of the
// process that switched. It is there before the switch begins, is static, and
// needs nothing of the tree that it guards.

const (
	guardTick  = time.Second      // between two looks
	guardStart = 5 * time.Second  // in which it has to be there
	guardIdle  = 30 * time.Second // without the switch that it was started for
	guardLast  = 20 * time.Second // in which one that has to go takes its generation back: systemd waits for 90 s
	guardRetry = 10 * time.Second // between tries of a revert that fails, at first
	guardCalm  = time.Minute      // between later ones
)

// guardFile is locked by the guard while it lives.
const guardFile = ".ingot/guard"

// seen is what a guard finds when it looks.
type seen struct {
	current int  // generation
	onTrial bool // the current one is
	journal bool // a switch is under way, or was interrupted
	busy    bool // somebody holds the lock
}

// duty is what a guard has to do next.
type duty uint8

const (
	dutyWait duty = iota
	dutyRecover
	dutyRevert
	dutyOver
)

// next decides. idle is how long nothing has happened before the switch,
// trial how long the trial has lasted.
func (s seen) next(num int, window, idle, trial time.Duration) duty {
	switch {
	case s.journal && !s.busy:
		return dutyRecover
	case s.journal, s.busy:
		return dutyWait
	case s.current < num && idle < guardIdle:
		return dutyWait
	case s.current != num || !s.onTrial:
		return dutyOver
	case trial < window:
		return dutyWait
	}
	return dutyRevert
}

// guardHere is the guard's whole life.
func guardHere(c *cli.Context) error {
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	dir, num, window := c.String("dir"), c.Int("generation"), c.Duration("window")
	if num < 1 || window <= 0 {
		return usageError{"guard wants --generation and --window"}
	}
	policy, err := policyFrom(c.String("units"))
	if err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(dir, guardFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	// Whoever looks whether it is locked holds it for a moment.
	for tries := 100; unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil; tries-- {
		if tries == 0 {
			return fmt.Errorf("another guard is there: %w", rollback.ErrBusy)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return withNode(dir, func(n *rollback.Node) error {
		g := &guardian{n: n, dir: dir, num: num, window: window, units: policy, started: time.Now(), say: c.App.ErrWriter}
		return g.watch(c.Context)
	})
}

// guardian guards one generation.
type guardian struct {
	// config
	n      *rollback.Node
	dir    string
	num    int
	window time.Duration
	units  units.Policy
	say    io.Writer

	// state
	started time.Time // without the switch
	trial   time.Time // since when it is on trial; zero: it is not yet
	failed  int       // reverts
}

// watch looks until there is nothing left to guard. When it is told to stop
// before, as it is when the machine is shut down, it takes the generation back
// at once: the next boot is not to find it.
func (g *guardian) watch(ctx context.Context) error {
	for {
		wait := guardTick
		switch s := g.look(); s.next(g.num, g.window, time.Since(g.started), g.since(s)) {
		case dutyOver:
			return nil
		case dutyRecover:
			if out, err := g.n.Recover(context.WithoutCancel(ctx)); err != nil {
				fmt.Fprintf(g.say, "guard: %v\n", err)
				wait = guardRetry
			} else {
				fmt.Fprintf(g.say, "guard: whoever switched is gone: %v\n", out)
				if wait = 0; out.Did == rollback.PutBack {
					return nil
				}
			}
		case dutyRevert:
			wait = g.revert(ctx, fmt.Sprintf("nobody confirmed it within %s", g.window))
		case dutyWait:
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return g.last()
		}
	}
}

// last is what a guard does that has to go. Whoever holds the lock now, such as
// the process that reports on the switch, is waited for.
func (g *guardian) last() error {
	for deadline := time.Now().Add(guardLast); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		s := g.look()
		if s.busy {
			continue
		}
		if s.current != g.num || !s.onTrial || g.revert(context.Background(), "its guard was ended before it was confirmed, as in a shutdown") == 0 {
			return nil
		}
	}
	return nil
}

// since is how long the trial has lasted, by this process's own clock where
// it saw the beginning.
func (g *guardian) since(s seen) time.Duration {
	if s.current != g.num || !s.onTrial {
		return 0
	}
	if g.trial.IsZero() {
		g.trial = time.Now()
		cur, err := g.n.Current()
		if left := time.Until(g.until(cur)); err == nil && left < g.window { // it was started again
			g.trial = g.trial.Add(left - g.window)
		}
	}
	return time.Since(g.trial)
}

func (g *guardian) until(cur rollback.Generation) time.Time {
	if cur.Trial == nil {
		return time.Now()
	}
	return cur.Trial.Until
}

func (g *guardian) look() seen {
	var s seen
	cur, err := g.n.Current()
	if err == nil {
		s.current, s.onTrial = cur.Number, cur.OnTrial()
	} else if !errors.Is(err, rollback.ErrNoGeneration) {
		s.busy = true // being renamed, or unreadable: look again
	}
	_, held := holder(g.dir)
	s.busy = s.busy || held
	_, err = os.Lstat(filepath.Join(g.dir, ".ingot/journal"))
	s.journal = !errors.Is(err, os.ErrNotExist)
	return s
}

func (g *guardian) revert(ctx context.Context, why string) (wait time.Duration) {
	gen, err := goBackNow(context.WithoutCancel(ctx), g.n, g.num, why, g.units)
	switch {
	case err == nil:
		fmt.Fprintf(g.say, "guard: generation %d is %s\n", gen.Number, gen.Note)
		return 0
	case errors.Is(err, rollback.ErrNoTrial):
		return 0
	}
	fmt.Fprintf(g.say, "guard: %v\n", err)
	if g.failed++; g.failed < 6 {
		return guardRetry
	}
	return guardCalm
}

// startGuard starts the guard of the generation that comes next and waits
// until it is there: a unit of its own where systemd runs, so that it survives
// whatever becomes of our session; else a process of its own session.
func startGuard(ctx context.Context, dir string, num int, window time.Duration, policy units.Policy) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{self, "guard", "--dir", dir, "--generation", strconv.Itoa(num), "--window", window.String(), "--units", policyText(policy)}
	if err = asUnit(ctx, num, args); err != nil {
		err = asDaemon(dir, args)
	}
	if err != nil {
		return fmt.Errorf("start the guard of generation %d: %w", num, err)
	}
	for deadline := time.Now().Add(guardStart); !guarded(dir); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("start the guard of generation %d: it is not there after %s", num, guardStart)
		}
	}
	return nil
}

// asUnit starts it as a transient unit (systemd-run(1)).
func asUnit(ctx context.Context, num int, args []string) error {
	if _, err := os.Stat("/run/systemd/system"); err != nil { // sd_booted(3)
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, guardStart)
	defer cancel()
	run := append([]string{"--quiet", "--collect", "--no-ask-password", fmt.Sprintf("--unit=ingot-guard-%d", num),
		"--description=reverts a generation of ingot that nobody confirms", "--property=Restart=on-failure", "--property=OOMScoreAdjust=-900", "--"}, args...)
	out, err := exec.CommandContext(ctx, "systemd-run", run...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemd-run: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// asDaemon starts it in a session of its own.
func asDaemon(dir string, args []string) error {
	log, err := os.OpenFile(filepath.Join(dir, guardFile+".log"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Release()
}

// guarded reports whether a guard lives.
func guarded(dir string) bool {
	_, held := lockHolder(filepath.Join(dir, guardFile))
	return held
}

// holder says who changes the tree now.
func holder(dir string) (who string, held bool) {
	return lockHolder(filepath.Join(dir, ".ingot/lock"))
}

// lockHolder says what the holder of a lock file has written into it, when there is one.
func lockHolder(path string) (who string, held bool) {
	f, err := os.Open(path)
	if err != nil {
		return "", false
	}
	defer f.Close()
	if !errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK) {
		return "", false
	}
	text, _ := io.ReadAll(io.LimitReader(f, 4096)) // for people only
	return strings.TrimSpace(string(text)), true
}
