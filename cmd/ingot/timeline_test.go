package main

import (
	"strings"
	"testing"
	"time"

	"ingot/inventory"
)

// story makes events, a second apart, of words "stage" or "stage:detail".
func story(words ...string) (events []inventory.Event, end time.Time) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i, w := range words {
		stage, detail, _ := strings.Cut(w, ":")
		at = at.Add(time.Second)
		events = append(events, inventory.Event{ID: int64(i + 1), Time: at, MAC: "52:54:00:00:00:01", Stage: stage, Detail: detail})
	}
	return events, at
}

// The parts of boots. What the packet path writes: who asks, behind the
// address where there is one; answers do not repeat it.
const (
	rom   = "discover:rom, x86-64 UEFI|offer:10.0.0.5 snponly.efi|request:10.0.0.5 rom, x86-64 UEFI|ack:10.0.0.5 snponly.efi"
	load  = "loading:snponly.efi|loader:snponly.efi, 1 bytes"
	ipxe  = "discover:ipxe, x86-64 UEFI|offer:10.0.0.5|request:10.0.0.5 ipxe, x86-64 UEFI|ack:10.0.0.5"
	inet  = "discover:installer, ingot-installer|offer:10.0.0.5|request:10.0.0.5 installer, ingot-installer|ack:10.0.0.5"
	inst  = "attempt|script|kernel|initrd|" + inet + "|claim|task:partition|task:image|installed"
	sys   = "discover:os, systemd|offer:10.0.0.5|request:10.0.0.5 os, systemd|ack:10.0.0.5"
	renew = "request:10.0.0.5 os|ack:10.0.0.5"
	disk  = rom + "|" + load + "|" + ipxe + "|disk|" + sys + "|login"
)

func TestLastBoot(t *testing.T) {
	tests := []struct{ name, over, last string }{
		{"nothing", "", ""},
		{"one boot", "", disk},
		{"an installation, up to the login", "", "armed|" + rom + "|" + load + "|" + ipxe + "|" + inst + "|" + disk},
		{"an arming begins a new one", disk, "armed"},
		{"a login ends one", disk, rom},
		{"no login, but the firmware asks again", rom + "|" + ipxe + "|disk", rom + "|" + ipxe},
		{"after a failure", "armed|" + rom + "|failed:x", rom},
		{"the firmware repeats itself", "", "discover:rom|discover:rom|discover:rom"},
		{"the reboot after an installation belongs to it", "", "armed|" + inst + "|" + rom + "|disk"},
		{"a push after the login stays, and cuts nothing", "", disk + "|generation:2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			all := strings.Trim(tt.over+"|"+tt.last, "|")
			var events []inventory.Event
			if all != "" {
				events, _ = story(strings.Split(all, "|")...)
			}
			want := 0
			if tt.last != "" {
				want = len(strings.Split(tt.last, "|"))
			}
			got := lastBoot(events)
			if len(got) != want || want > 0 && got[0].ID != int64(len(events)-want+1) {
				t.Errorf("%d events from %+v, want %d", len(got), got[:min(1, len(got))], want)
			}
		})
	}
	events, _ := story(strings.Split(disk+"|"+renew+"|"+renew+"|generation:2|"+renew, "|")...)
	boot := len(strings.Split(disk, "|"))
	if got := lastBoot(events); len(got) != boot+1 || got[0].ID != 1 || got[boot].Stage != "generation" {
		t.Errorf("a running system that renews its lease: %d events, want %d", len(got), boot+1)
	}
}

