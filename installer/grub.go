package installer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// sector is the unit of GRUB's block lists, in bytes, whatever the disk's own sector size.
const sector = 512

// grubModules are what a self-contained core image needs to find and start a
// kernel: nothing is loaded from /boot/grub, so a core image can never meet
// modules of another version.
func grubModules() []string {
	return []string{
		"part_gpt", "part_msdos", "ext2", "fat", "xfs", "btrfs", "search", "search_fs_uuid", "configfile",
		"normal", "linux", "echo", "test", "regexp", "serial", "terminal", "minicmd", "ls", "cat", "halt", "reboot", "sleep", "loadenv",
	}
}

// grubPlatform is one of the firmwares that the installed disk boots under.
type grubPlatform struct {
	dir    string // below /usr/lib/grub
	format string // of grub-mkimage -O
	extra  []string
}

func grubBIOS() grubPlatform {
	return grubPlatform{dir: "i386-pc", format: "i386-pc", extra: []string{"biosdisk"}}
}
func grubUEFI() grubPlatform {
	return grubPlatform{dir: "x86_64-efi", format: "x86_64-efi", extra: []string{"chain"}}
}

// grubMkimage is the command that makes the core image, to run in the installed tree.
func grubMkimage(p grubPlatform, config, out string) []string {
	argv := []string{"grub-mkimage", "-d", "/usr/lib/grub/" + p.dir, "-O", p.format, "-p", "/boot/grub", "-c", config, "-o", out}
	argv = append(argv, grubModules()...)
	return append(argv, p.extra...)
}

// grubChain is the configuration inside a core image that only starts what the
// firmware would start, from the EFI system partition with this UUID.
func grubChain(espUUID string) string {
	return fmt.Sprintf("search --no-floppy --fs-uuid --set=root %s\nchainloader ($root)/EFI/BOOT/BOOTX64.EFI\nboot\n", espUUID)
}

// grubEmbedded is the configuration inside the core image: it finds the file
// system that holds dir/grub.cfg by its UUID and reads on there.
func grubEmbedded(fsUUID, dir string) string {
	return fmt.Sprintf("search --no-floppy --fs-uuid --set=root %s\nset prefix=($root)%s\nconfigfile $prefix/grub.cfg\n", fsUUID, dir)
}

// bootConfig is what grub.cfg depends on.
type bootConfig struct {
	name     string   // of the node
	rootUUID string   // file system that the kernel mounts
	bootSep  bool     // /boot is a file system of its own
	args     []string // kernel arguments
}

