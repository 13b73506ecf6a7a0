package installer

import (
	"slices"

	"ingot/classes/disks"
)

// FormatTools returns what a layout needs in the installer besides the usual
// tools and modules: the programs that make its file systems, and the kernel
// modules that mount them. ext4, vfat and swap are always there.
func FormatTools(l *disks.Layout) (tools, modules []string) {
	for _, d := range l.Disks {
		for _, p := range d.Partitions {
			switch fs := p.FS; fs {
			case "", "swap", "ext4", "vfat":
			case "ext2", "ext3":
				tools = append(tools, "mkfs."+fs) // the ext4 driver mounts them
			default:
				tools, modules = append(tools, "mkfs."+fs), append(modules, fs)
			}
			if len(p.Tune) > 0 {
				tools = append(tools, "tune2fs")
			}
		}
	}
	slices.Sort(tools)
	slices.Sort(modules)
	return slices.Compact(tools), slices.Compact(modules)
}
