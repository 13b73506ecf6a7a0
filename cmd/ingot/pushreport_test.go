package main

import (
	"fmt"
	"strings"
	"testing"

	"ingot/imager/wire"
)

func TestItemised(t *testing.T) {
	plan := wire.Plan{Need: 1, NeedBytes: 1500, LocalBytes: 2500000,
		Changes:   []wire.Change{{Path: "a\nb", Kind: "add", Why: "new in the image: file of 1 bytes"}, {Path: "etc", Kind: "meta", Why: "mode 0700 to 0755"}, {Path: "z", Kind: "add", Why: "w"}},
		Conflicts: []wire.Change{{Path: "etc/motd", Kind: "changed", Why: "refuse"}},
		Notes:     []string{`"x": node-owned`}}
	want := `n1: add      "/a\nb"  new in the image: file of 1 bytes
n1: meta     "/etc"  mode 0700 to 0755
n1: add      "/z"  w
n1: conflict "/etc/motd": changed on the node: refuse
n1: note     "x": node-owned
n1: 2 to add, 0 to replace, 0 to delete, 1 metadata; 1 chunk (1.5 kB) to send, 2.5 MB taken from what is there
`
	if got := itemised("n1", plan); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestFolded(t *testing.T) {
	var notes []string
	for i := range 7 {
		notes = append(notes, fmt.Sprintf(`"home/u: %d": node-owned`, i))
	}
	notes = append(notes, `"mnt": a mount point`, "no path at all")
	want := `"home/u: 0": node-owned
"home/u: 1": node-owned
"home/u: 2": node-owned
"home/u: 3": node-owned
and 3 paths more: node-owned
"mnt": a mount point
no path at all`
	if got := strings.Join(folded(notes), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := folded(notes[:5]); len(got) != 5 {
		t.Errorf("five of a kind are folded: %q", got)
	}
}
