package lab

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// runInit is the life of process 1: it makes the namespaces its own, starts the program again, reaps what
// is orphaned, and ends with the program. It is a process of its own because whoever waits for every child
// (wait4 of -1) takes the exit status from those who wait for one.
func runInit() error {
	unix.CloseOnExec(lockFD) // process 1 alone holds the lock
	if err := ownNamespaces(); err != nil {
		return fmt.Errorf("set up namespaces: %w", err)
	}
	env := append(withoutStage(os.Environ()), stageEnv+"="+stageInside)
	proc, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{Env: env, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return fmt.Errorf("start rack: %w", err)
	}
	sigs := make(chan os.Signal, 8)
	signal.Notify(sigs, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	go func() {
		for s := range sigs {
			_ = proc.Signal(s) // it may have ended meanwhile
		}
	}()
	if code := reap(proc.Pid); code != 0 {
		return &ExitError{Code: code}
	}
	return nil
}

// ownNamespaces makes mounts private (what the host mounts still arrives), /proc and /sys those of the
// namespaces, and brings lo up.
func ownNamespaces() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for fs, dir := range map[string]string{"proc": "/proc", "sysfs": "/sys"} {
		if err := unix.Mount(fs, dir, fs, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount %q: %w", dir, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	return netlink.LinkSetUp(lo)
}

// reap waits for all children until the one called main ends, and returns its exit code.
func reap(main int) int {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1 // ECHILD: somebody else has reaped main
		case pid != main:
		case ws.Signaled():
			return 128 + int(ws.Signal())
		case ws.Exited():
			return ws.ExitStatus()
		}
	}
}

// withoutStage takes the rack's mark off an environment, for programs that are not the rack.
func withoutStage(env []string) []string {
	var out []string
	for _, kv := range env {
		if len(kv) <= len(stageEnv) || kv[:len(stageEnv)+1] != stageEnv+"=" {
			out = append(out, kv)
		}
	}
	return out
}
