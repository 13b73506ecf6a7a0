package disks

import (
	"errors"
	"strings"
	"testing"

	"ingot/internal/problem"
)

func TestParse(t *testing.T) {
	l, err := Parse("f", []byte(`# a comment
  # another

disk_config disk1 disklabel:gpt-bios fstabkey:partlabel align-at:4
p=esp   /boot/efi  100M  vfat  umask=0077
 p=      swap       RAM:50%-2G  swap  sw
primary /          10%-  ext4  -  tuneopts="-c 0 -i 0" createopts="-L root -m 1"
disk_config /dev/disk/by-id/x* sameas:disk1
disk_config sdb
primary / 100- xfs rw
disk_config tmpfs
tmpfs /tmp RAM:20% nosuid
tmpfs /run/x 1G -
tmpfs /run/y 1G size=5m
tmpfs /run/z - rw
disk_config end
`))
	if err == nil || !strings.Contains(err.Error(), "/boot/efi is mounted twice (first on line 5)") {
		t.Errorf("sameas mounts the same places twice: %v", err)
	}
	l, err = Parse("f", []byte("disk_config disk1 disklabel:gpt fstabkey:partlabel align-at:4\np=a / 100-20% ext4 rw tuneopts=\"-c 0 -i 0\" createopts=\"-L root\"\n"+
		"disk_config tmpfs\ntmpfs /tmp RAM:20% nosuid\ntmpfs /run/x 1G -\ntmpfs /run/y 1G size=5m\ntmpfs /run/z - rw\n"))
	if err != nil {
		t.Fatal(err)
	}
	p := l.Disks[0].Partitions[0]
	if l.Disks[0].Align != 4<<20 || p.Size.Min.Bytes != 100<<20 || p.Size.Max.Percent != 20 || len(p.Tune) != 4 || p.Create[1] != "root" {
		t.Errorf("disk %+v partition %+v", l.Disks[0], p)
	}
	want := []string{"nosuid,size=20%", "size=1024m", "size=5m", "rw"}
	for i, w := range want {
		if l.Tmpfs[i].Options != w {
			t.Errorf("tmpfs %d: %q, want %q", i, l.Tmpfs[i].Options, w)
		}
	}
}

// TestNumbers: an msdos disk's extended partition takes the number of the first logical one.
func TestNumbers(t *testing.T) {
	l, err := Parse("f", []byte("disk_config disk1\nprimary / 1G ext4 rw\nlogical /a 1G ext4 rw\nprimary /b 1G ext4 rw\nlogical /c 1G ext4 rw\nprimary - 1G - -\n"))
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for _, p := range l.Disks[0].Partitions {
		got = append(got, p.Number)
	}
	if want := []int{1, 5, 3, 6, 4}; len(got) != 5 || [5]int(got) != [5]int(want) || l.Disks[0].extended() != 2 {
		t.Errorf("numbers %v extended %d, want %v and 2", got, l.Disks[0].extended(), want)
	}
}

