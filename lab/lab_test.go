package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The tests start this test program again, as a program that has a rack: scenarioEnv says what it does there.
const (
	scenarioEnv = "INGOT_LAB_TEST_SCENARIO"
	dirEnv      = "INGOT_LAB_TEST_DIR"
)

func TestMain(m *testing.M) {
	name := os.Getenv(scenarioEnv)
	if name == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	o := Options{Dir: os.Getenv(dirEnv), Detach: name == "detached"}
	if os.Getenv("V") != "" {
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	err := Run(ctx, o, func(ctx context.Context, r *Rack) error { return scenarios()[name](ctx, r) })
	stop()
	var exit *ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.Code)
	case err != nil:
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(7)
	}
	os.Exit(0)
}

// scenarios are what happens in a rack.
func scenarios() map[string]func(context.Context, *Rack) error {
	idle := func(ctx context.Context, r *Rack) error {
		if err := r.AddMachine(Machine{Name: "n1"}); err != nil {
			return err
		}
		if _, err := r.Start("sleeper", "sleep", "98765"); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	}
	return map[string]func(context.Context, *Rack) error{
		"idle":     idle,
		"detached": idle,
		"fails":    func(context.Context, *Rack) error { return errors.New("on purpose") },
		"bios":     bios,
		"uefi":     uefi,
		"lease":    lease,
	}
}

// bios: the ROM's iPXE shows itself, the cable and the switch work.
func bios(ctx context.Context, r *Rack) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := r.AddMachine(Machine{Name: "n1", Disks: []Disk{{SizeBytes: 64 << 20}}}); err != nil {
		return err
	}
	if err := r.PowerOff("n1"); !errors.Is(err, ErrOff) {
		return fmt.Errorf("a machine that is off: %w", err)
	}
	if err := r.PowerOn("n1"); err != nil {
		return err
	}
	if err := r.PowerOn("n1"); !errors.Is(err, ErrOn) {
		return fmt.Errorf("switched on twice: %w", err)
	}
	l, err := r.Expect(ctx, "n1", "iPXE")
	if err != nil {
		return err
	}
	fmt.Println("bios:", l)
	if l, err = r.Expect(ctx, "n1", "Configuring"); err != nil {
		return err
	}
	fmt.Println("bios:", l)
	if err := r.SetLink("n1", false); err != nil {
		return err
	}
	if err := r.Reset("n1"); err != nil {
		return err
	}
	if l, err = r.Expect(ctx, "n1", "iPXE initialising"); err != nil { // once more
		return err
	}
	fmt.Println("bios:", l)
	if out, err := r.Exec(ctx, "ip", "-o", "link", "show", "dev", "lab0.0"); err != nil || !strings.Contains(string(out), "state DOWN") {
		return fmt.Errorf("a cable that was pulled: %w: %s", err, out)
	}
	if err := r.PowerOff("n1"); err != nil {
		return err
	}
	if err := r.Wait(ctx, "n1"); err != nil {
		return fmt.Errorf("wait for what was powered off: %w", err)
	}
	var console *ConsoleError
	if _, err := r.Expect(ctx, "n1", "never said"); !errors.As(err, &console) {
		return fmt.Errorf("the console of a machine that is off: %w", err)
	}
	return nil
}

// uefi: OVMF tries PXE by itself, in a machine whose card has no ROM.
func uefi(ctx context.Context, r *Rack) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := r.AddMachine(Machine{Name: "n2", Firmware: UEFI}); err != nil {
		return err
	}
	if err := r.PowerOn("n2"); err != nil {
		return err
	}
	l, err := r.Expect(ctx, "n2", "Start PXE over IPv4")
	if err != nil {
		return err
	}
	fmt.Println("uefi:", l)
	return nil // Run powers it off
}

// lease: with a DHCP server and the rack's router advertisements iPXE is configured at once, not after 16 s.
func lease(ctx context.Context, r *Rack) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	server, err := r.Start("dnsmasq", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--log-facility=-", "--log-dhcp", "--port=0",
		"--interface="+r.Bridge(), "--bind-dynamic", "--dhcp-range=10.77.0.100,10.77.0.200", "--no-ping", "--dhcp-option=encap:175,176,1b",
		"--dhcp-leasefile="+filepath.Join(r.Dir(), "leases"), "--user=root")
	if err != nil {
		return err
	}
	if err := r.AddMachine(Machine{Name: "n1", Disks: []Disk{{SizeBytes: 64 << 20}}}); err != nil {
		return err
	}
	if err := r.PowerOn("n1"); err != nil {
		return err
	}
	begin, err := r.Expect(ctx, "n1", "Configuring")
	if err != nil {
		return err
	}
	if _, err := r.Expect(ctx, "n1", " ok"); err != nil {
		return errors.Join(err, server.Err())
	}
	end, err := r.Expect(ctx, "n1", "10.77.0.")
	if err != nil {
		return err
	}
	fmt.Printf("lease: configured from %v to %v\n", begin.At, end.At)
	if end.At-begin.At > 8*time.Second {
		return errors.New("the machine waited for a router")
	}
	return nil
}

