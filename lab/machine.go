package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
)

// Firmware is what a machine starts with.
type Firmware string

// The firmwares.
const (
	BIOS Firmware = "bios" // SeaBIOS on the machine "pc"; its network card's ROM is iPXE
	UEFI Firmware = "uefi" // OVMF on the machine "q35"; its own PXE client, since the card has no ROM
)

// Machine describes a machine.
type Machine struct {
	Name      string   `json:"name"`
	Firmware  Firmware `json:"firmware"` // "" is BIOS
	MAC       string   `json:"mac"`      // "" is made from the name
	Disks     []Disk   `json:"disks"`
	MemMB     int      `json:"mem_mb"`      // 0 is 1024
	SMP       int      `json:"smp"`         // 0 is 2
	NIC       string   `json:"nic"`         // QEMU's device; "" is virtio-net-pci
	DiskFirst bool     `json:"disk_first"`  // boot from disk before the network
	Secure    bool     `json:"secure_boot"` // UEFI with Secure Boot, and Microsoft's keys
	NoReboot  bool     `json:"no_reboot"`   // a reboot of the guest turns the machine off
	ExtraArgs []string `json:"extra_args"`  // for QEMU
	// FailOn are texts on the console that mean there is nothing to wait for. Nil is DefaultFailOn.
	FailOn []string `json:"fail_on"`
}

// Disk is a disk of a machine.
type Disk struct {
	Path      string `json:"path"`       // a raw image; "" is NAME.N.img in the state directory
	SizeBytes int64  `json:"size_bytes"` // made, sparse, when there is no file; 0 asks for a file
	Model     string `json:"model"`      // QEMU's device; "" is virtio-blk-pci; or nvme, ide-hd, scsi-hd ...
	WriteLog  string `json:"write_log"`  // logs all writes and flushes to this file, by its name in the state directory or its path; see internal/writelog
}

// DefaultFailOn returns the texts on a console that mean a machine has stopped on its way: one wrong ROM
// costs 350 silent seconds otherwise.
func DefaultFailOn() []string {
	return []string{"No bootable device", "UiApp", "grub>", "grub rescue>", "(initramfs)", "Kernel panic"}
}

// complete checks a machine and fills in what was left open.
func (m Machine) complete(dir string) (Machine, error) {
	if !regexp.MustCompile(`^[a-zA-Z0-9][-a-zA-Z0-9_]*$`).MatchString(m.Name) {
		return m, fmt.Errorf("bad name %q", m.Name)
	}
	if m.Firmware == "" {
		m.Firmware = BIOS
	}
	if m.Firmware != BIOS && m.Firmware != UEFI {
		return m, fmt.Errorf("unknown firmware %q", m.Firmware)
	}
	if m.Secure && m.Firmware != UEFI {
		return m, errors.New("Secure Boot is for UEFI")
	}
	if m.MAC == "" {
		m.MAC = macOf(m.Name)
	}
	if _, err := net.ParseMAC(m.MAC); err != nil {
		return m, err
	}
	if m.MemMB == 0 {
		m.MemMB = 1024
	}
	if m.SMP == 0 {
		m.SMP = 2
	}
	if m.NIC == "" {
		m.NIC = "virtio-net-pci"
	}
	if m.FailOn == nil {
		m.FailOn = DefaultFailOn()
	}
	m.Disks = append([]Disk(nil), m.Disks...)
	for i := range m.Disks {
		d := &m.Disks[i]
		if err := d.complete(filepath.Join(dir, fmt.Sprintf("%s.%d.img", m.Name, i))); err != nil {
			return m, err
		}
		if d.WriteLog != "" && !filepath.IsAbs(d.WriteLog) {
			d.WriteLog = filepath.Join(dir, d.WriteLog)
		}
	}
	if m.Secure {
		return m, Check(m.Firmware, secureBoot)
	}
	return m, Check(m.Firmware)
}

