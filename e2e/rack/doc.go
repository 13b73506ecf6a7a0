// Package rack tries ingot as a whole on real firmware: QEMU machines in a rack of the lab, driven by the public commands.
package rack