func TestParseProblems(t *testing.T) {
	disk := "disk_config disk1 disklabel:gpt\n"
	tests := []struct{ name, text, want string }{
		{"no new line", "disk_config disk1\nprimary / 1G ext4 rw", "f:2: the last line does not end"},
		{"carriage return", disk + "primary / 1G ext4 rw\r\n", "f:2:21: the line has a carriage return"},
		{"semicolon", disk + "primary / 1G rw ; -j ext3\n", "f:2:17: semicolons"},
		{"trailing comment", disk + "primary / 1G ext4 rw # root\n", "f:2:22: a comment needs a line of its own"},
		{"volume first", "primary / 1G ext4 rw\n", "before any disk_config"},
		{"after end", disk + "primary / 1G ext4 rw\ndisk_config end\nprimary /a 1G ext4 rw\n", "f:4:1: a volume before"},
		{"nothing", "disk_config\n", "f:1:1: disk_config needs"},
		{"disk0", "disk_config disk0\n", `"disk0" is not a disk`},
		{"option", "disk_config disk1 disklable:gpt\n", `f:1:19: unknown option "disklable" of a disk (did you mean "disklabel"?)`},
		{"label", "disk_config disk1 disklabel:mbr\n", "is not a disklabel"},
		{"key order", "disk_config disk1 fstabkey:partlabel disklabel:gpt\n", "write disklabel:gpt before it"},
		{"key", "disk_config disk1 fstabkey:name\n", "is not a fstabkey"},
		{"align", "disk_config disk1 align-at:100B\n", "is not an alignment"},
		{"bootable", "disk_config disk1 bootable:x\n", "needs the number"},
		{"bootable number", "disk_config disk1 bootable:2\nprimary / 1G ext4 rw\n", "there is no partition 2"},
		{"sameas", "disk_config disk1 sameas:disk2\n", "sameas needs a disk"},
		{"twice", disk + "primary / 1G ext4 rw\n" + disk, "has a stanza already (line 1)"},
		{"empty", disk, "without partitions"},
		{"no options", disk + "primary / 1G ext4\n", "five fields"},
		{"kind", disk + "secondary / 1G ext4 rw\n", "begins with primary, logical"},
		{"logical", disk + "logical / 1G ext4 rw\n", "msdos disks only"},
		{"five primaries", "disk_config disk1\n" + strings.Repeat("primary - 1G - -\n", 5), "f:6:1: an msdos disk has four"},
		{"mount", disk + "primary boot 1G ext4 rw\n", "is not a mount point"},
		{"mount up", disk + "primary /../etc 1G ext4 rw\n", "is not a mount point"},
		{"mount twice", disk + "primary / 1G ext4 rw\nprimary / 1G ext4 rw\n", "mounted twice"},
		{"fraction", disk + "primary / 1.5G ext4 rw\n", "whole numbers"},
		{"unit", disk + "primary / 1g ext4 rw\n", "is not a size"},
		{"percent", disk + "primary / 101% ext4 rw\n", "is not a size"},
		{"backwards", disk + "primary / 2G-1G ext4 rw\n", "ends before it begins"},
		{"zero", disk + "primary / 0 ext4 rw\n", "no size"},
		{"huge", disk + "primary / 99999999999999999999P ext4 rw\n", "is not a size"},
		{"dash", disk + "primary / - ext4 rw\n", "is not a size"},
		{"fs", disk + "primary / 1G EXT4 rw\n", "is not a file system"},
		{"swap", disk + "primary swap 1G ext4 rw\n", "swap needs both"},
		{"no fs", disk + "primary / 1G - rw\n", "without a file system"},
		{"quotes", disk + "primary / 1G ext4 rw createopts=\"-L x\n", "quotes are not closed"},
		{"no quotes", disk + "primary / 1G ext4 rw createopts=-L\n", "with the quotes"},
		{"volume option", disk + "primary / 1G ext4 rw mkfsopts=\"\"\n", "unknown option \"mkfsopts\""},
		{"tune", disk + "primary / 1G vfat rw tuneopts=\"-c 0\"\n", "not for vfat"},
		{"name", disk + "p=a/b / 1G ext4 rw\n", "cannot be the name"},
		{"tmpfs", "disk_config tmpfs\ntmpfs /tmp 5% rw\n", "not the size of a tmpfs"},
		{"raid", "disk_config raid\nraid3 / sda1 ext4 rw\n", "a line of disk_config raid is"},
		{"lvm", "disk_config lvm\nvg1root / 1G ext4 rw\n", "a line of disk_config lvm is"},
		{"lvm option", "disk_config lvm randinit\n", "unknown option"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f", []byte(tt.text))
			var probs problem.List
			if !errors.As(err, &probs) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v\nwant %q", err, tt.want)
			}
		})
	}
}

