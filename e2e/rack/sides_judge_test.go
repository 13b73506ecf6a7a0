package rack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"ingot/rollback"
	"ingot/rollback/sides"
)

// sidesJudge says what a disk with two sides is after a power cut.
type sidesJudge struct {
	judge
	conf       *sides.Config
	subvolumes bool
	env        extent
	roots      map[string]extent
	shared     extent
}

// sidesState is what one disk turned out to be.
type sidesState struct {
	env        sides.Env
	trial      string         // of the record: none, open, confirmed, reverted
	generation map[string]int // of each side; 0: none yet
	did        string         // by the recovery of the side that does not start
	boot       string         // what GRUB finds on the side that it starts
}

// starts is the side that GRUB starts.
func (s sidesState) starts() string {
	if s.env.Try != "" {
		return s.env.Try
	}
	return s.env.Side
}

// words are what the boot loader has been told.
func (s sidesState) words() string {
	if s.env.Try != "" {
		return s.env.Side + ", tries " + s.env.Try
	}
	return s.env.Side
}

func (s sidesState) String() string {
	return fmt.Sprintf("boot loader: %s; trial %s; a %d, b %d; %s", s.words(), s.trial, s.generation[sides.A], s.generation[sides.B], s.did)
}

// find finds the partitions by their UUIDs.
func (j *sidesJudge) find(disk string) error {
	j.roots = map[string]extent{}
	for _, p := range j.h.parts {
		uuid, err := output("blkid", "--probe", "--offset", fmt.Sprint(p.start), "--size", fmt.Sprint(p.length), "-o", "value", "-s", "UUID", disk)
		if err != nil {
			continue // that of the BIOS has no file system
		}
		for d, to := range map[sides.Device]func(){
			j.conf.Env:            func() { j.env = p },
			j.conf.Shared:         func() { j.shared = p },
			j.conf.Roots[sides.A]: func() { j.roots[sides.A] = p },
			j.conf.Roots[sides.B]: func() { j.roots[sides.B] = p },
		} {
			if d.UUID == strings.TrimSpace(uuid) {
				to()
			}
		}
	}
	if j.env.length == 0 || j.shared.length == 0 || len(j.roots) != 2 {
		return fmt.Errorf("the partitions are not found: %+v", j)
	}
	return nil
}

// cut makes the disk after a power cut and judges it, or of it what is shared alone.
func (j *sidesJudge) cut(i int, seed uint64, sharedAlone bool) (sidesState, error) {
	img := filepath.Join(j.dir, "cut.img")
	if err := j.h.cut(i, seed, img); err != nil {
		return sidesState{}, err
	}
	judge := j.disk
	if sharedAlone {
		judge = j.sharedOf
	}
	s, err := judge(img)
	if err == nil {
		return s, nil
	}
	return s, fmt.Errorf("flush at entry %d, seed %d: %s: %w%s", j.h.points[i].flush, seed, s, err, j.keep(i, seed, img))
}

// disk looks at what GRUB sees, lets the kernel replay the journals and the
// agent recover, and compares.
func (j *sidesJudge) disk(img string) (s sidesState, err error) {
	block, err := grubView{j.env.view(img)}.ask("cat /" + sides.EnvFile)
	if err != nil {
		return s, err
	}
	if s.env, err = sides.DecodeEnv(block); err != nil {
		return s, err
	}
	if s.boot, err = j.kernel(img, s.starts()); err != nil {
		return s, err
	}
	if s.boot != "old" && s.boot != "new" {
		return s, fmt.Errorf("GRUB starts %s", s.boot)
	}
	if err := j.mounted(img, "", func(dirs map[string]string) error { return j.look(dirs, &s) }); err != nil {
		return s, err
	}
	return s, j.fsck(img)
}

// kernel says what GRUB, which replays no journal, finds on a side.
func (j *sidesJudge) kernel(img, side string) (which string, err error) {
	if !j.subvolumes {
		return j.bootable(j.roots[side].view(img))
	}
	err = j.mounted(img, "ro,rescue=nologreplay,", func(dirs map[string]string) error {
		which = j.which(j.h.b.pairIn(dirs[side]))
		return nil
	})
	return which, err
}

