package pxe_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"ingot/pxe"
)

const ovmfCode, ovmfVars = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"

// rack is a bridge with our servers on it.
type rack struct {
	*site
	mu    sync.Mutex
	marks []mark // HTTP requests and DHCP events of the machine that runs
	done  chan string
	start time.Time
}

type mark struct {
	at   time.Duration
	what string
}

func (r *rack) mark(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.marks = append(r.marks, mark{time.Since(r.start), what})
}

func (r *rack) Event(ctx context.Context, e pxe.Event) {
	r.mark(e.Stage + " " + e.Detail)
	r.site.events.Event(ctx, e)
}

// ServeHTTP gives the boot script, the loaders, and notes what a machine says about itself.
func (r *rack) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mark("http " + q.URL.String())
	switch {
	case q.URL.Path == "/boot.ipxe" && q.URL.Query().Has("chain"):
		fmt.Fprint(w, "#!ipxe\niseq ${net0/chip} undionly && goto done ||\nchain tftp://10.77.0.1/undionly.kpxe\n:done\nimgfetch http://10.77.0.1:8080/done?chip=${net0/chip} ||\nsleep 600\n")
	case q.URL.Path == "/boot.ipxe":
		fmt.Fprint(w, "#!ipxe\nimgfetch http://10.77.0.1:8080/done?chip=${net0/chip}&platform=${platform} ||\nsleep 600\n")
	case strings.HasPrefix(q.URL.Path, "/loader/"):
		http.ServeFileFS(w, q, r.dhcp.Loaders, strings.TrimPrefix(q.URL.Path, "/loader/"))
	case q.URL.Path == "/done":
		fmt.Fprintln(w, "#!ipxe")
		select {
		case r.done <- q.URL.RawQuery:
		default:
		}
	}
}

// TestFirmware boots real firmware in QEMU up to our boot script, and records what it sends when INGOT_RECORD=1. It takes a
// minute, so it runs only when INGOT_FIRMWARE=1 or INGOT_NO_SKIP=1.
func TestFirmware(t *testing.T) {
	if os.Getenv("INGOT_FIRMWARE") != "1" && os.Getenv("INGOT_NO_SKIP") != "1" {
		t.Skip("takes a minute: INGOT_FIRMWARE=1 runs it")
	}
	if !inNetns(t) {
		return
	}
	needs(t, "qemu-system-x86_64", "tcpdump")
	for _, f := range []string{ovmfCode, ovmfVars} {
		if _, err := os.Stat(f); err != nil {
			skip(t, err.Error())
		}
	}
	r := newRack(t)
	chain := "http://10.77.0.1:8080/boot.ipxe?chain"
	for i, c := range []struct {
		name   string
		args   []string
		script string
		want   string // what the machine says of itself
		within time.Duration
	}{
		{"bios-ipxe-rom", []string{"-M", "pc"}, script, "chip=virtio-net&platform=pcbios", 10 * time.Second},
		{"bios-undionly", []string{"-M", "pc"}, chain, "chip=undionly", 20 * time.Second},
		{"uefi-pxe-snponly", uefi(t, "IPv6PXESupport"), script, "chip=SNP&platform=efi", 30 * time.Second},
		{"uefi-http", uefi(t, "IPv4PXESupport", "IPv6PXESupport"), script, "chip=SNP&platform=efi", 40 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.dhcp.Decider = always(pxe.Answer{ScriptURL: c.script})
			mac := fmt.Sprintf("52:54:00:69:6e:%02x", i+1)
			device := "virtio-net-pci,netdev=n,bootindex=1,mac=" + mac
			if strings.HasPrefix(c.name, "uefi") {
				device += ",romfile=" // without it OVMF runs the card's iPXE and not its own PXE
			}
			stop := record(t, c.name)
			said := r.boot(t, append([]string{"-device", device}, c.args...), 4*c.within)
			stop()
			for _, m := range r.marks {
				t.Logf("%7.2fs %s", m.at.Seconds(), m.what)
			}
			if said != c.want {
				t.Errorf("the machine said %q, want %q", said, c.want)
			}
			r.noWaits(t)
		})
	}
}

