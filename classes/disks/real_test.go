package disks

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// skip skips a test that needs what this machine lacks; with INGOT_NO_SKIP set that is a failure.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("INGOT_NO_SKIP") != "" {
		t.Fatal("cannot be skipped: " + why)
	}
	t.Skip(why)
}

// TestRealDisk runs plans on a disk file and lets sfdisk, blkid and fsck judge them. The
// partitions are loop devices at the offsets of the plan, since not every kernel
// shows partitions of loop devices.
func TestRealDisk(t *testing.T) {
	if os.Getuid() != 0 {
		skip(t, "needs root for loop devices")
	}
	for _, tool := range []string{"sfdisk", "wipefs", "mkfs.ext4", "mkfs.vfat", "mkswap", "tune2fs", "blkid", "losetup", "e2fsck", "fsck.vfat"} {
		if _, err := exec.LookPath(tool); err != nil {
			skip(t, "needs "+tool)
		}
	}
	layouts := map[string]string{
		"both": both,
		"gpt":  "disk_config disk1 disklabel:gpt fstabkey:partlabel\np=efi /boot/efi 64M vfat - createopts=\"-n OTHER\"\np=boot /boot 200 ext2 rw\np=root / 1G-50% ext4 rw\np=x - 10- - -\n",
		"msdos": "disk_config disk1 bootable:1 fstabkey:label\nprimary / 500-1G ext4 rw createopts=\"-L TOP -E nodiscard\"\nprimary /boot/efi 50 vfat rw\n" +
			"logical swap 100-200 swap sw createopts=\"-L SWAP\"\nlogical /home 10% ext3 rw\nlogical /d 50- vfat rw\n",
	}
	for name, text := range layouts {
		t.Run(name, func(t *testing.T) { realDisk(t, text) })
	}
}

func realDisk(t *testing.T, text string) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	const size = 3<<30 + 7*512
	f, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := os.Truncate(disk, size); err != nil {
		t.Fatal(err)
	}
	l, err := Parse("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.Plan([]Device{{Name: "disk", Path: disk, Size: size}}, Options{RAM: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	err = Run(t.Context(), p, func(ctx context.Context, argv []string, stdin string) ([]byte, error) {
		out, err := Command(ctx, argv, stdin)
		if err == nil && argv[0] == "sfdisk" {
			attach(t, p)
		}
		return out, err
	})
	if err != nil {
		t.Fatal(err)
	}
	judgeTable(t, disk, p)
	for _, m := range p.Result.Partitions {
		judgePartition(t, m)
	}
}

// attach gives every partition its device file: a link to a loop device at its place.
func attach(t *testing.T, p *Plan) {
	for _, m := range p.Result.Partitions {
		loop := output(t, "losetup", "-f", "--show", "-o", fmt.Sprint(m.Start), "--sizelimit", fmt.Sprint(m.Size), m.Disk)
		t.Cleanup(func() { _ = exec.Command("losetup", "-d", loop).Run() })
		if err := os.Symlink(loop, m.Device); err != nil {
			t.Fatal(err)
		}
	}
}

func output(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return strings.TrimSpace(string(out))
}

func judgeTable(t *testing.T, disk string, p *Plan) {
	t.Helper()
	var got struct {
		PartitionTable struct {
			Label, ID  string
			Partitions []struct {
				Node, Type, UUID, Name string
				Start, Size            uint64
				Bootable               bool
			}
		}
	}
	if err := json.Unmarshal([]byte(output(t, "sfdisk", "--json", disk)), &got); err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, g := range got.PartitionTable.Partitions {
		for _, m := range p.Result.Partitions {
			if m.Device != g.Node {
				continue
			}
			found[g.Node] = true
			same := g.Start*512 == m.Start && g.Size*512 == m.Size && strings.EqualFold(g.Type, m.Type) && g.Name == m.Name
			if g.UUID != "" {
				same = same && strings.EqualFold(g.UUID, m.PartUUID)
			}
			if !same {
				t.Errorf("sfdisk says %+v\nthe plan %+v", g, m)
			}
		}
	}
	if len(found) != len(p.Result.Partitions) || len(found) != len(got.PartitionTable.Partitions) {
		t.Errorf("sfdisk lists %d partitions, the plan %d, %d are in both", len(got.PartitionTable.Partitions), len(p.Result.Partitions), len(found))
	}
	if out := output(t, "sfdisk", "--verify", disk); !strings.Contains(out, "No errors detected") {
		t.Errorf("sfdisk --verify: %s", out)
	}
}

func judgePartition(t *testing.T, m Made) {
	t.Helper()
	if m.FS == "" {
		return
	}
	value := func(tag string) string {
		out, _ := exec.Command("blkid", "-p", "-o", "value", "-s", tag, m.Device).Output()
		return strings.TrimSpace(string(out))
	}
	if value("TYPE") != m.FS || value("UUID") != m.UUID || value("LABEL") != m.Label {
		t.Errorf("blkid says %s %s %q, the plan %+v", value("TYPE"), value("UUID"), value("LABEL"), m)
	}
	switch {
	case m.FS == "vfat":
		output(t, "fsck.vfat", "-n", m.Device)
	case strings.HasPrefix(m.FS, "ext"):
		output(t, "e2fsck", "-fn", m.Device)
	}
	if m.Mount == "/boot/efi" && value("LABEL") != ESPLabel {
		t.Errorf("the ESP is called %q", value("LABEL"))
	}
}
