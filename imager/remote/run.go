package remote

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"ingot/imager/wire"
	"ingot/internal/digest"
)

// AgentPath is where the agent lives on a node.
const AgentPath = "/.ingot/agent"

// Output runs one command line of the node's shell and returns its standard
// output; what it wrote to standard error is part of the error.
func (c *Conn) Output(ctx context.Context, command string) ([]byte, error) {
	return c.run(ctx, command, nil)
}

// maxOutput bounds what a command may answer, in bytes.
const maxOutput = 1 << 20

func (c *Conn) run(ctx context.Context, command string, stdin io.Reader) ([]byte, error) {
	short, _, _ := strings.Cut(command, "\n")
	s, err := within(ctx, c, c.client.NewSession)
	if err != nil {
		return nil, fmt.Errorf("run %q on %q: %w", short, c.target.Name, err)
	}
	defer s.Close()
	out, errOut := &bounded{most: maxOutput, over: make(chan struct{})}, &bounded{most: 64 << 10}
	s.Stdin, s.Stdout, s.Stderr = stdin, out, errOut
	ended := make(chan error, 1)
	go func() { ended <- s.Run(command) }() // ends with the connection at the latest
	select {
	case <-ctx.Done(): // a node that does not answer does not answer to a close either
		return nil, fmt.Errorf("run %q on %q: %w", short, c.target.Name, ctx.Err())
	case <-out.over:
		return nil, fmt.Errorf("run %q on %q: it answers with more than %d bytes", short, c.target.Name, maxOutput)
	case err = <-ended:
	}
	if err != nil {
		return out.b.Bytes(), fmt.Errorf("run %q on %q: %w: %s", short, c.target.Name, err, wire.Printable(strings.TrimSpace(errOut.b.String())))
	}
	return out.b.Bytes(), nil
}

// bounded keeps the first bytes of an output. More of them close over, and
// are then no longer read; without it they are dropped.
type bounded struct {
	b    bytes.Buffer
	most int
	over chan struct{}
}

func (w *bounded) Write(p []byte) (int, error) {
	k := min(len(p), w.most-w.b.Len())
	w.b.Write(p[:k])
	if k < len(p) && w.over != nil {
		close(w.over) // once: who gets an error does not write again
		return k, io.ErrShortWrite
	}
	return len(p), nil
}

// uploadWait is how long a node may take to take a new agent.
const uploadWait = 10 * time.Minute

// AgentCommand is the command line that becomes the agent in AgentPath, if
// that is one of the programs of these digests, and otherwise says so
// (wire.NoAgentError). They are BLAKE2b-256, which b2sum(1) takes a third of the
// time for that sha256sum(1) does, and SHA-256 for nodes without the former.
// Whatever root's login shell is, and whatever it prints, sh does the work.
func AgentCommand(programs ...digest.ID) string {
	var sums []string
	for _, id := range programs {
		sums = append(sums, id.String()+"*")
	}
	return `sh -c 'a=` + AgentPath + `; if test -f $a && test ! -L $a && test -x $a; then case "$( { b2sum -l256 || sha256sum; } <$a 2>/dev/null)" in ` + strings.Join(sums, "|") +
		`) exec $a receive; esac; fi; ` + strings.ReplaceAll(wire.SayNoAgent(), "'", `'\''`) + `'`
}

