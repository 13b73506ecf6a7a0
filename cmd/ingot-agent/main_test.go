package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ingot/imager/wire"
	"ingot/rollback"
)

// runAgent is the program on the console.
func runAgent(args ...string) (string, int) {
	var out strings.Builder
	a := app()
	a.Writer, a.ErrWriter = &out, io.Discard
	if err := a.Run(append([]string{"ingot-agent"}, args...)); err != nil {
		return out.String() + err.Error(), exitCode(err)
	}
	return out.String(), 0
}

func TestConsole(t *testing.T) {
	dir := t.TempDir()
	m, src := treeOf(map[string]string{"motd": "one"})
	if _, err := pushTo(t, dir, wire.Request{Ref: "web:1"}, m, src, nil); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"foo", exitUsage, `no verb "foo"`},
		{"rollback there", exitUsage, "no arguments"},
		{"rollback --to x", exitUsage, "invalid value"},
		{"rollback --nope", exitUsage, "nope"},
		{"rollback --keep a** --dir " + dir, exitUsage, "--keep"},
		{"rollback --take a** --dir " + dir, exitUsage, "--take"},
		{"receive it", exitUsage, "no arguments"},
		{"rollback --to 9 --dir " + dir, exitNotFound, "9"},
		{"pin", exitUsage, "one generation"},
		{"pin x", exitUsage, "one generation"},
		{"pin 1 2", exitUsage, "one generation"},
		{"pin --dir " + dir + " 9", exitNotFound, "generation 9"},
		{"pin --dir " + dir + " 2", 0, "generation 2 is kept"},
		{"generations --dir " + dir, 0, "2 * pinned"},
		{"generations --json --dir " + dir, 0, `"pinned":true`},
		{"pin --dir " + dir + " 2 --unpin", 0, "no longer"},
		{"pin --unpin --dir " + dir + " 2", 0, "no longer"},
		{"rollback --dry-run --dir " + dir, 0, "motd"},
		{"generations --dir " + dir, 0, "2 *         push"},
		{"rollback --dir " + dir, 0, "1 changes"},
		{"--help", 0, "pin"},
	} {
		out, code := runAgent(strings.Fields(tc.args)...)
		if code != tc.code || !strings.Contains(out, tc.want) {
			t.Errorf("ingot-agent %s: exit %d, want %d and %q:\n%s", tc.args, code, tc.code, tc.want, out)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "motd")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the rollback: %v", err)
	}
}

// A tree in the middle of a switch is no image, and neither is one that was
// switched while it was read.
func TestCaptureNeedsOneGeneration(t *testing.T) {
	dir := t.TempDir()
	m, src := treeOf(map[string]string{"motd": "one"})
	if g, err := settled(dir); g != 0 || err != nil {
		t.Errorf("a tree that ingot never touched: %d, %v", g, err)
	}
	if _, err := pushTo(t, dir, wire.Request{}, m, src, nil); err != nil {
		t.Fatal(err)
	}
	if g, err := settled(dir); g != 2 || err != nil {
		t.Errorf("settled = %d, %v", g, err)
	}
	// The controller's answer comes late: meanwhile there is another generation.
	err := captureWhile(t, dir, func() {
		m, src := treeOf(map[string]string{"motd": "one", "other": "two"})
		if _, err := pushTo(t, dir, wire.Request{}, m, src, nil); err != nil {
			t.Error(err)
		}
	})
	if err == nil || !strings.Contains(err.Error(), "changed generation while it was captured") {
		t.Errorf("switched meanwhile: %v", err)
	}
	journal := filepath.Join(dir, ".ingot/journal")
	begin := func() {
		if err := os.WriteFile(journal, nil, 0o600); err != nil {
			t.Error(err)
		}
	}
	if err := captureWhile(t, dir, begin); err == nil || !strings.Contains(err.Error(), "changed generation while it was captured") {
		t.Errorf("a switch began meanwhile: %v", err)
	}
	var peer *wire.Error
	if err := captureWhile(t, dir, func() { t.Error("it walked a tree between two generations") }); !errors.As(err, &peer) ||
		peer.Kind != "interrupted" || peer.Text != rollback.ErrInterrupted.Error() || !strings.Contains(peer.Hint, "a reboot recovers only nodes that ingot installed") {
		t.Errorf("interrupted: %v", err)
	}
}

// captureWhile captures dir; meanwhile runs before the agent's first question is answered.
func captureWhile(t *testing.T, dir string, meanwhile func()) (err error) {
	t.Helper()
	session(t, func(c *wire.Conn) {
		if err = c.Send(wire.KindRequest, wire.Request{Verb: wire.VerbCapture, Dir: dir, Exclude: []string{"/.ingot/**"}}); err != nil {
			return
		}
		for {
			var f wire.Frame
			if f, err = c.Next(nil); err != nil || f.Kind == wire.KindAnswer {
				return
			}
			if f.Kind != wire.KindHave {
				continue
			}
			meanwhile()
			ids, _ := c.IDs(f)
			if err = c.SendIDs(wire.KindMissing, ids); err != nil {
				return
			}
		}
	})
	return err
}
