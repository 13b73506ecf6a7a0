package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inside says that this process is in namespaces of its own: as the first
// process there, or as the one that runs the tests.
const inside = "INGOT_E2E_INSIDE"

// TestMain runs the tests in a process with network, mount and process
// namespaces of its own: whatever a test leaves behind ends with it. The first
// process there buries the dead, as the agents of a thousand nodes are.
func TestMain(m *testing.M) { os.Exit(runMain(m)) }

func runMain(m *testing.M) int {
	if file := os.Getenv(weigh); file != "" {
		return weighing(file)
	}
	if isWebd() {
		return runWebd()
	}
	switch os.Getenv(inside) {
	case "first":
		return runFirst()
	case "tests":
		err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("proc", "/proc", "proc", 0, ""), exec.Command("ip", "link", "set", "lo", "up").Run())
		if err != nil {
			fmt.Fprintln(os.Stderr, "e2e: prepare the namespaces:", err)
			return 1
		}
		return m.Run()
	}
	if missing() != "" {
		return m.Run() // to tell of each test that it is skipped
	}
	tmp, err := os.MkdirTemp("", "ingot-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer exec.Command("rm", "-rf", "--one-file-system", tmp).Run()
	cmd := exec.Command("/proc/self/exe", append([]string{"-test.parallel=6"}, os.Args[1:]...)...) // most of them wait
	cmd.Env = append(os.Environ(), inside+"=first", "TMPDIR="+tmp)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig means the thread
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, unix.SIGTERM)
	if err = cmd.Start(); err == nil {
		go func() { <-stop; cmd.Process.Kill() }() // and with it all that its namespace holds
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return max(1, exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "e2e: start in namespaces:", err)
		return 1
	}
	return 0
}

// runFirst runs the tests in a child, and waits for whatever has lost its parent.
func runFirst() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=tests")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: start the tests:", err)
		return 1
	}
	for {
		var st unix.WaitStatus
		switch pid, err := unix.Wait4(-1, &st, 0, nil); {
		case err == unix.EINTR:
		case err != nil:
			fmt.Fprintln(os.Stderr, "e2e: wait for the tests:", err)
			return 1
		case pid == cmd.Process.Pid && st.Exited():
			return st.ExitStatus()
		case pid == cmd.Process.Pid:
			fmt.Fprintln(os.Stderr, "e2e: the tests were ended by:", st.Signal())
			return 1
		}
	}
}

// missing says why the tests cannot run here; empty: they can.
func missing() string {
	if os.Geteuid() != 0 {
		return "namespaces and owners of files need root"
	}
	for _, p := range []string{"ip", "nsenter", "rsync", "setfacl", "setfattr", "setcap", "ssh-keygen", "busybox", "bash", "/usr/sbin/sshd", "/usr/lib/openssh/sftp-server", "losetup", "blkid", "mkfs.ext4", "mkfs.btrfs", "btrfs"} {
		if _, err := exec.LookPath(p); err != nil {
			return p + " is not installed"
		}
	}
	if _, err := os.Stat(builtIngot()); err != nil {
		return err.Error() + ": run `make build`"
	}
	return ""
}

// builtIngot is the program under test; INGOT_BIN names another.
func builtIngot() string {
	if p := os.Getenv("INGOT_BIN"); p != "" {
		return p
	}
	p, err := filepath.Abs("../bin/ingot")
	if err != nil {
		return "bin/ingot"
	}
	return p
}

// need skips the test where it cannot run, or fails when INGOT_NO_SKIP says that it must.
func need(t *testing.T) {
	t.Helper()
	if why := missing(); why != "" {
		if os.Getenv("INGOT_NO_SKIP") != "" {
			t.Fatalf("must not skip (INGOT_NO_SKIP is set): %s", why)
		}
		t.Skip(why)
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run runs a tool that must succeed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
