package imager

import (
	"testing"

	"ingot/internal/entry"
	"ingot/internal/manifest"
)

func TestLayKeepsTheImagesDirectories(t *testing.T) {
	image := &manifest.Manifest{Entries: []entry.Entry{
		{Path: ".", Type: entry.Dir, Mode: 0o755},
		{Path: "etc", Type: entry.Dir, Mode: 0o755, ModTime: 7},
		{Path: "root", Type: entry.Dir, Mode: 0o700, ModTime: 9},
	}}
	o, err := NewOverlay([]OverlayFile{
		{Path: "/root/notes", Mode: 0o600, Content: []byte("x")},
		{Path: "/etc/new/dir/link", Target: "/elsewhere"},
		{Path: "/etc/motd", Mode: 0o644, Content: []byte("hello"), ModTime: 5},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := Lay(image, o.Manifest)
	if err := got.Validate(); err != nil {
		t.Fatal(err)
	}
	if e, ok := got.Lookup("root"); !ok || e.Mode != 0o700 || e.ModTime != 9 {
		t.Errorf("root is %+v, want the image's 0700", e)
	}
	if e, ok := got.Lookup("etc/new/dir"); !ok || e.Mode != 0o755 {
		t.Errorf("etc/new/dir is %+v, %v", e, ok)
	}
	e, ok := got.Lookup("etc/motd")
	if !ok || e.Size != 5 || len(e.Chunks) != 1 || string(o.Data[e.Chunks[0].ID]) != "hello" {
		t.Errorf("etc/motd is %+v, %v", e, ok)
	}
	if _, err := NewOverlay([]OverlayFile{{Path: "/big", Content: make([]byte, maxOverlay+1)}}); err == nil {
		t.Error("an overlay over the limit was accepted")
	}
}
