package rollback

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
)

// killEnv names the variables by which TestMain's child learns what to do.
const (
	killOp = "INGOT_TEST_KILL_OP"
	killAt = "INGOT_TEST_KILL_AT"
	killIn = "INGOT_TEST_KILL_IN"
)

// TestMain lets the test binary be the process that is killed.
func TestMain(m *testing.M) {
	if os.Getenv(killOp) != "" {
		os.Exit(victim())
	}
	if status, done := inOwnMounts(); done {
		os.Exit(status)
	}
	os.Exit(m.Run())
}

// victim runs one operation and kills itself with SIGKILL at one point of it.
func victim() int {
	n, err := Open(os.Getenv(killIn), nil)
	if err != nil {
		return 3
	}
	at, _ := strconv.Atoi(os.Getenv(killAt))
	seen := 0
	n.sys.hook = func(string, string, bool) error {
		if seen++; seen == at {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // the signal is on its way
		}
		return nil
	}
	switch os.Getenv(killOp) {
	case "recover":
		_, err = n.Recover(bg())
	case "push":
		err = pushSome(n)
	case "back":
		err = backSome(n)
	case "plan":
		err = planNothing(n)
	case "rollback":
		_, err = n.Rollback(bg(), 0, Policy{}, "victim")
	}
	if err != nil {
		os.Stderr.WriteString(err.Error())
		return 4
	}
	return 0
}

// killed runs a victim and reports whether the signal got it.
func killed(t *testing.T, w *world, op string, at int) bool {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killOp+"="+op, killIn+"="+w.dir, killAt+"="+strconv.Itoa(at))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		t.Fatalf("%s at point %d: %v: %s", op, at, err, stderr.String())
	}
	return false
}

// TestSIGKILL kills real processes, at points spread over a rollback there
// and back, and their recoveries too.
func TestSIGKILL(t *testing.T) {
	w := newWorld(t, 31, 120, 90)
	n := w.node()
	_, err := push(n, w.goal(), w.src)
	ok(t, err)
	c := &campaign{w: w, op: backOp}
	total := c.count()
	kills := 12
	if long() {
		kills = total
	}
	for k := range kills {
		at := 1 + k*total/kills
		n := open(t, w.dir)
		ok(t, n.clearStages(""))
		was := c.state("before")
		before, err := n.Current()
		ok(t, err)
		if !killed(t, w, "rollback", at) {
			t.Fatalf("point %d of %d was not reached", at, total)
		}
		for rat := 1; killed(t, w, "recover", rat); rat += 7 {
		}
		c.points++
		c.judge("SIGKILL", at, was, before)
	}
	if c.undone == 0 {
		t.Error("no kill came before the commit")
	}
	t.Logf("%d kills of %d points: %d forward, %d undone", kills, total, c.forward, c.undone)
}
