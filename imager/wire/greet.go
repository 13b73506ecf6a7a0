package wire

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"unicode"
)

// start goes before the first frame of each side, so that what a login shell
// prints before (bash reads .bashrc for commands that come over SSH) is told
// from what the agent says. No text holds it: it begins with a zero byte.
const start = "\x00ingot\x00"

// maxNoise bounds what may come before the start, in bytes.
const maxNoise = 64 << 10

// ErrGreeting says that the peer did not say what an ingot says first.
var ErrGreeting = errors.New("no ingot answers there")

// NoAgentError says that the node has no agent, or another one.
type NoAgentError struct {
	Machine string // of the node, as uname(1) -m names it
}

func (e *NoAgentError) Error() string { return "the node has no agent of this version" }

// machineLen is the size of a KindNoAgent frame: a shell, which sends it,
// can pad and cut text, but writes numbers as bytes only with effort.
const machineLen = 64

// SayNoAgent is a command of a POSIX shell that tells a Greet at the other end
// of its standard output that there is no agent.
func SayNoAgent() string {
	return fmt.Sprintf(`printf "\000ingot\000%c\000\000\000\%03o%%-%d.%ds" "$(uname -m)"`, KindNoAgent, machineLen, machineLen, machineLen)
}

// Greet exchanges Hello and refuses a peer of another protocol or version.
func (c *Conn) Greet(version string) error {
	c.mu.Lock()
	_, err := c.w.WriteString(start) // leaves with the frame
	c.mu.Unlock()
	if err == nil {
		err = c.Send(KindHello, Hello{Protocol, version, runtime.GOARCH})
	}
	// A peer that has ended may have said why.
	if heard := c.skipNoise(); heard != nil {
		return errors.Join(heard, err)
	}
	f, err := c.Next(nil)
	if err == nil && f.Kind == KindNoAgent {
		return &NoAgentError{Machine: Printable(strings.TrimSpace(string(f.Payload[:min(len(f.Payload), machineLen)])))}
	}
	if err == nil {
		err = f.is(KindHello)
	}
	var h Hello
	if err == nil {
		err = f.Unmarshal(&h)
	}
	if err != nil {
		return fmt.Errorf("greet the peer: %w", err)
	}
	c.peer = h
	if h.Protocol != Protocol || h.Version != version {
		return fmt.Errorf("%w: here protocol %d of ingot %s, there protocol %d of ingot %s", ErrVersion, Protocol, version, h.Protocol, Printable(h.Version))
	}
	return nil
}

// PeerArch is the architecture of the peer that was greeted, as Go calls it.
func (c *Conn) PeerArch() string { return Printable(c.peer.Arch) }

func (c *Conn) skipNoise() error {
	var noise []byte
	for !bytes.HasSuffix(noise, []byte(start)) {
		b, err := c.r.ReadByte()
		if err != nil && len(noise) == 0 {
			return fmt.Errorf("greet the peer: %w", err)
		}
		if err == nil && len(noise) >= maxNoise {
			err = fmt.Errorf("%d bytes of something else", len(noise))
		}
		if err != nil {
			return fmt.Errorf("%w: %w; it said %q", ErrGreeting, unexpected(err), noise[:min(len(noise), 200)])
		}
		noise = append(noise, b)
	}
	return nil
}

// Printable is text of a peer, which may be hostile, made fit for a terminal.
func Printable(s string) string {
	const most = 8 << 10
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
