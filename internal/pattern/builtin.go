package pattern

// NodeOwned is what belongs to a node however it is deployed: a push neither
// compares, changes nor deletes it. Package databases below /var/lib are not
// the node's: they say what the image has installed.
func NodeOwned() List {
	return must(
		"/etc/hostname", "/etc/machine-id", "/etc/ssh/ssh_host_*",
		"/home/**", "/root/.ssh/**",
		"/var/lib/**",
		"!/var/lib/dpkg/**", "!/var/lib/apt/extended_states", "!/var/lib/rpm/**",
	)
}

// Derived is what an installation makes for the machine that it is on: where
// its file systems are, how it boots, its network. The first push of a machine
// that ingot did not install finds such files there, and an image has those of
// another machine.
func Derived() List {
	return must(
		"/etc/fstab", "/etc/crypttab", "/etc/mdadm/mdadm.conf", "/etc/mdadm.conf", "/etc/lvm/backup/**", "/etc/lvm/archive/**", "/etc/lvm/devices/**",
		"/etc/initramfs-tools/conf.d/resume", "/etc/zfs/zpool.cache", "/etc/multipath/**",
		"/etc/default/grub", "/etc/default/grub.d/**", "/etc/kernel/cmdline", "/boot/grub/**", "/boot/grub2/**", "/boot/loader/**", "/boot/efi/**",
		"/etc/hosts", "/etc/resolv.conf", "/etc/network/interfaces", "/etc/network/interfaces.d/**", "/etc/netplan/**", "/etc/systemd/network/**",
		"/etc/NetworkManager/system-connections/**", "/etc/sysconfig/network-scripts/ifcfg-*", "/etc/sysconfig/network", "/etc/udev/rules.d/70-persistent-net.rules",
	)
}

// Kept is what is never ours to compare or delete, in a tree that is all the
// image's: ingot's own state, and what the file system put there.
func Kept() List { return must("/.ingot", "/lost+found") }

// Volatile is what a running system makes and forgets: neither captured nor
// compared nor deleted.
func Volatile() List { return Live().With(forgotten()) }

// Live is what no image of a running system holds: what the kernel makes, and
// what is gone after a reboot.
func Live() List {
	return must("/proc/**", "/sys/**", "/dev/**", "/run/**", "/.ingot", "/lost+found", "/tmp/**", "/var/tmp/**")
}

// forgotten is what a machine writes while it runs and does not miss.
func forgotten() List {
	return must(
		"/var/log/**", "/var/cache/**",
		"/var/lib/systemd/random-seed", "/var/lib/systemd/timers/**", "/var/lib/systemd/timesync/**",
		"/var/lib/dhcp/**", "/var/lib/NetworkManager/*lease*",
		"/root/.*_history", "/home/*/.*_history",
	)
}

// Seal is what makes a machine itself, and what it has written as such: a copy
// must not have it. Each installation makes anew what a node needs of these.
func Seal() List {
	return forgotten().With(must(
		"/etc/hostname", "/etc/machine-id", "/var/lib/dbus/machine-id", "/etc/ssh/ssh_host_*", "/etc/krb5.keytab",
		"/root/.ssh/**", "/root/.lesshst", "/root/.viminfo", "/home/*/.lesshst", "/home/*/.viminfo",
		"/etc/udev/rules.d/70-persistent-net.rules", "/etc/udev/rules.d/70-persistent-cd.rules",
		"/var/lib/systemd/credential.secret", "/var/lib/systemd/network/**", "/var/lib/urandom/random-seed",
		"/var/lib/NetworkManager/secret_key", "/var/lib/NetworkManager/timestamps", "/var/lib/NetworkManager/seen-bssids",
		"/var/lib/dhcpcd/**", "/var/lib/cloud/instance", "/var/lib/cloud/instances/**", "/var/lib/cloud/data/**", "/var/lib/cloud/sem/**",
	))
}

func must(texts ...string) List {
	l, err := Parse(texts)
	if err != nil {
		panic("BUG: built-in " + err.Error())
	}
	return l
}
