package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/installer/netboot"
	"ingot/internal/digest"
)

func (p *program) installerCommand() *cli.Command {
	return noun("installer", "build the environment that installs machines",
		verb{name: "build", usage: "build kernel and initramfs of the installer", args: "[IMAGE]",
			about: `Builds what machines boot from the network to be installed: the kernel and modules of IMAGE, or
  of a kernel package, the tools that disk layouts need, and ingot-agent as /init. Arming a node
  does this by itself; here it can be done beforehand, or from another kernel. Equal content is
  built once and kept.`,
			examples: []string{"ingot installer build debian:12", "ingot installer build --kernel-deb linux-image-6.1.0-56-amd64.deb"},
			flags: []cli.Flag{&cli.StringFlag{Name: "kernel-deb", Usage: "take kernel and modules from this `FILE`"},
				jsonFlag()}, run: p.installerBuild}.command(),
	)
}

func (p *program) installerBuild(c *cli.Context) error {
	if err := wantArgs(c, 0, 1); err != nil {
		return err
	}
	if c.Args().Present() == c.IsSet("kernel-deb") {
		return usagef("installer build: name an image, or a kernel package with --kernel-deb")
	}
	w, err := openWorld(c)
	if err != nil {
		return err
	}
	defer w.Close()
	o := netboot.Options{KernelDeb: c.String("kernel-deb")}
	if c.Args().Present() {
		id, err := resolveImage(c.Context, w, c.Args().First())
		if err != nil {
			return err
		}
		if o, err = imageOptions(c.Context, w, id); err != nil {
			return err
		}
	}
	start := time.Now()
	res, err := p.buildNetboot(c.Context, w, o)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return p.printJSON(res)
	}
	how := "built in " + time.Since(start).Round(100*time.Millisecond).String()
	if res.Cached {
		how = "already built"
	}
	fmt.Fprintf(p.Stdout, "%s: kernel %s (%s), initramfs %s with %d modules, %s\n", res.Key.Short(), res.KernelVersion, size(res.KernelBytes), size(res.InitrdBytes), len(res.Modules), how)
	return nil
}

// imageOptions takes kernel and modules from an image.
func imageOptions(ctx context.Context, w *world, id digest.ID) (netboot.Options, error) {
	m, err := w.images.Manifest(ctx, id)
	if err != nil {
		return netboot.Options{}, err
	}
	return netboot.Options{Tree: imageTree{ctx, w.images, m}}, nil
}

func (p *program) buildNetboot(ctx context.Context, w *world, o netboot.Options) (*netboot.Result, error) {
	agent, err := p.agent(installerArch)
	if err != nil {
		return nil, err
	}
	o.Agent, o.Modules, o.Out = agent, append(o.Modules, w.Installer.Modules...), w.private("netboot")
	res, err := netboot.Build(ctx, o)
	if pkgs := netboot.MissingPackages(err); len(pkgs) > 0 {
		return nil, withHint(fmt.Errorf("build the installer: %w", err), "apt-get install %s", joinWords(pkgs))
	}
	if errors.Is(err, netboot.ErrNoKernel) {
		return nil, withHint(fmt.Errorf("build the installer: %w", err), "the image needs the package linux-image-amd64, or name a kernel with `ingot installer build --kernel-deb FILE`")
	}
	if err != nil {
		return nil, fmt.Errorf("build the installer: %w", err)
	}
	return res, nil
}
