package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/lab"
)

func (p *program) labCommand() *cli.Command {
	dir := &cli.StringFlag{Name: "dir", Usage: "the rack's state `DIR`", Value: lab.DefaultDir("lab")}
	cache := &cli.StringFlag{Name: "cache", Usage: "`DIR` that keeps the built image for the next time", Value: cacheDir()}
	return noun("lab", "a virtual rack on this machine",
		verb{name: "up", usage: "bring up a rack with a boot server",
			about: `Makes a rack of QEMU machines on a bridge in namespaces of their own, with a site and a running
  boot server, and goes into the background. The machines are switched off: ` + "`ingot lab power`" + ` switches them
  on. When the rack's first process ends, however it does, the kernel removes all of it.`,
			examples: []string{"ingot lab up", "ingot lab up --machine n1=bios --machine n2=uefi --machine n3=uefi"},
			flags: []cli.Flag{dir, cache, &cli.StringSliceFlag{Name: "machine", Usage: "`NAME=bios|uefi`; may be repeated", DefaultText: "n1=bios, n2=uefi"},
				jsonFlag()}, run: p.labUp}.command(),
		verb{name: "down", usage: "end the rack", about: "Powers everything off and waits until no process, namespace, tap or mount of the rack is left. Its files stay in --dir.", examples: []string{"ingot lab down"},
			flags: []cli.Flag{dir, jsonFlag()}, run: p.labDown}.command(),
		verb{name: "exec", usage: "run a command in the rack, or on one of its machines", args: "[NODE] -- COMMAND [ARGUMENT...]",
			about:    "Runs a command in the rack's namespaces with INGOT_SITE set, or by SSH on one of its nodes.",
			examples: []string{"ingot lab exec -- ingot node list", "ingot lab exec n1 -- uptime", "ingot lab exec -- tcpdump -ni lab0"},
			flags:    []cli.Flag{dir}, run: p.labExec}.command(),
		verb{name: "power", usage: "work a machine's switch", args: "NODE on|off|cycle|reset|shutdown|unplug|plug",
			about:    "Switches a machine of the rack; off is the cord, shutdown the power button, unplug the network cable.",
			examples: []string{"ingot lab power n1 on", "ingot lab power n1 cycle"}, flags: []cli.Flag{dir}, run: p.labPower}.command(),
		verb{name: "status", usage: "show the rack and its machines", about: "Shows what runs, and where the consoles are written.", examples: []string{"ingot lab status"},
			flags: []cli.Flag{dir, jsonFlag()}, run: p.labStatus}.command(),
		verb{name: "demo", usage: "show everything: from power-on to a rolled-back release",
			about: `Two empty machines, one BIOS and one UEFI, with different classes: they boot from the network,
  install, boot from their disks and are logged in to; one is captured, its image is pushed to the
  other, which is then broken on purpose and rolled back. It uses the public commands only, ends with
  a table of every step and its time, and fails when a step is not as it should be.`,
			examples: []string{"ingot lab demo", "ingot lab demo --keep        leave the rack up afterwards, to look around"},
			flags: []cli.Flag{&cli.StringFlag{Name: "dir", Usage: "the rack's state `DIR`", Value: lab.DefaultDir("demo")},
				cache,
				&cli.BoolFlag{Name: "keep", Usage: "leave the rack up until interrupted"}}, run: p.labDemo}.command(),
	)
}

// selfEnv tells the program, which a rack starts again in other namespaces,
// where it lies: the kernel names it by a mount that it cannot reach there.
const selfEnv = "INGOT_LAB_SELF"

// selfPath is the path of this program.
func selfPath() (string, error) {
	if path := os.Getenv(selfEnv); path != "" {
		return path, nil
	}
	path, err := os.Executable()
	if err != nil {
		return "", err
	}
	return path, os.Setenv(selfEnv, path)
}

func cacheDir() string {
	base, err := os.UserCacheDir()
	if err != nil {
		base = "/var/cache"
	}
	return filepath.Join(base, "ingot", "lab")
}

