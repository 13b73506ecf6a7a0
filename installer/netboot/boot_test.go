package netboot

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBoot boots what Build built in a machine without an operating system, with disks and network cards of
// several kinds, and a /init that finds them all by itself.
func TestBoot(t *testing.T) {
	needTools(t)
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		skip(t, "qemu-system-x86_64 not found: install the package %q", "qemu-system-x86")
	}
	for _, tt := range []struct {
		name, kind string
		args       []string
		cmdline    string
		want       []string // on the console
	}{
		{
			"cloud kernel", "cloud-amd64",
			[]string{"-drive", "if=none,id=d0,format=raw,cache=unsafe,file=DISK0", "-device", "virtio-blk-pci,drive=d0", "-device", "virtio-net-pci,netdev=n0"},
			"disks=1", []string{"disks=vda nics=1"},
		},
		{
			"real hardware", "amd64",
			[]string{"-machine", "q35", "-device", "e1000e,netdev=n0",
				"-drive", "if=none,id=d0,format=raw,cache=unsafe,file=DISK0", "-device", "nvme,serial=n,drive=d0",
				"-drive", "if=none,id=d1,format=raw,cache=unsafe,file=DISK1", "-device", "ide-hd,drive=d1"},
			"disks=2", []string{"disks=nvme0n1,sda nics=1", "e1000e"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := Options{KernelDeb: kernelDeb(t, tt.kind), Agent: probe(t), Out: outDir(t)}
			res, err := Build(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("kernel %d bytes, initramfs %d bytes, unpacked %d bytes, %d modules", res.KernelBytes, res.InitrdBytes, res.UnpackedBytes, len(res.Modules))
			lines := boot(t, res, tt.args, tt.cmdline)
			for _, want := range append(tt.want, "PROBE mkfs", "PROBE mount err=<nil>", "PROBE end") {
				if !strings.Contains(lines, want) {
					t.Errorf("no %q on the console", want)
				}
			}
			if t.Failed() {
				t.Log(lines)
			}
		})
	}
}

// probe builds the /init of the test.
func probe(t *testing.T) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "probe")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", file, "./testdata/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build probe: %v: %s", err, out)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// boot runs the machine until it powers itself off, and returns its console.
func boot(t *testing.T, res *Result, args []string, cmdline string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	dir := t.TempDir()
	for i, a := range args {
		for _, disk := range []string{"DISK0", "DISK1"} {
			if strings.HasSuffix(a, disk) {
				file := filepath.Join(dir, disk)
				write(t, dir, disk, "")
				if err := os.Truncate(file, 256<<20); err != nil {
					t.Fatal(err)
				}
				args[i] = strings.TrimSuffix(a, disk) + file
			}
		}
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append(args, "-accel", "tcg,thread=multi", "-cpu", "qemu64", "-smp", "2", "-m", "768",
		"-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio", "-netdev", "user,id=n0,restrict=on", "-device", "virtio-rng-pci",
		"-kernel", res.Kernel, "-initrd", res.Initrd, "-append", "console=ttyS0 panic=1 "+cmdline)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for sc := bufio.NewScanner(out); sc.Scan(); {
		all.WriteString(sc.Text() + "\n")
		if strings.Contains(sc.Text(), "PROBE") {
			t.Log(sc.Text())
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("machine: %v", err)
	}
	return all.String()
}
