package installer

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ingot/classes/disks"
	"ingot/imager"
	"ingot/imager/store"
	"ingot/imager/tree"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/rollback/sides"
)

// check makes sure that everything is at hand before the first write: the
// manifest and the index, whole and verified, every chunk with a place, the
// overlay's content, a disk layout that fits these disks, room for the image.
func (r *Run) check(ctx context.Context) error {
	raw, err := r.Client.Get(ctx, PathManifest)
	if err != nil {
		return err
	}
	if raw, err = store.UnpackManifest(r.job.Image, raw); err != nil {
		return err
	}
	if r.image, err = manifest.Decode(raw); err != nil {
		return fmt.Errorf("manifest of %s: %w", r.job.Ref, err)
	}
	if r.overlay, err = manifest.Decode(r.job.Overlay); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	r.target = imager.Lay(r.image, r.overlay)
	if err := r.target.Validate(); err != nil {
		return fmt.Errorf("image %s and the overlay do not fit together: %w", r.job.Ref, err)
	}
	if raw, err = r.Client.Get(ctx, PathIndex); err != nil {
		return err
	}
	if r.index, err = store.DecodeIndex(raw); err != nil {
		return err
	}
	if err := r.reachable(); err != nil {
		return err
	}
	if err := r.planDisks(ctx); err != nil {
		return err
	}
	return r.hasBootLoader()
}

// reachable checks that each chunk of the target has a place in a pack or came with the job.
func (r *Run) reachable() error {
	placed := make(map[digest.ID]bool, len(r.index.Chunks))
	for _, c := range r.index.Chunks {
		placed[c.ID] = true
	}
	for _, e := range r.target.Entries {
		for _, c := range e.Chunks {
			if _, ok := r.job.Data[c.ID]; ok {
				continue
			}
			if !placed[c.ID] {
				return fmt.Errorf("chunk %s of %q is in no pack of the server's index", c.ID.Short(), e.Path)
			}
		}
	}
	for id, data := range r.job.Data {
		if digest.Of(data) != id {
			return fmt.Errorf("chunk %s of the overlay was damaged on its way", id.Short())
		}
	}
	return nil
}

// diskWait is how long a layout that does not fit the disks is tried again.
const diskWait = 20 * time.Second

