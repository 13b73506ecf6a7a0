package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ingot/internal/entry"
	"ingot/internal/manifest"
)

func TestKernelOf(t *testing.T) {
	for _, tt := range []struct{ want, have string }{
		{"", ""}, {"6.1.0-10-amd64", "6.1.0-10-amd64 6.1.0-9-amd64"}, {"6.1.0-10-amd64", "6.1.0-9-amd64 6.1.0-10-amd64"},
		{"6.10.1", "6.10.1 6.9.12"}, {"6.1.0-13", "6.1.0-13 6.1.0-010 6.1.0"}, {"6.12-rc2", "6.12-rc10/x 6.12-rc2"},
		{"6.1.99999999999999999999999", "6.1.99999999999999999999999 6.1.9"}, {"x", "7 x"},
	} {
		m := &manifest.Manifest{}
		for v := range strings.FieldsSeq(tt.have) {
			m.Entries = append(m.Entries, entry.Entry{Path: "boot/vmlinuz-" + v})
		}
		if got := kernelOf(m); got != tt.want {
			t.Errorf("of %q: %q, want %q", tt.have, got, tt.want)
		}
	}
}

func TestParseRemote(t *testing.T) {
	for s, want := range map[string]string{
		"root@n1:/": "root n1 /", "root@n1:/srv/a@b:c": "root n1 /srv/a@b:c", "root@10.0.0.1:/": "root 10.0.0.1 /",
		"/srv/a@b:/c": "", "./root@n1:/": "", "a@b": "", "root@n1:srv": "", "n1:/": "", "@n1:/": "", "root@:/": "", "": "",
	} {
		user, host, dir, ok := parseRemote(s)
		if got := strings.TrimSpace(user + " " + host + " " + dir); ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q %v, want %q", s, got, ok, want)
		}
	}
}

func TestBuildDirectories(t *testing.T) {
	tmp := filepath.Join(t.TempDir(), "tmp")
	p := &program{Stderr: &bytes.Buffer{}}
	running, err := p.newBuildDir(tmp)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"build-left/root/etc", "other/x"} {
		if err := os.MkdirAll(filepath.Join(tmp, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	mine, err := p.newBuildDir(tmp)
	if err != nil {
		t.Fatal(err)
	}
	there := func(path string) bool { _, err := os.Lstat(path); return err == nil }
	if !there(running.Name()) || there(filepath.Join(tmp, "build-left")) || !there(filepath.Join(tmp, "other/x")) {
		t.Errorf("running %v, leftover %v", there(running.Name()), there(filepath.Join(tmp, "build-left")))
	}
	p.removeBuild(mine)
	if there(mine.Name()) {
		t.Error("a build directory stays")
	}
	running.Close()
	if mine, err = p.newBuildDir(tmp); err != nil || there(running.Name()) {
		t.Errorf("%v; what a build left that is gone stays", err)
	}
	p.removeBuild(mine)
}

// Where something is mounted nothing is removed: it may be /dev.
func TestNothingMounted(t *testing.T) {
	for dir, free := range map[string]bool{"/": false, t.TempDir(): true, "/nowhere/at/all": false} {
		if err := nothingMounted(dir); (err == nil) != free {
			t.Errorf("%q: %v", dir, err)
		}
	}
}
