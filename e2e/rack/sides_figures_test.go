package rack

import (
	"encoding/json"
	"os"
	"testing"
	"time"

	"ingot/lab"
)

// figure is one thing that was done to a machine.
type figure struct {
	Mode    string  `json:"mode"` // slots or btrfs
	What    string  `json:"what"`
	Seconds float64 `json:"seconds"`
	Moved   int64   `json:"moved"`   // bytes on the machine's cable, both directions
	Written int64   `json:"written"` // bytes to its disk
}

// figuresEnv is the file that TestSidesFigures writes; `make bench` asks for it.
const figuresEnv = "INGOT_FIGURES"

// What a release, the way back, and an installation of the same size cost a
// machine with two sides: until somebody has logged in and confirmed it.
func TestSidesFigures(t *testing.T) {
	out := os.Getenv(figuresEnv)
	if out == "" {
		t.Skip("make bench runs it")
	}
	var all []figure
	for _, tt := range []struct {
		fw lab.Firmware
		layout
	}{{lab.BIOS, slots}, {lab.UEFI, subvolumes}} {
		t.Run(tt.update, func(t *testing.T) { all = append(all, measured(t, tt.fw, tt.layout)...) })
	}
	text, err := json.MarshalIndent(all, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(out, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

func measured(t *testing.T, fw lab.Firmware, l layout) (all []figure) {
	b := newBench(t, true, lab.Machine{Name: "n1", Firmware: fw})
	b.sidesProfile(l)
	b.second("app:2")
	b.installed(image)
	measure := func(what string, do func()) {
		b.ssh("n1", "sync")
		before, err := b.rack.Stats("n1")
		b.must(err)
		begun := time.Now()
		do()
		took := time.Since(begun)
		b.ssh("n1", "sync")
		after, err := b.rack.Stats("n1")
		b.must(err)
		moved := after.Minus(before)
		all = append(all, figure{l.update, what, took.Seconds(), moved.NetIn + moved.NetOut, moved.DiskWritten})
		t.Logf("%+v", all[len(all)-1])
	}
	measure("ingot push", func() { b.run("push", "app:2", "n1") })
	measure("rollback", func() { b.run("rollback", "n1") })
	measure("push again, after the rollback", func() { b.run("push", "app:2", "n1") })
	logins := b.logins("n1")
	measure("installed anew", func() {
		b.run("node", "set", "n1", "--install", "--image", image) // the release's kernel has another name than its modules: none installs by it
		b.must(b.rack.Reset("n1"))
		b.seen(loginWait, "n1", "login", "with the node's host key", logins+1, "failed", "alarm")
	})
	return all
}
