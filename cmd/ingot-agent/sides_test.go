package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ingot/imager/wire"
)

// What blkid calls a FAT file system we call it, too.
func TestProbeFAT(t *testing.T) {
	for _, bits := range []string{"16", "32"} {
		path := filepath.Join(t.TempDir(), "fat"+bits)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 64<<20); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("mkfs.vfat", "-F", bits, "-i", "7B8276A6", path).CombinedOutput()
		if err != nil {
			t.Fatalf("mkfs.vfat: %v\n%s", err, out)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		want, err := exec.Command("blkid", "-o", "value", "-s", "UUID", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		if fs, uuid := probe(f); fs != "vfat" || uuid != strings.TrimSpace(string(want)) {
			t.Errorf("FAT%s is %s %s, blkid says %s", bits, fs, uuid, want)
		}
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if fs, uuid := probe(f); fs != "" || uuid != "" {
		t.Errorf("nothing is %s %s", fs, uuid)
	}
}

// What only a node with two sides can do is refused on another one, and not
// taken for done.
func TestNoRebootNeedsTwoSides(t *testing.T) {
	if conf, err := sidesOf(wire.Request{Dir: "/"}); conf != nil || err != nil {
		t.Fatalf("this machine has sides: %+v, %v", conf, err)
	}
	if _, err := sidesOf(wire.Request{Dir: "/", NoReboot: true}); err == nil || !strings.Contains(err.Error(), "two sides") {
		t.Errorf("--no-reboot: %v", err)
	}
}

// A trial remembers its checks as the controller said them.
func TestAskedSurvives(t *testing.T) {
	var req wire.Request
	if err := json.Unmarshal([]byte(`{"checks":[{"unit":"app.service","retry_for":5000000000}]}`), &req); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(asked{Ref: "app:2", Checks: req.Checks})
	if err != nil {
		t.Fatal(err)
	}
	var back asked
	if err := json.Unmarshal(b, &back); err != nil || len(back.Checks) != 1 || back.Checks[0] != req.Checks[0] {
		t.Errorf("%s became %+v, %v", b, back, err)
	}
}
