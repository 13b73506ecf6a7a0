package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ingot/imager"
	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/rollback"
)

// chunks is a store in memory.
type chunks map[digest.ID][]byte

func (s chunks) Fetch(_ context.Context, ids []digest.ID, fn func(digest.ID, []byte) error) error {
	for _, id := range ids {
		if s[id] == nil {
			return fmt.Errorf("no chunk %s", id.Short())
		}
		if err := fn(id, s[id]); err != nil {
			return err
		}
	}
	return nil
}

func (s chunks) Missing(_ context.Context, ids []digest.ID) ([]digest.ID, error) {
	var out []digest.ID
	for _, id := range ids {
		if s[id] == nil {
			out = append(out, id)
		}
	}
	return out, nil
}

// session is one request of a controller to an agent.
func session(t *testing.T, fn func(*wire.Conn)) {
	t.Helper()
	fromAgent, toController := io.Pipe()
	fromController, toAgent := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := answer(t.Context(), wire.New(fromController, toController))
		toController.Close()
		ended <- err
	}()
	fn(wire.New(fromAgent, toAgent))
	toAgent.Close()
	go io.Copy(io.Discard, fromAgent)
	<-ended
}

func treeOf(files map[string]string) (*manifest.Manifest, chunks) {
	m := &manifest.Manifest{Entries: []entry.Entry{{Path: ".", Type: entry.Dir, Mode: 0o755, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}}}
	src := chunks{}
	for path, text := range files {
		id := digest.Of([]byte(text))
		src[id] = []byte(text)
		m.Entries = append(m.Entries, entry.Entry{Path: path, Type: entry.File, Mode: 0o644, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
			Size: int64(len(text)), Chunks: []entry.Chunk{{ID: id, Size: uint32(len(text))}}})
	}
	m.Sort()
	return m, src
}

func whole(m *manifest.Manifest, src chunks) imager.Target {
	return imager.Target{ID: m.ID(), Manifest: func() (*manifest.Manifest, error) { return m, nil }, Source: src}
}

func agree(wire.Plan) error { return nil }

func pushTo(t *testing.T, dir string, req wire.Request, m *manifest.Manifest, src chunks, kept func(wire.Kept) error) (plan wire.Plan, err error) {
	t.Helper()
	req.Dir = dir
	session(t, func(c *wire.Conn) {
		plan, _, err = imager.Push(t.Context(), c, req, whole(m, src), imager.Talk{Decide: agree, Kept: kept})
	})
	return plan, err
}

// A release may change everything: its plan is larger than a frame.
func TestPlanOfAnySize(t *testing.T) {
	m, _ := treeOf(nil)
	long := strings.Repeat("long", 50)
	for i := range 40_000 {
		m.Entries = append(m.Entries, entry.Entry{Path: fmt.Sprintf("%s-%06d", long, i), Type: entry.Symlink, Mode: 0o777, Target: "x"})
	}
	m.Sort()
	plan, err := pushTo(t, t.TempDir(), wire.Request{DryRun: true}, m, nil, nil)
	if err != nil || len(plan.Changes) != 40_000 {
		t.Errorf("%d changes, %v", len(plan.Changes), err)
	}
}

