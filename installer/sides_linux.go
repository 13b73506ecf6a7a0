package installer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ingot/classes/disks"
	"ingot/rollback/sides"
)

// envDir is where the file system of the boot loader's environment is mounted
// while a node with two sides is installed.
const envDir = "/.ingot/env"

// planSides finds the partitions of a node with two sides in the layout, and
// refuses one that two sides cannot be made of. Side a is installed; b has a
// file system, and nothing in it.
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
		if p, ok := part[at]; !ok || p.UUID == "" {
			return fmt.Errorf("the profile says `sides: {%s: %s}`, and %s has no file system for that mount point", key, at, r.job.DiskConfig.File)
		}
	}
	root, other, env := part["/"], part[s.Other], part[s.Env]
	switch {
	case !slices.Contains([]string{"ext4", "xfs"}, root.FS) || root.FS != other.FS:
		return fmt.Errorf("%s: both sides need the same file system, ext4 or xfs: / has %s, %s has %s", r.job.DiskConfig.File, root.FS, s.Other, other.FS)
	case env.FS != "ext2" && env.FS != "vfat":
		return fmt.Errorf("%s: GRUB can write safely to ext2 and vfat only: %s (sides: env) has %s", r.job.DiskConfig.File, s.Env, env.FS)
	case res.BootPart != "":
		return fmt.Errorf("%s: a node with two sides has its kernels on these: remove the partition for /boot", r.job.DiskConfig.File)
	}
	for _, m := range res.Mounts {
		in := func(tree string) bool { return m.Path == "/"+tree || strings.HasPrefix(m.Path, "/"+tree+"/") }
		if m.Path != "/" && m.Path != s.Other && m.Path != s.Shared && m.Path != s.Env && m.Device != res.ESPDevice && !slices.ContainsFunc(s.Trees, in) {
			return fmt.Errorf("%s: %s is on a file system of its own, and the image has files for it: two sides cannot share it, unless node_owned says that all of it is the node's", r.job.DiskConfig.File, m.Path)
		}
	}
	device := func(p disks.Made) sides.Device { return sides.Device{FSType: p.FS, UUID: p.UUID} }
	r.sides = &sides.Config{Side: sides.A, Roots: map[string]sides.Device{sides.A: device(root), sides.B: device(other)},
		Shared: device(part[s.Shared]), Env: device(env), Trees: s.Trees, Own: s.Own}
	r.envMount = disks.Mount{Device: env.Device, Path: envDir, FS: env.FS}
	var mounts []disks.Mount
	for _, m := range res.Mounts {
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