// noWaits proves that iPXE waited neither for a proxy (3 s) nor for an IPv6 router (16 s): from its ACK to its request for
// the script there is no second to spare.
func (r *rack) noWaits(t *testing.T) {
	t.Helper()
	var offer, ack time.Duration
	for _, m := range r.marks {
		switch {
		case strings.HasPrefix(m.what, "offer http"):
			offer = m.at
		case strings.HasPrefix(m.what, "ack http"):
			ack = m.at
			if d := ack - offer; d > 2500*time.Millisecond {
				t.Errorf("iPXE took %s from OFFER to ACK: it waited for a proxy", d)
			}
		case strings.HasPrefix(m.what, "http /boot.ipxe"):
			if d := m.at - ack; ack == 0 || d > 8*time.Second {
				t.Errorf("iPXE took %s from ACK to script: it waited for IPv6", d)
			}
		}
	}
}

func newRack(t *testing.T) *rack {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "srv0"
	off := false
	check(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}))
	addAddr(t, "srv0", "10.77.0.1/24")
	up(t, "srv0")
	check(t, exec.Command("ip", "tuntap", "add", "tap0", "mode", "tap").Run())
	check(t, exec.Command("ip", "link", "set", "srv0", "type", "bridge", "stp_state", "0", "forward_delay", "0").Run())
	check(t, exec.Command("ip", "link", "set", "tap0", "master", "srv0", "up").Run())

	loaders, err := pxe.FindLoaders("")
	if err != nil {
		skip(t, err.Error())
	}
	r := &rack{done: make(chan string, 1)}
	r.site = newSite(t, func(d *pxe.DHCP, _ *pxe.PoolConfig) { d.Events, d.Loaders = r, loaders })
	start(t, r.dhcp.Serve, &r.dhcp.Ready)
	tftp := &pxe.TFTP{Files: loaders, Events: r, Log: testLog(t)}
	start(t, tftp.Serve, &tftp.Ready)
	if os.Getenv("INGOT_NO_RA") == "" {
		ra := &pxe.RA{Interfaces: []string{"srv0"}, Log: testLog(t)}
		start(t, ra.Serve, &ra.Ready)
	}
	l, err := net.Listen("tcp4", "10.77.0.1:8080")
	check(t, err)
	srv := &http.Server{Handler: r}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return r
}

// boot runs a machine until it has fetched /done, and returns what it said there.
func (r *rack) boot(t *testing.T, args []string, wait time.Duration) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	serial := filepath.Join(t.TempDir(), "serial")
	args = append([]string{"-accel", "tcg", "-cpu", "qemu64", "-m", "512", "-nodefaults", "-display", "none", "-no-reboot",
		"-uuid", "1ab05e11-0000-4000-8000-000000000042", "-device", "virtio-rng-pci", "-serial", "file:" + serial,
		"-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no"}, args...)
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	r.mu.Lock()
	r.marks, r.start = nil, time.Now()
	r.mu.Unlock()
	check(t, cmd.Start())
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait(); close(gone) }()
	defer func() { cmd.Process.Kill(); <-gone }() // the next machine needs the tap
	select {
	case said := <-r.done:
		return said
	case err := <-gone:
		text, _ := os.ReadFile(serial)
		t.Errorf("qemu ended: %v\n%s\n%s", err, out.String(), text)
	case <-ctx.Done():
		text, _ := os.ReadFile(serial)
		t.Errorf("the machine did not get there in %s; its serial port:\n%s", wait, text)
	}
	return ""
}

// uefi is a q35 machine with OVMF, without the network stacks that are named.
func uefi(t *testing.T, without ...string) []string {
	t.Helper()
	vars, err := os.ReadFile(ovmfVars)
	check(t, err)
	file := filepath.Join(t.TempDir(), "vars.fd")
	check(t, os.WriteFile(file, vars, 0o600))
	args := []string{"-M", "q35", "-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + ovmfCode,
		"-drive", "if=pflash,format=raw,unit=1,file=" + file}
	for _, w := range without {
		args = append(args, "-fw_cfg", "name=opt/org.tianocore/"+w+",string=n")
	}
	return args
}

// record writes the DHCP packets of clients to testdata while a machine boots.
func record(t *testing.T, name string) (stop func()) {
	t.Helper()
	if os.Getenv("INGOT_RECORD") != "1" {
		return func() {}
	}
	file, err := filepath.Abs(filepath.Join("testdata", name+".pcap"))
	check(t, err)
	check(t, os.MkdirAll("testdata", 0o755))
	cmd := exec.Command("tcpdump", "--immediate-mode", "-Z", "root", "-i", "tap0", "-s", "0", "-U", "-w", file, "udp and (dst port 67 or dst port 4011)")
	check(t, cmd.Start())
	time.Sleep(500 * time.Millisecond)
	return func() {
		time.Sleep(300 * time.Millisecond)
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	}
}
