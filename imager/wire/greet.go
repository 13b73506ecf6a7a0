package wire

import (
	"bytes"
	"errors"
	"fmt"
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

// Greet exchanges Hello and refuses a peer of another protocol or version.
func (c *Conn) Greet(version string) error {
	c.mu.Lock()
	_, err := c.w.WriteString(start) // leaves with the frame
	c.mu.Unlock()
	if err == nil {
		err = c.Send(KindHello, Hello{Protocol, version})
	}
	if err != nil {
		return err
	}
	if err := c.skipNoise(); err != nil {
		return err
	}
	var h Hello
	if err := c.Expect(KindHello, &h, nil); err != nil {
		return fmt.Errorf("greet the peer: %w", err)
	}
	if h.Protocol != Protocol || h.Version != version {
		return fmt.Errorf("%w: here protocol %d of ingot %s, there protocol %d of ingot %s", ErrVersion, Protocol, version, h.Protocol, Printable(h.Version))
	}
	return nil
}

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
