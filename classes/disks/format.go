package disks

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// format plans the file system of a partition and notes its UUID and label.
func (p *planner) format(part *Partition, m *Made) {
	if part.FS == "" {
		return
	}
	m.UUID = p.uuid()
	argv := []string{"mkfs." + part.FS}
	own := part.Create
	switch part.FS {
	case "swap":
		argv = p.withUUID([]string{"mkswap"}, own, "-U", m)
		m.Label = option(own, "-L")
	case "vfat":
		argv = p.vfat(part, m)
	case "xfs":
		argv = append(argv, "-f", "-m", "uuid="+m.UUID)
		m.Label = option(own, "-L")
	case "btrfs":
		argv = p.withUUID(append(argv, "-f"), own, "-U", m)
		m.Label = option(own, "-L")
	default:
		argv = p.withUUID(append(argv, "-F", "-q"), own, "-U", m)
		if part.FS == "ext4" && option(own, "-E") == "" {
			argv = append(argv, "-E", "lazy_itable_init=1,lazy_journal_init=1")
		}
		m.Label = option(own, "-L")
	}
	if part.FS != "vfat" {
		argv = append(argv, own...)
	}
	argv = append(argv, m.Device)
	p.mkfs = append(p.mkfs, Step{What: fmt.Sprintf("format %s as %s", m.Device, part.FS), Argv: argv})
	if len(part.Tune) > 0 {
		p.mkfs = append(p.mkfs, Step{What: "tune " + m.Device, Argv: append(append([]string{"tune2fs"}, part.Tune...), m.Device)})
		if label := option(part.Tune, "-L"); label != "" {
			m.Label = label
		}
	}
}

// withUUID adds our UUID unless createopts choose one.
func (p *planner) withUUID(argv, own []string, flag string, m *Made) []string {
	if u := option(own, flag); u != "" {
		m.UUID = u
		return argv
	}
	return append(argv, flag, m.UUID)
}

// vfat: the volume ID stands for the UUID, four bytes written as two halves with a dash between. The ESP's
// label comes last, so that it wins over one of createopts: boot scripts look for it.
func (p *planner) vfat(part *Partition, m *Made) []string {
	argv := []string{"mkfs.vfat"}
	id := fmt.Sprintf("%X", p.bytes(4))
	if own := option(part.Create, "-i"); own != "" {
		id = strings.ToUpper(fmt.Sprintf("%08s", own))
	} else {
		argv = append(argv, "-i", id)
	}
	m.UUID = id[:4] + "-" + id[4:]
	m.Label = strings.ToUpper(option(part.Create, "-n"))
	if part.esp() && option(part.Create, "-F") == "" && m.Size >= 40*mib {
		argv = append(argv, "-F", "32") // FAT32 needs 65,525 clusters: 33 MB
	}
	argv = append(argv, part.Create...)
	if part.esp() {
		m.Label = ESPLabel
		argv = append(argv, "-n", ESPLabel)
	}
	return argv
}

// option is the value of a flag among words: `-L x` or `-Lx`.
func option(words []string, flag string) string {
	value := ""
	for i, w := range words {
		if w == flag && i+1 < len(words) {
			value = words[i+1]
		} else if len(w) > len(flag) && strings.HasPrefix(w, flag) {
			value = w[len(flag):]
		}
	}
	return value
}

// key is how fstab names the partition.
func (p *planner) key(d *Disk, part *Partition, m *Made) {
	m.key = m.Device
	switch {
	case d.FstabKey == "uuid" && m.UUID != "":
		m.key = "UUID=" + m.UUID
	case d.FstabKey == "label" && m.Label != "":
		m.key = "LABEL=" + m.Label
	case d.FstabKey == "partuuid":
		m.key = "PARTUUID=" + m.PartUUID
	case d.FstabKey == "partlabel" && m.Name != "":
		m.key = "PARTLABEL=" + strings.ReplaceAll(m.Name, " ", `\040`)
	}
}

// result gathers what the installation needs to know.
func (p *planner) result(l *Layout, r *Result) {
	r.Partitions = p.made
	labels := map[string]string{}
	for _, d := range l.Disks {
		if found := p.find(d.Name); len(found) == 1 {
			labels[found[0].Path] = d.Label
		}
	}
	for _, m := range p.made {
		switch {
		case m.Mount == "swap":
			r.Swaps = append(r.Swaps, m.Device)
		case m.Mount != "":
			r.Mounts = append(r.Mounts, Mount{m.Device, m.Mount, m.FS, m.opts})
		}
		switch m.Mount {
		case "/":
			r.RootDevice, r.RootUUID, r.RootFS, r.RootKey = m.Device, m.UUID, m.FS, m.key
			if r.BootPart == "" {
				r.BootDevice = m.Disk
			}
		case "/boot":
			r.BootDevice, r.BootPart = m.Disk, m.Device
		case "/boot/efi":
			if m.FS == "vfat" {
				r.ESPDevice, r.ESPDisk, r.ESPNumber = m.Device, m.Disk, m.Number
			}
		}
	}
	r.BIOSBoot = labels[r.BootDevice] != "gpt"
	slices.SortFunc(r.Mounts, func(a, b Mount) int { return strings.Compare(a.Path, b.Path) })
	r.Fstab = fstab(p.made, l.Tmpfs)
}

// fstab is written as FAI does: fields separated by tabs, sorted by mount point.
func fstab(made []Made, tmpfs []Tmpfs) string {
	type line struct{ dev, key, mount, fs, opts, pass string }
	var lines []line
	for _, m := range made {
		if m.Mount == "" {
			continue
		}
		l := line{m.Device, m.key, m.Mount, m.FS, m.opts, "2"}
		switch m.Mount {
		case "swap":
			l.mount, l.pass = "none", "0"
		case "/":
			l.pass = "1"
		}
		lines = append(lines, l)
	}
	for _, t := range tmpfs {
		lines = append(lines, line{"tmpfs", "tmpfs", t.Mount, "tmpfs", t.Options, "0"})
	}
	slices.SortStableFunc(lines, func(a, b line) int { return strings.Compare(a.mount, b.mount) })
	var b strings.Builder
	b.WriteString("# /etc/fstab: static file system information.\n#\n# <file sys>\t<mount point>\t<type>\t<options>\t<dump>\t<pass>\n")
	for _, l := range lines {
		if l.opts == "-" || l.opts == "" {
			l.opts = "defaults"
		}
		fmt.Fprintf(&b, "# device during installation: %s\n%s\n", l.dev, strings.Join([]string{l.key, l.mount, l.fs, l.opts, "0", l.pass}, "\t"))
	}
	return b.String()
}

// DiskVar is the text of FAI's disk_var.sh, which scripts of config spaces source. A value
// that the environment has already wins, as there.
func (r Result) DiskVar() string {
	var b strings.Builder
	put := func(name, value string) { fmt.Fprintf(&b, "%s=${%s:-%s}\n", name, name, value) }
	boot := r.BootPart
	if boot == "" {
		boot = r.RootDevice
	}
	put("SWAPLIST", `"`+strings.Join(r.Swaps, " ")+`"`)
	put("BOOT_DEVICE", r.BootDevice)
	put("BOOT_PARTITION", boot)
	put("ROOT_PARTITION", r.RootKey)
	if r.ESPDevice != "" {
		put("ESP_DEVICE", r.ESPDevice)
	}
	var short []string
	for _, d := range r.Bootable {
		short = append(short, path.Base(d))
	}
	fmt.Fprintf(&b, "PHYSICAL_BOOT_DEVICES=\"%s\"\n", strings.Join(short, " "))
	return b.String()
}
