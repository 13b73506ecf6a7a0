package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"ingot/imager/remote"
	"ingot/imager/store"
	"ingot/imager/tree"
	"ingot/imager/wire"
	"ingot/inventory"
	"ingot/rollback"
	"ingot/site"
)

// Exit codes: the only table of them. Every help page prints it.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitSome        = 3
	exitBusy        = 4
	exitNotFound    = 5
	exitCorrupt     = 6
	exitInterrupted = 130
)

const exitStatus = `0 done · 1 failed · 2 wrong usage · 3 some nodes failed · 4 busy · 5 not found · 6 corrupt · 130 interrupted`

// usageError is a command line that makes no sense.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

// hinted adds the way out to an error.
type hinted struct {
	err  error
	hint string
}

func (h hinted) Error() string { return h.err.Error() }
func (h hinted) Unwrap() error { return h.err }

func withHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return hinted{err, fmt.Sprintf(format, args...)}
}

// coded gives an error its exit code where the kind of the error does not tell.
type coded struct {
	err  error
	code int
}

func (c coded) Error() string { return c.err.Error() }
func (c coded) Unwrap() error { return c.err }

// changedHint says what the agent says, too.
const changedHint = "--snapshot captures a snapshot, --allow-changed PATTERN takes such files as they come, --exclude PATTERN leaves them out"

// diagnose maps an error to what people read and what scripts see: the one
// place where kinds of errors become texts, hints and exit codes.
func diagnose(err error) (text, hint string, code int) {
	text, code = err.Error(), exitFailed
	var h hinted
	if errors.As(err, &h) {
		hint = h.hint
	}
	var c coded
	var u usageError
	var corrupt *store.CorruptError
	var damage store.Damage
	var busy *store.BusyError
	var peer *wire.Error
	var problems site.Problems
	switch {
	case errors.Is(err, context.Canceled): // whatever it was made of meanwhile
		text, hint, code = "interrupted", "", exitInterrupted
	case errors.As(err, &c):
		code = c.code
	case errors.As(err, &u):
		code = exitUsage
	case errors.As(err, &problems):
		text = strings.TrimRight(text, "\n")
		if text == problems.Error() { // nothing stands before them
			text = fmt.Sprintf("%s:\n%s", count(len(problems), "problem"), text)
		}
	case errors.As(err, &corrupt), errors.As(err, &damage): // a pack that an image needs and that is missing is damage
		code = exitCorrupt
		hint = orElse(hint, "`ingot image verify --repair` takes damaged packs out of use; then capture or build the image again")
	case errors.As(err, &busy):
		code = exitBusy
		hint = orElse(hint, "`--wait 1h` waits for it")
	case errors.Is(err, store.ErrMissing), errors.Is(err, inventory.ErrNotFound):
		code = exitNotFound
	case errors.As(err, &peer):
		hint = orElse(hint, peer.Hint)
		code = map[string]int{"busy": exitBusy, "corrupt": exitCorrupt}[peer.Kind]
		if code == 0 {
			code = exitFailed
		}
	case errors.Is(err, rollback.ErrBusy):
		code = exitBusy
	case errors.Is(err, rollback.ErrNoGeneration):
		code = exitNotFound
	case errors.Is(err, rollback.ErrDamaged), errors.Is(err, rollback.ErrCorrupt):
		code = exitCorrupt
	case errors.Is(err, rollback.ErrConflict):
		hint = orElse(hint, "--keep PATTERN leaves such files as they are, --take PATTERN gives them up; --dry-run lists them")
	case errors.Is(err, rollback.ErrInterrupted):
		hint = orElse(hint, "the same command without --dry-run recovers it first")
	case errors.Is(err, tree.ErrChanged):
		hint = orElse(hint, changedHint)
	case errors.Is(err, remote.ErrHostKey):
		hint = orElse(hint, "if the machine was replaced on purpose, reinstall it (`ingot node set NODE --install`); else somebody stands in between")
	case errors.Is(err, remote.ErrNoPin):
		hint = orElse(hint, "connect once with ssh and accept the key after checking it, or install the node with ingot, which pins it")
	case errors.Is(err, remote.ErrAuth):
		hint = orElse(hint, "put the site's key (SITE/.ingot/keys/id_ed25519.pub) or yours into root's authorized_keys on the node")
	}
	return text, hint, code
}

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// silent is an ending that has been explained already, by another process.
type silent struct{ code int }

func (s silent) Error() string { return fmt.Sprintf("exit status %d", s.code) }

// count is `1 thing` or `n things`.
func count(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}