// grubConfig renders /boot/grub/grub.cfg. It names no kernel version: Debian's
// /vmlinuz and /initrd.img links decide where they exist, else the last pair
// in /boot, so that a push of another kernel needs no new configuration.
func grubConfig(c bootConfig) string {
	boot := "/boot"
	if c.bootSep {
		boot = ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by ingot for %s; /boot/grub belongs to ingot.\n", c.name)
	b.WriteString(grubTerminal(c.args))
	b.WriteString("set timeout=1\nset default=0\nset kernel=\nset initrd=\n")
	if !c.bootSep {
		b.WriteString("if [ -f /vmlinuz -a -f /initrd.img ]; then set kernel=/vmlinuz; set initrd=/initrd.img; fi\n")
	}
	fmt.Fprintf(&b, `if [ -z "$kernel" ]; then
  for k in %[1]s/vmlinuz-*; do
    if regexp --set=1:version '^.*/vmlinuz-(.*)$' "$k"; then
      set kernel="$k"
      set initrd=
      for i in "%[1]s/initrd.img-$version" "%[1]s/initramfs-$version.img" "%[1]s/initrd-$version"; do
        if [ -f "$i" ]; then set initrd="$i"; fi
      done
    fi
  done
fi
`, boot)
	// The pair before (package rollback), which is the usual one while a generation is on trial.
	b.WriteString("if [ -f /.ingot/boot/trial ]; then set kernel=/.ingot/boot/vmlinuz; set initrd=/.ingot/boot/initrd.img; fi\n")
	fmt.Fprintf(&b, "menuentry %q {\n  linux $kernel root=UUID=%s ro %s init=/.ingot/agent\n  if [ -n \"$initrd\" ]; then initrd $initrd; fi\n}\n", c.name, c.rootUUID, grubArgs(c.args))
	fmt.Fprintf(&b, "menuentry %q {\n  linux $kernel root=UUID=%s ro %s single\n  if [ -n \"$initrd\" ]; then initrd $initrd; fi\n}\n", c.name+" (single user, without recovery)", c.rootUUID, grubArgs(c.args))
	fmt.Fprintf(&b, "if [ -f /.ingot/boot/vmlinuz ]; then\nmenuentry %q {\n  linux /.ingot/boot/vmlinuz root=UUID=%s ro %s init=/.ingot/agent ingot-rollback\n  initrd /.ingot/boot/initrd.img\n}\nfi\n",
		c.name+" (back to the generation before)", c.rootUUID, grubArgs(c.args))
	return b.String()
}

// grubTerminal follows the kernel's console=ttySN,BAUD so that the menu is
// seen where the kernel's messages will be.
func grubTerminal(args []string) string {
	for _, a := range args {
		rest, ok := strings.CutPrefix(a, "console=ttyS")
		if !ok {
			continue
		}
		unit, baud, ok := strings.Cut(rest, ",")
		speed := baud
		if i := strings.IndexAny(speed, "neo"); i >= 0 {
			speed = speed[:i]
		}
		if !ok || speed == "" {
			speed = "115200"
		}
		return fmt.Sprintf("serial --unit=%s --speed=%s\nterminal_input console serial\nterminal_output console serial\n", unit, speed)
	}
	return ""
}

// grubArgs quotes kernel arguments for GRUB's shell-like language.
func grubArgs(args []string) string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = a
		if strings.ContainsAny(a, "\"'$\\;&|<>{} ") {
			out[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(out, " ")
}

// Offsets in GRUB's boot.img and in the first sector of its core image
// (grub-core/boot/i386/pc/{boot,diskboot}.S, include/grub/i386/pc/boot.h).
const (
	bootBPBEnd       = 0x5a  // bytes 0x03-0x59 may hold a BIOS parameter block
	bootKernelSector = 0x5c  // 8 bytes: LBA of the core image
	bootDrive        = 0x64  // 0xff: the drive that the BIOS booted from
	bootDriveCheck   = 0x66  // jmp that must become two nops for hard disks
	bootPartTable    = 0x1b8 // disk signature and partition table: kept
	coreBlockStart   = 0x1f4 // 8 bytes: LBA of the second sector of the core image
	coreBlockLen     = 0x1fc // 2 bytes: how many sectors follow
	coreBlockSegment = 0x1fe // 2 bytes: where they are loaded
	coreSegment      = 0x820
)

// grubEmbed writes GRUB for BIOS machines on disk: boot.img into the code area
// of sector 0, keeping what partitioning wrote there, and the core image into
// the BIOS boot partition that begins at start and is size long (both bytes).
func grubEmbed(disk io.WriterAt, mbr, bootImg, coreImg []byte, start, size int64) error {
	if len(bootImg) != sector || len(mbr) != sector {
		return fmt.Errorf("boot.img has %d bytes and the boot sector %d, want %d each", len(bootImg), len(mbr), sector)
	}
	if len(coreImg) < 2*sector {
		return fmt.Errorf("core image has %d bytes only", len(coreImg))
	}
	core := append([]byte{}, coreImg...)
	for len(core)%sector != 0 {
		core = append(core, 0)
	}
	if int64(len(core)) > size {
		return fmt.Errorf("the core image needs %d bytes, the BIOS boot partition has %d", len(core), size)
	}
	if start%sector != 0 {
		return errors.New("the BIOS boot partition does not begin on a sector")
	}
	lba := uint64(start / sector)
	binary.LittleEndian.PutUint64(core[coreBlockStart:], lba+1)
	binary.LittleEndian.PutUint16(core[coreBlockLen:], uint16(len(core)/sector-1))
	binary.LittleEndian.PutUint16(core[coreBlockSegment:], coreSegment)

	boot := append([]byte{}, bootImg...)
	copy(boot[3:bootBPBEnd], mbr[3:bootBPBEnd])
	copy(boot[bootPartTable:sector-2], mbr[bootPartTable:sector-2])
	binary.LittleEndian.PutUint64(boot[bootKernelSector:], lba)
	boot[bootDrive] = 0xff
	boot[bootDriveCheck], boot[bootDriveCheck+1] = 0x90, 0x90

	if _, err := disk.WriteAt(core, start); err != nil {
		return fmt.Errorf("write the core image: %w", err)
	}
	if _, err := disk.WriteAt(boot, 0); err != nil {
		return fmt.Errorf("write the boot sector: %w", err)
	}
	return nil
}

// placeholder is a boot sector that says why the disk does not boot, for the
// time between the partitioning and the end of an installation. It keeps what
// partitioning wrote into mbr.
func placeholder(mbr []byte) []byte {
	code := []byte{
		0x31, 0xC0, // xor  ax, ax
		0x8E, 0xD8, // mov  ds, ax
		0xFC,             // cld
		0xBE, 0x19, 0x7C, // mov  si, 0x7c19: the text behind this code
		0xAC,       // lodsb
		0x84, 0xC0, // test al, al
		0x74, 0x09, // jz   hlt
		0xB4, 0x0E, // mov  ah, 0x0e: teletype output
		0xBB, 0x07, 0x00, // mov  bx, 7
		0xCD, 0x10, // int  0x10
		0xEB, 0xF2, // jmp  lodsb
		0xF4,       // hlt
		0xEB, 0xFD, // jmp  hlt
	}
	out := append([]byte{}, mbr...)
	clear(out[:bootPartTable])
	n := copy(out, code)
	copy(out[n:], "\r\ningot: the installation of this disk was not finished; it does not boot.\r\nSee: ingot node timeline NODE\r\n\x00")
	out[sector-2], out[sector-1] = 0x55, 0xAA
	return out
}
