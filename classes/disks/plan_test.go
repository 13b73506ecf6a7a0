package disks

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const both = `disk_config disk1 disklabel:gpt-bios fstabkey:uuid
p=esp   /boot/efi  100M     vfat  umask=0077
p=swap  swap       256M-2G  swap  sw
p=root  /          1G-      ext4  rw,noatime createopts="-L root -m 1" tuneopts="-c 0 -i 0"
disk_config tmpfs
tmpfs /tmp RAM:20% nosuid
`

func chacha() *rand.ChaCha8 { return rand.NewChaCha8([32]byte{1}) }

func plan(t *testing.T, text string, devs ...Device) *Plan {
	t.Helper()
	l, err := Parse("disk_config/DEFAULT", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.Plan(devs, Options{Rand: chacha(), RAM: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestPlan pins the whole plan of a disk that boots under both firmwares.
func TestPlan(t *testing.T) {
	p := plan(t, both, Device{Name: "nvme0n1", Path: "/dev/nvme0n1", Size: 8 << 30, Parts: []string{"/dev/nvme0n1p1", "/dev/nvme0n1p2"}})
	var got strings.Builder
	for _, s := range p.Steps {
		got.WriteString("$ " + strings.Join(s.Argv, " ") + "\n" + s.Stdin)
	}
	got.WriteString("--- fstab\n" + p.Result.Fstab + "--- disk_var.sh\n" + p.Result.DiskVar())
	const file = "testdata/both.golden"
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("got:\n%s\nwant:\n%s", got.String(), want)
	}
	r := p.Result
	if r.ESPDevice != "/dev/nvme0n1p1" || r.ESPNumber != 1 || r.RootDevice != "/dev/nvme0n1p3" || r.BootDevice != "/dev/nvme0n1" ||
		!r.BIOSBoot || len(r.Mounts) != 2 || r.Mounts[0].Path != "/" || r.RootUUID == "" || !strings.Contains(r.Fstab, r.RootUUID) {
		t.Errorf("result %+v", r)
	}
	checkPlan(t, p, 8<<30)
}

func TestPlanAlignsToMiB(t *testing.T) {
	for _, text := range []string{both, "disk_config disk1\nprimary / 1G-3G ext4 rw\nlogical swap 100-1G swap sw\nlogical /a 17% ext4 rw\n"} {
		for _, sector := range []uint64{512, 4096} {
			p := plan(t, text, Device{Name: "sda", Path: "/dev/sda", Size: 5<<30 + 12345*4096, Sector: sector})
			for _, m := range p.Result.Partitions {
				if m.Start%mib != 0 || m.Type != "f" && m.Size%mib != 0 {
					t.Errorf("%s begins at %d, has %d", m.Device, m.Start, m.Size)
				}
			}
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	sda := Device{Name: "sda", Path: "/dev/sda", Size: 1 << 30, Model: "DISK", Serial: "S1"}
	sdb := Device{Name: "sdb", Path: "/dev/sdb", Size: 1 << 40, Links: []string{"/dev/disk/by-id/b1"}}
	busy, ro, small := sdb, sdb, sdb
	busy.Busy, ro.ReadOnly, small.Size = "sdb1 is mounted at /", true, 1<<20
	one := "\nprimary / 4G- ext4 rw\n"
	tests := []struct {
		name, text string
		devs       []Device
		want       string
	}{
		{"absent", "disk_config disk3" + one, []Device{sda, sdb}, `there is no disk "disk3"; present: disk1 = sda 1 GiB DISK S1; disk2 = sdb 1 TiB`},
		{"none", "disk_config disk1" + one, nil, "no disk (is the driver"},
		{"name", "disk_config sdc" + one, []Device{sda}, `there is no disk "sdc"`},
		{"glob", "disk_config sd*" + one, []Device{sda, sdb}, "means more than one disk: /dev/sda and /dev/sdb"},
		{"busy", "disk_config disk1" + one, []Device{busy}, "is in use: sdb1 is mounted at /"},
		{"read-only", "disk_config disk1" + one, []Device{ro}, "is read-only"},
		{"too small", "disk_config disk1\nprimary swap 512 swap sw" + one, []Device{sda}, "disk1 (sda 1 GiB DISK S1): it is too small by 3.5 GiB: at least 4.5 GiB are needed for swap 512 MiB, / 4 GiB"},
		{"tiny", "disk_config disk1" + one, []Device{small}, "it holds 1 MiB only"},
		{"same disk", "disk_config disk1" + one + "disk_config /dev/disk/by-id/b*\nprimary - 4G- - -\n", []Device{sdb}, "which line 1 divides already"},
		{"no root", "disk_config disk1\nprimary /boot 1G ext4 rw\n", []Device{sdb}, "no partition is mounted at /"},
		{"msdos 2 TiB", "disk_config disk1" + one, []Device{{Name: "sda", Path: "/dev/sda", Size: 3 << 40}}, "use disklabel:gpt"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, err := Parse("f", []byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := l.Plan(tt.devs, Options{}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v\nwant %q", err, tt.want)
			}
		})
	}
}

func TestFstabKeys(t *testing.T) {
	for key, want := range map[string]string{
		"device": "/dev/sda1\t/\t", "label": "LABEL=top\t/\t", "uuid": "UUID=", "partuuid": "PARTUUID=", "partlabel": `PARTLABEL=a b`,
	} {
		name := "p=root"
		if key == "partlabel" {
			want = "PARTLABEL=root\t/\t"
		}
		p := plan(t, "disk_config disk1 disklabel:gpt fstabkey:"+key+"\n"+name+" / 1G- ext4 - createopts=\"-L top\"\n", Device{Name: "sda", Path: "/dev/sda", Size: 4 << 30})
		if !strings.Contains(p.Result.Fstab, "\n"+want) || !strings.Contains(p.Result.Fstab, "\text4\tdefaults\t0\t1\n") {
			t.Errorf("%s: fstab is\n%s", key, p.Result.Fstab)
		}
	}
	p := plan(t, "disk_config disk1 fstabkey:partuuid bootable:1\nprimary / 1G- ext4 rw\n", Device{Name: "sda", Path: "/dev/sda", Size: 4 << 30})
	id := p.Result.Partitions[0].PartUUID
	if len(id) != 11 || !strings.HasSuffix(id, "-01") || !strings.Contains(p.Steps[1].Stdin, "label-id: 0x"+id[:8]) || !strings.Contains(p.Steps[1].Stdin, "bootable") {
		t.Errorf("msdos PARTUUID %q in\n%s", id, p.Steps[1].Stdin)
	}
}

func TestOwnUUIDWins(t *testing.T) {
	p := plan(t, "disk_config disk1 fstabkey:uuid\nprimary / 1G- ext4 rw createopts=\"-U 11111111-2222-3333-4444-555555555555\"\n", Device{Name: "sda", Path: "/dev/sda", Size: 4 << 30})
	if p.Result.RootKey != "UUID=11111111-2222-3333-4444-555555555555" {
		t.Errorf("root is %q", p.Result.RootKey)
	}
	if argv := strings.Join(p.Steps[len(p.Steps)-1].Argv, " "); strings.Count(argv, "-U") != 1 {
		t.Errorf("%s", argv)
	}
}

func TestRunStopsAtTheFirstFailure(t *testing.T) {
	dir := t.TempDir()
	p := &Plan{Steps: []Step{{What: "a", Argv: []string{"a"}}, {What: "b", Argv: []string{"b"}}, {What: "c", Argv: []string{"c"}}}}
	var ran []string
	err := Run(t.Context(), p, func(_ context.Context, argv []string, _ string) ([]byte, error) {
		ran = append(ran, argv[0])
		if argv[0] == "b" {
			return []byte("no space\n"), errors.New("exit status 1")
		}
		return nil, nil
	})
	var se *StepError
	if !errors.As(err, &se) || se.Step.What != "b" || se.Output != "no space" || strings.Join(ran, "") != "ab" {
		t.Errorf("ran %v: %v", ran, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = Run(ctx, &Plan{Steps: []Step{{What: "w", Wait: []string{filepath.Join(dir, "x")}}}}, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled wait: %v", err)
	}
}

// TestProbe reads a made-up /sys.
func TestProbe(t *testing.T) {
	root := t.TempDir()
	put := func(name, text string) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"vda", "sda", "sdb", "nvme0n1", "mmcblk0", "mmcblk0boot0", "loop0", "sr0", "dm-0", "ram0", "zram0", "sdc", "nvme0c0n1"} {
		put("sys/block/"+name+"/size", "2048\n")
		put("sys/block/"+name+"/ro", "0\n")
		put("sys/block/"+name+"/queue/logical_block_size", "512\n")
	}
	put("sys/block/sdc/size", "0\n")
	put("sys/block/sda/device/model", "QEMU HARDDISK   \n")
	put("sys/block/sda/device/vpd_pg80", "\x00\x80\x00\x04QM01")
	put("sys/block/sda/sda2/partition", "2\n")
	put("sys/block/sda/sda2/dev", "8:2\n")
	put("sys/class/block/sda2/dev", "8:2\n")
	put("sys/block/sdb/holders/dm-0/dm/name", "vg-root\n")
	put("sys/block/vda/vda1/partition", "1\n")
	put("sys/block/vda/vda1/dev", "254:1\n")
	put("sys/class/block/vda1/dev", "254:1\n")
	put("sys/block/mmcblk0/ro", "1\n")
	put("proc/self/mountinfo", "1 0 8:2 / /srv/my rw - ext4 /dev/sda2 rw\n2 0 0:26 / /x rw - btrfs /dev/vda1 rw\n")
	put("proc/swaps", "Filename Type Size Used Priority\n")
	put("dev/sda", "")
	if err := os.MkdirAll(filepath.Join(root, "dev/disk/by-id"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../sda", filepath.Join(root, "dev/disk/by-id/ata-Q")); err != nil {
		t.Fatal(err)
	}
	devs, err := Prober{Sys: root + "/sys", Proc: root + "/proc", Dev: root + "/dev"}.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	busy := map[string]string{}
	for _, d := range devs {
		names = append(names, d.Name)
		busy[d.Name] = d.Busy
	}
	if got := strings.Join(names, " "); got != "mmcblk0 nvme0n1 sda sdb vda" {
		t.Errorf("disks %s", got)
	}
	if busy["sda"] != "sda2 is mounted at /srv/my" || busy["sdb"] != "sdb is part of dm-0 (vg-root)" || busy["vda"] != "vda1 is mounted at /x" || busy["nvme0n1"] != "" {
		t.Errorf("busy %v", busy)
	}
	if d := devs[2]; d.Serial != "QM01" || d.Model != "QEMU HARDDISK" || len(d.Links) != 1 || d.Parts[0] != root+"/dev/sda2" || d.Size != 1<<20 {
		t.Errorf("sda %+v", d)
	}
	if !devs[0].ReadOnly || devs[1].ReadOnly {
		t.Error("read-only is wrong")
	}
}

func TestProbeHere(t *testing.T) {
	if _, err := Probe(t.Context()); err != nil {
		t.Error(err)
	}
}
