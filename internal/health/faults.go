package health

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"ingot/internal/problem"
	"ingot/internal/systemd"
)

// A Fault is what is wrong with a check. Key is the YAML key that says it, "" for the check as a whole.
type Fault struct {
	Key  string
	Text string // lower case, no full stop
}

// maxLabel is the longest name of a check, in bytes.
const maxLabel = 80

// stand is a host name that URLs may hold, in place of Address, which they may not. It is nobody's: RFC 6761, section 6.4.
const stand = "address.invalid"

// Faults judges a check; none means that it can be run.
func (c Check) Faults() []Fault {
	var f faults
	f.kind(c)
	f.one(c)
	f.add(c.Status != 0 && c.HTTP == "", "status", "status belongs to http")
	f.add(c.Status != 0 && (c.Status < 200 || c.Status > 599), "status", "%d is not a status that a request ends with, 200 to 599 (RFC 9110, section 15)", c.Status)
	f.add(c.Insecure && !strings.HasPrefix(c.HTTP, "https://"), "insecure", "insecure belongs to an URL that begins with https://")
	f.times(c)
	f.origin(c)
	f.add(len(c.Name) > maxLabel || strings.TrimSpace(c.Name) != c.Name || strings.ContainsFunc(c.Name, unprintable), "name",
		"%q is not a name: at most %d printable bytes, no space at its ends", c.Name, maxLabel)
	return f
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

type faults []Fault

func (f *faults) add(wrong bool, key, format string, args ...any) {
	if wrong {
		*f = append(*f, Fault{key, fmt.Sprintf(format, args...)})
	}
}

func (f *faults) err(err error, key string) {
	if err != nil {
		f.add(true, key, "%v", err)
	}
}

func (f *faults) kind(c Check) {
	n := 0
	for _, x := range []string{c.Unit, c.TCP, c.HTTP, c.Exec} {
		if x != "" {
			n++
		}
	}
	f.add(n != 1, "", "a check is one of {unit: NAME}, {tcp: HOST:PORT}, {http: URL}, {exec: COMMAND}")
}

func (f *faults) one(c Check) {
	if c.Unit != "" {
		f.err(systemd.CheckName(c.Unit), "unit")
	}
	if c.TCP != "" {
		_, err := hostPort(c.TCP)
		f.err(err, "tcp")
	}
	if c.HTTP != "" {
		_, err := hostOfURL(c.HTTP)
		f.err(err, "http")
	}
	f.add(c.Exec != "" && strings.TrimSpace(c.Exec) == "" || strings.Contains(c.Exec, "\x00"), "exec", "%q is not a command", c.Exec)
}

func (f *faults) times(c Check) {
	for key, d := range map[string]time.Duration{"timeout": c.Timeout, "retry_for": c.RetryFor} {
		f.add(d < 0 || d > Longest, key, "%s: %s is not a time between 0 and %s", key, d, Longest)
	}
	f.add(c.Unit != "" && c.Timeout > 0 && c.Timeout <= settle, "timeout", "timeout: %s is too short: a unit is watched for %s", c.Timeout, settle)
}

func (f *faults) origin(c Check) {
	all := []string{Node, Controller}
	switch {
	case c.From == "" || c.From == Node:
		return
	case c.From != Controller:
		f.add(true, "from", "from: %q is not one of %s%s", c.From, strings.Join(all, ", "), problem.Hint(c.From, all))
		return
	case c.TCP == "" && c.HTTP == "":
		f.add(true, "from", "from: controller belongs to tcp and http: the others look at the node itself")
		return
	}
	if host, err := hostPort(c.TCP); c.TCP != "" && err == nil {
		f.add(isOwn(host), "tcp", "%q would be the server itself: write %s for the node", host, Address)
	}
	if host, err := hostOfURL(c.HTTP); c.HTTP != "" && err == nil {
		f.add(isOwn(host), "http", "%q would be the server itself: write %s for the node", host, Address)
	}
}

// hostPort returns the host of HOST:PORT.
func hostPort(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil || !isHost(host) {
		return "", fmt.Errorf("%q is not HOST:PORT, such as 127.0.0.1:22, [::1]:22 or %s:22", s, Address)
	}
	return host, isPort(port)
}

func isPort(s string) error {
	if n, err := strconv.ParseUint(s, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q is not a port, 1 to 65535", s)
	}
	return nil
}

// CheckURL says what is wrong with an URL that is to be asked. It may have
// Address as its host.
func CheckURL(s string) error {
	_, err := hostOfURL(s)
	return err
}

// hostOfURL returns the host of an URL.
func hostOfURL(s string) (string, error) {
	u, err := url.Parse(strings.ReplaceAll(s, Address, stand))
	var ue *url.Error
	if errors.As(err, &ue) {
		return "", fmt.Errorf("%q is not an URL: %w", s, ue.Err)
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return "", fmt.Errorf("%q is not an URL that begins with http:// or https://", s)
	}
	host, n := u.Hostname(), 0
	if host == stand {
		host, n = Address, 1
	}
	switch {
	case !isHost(host):
		return "", fmt.Errorf("%q is not an URL with a host, such as http://localhost/", s)
	case strings.Count(s, Address) != n:
		return "", fmt.Errorf("%q: %s stands for the host only", s, Address)
	case u.User != nil:
		return "", fmt.Errorf("the URL of %q holds a user or password, which reports would show: use a command", host)
	case u.Port() != "" || strings.HasSuffix(u.Host, ":"):
		return host, isPort(u.Port())
	}
	return host, nil
}

// isHost: an IP address, a host name (RFC 1123, section 2.1, and the underscores that people use), or Address.
func isHost(s string) bool {
	const chars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	if _, err := netip.ParseAddr(s); err == nil || s == Address {
		return true
	}
	return s != "" && len(s) <= 253 && strings.Trim(s, chars) == "" && !strings.HasPrefix(s, ".") &&
		!strings.HasPrefix(s, "-") && !strings.Contains(s, "..") && strings.Trim(s, "0123456789.") != ""
}

// isOwn says whether a host is always the machine that asks.
func isOwn(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && (ip.IsLoopback() || ip.IsUnspecified()) || isLocalhost(host)
}

// isLocalhost: RFC 6761, section 6.3.
func isLocalhost(host string) bool {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}