// rackMachines reads --machine.
func rackMachines(c *cli.Context) ([]lab.Machine, error) {
	list := c.StringSlice("machine")
	if len(list) == 0 {
		list = []string{"n1=bios", "n2=uefi"}
	}
	var out []lab.Machine
	for _, text := range list {
		name, fw, ok := strings.Cut(text, "=")
		if !ok || name == "" || fw != string(lab.BIOS) && fw != string(lab.UEFI) {
			return nil, usagef("--machine %q: want NAME=bios or NAME=uefi", text)
		}
		out = append(out, lab.Machine{Name: name, Firmware: lab.Firmware(fw), Disks: []lab.Disk{{SizeBytes: labDisk}}})
	}
	return out, nil
}

// labDisk is the size of a lab machine's disk, in bytes; it is a sparse file.
const labDisk = 8 << 30

func labErr(err error) error {
	var missing *lab.MissingError
	var running *lab.RunningError
	switch {
	case errors.As(err, &missing):
		return withHint(err, "apt-get install %s", joinWords(missing.Packages))
	case errors.As(err, &running):
		return withHint(coded{err, exitBusy}, "`ingot lab down --dir %s` ends it", running.Dir)
	case errors.Is(err, lab.ErrDown):
		return withHint(coded{err, exitNotFound}, "`ingot lab up` brings one up")
	}
	return err
}

func joinWords(list []string) string { return strings.Join(list, " ") }

func (p *program) labUp(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	machines, err := rackMachines(c)
	if err != nil {
		return err
	}
	dir, cache := c.String("dir"), c.String("cache")
	if err := p.goldenImage(c.Context, cache); err != nil {
		return fmt.Errorf("golden image: %w", err)
	}
	if _, err := lab.Dial(dir); errors.Is(err, lab.ErrDown) { // what an earlier rack's server said is not this one's word
		if err := os.RemoveAll(filepath.Join(dir, "server.log")); err != nil {
			return err
		}
	}
	err = lab.Run(c.Context, lab.Options{Dir: dir, Args: p.Args[1:], Detach: true, NoRA: true}, func(ctx context.Context, r *lab.Rack) error {
		for _, m := range machines {
			if err := r.AddMachine(m); err != nil {
				return err
			}
		}
		if err := os.RemoveAll(labSite(dir)); err != nil { // of a rack before this one
			return err
		}
		if err := makeLabSite(r, labSite(dir), goldenStore(cache), "debian:"+recipe()); err != nil {
			return err
		}
		server, err := startServer(ctx, r, labSite(dir))
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-server.Done():
			return server.Err()
		}
	})
	if err != nil {
		return labErr(err)
	}
	client, err := lab.Dial(dir)
	if err != nil {
		return labErr(err)
	}
	if err := waitFor(c.Context, time.Minute, func() error { return serverReady(filepath.Join(dir, "server.log")) }); err != nil {
		return fmt.Errorf("the boot server did not come up; see %s/lab.log: %w", dir, err)
	}
	return p.showRack(c, client)
}

func labSite(dir string) string { return filepath.Join(dir, "site") }

func (p *program) showRack(c *cli.Context, client *lab.Client) error {
	st, err := client.Status(c.Context)
	if err != nil {
		return labErr(err)
	}
	if c.Bool("json") {
		return p.printJSON(st)
	}
	fmt.Fprintf(p.Stdout, "rack in %s, up since %s, server at %s, site %s\n", st.Dir, st.Since.Local().Format(time.TimeOnly), st.Addr, labSite(st.Dir))
	rows := [][]string{{"MACHINE", "FIRMWARE", "MAC", "POWER", "LINK", "CONSOLE"}}
	word := func(b bool) string {
		if b {
			return "on"
		}
		return "off"
	}
	for _, m := range st.Machines {
		rows = append(rows, []string{m.Name, string(m.Firmware), m.MAC, word(m.On), word(m.Link), m.Console})
	}
	return p.table(rows)
}

func (p *program) labDown(c *cli.Context) error {
	client, err := lab.Dial(c.String("dir"))
	if err == nil {
		err = client.Down(c.Context)
	}
	if err != nil {
		return labErr(err)
	}
	if c.Bool("json") {
		return p.printJSON(map[string]string{"state": "down"})
	}
	fmt.Fprintf(p.Stdout, "down: no process, namespace, tap or mount is left; disks, consoles and the site stay in %s\n", c.String("dir"))
	return nil
}

