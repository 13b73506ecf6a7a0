package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ingot/internal/pattern"
	"ingot/lab"
)

// logins follows both nodes until their SSH servers have answered, and shows
// each step as it happens.
func (d *demo) logins(ctx context.Context, start time.Time, patience time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	nodes := []string{"n1", "n2"}
	done, shown := map[string]string{}, map[string]int{}
	for len(done) < len(nodes) {
		for _, n := range nodes {
			if done[n] != "" {
				continue
			}
			var err error
			if done[n], err = d.follow(ctx, n, start, shown); err != nil {
				return "", err
			}
			if done[n] == "" {
				delete(done, n)
			}
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("no login within %s: %w\n%s%s", patience, ctx.Err(), d.tail("n1"), d.tail("n2"))
		case <-time.After(time.Second):
		}
	}
	return done["n1"] + ", " + done["n2"] + " after power-on", nil
}

// follow shows what has happened to a node since it was asked last; it returns
// when the login came, and an error when the machine stopped on its way.
func (d *demo) follow(ctx context.Context, node string, start time.Time, shown map[string]int) (string, error) {
	events, err := d.events(ctx, node)
	if err != nil {
		return "", err
	}
	n := 0
	for _, e := range events {
		if e.Time.Before(start) {
			continue
		}
		seconds := e.Time.Sub(start).Seconds()
		if n++; n > shown[node] {
			shown[node] = n
			d.p.say("%7.1f  %-3s %-10s %s", seconds, node, e.Stage, e.Detail)
		}
		switch e.Stage {
		case "failed", "alarm":
			return "", fmt.Errorf("%s: %s: %s\n%s", node, e.Stage, e.Detail, d.tail(node))
		case "login":
			return fmt.Sprintf("%s %.0f s", node, seconds), nil
		}
	}
	lines, err := d.rack.Lines(node)
	if err != nil {
		return "", err
	}
	if bad := stuck(lines); bad != "" {
		return "", fmt.Errorf("%s stopped: %s\n%s", node, bad, d.tail(node))
	}
	return "", nil
}

func stuck(lines []lab.Line) string {
	for _, l := range lines {
		for _, bad := range lab.DefaultFailOn() {
			if strings.Contains(l.Text, bad) {
				return l.String()
			}
		}
	}
	return ""
}

func (d *demo) tail(node string) string {
	lines, err := d.rack.Lines(node)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, l := range lines[max(0, len(lines)-15):] {
		fmt.Fprintf(&b, "  %s console: %s\n", node, l)
	}
	return b.String()
}

// timelineAnswer is what `ingot node timeline --json` says.
type timelineAnswer struct {
	Events []eventView `json:"events"`
	Phases []phase     `json:"phases"`
}

func (d *demo) timeline(ctx context.Context, node string, all bool) (timelineAnswer, error) {
	args := []string{"node", "timeline", node, "--json", "--site", d.site}
	if all {
		args = append(args, "--all")
	}
	var view timelineAnswer
	out, err := commandContext(ctx, d.self, args...).Output()
	if err != nil {
		return view, fmt.Errorf("timeline of %s: %w", node, err)
	}
	return view, json.Unmarshal(out, &view)
}

func (d *demo) events(ctx context.Context, node string) ([]eventView, error) {
	view, err := d.timeline(ctx, node, true)
	return view.Events, err
}

// copyOf copies a node's whole root with rsync.
func (d *demo) copyOf(ctx context.Context, node, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	_, err := d.rsync(ctx, node, "-aHAXx", "@-1", "--numeric-ids", "--delete", "NODE:/", dir+"/")
	return err
}

// rsync runs rsync with the node's root as NODE:/, volatile paths left out.
func (d *demo) rsync(ctx context.Context, node string, args ...string) (string, error) {
	ssh := filepath.Join(d.rack.Dir(), "ssh")
	argv := sshCommand(d.site, d.self, node, nil)
	script := "#!/bin/sh\nwhile [ $# -gt 0 ] && [ \"$1\" != rsync ]; do shift; done\nexec " + quoteAll(argv) + " \"$@\"\n"
	if err := os.WriteFile(ssh, []byte(script), 0o700); err != nil {
		return "", err
	}
	full := []string{"-e", ssh}
	for _, x := range append(pattern.Volatile().Strings(), mountPoints()...) {
		full = append(full, "--exclude="+x)
	}
	for _, a := range args {
		switch {
		case a == "@-1":
			a = "-@-1"
		case strings.HasPrefix(a, "NODE:"):
			a = "root@" + node + strings.TrimPrefix(a, "NODE")
		}
		full = append(full, a)
	}
	out, err := commandContext(ctx, "rsync", full...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("rsync of %s: %w: %s", node, err, out)
	}
	return strings.TrimSpace(string(out)), err
}

// mountPoints are other file systems, whose tops rsync -x still compares.
func mountPoints() []string { return []string{"/proc", "/sys", "/dev", "/run", "/boot/efi"} }

func quoteAll(argv []string) string {
	out := make([]string, len(argv))
	for i, a := range argv {
		out[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return strings.Join(out, " ")
}

func (d *demo) same(ctx context.Context) (string, error) {
	judge := []string{"-aHAXnx", "@-1", "--numeric-ids", "--checksum", "--delete", "--itemize-changes"}
	there, err := d.rsync(ctx, "n2", append(judge, "NODE:/", d.before()+"/")...)
	if err != nil {
		return "", err
	}
	back, err := d.rsync(ctx, "n2", append(judge, d.before()+"/", "NODE:/")...)
	if err != nil {
		return "", err
	}
	there, back = steady(there), steady(back)
	if there != "" || back != "" {
		return "", fmt.Errorf("rsync finds differences:\n%s\n%s", there, back)
	}
	return "rsync --checksum finds no difference, in both directions", nil
}

// steady leaves out what rsync says of the times of directories whose contents
// are volatile: whoever writes into /tmp changes the time of /tmp.
func steady(itemized string) string {
	var out []string
	for line := range strings.Lines(itemized) {
		what, path, _ := strings.Cut(strings.TrimSpace(line), " ")
		volatile := false
		for _, p := range pattern.Volatile().Strings() {
			volatile = volatile || p == "/"+path+"**"
		}
		if what != ".d..t......" || !volatile {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return strings.Join(out, "\n")
}
