package disks

import (
	"math"
	"slices"
	"strings"
)

// Filesystems that Plan can make.
func filesystems() []string { return []string{"ext2", "ext3", "ext4", "vfat", "xfs", "btrfs"} }

// volume reads `primary|logical|p=label MOUNT SIZE FS MNTOPTS [createopts=".."] [tuneopts=".."]`.
func (p *parser) volume() {
	part := &Partition{line: p.line}
	kind := p.words[0]
	if !p.partitionKind(kind, part) {
		return
	}
	if len(p.words) < 5 {
		p.bad(kind.col, "a partition needs five fields: %s MOUNT SIZE FS MOUNT-OPTIONS", kind.text)
		return
	}
	p.mount(p.words[1], part)
	p.size(p.words[2], part)
	p.filesystem(p.words[3], part)
	part.Options = p.words[4].text
	for _, w := range p.words[5:] {
		p.volumeOption(w, part)
	}
	p.disk.number(part)
	if part.Number == 0 {
		p.bad(kind.col, "an msdos disk has four primary partitions at most, one of them for the logical ones: use logical, or disklabel:gpt")
		return
	}
	p.disk.Partitions = append(p.disk.Partitions, part)
}

func (p *parser) partitionKind(kind word, part *Partition) bool {
	switch {
	case kind.text == "primary":
	case kind.text == "logical":
		part.Logical = true
		if p.disk.GPT() {
			p.bad(kind.col, "logical partitions exist on msdos disks only: use primary or p=NAME")
			return false
		}
	case kind.text == "raw-disk":
		p.refuse(kind.col, "raw-disk")
	case strings.HasPrefix(kind.text, "p="):
		part.Name = kind.text[2:]
		if strings.ContainsAny(part.Name, "/,=\"") || len(part.Name) > 36 {
			p.bad(kind.col, "%q cannot be the name of a partition: at most 36 characters, none of / , ; = \"", part.Name)
			return false
		}
	default:
		p.bad(kind.col, "a partition line begins with primary, logical or p=NAME, not %q", kind.text)
		return false
	}
	return true
}

// number gives a partition its number; 0 when the label has none left.
func (d *Disk) number(part *Partition) {
	primaries, logicals := 0, 0
	for _, o := range d.Partitions {
		if o.Logical {
			logicals++
		} else {
			primaries++
		}
	}
	if d.GPT() {
		if primaries < 127 { // one of 128 is left for GRUB
			part.Number = primaries + 1
		}
		return
	}
	if part.Logical {
		if primaries > 3 {
			return
		}
		part.Number = 5 + logicals
		return
	}
	// The extended partition takes the first free number at the first logical one.
	n := 1
	for n <= 4 && (d.partition(n) != nil || n == d.extended()) {
		n++
	}
	if n <= 4 {
		part.Number = n
	}
}

// extended is the number of the extended partition, 0 when there is none: the number of
// primaries before the first logical one, plus one.
func (d *Disk) extended() int {
	for i, p := range d.Partitions {
		if p.Logical {
			return i + 1
		}
	}
	return 0
}

func (p *parser) mount(w word, part *Partition) {
	text := w.text
	if base, suffix, ok := strings.Cut(text, ":"); ok {
		if suffix == "encrypt" || suffix == "encrypt:randinit" {
			p.refuse(w.col, "encryption of a partition")
			text = base
		} else {
			p.bad(w.col, "%q is not a mount point: a path without colons", w.text)
			return
		}
	}
	switch {
	case text == "-":
	case text == "swap":
		part.Mount = "swap"
	case strings.HasPrefix(text, "/") && cleanPath(text):
		part.Mount = text
	default:
		p.bad(w.col, "%q is not a mount point: an absolute path, swap, or -", w.text)
	}
}

