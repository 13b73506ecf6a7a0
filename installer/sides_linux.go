package installer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ingot/classes/disks"
	"ingot/internal/btrfs"
	"ingot/rollback/sides"
)

// envDir is where the file system of the boot loader's environment is mounted
// while a node with two sides is installed.
const envDir = "/.ingot/env"

// planSides finds the parts of a node with two sides in the layout, and refuses
// one that two sides cannot be made of. Side a is installed; b is empty.
func (r *Run) planSides() error {
	s, res := r.job.Sides, &r.plan.Result
	if s == nil {
		return nil
	}
	part := map[string]disks.Made{}
	for _, p := range res.Partitions {
		part[p.Mount] = p
	}
	for key, at := range map[string]string{"other": s.Other, "shared": s.Shared, "env": s.Env} {
		if p, ok := part[at]; at != "" && (!ok || p.UUID == "") {
			return fmt.Errorf("the profile says `sides: {%s: %s}`, and %s has no file system for that mount point", key, at, r.job.DiskConfig.File)
		}
	}
	if err := r.sidesFit(part); err != nil {
		return fmt.Errorf("%s: %w", r.job.DiskConfig.File, err)
	}
	root, env := res.Mounts[0], part[s.Env] // parents come first
	device := func(p disks.Made, subvol string) sides.Device {
		return sides.Device{FSType: p.FS, UUID: p.UUID, Subvol: subvol}
	}
	r.sides = &sides.Config{Side: sides.A, Env: device(env, ""), Trees: s.Trees, Own: s.Own}
	a, b, shared := device(part["/"], ""), device(part[s.Other], ""), device(part[s.Shared], "")
	mounts := []disks.Mount{root}
	if s.Mode == modeBtrfs {
		a, b, shared = device(part["/"], sides.Subvol(sides.A)), device(part["/"], sides.Subvol(sides.B)), device(part["/"], sides.SharedSubvol)
		mounts = []disks.Mount{subvolume(root, "/", a.Subvol), subvolume(root, "/"+sides.SharedDir, shared.Subvol)}
	}
	a.Options, b.Options = root.Options, root.Options
	r.sides.Roots, r.sides.Shared = map[string]sides.Device{sides.A: a, sides.B: b}, shared
	r.envMount = disks.Mount{Device: env.Device, Path: envDir, FS: env.FS}
	for _, m := range res.Mounts[1:] {
		switch {
		case m.Path == s.Other || m.Path == s.Env && m.Device != res.ESPDevice:
		case m.Path == s.Shared:
			m.Path = "/" + sides.SharedDir
			mounts = slices.Insert(mounts, 1, m)
		default:
			mounts = append(mounts, m)
		}
	}
	res.Mounts = mounts
	keep := []string{"/", s.Other, s.Shared}
	if env.Device != res.ESPDevice {
		keep = append(keep, s.Env)
	}
	res.Fstab = withoutMounts(res.Fstab, keep)
	return nil
}

// modeBtrfs is the mode whose sides are subvolumes.
const modeBtrfs = "btrfs"

// subvolume is the mount of one, with the options of that of the file system.
func subvolume(m disks.Mount, at, name string) disks.Mount {
	m.Path, m.Options = at, strings.Trim(m.Options+",subvol="+name, "-,")
	return m
}