// A dry run tells what the push would say.
func TestDryRunTellsOfRefusal(t *testing.T) {
	dir := t.TempDir()
	m, src := treeOf(map[string]string{"motd": "one"})
	if _, err := pushTo(t, dir, wire.Request{}, m, src, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "motd"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	m, src = treeOf(map[string]string{"motd": "two"})
	plan, err := pushTo(t, dir, wire.Request{DryRun: true}, m, src, nil)
	if err != nil || plan.Refused == nil || plan.Refused.Kind != "conflict" || !strings.Contains(plan.Refused.Text, "motd") {
		t.Errorf("refused: %+v, %v", plan.Refused, err)
	}
	if _, err := pushTo(t, dir, wire.Request{}, m, src, nil); err == nil || err.Error() != plan.Refused.Text {
		t.Errorf("the push says %v, the dry run %q", err, plan.Refused.Text)
	}
}

// A controller hears what a node keeps before anything else, even when the
// node then refuses.
func TestSessionBeginsWithGenerations(t *testing.T) {
	dir := t.TempDir()
	m, src := treeOf(map[string]string{"motd": "one"})
	var heard []wire.Generation
	hear := func(k wire.Kept) error { heard = k.Generations; return nil }
	if _, err := pushTo(t, dir, wire.Request{Ref: "web:1"}, m, src, hear); err != nil || len(heard) != 0 {
		t.Fatalf("heard %+v, %v", heard, err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".ingot/journal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := pushTo(t, dir, wire.Request{Ref: "web:2"}, m, src, hear)
	var peer *wire.Error
	if !errors.As(err, &peer) || peer.Kind != "interrupted" || len(heard) != 2 || heard[1].Ref != "web:1" {
		t.Errorf("heard %+v, %v", heard, err)
	}
}

// An undo copy that is damaged is healed from the store; without it nothing is switched.
func TestRollbackOverDamage(t *testing.T) {
	dir := t.TempDir()
	one, src := treeOf(map[string]string{"prog": "old prog"})
	if _, err := pushTo(t, dir, wire.Request{}, one, src, nil); err != nil {
		t.Fatal(err)
	}
	two, newer := treeOf(map[string]string{"prog": "new prog"})
	if _, err := pushTo(t, dir, wire.Request{}, two, newer, nil); err != nil {
		t.Fatal(err)
	}
	copies, err := filepath.Glob(filepath.Join(dir, ".ingot/generations/2/undo/*"))
	if err != nil || len(copies) != 1 {
		t.Fatalf("undo copies %q, %v", copies, err)
	}
	if err := os.WriteFile(copies[0], []byte("bad prog"), 0o644); err != nil {
		t.Fatal(err)
	}
	back := func(src chunks) (err error) {
		session(t, func(c *wire.Conn) {
			_, _, err = imager.Rollback(t.Context(), c, wire.Request{Dir: dir}, src, imager.Talk{Decide: agree})
		})
		return err
	}
	var peer *wire.Error
	if err := back(nil); !errors.As(err, &peer) || peer.Kind != "corrupt" || !strings.Contains(peer.Text, `"prog"`) {
		t.Errorf("without the store: %v", err)
	}
	console := app()
	console.Writer = io.Discard
	if err := console.Run([]string{"ingot-agent", "rollback", "--dir", dir}); !errors.Is(err, rollback.ErrDamaged) || !strings.Contains(err.Error(), `"prog"`) {
		t.Errorf("on the console: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "prog")); err != nil || string(b) != "new prog" {
		t.Errorf("after refused rollbacks: %q, %v", b, err)
	}
	if err := back(src); err != nil {
		t.Errorf("with the store: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "prog")); err != nil || string(b) != "old prog" {
		t.Errorf("after the rollback: %q, %v", b, err)
	}
}

// A controller that has given up while the node was busy with what it has
// itself does not have it switched: here, a rollback.
func TestGivenUpWhileStaging(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"old", "new"} {
		m, src := treeOf(map[string]string{"prog": text})
		if _, err := pushTo(t, dir, wire.Request{}, m, src, nil); err != nil {
			t.Fatal(err)
		}
	}
	ctx, giveUp := context.WithCancel(t.Context())
	session(t, func(c *wire.Conn) {
		progress := func(p wire.Progress) {
			if p.Task == "stage" {
				giveUp()
			}
		}
		_, done, err := imager.Rollback(ctx, c, wire.Request{Dir: dir}, chunks{}, imager.Talk{Decide: agree, Progress: progress})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("given up: %+v, %v", done, err)
		}
	})
	if b, err := os.ReadFile(filepath.Join(dir, "prog")); err != nil || string(b) != "new" {
		t.Errorf("it was switched to %q, %v", b, err)
	}
}
