package pxe

import "fmt"

// Arch is a client system architecture: option 93, RFC 4578 2.1, extended by IANA's "Processor Architecture Types".
type Arch uint16

// The architectures that firmware was seen to send. 7 and 9 are the same machine: IANA says 7 is x64 and 9 is "EBC", RFC
// 4578 had said the opposite, and real firmware sends either. A server that knows 9 but not 7 hands such a machine the
// loader again and again (an endless iPXE loop).
const (
	ArchBIOS        Arch = 0
	ArchEFI32       Arch = 6
	ArchEFIBC       Arch = 7
	ArchEFIX64      Arch = 9
	ArchEFIARM32    Arch = 10
	ArchEFIARM64    Arch = 11
	ArchOPAL        Arch = 14 // petitboot: wants a conf-file, no loader
	ArchHTTPX86     Arch = 15
	ArchHTTPX64     Arch = 16
	ArchHTTPEBC     Arch = 17
	ArchHTTPARM32   Arch = 18
	ArchHTTPARM64   Arch = 19
	ArchHTTPBIOS    Arch = 20
	ArchRISCV32     Arch = 25
	ArchHTTPRISCV32 Arch = 26
	ArchRISCV64     Arch = 27
	ArchHTTPRISCV64 Arch = 28
	ArchLoong32     Arch = 37 // Cobbler calls 37 and 39 RISC-V; iPXE's dhcp.h, which follows IANA, says LoongArch
	ArchLoong64     Arch = 39
	ArchRPi         Arch = 41
	ArchNone        Arch = 0xffff // no option 93 and nothing that stands for it
)

// Firmware is the kind of program that runs a machine before its operating system.
type Firmware int

// The kinds of firmware. UEFIHTTP is UEFI that boots by HTTP: it wants a URL, never the name of a TFTP file.
const (
	FirmwareNone Firmware = iota // not known, or a client that is no firmware
	BIOS
	UEFI
	UEFIHTTP
)

func (f Firmware) String() string {
	return [...]string{"none", "bios", "uefi", "uefi-http"}[f]
}

type archInfo struct {
	name string
	fw   Firmware
	cpu  string // family of loaders: "" where there is none
}

func (a Arch) info() (archInfo, bool) {
	switch a {
	case ArchBIOS:
		return archInfo{"x86 BIOS", BIOS, "bios"}, true
	case ArchEFI32:
		return archInfo{"x86 UEFI", UEFI, "ia32"}, true
	case ArchEFIBC, ArchEFIX64:
		return archInfo{"x64 UEFI", UEFI, "x64"}, true
	case ArchEFIARM32:
		return archInfo{"arm32 UEFI", UEFI, "arm32"}, true
	case ArchEFIARM64:
		return archInfo{"arm64 UEFI", UEFI, "arm64"}, true
	case ArchOPAL:
		return archInfo{"POWER OPAL", FirmwareNone, ""}, true
	case ArchHTTPX86:
		return archInfo{"x86 UEFI HTTP", UEFIHTTP, "ia32"}, true
	case ArchHTTPX64, ArchHTTPEBC:
		return archInfo{"x64 UEFI HTTP", UEFIHTTP, "x64"}, true
	case ArchHTTPARM32:
		return archInfo{"arm32 UEFI HTTP", UEFIHTTP, "arm32"}, true
	case ArchHTTPARM64:
		return archInfo{"arm64 UEFI HTTP", UEFIHTTP, "arm64"}, true
	case ArchHTTPBIOS:
		return archInfo{"x86 BIOS HTTP", BIOS, ""}, true
	case ArchRISCV32:
		return archInfo{"riscv32 UEFI", UEFI, "riscv32"}, true
	case ArchHTTPRISCV32:
		return archInfo{"riscv32 UEFI HTTP", UEFIHTTP, "riscv32"}, true
	case ArchRISCV64:
		return archInfo{"riscv64 UEFI", UEFI, "riscv64"}, true
	case ArchHTTPRISCV64:
		return archInfo{"riscv64 UEFI HTTP", UEFIHTTP, "riscv64"}, true
	case ArchLoong32:
		return archInfo{"loongarch32 UEFI", UEFI, "loong32"}, true
	case ArchLoong64:
		return archInfo{"loongarch64 UEFI", UEFI, "loong64"}, true
	case ArchRPi:
		return archInfo{"Raspberry Pi", FirmwareNone, ""}, true
	}
	return archInfo{}, false
}

func (a Arch) String() string {
	if a == ArchNone {
		return "none"
	}
	if in, ok := a.info(); ok {
		return in.name
	}
	return fmt.Sprintf("arch %d", uint16(a))
}

// Firmware of a machine that says a; FirmwareNone for architectures that we do not know.
func (a Arch) Firmware() Firmware {
	in, _ := a.info()
	return in.fw
}

// LoadersFor names the loaders for a, the best first. An empty list means that we have none.
//
// UEFI: snponly drives the card through the firmware's own driver and only the card that was booted from; ipxe.efi has
// native drivers, which hang or drop some cards (Dell 82599, Broadcom, Realtek 8168, ConnectX-5) but save machines whose
// SNP is broken. BIOS: undionly.kpxe drives the card through the ROM's UNDI; .kkpxe does not unload the ROM underneath,
// which stubborn ROMs need.
func LoadersFor(a Arch) []string {
	in, _ := a.info()
	switch in.cpu {
	case "":
		return nil
	case "bios":
		return []string{"undionly.kpxe", "undionly.kkpxe"}
	case "x64":
		return []string{"snponly.efi", "ipxe.efi"}
	}
	return []string{"snponly-" + in.cpu + ".efi", "ipxe-" + in.cpu + ".efi"}
}