// sidesFit says why two sides cannot be made of the partitions.
func (r *Run) sidesFit(part map[string]disks.Made) error {
	s, res := r.job.Sides, &r.plan.Result
	root, other, env := part["/"], part[s.Other], part[s.Env]
	switch {
	case s.Mode == modeBtrfs && root.FS != "btrfs":
		return fmt.Errorf("the sides of update: btrfs are subvolumes of /, which has %s", root.FS)
	case s.Mode != modeBtrfs && (!slices.Contains([]string{"ext4", "xfs"}, root.FS) || root.FS != other.FS):
		return fmt.Errorf("both sides need the same file system, ext4 or xfs (or update: btrfs): / has %s, %s has %s", root.FS, s.Other, other.FS)
	case env.FS != "ext2" && env.FS != "vfat":
		return fmt.Errorf("GRUB can write safely to ext2 and vfat only: %s (sides: env) has %s", s.Env, env.FS)
	case r.job.Loader == sides.SystemdBoot && env.Device != res.ESPDevice:
		return fmt.Errorf("the memory of systemd-boot is the EFI system partition: %s (sides: env) is none", s.Env)
	case res.BootPart != "":
		return errors.New("a node with two sides has its kernels on these: remove the partition for /boot")
	}
	for _, m := range res.Mounts {
		in := func(tree string) bool { return m.Path == "/"+tree || strings.HasPrefix(m.Path, "/"+tree+"/") }
		if m.Path != "/" && m.Path != s.Other && m.Path != s.Shared && m.Path != s.Env && m.Device != res.ESPDevice && !slices.ContainsFunc(s.Trees, in) {
			return fmt.Errorf("%s is on a file system of its own, and the image has files for it: two sides cannot share it, unless node_owned says that all of it is the node's", m.Path)
		}
	}
	return nil
}

// subvolumes makes those of a node whose sides are such.
func (r *Run) subvolumes(ctx context.Context) error {
	if r.sides == nil || !r.sides.Subvolumes() {
		return nil
	}
	root := r.plan.Result.Mounts[0]
	root.Options = ""
	if err := r.mount(ctx, root); err != nil {
		return err
	}
	top, err := os.Open(Target)
	if err != nil {
		return errors.Join(err, r.unmount())
	}
	for _, name := range []string{r.sides.Roots[sides.A].Subvol, r.sides.Roots[sides.B].Subvol, r.sides.Shared.Subvol} {
		err = errors.Join(err, btrfs.Create(top, name))
	}
	return errors.Join(err, top.Close(), r.unmount())
}

// withoutMounts removes the lines of some mount points from an fstab, and the
// comments before them: the agent, or the boot loader, mounts these.
func withoutMounts(fstab string, at []string) string {
	var out []string
	for line := range strings.Lines(fstab) {
		if f := strings.Fields(line); len(f) > 1 && !strings.HasPrefix(line, "#") && slices.Contains(at, f[1]) {
			if n := len(out) - 1; n >= 0 && strings.HasPrefix(out[n], "# device") {
				out = out[:n]
			}
			continue
		}
		out = append(out, line)
	}
	return strings.Join(out, "")
}

// mountTrees makes what the sides share appear in the new one, for the image
// to be written there.
func (r *Run) mountTrees() error {
	if r.sides == nil {
		return nil
	}
	made, err := r.sides.MountTrees(Target)
	for _, dir := range made {
		top, openErr := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if openErr != nil {
			return errors.Join(err, openErr)
		}
		r.mounts = append(r.mounts, mounted{dir, top})
	}
	return err
}

// sidesLoader writes what the boot loader needs to choose a side, and returns
// the configuration for its core image.
func (r *Run) sidesLoader(conf bootConfig) (embedded string, err error) {
	text := sidesConfig(conf, r.sides.Roots)
	if err := sides.NewEnv(filepath.Join(Target, envDir), sides.Env{Side: r.sides.Side}); err != nil {
		return "", fmt.Errorf("write the boot loader's environment: %w", err)
	}
	if err := r.put(envDir+"/ingot/grub.cfg", text, 0o600); err != nil {
		return "", err
	}
	return sidesEmbedded(r.sides.Env.UUID, text), r.sides.Write(Target)
}

// root returns the directory that shows the tree to be recorded: of a node with
// two sides its root file system alone, without what both share.
func (r *Run) root() (dir string, done func() error, err error) {
	if r.sides == nil {
		return Target, func() error { return nil }, nil
	}
	const bare = "/side"
	if err := os.MkdirAll(bare, 0o700); err != nil {
		return "", nil, err
	}
	if err := unix.Mount(Target, bare, "", unix.MS_BIND, ""); err != nil {
		return "", nil, fmt.Errorf("show %s without its mounts: %w", Target, err)
	}
	return bare, func() error { return unix.Unmount(bare, 0) }, nil
}
