//go:build linux && amd64

package images

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"ingot/imager/tree"
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
	if r := runProgram(s.t, built("ingot-agent"), "recover", "--dir", treeOf(s)); r.code != 0 {
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