func TestVerdict(t *testing.T) {
	tests := []struct {
		name, events string
		later        time.Duration
		want         string // contained; "" is no verdict
	}{
		{"nothing seen", "", time.Hour, "Nothing has been seen"},
		{"it goes on", rom, quiet - time.Second, ""},
		{"armed and off", "armed", time.Hour, `Stopped at "armed", 1h0m0s ago. Likely: the machine is off`},
		{"offers lost", "discover:rom|offer:10.0.0.5", time.Hour, "our offer does not reach it"},
		{"TFTP blocked", rom, time.Hour, "TFTP (udp/69)"},
		{"the transfer broke off", rom + "|loading:x", time.Hour, "transfer of the loader"},
		{"the loader does not start", rom + "|" + load, time.Hour, "the loader did not come up"},
		{"HTTP blocked", rom + "|" + load + "|" + ipxe, time.Hour, "HTTP is blocked"},
		{"the kernel is not fetched", rom + "|" + ipxe + "|attempt|script", time.Hour, "the kernel was not fetched"},
		{"the installer's network works, and then nothing", "script|kernel|initrd|" + inet, time.Hour, "the installer did not report"},
		{"power lost in a task", "claim|task:image", time.Hour, "the installer stopped in this task"},
		{"the installation failed", "task:image|failed:the disk is too small", 0, "Failed: the disk is too small."},
		{"the disk's system has an address and no SSH", rom + "|disk|" + sys, time.Hour, "does not answer on SSH"},
		{"logged in", disk, time.Hour, ""},
		{"logged in, renewing its lease", disk + "|" + renew, time.Hour, ""},
		{"logged in, pushed to", disk + "|generation:2", time.Hour, ""},
		{"only a running system was seen", renew, time.Hour, ""},
		{"disarmed is no step", "armed|" + disk + "|disarmed", time.Hour, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var events []inventory.Event
			end := time.Now()
			if tt.events != "" {
				events, end = story(strings.Split(tt.events, "|")...)
			}
			got := verdict(events, end.Add(tt.later))
			if !strings.Contains(got, tt.want) || tt.want == "" && got != "" {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCausesAreSteps(t *testing.T) {
	for stage, text := range causes() {
		word := strings.TrimPrefix(stage, "ipxe ")
		who := map[string]string{}
		if word != stage {
			who[""] = "ipxe"
		}
		e := inventory.Event{Stage: word}
		if word != stage && (word == "discover" || word == "request") {
			e.Detail = "ipxe"
		}
		if got := stepOf(e, who); got != stage {
			t.Errorf("the cause of %q is never shown: the step is %q", stage, got)
		}
		if !strings.HasSuffix(text, ".") && !strings.HasSuffix(text, "?") {
			t.Errorf("%q is no sentence", text)
		}
	}
}

// Every step on which a boot can end says why nothing follows; failed and
// login are endings.
func TestStepsHaveCauses(t *testing.T) {
	steps := []string{"armed", "attempt", "refused", "discover", "offer", "request", "ack", "nak", "no-address", "loading", "loader", "ipxe discover", "ipxe offer",
		"ipxe request", "ipxe ack", "script", "kernel", "initrd", "broken-off", "claim", "task", "installed", "disk", "unknown", "alarm"}
	for _, s := range steps {
		if causes()[s] == "" {
			t.Errorf("a boot that ends at %q has no cause", s)
		}
	}
}

func TestPhasesAddUp(t *testing.T) {
	at := func(s int, stage, detail string) inventory.Event {
		return inventory.Event{Time: time.Unix(int64(1000+s), 0), Stage: stage, Detail: detail}
	}
	events := []inventory.Event{at(0, "armed", ""), at(10, "discover", "ipxe"), at(11, "attempt", ""), at(11, "script", ""), at(12, "kernel", ""), at(13, "initrd", ""),
		at(20, "claim", ""), at(21, "task", "check"), at(23, "task", "partition"), at(30, "installed", ""), at(35, "disk", ""), at(60, "login", "")}
	if got := phases(events[:len(events)-1]); got != nil {
		t.Errorf("a boot that goes on has phases: %v", got)
	}
	var sum float64
	var names []string
	for _, p := range phases(events) {
		sum += p.Seconds
		names = append(names, p.What)
	}
	if sum != 50 || len(names) != 8 || names[6] != "reboot, firmware, DHCP, boot script" {
		t.Errorf("phases %q add up to %v, want 50", names, sum)
	}
}
