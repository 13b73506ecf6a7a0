package units

import (
	"path"

	"ingot/internal/systemd"
)

// hold is a kind of units that are never restarted by themselves.
type hold struct {
	pattern string // of path.Match, on the name of the unit
	why     string
	reboot  bool // what it runs stays old until the next boot
}

// holds are those of needrestart(1), as far as a restart would take the node, its logins or its containers down.
func holds() []hold {
	const (
		bus    = "all that speaks on the bus would have to be restarted with it"
		login  = "logins would end"
		screen = "the session on the screen would end"
		links  = "the network would go down"
		roots  = "file systems may be on it"
		guests = "containers or machines may end with it"
	)
	return []hold{
		{"init.scope", "it is process 1", true},
		{"dbus.service", bus, true}, {"dbus-broker.service", bus, true},
		{"systemd-logind.service", login, true}, {"user@*.service", login, false}, {"user-runtime-dir@*.service", login, false},
		{"getty@*.service", login, false}, {"serial-getty@*.service", login, false}, {"console-getty.service", login, false},
		{"container-getty@*.service", login, false}, {"emergency.service", login, false}, {"rescue.service", login, false},
		{"display-manager.service", screen, false}, {"gdm*.service", screen, false}, {"lightdm.service", screen, false},
		{"sddm.service", screen, false}, {"xdm.service", screen, false}, {"lxdm.service", screen, false}, {"wdm.service", screen, false},
		{"kdm.service", screen, false}, {"nodm.service", screen, false}, {"slim.service", screen, false}, {"greetd.service", screen, false},
		{"networking.service", links, false}, {"network.service", links, false}, {"NetworkManager.service", links, false},
		{"wpa_supplicant*.service", links, false}, {"openvpn*.service", links, false}, {"ifup@*.service", links, false}, {"wg-quick@*.service", links, false},
		{"open-iscsi.service", roots, true}, {"iscsid.service", roots, true}, {"multipathd.service", roots, true}, {"zfs-*.service", roots, true},
		{"docker.service", guests, false}, {"containerd.service", guests, false}, {"lxc*.service", guests, false}, {"libvirt-guests.service", guests, false},
	}
}

// heldBack says why a unit is not restarted by itself, and whether it then needs a reboot; "" for one that may be.
func heldBack(name string, s *state, own string) (why string, reboot bool) {
	if name == own {
		return "ingot runs in it", false
	}
	for _, h := range holds() {
		if ok, _ := path.Match(h.pattern, name); ok {
			return h.why, h.reboot
		}
	}
	switch suffix := systemd.Suffix(name); suffix {
	case ".service", ".timer", ".path":
	default:
		return "a " + suffix[min(1, len(suffix)):] + " is not restarted", false
	}
	if s == nil {
		return "", false
	}
	if s.refuses {
		return "it refuses to be restarted by hand", true
	}
	// Without pam_systemd the logins are in the group of sshd, which all distributions then keep by KillMode=process.
	if (name == "ssh.service" || name == "sshd.service") && s.killMode != "process" {
		return "logins may end with it (KillMode=" + s.killMode + ")", false
	}
	return "", false
}