func (r *Run) planDisks(ctx context.Context) error {
	layout, err := disks.Parse(r.job.DiskConfig.File, []byte(r.job.DiskConfig.Text))
	if err != nil {
		return err
	}
	ram, _ := strconv.ParseUint(r.Facts["memory_kib"], 10, 64)
	for begin := time.Now(); ; {
		devs, err := disks.Probe(ctx)
		if err != nil {
			return err
		}
		if r.plan, err = layout.Plan(devs, disks.Options{RAM: ram * 1024}); err == nil {
			break
		}
		if time.Since(begin) > diskWait {
			return err
		}
		select { // a controller may still be looking for its disks
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
	if err := r.planSides(); err != nil {
		return err
	}
	for _, d := range r.plan.Result.Disks {
		r.log.Info("disk that will be overwritten", "device", d)
	}
	return nil
}

// hasBootLoader checks that the image holds what will boot this machine.
func (r *Run) hasBootLoader() error {
	if r.job.Loader == "none" {
		return nil
	}
	res, p := r.plan.Result, grubBIOS()
	uefi := r.Facts["firmware"] == "uefi"
	switch {
	case uefi && res.ESPDevice == "":
		return fmt.Errorf("this machine boots by UEFI, and disk_config/%s makes no EFI system partition: add a line such as `primary /boot/efi 100 vfat rw`", r.job.DiskConfig.Class)
	case !uefi && r.job.Loader == sides.SystemdBoot:
		return errors.New("this machine boots by BIOS, and systemd-boot by UEFI only: use loader: grub")
	case !uefi && !res.BIOSBoot:
		return fmt.Errorf("this machine boots by BIOS, and disk_config/%s makes no BIOS boot partition: use disklabel:gpt-bios", r.job.DiskConfig.Class)
	case uefi:
		p = grubUEFI()
	}
	if !slices.ContainsFunc(r.image.Entries, func(e entry.Entry) bool { return strings.HasPrefix(e.Path, "boot/vmlinuz") }) {
		return fmt.Errorf("image %s has no kernel: build it with the package linux-image-amd64", r.job.Ref)
	}
	if _, ok := r.image.Lookup(strings.TrimPrefix(systemdBoot, "/")); r.job.Loader == sides.SystemdBoot && !ok {
		return fmt.Errorf("image %s lacks %s: build it with the package systemd-boot-efi", r.job.Ref, systemdBoot)
	}
	for _, path := range []string{"usr/bin/grub-mkimage", "usr/lib/grub/" + p.dir} {
		if _, ok := r.image.Lookup(path); !ok {
			return fmt.Errorf("image %s lacks /%s: build it with the packages grub-common and grub-pc-bin or grub-efi-amd64-bin", r.job.Ref, path)
		}
	}
	return nil
}

// partition divides and formats the disks and mounts the new root. From its
// first step on the old system does not boot any more, also not by half: the
// boot sector says so.
func (r *Run) partition(ctx context.Context) error {
	for _, d := range r.plan.Result.Disks {
		if err := sealDisk(d); err != nil {
			return err
		}
	}
	if err := disks.Run(ctx, r.plan, func(ctx context.Context, argv []string, stdin string) ([]byte, error) {
		r.log.Info("run", "command", strings.Join(argv, " "))
		return disks.Command(ctx, argv, stdin)
	}); err != nil {
		return err
	}
	for _, d := range r.plan.Result.Disks { // once more: a new table may bring a boot sector
		if err := sealDisk(d); err != nil {
			return err
		}
	}
	if err := r.subvolumes(ctx); err != nil {
		return err
	}
	for _, m := range r.plan.Result.Mounts {
		if m.FS == "vfat" {
			continue // it holds no owners and modes; mounted once the tree is written
		}
		if m.Path == "/"+sides.SharedDir {
			if err := r.mkdir("/.ingot", 0o700); err != nil {
				return err
			}
		}
		if err := r.mount(ctx, m); err != nil {
			return err
		}
	}
	return r.mountTrees()
}

// sealDisk makes the boot sector of a disk say that it does not boot.
func sealDisk(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		return fmt.Errorf("open %q: %w", device, err)
	}
	mbr := make([]byte, sector)
	if _, err := io.ReadFull(f, mbr); err != nil {
		return errors.Join(fmt.Errorf("read the boot sector of %q: %w", device, err), f.Close())
	}
	_, err = f.WriteAt(placeholder(mbr), 0)
	return errors.Join(err, f.Sync(), f.Close())
}

// mounted is a file system of the target. Its top stays open from before the
// first write on, so that syncfs(2) tells of every write that failed since.
type mounted struct {
	dir string
	top int // file descriptor
}

func (r *Run) mount(ctx context.Context, m disks.Mount) error {
	if r.LoadModule != nil {
		if err := r.LoadModule(ctx, m.FS); err != nil {
			r.log.Warn("load a file system", "fs", m.FS, "err", err) // the mount says whether it was needed
		}
	}
	flags, data := mountOptions(m.Options)
	return r.mountAt(mountPoint{source: m.Device, target: m.Path, fstype: m.FS, data: data, flags: flags})
}

// mountAt mounts on a directory of the target, which no symlink of the image
// can lead elsewhere.
func (r *Run) mountAt(m mountPoint) error {
	dir := filepath.Join(Target, m.target)
	if m.target != "/" {
		if err := r.mkdir(m.target, 0o755); err != nil {
			return err
		}
	} else if err := os.MkdirAll(Target, 0o755); err != nil {
		return err
	}
	base, err := unix.Open(Target, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("mount on %s: %w", dir, err)
	}
	defer unix.Close(base)
	at, err := entry.OpenBeneath(base, pathIn(m.target), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("mount on %s: %w", dir, err)
	}
	defer unix.Close(at)
	if err := unix.Mount(m.source, fmt.Sprintf("/proc/self/fd/%d", at), m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s (%s, options %q) on %s: %w", m.source, m.fstype, m.data, dir, err)
	}
	top, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.Join(fmt.Errorf("mount on %s: %w", dir, err), unix.Unmount(dir, 0))
	}
	r.mounts = append(r.mounts, mounted{dir, top})
	return nil
}

func pathIn(abs string) string {
	if p := strings.Trim(abs, "/"); p != "" {
		return p
	}
	return "."
}

// sync makes everything durable, and fails when any write since the mounts
// failed: EIO and ENOSPC may come long after write(2).
func (r *Run) sync() error {
	for _, m := range r.mounts {
		if err := unix.Syncfs(m.top); err != nil {
			return fmt.Errorf("sync %s: %w", m.dir, err)
		}
	}
	return nil
}

// mountOptions splits fstab options into mount(2)'s flags and data.
func mountOptions(options string) (flags uintptr, data string) {
	known := map[string]uintptr{
		"nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "noatime": unix.MS_NOATIME,
		"nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME, "sync": unix.MS_SYNCHRONOUS,
		"rw": 0, "defaults": 0, "auto": 0, "noauto": 0, "ro": 0, "user": 0, "nouser": 0, "nofail": 0, "errors=remount-ro": 0, "-": 0, "": 0,
	}
	var rest []string
	for _, o := range strings.Split(options, ",") {
		if f, ok := known[o]; ok {
			flags |= f
		} else if !strings.HasPrefix(o, "x-") {
			rest = append(rest, o)
		}
	}
	// An installation writes every file once and syncs at its end.
	return flags&^(unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_SYNCHRONOUS) | unix.MS_NOATIME, strings.Join(rest, ",")
}