func cleanPath(path string) bool {
	if path == "/" {
		return true
	}
	for part := range strings.SplitSeq(path[1:], "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return !strings.ContainsAny(path, `"\`)
}

func (p *parser) filesystem(w word, part *Partition) {
	fs, journal, has := strings.Cut(w.text, ":")
	switch {
	case has && strings.HasPrefix(journal, "journal=") || strings.HasSuffix(fs, "_journal"):
		p.refuse(w.col, "an external journal")
	case has:
		p.bad(w.col, "%q is not a file system", w.text)
	case fs == "-":
	case fs == "swap":
		part.FS = "swap"
	case slices.Contains(filesystems(), fs):
		part.FS = fs
	case strings.Trim(fs, "abcdefghijklmnopqrstuvwxyz0123456789.") == "":
		p.refuse(w.col, "the file system "+fs)
	default:
		p.bad(w.col, "%q is not a file system: %s, swap or - (is the size right? it is one field, integers only)",
			w.text, strings.Join(filesystems(), ", "))
	}
	if part.Mount == "swap" != (part.FS == "swap") && (part.Mount == "swap" || part.Mount != "") {
		p.bad(w.col, "swap needs both the mount point and the file system swap")
	}
	if part.FS == "" && strings.HasPrefix(part.Mount, "/") && fs == "-" {
		p.bad(w.col, "%s cannot be mounted without a file system", part.Mount)
	}
}

func (p *parser) volumeOption(w word, part *Partition) {
	name, value, ok := p.quoted(w)
	if !ok {
		return
	}
	switch name {
	case "createopts":
		part.Create = append(part.Create, value...)
	case "tuneopts":
		part.Tune = append(part.Tune, value...)
		if part.FS != "" && !strings.HasPrefix(part.FS, "ext") {
			p.bad(w.col, "tuneopts are those of tune2fs: not for %s", part.FS)
		}
	default:
		p.bad(w.col, "unknown option %q of a partition: createopts or tuneopts", name)
	}
}

// quoted reads name="value" and splits the value into words.
func (p *parser) quoted(w word) (name string, value []string, ok bool) {
	name, text, has := strings.Cut(w.text, "=")
	if !has || len(text) < 2 || text[0] != '"' || strings.IndexByte(text[1:], '"') != len(text)-2 {
		p.bad(w.col, "%q is not an option: write createopts=\"...\" or tuneopts=\"...\", with the quotes", w.text)
		return "", nil, false
	}
	return name, strings.Fields(text[1 : len(text)-1]), true
}

// size reads A, A-B, A- or -B, with FAI's suffixes.
func (p *parser) size(w word, part *Partition) {
	text := w.text
	for _, s := range []string{":resize", ":preserve_always", ":preserve_reinstall", ":preserve_lazy"} {
		if t, ok := strings.CutSuffix(text, s); ok {
			p.refuse(w.col, "the size suffix "+s)
			text = t
		}
	}
	first, last, isRange := strings.Cut(text, "-")
	size := Size{Text: text, Max: Amount{OfDisk: true, Percent: 100}}
	ok := first != "" || isRange && last != ""
	if first != "" {
		var good bool
		size.Min, good = amount(first)
		ok = ok && good
	}
	if last != "" {
		var good bool
		size.Max, good = amount(last)
		ok = ok && good
	}
	if !isRange {
		size.Max = size.Min
	}
	switch {
	case !ok && strings.Contains(text, "."):
		p.bad(w.col, "%q: sizes are whole numbers; use a smaller unit (1536M for 1.5G)", text)
	case !ok:
		p.bad(w.col, "%q is not a size: MiB, or with a unit (512M, 20G, 40%%, RAM:50%%), or a range of two (200-10G, 1G-)", text)
	case size.Min.plain() && size.Max.plain() && size.Min.Bytes > size.Max.Bytes:
		p.bad(w.col, "%q: the range ends before it begins", text)
	case size.Max.plain() && size.Max.Bytes == 0:
		p.bad(w.col, "%q: a partition of no size", text)
	}
	part.Size = size
}

func (a Amount) plain() bool { return !a.OfDisk && !a.OfRAM }

// units are those of setup-storage; only k may also be K.
func units() map[string]float64 {
	const k = 1024
	return map[string]float64{
		"": k * k, "B": 1,
		"k": k, "K": k, "kiB": k, "KiB": k, "M": k * k, "MiB": k * k, "G": k * k * k, "GiB": k * k * k,
		"T": k * k * k * k, "TiB": k * k * k * k, "P": k * k * k * k * k, "PiB": k * k * k * k * k,
		"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15,
	}
}

// amount reads a whole number with its unit, n% or RAM:n%.
func amount(s string) (Amount, bool) {
	rest, ram := strings.CutPrefix(s, "RAM:")
	n := 0
	for n < len(rest) && '0' <= rest[n] && rest[n] <= '9' {
		n++
	}
	v, ok := number(rest[:n])
	unit := rest[n:]
	if !ok {
		return Amount{}, false
	}
	if unit == "%" {
		if ram {
			return Amount{OfRAM: true, RAM: float64(v)}, v <= 10_000
		}
		return Amount{OfDisk: true, Percent: float64(v)}, v <= 100
	}
	f, ok := units()[unit]
	b := float64(v) * f
	return Amount{Bytes: b}, ok && !ram && b < math.MaxInt64/4
}

// tmpfs reads `tmpfs MOUNT SIZE|RAM:n%|- MNTOPTS`.
func (p *parser) tmpfs() {
	if p.words[0].text != "tmpfs" || len(p.words) != 4 {
		p.bad(p.words[0].col, "a tmpfs line is: tmpfs MOUNT SIZE MOUNT-OPTIONS")
		return
	}
	var part Partition
	if !strings.HasPrefix(p.words[1].text, "/") || !cleanPath(p.words[1].text) {
		p.bad(p.words[1].col, "%q is not a mount point: an absolute path", p.words[1].text)
		return
	}
	part.Mount = p.words[1].text
	opts := p.words[3].text
	if size := p.words[2]; size.text != "-" && !strings.Contains(opts, "size=") && !strings.Contains(opts, "nr_blocks=") {
		a, ok := amount(size.text)
		if !ok || a.OfDisk {
			p.bad(size.col, "%q is not the size of a tmpfs: MiB, a size with a unit, RAM:n%% or -", size.text)
			return
		}
		opts = strings.TrimPrefix(opts+","+tmpfsSize(a), "-,")
	}
	p.out.Tmpfs = append(p.out.Tmpfs, Tmpfs{Mount: part.Mount, Options: opts})
}

func tmpfsSize(a Amount) string {
	if a.OfRAM {
		return "size=" + ftoa(a.RAM) + "%"
	}
	return "size=" + ftoa(math.Floor(a.Bytes/(1<<20))) + "m"
}

// otherVolume checks the shape of the lines of stanzas that are not planned yet.
func (p *parser) otherVolume() {
	fields, opts := p.words, map[string]string{}
	for len(fields) > 1 && strings.Contains(fields[len(fields)-1].text, "=\"") {
		w := fields[len(fields)-1]
		name, value, ok := p.quoted(w)
		if !ok {
			return
		}
		if !slices.Contains([]string{"createopts", "tuneopts", "pvcreateopts", "vgcreateopts", "lvcreateopts",
			"mdcreateopts", "btrfscreateopts", "lukscreateopts"}, name) {
			p.bad(w.col, "unknown option %q", name)
		}
		opts[name] = strings.Join(value, " ")
		fields = fields[:len(fields)-1]
	}
	if !p.otherShape(fields) {
		return
	}
	v := Volume{Name: fields[0].text, Options: opts, Line: p.line}
	for _, f := range fields[1:] {
		v.Fields = append(v.Fields, f.text)
	}
	p.other.Volumes = append(p.other.Volumes, v)
}

func (p *parser) otherShape(fields []word) bool {
	name := fields[0]
	kind, _, _ := strings.Cut(name.text, ":")
	want, shape := 5, ""
	known := true
	switch p.kind {
	case "raid":
		shape = "raid0|1|5|6|10 MOUNT DEVICES FS MOUNT-OPTIONS"
		known = slices.Contains([]string{"raid0", "raid1", "raid5", "raid6", "raid10"}, name.text)
	case "lvm":
		shape = "VG-LV MOUNT SIZE FS MOUNT-OPTIONS, or vg NAME DEVICES"
		if name.text == "vg" {
			want = 3
		} else {
			known = strings.Count(name.text, "-") == 1 && !strings.ContainsAny(name.text, "/,")
		}
	case "cryptsetup":
		shape = "luks|luks:\"pass\"|tmp|swap MOUNT DEVICE FS MOUNT-OPTIONS"
		known = slices.Contains([]string{"luks", "tmp", "swap"}, kind)
	case "btrfs":
		shape = "btrfs LEVEL MOUNT DEVICES MOUNT-OPTIONS"
		known = name.text == "btrfs"
	case "nfs":
		shape, want = "nfs SERVER:PATH MOUNT MOUNT-OPTIONS", 4
		known = name.text == "nfs"
	}
	if !known || len(fields) != want {
		p.bad(name.col, "a line of disk_config %s is: %s", p.kind, shape)
		return false
	}
	return true
}
