package installer

import (
	"fmt"
	"strings"

	"ingot/rollback/sides"
)

// sidesConfig renders grub.cfg of a node with two sides, for the file system
// of the environment block, which is $root. It decides as package sides says:
// a side that is to be tried is started once, and only if GRUB could write that
// down before. Where a side has no kernel that GRUB can start, it starts the
// one that was confirmed, then the other one (GRUB's fallback).
func sidesConfig(c bootConfig, roots map[string]sides.Device) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by ingot for %s; it chooses between two root file systems.\n", c.name)
	b.WriteString(grubTerminal(c.args))
	fmt.Fprintf(&b, `set timeout=1
set default=0
set env="($root)/%s"
set ingot_side=
set ingot_try=
load_env --file "$env" ingot_side ingot_try
if [ "$ingot_side" != b ]; then set ingot_side=a; fi
set side="$ingot_side"
set word=
if [ "$ingot_try" = a -o "$ingot_try" = b ]; then
  set try="$ingot_try"
  set ingot_try=
  if save_env --file "$env" ingot_try; then
    set side="$try"
    set word=%s
  fi
fi
if [ "$ingot_side" = a ]; then set fallback="1 2"; else set fallback="2 1"; fi
function start {
  if [ "$1" = a ]; then %[3]s; else %[4]s; fi
  set disk=
  search --no-floppy --fs-uuid --set=disk $uuid
  set kernel=
  set initrd=
  if [ -f ($disk)$top/vmlinuz -a -f ($disk)$top/initrd.img ]; then
    set kernel=($disk)$top/vmlinuz
    set initrd=($disk)$top/initrd.img
  else
    for k in ($disk)$top/boot/vmlinuz-*; do
      if regexp --set=1:version '^.*/vmlinuz-(.*)$' "$k"; then
        set kernel="$k"
        set initrd=
        for i in ($disk)$top/boot/initrd.img-$version ($disk)$top/boot/initramfs-$version.img ($disk)$top/boot/initrd-$version; do
          if [ -f "$i" ]; then set initrd="$i"; fi
        done
      fi
    done
  fi
  linux "$kernel" root=UUID=$uuid $flags rw %[5]s panic=10 init=/.ingot/agent %[6]s$1 $2
  if [ -n "$initrd" ]; then initrd "$initrd"; fi
}
`, sides.EnvFile, sides.TryWord, grubSide(roots[sides.A]), grubSide(roots[sides.B]), grubArgs(c.args), sides.SideWord)
	fmt.Fprintf(&b, "menuentry %q { start \"$side\" \"$word\" }\n", c.name)
	for _, s := range []string{sides.A, sides.B} {
		fmt.Fprintf(&b, "menuentry %q { start %s }\n", c.name+" (side "+s+")", s)
	}
	return b.String()
}

// sidesEmbedded is the configuration inside the core image: it reads on where
// the environment block is, and does without where that cannot be read.
func sidesEmbedded(envUUID, config string) string {
	return fmt.Sprintf("search --no-floppy --fs-uuid --set=root %s\nset prefix=($root)/ingot\nif [ -f $prefix/grub.cfg ]; then configfile $prefix/grub.cfg; fi\n%s", envUUID, config)
}

// grubSide sets what start needs to know of a side.
func grubSide(d sides.Device) string {
	top := ""
	if d.Subvol != "" {
		top = "/" + d.Subvol
	}
	return fmt.Sprintf("set uuid=%s; set top=%s; set flags=%q", d.UUID, top, d.RootFlags())
}
