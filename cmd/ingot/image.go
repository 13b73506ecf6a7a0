package main

import (
	"cmp"
	"strings"

	"github.com/urfave/cli/v2"

	"ingot/internal/manifest"
)

func (p *program) imageCommand() *cli.Command {
	return noun("image", "make, show, compare, verify and remove golden images",
		verb{name: "build", usage: "build an image of a Debian release", args: "NAME",
			about: `Builds a Debian tree with mmdebstrap and stores it as image NAME (name or name:tag). Besides
  --include it holds what a node needs to boot and to be managed: Debian's ordinary kernel with a
  generic initramfs, systemd, GRUB for BIOS and UEFI, and the SSH server. Host keys and machine-id
  are left out: each node gets its own.`,
			examples: []string{"ingot image build debian:12 --debian bookworm", "ingot image build web:1 --debian bookworm --include nginx-light,rsync",
				`ingot image build web:1 --debian bookworm --hook 'echo hello > "$1/etc/motd"'`},
			flags: []cli.Flag{
				&cli.StringFlag{Name: "debian", Usage: "the release's `SUITE`: bookworm, trixie"},
				&cli.StringSliceFlag{Name: "include", Usage: "more `PACKAGES`, separated by commas; may be repeated"},
				&cli.StringFlag{Name: "mirror", Usage: "`URL` of the Debian mirror", DefaultText: "mmdebstrap's"},
				&cli.StringSliceFlag{Name: "hook", Usage: "a shell `COMMAND` that changes the finished tree, whose top is $1; may be repeated"},
				jsonFlag(),
			}, run: p.imageBuild}.command(),
		p.captureVerb().command(),
		p.imageListVerb(), p.imageShowVerb(),
		verb{name: "verify", usage: "read every byte of the images and check it", args: "[IMAGE]",
			about: `Reads every byte of one image, or of the whole store, and names what is damaged, which images, files and
  nodes it concerns. With --repair, damaged packs are taken out of use, so that the next capture or build of
  an image stores their content anew; without, it would find it in the index, and leave it out. What
  is taken out of use stays in the store's directory damaged/.`,
			examples: []string{"ingot image verify", "ingot image verify web:2", "ingot image verify --repair"},
			flags:    []cli.Flag{&cli.BoolFlag{Name: "repair", Usage: "take damaged packs out of use"}, jsonFlag()}, run: p.imageVerify}.command(),
		p.imageDiffVerb(), p.imageTagVerb(), p.imageRmVerb(), p.imagePruneVerb(),
	)
}

// kernelOf returns the version of the newest kernel in a tree.
func kernelOf(m *manifest.Manifest) string {
	var newest string
	for _, e := range m.Entries {
		v, ok := strings.CutPrefix(e.Path, "boot/vmlinuz-")
		if ok && !strings.Contains(v, "/") && compareVersions(v, newest) > 0 {
			newest = v
		}
	}
	return newest
}

// compareVersions compares runs of digits by value and the rest by bytes:
// 6.1.0-9 comes before 6.1.0-10.
func compareVersions(a, b string) int {
	isDigit := func(r rune) bool { return r >= '0' && r <= '9' }
	run := func(s string) (digits bool, head, rest string) {
		digits = isDigit(rune(s[0]))
		n := strings.IndexFunc(s, func(r rune) bool { return isDigit(r) != digits })
		if n < 0 {
			n = len(s)
		}
		return digits, s[:n], s[n:]
	}
	for a != "" && b != "" {
		var c int
		var da, db bool
		var x, y string
		da, x, a = run(a)
		db, y, b = run(b)
		if da && db {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			c = cmp.Compare(len(x), len(y))
		}
		if c = cmp.Or(c, strings.Compare(x, y)); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(a), len(b))
}
