package installer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ingot/rollback/sides"
)

// Files of ingot's own in the new system.
const (
	grubDir   = "/boot/grub"
	agentPath = "/.ingot/agent"
)

// platforms returns the firmwares that the layout can serve and the image has
// GRUB for, so that a disk boots in either kind of machine where possible.
func (r *Run) platforms() []grubPlatform {
	var out []grubPlatform
	if r.job.Loader == "none" || r.job.Loader == sides.SystemdBoot {
		return nil
	}
	if r.plan.Result.BIOSBoot {
		out = append(out, grubBIOS())
	}
	if r.plan.Result.ESPDevice != "" {
		out = append(out, grubUEFI())
	}
	return slices.DeleteFunc(out, func(p grubPlatform) bool {
		_, ok := r.image.Lookup("usr/lib/grub/" + p.dir)
		return !ok
	})
}

// bootLoader puts the agent, grub.cfg and the core images into the tree. It
// does not make the disk bootable yet: activate does.
func (r *Run) bootLoader(ctx context.Context) error {
	if err := r.installAgent(); err != nil {
		return err
	}
	switch r.job.Loader {
	case "none":
		return nil
	case sides.SystemdBoot:
		r.sides.Loader, r.sides.Title, r.sides.Args = r.job.Loader, r.job.Node, r.job.KernelArgs
		if err := r.sides.Write(Target); err != nil {
			return err
		}
		return r.makeCore(ctx, grubChain(r.sides.Env.UUID), grubUEFI())
	}
	res := r.plan.Result
	if res.RootUUID == "" {
		return fmt.Errorf("the root file system on %s has no UUID to boot from", res.RootDevice)
	}
	conf := bootConfig{name: r.job.Node, rootUUID: res.RootUUID, bootSep: res.BootPart != "", args: r.job.KernelArgs}
	embedded, err := r.loaderConfig(conf)
	if err != nil {
		return err
	}
	return r.makeCore(ctx, embedded, r.platforms()...)
}

