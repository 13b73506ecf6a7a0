package main

import (
	"errors"

	"ingot/imager/tree"
	"ingot/imager/wire"
	"ingot/rollback"
)

// asBeforeError is an error after the word to switch that leaves the node as
// it was: what it runs has not changed.
type asBeforeError struct{ error }

func (e *asBeforeError) Unwrap() error { return e.error }

// notSwitched marks the error of a switch that was put back. One that made a
// generation, or waits for recovery, was not.
func notSwitched(g rollback.Generation, err error) error {
	if g.Number != 0 || errors.Is(err, rollback.ErrInterrupted) {
		return err
	}
	return &asBeforeError{err}
}

// describe maps the kinds of rollback's errors to words that cross the wire.
func describe(err error) wire.Error {
	e := wire.Error{Kind: "failed", Text: err.Error(), AsBefore: errors.As(err, new(*asBeforeError))}
	var gone *sideGoneError
	switch {
	case errors.As(err, &gone):
		e.Hint = gone.hint()
	case errors.Is(err, tree.ErrChanged):
		e.Kind, e.Hint = "changed", "--snapshot captures a snapshot, --allow-changed PATTERN takes such files as they come, --exclude PATTERN leaves them out"
	case errors.Is(err, errMoved):
		e.Kind, e.Hint = "changed", "capture it again"
	case errors.Is(err, rollback.ErrBusy):
		e.Kind, e.Hint = "busy", "somebody else changes this node; wait, or end them"
	case errors.As(err, new(*sideBusyError)):
		e.Kind, e.Hint = "busy", busyHint
	case errors.Is(err, rollback.ErrOnTrial):
		e.Kind, e.Hint = "busy", "the push that made it confirms it, and so does the same push again; `/.ingot/agent confirm` on the node keeps it, a rollback takes it back"
	case errors.Is(err, errUnchecked), errors.As(err, new(*leavingError)):
		e.Kind = "busy"
	case errors.Is(err, rollback.ErrNoTrial):
		e.Kind = "notrial"
	case errors.Is(err, rollback.ErrInterrupted):
		e.Kind, e.Hint = "interrupted", "run `/.ingot/agent recover` on the node (a reboot recovers only nodes that ingot installed)"
	case errors.Is(err, rollback.ErrVolume):
		e.Hint = "mount it, then run `/.ingot/agent recover` on the node where a switch was interrupted, or push again"
	case errors.Is(err, rollback.ErrConflict):
		e.Kind, e.Hint = "conflict", "--keep PATTERN leaves such files as they are, --take PATTERN gives them up; --dry-run lists them"
	case errors.Is(err, rollback.ErrNoSpace):
		e.Kind, e.Hint = "space", "make room on the node"
	case errors.Is(err, rollback.ErrNoGeneration):
		e.Kind, e.Hint = "notfound", "`/.ingot/agent generations` on the node lists what it keeps"
	case errors.Is(err, rollback.ErrDamaged), errors.Is(err, rollback.ErrCorrupt):
		e.Kind, e.Hint = "corrupt", "push the image again: content that the node lost comes from the server"
	case errors.Is(err, rollback.ErrStale):
		e.Kind, e.Hint = "busy", "somebody else changed this node meanwhile; look again with --dry-run"
	case errors.Is(err, rollback.ErrChanged):
		e.Kind, e.Hint = "changed", "nothing was switched; try again, or stop the program that writes there"
	}
	return e
}
