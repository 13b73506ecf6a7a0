package rollback

import (
	"testing"

	"ingot/internal/entry"
)

// Every difference between two sides of a step has its words, and only that.
func TestWhy(t *testing.T) {
	file := entry.Entry{Path: "f", Type: entry.File, Mode: 0o644, Size: 10, ModTime: 5}
	with := func(fn func(*entry.Entry)) *entry.Entry { e := file; fn(&e); return &e }
	link := &entry.Entry{Path: "f", Type: entry.Symlink, Mode: 0o777, Target: "a b\n", ModTime: 5}
	for _, tc := range []struct {
		kind     Kind
		old, new *entry.Entry
		want     string
	}{
		{Add, nil, &file, "new in the image: file of 10 bytes"},
		{Add, nil, with(func(e *entry.Entry) { e.Link = "g" }), `new in the image: hard link to "/g"`},
		{Add, nil, link, `new in the image: symbolic link to "a b\n"`},
		{Add, nil, &entry.Entry{Type: entry.CharDevice, Major: 1, Minor: 3}, "new in the image: device 1:3"},
		{Delete, &entry.Entry{Type: entry.Dir}, nil, "not in the image: directory"},
		{Replace, &file, link, `file of 10 bytes to symbolic link to "a b\n", time`},
		{Replace, &file, with(func(e *entry.Entry) { e.Size = 11 }), "content, 10 to 11 bytes"},
		{Replace, &file, with(func(e *entry.Entry) { e.ModTime = 6 }), "content, 10 bytes, time"},
		{Replace, &file, with(func(e *entry.Entry) { e.Link = "g" }), `hard link to "/g"`},
		{Replace, with(func(e *entry.Entry) { e.Link = "g" }), &file, `no longer a hard link to "/g"`},
		{Replace, link, &entry.Entry{Type: entry.Symlink, Mode: 0o777, Target: "b", ModTime: 5}, `leads to "b" instead of "a b\n"`},
		{Meta, &file, with(func(e *entry.Entry) { e.Mode = 0o4755 }), "mode 0644 to 4755"},
		{Meta, &file, with(func(e *entry.Entry) { e.GID = 7 }), "owner 0:0 to 0:7"},
		{Meta, with(func(e *entry.Entry) {
			e.Xattrs = []entry.Xattr{{Name: "user.a", Value: "1"}, {Name: "user.b", Value: "1"}}
		}),
			with(func(e *entry.Entry) {
				e.Xattrs = []entry.Xattr{{Name: "user.b", Value: "2"}, {Name: "user.c", Value: "1"}}
			}),
			`xattr "user.b" changed, xattr "user.c" added, xattr "user.a" removed`},
	} {
		s := Step{Kind: tc.kind, Old: tc.old, New: tc.new}
		if tc.want == `file of 10 bytes to symbolic link to "a b\n", time` {
			l := *link
			l.ModTime = 6
			s.New = &l
		}
		if got := s.why("the image"); got != tc.want {
			t.Errorf("got  %s\nwant %s", got, tc.want)
		}
	}
}
