package rollback

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/torture"
)

// A program that makes, changes and removes files all the time, where they are
// kept, does not get in the way of pushes.
func TestTurmoil(t *testing.T) {
	w := newWorld(t, 7, 60, 30)
	n := w.node()
	torture.Turmoil(t, filepath.Join(w.dir, "busy"))
	goal, back := w.goal(), Target{Manifest: w.mold, Image: "old:1", By: "test"}
	goal.Policy = Policy{Keep: list(t, "/busy")}
	back.Policy = goal.Policy
	pushes := 0
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); pushes++ {
		to := goal
		if pushes%2 == 1 {
			to = back
		}
		_, err := push(n, to, w.src)
		ok(t, err)
	}
	t.Logf("%d pushes", pushes)
	want := w.mold
	if pushes%2 == 1 {
		want = w.mnew
	}
	got := snapshot(t, w.dir)
	got.Entries = slices.DeleteFunc(got.Entries, func(e entry.Entry) bool { return e.Path == "busy" || strings.HasPrefix(e.Path, "busy/") })
	same(t, "what nobody stirs", want, got)
}

// A file that is another by the time it is read is taken as it is then; one that
// is gone, or no file, leaves a gap.
func TestFilesThatAreOthersWhenTheyAreRead(t *testing.T) {
	dir := scratch(t)
	p := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"cut", "gone", "link", "new", "pipe", "same", "sub/file"} {
		ok(t, os.MkdirAll(filepath.Dir(p(name)), 0o755))
		write(t, p(name), "of the first look")
	}
	none := indexOf(nil)
	s := &scanner{n: open(t, dir), rules: &rules{}, base: none, target: none}
	items, err := s.walk(bg(), nil)
	ok(t, err)
	l := &live{}
	l.flat(items)

	ok(t, os.Truncate(p("cut"), 3))
	write(t, p("other"), "made anew, and longer than before")
	ok(t, os.Rename(p("other"), p("new")))
	for _, name := range []string{"gone", "link", "pipe"} {
		ok(t, os.Remove(p(name)))
	}
	ok(t, os.Symlink("same", p("link")))
	ok(t, unix.Mkfifo(p("pipe"), 0o600))
	ok(t, os.RemoveAll(p("sub")))
	ok(t, os.Symlink(".", p("sub")))

	want := map[string]string{"cut": "of ", "gone": "", "link": "", "new": "made anew, and longer than before", "pipe": "", "same": "of the first look", "sub/file": ""}
	for _, it := range l.items {
		if it.Type != entry.File {
			continue
		}
		path, state := it.Path, it.stat
		ok(t, s.content(it, &readBuf{}))
		text, listed := want[path]
		delete(want, path)
		switch {
		case it.Entry == nil && listed && text == "":
		case it.Entry == nil || it.Size != int64(len(text)) || len(it.Chunks) != 1 || it.Chunks[0].ID != digest.Of([]byte(text)):
			t.Errorf("%q: %+v", path, it.Entry)
		case (it.stat == state) != (path == "same"):
			t.Errorf("%q: its state is %+v, was %+v", path, it.stat, state)
		}
	}
	if len(want) > 0 {
		t.Errorf("not listed: %v", want)
	}
}