// begin starts a scenario and returns its state directory.
func begin(t *testing.T, scenario string) (*exec.Cmd, *bytes.Buffer, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("INGOT_NO_SKIP") != "" {
			t.Fatal("the lab needs root")
		}
		t.Skip("the lab needs root")
	}
	if err := Check(BIOS, UEFI); err != nil {
		if os.Getenv("INGOT_NO_SKIP") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := filepath.Join(t.TempDir(), strings.Repeat("a-long-name-", 8)) // longer than a socket's address may be
	out := &bytes.Buffer{}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), scenarioEnv+"="+scenario, dirEnv+"="+dir)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // of a test that failed
		cmd.Process.Kill()
		if c, err := Dial(dir); err == nil {
			c.Down(context.Background())
		}
	})
	return cmd, out, dir
}

// wait waits for the control socket.
func wait(t *testing.T, dir string, out *bytes.Buffer) (*Client, *Status) {
	t.Helper()
	for range 200 {
		if c, err := Dial(dir); err == nil {
			if s, err := c.Status(t.Context()); err == nil && sleepers(t, dir) == 1 {
				return c, s
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("the rack does not come up: %s", out)
	return nil, nil
}

// sleepers counts the processes of the rack's scenario that the host sees.
func sleepers(t *testing.T, dir string) int {
	t.Helper()
	n := 0
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range files {
		env, err := os.ReadFile(f)
		cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
		if err == nil && bytes.Contains(env, []byte(dirEnv+"="+dir+"\x00")) && bytes.HasPrefix(cmdline, []byte("sleep\x00")) {
			n++
		}
	}
	return n
}

// gone checks that nothing of the rack is left.
func gone(t *testing.T, dir string, mounts []byte) {
	t.Helper()
	for range 100 {
		if sleepers(t, dir) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if n := sleepers(t, dir); n != 0 {
		t.Errorf("%d processes are left", n)
	}
	if _, err := net.InterfaceByName("lab0"); err == nil {
		t.Error("the host has the rack's bridge")
	}
	if now, err := os.ReadFile("/proc/self/mounts"); err != nil || !bytes.Equal(now, mounts) {
		t.Errorf("the host's mounts have changed: %v\n%s", err, now)
	}
	if _, err := Dial(dir); !errors.Is(err, ErrDown) {
		t.Errorf("the rack that is down: %v", err)
	}
	lock, err := takeLock(dir)
	if err != nil {
		t.Fatalf("the lock is held: %v", err)
	}
	lock.Close()
}

// TestNothingIsLeft ends a rack in every way there is.
func TestNothingIsLeft(t *testing.T) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	kill := func(pid int) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	for _, tt := range []struct {
		name string
		end  func(*testing.T, *exec.Cmd, *Client, *Status)
		code int // of the program outside; -1 is a signal
	}{
		{"SIGKILL to process 1", func(t *testing.T, _ *exec.Cmd, _ *Client, s *Status) { kill(s.PID) }, 137},
		{"SIGKILL to the program", func(t *testing.T, cmd *exec.Cmd, _ *Client, _ *Status) { kill(cmd.Process.Pid) }, -1},
		{"SIGKILL inside", func(t *testing.T, _ *exec.Cmd, _ *Client, s *Status) { kill(childOf(t, s.PID)) }, 137},
		{"SIGINT", func(t *testing.T, cmd *exec.Cmd, _ *Client, _ *Status) { cmd.Process.Signal(syscall.SIGINT) }, 0},
		{"down", func(t *testing.T, _ *exec.Cmd, c *Client, _ *Status) {
			if err := c.Down(t.Context()); err != nil {
				t.Error(err)
			}
		}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd, out, dir := begin(t, "idle")
			c, s := wait(t, dir, out)
			tt.end(t, cmd, c, s)
			cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != tt.code {
				t.Errorf("exit code %d, want %d: %s", code, tt.code, out)
			}
			gone(t, dir, mounts)
		})
	}
}

// childOf returns a process's only child.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // any thread may have started it
	var all []string
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, strings.Fields(string(b))...)
	}
	if len(all) != 1 {
		t.Fatalf("process %d has the children %q", pid, all)
	}
	child, err := strconv.Atoi(all[0])
	if err != nil {
		t.Fatal(err)
	}
	return child
}