// makeCore has the image's grub-mkimage make core images with a configuration inside.
func (r *Run) makeCore(ctx context.Context, embedded string, platforms ...grubPlatform) error {
	early := grubDir + "/early.cfg"
	if err := r.put(early, embedded, 0o600); err != nil {
		return err
	}
	for _, p := range platforms {
		argv := grubMkimage(p, early, coreImage(p))
		if out, err := r.chroot(ctx, argv...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", argv[0], err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// loaderConfig writes grub.cfg and returns what the core image has inside.
func (r *Run) loaderConfig(conf bootConfig) (embedded string, err error) {
	if r.sides != nil {
		return r.sidesLoader(conf)
	}
	if err := r.put(grubDir+"/grub.cfg", grubConfig(conf), 0o600); err != nil {
		return "", err
	}
	if !conf.bootSep {
		return grubEmbedded(conf.rootUUID, grubDir), nil
	}
	for _, p := range r.plan.Result.Partitions {
		if p.Mount == "/boot" {
			return grubEmbedded(p.UUID, "/grub"), nil
		}
	}
	return "", errors.New("/boot has no file system")
}

func coreImage(p grubPlatform) string { return grubDir + "/core-" + p.dir + ".img" }

// installAgent copies the running program, which is the agent, to where the
// boot loader's init= and later pushes find it.
func (r *Run) installAgent() error {
	if err := r.mkdir(filepath.Dir(agentPath), 0o700); err != nil {
		return err
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	return r.put(agentPath, string(self), 0o700)
}

// chroot returns a command that runs in the new system.
func (r *Run) chroot(ctx context.Context, argv ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Path = argv[0]
	c.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root", "DEBIAN_FRONTEND=noninteractive"}
	c.Dir = "/"
	c.SysProcAttr = &unix.SysProcAttr{Chroot: Target}
	c.WaitDelay = 10 * time.Second // for what it leaves running with our pipe open
	c.Err = nil                    // the path is looked up in the new root, not in ours
	if !strings.Contains(argv[0], "/") {
		for _, dir := range []string{"/usr/sbin/", "/usr/bin/", "/sbin/", "/bin/"} {
			if _, err := os.Stat(filepath.Join(Target, dir, argv[0])); err == nil {
				c.Path = dir + argv[0]
				break
			}
		}
	}
	return c
}

// activate makes the disk bootable, under BIOS and UEFI as far as the layout
// and the image allow: the last writes of an installation.
func (r *Run) activate() error {
	if r.job.Loader == sides.SystemdBoot {
		if err := r.activateSystemdBoot(); err != nil {
			return fmt.Errorf("install systemd-boot: %w", err)
		}
	}
	for _, p := range r.platforms() {
		core, err := os.ReadFile(filepath.Join(Target, coreImage(p)))
		if err != nil {
			return err
		}
		if p.dir == grubUEFI().dir {
			err = r.activateUEFI(core)
		} else {
			err = r.activateBIOS(core)
		}
		if err != nil {
			return fmt.Errorf("install GRUB for %s: %w", p.dir, err)
		}
	}
	return nil
}

// activateUEFI writes the path that firmware looks for when no boot entry
// names another (UEFI 2.10, 3.5.1.1) and that ingot's boot script chains to:
// the core image, or, where the image has them, Debian's shim and its GRUB,
// which firmware with Secure Boot takes. That GRUB reads EFI/debian/grub.cfg,
// and has every module that ours has. The boot script, which firmware with
// Secure Boot does not read, then chains to the core image in EFI/ingot.
func (r *Run) activateUEFI(core []byte) error {
	esp, err := r.esp()
	if err != nil {
		return err
	}
	if !r.signed() {
		return r.put(filepath.Join(esp, "EFI/BOOT/BOOTX64.EFI"), string(core), 0o700)
	}
	for _, f := range []struct{ from, to string }{
		{coreImage(grubUEFI()), "EFI/ingot/BOOTX64.EFI"}, {grubDir + "/early.cfg", "EFI/debian/grub.cfg"}, {signedGRUB, "EFI/BOOT/grubx64.efi"},
		{"/usr/lib/shim/mmx64.efi.signed", "EFI/BOOT/mmx64.efi"}, {signedShim, "EFI/BOOT/BOOTX64.EFI"}, // the last one: the disk boots
	} {
		text, err := os.ReadFile(filepath.Join(Target, f.from))
		if err != nil {
			return err
		}
		if err := r.put(filepath.Join(esp, f.to), string(text), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// esp is where the EFI system partition is mounted in the new system.
func (r *Run) esp() (string, error) {
	for _, m := range r.plan.Result.Mounts {
		if m.Device == r.plan.Result.ESPDevice {
			return m.Path, nil
		}
	}
	return "", fmt.Errorf("the EFI system partition %s is not mounted", r.plan.Result.ESPDevice)
}

// activateSystemdBoot writes the entry of the first side, and then what the
// firmware looks for. The boot script chains to a core image in EFI/ingot that
// starts the same: started by iPXE itself, systemd-boot looks for its entries
// where iPXE has no files.
func (r *Run) activateSystemdBoot() error {
	esp, err := r.esp()
	if err != nil {
		return err
	}
	if err := r.sides.NewEntries(filepath.Join(Target, esp), Target); err != nil {
		return err
	}
	for _, f := range []struct{ from, to string }{{coreImage(grubUEFI()), "EFI/ingot/BOOTX64.EFI"}, {systemdBoot, "EFI/BOOT/BOOTX64.EFI"}} {
		program, err := os.ReadFile(filepath.Join(Target, f.from))
		if err != nil {
			return err
		}
		if err := r.put(filepath.Join(esp, f.to), string(program), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// systemdBoot is of Debian's package systemd-boot-efi.
const systemdBoot = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"

// Files of Debian's packages shim-signed and grub-efi-amd64-signed.
const (
	signedShim = "/usr/lib/shim/shimx64.efi.signed"
	signedGRUB = "/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
)

// signed reports whether the image brings a boot loader for Secure Boot.
func (r *Run) signed() bool {
	_, shim := r.image.Lookup(strings.TrimPrefix(signedShim, "/"))
	_, grub := r.image.Lookup(strings.TrimPrefix(signedGRUB, "/"))
	return shim && grub
}

func (r *Run) activateBIOS(core []byte) error {
	boot, err := os.ReadFile(filepath.Join(Target, "usr/lib/grub", grubBIOS().dir, "boot.img"))
	if err != nil {
		return err
	}
	device := r.plan.Result.BootDevice
	var start, size int64
	for _, p := range r.plan.Result.Partitions {
		if p.Disk == device && strings.EqualFold(p.Type, biosBootGUID) {
			start, size = int64(p.Start), int64(p.Size)
		}
	}
	if size == 0 { // msdos: the gap between the boot sector and the first partition
		start, size = sector, 1<<20-sector
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	mbr := make([]byte, sector)
	if _, err := io.ReadFull(f, mbr); err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(grubEmbed(f, mbr, boot, core, start, size), f.Sync(), f.Close())
}

// biosBootGUID is the type of a BIOS boot partition (GNU GRUB manual, "BIOS installation").
const biosBootGUID = "21686148-6449-6E6F-744E-656564454649"
