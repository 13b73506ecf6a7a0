package main

import (
	"context"
	"errors"
	"fmt"

	"ingot/classes"
	"ingot/classes/disks"
	"ingot/installer"
	"ingot/installer/netboot"
	"ingot/internal/digest"
	"ingot/inventory"
	"ingot/site"
)

// armer arms nodes for installation.
type armer struct {
	// config
	p *program
	w *world

	// state
	built map[string]string // image and file systems -> key of the environment that installs them
}

// arm verifies everything that an installation needs, and only then lets the
// next network boot of n install.
func (a *armer) arm(ctx context.Context, n *site.Node, ref string) (string, error) {
	w := a.w
	if n.BootNIC() == nil && n.Serial == "" && n.UUID == "" {
		return "", withHint(errors.New("nothing tells the machine: it has no MAC, serial or UUID"), "add its card: nics: in %s", n.File())
	}
	prof, err := resolveProfile(w.Site, n)
	if err != nil {
		return "", err
	}
	if ref == "" {
		ref = prof.Profile.Image
	}
	if ref == "" {
		return "", withHint(errors.New("its classes name no image"), "set image: in profile/CLASS.yaml, or use --image")
	}
	if _, err := sidesOf(&prof.Profile); err != nil {
		return "", err
	}
	if prof.Disk == nil {
		return "", withHint(errors.New("none of its classes has a disk_config"), "write disk_config/DEFAULT; `ingot init` shows an example")
	}
	release, err := a.p.shareImages(ctx, w)
	if err != nil {
		return "", err
	}
	defer release()
	id, err := resolveImage(ctx, w, ref)
	if err != nil {
		return "", err
	}
	if arch, err := archOfImage(ctx, w.images, id); err != nil {
		return "", err
	} else if arch != "" && arch != installerArch {
		return "", fmt.Errorf("image %q is for %s: the installer is for %s", ref, arch, installerArch)
	}
	if err := w.images.VerifyCached(ctx, id); err != nil {
		return "", fmt.Errorf("image %q cannot be installed: %w", ref, err)
	}
	if _, err := renderOverlay(ctx, w, n, prof, id); err != nil {
		return "", err
	}
	if prof.Profile.HostKeys != "image" {
		if _, err := w.hostKeys(ctx, n.Name); err != nil {
			return "", err
		}
	}
	key, err := a.build(ctx, id, prof.Disk)
	if err != nil {
		return "", err
	}
	return ref, w.state.Arm(ctx, n.Name, ref, id.String(), key, operator())
}

// build makes the environment that installs an image on disks with these file
// systems, once for all nodes that need the same, and returns its key.
func (a *armer) build(ctx context.Context, image digest.ID, disk *classes.DiskConfig) (string, error) {
	layout, err := disks.Parse(disk.File, disk.Text)
	if err != nil {
		return "", err
	}
	tools, modules := installer.FormatTools(layout)
	need := fmt.Sprint(image, tools, modules)
	if key := a.built[need]; key != "" {
		return key, nil
	}
	o := netboot.Options{KernelDeb: a.w.Installer.Kernel}
	if o.KernelDeb == "" {
		if o, err = imageOptions(ctx, a.w, image); err != nil {
			return "", err
		}
	}
	o.Tools, o.Modules = append(netboot.DefaultTools(), tools...), modules
	env, err := a.p.buildNetboot(ctx, a.w, o)
	if err != nil {
		return "", err
	}
	a.built[need] = env.Key.String()
	return a.built[need], nil
}

// disarm makes a node boot its disk again.
func disarm(ctx context.Context, w *world, node string) error {
	err := w.state.Disarm(ctx, node, operator())
	if errors.Is(err, inventory.ErrNotArmed) {
		return withHint(err, "a node can be disarmed until its disk is written; `ingot node show %s`", node)
	}
	return err
}
