//go:build linux && amd64

package images

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ingot/imager"
	"ingot/imager/store"
	"ingot/imager/tree"
	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/manifest"
	"ingot/internal/steps"
	"ingot/internal/torture"
)

// treeOf is where a site of these tests has the tree that is pushed to.
func treeOf(s site) string { return filepath.Join(s.dir, "tree") }

// is checks that the tree is one of these images.
func (s site) is(images ...string) error {
	m, _, err := tree.Capture(s.t.Context(), treeOf(s), tree.CaptureOptions{})
	if err != nil {
		return err
	}
	if !slices.Contains(images, m.ID().String()) {
		return fmt.Errorf("the tree is %s, neither of %v", m.ID(), images)
	}
	return nil
}

// recovered finishes or undoes what was interrupted, as a boot does.
func (s site) recovered() error {
	if r := runProgram(s.t, built(agent), "recover", "--dir", treeOf(s)); r.code != 0 {
		return fmt.Errorf("recover: exit %d: %s", r.code, r.said())
	}
	return nil
}

// A push that is broken at any step leaves, once it is recovered, the old tree
// or the new; a push into an empty directory can be repeated; and so can a
// push that nobody recovered.
func TestBrokenPush(t *testing.T) {
	need(t, "cp")
	src := t.TempDir()
	s := siteIn(t, quickDir(t))
	ok(t, os.Mkdir(treeOf(s), 0o755))
	tinyTree(t, src)
	old := s.captured(src, "web:1")
	ok(t, os.Remove(filepath.Join(src, "link")))
	ok(t, os.WriteFile(filepath.Join(src, "large"), torture.Noise(9, 100<<10), 0o600))
	ok(t, os.WriteFile(filepath.Join(src, "more"), []byte("more\n"), 0o444))
	now := s.captured(src, "web:2")
	push := func(image string) func(site) []string {
		return func(s site) []string { return []string{"push", image, "--dir", treeOf(s)} }
	}
	wants := map[string][]string{"web:1": {old}, "web:2": {now}}
	t.Run("empty", func(t *testing.T) {
		ordeal{site: s, wants: wants, args: push("web:1"),
			whole: func(s site) error { return s.has("web:1", "web:2") },
			done:  func(s site) error { return s.is(old) },
		}.run(t)
	})
	s.must(push("web:1")(s)...)
	t.Run("update", func(t *testing.T) {
		ordeal{site: s, wants: wants, args: push("web:2"),
			whole: func(s site) error {
				if err := s.recovered(); err != nil {
					return err
				}
				return s.is(old, now)
			},
			done: func(s site) error { return s.is(now) },
		}.run(t)
	})
	t.Run("repeat", func(t *testing.T) {
		ordeal{site: s, wants: wants, brief: true, args: push("web:2"),
			whole: func(s site) error { return s.has("web:1", "web:2") },
			done:  func(s site) error { return s.is(now) },
		}.run(t)
	})
}

// An agent that is broken at any step of a push has left, once it is
// recovered, the old tree or the new, and can be pushed to again.
func TestBrokenAgent(t *testing.T) {
	need(t, "cp")
	src := t.TempDir()
	s := siteIn(t, quickDir(t))
	ok(t, os.Mkdir(treeOf(s), 0o755))
	tinyTree(t, src)
	old := s.captured(src, "web:1")
	s.must("push", "web:1", "--dir", treeOf(s))
	ok(t, os.Remove(filepath.Join(src, "link")))
	ok(t, os.WriteFile(filepath.Join(src, "large"), torture.Noise(9, 100<<10), 0o600))
	now := s.captured(src, "web:2")
	version := agentVersion(t)
	ordeal{site: s, wants: map[string][]string{"web:1": {old}, "web:2": {now}},
		runs: func(s site, f steps.Fault) (result, steps.Result) { return s.pushThrough(f, version, "web:2") },
		whole: func(s site) error {
			if err := s.recovered(); err != nil {
				return err
			}
			return s.is(old, now)
		},
		done: func(s site) error { return s.is(now) },
	}.run(t)
}

func agentVersion(t testing.TB) string {
	t.Helper()
	return strings.TrimSpace(strings.TrimPrefix(runProgram(t, built(agent), "--version").out, "ingot-agent version "))
}

// pushThrough pushes an image to the tree of a site through an agent with a fault.
func (s site) pushThrough(f steps.Fault, version, image string) (result, steps.Result) {
	s.t.Helper()
	f.Within, f.Report = []string{treeOf(s)}, s.dir+".report"
	f.Argv = []string{built(agent), "receive"}
	cmd, err := steps.Command(f)
	ok(s.t, err)
	in, err := cmd.StdinPipe()
	ok(s.t, err)
	out, err := cmd.StdoutPipe()
	ok(s.t, err)
	var said bytes.Buffer
	cmd.Stderr = &said
	ok(s.t, cmd.Start())
	c := wire.New(out, in)
	err = c.Greet(version)
	if err == nil {
		err = s.push(c, image, nil)
	}
	in.Close()
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait() // its exit status is in the report
	st, readErr := f.Read()
	ok(s.t, readErr)
	r := result{code: st.Code, err: said.String()}
	if err != nil {
		r.err += err.Error()
		r.code = max(1, r.code)
	}
	return r, st
}

func (s site) push(c *wire.Conn, image string, progress func(wire.Progress)) error {
	images, err := store.Open(s.store())
	if err != nil {
		return err
	}
	id, err := images.Resolve(s.t.Context(), image)
	if err != nil {
		return err
	}
	target := imager.Target{ID: id, Source: images, Manifest: func() (*manifest.Manifest, error) { return images.Manifest(s.t.Context(), id) }}
	req := wire.Request{Dir: treeOf(s), By: "test", Ref: image, Image: id, Overlay: digest.Of([]byte("none"))}
	_, _, err = imager.Push(s.t.Context(), c, req, target, imager.Talk{Progress: progress, Decide: func(p wire.Plan) error {
		if len(p.Conflicts) > 0 {
			return errors.New("conflicts")
		}
		return nil
	}})
	return err
}