// complete fills in a disk and makes its file.
func (d *Disk) complete(file string) error {
	if d.Path == "" {
		d.Path = file
	}
	if d.Model == "" {
		d.Model = "virtio-blk-pci"
	}
	_, err := os.Stat(d.Path)
	if err == nil {
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) || d.SizeBytes == 0 {
		return fmt.Errorf("disk: %w", err)
	}
	f, err := os.OpenFile(d.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	return errors.Join(f.Truncate(d.SizeBytes), f.Close())
}

// qmpFD is the descriptor on which QEMU inherits its monitor: the first of ExtraFiles.
const qmpFD = 3

// args returns QEMU's command line.
func (m Machine) args(tap, vars string) []string {
	a := []string{"-name", m.Name, "-no-user-config", "-nodefaults", "-display", "none", "-serial", "stdio",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", qmpFD), "-mon", "chardev=qmp,mode=control",
		"-smp", strconv.Itoa(m.SMP), "-m", strconv.Itoa(m.MemMB), "-device", "virtio-rng-pci"}
	if os.Getenv("INGOT_LAB_KVM") == "1" {
		a = append(a, "-accel", "kvm", "-cpu", "host")
	} else {
		a = append(a, "-accel", "tcg,thread=multi", "-cpu", "qemu64") // -cpu max is slower
	}
	nic := fmt.Sprintf("%s,netdev=n0,mac=%s,bootindex=%d", m.NIC, m.MAC, m.first(1, 100))
	switch m.Firmware {
	case BIOS:
		// graphics=off sends SeaBIOS's screen, and with it that of iPXE, to the serial port. The ROM is
		// QEMU's choice: given with romfile= on this machine, the firmware did not find it.
		a = append(a, "-machine", "pc,graphics=off")
	case UEFI:
		nic += ",romfile="
		machine, code := []string{"-machine", "q35"}, ovmfCode
		if m.Secure { // variables that only the firmware can write, in system management mode
			machine, code = []string{"-machine", "q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on"}, ovmfSecureCode
		}
		a = append(a, machine...)
		a = append(a,
			"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+code,
			"-drive", "if=pflash,unit=1,format=raw,cache=unsafe,file="+escape(vars),
			"-fw_cfg", "name=opt/org.tianocore/IPv6Support,string=n",
			"-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n")
	}
	a = append(a, "-netdev", "tap,id=n0,script=no,downscript=no,ifname="+tap, "-device", nic)
	for i, d := range m.Disks {
		a = append(a, d.args(i)...)
		a = append(a, "-device", fmt.Sprintf("%s,drive=d%d,serial=%s-%d,bootindex=%d", d.Model, i, m.Name, i, m.first(2, 2)+i))
	}
	if m.NoReboot {
		a = append(a, "-no-reboot")
	}
	return append(a, m.ExtraArgs...)
}

// args are QEMU's options for what is behind the device: drive di. The disk has a write cache, and the
// guest's flushes end at the host's page cache, which outlives QEMU. Where they are logged they have to
// pass the log before that: no-flush is an option of the files, and not of blklogwrites.
func (d Disk) args(i int) []string {
	if d.WriteLog == "" {
		return []string{"-drive", fmt.Sprintf("if=none,id=d%d,format=raw,cache=unsafe,discard=unmap,file=%s", i, escape(d.Path))}
	}
	file := func(node, path string) []string {
		return []string{"-blockdev", fmt.Sprintf("driver=file,node-name=%s-file,cache.no-flush=on,discard=unmap,filename=%s", node, escape(path)),
			"-blockdev", fmt.Sprintf("driver=raw,node-name=%[1]s,cache.no-flush=on,discard=unmap,file=%[1]s-file", node)}
	}
	disk, log := fmt.Sprintf("disk%d", i), fmt.Sprintf("log%d", i)
	a := append(file(disk, d.Path), file(log, d.WriteLog)...)
	return append(a, "-blockdev", fmt.Sprintf("driver=blklogwrites,node-name=d%d,discard=unmap,file=%s,log=%s", i, disk, log))
}

// beginLog makes an empty log: blklogwrites wants a file, and begins anew in it.
func (d Disk) beginLog() error {
	if d.WriteLog == "" {
		return nil
	}
	f, err := os.Create(d.WriteLog)
	if err != nil {
		return fmt.Errorf("begin the log of writes: %w", err)
	}
	return f.Close()
}

// first returns a boot index by what is to come first.
func (m Machine) first(network, disk int) int {
	if m.DiskFirst {
		return disk
	}
	return network
}

// escape doubles the commas of a file name in QEMU's option syntax.
func escape(file string) string {
	return regexp.MustCompile(`,`).ReplaceAllString(file, ",,")
}

// freshVars gives a machine that has no variable store one of OVMF: empty, or
// with the keys of Secure Boot.
func freshVars(file string, secure bool) error {
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	from := ovmfVars
	if secure {
		from = ovmfSecureVars
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
