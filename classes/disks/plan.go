package disks

import (
	"crypto/rand"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"ingot/internal/problem"
)

// Options are what a plan depends on besides the layout and the disks.
type Options struct {
	RAM   uint64    // bytes of memory, for RAM:n% sizes
	Align uint64    // where a stanza has no align-at; 0: 1 MiB. FAI's is one sector
	Rand  io.Reader // of UUIDs; nil: crypto/rand. The same bytes make the same plan
}

// Plan is what is done to the disks, in order, and what comes out of it.
type Plan struct {
	Steps  []Step
	Result Result
}

// Step is one command, or the wait for device files to appear.
type Step struct {
	What  string   // for people: `format /dev/sda3 as ext4`
	Argv  []string // empty when the step only waits
	Stdin string
	Wait  []string // device files that must be there afterwards
}

// Result is what the installation needs to know of the finished disks.
type Result struct {
	Fstab      string
	Mounts     []Mount // in the order of mounting: parents first; no swap, no tmpfs
	Swaps      []string
	Partitions []Made
	Disks      []string // the disks that were divided, as devices
	BootDevice string   // the disk that /boot, else /, is on
	BIOSBoot   bool     // it has a BIOS boot partition, or an msdos table: GRUB fits
	ESPDevice  string   // partition; empty: none
	ESPDisk    string
	ESPNumber  int
	BootPart   string // device of /boot when it is a partition of its own
	RootDevice string
	RootUUID   string // of the file system
	RootFS     string
	RootKey    string // as in fstab: UUID=...
	Bootable   []string
}

// Mount is one file system of the new system.
type Mount struct {
	Device  string
	Path    string
	FS      string
	Options string
}

// Made is one partition after the plan ran. Start and Size are bytes.
type Made struct {
	Device   string
	Disk     string
	Number   int
	Start    uint64
	Size     uint64
	Type     string // GUID, or the byte of an msdos table
	Name     string
	PartUUID string
	FS       string
	UUID     string // of the file system
	Label    string
	Mount    string

	opts string
	key  string // of fstab
}

// planner is the work of Layout.Plan.
type planner struct {
	src   *problem.Source
	probs problem.List
	opt   Options
	devs  []Device
	made  []Made
	steps []Step
	mkfs  []Step // after all tables are written
}

// Plan decides everything: which disk each stanza means, sizes, UUIDs, commands. devs are
// in the order of disk1, disk2, ... (see Probe). Nothing is touched. A disk that is in use,
// read-only, too small or not there is a problem.List that says what there is.
func (l *Layout) Plan(devs []Device, opt Options) (*Plan, error) {
	if err := l.Supported(); err != nil {
		return nil, err
	}
	if opt.Rand == nil {
		opt.Rand = rand.Reader
	}
	if opt.Align == 0 {
		opt.Align = mib
	}
	p := &planner{src: &problem.Source{Name: l.File}, opt: opt, devs: devs}
	used := map[string]int{}
	root := false
	out := &Plan{}
	for _, d := range l.Disks {
		dev := p.choose(d)
		if dev == nil {
			continue
		}
		if first, ok := used[dev.Path]; ok {
			p.bad(d.line, "%s is %s, which line %d divides already", d.Name, dev.Path, first)
			continue
		}
		used[dev.Path] = d.line
		p.divide(d, dev)
		out.Result.Disks = append(out.Result.Disks, dev.Path)
		if d.Bootable > 0 {
			out.Result.Bootable = append(out.Result.Bootable, dev.Path)
		}
	}
	for _, d := range l.Disks {
		root = root || slices.ContainsFunc(d.Partitions, func(x *Partition) bool { return x.Mount == "/" })
	}
	if !root {
		p.bad(0, "no partition is mounted at /")
	}
	if err := p.probs.Err(); err != nil {
		return nil, err
	}
	out.Steps = append(p.steps, p.mkfs...)
	p.result(l, &out.Result)
	return out, nil
}

func (p *planner) bad(line int, format string, args ...any) {
	p.probs.Add(p.src.At(line, 0, format, args...))
}

// present lists the disks for a message.
func (p *planner) present() string {
	if len(p.devs) == 0 {
		return "this machine has no disk (is the driver of its controller in the installer?)"
	}
	var names []string
	for i, d := range p.devs {
		names = append(names, fmt.Sprintf("disk%d = %s", i+1, d))
	}
	return "present: " + strings.Join(names, "; ")
}

// choose finds the disk of a stanza and refuses one that must not be written.
func (p *planner) choose(d *Disk) *Device {
	found := p.find(d.Name)
	switch {
	case len(found) == 0:
		p.bad(d.line, "there is no disk %q; %s", d.Name, p.present())
		return nil
	case len(found) > 1:
		p.bad(d.line, "%q means more than one disk: %s and %s", d.Name, found[0].Path, found[1].Path)
		return nil
	}
	dev := found[0]
	switch {
	case dev.Busy != "":
		p.bad(d.line, "%s (%s) is in use: %s", d.Name, dev, dev.Busy)
	case dev.ReadOnly:
		p.bad(d.line, "%s (%s) is read-only", d.Name, dev)
	default:
		return dev
	}
	return nil
}