func TestCheckNamesWhatIsNotSupported(t *testing.T) {
	tests := map[string]string{
		"disk_config lvm\nvg a disk1.2\na-root / 1G ext4 rw lvcreateopts=\"-x\" createopts=\"-m 0\"\n":  "f:1:1: lvm is not supported yet",
		"disk_config raid fstabkey:uuid\nraid1 / disk1.1,disk2.1:spare ext4 rw mdcreateopts=\"-e 1\"\n": "raid is not supported yet",
		"disk_config cryptsetup randinit\nluks:\"pass\" / disk1.1 ext4 rw lukscreateopts=\"-c x\"\n":    "cryptsetup is not supported yet",
		"disk_config btrfs\nbtrfs raid1 / disk1.1,disk2.1 subvol=@\n":                                   "btrfs is not supported yet",
		"disk_config nfs\nnfs server:/home /home rw\n":                                                  "nfs is not supported yet",
		"disk_config disk1 preserve_always:1\nprimary / 1G ext4 rw\n":                                   "f:1:19: the disk option preserve_always is not supported yet",
		"disk_config disk1 virtual\nprimary / 1G ext4 rw\n":                                             "virtual is not supported yet",
		"disk_config disk1\nprimary / 1G:resize ext4 rw\n":                                              "f:2:11: the size suffix :resize",
		"disk_config disk1\nraw-disk / 1G ext4 rw\n":                                                    "raw-disk is not supported yet",
		"disk_config disk1\nprimary /:encrypt 1G ext4 rw\n":                                             "encryption of a partition",
		"disk_config disk1\nprimary / 1G jfs rw\n":                                                      "the file system jfs is not supported yet",
		"disk_config disk1\nprimary / 1G ext4:journal=sdb1 rw\n":                                        "an external journal",
	}
	for text, want := range tests {
		l, err := Parse("f", []byte(text))
		if err != nil {
			t.Errorf("%q is right and was refused: %v", text, err)
			continue
		}
		if err := Check("f", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("check %q: %v, want %q", text, err, want)
		}
		if _, err := l.Plan([]Device{{Name: "sda", Path: "/dev/sda", Size: 1 << 40}}, Options{}); err == nil {
			t.Errorf("%q was planned", text)
		}
	}
}

func FuzzParse(f *testing.F) {
	seeds := []string{
		"disk_config disk1 disklabel:gpt-bios fstabkey:uuid\np=esp /boot/efi 100M vfat rw\nprimary / 1G-50% ext4 rw createopts=\"-L x\"\n",
		"disk_config disk1\nprimary / 1- ext4 rw\nlogical swap RAM:10%-10G swap sw\nlogical /a -40% ext3 -\n",
		"disk_config lvm\nvg a b\na-b / 1 ext4 rw\ndisk_config end\n",
		"disk_config tmpfs\ntmpfs /tmp RAM:5% rw\n", "disk_config sda sameas:disk1\n", "", "\"", "disk_config disk1 align-at:1P\nprimary / 1 ext4 rw\n",
	}
	for _, s := range seeds {
		f.Add([]byte(s), uint64(4<<30))
	}
	f.Fuzz(func(t *testing.T, text []byte, size uint64) {
		size = size % (1 << 50) / 512 * 512
		l, err := Parse("f", text)
		if err != nil {
			return
		}
		var devs []Device
		for _, d := range l.Disks {
			if !strings.ContainsAny(d.Name, "*?[\\") && d.Name != "" && !strings.HasPrefix(d.Name, "disk") {
				devs = append(devs, Device{Name: d.Name, Path: "/dev/" + strings.TrimLeft(d.Name, "/"), Size: size})
			}
		}
		for len(devs) < 3 {
			devs = append(devs, Device{Name: "sdz" + string(rune('a'+len(devs))), Path: "/dev/sdz" + string(rune('a'+len(devs))), Size: size})
		}
		plan, err := l.Plan(devs, Options{RAM: 1 << 30})
		if err != nil {
			return
		}
		checkPlan(t, plan, size)
	})
}

// checkPlan: partitions are inside the disk, do not overlap, and hold at least a sector.
func checkPlan(t *testing.T, plan *Plan, size uint64) {
	t.Helper()
	for i, a := range plan.Result.Partitions {
		if a.Size == 0 || a.Start < mib || a.Start+a.Size > size {
			t.Errorf("%s: %d+%d of %d", a.Device, a.Start, a.Size, size)
		}
		for _, b := range plan.Result.Partitions[:i] {
			apart := a.Start+a.Size <= b.Start || b.Start+b.Size <= a.Start
			if a.Disk == b.Disk && !apart && a.Type != "f" && b.Type != "f" {
				t.Errorf("%s overlaps %s", a.Device, b.Device)
			}
		}
	}
}
