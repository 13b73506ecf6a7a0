package classes

import (
	"strings"
	"testing"
)

// Sides belong to update: slots, which needs all of them.
func TestSidesAndSlots(t *testing.T) {
	const base = "boot: image\nimage: a:1\n"
	for name, tt := range map[string]struct{ text, want string }{
		"good":    {base + "update: slots\nsides: {other: /b, shared: /c, env: /d}\n", ""},
		"live":    {base + "sides: {other: /b}\n", "only nodes with update: slots or btrfs"},
		"missing": {base + "update: slots\nsides: {other: /b, shared: /c}\n", "needs sides.env"},
		"loader":  {base + "update: slots\nloader: none\nsides: {other: /b, shared: /c, env: /d}\n", "needs loader: grub or systemd-boot"},
		"sd-boot": {base + "update: slots\nloader: systemd-boot\nsides: {other: /b, shared: /c, env: /d}\n", ""},
		"live sd": {base + "loader: systemd-boot\n", "use grub"},
		"btrfs":   {base + "update: btrfs\nsides: {env: /d}\n", ""},
		"parts":   {base + "update: btrfs\nsides: {env: /d, shared: /c}\n", "remove sides.shared"},
		"no env":  {base + "update: btrfs\n", "needs sides.env"},
		"root":    {base + "update: slots\nsides: {other: /, shared: /c, env: /d}\n", "/ is the first root already"},
	} {
		s := space(t, map[string]string{"profile/DEFAULT.yaml": tt.text, "disk_config/DEFAULT": "disk_config disk1\nprimary / 1G- ext4 rw\n"})
		_, err := s.Resolve("n1", nil)
		if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}
