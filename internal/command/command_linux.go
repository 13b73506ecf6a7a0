// Package command runs other people's programs within limits: of time, of what is kept of
// their output, and of what they leave running.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pipes is how long a program that has ended may keep its output open in the hands of
	// a process that left its group.
	pipes = time.Second

	// grace is how long a program that was killed may take to be gone. One that waits for
	// a dead disk or file server cannot be killed (state D of proc(5)).
	grace = pipes + 2*time.Second
)

// Command is a program to run, in a process group of its own, in the directory /, with an
// empty standard input.
type Command struct {
	Argv  []string      // Argv[0] is the path of the program: it is not looked for
	Env   []string      // the whole environment
	Limit time.Duration // after which it is killed; it must be more than 0

	Out, Err io.Writer // may be the same, as an Ends; must be safe for concurrent use
}

// LimitError says that something did not end in its time.
type LimitError struct{ Limit time.Duration }

func (e *LimitError) Error() string { return fmt.Sprintf("not done within %s", e.Limit) }

// Run runs the command and waits for it. When it returns, every process of the command's group
// has been killed: at the limit, at the end of ctx, and also those that are left when the program
// itself has ended. A process that made itself another group (setsid(2)) lives on and is not waited for.
//
// The error is nil for exit status 0, an *exec.ExitError for another one or a signal, a *LimitError,
// the cause of ctx, or says why the program could not be started.
func Run(ctx context.Context, c Command) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.Limit, &LimitError{c.Limit})
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.run(ctx) }() // starting a program, too, can take for ever: its file may be on a dead server
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	late := time.NewTimer(grace)
	defer late.Stop()
	select {
	case err := <-done:
		if err == nil {
			return nil
		}
		return context.Cause(ctx)
	case <-late.C:
		return fmt.Errorf("%w, and cannot be killed", context.Cause(ctx))
	}
}

func (c *Command) run(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	cmd.Env = append([]string{}, c.Env...) // nil would be our own
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", c.Out, c.Err
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = pipes
	if err := cmd.Start(); err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return fmt.Errorf("start %q: %w", c.Argv[0], err)
	}
	awaitEnd(ctx, cmd.Process.Pid)
	err := cmd.Wait()
	switch {
	case errors.Is(err, exec.ErrWaitDelay): // it went well; who holds its output is another group
		return nil
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return err
}

// awaitEnd waits until a process has ended, killing its group when ctx ends, and then kills what is left of the
// group. The process is not reaped, so that its number, which is also that of the group, cannot be another's.
func awaitEnd(ctx context.Context, pid int) {
	ended, killer := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(killer)
		select {
		case <-ctx.Done():
			unix.Kill(-pid, unix.SIGKILL)
		case <-ended:
		}
	}()
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	close(ended)
	<-killer
	unix.Kill(-pid, unix.SIGKILL)
}
