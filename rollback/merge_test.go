package rollback

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/manifest"
)

// A file as it was given, as the target has it, as the node made it, and with both changes.
const givenText, newerText, localText, mergedText = "one\ntwo\nthree\nfour\nfive\n", "one\ntwo\nthree\nfour\nFIVE\n", "ONE\ntwo\nthree\nfour\nfive\n", "ONE\ntwo\nthree\nfour\nFIVE\n"

// mergeWorld makes a node whose etc/app/conf is to be merged, and has been changed there.
func mergeWorld(t *testing.T) (*world, *Node, Target) {
	t.Helper()
	w := tiny(t, func(dir string) {
		write(t, dir+"/etc/app/conf", newerText)
		ok(t, os.Chmod(dir+"/etc/app/conf", 0o640))
		write(t, dir+"/prog", "new prog")
	})
	write(t, w.old+"/etc/app/conf", givenText)
	write(t, w.at("etc/app/conf"), givenText)
	ts := []unix.Timespec{{Sec: 1e9}, {Sec: 1e9}}
	for _, dir := range []string{w.old, w.dir} {
		ok(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/etc/app/conf", ts, 0))
		ok(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/etc/app", ts, 0))
	}
	w.mold = snapshot(t, w.old)
	before := chunked(t, w.old, w.mold, 7)
	for id, b := range before.chunks {
		w.src.chunks[id] = b // the store has the image of before
	}
	n := open(t, w.dir)
	n.Retention.Keep = 20
	ok(t, n.Record(bg(), Generation{Image: "old:1", Result: "installed"}, w.mold, w.mold, statsOf(t, w.dir, w.mold)))
	write(t, w.at("etc/app/conf"), localText)
	goal := w.goal()
	goal.Policy.Usual = &Policy{Merge: []Merger{{list(t, "/etc/app/*"), `diff3 -m "$LOCAL" "$BASE" "$NEW"`}}}
	return w, n, goal
}

// A file that both sides changed gets both changes, comes back as it was, and
// stays the node's own until the next merge.
func TestMerge(t *testing.T) {
	w, n, goal := mergeWorld(t)
	before := snapshot(t, w.dir)
	p, err := n.Plan(bg(), goal)
	ok(t, err)
	if len(p.Conflicts) != 1 || p.Conflicts[0].Action != Merge || !p.Conflicts[0].Both || p.Err() != nil {
		t.Fatalf("conflicts %v, %v", p.Conflicts, p.Err())
	}
	ok(t, n.Stage(bg(), p, w.src))
	g, err := n.Switch(bg(), p)
	ok(t, err)
	if got := read(t, w.at("etc/app/conf")); got+"\n" != mergedText {
		t.Fatalf("merged: %q", got)
	}
	if st, err := os.Stat(w.at("etc/app/conf")); err != nil || st.Mode() != 0o640 {
		t.Errorf("the mode is not the target's: %v %v", st.Mode(), err)
	}
	if read(t, w.at("prog")) != "new prog" || len(g.Local) != 1 || g.Local[0] != "etc/app/conf" {
		t.Errorf("generation %+v", g)
	}
	if n.exists(in("stage", "merge")) {
		t.Error("the files of the merge were left")
	}
	m, err := n.Manifest(2)
	ok(t, err)
	after := snapshot(t, w.dir)
	same(t, "what is recorded", after, reread(t, m, after))

	// The same again, and then what changes nothing there.
	if p, err = n.Plan(bg(), goal); err != nil || !p.Empty() || p.Err() != nil {
		t.Errorf("the same again: %v %v", p.Steps, err)
	}

	// Without a merge policy it is the node's change, and asked about.
	plain := w.goal()
	plain.Manifest = w.mold
	_, err = push(n, plain, w.src)
	isErr(t, err, ErrConflict, `"etc/app/conf" changed by`[:22])

	w.back(n, 0)
	same(t, "back", before, snapshot(t, w.dir))
	w.back(n, 0)
	same(t, "and forth", after, snapshot(t, w.dir))
	back, err := n.Current()
	ok(t, err)
	if len(back.Local) != 1 {
		t.Errorf("after the way there and back the record has lost what is the node's own: %+v", back)
	}

	// A later image: the base is what the image before gave, not what was made of it.
	third := w.later(map[string]string{"etc/app/conf": "one\ntwo\nthree\nFOUR\nFIVE\n"})
	third.Policy = goal.Policy
	g, err = push(n, third, w.src)
	ok(t, err)
	if got := read(t, w.at("etc/app/conf")); got != "ONE\ntwo\nthree\nFOUR\nFIVE" || len(g.Local) != 1 {
		t.Errorf("merged twice: %q, %q", got, g.Local)
	}
	// An image that does not touch the file keeps it, and it stays the node's own.
	fourth := w.later(map[string]string{"etc/app/conf": "one\ntwo\nthree\nFOUR\nFIVE\n", "prog": "newer still"})
	fourth.Policy = goal.Policy
	g, err = push(n, fourth, w.src)
	ok(t, err)
	if got := read(t, w.at("etc/app/conf")); got != "ONE\ntwo\nthree\nFOUR\nFIVE" || len(g.Local) != 1 || read(t, w.at("prog")) != "newer still" {
		t.Errorf("after a push of something else: %q, %q", got, g.Local)
	}
	_, err = n.Rollback(bg(), 2, Policy{}, "x") // over all of them, without a conflict
	ok(t, err)
	same(t, "back over three", after, snapshot(t, w.dir))
}

// later makes a further target: the new tree with other contents.
func (w *world) later(files map[string]string) Target {
	w.t.Helper()
	for name, text := range files {
		write(w.t, w.new+"/"+name, text)
	}
	m := snapshot(w.t, w.new)
	for id, b := range chunked(w.t, w.new, m, 5).chunks {
		w.src.chunks[id] = b
	}
	return Target{Manifest: m, Image: "later:1", By: "test"}
}

// reread gives a manifest the chunks of another one where it holds the same
// bytes, cut elsewhere.
func reread(t *testing.T, m, as *manifest.Manifest) *manifest.Manifest {
	t.Helper()
	out := &manifest.Manifest{}
	for _, e := range m.Entries {
		if x, found := as.Lookup(e.Path); found && x.Size == e.Size && e.Path != "etc/app/conf" {
			e.Chunks = x.Chunks
		}
		out.Entries = append(out.Entries, e)
	}
	return out
}

func TestMergeThatCannotBe(t *testing.T) {
	for name, tt := range map[string]struct {
		command string
		change  func(w *world)
		says    string
	}{
		"a conflict":              {"", func(w *world) { write(t, w.at("etc/app/conf"), "one\ntwo\nthree\nfour\nmine\n") }, "exit status 1"},
		"deleted":                 {"", func(w *world) { ok(t, os.Remove(w.at("etc/app/conf"))) }, "not all three are files"},
		"a link":                  {"", func(w *world) { ok(t, os.Remove(w.at("etc/app/conf"))); ok(t, os.Symlink("x", w.at("etc/app/conf"))) }, "not all three are files"},
		"two names":               {"", func(w *world) { ok(t, os.Link(w.at("etc/app/conf"), w.at("etc/app/x"))) }, "several names"},
		"its mode, too":           {"", func(w *world) { ok(t, os.Chmod(w.at("etc/app/conf"), 0o600)) }, "metadata"},
		"too large":               {"", func(w *world) { ok(t, os.Truncate(w.at("etc/app/conf"), mergeBytes+1)) }, "bytes"},
		"a command that says why": {"echo no way >&2; exit 7", nil, "exit status 7: no way"},
		"no such command":         {"/nowhere", nil, "exit status 127"},
		"endless output":          {"yes", nil, "prints more than"},
	} {
		t.Run(name, func(t *testing.T) {
			w, n, goal := mergeWorld(t)
			if tt.command != "" {
				goal.Policy.Usual.Merge[0].Command = tt.command
			}
			if tt.change != nil {
				tt.change(w)
			}
			before := snapshot(t, w.dir)
			_, err := push(n, goal, w.src)
			isErr(t, err, ErrConflict, tt.says)
			same(t, "after the refused push", before, snapshot(t, w.dir))
			if names, err := n.list(in("stage")); err != nil || len(names) > 0 {
				t.Errorf("left in the stage: %q %v", names, err)
			}
		})
	}
}

// What the file was before is on the node only in the undo copies of others, if
// at all: without the store's copy nothing is merged, and nothing is changed.
func TestMergeWithoutTheBase(t *testing.T) {
	w, n, goal := mergeWorld(t)
	for i := range w.mold.Entries {
		for _, c := range w.mold.Entries[i].Chunks {
			if now, _ := w.target.Lookup(w.mold.Entries[i].Path); !slices.Contains(now.Chunks, c) {
				delete(w.src.chunks, c.ID)
			}
		}
	}
	before := snapshot(t, w.dir)
	_, err := push(n, goal, w.src)
	if err == nil || !strings.Contains(err.Error(), `merge "etc/app/conf": fetch what was given`) {
		t.Fatalf("got %v", err)
	}
	same(t, "after the refused push", before, snapshot(t, w.dir))
}

// The file is written to while the command runs.
func TestChangedWhileMerging(t *testing.T) {
	w, n, goal := mergeWorld(t)
	goal.Policy.Usual.Merge[0].Command = `echo mine >> ` + w.at("etc/app/conf") + `; cat "$NEW"`
	_, err := push(n, goal, w.src)
	is(t, err, ErrChanged)
	if got := read(t, w.at("etc/app/conf")); !strings.HasSuffix(got, "mine") || read(t, w.at("prog")) == "new prog" {
		t.Errorf("there is %q", got)
	}
}

func TestMergeGivenUp(t *testing.T) {
	w, n, goal := mergeWorld(t)
	goal.Policy.Usual.Merge[0].Command = "sleep 600"
	p, err := n.Plan(bg(), goal)
	ok(t, err)
	ctx, end := context.WithCancel(bg())
	time.AfterFunc(300*time.Millisecond, end)
	before := snapshot(t, w.dir)
	err = n.Stage(ctx, p, w.src)
	if !errors.Is(err, context.Canceled) || n.exists(in("stage", "merge")) {
		t.Errorf("got %v", err)
	}
	same(t, "after it was given up", before, snapshot(t, w.dir))
}

// A merge whose command prints what the file holds already.
func TestMergeToNothingNew(t *testing.T) {
	w, n, goal := mergeWorld(t)
	goal.Policy.Usual.Merge[0].Command = `cat "$LOCAL"`
	ok(t, errOf(push(n, goal, w.src)))
	if got := read(t, w.at("etc/app/conf")); got+"\n" != localText {
		t.Errorf("there is %q", got)
	}
	ok(t, errOf(n.Rollback(bg(), 0, Policy{}, "x")))
}

// What the node had changed is its own again after a rollback brought it back:
// the next push asks about it, as the first one did.
func TestBroughtBackIsLocalAgain(t *testing.T) {
	w := usual(t)
	n := open(t, w.dir)
	n.Retention.Keep = 20
	ok(t, n.Record(bg(), Generation{Image: "old:1", Result: "installed"}, w.mold, w.mold, statsOf(t, w.dir, w.mold)))
	write(t, w.at("prog"), "mine")
	write(t, w.at("etc/mine"), "mine too")
	ok(t, os.Remove(w.at("etc/passwd")))
	goal := w.goal()
	goal.Policy = Policy{Default: Take}
	ok(t, errOf(push(n, goal, w.src)))
	w.back(n, 0)
	if read(t, w.at("prog")) != "mine" {
		t.Fatal("not brought back")
	}
	_, err := push(n, w.goal(), w.src)
	isErr(t, err, ErrConflict, `"prog" changed`)
	isErr(t, err, ErrConflict, `"etc/mine" added`)
	isErr(t, err, ErrConflict, `"etc/passwd" deleted`)
	// Nor does a rollback of the rollback lose it, which itself asks nothing.
	w.back(n, 0)
	w.back(n, 1)
	_, err = push(n, w.goal(), w.src)
	isErr(t, err, ErrConflict, `"prog" changed`)
	goal.Policy = Policy{Keep: list(t, "/prog", "/etc/mine"), Take: list(t, "/etc/passwd")}
	ok(t, errOf(push(n, goal, w.src)))
	_, err = push(n, w.goal(), w.src)
	isErr(t, err, ErrConflict, `"prog" changed`)
	w.back(n, 1)
}

// A merge that dies, or fails, anywhere leaves the file as the node had it, or merged.
func TestMergeDiesAnywhere(t *testing.T) {
	for name, inject := range map[string]error{"dies": nil, "ENOSPC": unix.ENOSPC} {
		t.Run(name, func(t *testing.T) {
			w, n, goal := mergeWorld(t)
			goal.Policy.Usual.Merge[0].Command = `cat "$LOCAL" "$NEW"`
			w.mold = snapshot(t, w.dir)
			c := &campaign{w: w, op: func(n *Node) error {
				n.Now = func() time.Time { return time.Unix(2e9, 0) } // of the merged file
				return errOf(push(n, goal, w.src))
			}}
			ok(t, c.op(n))
			w.mnew = snapshot(t, w.dir)
			if got := read(t, w.at("etc/app/conf")); got+"\n" != localText+newerText {
				t.Fatalf("merged: %q", got)
			}
			c.reset(open(t, w.dir))
			c.run(1, inject)
		})
	}
}
