package installer

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Boot is what the boot script tells the installer on the kernel's command line.
type Boot struct {
	Server string           // ingot.server=http://HOST:PORT
	Node   string           // ingot.node=NAME
	Nonce  string           // ingot.nonce=, names the boot attempt
	MAC    net.HardwareAddr // ingot.mac=, the NIC that was booted from
	Shell  bool             // ingot.shell: a shell on the console after a failure
	// Patience is how long a server that does not answer is waited for:
	// ingot.patience=SECONDS; 0 is the constant Patience.
	Patience time.Duration
}

// Args returns b as kernel arguments, the reverse of ParseBoot.
func (b Boot) Args() []string {
	out := []string{"ingot.server=" + b.Server, "ingot.node=" + b.Node, "ingot.nonce=" + b.Nonce, "ingot.mac=" + b.MAC.String()}
	if b.Shell {
		out = append(out, "ingot.shell")
	}
	if b.Patience > 0 {
		out = append(out, fmt.Sprintf("ingot.patience=%d", int(b.Patience.Seconds())))
	}
	return out
}

// ParseBoot reads a kernel command line (proc(5), /proc/cmdline).
func ParseBoot(cmdline string) (Boot, error) {
	var b Boot
	for _, word := range strings.Fields(cmdline) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "ingot.server":
			b.Server = value
		case "ingot.node":
			b.Node = value
		case "ingot.nonce":
			b.Nonce = value
		case "ingot.shell":
			b.Shell = true
		case "ingot.patience":
			n, err := strconv.ParseUint(value, 10, 31)
			if err != nil {
				return Boot{}, fmt.Errorf("kernel argument %q: want seconds", word)
			}
			b.Patience = time.Duration(n) * time.Second
		case "ingot.mac":
			mac, err := net.ParseMAC(value)
			if err != nil {
				return Boot{}, fmt.Errorf("kernel argument %q: %w", word, err)
			}
			b.MAC = mac
		}
	}
	u, err := url.Parse(b.Server)
	switch {
	case err != nil:
		return Boot{}, fmt.Errorf("kernel argument ingot.server: %w", err)
	case b.Server == "" || b.Node == "" || b.Nonce == "" || b.MAC == nil:
		return Boot{}, fmt.Errorf("kernel command line %q lacks ingot.server=, ingot.node=, ingot.nonce= or ingot.mac=: boot through ingot's boot script", strings.TrimSpace(cmdline))
	case u.Scheme != "http" || u.Host == "":
		return Boot{}, fmt.Errorf("kernel argument ingot.server=%s: want http://HOST:PORT", b.Server)
	}
	return b, nil
}
