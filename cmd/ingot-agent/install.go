package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"ingot/installer"
	"ingot/installer/netboot/modload"
)

// installMachine is /init of the installer. It ends in a reboot: at once when
// the installation went well, else when an operator arms the node again.
func installMachine() {
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(os.Stderr, "BUG: %v\n%s", p, debug.Stack())
			park("a bug in the installer", nil, installer.Boot{}, os.Stderr)
		}
	}()
	if err := installer.MountEarly(); err != nil {
		park(err.Error(), nil, installer.Boot{}, os.Stderr)
	}
	os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	console := installer.Consoles()
	fmt.Fprintf(console, "ingot-agent %s: installer\n", version)

	r := &installer.Run{Console: console}
	log := r.NewLog()
	ctx := context.Background()
	loader, err := modload.Open("")
	if err == nil {
		loader.Log = log
		var names []string
		names, err = loader.Auto(ctx)
		log.Info("drivers", "modules", len(names))
		go loader.Watch(ctx) // disks behind a host that is slow to start
	}
	if err != nil {
		log.Error("load drivers", "err", err) // the disk and the NIC may be built in
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		park(err.Error(), nil, installer.Boot{}, console)
	}
	boot, err := installer.ParseBoot(string(cmdline))
	if err != nil {
		park(err.Error(), nil, boot, console)
	}
	ip, err := installer.BringUp(ctx, boot.MAC, log)
	for err != nil { // a cable, a switch, a server: all of them may come back, and nothing has been written
		fmt.Fprintf(console, "\nNO NETWORK: %s\n Trying again; a power cycle does, too.\n\n", err)
		time.Sleep(5 * time.Second)
		ip, err = installer.BringUp(ctx, boot.MAC, log)
	}
	log.Info("network", "ip", ip.String(), "server", boot.Server)
	if loader != nil {
		if err := loader.Load(ctx, installer.FileSystems()...); err != nil {
			log.Warn("load file systems", "err", err)
		}
		r.LoadModule = func(ctx context.Context, name string) error { return loader.Load(ctx, name) }
	}
	r.Boot, r.Facts, r.Client = boot, installer.Facts(), installer.NewClient(boot.Server, log)
	r.Client.Patience = boot.Patience
	if err := r.Install(ctx); err != nil {
		park(err.Error(), r, boot, console)
	}
	if err := r.Report(ctx); err != nil {
		// The disk is whole; but the server would install it once more at the
		// next boot, so nothing is gained by booting it before the server knows.
		park("everything is installed, and the server does not take the report: "+err.Error(), r, boot, console)
	}
	leave(r, console)
}

// leave ends a good installation as the profile says.
func leave(r *installer.Run, console io.Writer) {
	if r.PowerOff() {
		fmt.Fprintf(console, "installed; switching off, as the profile says\n")
		end(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	fmt.Fprintf(console, "installed; rebooting into the disk\n")
	end(unix.LINUX_REBOOT_CMD_RESTART)
}

// park shows why the machine stands still and waits. It never reboots by
// itself, which would be a loop: it goes on trying to report the ending, and
// reboots when that was a good one, or when the node has been armed again. A
// nil run is one that never came as far as the server.
func park(reason string, r *installer.Run, boot installer.Boot, console io.Writer) {
	line := "======================================================================"
	head, then := "INSTALLATION FAILED", "a power cycle tries again."
	if r != nil {
		then = fmt.Sprintf("`ingot node timeline %s` on the server tells what\n happened, `ingot node set %s --install` starts it again by itself.", boot.Node, boot.Node)
		if r.Good() {
			head, then = "INSTALLED, NOT REPORTED", "it reboots into its disk when the server answers."
		}
	}
	fmt.Fprintf(console, "\n%s\n %s: %s\n\n This machine waits: %s\n%s\n\n", line, head, reason, then, line)
	if boot.Shell {
		go shell()
	}
	for reported := false; ; time.Sleep(5 * time.Second) {
		if r == nil {
			continue
		}
		if !reported {
			err := r.Report(context.Background())
			refused := errors.As(err, new(*installer.StatusError))
			switch reported = err == nil || refused; {
			case err == nil && r.Good():
				leave(r, console)
			case err == nil:
				fmt.Fprintln(console, "the server has been told")
			case refused: // another attempt began, or the node was armed: this machine's word counts no more
				fmt.Fprintln(console, "the server does not take the report:", err)
			}
		}
		armed, err := r.Client.Armed(context.Background(), boot.Node)
		if err == nil && armed {
			fmt.Fprintln(console, "armed again: rebooting")
			end(unix.LINUX_REBOOT_CMD_RESTART)
		}
	}
}

// shell gives whoever stands at the console a shell, again and again.
func shell() {
	for {
		c := exec.Command("/bin/busybox", "sh")
		f, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
		if err != nil {
			return
		}
		c.Stdin, c.Stdout, c.Stderr = f, f, f
		c.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
		err = errors.Join(c.Run(), f.Close())
		fmt.Fprintln(os.Stderr, "shell:", err)
		time.Sleep(time.Second)
	}
}

// end leaves the machine to the kernel's care: reboot(2).
func end(command int) {
	unix.Sync()
	for {
		if err := unix.Reboot(command); err != nil {
			fmt.Fprintln(os.Stderr, "reboot:", err)
		}
		time.Sleep(time.Second)
	}
}
