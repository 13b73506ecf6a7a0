package lab

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestMachineArgs(t *testing.T) {
	m := Machine{Name: "n1", MAC: "52:54:00:00:00:01", MemMB: 768, SMP: 1, NIC: "e1000", Disks: []Disk{{Path: "/a,b.img", Model: "nvme"}}, ExtraArgs: []string{"-s"}}
	for _, tt := range []struct {
		name string
		set  func(*Machine)
		want []string
		none string
	}{
		{"bios", func(m *Machine) { m.Firmware = BIOS }, []string{"-machine pc,graphics=off", "-device e1000,netdev=n0,mac=52:54:00:00:00:01,bootindex=1", "file=/a,,b.img", "nvme,drive=d0,serial=n1-0,bootindex=2", "-m 768 ", "ifname=t0", "-s"}, "romfile"},
		{"secure boot", func(m *Machine) { m.Firmware, m.Secure = UEFI, true }, []string{"-machine q35,smm=on", "property=secure,value=on", ovmfSecureCode}, ovmfCode + " "},
		{"uefi", func(m *Machine) { m.Firmware = UEFI }, []string{"-machine q35", "romfile=", ovmfCode, "file=/vars", "IPv6PXESupport,string=n"}, "graphics"},
		{"disk first", func(m *Machine) { m.Firmware = BIOS; m.DiskFirst = true }, []string{"mac=52:54:00:00:00:01,bootindex=100", "serial=n1-0,bootindex=2"}, "bootindex=1 "},
		{"logged", func(m *Machine) {
			m.Firmware = BIOS
			m.Disks = append(m.Disks, Disk{Path: "/b", Model: "ide-hd", WriteLog: "/w,l"})
		},
			[]string{"id=d0,format=raw,cache=unsafe", "driver=file,node-name=disk1-file,cache.no-flush=on,discard=unmap,filename=/b", "filename=/w,,l",
				"driver=blklogwrites,node-name=d1,discard=unmap,file=disk1,log=log1 -device ide-hd,drive=d1,"}, "id=d1"},
		{"one boot", func(m *Machine) { m.Firmware = BIOS; m.NoReboot = true }, []string{"-no-reboot"}, "kvm"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("INGOT_LAB_KVM", "")
			m := m
			tt.set(&m)
			got := strings.Join(m.args("t0", "/vars"), " ") + " "
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Errorf("no %q in %s", want, got)
				}
			}
			if strings.Contains(got, tt.none) {
				t.Errorf("%q in %s", tt.none, got)
			}
		})
	}
}

func TestMachineComplete(t *testing.T) {
	dir := t.TempDir()
	for _, m := range []Machine{{}, {Name: "../x"}, {Name: "a", Firmware: "coreboot"}, {Name: "a", Secure: true}, {Name: "a", MAC: "x"}, {Name: "a", Disks: []Disk{{}}}} {
		if got, err := m.complete(dir); err == nil {
			t.Errorf("%+v was taken: %+v", m, got)
		}
	}
	m := Machine{Name: "a", Disks: []Disk{{SizeBytes: 1 << 20}}}
	got, err := m.complete(dir)
	var missing *MissingError
	if errors.As(err, &missing) {
		t.Skip(err)
	}
	if err != nil || got.MAC == "" || got.MemMB != 1024 || got.SMP != 2 || got.Firmware != BIOS || got.NIC != "virtio-net-pci" {
		t.Errorf("%+v, %v", got, err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "a.0.img")); err != nil || fi.Size() != 1<<20 {
		t.Errorf("disk: %v, %v", fi, err)
	}
	if m.Disks[0].Path != "" {
		t.Error("the caller's disks were changed")
	}
}

func TestCheck(t *testing.T) {
	err := check(func(name string) error {
		if name == "/dev/net/tun" {
			return nil
		}
		return os.ErrNotExist
	}, BIOS, UEFI, secureBoot)
	var e *MissingError
	if !errors.As(err, &e) || !slices.Equal(e.Packages, []string{"qemu-system-x86", "seabios", "ipxe-qemu", "ovmf"}) || len(e.Files) != 7 {
		t.Errorf("%v", err)
	}
	if err := check(func(string) error { return nil }, BIOS, UEFI); err != nil {
		t.Error(err)
	}
}

func TestMACs(t *testing.T) {
	seen := make(map[string]string)
	for _, name := range []string{"n1", "n2", "n10", "c01", "c02"} {
		mac := macOf(name)
		if other, ok := seen[mac]; ok {
			t.Errorf("%q and %q have the same address", name, other)
		}
		seen[mac] = name
	}
}
