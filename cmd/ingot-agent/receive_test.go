package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/rollback"
)

// What the operator's exit code is made of crosses the wire as a word.
func TestKindsOfFailure(t *testing.T) {
	for _, tc := range []struct {
		err  error
		kind string
		code int
	}{
		{&rollback.BusyError{Holder: "stage"}, "busy", exitBusy},
		{fmt.Errorf("stage: %w", rollback.ErrStale), "busy", exitFailed},
		{rollback.ErrInterrupted, "interrupted", exitFailed},
		{&rollback.ConflictError{}, "conflict", exitFailed},
		{&rollback.SpaceError{}, "space", exitFailed},
		{fmt.Errorf("generation 9: %w", rollback.ErrNoGeneration), "notfound", exitNotFound},
		{&rollback.DamagedError{}, "corrupt", exitCorrupt},
		{rollback.ErrCorrupt, "corrupt", exitCorrupt},
		{rollback.ErrChanged, "changed", exitFailed},
		{fmt.Errorf("%w: %w", errMoved, rollback.ErrInterrupted), "changed", exitFailed},
		{errors.New("something else"), "failed", exitFailed},
		{usageError{"no"}, "failed", exitUsage},
	} {
		e := describe(tc.err)
		if e.Kind != tc.kind || e.Text != tc.err.Error() || (e.Hint == "") != (tc.kind == "failed") {
			t.Errorf("describe(%v) = %+v, want the kind %q and a hint", tc.err, e, tc.kind)
		}
		if code := exitCode(tc.err); code != tc.code {
			t.Errorf("exitCode(%v) = %d, want %d", tc.err, code, tc.code)
		}
	}
}

// The watch over a silent controller closes the streams: what waits for them must end.
func TestCloseEndsWhatWaits(t *testing.T) {
	for _, end := range []string{"read", "write"} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Fd() // blocking, as standard streams are
		w.Fd()
		in, out := pollable(r), pollable(w)
		time.AfterFunc(100*time.Millisecond, func() {
			if end == "read" {
				in.Close()
			} else {
				out.Close()
			}
		})
		ended := make(chan error, 1)
		go func() {
			if end == "read" {
				_, err := in.Read(make([]byte, 1))
				ended <- err
				return
			}
			_, err := out.Write(make([]byte, 1<<20)) // more than a pipe holds
			ended <- err
		}()
		select {
		case err := <-ended:
			if err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%s = %v", end, err)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("a %s went on after its stream was closed", end)
		}
	}
}

// A journal alone does not say that a switch was interrupted.
func TestSwitchUnderWayIsBusy(t *testing.T) {
	for _, tc := range []struct {
		name          string
		journal, held bool
		want          error
	}{
		{"interrupted", true, false, rollback.ErrInterrupted},
		{"under way", true, true, rollback.ErrBusy},
		{"just ended", false, false, rollback.ErrBusy},
	} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, ".ingot"), 0o700); err != nil {
			t.Fatal(err)
		}
		lock, err := os.Create(filepath.Join(dir, ".ingot/lock"))
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		if tc.held {
			if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
				t.Fatal(err)
			}
		}
		if tc.journal {
			if err := os.WriteFile(filepath.Join(dir, ".ingot/journal"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := underWay(dir, fmt.Errorf("plan: %w", rollback.ErrInterrupted)); !errors.Is(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}
