package main

import (
	"fmt"
	"time"

	"ingot/inventory"
)

// phase is a stretch of a boot: from one event to the next that matters.
type phase struct {
	What    string  `json:"what"`
	Seconds float64 `json:"seconds"`
}

// phases says where the time of an installation or of a boot from disk went,
// up to the login. It is empty while the boot goes on.
func phases(events []inventory.Event) []phase {
	var out []phase
	var mark time.Time
	var login bool
	take := func(e inventory.Event, what string) {
		if !mark.IsZero() {
			out = append(out, phase{what, e.Time.Sub(mark).Seconds()})
		}
		mark = e.Time
	}
	task, installing := "", false
	for _, e := range events {
		switch e.Stage {
		case "discover":
			if mark.IsZero() {
				mark = e.Time
			}
		case "attempt":
			task, installing = "", true
		case "script":
			take(e, "loader: DHCP, TFTP, boot script")
		case "initrd":
			take(e, "kernel and initramfs over HTTP")
		case "claim":
			take(e, "installer: kernel, drivers, network")
			task = "claim the profile"
		case "task":
			if task != "" {
				take(e, "installer: "+task)
			}
			task = e.Detail
		case "installed":
			take(e, "installer: "+task)
		case "disk":
			if installing && len(out) > 0 {
				take(e, "reboot, firmware, DHCP, boot script")
			} else {
				take(e, "firmware, DHCP, boot script")
			}
		case "login":
			take(e, "disk: GRUB, kernel, system, SSH")
			login = true
		}
	}
	if !login {
		return nil
	}
	return out
}

func phaseRows(list []phase) [][]string {
	rows := [][]string{{"PHASE", "SECONDS"}}
	var all float64
	for _, p := range list {
		all += p.Seconds
		rows = append(rows, []string{p.What, fmt.Sprintf("%6.1f", p.Seconds)})
	}
	return append(rows, []string{"from the first DISCOVER to the login", fmt.Sprintf("%6.1f", all)})
}
