package disks

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

	"ingot/internal/problem"
)

// word is a field of a line with its column. Blanks separate fields; inside double quotes
// they do not.
type word struct {
	text string
	col  int
}

type parser struct {
	src   *problem.Source
	probs problem.List
	out   *Layout

	line  int
	words []word
	disk  *Disk   // the stanza the next volume lines belong to
	other *Stanza // or this one
	kind  string  // of the stanza; "" before the first and after end
}

// Parse reads a disk_config file. What is wrong is a problem.List with every place.
func Parse(file string, text []byte) (*Layout, error) {
	p := &parser{src: &problem.Source{Name: file, Data: text}, out: &Layout{File: file}}
	if len(text) > 0 && text[len(text)-1] != '\n' {
		p.probs.Add(p.src.At(bytes.Count(text, []byte("\n"))+1, 0, "the last line does not end: add a new line (setup-storage refuses such files)"))
	}
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		p.line = i + 1
		p.parseLine(line)
	}
	p.finish()
	if err := p.probs.Err(); err != nil {
		return nil, err
	}
	return p.out, nil
}

func (p *parser) bad(col int, format string, args ...any) {
	p.probs.Add(p.src.At(p.line, col, format, args...))
}

func (p *parser) parseLine(line string) {
	trimmed := strings.TrimLeft(line, " \t")
	if trimmed == "" || trimmed[0] == '#' {
		return
	}
	if i := strings.IndexByte(line, '\r'); i >= 0 {
		p.bad(i+1, "the line has a carriage return: save the file with Unix line ends")
		return
	}
	if i := strings.IndexByte(line, ';'); i >= 0 {
		p.bad(i+1, "semicolons belong to the ancient format of FAI: use createopts and mount options")
		return
	}
	var ok bool
	if p.words, ok = p.split(line); !ok {
		return
	}
	if p.words[0].text == "disk_config" {
		p.stanza()
		return
	}
	for _, w := range p.words {
		if strings.HasPrefix(w.text, "#") {
			p.bad(w.col, "a comment needs a line of its own")
			return
		}
	}
	switch {
	case p.disk != nil:
		p.volume()
	case p.kind == "tmpfs":
		p.tmpfs()
	case p.other != nil:
		p.otherVolume()
	default:
		p.bad(p.words[0].col, "a volume before any disk_config line")
	}
}

// split cuts a line into words at blanks outside quotes.
func (p *parser) split(line string) ([]word, bool) {
	var words []word
	start, quoted := -1, false
	for i := 0; i <= len(line); i++ {
		blank := i == len(line) || !quoted && (line[i] == ' ' || line[i] == '\t')
		if blank && start >= 0 {
			words = append(words, word{line[start:i], start + 1})
			start = -1
		}
		if !blank && start < 0 {
			start = i
		}
		if i < len(line) && line[i] == '"' {
			quoted = !quoted
		}
	}
	if quoted {
		p.bad(strings.LastIndexByte(line, '"')+1, "the quotes are not closed")
		return nil, false
	}
	return words, true
}

// stanza reads `disk_config WHAT options...`.
func (p *parser) stanza() {
	p.disk, p.other, p.kind = nil, nil, ""
	if len(p.words) < 2 {
		p.bad(p.words[0].col, "disk_config needs a disk, or one of raid, lvm, cryptsetup, btrfs, tmpfs, nfs, end")
		return
	}
	what, opts := p.words[1], p.words[2:]
	switch what.text {
	case "end":
		for _, o := range opts {
			p.bad(o.col, "disk_config end takes no options")
		}
	case "tmpfs", "nfs":
		p.kind = what.text
		for _, o := range opts {
			p.bad(o.col, "disk_config %s takes no options", what.text)
		}
		if what.text == "nfs" {
			p.newOther(what.text)
		}
	case "raid", "lvm", "cryptsetup", "btrfs":
		p.kind = what.text
		p.newOther(what.text)
		p.otherOptions(what.text, opts)
	default:
		p.newDisk(what, opts)
	}
}

func (p *parser) newOther(kind string) {
	p.out.Others = append(p.out.Others, Stanza{Kind: kind, Line: p.line})
	p.other = &p.out.Others[len(p.out.Others)-1]
}

func (p *parser) otherOptions(kind string, opts []word) {
	known := map[string][]string{
		"raid":       {"preserve_always", "preserve_reinstall", "preserve_lazy", "always_format", "fstabkey"},
		"lvm":        {"preserve_always", "preserve_reinstall", "preserve_lazy", "resize", "always_format", "fstabkey"},
		"cryptsetup": {"randinit"},
		"btrfs":      {"fstabkey"},
	}[kind]
	for _, o := range opts {
		name, value, has := strings.Cut(o.text, ":")
		switch {
		case !slices.Contains(known, name):
			p.bad(o.col, "unknown option %q of disk_config %s%s", name, kind, problem.Hint(name, known))
		case has == (name == "randinit") || has && value == "":
			p.bad(o.col, "option %q needs its value after a colon, or must have none", name)
		case name == "fstabkey" && !slices.Contains([]string{"device", "label", "uuid"}, value):
			p.bad(o.col, "%q is not a fstabkey of disk_config %s: device, label or uuid", value, kind)
		}
	}
}

