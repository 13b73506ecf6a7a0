package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stageEnv tells the program which of its three lives it is in.
const (
	stageEnv    = "INGOT_LAB_STAGE"
	stageInit   = "init"   // process 1 of the namespaces
	stageInside = "inside" // where the rack is
)

// lockFD is the descriptor on which process 1 inherits the lock: the first of ExtraFiles.
const lockFD = 3

// info is what rack.json says.
type info struct {
	PID   int       `json:"pid"`
	Since time.Time `json:"since"`
	Args  []string  `json:"args"`
}

// Inside reports whether this process is in a rack's namespaces.
func Inside() bool { return os.Getenv(stageEnv) == stageInside }

// Enter puts the program into a rack's namespaces: inside it returns true, and the program goes on there.
// Outside it returns false when the program has ended inside (an *ExitError when it failed), or, with
// Detach, when the rack answers.
func Enter(ctx context.Context, o Options) (inside bool, err error) {
	o, err = o.defaults()
	if err != nil {
		return false, err
	}
	switch os.Getenv(stageEnv) {
	case stageInside:
		return true, nil
	case stageInit:
		return false, runInit()
	}
	if os.Geteuid() != 0 {
		return false, fmt.Errorf("start rack %q: namespaces and taps need root", o.Dir)
	}
	if err := outside(ctx, o); err != nil {
		var exit *ExitError
		var running *RunningError
		if errors.As(err, &exit) || errors.As(err, &running) {
			return false, err
		}
		return false, fmt.Errorf("start rack %q: %w", o.Dir, err)
	}
	return false, nil
}

// outside starts process 1 and waits for it.
func outside(ctx context.Context, o Options) error {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return err
	}
	lock, err := takeLock(o.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	cmd := exec.Command("/proc/self/exe", o.Args...)
	cmd.Env = append(os.Environ(), stageEnv+"="+stageInit)
	cmd.ExtraFiles = []*os.File{lock}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if o.Detach {
		return detached(ctx, o, cmd)
	}
	// The signal comes when the thread that started the child ends, so it is kept: prctl(2).
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	done := make(chan error, 1)
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := start(o, cmd)
		started <- err
		if err == nil {
			done <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	return waitFor(ctx, cmd, done)
}

// start starts process 1 and records it.
func start(o Options, cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	b, err := json.Marshal(info{PID: cmd.Process.Pid, Since: time.Now(), Args: o.Args})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.Dir, infoFile), b, 0o644)
}

// waitFor waits for process 1. When ctx ends it is asked to end, and killed when it does not.
func waitFor(ctx context.Context, cmd *exec.Cmd, done <-chan error) error {
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended meanwhile
		select {
		case err = <-done:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill() // likewise
			err = <-done
		}
	}
	return exitError(err)
}

// exitError turns a child's exit status into an *ExitError.
func exitError(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return &ExitError{Code: 128 + int(ws.Signal())}
	}
	return &ExitError{Code: exit.ExitCode()}
}

// detached starts process 1 in a session of its own and waits until the rack answers.
func detached(ctx context.Context, o Options, cmd *exec.Cmd) error {
	log, err := os.Create(filepath.Join(o.Dir, logFile))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, log, log
	cmd.SysProcAttr.Setsid = true
	if err := start(o, cmd); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for tick := time.Tick(50 * time.Millisecond); ; {
		if c, err := Dial(o.Dir); err == nil {
			if _, err := c.Status(ctx); err == nil {
				return nil
			}
		}
		select {
		case err := <-done:
			return fmt.Errorf("it ended at once (%w):\n%s", errors.Join(err, errEnded), tailOf(log.Name()))
		case <-ctx.Done():
			_ = cmd.Process.Kill() // it may have ended meanwhile
			return ctx.Err()
		case <-tick:
		}
	}
}

var errEnded = errors.New("see its log")

// tailOf returns the last lines of a file.
func tailOf(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-10):], []byte("\n")))
}

// takeLock locks the state directory, or says who has it.
func takeLock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, err
		}
		in, err := readInfo(dir)
		if err != nil {
			return nil, fmt.Errorf("locked by another rack: %w", err)
		}
		return nil, &RunningError{Dir: dir, PID: in.PID, Since: in.Since}
	}
	return f, nil
}

func readInfo(dir string) (*info, error) {
	b, err := os.ReadFile(filepath.Join(dir, infoFile))
	if err != nil {
		return nil, err
	}
	in := &info{}
	if err := json.Unmarshal(b, in); err != nil {
		return nil, fmt.Errorf("read %q: %w", filepath.Join(dir, infoFile), err)
	}
	return in, nil
}
