package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The control protocol: a connection has one request and one answer, each a line of JSON. With exec come
// three descriptors (SCM_RIGHTS, unix(7)): the command speaks to the client's terminal itself.
type request struct {
	Op      string   `json:"op"` // status, power, link, exec, down
	Machine string   `json:"machine,omitempty"`
	Action  string   `json:"action,omitempty"` // of power: on, off, cycle, reset, shutdown
	Up      bool     `json:"up,omitempty"`
	Argv    []string `json:"argv,omitempty"`
	Env     []string `json:"env,omitempty"`
	Dir     string   `json:"dir,omitempty"`
}

type response struct {
	Error  string  `json:"error,omitempty"`
	Exit   int     `json:"exit,omitempty"` // of exec
	Status *Status `json:"status,omitempty"`
}

// Status describes a running rack.
type Status struct {
	PID      int             `json:"pid"` // of its first process, as the host counts
	Since    time.Time       `json:"since"`
	Dir      string          `json:"dir"`
	Bridge   string          `json:"bridge"`
	Addr     string          `json:"addr"`
	Machines []MachineStatus `json:"machines"`
}

// MachineStatus describes a machine of a running rack.
type MachineStatus struct {
	Name     string   `json:"name"`
	Firmware Firmware `json:"firmware"`
	MAC      string   `json:"mac"`
	On       bool     `json:"on"`
	Link     bool     `json:"link"`
	PowerOns int      `json:"power_ons"`
	Failed   string   `json:"failed,omitempty"` // what its console said
	Console  string   `json:"console"`          // file
}

// maxRequest is the longest request: a command line and an environment.
const maxRequest = 4 << 20

// control serves the socket of a rack.
type control struct {
	rack   *Rack
	down   context.CancelFunc
	ln     *net.UnixListener
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// listen opens the control socket; down ends the rack.
func (r *Rack) listen(down context.CancelFunc) (*control, error) {
	_ = os.Remove(filepath.Join(r.o.Dir, controlFile)) // of a rack that was killed; the lock is ours
	addr, dir, err := short(r.o.Dir, controlFile)
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	defer dir.Close()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: addr, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("open control socket in %q: %w", r.o.Dir, err)
	}
	ln.SetUnlinkOnClose(false) // the name is gone with dir
	if err := os.Chmod(filepath.Join(r.o.Dir, controlFile), 0o600); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	c := &control{rack: r, down: down, ln: ln}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.wg.Go(c.serve)
	return c, nil
}

// close ends the socket and what was started by way of it.
func (c *control) close() {
	_ = c.ln.Close() // nothing is lost
	c.cancel()
	c.wg.Wait()
	_ = os.Remove(filepath.Join(c.rack.o.Dir, controlFile)) // the next rack does it otherwise
}

func (c *control) serve() {
	for {
		conn, err := c.ln.AcceptUnix()
		if err != nil {
			return // closed
		}
		c.wg.Go(func() {
			defer conn.Close()
			resp := c.handle(conn)
			_ = json.NewEncoder(conn).Encode(resp) // the client may be gone
		})
	}
}

// handle reads and answers one request.
func (c *control) handle(conn *net.UnixConn) response {
	req, files, err := receive(conn)
	defer func() {
		for _, f := range files {
			_ = f.Close() // the command has its own
		}
	}()
	if err != nil {
		return response{Error: err.Error()}
	}
	var resp response
	switch req.Op {
	case "status":
		resp.Status = c.rack.Status()
	case "power":
		err = c.power(req)
	case "link":
		err = c.rack.SetLink(req.Machine, req.Up)
	case "exec":
		resp.Exit, err = c.exec(conn, req, files)
	case "down":
		c.down()
	default:
		err = fmt.Errorf("unknown operation %q", req.Op)
	}
	if err != nil {
		resp.Error = err.Error()
	}
	return resp
}

// power does what a switch does.
func (c *control) power(req request) error {
	switch req.Action {
	case "on":
		return c.rack.PowerOn(req.Machine)
	case "off":
		return c.rack.PowerOff(req.Machine)
	case "cycle":
		return c.rack.Cycle(req.Machine)
	case "reset":
		return c.rack.Reset(req.Machine)
	case "shutdown":
		return c.rack.Shutdown(req.Machine)
	}
	return fmt.Errorf("unknown power action %q", req.Action)
}

// exec runs a command on the client's descriptors. When the client goes away, the command is interrupted,
// and killed two seconds later.
func (c *control) exec(conn *net.UnixConn, req request, files []*os.File) (int, error) {
	if len(req.Argv) == 0 || len(files) != 3 {
		return 0, errors.New("exec needs a command and three descriptors")
	}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	go func() {
		_, _ = conn.Read(make([]byte, 1)) // returns when the client is gone
		cancel()
	}()
	cmd := exec.CommandContext(ctx, req.Argv[0], req.Argv[1:]...)
	cmd.Env, cmd.Dir = withoutStage(req.Env), req.Dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		time.AfterFunc(2*time.Second, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }) // may be gone
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
	}
	err := exitError(cmd.Run())
	var exit *ExitError
	if errors.As(err, &exit) {
		return exit.Code, nil
	}
	return 0, err
}

// receive reads a request and its descriptors.
func receive(conn *net.UnixConn) (request, []*os.File, error) {
	var req request
	var files []*os.File
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return req, nil, err
	}
	var text []byte
	buf, oob := make([]byte, 64<<10), make([]byte, 256)
	for !bytes.HasSuffix(text, []byte("\n")) {
		n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
		files = append(files, descriptors(oob[:oobn])...)
		if err != nil {
			return req, files, fmt.Errorf("read request: %w", err)
		}
		if text = append(text, buf[:n]...); len(text) > maxRequest || n == 0 {
			return req, files, errors.New("read request: it has no end")
		}
	}
	if err := json.Unmarshal(text, &req); err != nil {
		return req, files, fmt.Errorf("read request: %w", err)
	}
	return req, files, conn.SetReadDeadline(time.Time{})
}

// descriptors takes files out of a control message.
func descriptors(oob []byte) []*os.File {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var files []*os.File
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "client"))
		}
	}
	return files
}

// Status describes the rack.
func (r *Rack) Status() *Status {
	s := &Status{Since: r.begin, Dir: r.o.Dir, Bridge: r.o.Bridge, Addr: r.o.Addr.String()}
	if in, err := readInfo(r.o.Dir); err == nil {
		s.PID = in.PID
	}
	for _, name := range r.Machines() {
		n, err := r.node(name)
		if err != nil {
			continue // machines are never taken away
		}
		s.Machines = append(s.Machines, n.status(r.Console(name)))
	}
	return s
}

func (n *node) status(console string) MachineStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := MachineStatus{
		Name: n.Name, Firmware: n.Firmware, MAC: n.MAC, On: n.run.on(), Link: n.link, PowerOns: n.powerOn, Console: console,
	}
	if n.run != nil {
		var failed *ConsoleError
		if errors.As(n.run.console.failure(), &failed) {
			s.Failed = failed.Saw
		}
	}
	return s
}
