package disks

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Prober finds the disks of a machine through /sys and /proc. Its zero value is for the
// machine it runs on.
type Prober struct {
	Sys   string // "" is /sys
	Proc  string // "" is /proc
	Dev   string // "" is /dev
	Loops bool   // list loop devices too; they come before sda
}

// Probe lists the disks of this machine as disk1, disk2, ... in FAI's order: by name, so
// that mmcblk0 < nvme0n1 < sda < vda.
func Probe(ctx context.Context) ([]Device, error) { return Prober{}.Probe(ctx) }

// Probe lists the disks.
func (p Prober) Probe(ctx context.Context) ([]Device, error) {
	p.Sys, p.Proc, p.Dev = or(p.Sys, "/sys"), or(p.Proc, "/proc"), or(p.Dev, "/dev")
	entries, err := os.ReadDir(filepath.Join(p.Sys, "block"))
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	used := p.usedNumbers()
	links := p.links()
	var devs []Device
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("list disks: %w", err)
		}
		if !p.family(e.Name()) {
			continue
		}
		d := p.device(e.Name(), used)
		if d.Size == 0 {
			continue // a reader without a card
		}
		d.Links = links[d.Name]
		devs = append(devs, d)
	}
	slices.SortFunc(devs, func(a, b Device) int { return strings.Compare(a.Name, b.Name) })
	return devs, nil
}

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

// family says whether a block device is a disk that setup-storage knows. Eight boot
// partitions of an eMMC are no disks of their own.
func (p Prober) family(name string) bool {
	if strings.HasPrefix(name, "mmcblk") {
		_, ok := number(name[len("mmcblk"):])
		return ok
	}
	if strings.HasPrefix(name, "nvme") {
		rest := strings.TrimPrefix(name, "nvme")
		ctrl, ns, ok := strings.Cut(rest, "n")
		_, ok1 := number(ctrl)
		_, ok2 := number(ns)
		return ok && ok1 && ok2
	}
	if strings.HasPrefix(name, "loop") {
		return p.Loops
	}
	for _, f := range []string{"hd", "sd", "vd", "xvd", "fio"} {
		if rest, ok := strings.CutPrefix(name, f); ok && rest != "" && strings.Trim(rest, "abcdefghijklmnopqrstuvwxyz") == "" {
			return true
		}
	}
	return strings.HasPrefix(name, "cciss!") || strings.HasPrefix(name, "ida!") || strings.HasPrefix(name, "etherd!")
}

func (p Prober) device(name string, used map[string]string) Device {
	dir := filepath.Join(p.Sys, "block", name)
	short := strings.ReplaceAll(name, "!", "/")
	d := Device{
		Name: short, Path: filepath.Join(p.Dev, short),
		Size: attrNumber(dir, "size") * 512, Sector: attrNumber(dir, "queue/logical_block_size"),
		Model: attr(dir, "device/model"), Serial: attr(dir, "serial"),
		ReadOnly: attr(dir, "ro") == "1",
	}
	if d.Serial == "" {
		d.Serial = attr(dir, "device/serial")
	}
	if d.Serial == "" {
		d.Serial = vpdSerial(dir)
	}
	var why []string
	busy := func(dir, name string) {
		if w := used[attr(dir, "dev")]; w != "" {
			why = append(why, fmt.Sprintf("%s is %s", name, w))
		}
		holders, _ := os.ReadDir(filepath.Join(dir, "holders"))
		for _, h := range holders {
			why = append(why, fmt.Sprintf("%s is part of %s", name, holderName(dir, h.Name())))
		}
	}
	busy(dir, short)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		sub := filepath.Join(dir, e.Name())
		if !e.IsDir() || attr(sub, "partition") == "" {
			continue
		}
		d.Parts = append(d.Parts, filepath.Join(p.Dev, strings.ReplaceAll(e.Name(), "!", "/")))
		busy(sub, e.Name())
	}
	d.Busy = strings.Join(why, ", ")
	return d
}

// holderName adds the name of a mapper device: dm-0 says nothing to people.
func holderName(dir, holder string) string {
	if name := attr(filepath.Join(dir, "holders", holder), "dm/name"); name != "" {
		return fmt.Sprintf("%s (%s)", holder, name)
	}
	return holder
}

func attr(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func attrNumber(dir, name string) uint64 {
	n, _ := strconv.ParseUint(attr(dir, name), 10, 64)
	return n
}

// vpdSerial reads the unit serial number page of a SCSI disk (SPC-4 section 7.8.15): the
// number begins at byte 4.
func vpdSerial(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, "device/vpd_pg80"))
	if err != nil || len(b) < 5 {
		return ""
	}
	return strings.TrimSpace(strings.Trim(string(b[4:]), "\x00"))
}

// usedNumbers maps the major:minor of what is mounted or swapped on to a word about it.
func (p Prober) usedNumbers() map[string]string {
	used := map[string]string{}
	mounts, _ := os.ReadFile(filepath.Join(p.Proc, "self/mountinfo"))
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line) // proc_pid_mountinfo(5): id parent major:minor root mountpoint ...
		if len(f) > 4 && used[f[2]] == "" {
			used[f[2]] = "mounted at " + f[4]
		}
		// btrfs has numbers of its own: its source is after the dash.
		if i := slices.Index(f, "-"); i > 0 && i+2 < len(f) && strings.HasPrefix(f[i+2], "/dev/") {
			if n := p.deviceNumber(f[i+2]); n != "" && used[n] == "" {
				used[n] = "mounted at " + f[4]
			}
		}
	}
	swaps, _ := os.ReadFile(filepath.Join(p.Proc, "swaps"))
	for line := range strings.Lines(string(swaps)) {
		if f := strings.Fields(line); len(f) > 0 && strings.HasPrefix(f[0], "/dev/") {
			if n := p.deviceNumber(f[0]); n != "" {
				used[n] = "swap"
			}
		}
	}
	return used
}

// deviceNumber is the major:minor of a device file, by the name that it leads to.
func (p Prober) deviceNumber(dev string) string {
	path := filepath.Join(p.Dev, strings.TrimPrefix(dev, "/dev/"))
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return attr(filepath.Join(p.Sys, "class/block", filepath.Base(path)), "dev")
}

// links are the other names of disks below /dev/disk, where udev makes them.
func (p Prober) links() map[string][]string {
	links := map[string][]string{}
	found, _ := filepath.Glob(filepath.Join(p.Dev, "disk/by-*/*"))
	for _, l := range found {
		if target, err := filepath.EvalSymlinks(l); err == nil {
			name := strings.TrimPrefix(target, p.Dev+"/")
			links[name] = append(links[name], l)
		}
	}
	return links
}
