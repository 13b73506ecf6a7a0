package main

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"ingot/imager/wire"
	"ingot/inventory"
	"ingot/site"
)

// What nodes have alike is one line, whatever else each has.
func TestDriftText(t *testing.T) {
	motd := wire.Drift{Path: "etc/motd", Kind: "changed", Why: "content, 8 to 12 bytes"}
	kept := wire.Drift{Path: "etc/shadow", Kind: "changed", Why: "content, 9 bytes", Left: "never rolled back"}
	odd := wire.Drift{Path: wire.PathText("a\n\xff"), Kind: "added", Why: "file of 1 bytes"}
	of := func(node string, list ...wire.Drift) outcome {
		return outcome{Node: node, State: stateDone, Plan: wire.Plan{From: 3, Drift: list}}
	}
	views := viewDrift([]outcome{of("n01", motd, kept), of("n02"), of("n03", motd, odd), of("n04", kept), {Node: "n05", State: stateFailed, err: errors.New("gone"), Error: "gone"}})
	want := `n[01,03]: changed  "/etc/motd"  content, 8 to 12 bytes
n[01,04]: left     "/etc/shadow"  changed, content, 9 bytes: never rolled back
n03: added    "/a\n\xff"  file of 1 bytes
n01: 1 path differs from generation 3
n[02,04]: nothing differs from generation 3
n03: 2 paths differ from generation 3
`
	if got := driftText(views); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if got := differing(views); !reflect.DeepEqual(got, []string{"n01", "n03"}) {
		t.Errorf("%q differ", got)
	}
}

// A look is told with its time, until the node is made something else.
func TestDriftLook(t *testing.T) {
	ctx := t.Context()
	db, err := inventory.Open(ctx, t.TempDir()+"/state.db")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	w := &world{state: db, Site: &site.Site{}}
	view := func() nodeView {
		t.Helper()
		v, err := viewNode(ctx, w, &site.Node{Name: "n1"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	says := func(want string) {
		t.Helper()
		if got := view().drift(); got != want {
			t.Errorf("says %q, want %q", got, want)
		}
	}
	made := func(number int, kind string) {
		t.Helper()
		if err := db.AddGeneration(ctx, inventory.Generation{Node: "n1", Number: number, Ref: "x:1", Image: "00", Kind: kind}); err != nil {
			t.Fatal(err)
		}
	}
	says("")
	made(1, "install")
	says("not looked for since generation 1 was made")
	when := time.Now().Add(time.Minute)
	see := func(l driftLook) {
		t.Helper()
		if err := w.sawDrift(ctx, "n1", l); err != nil {
			t.Fatal(err)
		}
	}
	see(lookOf(1, []wire.Drift{{}, {}, {Left: "kept"}}, false, when))
	at := when.Local().Format(time.DateTime)
	says("2 paths, 1 left on purpose, looked at " + at)
	see(lookOf(1, nil, true, when))
	says("none, looked at " + at + ", every file read")
	if v := view(); v.Drift == nil || !v.Drift.Looked.Equal(when) || !v.Drift.Checksum {
		t.Errorf("the view has %+v", v.Drift)
	}
	made(2, "push")
	says("not looked for since generation 2 was made")
	see(lookOf(1, nil, true, when.Add(-time.Hour)))
	made(1, "install") // anew
	says("not looked for since generation 1 was made")
}