// Upload puts a program into AgentPath on the node.
func (c *Conn) Upload(ctx context.Context, program []byte) error {
	wait := uploadWait
	if c.target.Limit != nil {
		wait *= 20 // slow is what was asked for
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if err := c.upload(ctx, program); err != nil {
		return fmt.Errorf("upload the agent to %q: %w", c.target.Name, err)
	}
	return nil
}

// prepare makes the agent's directory without a trace in the times of the one
// above, and removes what uploads that were cut short have left.
const prepare = `set -e
if [ -L /.ingot ] || { [ -e /.ingot ] && [ ! -d /.ingot ]; }; then echo "/.ingot is not a directory" >&2; exit 1; fi
if [ ! -d /.ingot ]; then
	was=$(stat -c %y / 2>/dev/null || true)
	mkdir -m 700 /.ingot
	if [ -n "$was" ]; then touch -m -d "$was" / || true; fi
fi
chmod 700 /.ingot
find /.ingot -maxdepth 1 -name "agent.new*" -mmin +60 -exec rm -rf {} + 2>/dev/null || true
if [ -d /.ingot/agent ] && [ ! -L /.ingot/agent ]; then rm -rf /.ingot/agent; fi`

// upload puts the agent into its place: by SFTP, or through cat where sshd has
// no SFTP or the login shell prints something, which SFTP does not survive.
func (c *Conn) upload(ctx context.Context, binary []byte) error {
	if _, err := c.Output(ctx, "sh -c '"+prepare+"'"); err != nil {
		return err
	}
	tmp := AgentPath + ".new-" + rand.Text() // another controller may upload at the same time
	sftpErr := c.uploadSFTP(ctx, tmp, binary)
	if sftpErr == nil || ctx.Err() != nil || errors.Is(sftpErr, errNotDurable) {
		return sftpErr
	}
	_, err := c.run(ctx, "sh -c 'umask 077; t="+tmp+"; cat >$t && chmod 700 $t && sync && mv -f $t "+AgentPath+" || { rm -f $t; exit 1; }'",
		bytes.NewReader(binary))
	if err != nil {
		return fmt.Errorf("%w (and by SFTP: %w)", err, sftpErr)
	}
	return nil
}

func (c *Conn) uploadSFTP(ctx context.Context, tmp string, binary []byte) error {
	// A node that does not answer, or does not close what we close, is waited
	// for until ctx ends, and then the whole connection goes: registered first,
	// so that it bounds the closing too.
	defer context.AfterFunc(ctx, func() { c.client.Close() })()
	f, err := within(ctx, c, func() (*sftp.Client, error) { return sftp.NewClient(c.client, sftp.UseConcurrentWrites(true)) })
	if err != nil {
		return fmt.Errorf("start the sftp subsystem: %w", err)
	}
	defer f.Close()
	if err := c.writeSFTP(ctx, f, tmp, binary); err != nil {
		f.Remove(tmp) // as far as it can be; the next upload removes it otherwise
		return err
	}
	return nil
}

// errNotDurable: the node's disk failed; there is no use in trying another way.
var errNotDurable = errors.New("not on the disk")

func (c *Conn) writeSFTP(ctx context.Context, f *sftp.Client, tmp string, binary []byte) error {
	w, err := f.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return fmt.Errorf("create %q: %w", tmp, err)
	}
	if _, err := w.ReadFrom(bytes.NewReader(binary)); err != nil {
		return fmt.Errorf("write %q: %w", tmp, errors.Join(err, w.Close()))
	}
	syncErr := w.Sync() // fsync@openssh.com
	if err := w.Close(); err != nil {
		return fmt.Errorf("write %q: %w", tmp, errors.Join(err, syncErr))
	}
	var status *sftp.StatusError
	if errors.As(syncErr, &status) && status.FxCode() == sftp.ErrSSHFxOpUnsupported {
		_, syncErr = c.Output(ctx, "sync")
	}
	if syncErr != nil {
		return fmt.Errorf("write %q: %w: %w", tmp, errNotDurable, syncErr)
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
	s, err := within(ctx, c, c.client.NewSession)
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
	if _, err := within(ctx, c, func() (struct{}, error) { return struct{}{}, s.Start(command) }); err != nil {
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
	return wire.Printable(strings.TrimSpace(p.errOut.String()))
}

// Close ends the program's input and the channel.
func (p *Process) Close() error {
	err := p.WriteCloser.Close()
	if err = errors.Join(err, p.session.Close()); errors.Is(err, io.EOF) {
		return nil // the program has ended
	}
	return err
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
