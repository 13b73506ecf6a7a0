// Package disks is the disk_config language of FAI's setup-storage: Parse turns its text
// into a Layout, Layout.Plan a layout and the disks of a machine into a Plan, an ordered
// list of commands with everything decided, and Run runs that. Parse and Plan are pure.
//
// All stanzas are parsed. Plain disks and tmpfs are planned; raid, lvm, cryptsetup, btrfs
// and nfs, and whatever keeps parts of a disk (preserve, resize, virtual), are refused with
// a word that says so (Check), never ignored.
//
// Three things differ from FAI, each on purpose. Partitions are aligned to 1 MiB when
// align-at does not say otherwise, not to a sector. On GPT the partition mounted at
// /boot/efi becomes the ESP, not partition 1 whatever it is. UUIDs are chosen by the plan,
// so that fstab is known before a disk is touched.
package disks

import (
	"fmt"
	"math"
	"strconv"

	"ingot/internal/problem"
)

// ESPLabel is the FAT label of the EFI system partition. Boot scripts find the
// installed system by it: `chain file://INGOT-ESP/EFI/BOOT/BOOTX64.EFI`.
const ESPLabel = "INGOT-ESP"

// Layout is a disk_config file.
type Layout struct {
	File   string
	Disks  []*Disk
	Tmpfs  []Tmpfs
	Others []Stanza // parsed, but not planned yet
}

// Disk is a stanza for one disk.
type Disk struct {
	Name       string // as written: disk1, sda, /dev/disk/by-id/...
	Label      string // msdos | gpt | gpt-bios
	Bootable   int    // number of the partition, 0: none
	FstabKey   string // device | label | uuid | partuuid | partlabel
	Align      uint64 // bytes, 0: the default
	Partitions []*Partition

	line    int
	refused []refusal
}

// Partition is one volume line of a disk.
type Partition struct {
	Number  int // as the system numbers it
	Logical bool
	Name    string // of a GPT partition; empty when not written
	Mount   string // "" none, "swap", or a path
	Size    Size
	FS      string // "" none, "swap", "ext4", ...
	Options string // of the mount
	Create  []string
	Tune    []string

	line int
}

// Tmpfs is a line of a tmpfs stanza.
type Tmpfs struct {
	Mount   string
	Options string
}

// Stanza is one that is not planned yet.
type Stanza struct {
	Kind    string // raid | lvm | cryptsetup | btrfs | nfs
	Line    int
	Volumes []Volume
}

// Volume is a line of such a stanza.
type Volume struct {
	Name    string // raid1, vg, VG-LV, luks, ...
	Fields  []string
	Options map[string]string // createopts and the like
	Line    int
}

// refusal is something a stanza asks for that is not planned yet.
type refusal struct {
	line, col int
	what      string
}

// Amount is a size as written: so many bytes, percent of the disk, or percent of memory.
type Amount struct {
	Bytes   float64
	Percent float64 // of the disk; used when OfDisk
	RAM     float64 // percent of memory; used when OfRAM
	OfDisk  bool
	OfRAM   bool
}

// Size is a range of sizes.
type Size struct {
	Text     string
	Min, Max Amount
}

// bytes is the amount on a disk whose 100 % are disk bytes. FAI rounds the minimum of a
// percentage down and the maximum up; RAM is rounded down, which FAI forgets.
func (a Amount) bytes(disk, ram uint64, up bool) uint64 {
	switch {
	case a.OfDisk && up:
		return uint64(math.Ceil(float64(disk) * a.Percent / 100))
	case a.OfDisk:
		return uint64(math.Floor(float64(disk) * a.Percent / 100))
	case a.OfRAM:
		return uint64(math.Floor(float64(ram) * a.RAM / 100))
	}
	return uint64(a.Bytes)
}

// GPT says whether the disk gets a GUID partition table.
func (d *Disk) GPT() bool { return d.Label != "msdos" }

// Check parses a file and adds what is not supported yet: what a server wants to know
// before a machine boots. It returns a problem.List.
func Check(file string, text []byte) error {
	l, err := Parse(file, text)
	if err != nil {
		return err
	}
	return l.unsupported(&problem.Source{Name: file, Data: text}).Err()
}

// Supported is nil when the layout asks for nothing that is not planned yet.
func (l *Layout) Supported() error {
	return l.unsupported(&problem.Source{Name: l.File}).Err()
}

func (l *Layout) unsupported(src *problem.Source) problem.List {
	var probs problem.List
	for _, s := range l.Others {
		probs.Add(src.At(s.Line, 1, "%s is not supported yet: only disks and tmpfs are", s.Kind))
	}
	for _, d := range l.Disks {
		for _, r := range d.refused {
			probs.Add(src.At(r.line, r.col, "%s is not supported yet", r.what))
		}
	}
	return probs
}

// Device is a disk of the machine, as Probe finds it.
type Device struct {
	Name     string   // sda
	Path     string   // /dev/sda
	Links    []string // other names: /dev/disk/by-id/...
	Size     uint64   // bytes
	Sector   uint64   // bytes of a logical sector; 0 means 512
	Model    string
	Serial   string
	ReadOnly bool
	Busy     string   // why it is in use, empty when it is not
	Parts    []string // device files of the partitions it has now
}

func (d Device) sector() uint64 {
	if d.Sector == 0 {
		return 512
	}
	return d.Sector
}

// String describes the disk to a person: `sda 500.1 GB ATA-DISK S3RIAL`.
func (d Device) String() string {
	s := fmt.Sprintf("%s %s", d.Name, human(d.Size))
	for _, x := range []string{d.Model, d.Serial} {
		if x != "" {
			s += " " + x
		}
	}
	return s
}

// human writes bytes as disks are sold and as sizes are written here.
func human(n uint64) string {
	const kib = 1024
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	f, i := float64(n), 0
	for f >= kib && i < len(units)-1 {
		f, i = f/kib, i+1
	}
	if f == math.Trunc(f) {
		return fmt.Sprintf("%.0f %s", f, units[i])
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}

// ftoa writes a number without a fraction when it has none.
func ftoa(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
