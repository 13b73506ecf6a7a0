package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Process is a program that runs in the rack, such as the server under test.
type Process struct {
	Name string
	Log  string // file with its output

	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid after done
}

// Done is closed when the program has ended; then Err says how.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns how the program ended, with the end of its output, or nil while it runs.
func (p *Process) Err() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	if p.err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w: %s", p.Name, p.err, tailOf(p.Log))
}

// Stop asks the program to end (SIGTERM), kills it with its children after five seconds, and waits.
func (p *Process) Stop() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGTERM) // it may have ended
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
	}
	p.Kill()
}

// Kill kills the program and its children, as a crash does, and waits.
func (p *Process) Kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
	<-p.done
}

// Start runs a program in the rack, in the background. Its output goes to NAME.log in the state directory.
func (r *Rack) Start(name string, argv ...string) (*Process, error) {
	if len(argv) == 0 {
		return nil, fmt.Errorf("start %q: no command", name)
	}
	p := &Process{Name: name, Log: r.path(name, ".log"), done: make(chan struct{}), cmd: exec.Command(argv[0], argv[1:]...)}
	log, err := os.OpenFile(p.Log, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %q: %w", name, err)
	}
	p.cmd.Env = withoutStage(os.Environ())
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %q: %w", name, err), log.Close())
	}
	go func() {
		p.err = errors.Join(p.cmd.Wait(), log.Close())
		r.event("", "process", fmt.Sprintf("%s ended: %v", name, p.err))
		close(p.done)
	}()
	r.mu.Lock()
	r.procs = append(r.procs, p)
	r.mu.Unlock()
	return p, nil
}

// Exec runs a command in the rack and returns its output. An error has the end of it.
func (r *Rack) Exec(ctx context.Context, argv ...string) ([]byte, error) {
	if len(argv) == 0 {
		return nil, errors.New("run in the rack: no command")
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = withoutStage(os.Environ())
	out, err := cmd.CombinedOutput()
	if err != nil {
		return out, fmt.Errorf("run in the rack: %q: %w: %s", strings.Join(argv, " "), err, tail(string(out)))
	}
	return out, nil
}

// WaitSSH waits until an SSH server answers at addr (host:port) with its banner (RFC 4253 section 4.2).
func (r *Rack) WaitSSH(ctx context.Context, addr string) error {
	var last error
	for ctx.Err() == nil {
		if last = banner(ctx, addr); last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
	return fmt.Errorf("wait for SSH at %q: %w", addr, errors.Join(ctx.Err(), last))
}

// banner reads an SSH server's first line; it may be preceded by others.
func banner(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	for sc := bufio.NewScanner(conn); sc.Scan(); {
		if strings.HasPrefix(sc.Text(), "SSH-") {
			return nil
		}
	}
	return errors.New("no SSH banner")
}
