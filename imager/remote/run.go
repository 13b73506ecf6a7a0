package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"ingot/internal/digest"
)

// AgentPath is where the agent lives on a node.
const AgentPath = "/.ingot/agent"

// Output runs one command line of the node's shell and returns its standard
// output; what it wrote to standard error is part of the error.
func (c *Conn) Output(ctx context.Context, command string) ([]byte, error) {
	s, err := c.client.NewSession()
	if err != nil {
		return nil, fmt.Errorf("run %q on %q: %w", command, c.target.Name, err)
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.Close() })()
	var out, errOut bytes.Buffer
	s.Stdout, s.Stderr = &out, &errOut
	if err := s.Run(command); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return out.Bytes(), fmt.Errorf("run %q on %q: %w: %s", command, c.target.Name, err, strings.TrimSpace(errOut.String()))
	}
	return out.Bytes(), nil
}

// EnsureAgent makes sure that AgentPath on the node is exactly the program
// binary: it compares digests and uploads by SFTP only what differs. It
// reports whether it uploaded.
func (c *Conn) EnsureAgent(ctx context.Context, binary []byte) (bool, error) {
	want := digest.Of(binary)
	out, err := c.Output(ctx, "sha256sum "+AgentPath+" 2>/dev/null || true")
	if err != nil {
		return false, err
	}
	if strings.HasPrefix(string(out), want.String()) {
		return false, nil
	}
	if err := c.upload(ctx, binary); err != nil {
		return false, fmt.Errorf("upload the agent to %q: %w", c.target.Name, err)
	}
	return true, nil
}

func (c *Conn) upload(ctx context.Context, binary []byte) error {
	f, err := sftp.NewClient(c.client, sftp.UseConcurrentWrites(true))
	if err != nil {
		return fmt.Errorf("start the sftp subsystem: %w", err)
	}
	defer f.Close()
	defer context.AfterFunc(ctx, func() { f.Close() })()
	dir, tmp := path.Dir(AgentPath), AgentPath+".new"
	if err := f.MkdirAll(dir); err != nil {
		return fmt.Errorf("make %q: %w", dir, err)
	}
	if err := f.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("chmod %q: %w", dir, err)
	}
	w, err := f.Create(tmp)
	if err != nil {
		return fmt.Errorf("create %q: %w", tmp, err)
	}
	if _, err := w.ReadFrom(bytes.NewReader(binary)); err != nil {
		return errors.Join(fmt.Errorf("write %q: %w", tmp, err), w.Close())
	}
	syncErr := w.Sync() // fsync@openssh.com; a server without it is no reason to fail
	if err := w.Close(); err != nil {
		return fmt.Errorf("write %q: %w", tmp, errors.Join(err, syncErr))
	}
	if err := f.Chmod(tmp, 0o700); err != nil {
		return fmt.Errorf("chmod %q: %w", tmp, err)
	}
	if err := f.PosixRename(tmp, AgentPath); err != nil {
		return fmt.Errorf("rename %q: %w", tmp, err)
	}
	return nil
}

// Process is a program that runs on the node, joined by its standard streams.
type Process struct {
	io.Reader // its standard output
	io.WriteCloser

	session *ssh.Session
	mu      sync.Mutex
	errOut  bytes.Buffer
	name    string
}

// Start runs a command line with its standard streams joined to the Process.
// When ctx ends the channel is closed; the program learns of it by the end of
// its input.
func (c *Conn) Start(ctx context.Context, command string) (*Process, error) {
	s, err := c.client.NewSession()
	if err != nil {
		return nil, fmt.Errorf("run %q on %q: %w", command, c.target.Name, err)
	}
	p := &Process{session: s, name: c.target.Name}
	in, err := s.StdinPipe()
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	out, err := s.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	p.Reader, p.WriteCloser = out, in
	s.Stderr = stderrOf{p}
	if err := s.Start(command); err != nil {
		return nil, errors.Join(fmt.Errorf("run %q on %q: %w", command, c.target.Name, err), s.Close())
	}
	context.AfterFunc(ctx, func() { s.Close() })
	return p, nil
}

// stderrOf keeps the last 64 KiB that the program said.
type stderrOf struct{ p *Process }

func (s stderrOf) Write(b []byte) (int, error) {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.p.errOut.Write(b)
	if over := s.p.errOut.Len() - 64<<10; over > 0 {
		s.p.errOut.Next(over)
	}
	return len(b), nil
}

// Stderr returns what the program wrote to standard error.
func (p *Process) Stderr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.TrimSpace(p.errOut.String())
}

// Wait closes the program's input and waits for its end.
func (p *Process) Wait() error {
	p.WriteCloser.Close()
	err := p.session.Wait()
	p.session.Close()
	if err != nil {
		return fmt.Errorf("agent on %q: %w: %s", p.name, err, p.Stderr())
	}
	return nil
}