// write writes image and overlay, every chunk verified on its way.
func (r *Run) write(ctx context.Context) error {
	total := r.target.TotalSize()
	r.progress(func(p *Progress) { p.Total = total })
	var mu sync.Mutex
	r.written = make(map[string]written, len(r.target.Entries))
	src := imager.Layered{Data: r.job.Data, Below: &store.Fetcher{Index: r.index, Read: r.Client.ReadPack, Parallel: 2}}
	var at []string
	for _, m := range r.mounts {
		if rel, err := filepath.Rel(Target, m.dir); err == nil && rel != "." {
			at = append(at, rel)
		}
	}
	err := tree.Write(ctx, Target, r.target, src, tree.WriteOptions{
		Mounted:  at,
		Progress: func(bytes, _ int64) { r.progress(func(p *Progress) { p.Done = bytes }) },
		OnWritten: func(path string, st entry.Stat) {
			mu.Lock()
			defer mu.Unlock()
			r.written[path] = written{st}
		},
		Log: r.log,
	})
	if err != nil {
		return err
	}
	for _, m := range r.plan.Result.Mounts {
		if m.FS == "vfat" {
			if err := r.mount(ctx, m); err != nil {
				return err
			}
		}
	}
	if r.sides != nil {
		return r.mount(ctx, r.envMount)
	}
	return nil
}

// configure writes what is of this machine alone.
func (r *Run) configure(context.Context) error {
	files := []struct {
		path, text string
		mode       os.FileMode
	}{
		{"/etc/fstab", r.plan.Result.Fstab, 0o644},
		{"/etc/hostname", r.job.HostName + "\n", 0o644},
		{"/etc/machine-id", randomHex(16) + "\n", 0o444},
	}
	for _, k := range r.job.HostKeys {
		name := "/etc/ssh/ssh_host_" + k.Type + "_key"
		files = append(files, struct {
			path, text string
			mode       os.FileMode
		}{name, k.Private, 0o600}, struct {
			path, text string
			mode       os.FileMode
		}{name + ".pub", k.Public + "\n", 0o644})
	}
	for _, f := range files {
		if err := r.put(f.path, f.text, f.mode); err != nil {
			return err
		}
	}
	if len(r.job.OperatorKeys) > 0 {
		if err := r.mkdir("/root/.ssh", 0o700); err != nil {
			return err
		}
		if err := r.put("/root/.ssh/authorized_keys", strings.Join(r.job.OperatorKeys, "\n")+"\n", 0o600); err != nil {
			return err
		}
	}
	for _, m := range pseudo() {
		if m.target == "/tmp" {
			continue // the new system has its own
		}
		if err := r.mountAt(m); err != nil {
			return err
		}
	}
	return nil
}

// put replaces a file of the target. A symlink in its place is replaced, and
// none on the way leads out of the target (os.Root).
func (r *Run) put(path, text string, mode os.FileMode) error {
	if err := r.mkdir(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	err := r.inTarget(func(root *os.Root) error {
		name := strings.TrimPrefix(path, "/")
		if err := root.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if err != nil {
			return err
		}
		if _, err := f.WriteString(text); err != nil {
			return errors.Join(err, f.Close())
		}
		return errors.Join(f.Chmod(mode), f.Close())
	})
	if err != nil {
		return fmt.Errorf("write %q: %w", path, err)
	}
	return nil
}

// mkdir makes a directory of the target and its parents; mode is for new ones.
func (r *Run) mkdir(path string, mode os.FileMode) error {
	err := r.inTarget(func(root *os.Root) error { return root.MkdirAll(strings.TrimPrefix(path, "/"), mode) })
	if err != nil {
		return fmt.Errorf("make directory %q: %w", path, err)
	}
	return nil
}

func (r *Run) inTarget(fn func(*os.Root) error) error {
	root, err := os.OpenRoot(Target)
	if err != nil {
		return err
	}
	return errors.Join(fn(root), root.Close())
}

// finish makes the disk bootable, once everything else is there and on the
// disk: until now no boot sector and no file of the EFI system partition led here.
func (r *Run) finish(context.Context) error {
	r.keepLog()
	if err := r.sync(); err != nil {
		return err
	}
	if err := r.activate(); err != nil {
		return err
	}
	return r.sync()
}

// unmount undoes every mount, the last first. What a script left running in
// the new system is ended first.
func (r *Run) unmount() error {
	endProcesses(Target)
	var errs []error
	for _, m := range slices.Backward(r.mounts) {
		errs = append(errs, unix.Close(m.top))
		err := unix.Unmount(m.dir, 0)
		for n := 0; errors.Is(err, unix.EBUSY) && n < 20; n++ {
			time.Sleep(100 * time.Millisecond)
			err = unix.Unmount(m.dir, 0)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.dir, err))
		}
	}
	r.mounts = nil
	unix.Sync()
	return errors.Join(errs...)
}

// endProcesses kills what runs with its root in dir (proc(5), /proc/pid/root).
func endProcesses(dir string) {
	procs, _ := filepath.Glob("/proc/[0-9]*/root")
	for _, p := range procs {
		root, err := os.Readlink(p)
		if err != nil || root != dir && !strings.HasPrefix(root, dir+"/") {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(p, "/")[2]); err == nil {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by itself
		}
	}
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails: crypto/rand.Read
	return hex.EncodeToString(b)
}
