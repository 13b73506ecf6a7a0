package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"ingot/imager/remote"
	"ingot/imager/store"
	"ingot/imager/wire"
	"ingot/inventory"
	"ingot/site"
)

func TestDiagnose(t *testing.T) {
	corrupt := &store.CorruptError{Where: "packs/ab/abcd"}
	tests := []struct {
		name string
		err  error
		code int
		text string // contained
		hint string // contained; "" is none
	}{
		{"anything", errors.New("no space"), 1, "no space", ""},
		{"usage", usagef("want %s", "NAME"), 2, "want NAME", ""},
		{"usage inside", fmt.Errorf("node: %w", withHint(usagef("bad"), "see help")), 2, "node: bad", "see help"},
		{"some nodes", coded{errors.New("2 of 3"), exitSome}, 3, "2 of 3", ""},
		{"busy agent", fmt.Errorf("node %q: %w", "n1", &wire.Error{Kind: "busy", Text: "mid-change", Hint: "wait"}), 4, "mid-change", "wait"},
		{"corrupt on the node", &wire.Error{Kind: "corrupt", Text: "undo copy"}, 6, "undo copy", ""},
		{"other agent error", &wire.Error{Kind: "space", Text: "full"}, 1, "full", ""},
		{"not in the store", fmt.Errorf("image: %w", store.ErrMissing), 5, "image", ""},
		{"not in the inventory", fmt.Errorf("node: %w", inventory.ErrNotFound), 5, "node", ""},
		{"corrupt", fmt.Errorf("read: %w", corrupt), 6, "packs/ab/abcd", "`ingot image verify --repair` takes damaged packs out of use; then capture or build the image again"},
		{"a pack is missing", errors.Join(store.Damage{Object: "pack", ID: "ab", Err: store.ErrMissing, Images: []string{"web:1"}}), 6, "concerns web:1", "image verify"},
		{"interrupted", fmt.Errorf("push: %w", context.Canceled), 130, "interrupted", ""},
		{"interrupted beats corrupt", errors.Join(context.Canceled, corrupt), 130, "interrupted", ""},
		{"interrupted among several nodes", coded{fmt.Errorf("node n2: %w", context.Canceled), exitSome}, 130, "interrupted", ""},
		{"a deadline is a failure", context.DeadlineExceeded, 1, "deadline", ""},
		{"problems", site.Problems{{File: "a.yaml", Line: 1, Col: 2, Text: "bad"}}, 1, "1 problem:\na.yaml:1:2: bad", ""},
		{"problems inside", fmt.Errorf("add node: %w", site.Problems{{File: "a.yaml", Text: "bad"}}), 1, "add node: a.yaml: bad", ""},
		{"host key", fmt.Errorf("n1: %w", remote.ErrHostKey), 1, "n1", "ingot node set NODE --install"},
		{"no pin", fmt.Errorf("n1: %w", remote.ErrNoPin), 1, "n1", "ssh"},
		{"no key accepted", fmt.Errorf("n1: %w", remote.ErrAuth), 1, "n1", "authorized_keys"},
		{"a code and a hint together", withHint(coded{fs.ErrNotExist, exitNotFound}, "make it"), 5, "not exist", "make it"},
		{"an own hint wins", withHint(corrupt, "look here"), 6, "", "look here"},
	}
	codes := map[int]bool{exitDone: true}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text, hint, code := diagnose(tt.err)
			codes[code] = true
			if code != tt.code || !strings.Contains(text, tt.text) || text == "" {
				t.Errorf("%d %q, want %d %q", code, text, tt.code, tt.text)
			}
			if !strings.Contains(hint, tt.hint) || tt.hint == "" && hint != "" {
				t.Errorf("hint %q, want %q", hint, tt.hint)
			}
		})
	}
	// The table that help prints has these codes and no other.
	for _, m := range regexp.MustCompile(`\d+`).FindAllString(exitStatus, -1) {
		n, err := strconv.Atoi(m)
		if err != nil || !codes[n] {
			t.Errorf("exit code %s of the help is not tried here", m)
		}
		delete(codes, n)
	}
	for n := range codes {
		t.Errorf("exit code %d is not in the help", n)
	}
}

func TestWithHintOfNothing(t *testing.T) {
	if err := withHint(nil, "way out"); err != nil {
		t.Errorf("no error became %v", err)
	}
}

// TestInterruptedRun ends with 130 whatever the verb says.
func TestInterruptedRun(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var e strings.Builder
	p := &program{Args: []string{"ingot", "node", "list", "--site", t.TempDir()}, Stdout: io.Discard, Stderr: &e}
	if code := p.Run(ctx); code != exitInterrupted || e.String() != "ingot: interrupted\n" {
		t.Errorf("exit %d, %q", code, e.String())
	}
}

func TestWordsForPeople(t *testing.T) {
	for d, want := range map[time.Duration]string{-time.Hour: "0s", 59 * time.Second: "59s", time.Hour - 1: "59m", 47 * time.Hour: "47h", 50 * time.Hour: "2d", 400 * 24 * time.Hour: "400d"} {
		if got := age(d); got != want {
			t.Errorf("age(%s) = %q, want %q", d, got, want)
		}
	}
	for n, want := range map[int]string{0: "0 nodes", 1: "1 node", 2: "2 nodes"} {
		if got := count(n, "node"); got != want {
			t.Errorf("count(%d) = %q", n, got)
		}
	}
	for n, want := range map[int64]string{-1: "0 B", 999: "999 B", 1000: "1.0 kB", 1468006: "1.5 MB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for _, tt := range []struct {
		p    wire.Progress
		want string
	}{{wire.Progress{Task: "verify", Done: 5000, Total: 10000}, "verify: 5.0 kB of 10 kB"}, {wire.Progress{Task: "scan", Done: 1000}, "scan: 1.0 kB"}, {wire.Progress{Task: "switch"}, "switch"}} {
		if got := plainProgress(tt.p); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
	if got := masked("ROOTPW", "x"); got == "x" {
		t.Error("a password is shown")
	}
	if got := masked("ROOTPW", "") + masked("PWD", "/"); got != "/" {
		t.Errorf("masked %q", got)
	}
}