// TestClient drives a rack that runs in the background.
func TestClient(t *testing.T) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	cmd, out, dir := begin(t, "detached")
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c, s := wait(t, dir, out)
	if s.Bridge != "lab0" || s.Addr != "10.77.0.1/24" {
		t.Errorf("status %+v", s)
	}
	var running *RunningError
	if _, err := Enter(t.Context(), Options{Dir: dir}); !errors.As(err, &running) || running.PID != s.PID || !strings.Contains(err.Error(), "is up already: process") {
		t.Errorf("up twice: %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	code, err := c.Exec(t.Context(), r, w, w, "sh", "-c", "echo pid $$; ip -o -br addr show dev lab0; ls /proc | grep -c '^[0-9]'; pwd; exit 3")
	w.Close()
	var said bytes.Buffer
	said.ReadFrom(r)
	if err != nil || code != 3 || !strings.Contains(said.String(), "10.77.0.1/24") {
		t.Errorf("exec: %d, %v: %s", code, err, &said)
	}
	if _, err := c.Exec(t.Context(), os.Stdin, os.Stdout, os.Stderr, "no-such-program"); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("a program that is not there: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := c.Exec(ctx, os.Stdin, os.Stdout, os.Stderr, "sleep", "98766"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("exec that was interrupted: %v", err)
	}
	if err := c.Power(t.Context(), "n9", "on"); err == nil || !strings.Contains(err.Error(), `machine "n9": no such machine`) {
		t.Errorf("a machine that is not there: %v", err)
	}
	switches(t, c)
	if n := sleepers(t, dir); n != 1 {
		t.Errorf("%d processes, want the one of the scenario", n)
	}
	if err := c.Down(t.Context()); err != nil {
		t.Error(err)
	}
	if n := sleepers(t, dir); n != 0 {
		t.Errorf("down came back with %d processes left", n)
	}
	gone(t, dir, mounts)
}

// switches works a machine's switches by way of the client.
func switches(t *testing.T, c *Client) {
	t.Helper()
	for _, step := range []struct {
		action string
		fails  string
		on     bool
		ons    int
	}{
		{"off", ErrOff.Error(), false, 0}, {"on", "", true, 1}, {"on", ErrOn.Error(), true, 1}, {"reset", "", true, 1}, {"cycle", "", true, 2},
		{"shutdown", "", true, 2}, {"explode", "unknown power action", true, 2}, {"off", "", false, 2}, {"reset", ErrOff.Error(), false, 2},
	} {
		err := c.Power(t.Context(), "n1", step.action)
		if (err == nil) != (step.fails == "") || err != nil && !strings.Contains(err.Error(), step.fails) {
			t.Errorf("power %s: %v", step.action, err)
		}
		s, err := c.Status(t.Context())
		if err != nil || len(s.Machines) != 1 || s.Machines[0].On != step.on || s.Machines[0].PowerOns != step.ons {
			t.Errorf("after power %s: %+v, %v", step.action, s, err)
		}
	}
	if err := c.SetLink(t.Context(), "n1", false); err != nil {
		t.Error(err)
	}
	if s, err := c.Status(t.Context()); err != nil || s.Machines[0].Link {
		t.Errorf("after the cable was pulled: %+v, %v", s, err)
	}
	if err := c.Power(t.Context(), "n1", "on"); err != nil { // with the cable out; down is to end it
		t.Error(err)
	}
}

// TestWaitSSH: a port that is open is not a server yet.
func TestWaitSSH(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for _, text := range []string{"", "HTTP/1.0 200\r\n", "hello\r\nSSH-2.0-OpenSSH_9.2\r\n"} {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte(text))
			conn.Close()
		}
	}()
	if err := new(Rack).WaitSSH(t.Context(), ln.Addr().String()); err != nil {
		t.Error(err)
	}
	ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := new(Rack).WaitSSH(ctx, ln.Addr().String()); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
}

// TestScenarioFails: the program's exit code comes out.
func TestScenarioFails(t *testing.T) {
	cmd, out, _ := begin(t, "fails")
	err := cmd.Wait()
	if cmd.ProcessState.ExitCode() != 7 || !strings.Contains(out.String(), "error: on purpose") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestFirmware boots machines without a server.
func TestFirmware(t *testing.T) {
	for _, name := range []string{"bios", "uefi", "lease"} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath("dnsmasq"); err != nil && name == "lease" && os.Getenv("INGOT_NO_SKIP") == "" {
				t.Skip("dnsmasq not found")
			}
			cmd, out, dir := begin(t, name)
			if err := cmd.Wait(); err != nil {
				logs, _ := filepath.Glob(filepath.Join(dir, "*.console"))
				for _, f := range logs {
					b, _ := os.ReadFile(f)
					t.Logf("%s:\n%s", f, b)
				}
				t.Errorf("%v: %s", err, out)
			}
			t.Log(out)
		})
	}
}
