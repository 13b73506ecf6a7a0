package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Client drives a running rack from another process. Each call has a connection of its own.
type Client struct{ dir string }

// Dial finds the rack of a state directory; ErrDown says that none runs there.
func Dial(dir string) (*Client, error) {
	c := &Client{dir: dir}
	conn, err := c.connect(context.Background())
	if err != nil {
		return nil, err
	}
	return c, conn.Close()
}

// connect opens a connection.
func (c *Client) connect(ctx context.Context) (*net.UnixConn, error) {
	addr, dir, err := short(c.dir, controlFile)
	if err != nil {
		return nil, fmt.Errorf("rack %q: %w: %w", c.dir, ErrDown, err)
	}
	defer dir.Close()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", addr)
	if err != nil {
		return nil, fmt.Errorf("rack %q: %w: %w", c.dir, ErrDown, err)
	}
	return conn.(*net.UnixConn), nil
}

// call makes a request. When ctx ends, so does the connection, and with it a command of exec.
func (c *Client) call(ctx context.Context, req request, files ...*os.File) (*response, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // closed twice is closed
	defer stop()
	text, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := conn.WriteMsgUnix(append(text, '\n'), oob, nil); err != nil {
		return nil, fmt.Errorf("rack %q: %w", c.dir, err)
	}
	resp := &response{}
	if err := json.NewDecoder(conn).Decode(resp); err != nil {
		return nil, fmt.Errorf("rack %q: %s: %w", c.dir, req.Op, errors.Join(ctx.Err(), err))
	}
	if resp.Error != "" {
		return nil, errors.New(resp.Error)
	}
	return resp, nil
}

// Status asks how the rack is.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	resp, err := c.call(ctx, request{Op: "status"})
	if err != nil {
		return nil, err
	}
	return resp.Status, nil
}

// Power works a machine's switch: on, off (the cord), cycle, reset, shutdown (ACPI).
func (c *Client) Power(ctx context.Context, machine, action string) error {
	_, err := c.call(ctx, request{Op: "power", Machine: machine, Action: action})
	return err
}

// SetLink pulls a machine's network cable or plugs it in.
func (c *Client) SetLink(ctx context.Context, machine string, up bool) error {
	_, err := c.call(ctx, request{Op: "link", Machine: machine, Up: up})
	return err
}

// Exec runs a command in the rack's namespaces, with this process's directory and environment and the
// given files, and returns its exit code. When ctx ends the command is interrupted.
func (c *Client) Exec(ctx context.Context, stdin, stdout, stderr *os.File, argv ...string) (int, error) {
	dir, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	resp, err := c.call(ctx, request{Op: "exec", Argv: argv, Env: os.Environ(), Dir: dir}, stdin, stdout, stderr)
	if err != nil {
		return 0, err
	}
	return resp.Exit, nil
}

// Down ends the rack and waits until nothing of it is left: the kernel reports the end of a PID
// namespace's first process when all the others are gone. A rack that does not end in ten seconds is
// killed.
func (c *Client) Down(ctx context.Context) error {
	in, err := readInfo(c.dir)
	if err != nil {
		return fmt.Errorf("rack %q: %w: %w", c.dir, ErrDown, err)
	}
	fd, err := unix.PidfdOpen(in.PID, 0)
	if err != nil {
		return fmt.Errorf("rack %q: %w: process %d: %w", c.dir, ErrDown, in.PID, err)
	}
	defer unix.Close(fd)
	if _, err := c.call(ctx, request{Op: "down"}); err != nil {
		return err
	}
	if ended(ctx, fd, 10*time.Second) {
		_ = os.Remove(filepath.Join(c.dir, infoFile)) // it says who is up
		return nil
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("wait for rack %q to be down: %w", c.dir, err)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill rack %q: %w", c.dir, err)
	}
	if !ended(ctx, fd, 10*time.Second) {
		return fmt.Errorf("rack %q: process %d does not end", c.dir, in.PID)
	}
	return nil
}

// ended waits for a process to end; pidfd_open(2).
func ended(ctx context.Context, pidfd int, limit time.Duration) bool {
	for end := time.Now().Add(limit); ctx.Err() == nil && time.Now().Before(end); {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 100)
		if err == nil && n == 1 {
			return true
		}
	}
	return false
}
