package main

import (
	"reflect"
	"strings"
	"testing"

	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// What a person can have of a tree, and the words for what not; to reduce it
// again changes nothing and loses nothing but what is not there any more.
func TestReduced(t *testing.T) {
	cap := []entry.Xattr{{Name: "security.capability", Value: "x"}, {Name: "system.posix_acl_access", Value: "y"}, {Name: "user.z", Value: "z"}}
	m := &manifest.Manifest{Entries: []entry.Entry{
		{Path: ".", Type: entry.Dir, Mode: 0o755},
		{Path: "a", Type: entry.File, Mode: 0o6755, UID: 0, GID: 7, Xattrs: cap},
		{Path: "b", Type: entry.File, Mode: 0o6755, UID: 1000, GID: 1000},
		{Path: "c", Type: entry.CharDevice, Mode: 0o600, Major: 1, Minor: 3},
		{Path: "c2", Type: entry.CharDevice, Mode: 0o600, Major: 1, Minor: 3, Link: "c"},
		{Path: "d", Type: entry.Dir, Mode: 0o2775, UID: 1000, GID: 50},
		{Path: "e", Type: entry.Symlink, Mode: 0o777, UID: 5, GID: 5, Target: "a"},
		{Path: "f", Type: entry.FIFO, Mode: 0o644, UID: 1000, GID: 1000},
	}}
	who := person{uid: 1000, gids: []uint32{1000, 50}}
	got, lost := reduced(m, who)
	want := []entry.Entry{
		{Path: ".", Type: entry.Dir, Mode: 0o755, UID: 1000, GID: 1000},
		{Path: "a", Type: entry.File, Mode: 0o755, UID: 1000, GID: 1000, Xattrs: cap[1:]},
		m.Entries[2],
		m.Entries[5],
		{Path: "e", Type: entry.Symlink, Mode: 0o777, UID: 1000, GID: 1000, Target: "a"},
		m.Entries[7],
	}
	if !reflect.DeepEqual(got.Entries, want) {
		t.Errorf("got  %+v\nwant %+v", got.Entries, want)
	}
	const words = `2 device nodes not made: needs root
3 owners not restored, yours instead: needs root
1 set-user-ID or set-group-ID bit not restored, as the owner is another: needs root
1 attribute "security.capability" not restored: needs root`
	if s := strings.Join(lost, "\n"); s != words {
		t.Errorf("lost:\n%s", s)
	}
	if again, lost := reduced(got, who); !reflect.DeepEqual(again, got) || len(lost) > 0 {
		t.Errorf("reduced again: %+v, lost %q", again, lost)
	}
}
