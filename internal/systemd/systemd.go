// Package systemd asks and tells the systemd of a node, by way of systemctl: it comes with systemd, of the same
// version, and speaks to process 1 directly where the message bus is down.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"ingot/internal/command"
)

// ErrMissing says that a node has no systemctl.
var ErrMissing = errors.New("no systemctl on this node")

// maxShow bounds what systemctl may print: 16 MiB are some thousand units.
const maxShow = 16 << 20

// Manager is the systemd of a node. The zero value is that of a node as it is
// installed; it is immutable and safe for concurrent use.
type Manager struct {
	Systemctl string // its path; "" is /usr/bin/systemctl, else /bin/systemctl
}

// Properties are those of one unit, by name, as `systemctl show` prints them. A property with
// several values, such as ExecStart, has a line for each.
type Properties map[string]string

// Show returns properties of units, one element a unit in the order of asking. A unit that does not exist has
// LoadState=not-found. A name may be a pattern as in glob(7): it stands for the units that are loaded.
func (m Manager) Show(ctx context.Context, limit time.Duration, properties []string, units ...string) ([]Properties, error) {
	out := &command.Ends{Keep: maxShow / 2}
	args := append([]string{"show", "--property=" + strings.Join(properties, ","), "--"}, units...)
	if err := m.run(ctx, limit, out, args); err != nil {
		return nil, err
	}
	if out.Lost() > 0 {
		return nil, fmt.Errorf("systemctl show: printed more than %d bytes", maxShow)
	}
	return ParseShow(out.Bytes()), nil
}

// Do carries out one of systemctl's verbs on units and waits for it. When the limit is over,
// what was asked for may still happen: systemd goes on with a job when nobody waits for it.
func (m Manager) Do(ctx context.Context, limit time.Duration, verb string, units ...string) error {
	args := []string{verb}
	if len(units) > 0 {
		args = append(append(args, "--"), units...)
	}
	return m.run(ctx, limit, &command.Ends{}, args)
}

// run runs systemctl. The error has the last line of what it said.
func (m Manager) run(ctx context.Context, limit time.Duration, out *command.Ends, args []string) error {
	path, err := m.path()
	if err != nil {
		return err
	}
	said := &command.Ends{}
	err = command.Run(ctx, command.Command{
		Argv: slices.Concat([]string{path, "--no-pager", "--no-ask-password"}, args),
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C",
			"SYSTEMD_COLORS=0", "SYSTEMD_URLIFY=0", "TERM=dumb"},
		Limit: limit, Out: out, Err: said,
	})
	if err == nil {
		return nil
	}
	what := "systemctl " + args[0]
	if last := command.LastLine(said.Bytes()); last != "" {
		return fmt.Errorf("%s: %w: %s", what, err, last)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (m Manager) path() (string, error) {
	places := []string{"/usr/bin/systemctl", "/bin/systemctl"}
	if m.Systemctl != "" {
		places = []string{m.Systemctl}
	}
	for _, p := range places {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%w (%s)", ErrMissing, strings.Join(places, ", "))
}

// ParseShow reads the output of `systemctl show`: lines KEY=VALUE, an empty line between units (systemctl(1)). Lines
// of another form are left out, and so are units of which nothing is said.
func ParseShow(out []byte) []Properties {
	var all []Properties
	unit := Properties{}
	end := func() {
		if len(unit) > 0 {
			all = append(all, unit)
			unit = Properties{}
		}
	}
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSuffix(line, "\n")
		key, value, ok := strings.Cut(line, "=")
		switch {
		case line == "":
			end()
		case !ok || key == "":
		default:
			if before, more := unit[key]; more {
				value = before + "\n" + value
			}
			unit[key] = value
		}
	}
	end()
	return all
}
