package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// node is a machine of the rack.
type node struct {
	Machine
	tap string

	mu      sync.Mutex
	run     *run // the last power on, or nil
	powerOn int  // how often
	link    bool // the cable is in
}

// run is one power on of a machine.
type run struct {
	cmd     *exec.Cmd
	qmp     *qmp
	console *console
	stdin   io.WriteCloser
	done    chan struct{} // closed when QEMU has ended
	err     error         // of QEMU, valid after done; nil after a power off
	killed  bool          // by PowerOff; guarded by the node's mu
}

// on reports whether the run goes on.
func (u *run) on() bool {
	if u == nil {
		return false
	}
	select {
	case <-u.done:
		return false
	default:
		return true
	}
}

// PowerOn switches a machine on.
func (r *Rack) PowerOn(name string) error {
	n, err := r.node(name)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.run.on() {
		return fmt.Errorf("power on %q: %w", name, ErrOn)
	}
	u, err := r.start(n)
	if err != nil {
		return fmt.Errorf("power on %q: %w", name, err)
	}
	n.run = u
	n.powerOn++
	r.event(name, "on", "")
	if !n.link {
		return u.qmp.execute("set_link", map[string]any{"name": "n0", "up": false})
	}
	return nil
}

// start starts QEMU.
func (r *Rack) start(n *node) (*run, error) {
	vars := r.path(n.Name, ".vars.fd")
	if n.Firmware == UEFI {
		if err := freshVars(vars, n.Secure); err != nil {
			return nil, err
		}
	}
	for _, d := range n.Disks {
		if err := d.beginLog(); err != nil {
			return nil, err
		}
	}
	logs, err := r.logs(n)
	if err != nil {
		return nil, err
	}
	monitor, theirs, err := socketPair()
	if err != nil {
		logs.close()
		return nil, err
	}
	defer theirs.Close()
	u := &run{cmd: exec.Command(qemuProgram, n.args(n.tap, vars)...), done: make(chan struct{})}
	u.console = newConsole(n.Name, n.FailOn, logs.console, func(saw string) { go r.event(n.Name, "fail", saw) })
	u.cmd.Env = withoutStage(os.Environ())
	u.cmd.Stdout, u.cmd.Stderr = u.console, logs.qemu
	u.cmd.ExtraFiles = []*os.File{theirs}
	u.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is the supervisor's
	u.cmd.WaitDelay = 2 * time.Second
	if u.stdin, err = u.cmd.StdinPipe(); err == nil {
		err = u.cmd.Start()
	}
	if err != nil {
		_ = monitor.Close()
		logs.close()
		return nil, err
	}
	go r.await(n, u, logs)
	u.qmp = newQMP(monitor, func(event, text string) { r.event(n.Name, event, text) })
	return u, nil
}

// await waits for QEMU to end.
func (r *Rack) await(n *node, u *run, logs *logs) {
	err := u.cmd.Wait()
	n.mu.Lock()
	if !u.killed && err != nil {
		b, _ := os.ReadFile(r.path(n.Name, ".qemu.log")) // only to say more
		u.err = fmt.Errorf("machine %q: QEMU: %w: %s", n.Name, err, tail(string(b)))
	}
	n.mu.Unlock()
	u.console.close()
	logs.close()
	r.event(n.Name, "off", "")
	close(u.done)
}

// logs are the files that a run writes to.
type logs struct{ console, qemu *os.File }

func (l *logs) close() {
	_ = l.console.Close() // a log that is cut short is no reason to fail
	_ = l.qemu.Close()
}

func (r *Rack) logs(n *node) (*logs, error) {
	c, err := os.OpenFile(r.path(n.Name, ".console"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	q, err := os.Create(r.path(n.Name, ".qemu.log"))
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	fmt.Fprintf(c, "=== power on %d, %s\n", n.powerOn+1, time.Now().Format(time.RFC3339Nano)) // see logs.close
	return &logs{c, q}, nil
}

// socketPair makes QEMU's monitor: our end and the one that it inherits.
func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "qmp"), os.NewFile(uintptr(fds[1]), "qmp"), nil
}