// mounted mounts both sides and what they share.
func (j *sidesJudge) mounted(img, options string, fn func(dirs map[string]string) error) (err error) {
	top := filepath.Join(j.dir, "mnt")
	at := map[string]extent{sides.A: j.roots[sides.A], sides.B: j.roots[sides.B], "shared": j.shared}
	dirs := map[string]string{}
	for name := range at {
		dirs[name] = filepath.Join(top, name)
	}
	fstype := "ext4"
	if j.subvolumes { // one file system, which can be mounted once
		at, fstype = map[string]extent{".": j.shared}, "btrfs"
		dirs = map[string]string{sides.A: filepath.Join(top, "@a"), sides.B: filepath.Join(top, "@b"), "shared": filepath.Join(top, "@shared")}
	}
	for name, x := range at {
		dir := filepath.Join(top, name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if _, err := output("mount", "-t", fstype, "-o", options+x.loop(), img, dir); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unmount(dir)) }()
	}
	return fn(dirs)
}

// sharedOf looks at what both sides share, of two partitions.
func (j *sidesJudge) sharedOf(img string) (s sidesState, err error) {
	dir := filepath.Join(j.dir, "mnt", "shared")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return s, err
	}
	if _, err := output("mount", "-t", "ext4", "-o", j.shared.loop(), img, dir); err != nil {
		return s, err
	}
	s.trial, err = trialOf(dir)
	if err := errors.Join(err, unmount(dir)); err != nil {
		return s, err
	}
	_, err = output("e2fsck", "-f", "-n", j.shared.view(img))
	return s, err
}

// trialOf is what the shared file system says of the last trial.
func trialOf(shared string) (string, error) {
	switch t, err := sides.ReadTrial(shared); {
	case err != nil:
		return "", err
	case t == nil:
		return "none", nil
	case t.Open():
		return "open", nil
	case t.Reason != "":
		return "reverted", nil
	}
	return "confirmed", nil
}

// look recovers and compares both sides.
func (j *sidesJudge) look(dirs map[string]string, s *sidesState) (err error) {
	if s.trial, err = trialOf(dirs["shared"]); err != nil {
		return err
	}
	s.generation = map[string]int{}
	for _, side := range []string{sides.A, sides.B} {
		if _, err := os.Lstat(filepath.Join(dirs[side], ".ingot")); errors.Is(err, os.ErrNotExist) && side != s.starts() {
			s.did = "nothing was there"
			continue // nothing was written there yet
		}
		v := verdict{}
		err := j.tree(dirs[side], &v)
		s.generation[side] = v.generation
		if side != s.starts() && errors.Is(err, rollback.ErrNoGeneration) {
			err = nil // it has no tree yet, and need not
		}
		if err != nil {
			return fmt.Errorf("side %s: %w", side, err)
		}
		if side != s.starts() {
			s.did = v.did
		} else if v.journal {
			return fmt.Errorf("side %s starts, and is not finished: %s", side, v.did)
		}
	}
	return nil
}

// fsck has the file systems checked by their own programs. That of the boot
// loader's environment has no journal, and nothing but one sector of a file is
// ever written there.
func (j *sidesJudge) fsck(img string) error {
	if j.subvolumes {
		return j.checkBtrfs(img)
	}
	for _, p := range []extent{j.shared, j.roots[sides.A], j.roots[sides.B]} {
		if _, err := output("e2fsck", "-f", "-n", p.view(img)); err != nil {
			return err
		}
	}
	return nil
}

func (j *sidesJudge) checkBtrfs(img string) error {
	dev, err := output("losetup", "--find", "--show", "--offset", fmt.Sprint(j.shared.start), "--sizelimit", fmt.Sprint(j.shared.length), img)
	if err != nil {
		return err
	}
	dev = strings.TrimSpace(dev)
	_, err = output("btrfs", "check", "--readonly", dev)
	_, derr := output("losetup", "--detach", dev)
	return errors.Join(err, derr)
}
