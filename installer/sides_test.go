package installer

import (
	"strings"
	"testing"

	"ingot/classes/disks"
	"ingot/rollback/sides"
)

// What two sides cannot be made of is refused before anything is written, with
// the place that says so.
func TestPlanSides(t *testing.T) {
	const good = `disk_config disk1 disklabel:gpt-bios fstabkey:uuid
primary /boot/efi 64M vfat umask=0077
primary /env 16M ext2 rw
primary /srv/data 128M ext4 rw
primary / 1G ext4 rw
primary /other 1G ext4 rw
primary /shared 512M- ext4 rw
`
	const roots = "primary / 1G ext4 rw\nprimary /other 1G ext4 rw\nprimary /shared 512M- ext4 rw\n"
	for _, tt := range []struct {
		name, from, to, env, err string
		btrfs                    bool
	}{
		{name: "good"},
		{name: "the environment in the ESP", env: "/boot/efi", from: "primary /env 16M ext2 rw\n"},
		{name: "no other", from: "primary /other 1G ext4 rw\n", err: "sides: {other: /other}"},
		{name: "another file system", from: "/other 1G ext4", to: "/other 1G xfs", err: "same file system"},
		{name: "a file system that nobody knows", from: "G ext4", to: "G btrfs", err: "ext4 or xfs"},
		{name: "a journal under GRUB", from: "16M ext2", to: "16M ext4", err: "GRUB can write safely"},
		{name: "kernels apart", from: "/srv/data", to: "/boot", err: "remove the partition for /boot"},
		{name: "subvolumes", from: roots, to: "primary / 1G btrfs noatime\n", btrfs: true},
		{name: "subvolumes of another file system", from: roots, to: "primary / 1G xfs rw\n", btrfs: true, err: "which has xfs"},
		{name: "files of the image apart", from: "/srv/data", to: "/opt", err: "/opt is on a file system of its own"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := good
			if tt.from != "" {
				text = strings.ReplaceAll(good, tt.from, tt.to)
			}
			layout, err := disks.Parse("disk_config/X", []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			env := tt.env
			if env == "" {
				env = "/env"
			}
			s := &Sides{Mode: "slots", Other: "/other", Shared: "/shared", Env: env, Trees: []string{"home", "srv/data"}}
			if tt.btrfs {
				s.Mode, s.Other, s.Shared = "btrfs", "", ""
			}
			r := &Run{job: Job{Sides: s, DiskConfig: DiskConfig{File: "disk_config/X"}}}
			if r.plan, err = layout.Plan([]disks.Device{{Name: "sda", Path: "/dev/sda", Size: 8 << 30}}, disks.Options{}); err != nil {
				t.Fatal(err)
			}
			err = r.planSides()
			if (err != nil) != (tt.err != "") || err != nil && (!strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), "disk_config/X")) {
				t.Fatalf("%v, want %q", err, tt.err)
			}
			if err != nil {
				return
			}
			var at []string
			for _, m := range r.plan.Result.Mounts {
				at = append(at, m.Path)
			}
			if got := strings.Join(at, " "); got != "/ /"+sides.SharedDir+" /boot/efi /srv/data" {
				t.Errorf("mounts %s", got)
			}
			at = nil
			for line := range strings.Lines(r.plan.Result.Fstab) {
				if f := strings.Fields(line); len(f) > 1 && !strings.HasPrefix(line, "#") {
					at = append(at, f[1])
				}
			}
			if got, said := strings.Join(at, " "), strings.Count(r.plan.Result.Fstab, "# device"); got != "/boot/efi /srv/data" || said != 2 {
				t.Errorf("fstab has %s, and %d comments:\n%s", got, said, r.plan.Result.Fstab)
			}
			a, b := r.sides.Roots[sides.A], r.sides.Roots[sides.B]
			if tt.btrfs {
				root, shared := r.plan.Result.Mounts[0], r.plan.Result.Mounts[1]
				if a.UUID != b.UUID || a.Subvol != "@a" || b.Subvol != "@b" || root.Options != "noatime,subvol=@a" || shared.Options != "noatime,subvol=@shared" || a.Options != "noatime" {
					t.Errorf("%+v, mounts %+v, %+v", r.sides, root, shared)
				}
				return
			}
			if a.UUID == b.UUID || r.sides.Env.UUID == "" || r.sides.Side != sides.A {
				t.Errorf("%+v", r.sides)
			}
		})
	}
}
