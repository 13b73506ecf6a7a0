// Package sides is about nodes with two root file systems, of which one runs: which of them starts, which is tried once, and what both share.
//
// A side is a root file system of its own: "a" or "b". What is the node's own
// (homes, data of services, logs) is on a third file system, the shared one,
// and appears in both by bind mounts that the agent makes before init. These
// three are partitions, or subvolumes of one btrfs. One more partition, small
// and without a journal, holds the environment block of the boot loader.
//
// The boot loader starts Env.Side, unless Env.Try names a side: that it starts
// once, after it has emptied Env.Try on the disk. So whatever becomes of a side
// that is tried, the next start is one of the side that was confirmed.
package sides

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"ingot/internal/durable"
)

// Names of the sides.
const (
	A = "a"
	B = "b"
)

// Other is the side that name is not.
func Other(name string) string {
	if name == A {
		return B
	}
	return A
}

// Subvolumes at the top of a btrfs, besides those of the sides.
const (
	SharedSubvol = "@shared"
	NextSubvol   = "@next" // what a push prepares: it becomes the other side in one step
)

// Subvol is the name of a side's subvolume.
func Subvol(side string) string { return "@" + side }

// Words of the kernel's command line by which the boot loader says what it started.
const (
	SideWord = "ingot.side=" // and a name
	TryWord  = "ingot.try"   // the side is tried
)

// Places in a side.
const (
	configFile = ".ingot/sides.json"
	SharedDir  = ".ingot/shared"    // where the shared file system is mounted
	treesDir   = "trees"            // of the shared file system: what appears in the sides
	trialFile  = "ingot/trial.json" // of the shared file system
)

// Device is a file system and how to find it.
type Device struct {
	FSType string `json:"fstype"`
	UUID   string `json:"uuid"`             // as blkid(8) prints it
	Subvol string `json:"subvol,omitempty"` // btrfs: the subvolume

	// Options of mount(8) for the root of a side, besides the subvolume, as the disk_config has them.
	Options string `json:"options,omitempty"`
}

// RootFlags are the words of the kernel's command line by which an initramfs
// mounts a root with its options; rw is said apart.
func (d Device) RootFlags() string {
	var options []string
	if d.Subvol != "" {
		options = append(options, "subvol="+d.Subvol)
	}
	for _, o := range strings.Split(d.Options, ",") {
		if !slices.Contains([]string{"", "-", "rw", "ro", "defaults", "auto", "noauto"}, o) {
			options = append(options, o)
		}
	}
	if len(options) == 0 {
		return ""
	}
	return "rootflags=" + strings.Join(options, ",")
}

// Config says what the sides of a node are. Each side has it, with its own name.
type Config struct {
	Side   string            `json:"side"`  // the one that it is on
	Roots  map[string]Device `json:"roots"` // of both
	Shared Device            `json:"shared"`
	Env    Device            `json:"env"`
	Trees  []string          `json:"trees"`         // directories that both sides share, such as "home", parents first
	Own    []string          `json:"own,omitempty"` // directories in these that each side has for itself, such as "var/lib/dpkg"

	Loader string   `json:"loader,omitempty"` // GRUB or SystemdBoot; "" is GRUB
	Title  string   `json:"title,omitempty"`  // systemd-boot: what its menu calls the node
	Args   []string `json:"args,omitempty"`   // systemd-boot: of the kernel, from the profile
}

// Read reads the configuration of the side whose top is dir. A tree that is no
// side has none: fs.ErrNotExist.
func Read(dir string) (*Config, error) {
	b, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		return nil, err
	}
	c := &Config{}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, configFile), err)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, configFile), err)
	}
	return c, nil
}

func (c *Config) check() error {
	if c.Side != A && c.Side != B {
		return fmt.Errorf("%q is no side", c.Side)
	}
	for _, name := range []string{A, B} {
		if c.Roots[name].UUID == "" {
			return fmt.Errorf("side %s has no root", name)
		}
	}
	if c.Shared.UUID == "" || c.Env.UUID == "" {
		return errors.New("the shared file system, or that of the boot loader's environment, is missing")
	}
	for _, list := range [][]string{c.Trees, c.Own} {
		for _, path := range list {
			if !fs.ValidPath(path) || path == "." || strings.HasPrefix(path, ".ingot") {
				return fmt.Errorf("%q is no directory that sides can share", path)
			}
		}
	}
	return nil
}

// Subvolumes reports whether the sides are subvolumes of one btrfs.
func (c *Config) Subvolumes() bool { return c.Shared.Subvol != "" }

// On is the configuration for the side name.
func (c *Config) On(name string) *Config {
	out := *c
	out.Side = name
	return &out
}

// Write puts the configuration onto the side whose top is dir, durably.
func (c *Config) Write(dir string) error {
	if err := c.check(); err != nil {
		return err
	}
	b, err := json.MarshalIndent(c, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, ".ingot"), 0o700); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, configFile), append(b, '\n'), 0o600)
}