func (p *program) labExec(c *cli.Context) error {
	argv := c.Args().Slice()
	if i := slices.Index(argv, "--"); i == 0 || i == 1 {
		argv = slices.Delete(argv, i, i+1)
	}
	dir := c.String("dir")
	client, err := lab.Dial(dir)
	if err != nil {
		return labErr(err)
	}
	st, err := client.Status(c.Context)
	if err != nil {
		return labErr(err)
	}
	if len(argv) == 0 {
		return usagef("lab exec: want a command; see `ingot lab exec --help`")
	}
	self, err := selfPath()
	if err != nil {
		return err
	}
	name := argv[0]
	for _, m := range st.Machines {
		if argv[0] == m.Name && len(argv) > 1 {
			argv = sshCommand(labSite(dir), self, m.Name, argv[1:])
			break
		}
	}
	env := []string{"env", "INGOT_SITE=" + labSite(dir), "PATH=" + filepath.Dir(self) + ":" + os.Getenv("PATH")}
	code, err := client.Exec(c.Context, os.Stdin, os.Stdout, os.Stderr, append(env, argv...)...)
	if err != nil {
		return labErr(err)
	}
	if code != 0 {
		return coded{fmt.Errorf("%s ended with exit status %d", name, code), code}
	}
	return nil
}

func (p *program) labPower(c *cli.Context) error {
	if err := wantArgs(c, 2, 2); err != nil {
		return err
	}
	client, err := lab.Dial(c.String("dir"))
	if err != nil {
		return labErr(err)
	}
	node, action := c.Args().Get(0), c.Args().Get(1)
	if action == "plug" || action == "unplug" {
		err = client.SetLink(c.Context, node, action == "plug")
	} else {
		err = client.Power(c.Context, node, action)
	}
	return labErr(err)
}

func (p *program) labStatus(c *cli.Context) error {
	client, err := lab.Dial(c.String("dir"))
	if err != nil {
		return labErr(err)
	}
	return p.showRack(c, client)
}

// startServer runs `ingot serve` in the rack and waits until it is ready.
func startServer(ctx context.Context, r *lab.Rack, site string) (*lab.Process, error) {
	self, err := selfPath()
	if err != nil {
		return nil, err
	}
	server, err := r.Start("server", self, "serve", "--site", site)
	if err != nil {
		return nil, err
	}
	err = waitFor(ctx, time.Minute, func() error {
		select {
		case <-server.Done():
			return stop{server.Err()}
		default:
			return serverReady(server.Log)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("start the boot server: %w", err)
	}
	return server, nil
}

func serverReady(log string) error {
	b, err := os.ReadFile(log)
	if err != nil {
		return err
	}
	if !strings.Contains(string(b), "msg=ready") {
		return errors.New("it is not ready")
	}
	return nil
}

// stop is an error that waiting does not cure.
type stop struct{ error }

// waitFor calls fn until it succeeds, patience ends, ctx ends or the error is a stop.
func waitFor(ctx context.Context, patience time.Duration, fn func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := fn()
		var s stop
		switch {
		case err == nil:
			return nil
		case errors.As(err, &s):
			return s.error
		case time.Now().After(deadline):
			return fmt.Errorf("waited %s: %w", patience, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// sshCommand is how a person logs in to a node of the lab: with the operator's
// key and the host key that the server keeps, nothing else.
func sshCommand(site, ingot, node string, argv []string) []string {
	script := `set -e
n=$1; shift
"$INGOT" node keys "$n" --site "$SITE" > "$SITE/known_hosts.$$"
addr=$(sed -n "1s/^$n,\([^ ]*\) .*/\1/p" "$SITE/known_hosts.$$")
mv "$SITE/known_hosts.$$" "$SITE/known_hosts.$n"
[ -n "$addr" ] || { echo "node $n has no address yet" >&2; exit 1; }
exec ssh -i "$SITE/operator" -o BatchMode=yes -o IdentitiesOnly=yes -o ConnectTimeout=10 -o StrictHostKeyChecking=yes -o UserKnownHostsFile="$SITE/known_hosts.$n" -o HostKeyAlias="$n" root@"$addr" -- "$@"`
	return append([]string{"env", "INGOT=" + ingot, "SITE=" + site, "sh", "-c", script, "sh", node}, argv...)
}
