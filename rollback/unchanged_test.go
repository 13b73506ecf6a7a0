package rollback

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// A file is known while its inode is as it was recorded; a change that keeps
// size and mtime is seen by its ctime. The file system may have got another
// number since, as btrfs does at each mount.
func TestUnchangedKnowsOnlyWhatIsUntouched(t *testing.T) {
	for name, shift := range map[string]uint64{"same number": 0, "another number": 7} {
		t.Run(name, func(t *testing.T) { knowsOnlyWhatIsUntouched(t, shift) })
	}
}

func knowsOnlyWhatIsUntouched(t *testing.T, shift uint64) {
	top := t.TempDir()
	old := time.Now().Add(-time.Hour)
	m := &manifest.Manifest{Entries: []entry.Entry{{Path: ".", Type: entry.Dir, Mode: 0o755}}}
	stats := map[string]entry.Stat{}
	stat := func(name string) entry.Stat {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(top, name), &st); err != nil {
			t.Fatal(err)
		}
		return entry.StatOf(&st)
	}
	for _, name := range []string{"a", "b"} {
		path := filepath.Join(top, name)
		if err := os.WriteFile(path, []byte("content "+name), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
		id := digest.Of([]byte("content " + name))
		m.Entries = append(m.Entries, entry.Entry{Path: name, Type: entry.File, Mode: 0o644, Size: 9, ModTime: old.UnixNano(), Chunks: []entry.Chunk{{ID: id, Size: 9}}})
		st := stat(name)
		st.Dev += shift
		stats[name] = st
	}
	n, err := Open(top, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if known, err := n.Unchanged(); err != nil {
		t.Fatal(err)
	} else if _, ok := known("a", stat("a")); ok {
		t.Error("a tree without generations knows a file")
	}
	if err := n.Record(t.Context(), Generation{Number: 1, Mode: "live", Result: "installed"}, m, nil, stats); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(top, "b"), []byte("CONTENT b"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(top, "b"), old, old); err != nil {
		t.Fatal(err)
	}
	known, err := n.Unchanged()
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := known("a", stat("a")); !ok || e.Chunks[0].ID != digest.Of([]byte("content a")) {
		t.Errorf("the untouched file is not known: %v", e)
	}
	if _, ok := known("b", stat("b")); ok {
		t.Error("a file that was changed under its old size and time is taken as known")
	}
}

// What a switch has just made is known with its metadata once a plan of
// nothing has looked at it later, and is not known for longer than it is true.
func TestRemember(t *testing.T) {
	dir := scratch(t)
	ok(t, os.Mkdir(dir+"/new", 0o755))
	ok(t, os.Mkdir(dir+"/node", 0o755))
	files := map[string]string{}
	for i := range worthWriting {
		files[fmt.Sprintf("etc/f%d", i)] = fmt.Sprint(i)
	}
	plot(t, dir+"/new", files)
	m := snapshot(t, dir+"/new")
	goal := Target{Manifest: m}
	n := open(t, dir+"/node")
	_, err := push(n, goal, chunked(t, dir+"/new", m, 100))
	ok(t, err)
	if files, meta := cached(t, n, 2); files != worthWriting || meta != 0 {
		t.Fatalf("%d files are known after the push, %d with metadata", files, meta)
	}
	n.Now = func() time.Time { return time.Now().Add(time.Minute) }
	p, err := n.Plan(t.Context(), goal)
	ok(t, err)
	n.Remember(p)
	if files, meta := cached(t, n, 2); files != worthWriting || meta < worthWriting {
		t.Errorf("%d files are known after the plan, %d with metadata", files, meta)
	}
	ok(t, unix.Setxattr(dir+"/node/etc/f7", "user.new", []byte("x"), 0))
	p, err = n.Plan(t.Context(), goal)
	ok(t, err)
	if len(p.Conflicts) != 1 {
		t.Errorf("conflicts %v, want the attribute", p.Conflicts)
	}
	n.Remember(p)
}

// What a generation is left with is recorded where only the links of files
// differ, whose content and metadata do not.
func TestLinksOfWhatIsLeft(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"parted": func(w *world) {
			ok(t, exec.Command("cp", "-p", w.at("one"), w.at("x")).Run())
			ok(t, os.Rename(w.at("x"), w.at("one")))
		},
		"the first of three parted": func(w *world) {
			ok(t, exec.Command("cp", "-p", w.at("a1"), w.at("x")).Run())
			ok(t, os.Rename(w.at("x"), w.at("a1")))
		},
		"linked":           func(w *world) { ok(t, os.Remove(w.at("same2"))); ok(t, os.Link(w.at("same1"), w.at("same2"))) },
		"linked elsewhere": func(w *world) { ok(t, os.Remove(w.at("two"))); ok(t, os.Link(w.at("same1"), w.at("two"))) },
		"not at all":       func(w *world) {},
	} {
		t.Run(name, func(t *testing.T) {
			w := tiny(t, func(dir string) { write(t, dir+"/prog", "new prog") })
			for _, dir := range []string{w.old, w.dir} {
				for _, f := range []string{"one", "a1", "same1", "same2"} {
					write(t, dir+"/"+f, "all the same")
					ts := []unix.Timespec{{Sec: 1e9}, {Sec: 1e9}}
					ok(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/"+f, ts, 0))
				}
				ok(t, os.Link(dir+"/one", dir+"/two"))
				ok(t, os.Link(dir+"/a1", dir+"/a2"))
				ok(t, os.Link(dir+"/a1", dir+"/a3"))
			}
			w.mold = snapshot(t, w.old)
			n := open(t, w.dir)
			ok(t, n.Record(bg(), Generation{Result: "installed"}, w.mold, w.mold, nil))
			st, err := os.Stat(w.dir)
			ok(t, err)
			change(w)
			ok(t, os.Chtimes(w.dir, st.ModTime(), st.ModTime())) // nothing but the links tells
			before := snapshot(t, w.dir)
			goal := w.goal()
			goal.Policy.Default = Take
			ok(t, errOf(push(n, goal, w.src)))
			w.isNew("pushed")
			if left := n.exists(genDir(1, "left")); left == (name == "not at all") {
				t.Errorf("what was left is recorded: %v", left)
			}
			w.back(n, 0)
			same(t, "back", before, snapshot(t, w.dir))
		})
	}
}