func (p *planner) find(name string) []*Device {
	if n, ok := strings.CutPrefix(name, "disk"); ok {
		if i, ok := number(n); ok {
			if i >= 1 && i <= len(p.devs) {
				return []*Device{&p.devs[i-1]}
			}
			return nil
		}
	}
	pattern := name
	if !strings.HasPrefix(name, "/") {
		pattern = "/dev/" + name
	}
	var found []*Device
	for i := range p.devs {
		dev := &p.devs[i]
		names := append([]string{dev.Path, "/dev/" + dev.Name}, dev.Links...)
		if slices.ContainsFunc(names, func(n string) bool {
			ok, _ := path.Match(pattern, n)
			return ok || n == pattern
		}) {
			found = append(found, dev)
		}
	}
	return found
}

// divide plans one disk.
func (p *planner) divide(d *Disk, dev *Device) {
	extents, err := d.sizes(dev.Size, dev.sector(), p.opt.RAM, p.opt.Align)
	if err != nil {
		p.bad(d.line, "%s (%s): %v", d.Name, dev, err)
		return
	}
	slices.SortFunc(extents, func(a, b extent) int { return a.num - b.num })
	var wait []string
	made := make([]Made, len(extents))
	for i, e := range extents {
		made[i] = p.partition(d, dev, e)
		wait = append(wait, made[i].Device)
	}
	for _, old := range slices.Backward(dev.Parts) {
		p.steps = append(p.steps, Step{What: "wipe the signatures of " + old, Argv: []string{"wipefs", "-a", "-f", old}})
	}
	p.steps = append(p.steps,
		Step{What: "wipe the signatures of " + dev.Path, Argv: []string{"wipefs", "-a", "-f", dev.Path}},
		Step{
			What:  fmt.Sprintf("write a %s table to %s", d.Label, dev),
			Argv:  []string{"sfdisk", "--wipe", "always", "--wipe-partitions", "always", dev.Path},
			Stdin: p.table(d, dev.sector(), made),
			Wait:  wait,
		})
	for i, e := range extents {
		if e.part != nil {
			p.format(e.part, &made[i])
			p.key(d, e.part, &made[i])
		}
	}
	p.made = append(p.made, made...)
}

// partDevice is the device file of a partition: names that end in a digit take a p.
func partDevice(dev string, n int) string {
	if last := dev[len(dev)-1]; '0' <= last && last <= '9' {
		return fmt.Sprintf("%sp%d", dev, n)
	}
	return fmt.Sprintf("%s%d", dev, n)
}

// The type GUIDs of GPT partitions (UEFI 2.10 table 5.7, and the Discoverable Partitions list).
const (
	typeESP   = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	typeBIOS  = "21686148-6449-6E6F-744E-656564454649"
	typeLinux = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	typeSwap  = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"
	typeData  = "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"
)

func (p *planner) partition(d *Disk, dev *Device, e extent) Made {
	m := Made{Device: partDevice(dev.Path, e.num), Disk: dev.Path, Number: e.num, Start: e.start, Size: e.size}
	if d.GPT() {
		m.PartUUID = p.uuid()
	}
	gpt, dos := typeLinux, "83"
	switch {
	case e.bios:
		gpt = typeBIOS
	case e.part == nil:
		dos = "f"
	default:
		m.Name, m.FS, m.Mount, m.opts = e.part.Name, e.part.FS, e.part.Mount, e.part.Options
		switch {
		case e.part.esp():
			gpt, dos = typeESP, "ef"
		case m.FS == "swap":
			gpt, dos = typeSwap, "82"
		case m.FS == "vfat":
			gpt, dos = typeData, "c"
		}
	}
	m.Type = dos
	if d.GPT() {
		m.Type = gpt
	}
	return m
}

// esp says whether firmware is to find its boot loader here.
func (p *Partition) esp() bool { return p.FS == "vfat" && p.Mount == "/boot/efi" }

// table is the input of sfdisk(8).
func (p *planner) table(d *Disk, sector uint64, made []Made) string {
	var b strings.Builder
	if d.GPT() {
		fmt.Fprintf(&b, "label: gpt\nlabel-id: %s\nunit: sectors\n\n", strings.ToUpper(p.uuid()))
	} else {
		id := p.bytes(4)
		fmt.Fprintf(&b, "label: dos\nlabel-id: 0x%x\nunit: sectors\n\n", id)
	}
	for _, m := range made {
		fmt.Fprintf(&b, "%d : start=%d, size=%d, type=%s", m.Number, m.Start/sector, m.Size/sector, m.Type)
		if m.PartUUID != "" {
			fmt.Fprintf(&b, ", uuid=%s", strings.ToUpper(m.PartUUID))
		}
		if m.Name != "" {
			fmt.Fprintf(&b, ", name=%q", m.Name)
		}
		if !d.GPT() && m.Number == d.Bootable {
			b.WriteString(", bootable")
		}
		b.WriteByte('\n')
	}
	if !d.GPT() { // msdos tables have PARTUUIDs made of the disk's id
		id := strings.TrimPrefix(strings.Fields(b.String())[3], "0x")
		for i := range made {
			made[i].PartUUID = fmt.Sprintf("%s-%02x", id, made[i].Number)
		}
	}
	return b.String()
}

func (p *planner) bytes(n int) []byte {
	b := make([]byte, n)
	if _, err := io.ReadFull(p.opt.Rand, b); err != nil && len(p.probs) == 0 {
		p.bad(0, "choose a UUID: %v", err)
	}
	return b
}

// uuid is a random one (RFC 9562 section 5.4).
func (p *planner) uuid() string {
	b := p.bytes(16)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
