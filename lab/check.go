package lab

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// The firmware of Debian's packages.
const (
	qemuProgram = "qemu-system-x86_64"
	biosROM     = "/usr/share/seabios/bios-256k.bin"
	nicROM      = "/usr/lib/ipxe/qemu/efi-virtio.rom"
	ovmfCode    = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars    = "/usr/share/OVMF/OVMF_VARS_4M.fd"

	ovmfSecureCode = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
	ovmfSecureVars = "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"
)

// MissingError says what a rack needs and this system does not have.
type MissingError struct {
	Files    []string
	Packages []string // of Debian
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("the lab needs %s: install %s", strings.Join(e.Files, ", "), strings.Join(e.Packages, " "))
}

// Check returns a *MissingError when machines with the firmware cannot be run here.
func Check(fw ...Firmware) error { return check(found, fw...) }

// secureBoot is what firmware needs besides for Secure Boot.
const secureBoot Firmware = "uefi with Secure Boot"

// found looks for a file, or for a program by its name.
func found(name string) error {
	if !strings.Contains(name, "/") {
		_, err := exec.LookPath(name)
		return err
	}
	_, err := os.Stat(name)
	return err
}

// check asks have for each file that is needed.
func check(have func(name string) error, fw ...Firmware) error {
	need := []struct{ file, pkg string }{{qemuProgram, "qemu-system-x86"}, {"/dev/net/tun", "the kernel module tun"}}
	if slices.Contains(fw, BIOS) {
		need = append(need, struct{ file, pkg string }{biosROM, "seabios"}, struct{ file, pkg string }{nicROM, "ipxe-qemu"})
	}
	if slices.Contains(fw, UEFI) {
		need = append(need, struct{ file, pkg string }{ovmfCode, "ovmf"}, struct{ file, pkg string }{ovmfVars, "ovmf"})
	}
	if slices.Contains(fw, secureBoot) {
		need = append(need, struct{ file, pkg string }{ovmfSecureCode, "ovmf"}, struct{ file, pkg string }{ovmfSecureVars, "ovmf"})
	}
	e := &MissingError{}
	for _, n := range need {
		if have(n.file) != nil {
			e.Files = append(e.Files, n.file)
			if !slices.Contains(e.Packages, n.pkg) {
				e.Packages = append(e.Packages, n.pkg)
			}
		}
	}
	if len(e.Files) > 0 {
		return e
	}
	return nil
}
