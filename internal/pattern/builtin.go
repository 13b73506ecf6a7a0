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

// Kept is what is never ours to compare or delete, in a tree that is all the
// image's: ingot's own state, and what the file system put there.
func Kept() List { return must("/.ingot", "/lost+found") }

// Volatile is what a running system makes and forgets: neither captured nor
// compared nor deleted.
func Volatile() List {
	return must(
		"/proc/**", "/sys/**", "/dev/**", "/run/**", "/.ingot", "/lost+found",
		"/tmp/**", "/var/tmp/**", "/var/log/**", "/var/cache/**",
		"/var/lib/systemd/random-seed", "/var/lib/systemd/timers/**", "/var/lib/systemd/timesync/**",
		"/var/lib/dhcp/**", "/var/lib/NetworkManager/*lease*",
		"/root/.*_history", "/home/*/.*_history",
	)
}

func must(texts ...string) List {
	l, err := Parse(texts)
	if err != nil {
		panic("BUG: built-in " + err.Error())
	}
	return l
}
