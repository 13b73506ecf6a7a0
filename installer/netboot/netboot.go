// Package netboot builds the environment that a machine boots from the network: a kernel, and an
// initramfs with the modules of that kernel, the tools of the installer with their library closure, and
// ingot-agent as /init.
//
// Build does it. The kernel and its modules come from an unpacked Debian root (a Tree: a directory, or an
// image of the store) or from a kernel's package; the tools come from the server. Equal content gives
// equal bytes, and a result is kept under the digest of its content. On the node, package modload loads
// the modules.
package netboot

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"slices"
	"time"

	"ingot/internal/digest"
	"ingot/internal/slogx"
)

// formatVersion changes whenever equal content would be laid out in another way.
const formatVersion = "netboot 1"

// ErrNoKernel says that a tree has no boot/vmlinuz-VERSION with a lib/modules/VERSION.
var ErrNoKernel = errors.New("no kernel with modules")

// Options say what to build.
type Options struct {
	Tree      Tree   // holds boot/vmlinuz-* and lib/modules/VERSION; or:
	KernelDeb string // a linux-image-*.deb; needs dpkg-deb

	Version          string            // of the kernel; "" is the newest of the tree
	Agent            []byte            // static program that becomes /init
	Tools            []string          // names or absolute paths; nil is DefaultTools
	Modules          []string          // beyond the default ones; missing ones are an error
	NoDefaultModules bool              // Modules and what they need is all
	Files            map[string][]byte // more files by path, mode 0644
	HostRoot         string            // where the tools are taken from; "" is "/"
	Out              string            // directory of results; made when missing
	Log              *slog.Logger      // nil discards
}

// Result is a built environment. Paths are below Options.Out.
type Result struct {
	Kernel        string    `json:"kernel"`
	Initrd        string    `json:"initrd"`
	KernelVersion string    `json:"kernel_version"`
	Key           digest.ID `json:"key"`            // of the content
	KernelDigest  digest.ID `json:"kernel_digest"`  // of the file Kernel
	InitrdDigest  digest.ID `json:"initrd_digest"`  // of the file Initrd
	KernelBytes   int64     `json:"kernel_bytes"`   //
	InitrdBytes   int64     `json:"initrd_bytes"`   //
	UnpackedBytes int64     `json:"unpacked_bytes"` // of the initramfs: what it takes of a node's memory
	Modules       []string  `json:"modules"`        // names, sorted
	Missing       []string  `json:"missing"`        // default modules that the kernel has neither built in nor as a module
	Cached        bool      `json:"-"`              // was there already
}

// Build builds the environment, or finds it in Out. A missing tool is a *MissingToolError; all of them
// are reported at once.
func Build(ctx context.Context, o Options) (*Result, error) {
	begin := time.Now()
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("build netboot environment: %w", err)
	}
	res, err := build(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("build netboot environment: %w", err)
	}
	slogx.Or(o.Log).Info("netboot environment", "kernel", res.KernelVersion, "key", res.Key.Short(), "cached", res.Cached,
		slogx.Bytes, res.InitrdBytes, "unpacked", res.UnpackedBytes, "modules", len(res.Modules), slogx.Dur, time.Since(begin))
	return res, nil
}

func (o *Options) check() error {
	switch {
	case (o.Tree == nil) == (o.KernelDeb == ""):
		return errors.New("give a tree or a kernel package")
	case len(o.Agent) == 0:
		return errors.New("no program for /init")
	case o.Out == "":
		return errors.New("no directory for the result")
	}
	if f, err := elf.NewFile(bytes.NewReader(o.Agent)); err == nil && interpreter(f) != "" {
		return fmt.Errorf("the program for /init is not static: it needs %q", interpreter(f))
	}
	if o.HostRoot == "" {
		o.HostRoot = "/"
	}
	if o.Tools == nil {
		o.Tools = DefaultTools()
	}
	return os.MkdirAll(o.Out, 0o755)
}

func build(ctx context.Context, o Options) (*Result, error) {
	tree := o.Tree
	if tree == nil {
		var err error
		if tree, err = unpackDeb(ctx, o.KernelDeb, o.Out); err != nil {
			return nil, err
		}
	}
	k, err := findKernel(tree, o.Version)
	if err != nil {
		return nil, err
	}
	vmlinuz, err := readTree(tree, k.image)
	if err != nil {
		return nil, err
	}
	l := make(layout)
	if err := userland(l, o); err != nil {
		return nil, err
	}
	mods, err := modules(ctx, k, o)
	if err != nil {
		return nil, err
	}
	if err := mods.writeTo(l); err != nil {
		return nil, err
	}
	res := &Result{
		KernelVersion: k.version, KernelDigest: digest.Of(vmlinuz), KernelBytes: int64(len(vmlinuz)), Missing: mods.missing,
		Key: l.digest([]byte(formatVersion), []byte(k.version), vmlinuz),
	}
	for _, m := range mods.sorted() {
		res.Modules = append(res.Modules, m.Name)
	}
	return keep(ctx, o.Out, res, vmlinuz, l)
}

// userland puts in everything but the modules.
func userland(l layout, o Options) error {
	c := newClosure(o.HostRoot, l)
	l.skeleton()
	var errs []error
	for _, tool := range o.Tools {
		errs = append(errs, c.tool(tool))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if slices.ContainsFunc(o.Tools, func(t string) bool { return path.Base(t) == "busybox" }) {
		l.link("bin/sh", "busybox")
	}
	l.file("init", 0o755, o.Agent)
	l.link("usr/bin/ingot-agent", "/init")
	for name, body := range o.Files {
		l.file(path.Clean("/" + name)[1:], 0o644, body)
	}
	return nil
}

// modules chooses the modules.
func modules(ctx context.Context, k *kernel, o Options) (*moduleSet, error) {
	set, err := newModuleSet(k)
	if err != nil {
		return nil, err
	}
	if !o.NoDefaultModules {
		if err := set.add(ctx, DefaultModules(), false); err != nil {
			return nil, err
		}
	}
	if err := set.add(ctx, o.Modules, true); err != nil {
		return nil, err
	}
	slices.Sort(set.missing)
	set.missing = slices.Compact(set.missing)
	return set, nil
}
