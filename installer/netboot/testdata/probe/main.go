// Command probe is the /init of the boot test: it loads the modules of what the machine has, says what
// it found, and powers off.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ingot/installer/netboot/modload"
)

func main() {
	begin := time.Now()
	for _, m := range [][2]string{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/run"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			fmt.Println("PROBE mount", m[1], err)
		}
	}
	up, _ := os.ReadFile("/proc/uptime")
	say("init uptime=%s", strings.TrimSpace(string(up)))
	run(begin)
	say("end")
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run(begin time.Time) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	l, err := modload.Open("")
	if err != nil {
		say("open: %v", err)
		return
	}
	say("index dur=%v", time.Since(begin))
	begin = time.Now()
	names, err := l.Auto(ctx)
	say("auto dur=%v err=%v modules=%s", time.Since(begin), err, strings.Join(names, ","))
	go func() {
		if err := l.Watch(ctx); err != nil {
			say("watch: %v", err)
		}
	}()
	begin = time.Now()
	err = l.Load(ctx, "ext4", "vfat", "nls-cp437", "nls_ascii")
	say("load dur=%v err=%v", time.Since(begin), err)
	begin = time.Now()
	for len(disks()) < want() && ctx.Err() == nil {
		time.Sleep(20 * time.Millisecond)
	}
	nics, _ := filepath.Glob("/sys/class/net/*/device")
	say("found dur=%v disks=%s nics=%d", time.Since(begin), strings.Join(disks(), ","), len(nics))
	if len(disks()) > 0 {
		d := disks()[0]
		begin = time.Now()
		out, err := exec.Command("/usr/sbin/mkfs.ext4", "-q", "-F", "/dev/"+d).CombinedOutput()
		say("mkfs dur=%v err=%v %s", time.Since(begin), err, out)
		say("mount err=%v", unix.Mount("/dev/"+d, "/mnt", "ext4", 0, ""))
	}
}

// want returns how many disks the command line says there are ("disks=2").
func want() int {
	n := 1
	cmdline, _ := os.ReadFile("/proc/cmdline")
	if _, rest, ok := strings.Cut(string(cmdline), "disks="); ok {
		fmt.Sscan(rest, &n)
	}
	return n
}

func disks() []string {
	var names []string
	all, _ := filepath.Glob("/sys/block/*/device")
	for _, d := range all {
		names = append(names, filepath.Base(filepath.Dir(d)))
	}
	return names
}

func say(format string, args ...any) { fmt.Printf("PROBE "+format+"\n", args...) }
