package main

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// watchdog is a timer in hardware that resets the machine unless it is fed
// (Documentation/watchdog/watchdog-api.rst). nil: there is none.
type watchdog struct {
	f     *os.File
	begun time.Time
}

// openWatchdog arms the watchdog, for which it loads the drivers of those that
// machines have: Debian does not load them by itself.
func openWatchdog() *watchdog {
	w := &watchdog{begun: time.Now()}
	w.open()
	return w
}

func (w *watchdog) open() {
	const dev = "/dev/watchdog"
	for _, driver := range []string{"", "i6300esb", "iTCO_wdt", "sp5100_tco", "wdat_wdt", "ipmi_watchdog", "softdog"} {
		if driver != "" {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			_ = exec.CommandContext(ctx, "modprobe", "--ignore-install", driver).Run()
			cancel()
		}
		if no, err := os.ReadFile("/sys/class/watchdog/watchdog0/nowayout"); err == nil && strings.TrimSpace(string(no)) == "1" {
			return // it could never be released again
		}
		f, err := os.OpenFile(dev, os.O_WRONLY, 0)
		if err != nil {
			continue
		}
		w.f = f
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, watchdogMax)
		return
	}
}

// late looks again for one while the system starts, since its driver may need udev.
func (w *watchdog) late() {
	if w.f == nil && time.Since(w.begun) < 2*time.Minute && int(time.Since(w.begun).Seconds())%10 == 0 {
		w.open()
	}
}

func (w *watchdog) feed() {
	if w.f != nil {
		_, _ = w.f.WriteString("\x00")
	}
}

// release disarms it: the magic character says that the end is meant.
func (w *watchdog) release() error {
	if w.f == nil {
		return nil
	}
	if _, err := w.f.WriteString("V"); err != nil {
		return err
	}
	return w.f.Close()
}