// running returns the run of a machine that is on.
func (r *Rack) running(name string) (*node, *run, error) {
	n, err := r.node(name)
	if err != nil {
		return nil, nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.run.on() {
		return n, nil, fmt.Errorf("machine %q: %w", name, ErrOff)
	}
	return n, n.run, nil
}

// PowerOff cuts a machine's power: QEMU gets SIGKILL. It returns when the machine is off.
func (r *Rack) PowerOff(name string) error {
	n, u, err := r.running(name)
	if err != nil {
		return err
	}
	n.mu.Lock()
	u.killed = true
	n.mu.Unlock()
	_ = u.cmd.Process.Kill() // it may have ended meanwhile
	<-u.done
	return nil
}

// Cycle cuts a machine's power and gives it back. A machine that is off is switched on.
func (r *Rack) Cycle(name string) error {
	if err := r.PowerOff(name); err != nil && !errors.Is(err, ErrOff) {
		return err
	}
	return r.PowerOn(name)
}

// Reset presses a machine's reset button.
func (r *Rack) Reset(name string) error { return r.monitor(name, "system_reset", nil) }

// Shutdown presses a machine's power button: an operating system with ACPI shuts down.
func (r *Rack) Shutdown(name string) error { return r.monitor(name, "system_powerdown", nil) }

// monitor gives a command to QEMU.
func (r *Rack) monitor(name, command string, args map[string]any) error {
	_, u, err := r.running(name)
	if err != nil {
		return err
	}
	if err := u.qmp.execute(command, args); err != nil {
		return fmt.Errorf("machine %q: %w", name, err)
	}
	return nil
}

// SetLink pulls a machine's network cable or plugs it in: both ends see it.
func (r *Rack) SetLink(name string, up bool) error {
	n, err := r.node(name)
	if err != nil {
		return err
	}
	if err := setLink(n.tap, up); err != nil {
		return fmt.Errorf("machine %q: %w", name, err)
	}
	n.mu.Lock()
	n.link = up
	n.mu.Unlock()
	r.event(name, map[bool]string{true: "link-up", false: "link-down"}[up], "")
	err = r.monitor(name, "set_link", map[string]any{"name": "n0", "up": up})
	if errors.Is(err, ErrOff) {
		return nil // PowerOn does it
	}
	return err
}

// IsOn reports whether a machine is on.
func (r *Rack) IsOn(name string) bool {
	_, _, err := r.running(name)
	return err == nil
}

// Wait waits until a machine is off. It returns the *ConsoleError of a machine that failed on its way, as
// soon as it does, and QEMU's own error.
func (r *Rack) Wait(ctx context.Context, name string) error {
	n, err := r.node(name)
	if err != nil {
		return err
	}
	n.mu.Lock()
	u := n.run
	n.mu.Unlock()
	if u == nil {
		return fmt.Errorf("machine %q: %w", name, ErrOff)
	}
	for {
		u.console.mu.Lock()
		news := u.console.news
		u.console.mu.Unlock()
		if err := u.console.failure(); err != nil {
			return err
		}
		select {
		case <-u.done:
			return errors.Join(u.console.failure(), u.err)
		case <-ctx.Done():
			return fmt.Errorf("wait for machine %q to be off: %w", name, ctx.Err())
		case <-news:
		}
	}
}

// Expect waits for text on a machine's console, since its last power on and after the text that Expect
// found last, and returns the line, which need not have ended. It fails with a *ConsoleError as soon as a text of FailOn appears or the
// machine is off.
func (r *Rack) Expect(ctx context.Context, name, text string) (Line, error) {
	u, err := r.last(name)
	if err != nil {
		return Line{}, err
	}
	return u.console.expect(ctx, text)
}

// last returns the last power on of a machine.
func (r *Rack) last(name string) (*run, error) {
	n, err := r.node(name)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.run == nil {
		return nil, fmt.Errorf("machine %q: %w", name, ErrOff)
	}
	return n.run, nil
}

// Send types text on a machine's serial port.
func (r *Rack) Send(name, text string) error {
	_, u, err := r.running(name)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(u.stdin, text); err != nil {
		return fmt.Errorf("type on the console of %q: %w", name, err)
	}
	return nil
}

// Console returns a machine's console log: every power on, each line with its seconds since then.
func (r *Rack) Console(name string) string { return r.path(name, ".console") }

// Lines returns what the console said since the last power on.
func (r *Rack) Lines(name string) ([]Line, error) {
	u, err := r.last(name)
	if err != nil {
		return nil, err
	}
	return u.console.all(), nil
}