func (p *parser) newDisk(what word, opts []word) {
	for _, d := range p.out.Disks {
		if d.Name == what.text {
			p.bad(what.col, "%s has a stanza already (line %d)", what.text, d.line)
		}
	}
	n, isN := strings.CutPrefix(what.text, "disk")
	if num, err := strconv.Atoi(n); isN && (err != nil || num < 1 || n != strconv.Itoa(num)) && !strings.HasPrefix(what.text, "/") {
		p.bad(what.col, "%q is not a disk: disk1, disk2, ..., a name such as sda, or a path", what.text)
	}
	p.kind = "disk"
	p.disk = &Disk{Name: what.text, Label: "msdos", FstabKey: "device", line: p.line}
	p.out.Disks = append(p.out.Disks, p.disk)
	for _, o := range opts {
		p.diskOption(o)
	}
}

func (p *parser) diskOption(o word) {
	name, value, has := strings.Cut(o.text, ":")
	known := []string{"disklabel", "bootable", "fstabkey", "preserve_always", "preserve_reinstall", "preserve_lazy",
		"resize", "always_format", "sameas", "align-at", "virtual", "vg"}
	if !slices.Contains(known, name) {
		p.bad(o.col, "unknown option %q of a disk%s", name, problem.Hint(name, known))
		return
	}
	if has == (name == "virtual") || has && value == "" {
		p.bad(o.col, "option %q needs its value after a colon, or must have none", name)
		return
	}
	d := p.disk
	switch name {
	case "disklabel":
		if !slices.Contains([]string{"msdos", "gpt", "gpt-bios"}, value) {
			p.bad(o.col, "%q is not a disklabel: msdos, gpt or gpt-bios", value)
			return
		}
		d.Label = value
	case "bootable":
		n, ok := number(value)
		if !ok || n < 1 {
			p.bad(o.col, "bootable needs the number of a partition")
			return
		}
		d.Bootable = n
	case "fstabkey":
		p.fstabKey(o.col, value)
	case "align-at":
		a, ok := amount(value)
		if !ok || a.OfDisk || a.OfRAM || a.Bytes < 512 || uint64(a.Bytes)%512 != 0 {
			p.bad(o.col, "%q is not an alignment: a size that is a multiple of 512 bytes, such as 1M", value)
			return
		}
		d.Align = uint64(a.Bytes)
	case "sameas":
		p.sameAs(o.col, value)
	case "always_format":
		p.numbers(o.col, value) // only says something beside preserve
	default:
		if name != "virtual" && name != "vg" {
			p.numbers(o.col, value)
		}
		p.refuse(o.col, "the disk option "+name)
	}
}

// refuse notes something that is right in the language and not planned yet.
func (p *parser) refuse(col int, what string) {
	p.disk.refused = append(p.disk.refused, refusal{p.line, col, what})
}

func (p *parser) fstabKey(col int, value string) {
	switch {
	case !slices.Contains([]string{"device", "label", "uuid", "partuuid", "partlabel"}, value):
		p.bad(col, "%q is not a fstabkey: device, label, uuid, partuuid or partlabel", value)
	case value == "partlabel" && p.disk.Label == "msdos":
		p.bad(col, "partlabel needs GPT: write disklabel:gpt before it")
	default:
		p.disk.FstabKey = value
	}
}

func (p *parser) numbers(col int, list string) {
	if list == "all" {
		return
	}
	for n := range strings.SplitSeq(list, ",") {
		if v, ok := number(n); !ok || v < 1 {
			p.bad(col, "%q is not the number of a partition, nor all", n)
		}
	}
}

func (p *parser) sameAs(col int, name string) {
	for _, d := range p.out.Disks {
		if d.Name != name || d == p.disk {
			continue
		}
		same := *d
		same.Name, same.line = p.disk.Name, p.disk.line
		same.Partitions = nil
		for _, part := range d.Partitions {
			c := *part
			c.Create, c.Tune = slices.Clone(part.Create), slices.Clone(part.Tune)
			same.Partitions = append(same.Partitions, &c)
		}
		same.refused = slices.Clone(d.refused)
		*p.disk = same
		return
	}
	p.bad(col, "sameas needs a disk with a stanza before this one, not %q", name)
}

// finish checks what only the whole file shows.
func (p *parser) finish() {
	mounts := map[string]int{}
	once := func(line int, mount string) {
		if mount == "" || mount == "swap" {
			return
		}
		if first, ok := mounts[mount]; ok && len(p.probs) == 0 {
			p.probs.Add(p.src.At(line, 0, "%s is mounted twice (first on line %d)", mount, first))
		}
		mounts[mount] = line
	}
	for _, d := range p.out.Disks {
		for _, part := range d.Partitions {
			once(part.line, part.Mount)
		}
		p.finishDisk(d)
	}
}

func (p *parser) finishDisk(d *Disk) {
	if d.Bootable > 0 && d.partition(d.Bootable) == nil {
		p.probs.Add(p.src.At(d.line, 0, "bootable:%d: there is no partition %d", d.Bootable, d.Bootable))
	}
	if len(d.Partitions) == 0 && len(d.refused) == 0 {
		p.probs.Add(p.src.At(d.line, 0, "a disk without partitions"))
	}
	names := map[string]bool{}
	for _, part := range d.Partitions {
		if part.Name != "" && names[part.Name] && d.FstabKey == "partlabel" {
			p.probs.Add(p.src.At(part.line, 0, "two partitions are called %q: fstabkey:partlabel could not tell them apart", part.Name))
		}
		names[part.Name] = true
	}
}

func (d *Disk) partition(n int) *Partition {
	for _, p := range d.Partitions {
		if p.Number == n {
			return p
		}
	}
	return nil
}

// number reads digits only.
func number(s string) (int, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil
}
