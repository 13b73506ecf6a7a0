package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/internal/digest"
	"ingot/lab"
)

// demo is one run of `ingot lab demo`. It types the public commands, as a
// person would, and judges what they did by other means: ssh and rsync.
type demo struct {
	// config
	p    *program
	rack *lab.Rack
	self string // this program
	site string
	keep bool

	// state
	image string
	steps []step
	where map[string][]phase // of each node's installation
	start time.Time
}

// step is one line of the table at the end.
type step struct {
	what   string
	took   time.Duration
	detail string
}

func (p *program) labDemo(c *cli.Context) error {
	if err := wantArgs(c, 0, 0); err != nil {
		return err
	}
	if err := lab.Check(lab.BIOS, lab.UEFI); err != nil {
		return labErr(err)
	}
	if _, err := p.agent("amd64"); err != nil {
		return err
	}
	dir, cache := c.String("dir"), c.String("cache")
	if err := p.goldenImage(c.Context, cache); err != nil {
		return fmt.Errorf("demo: golden image: %w", err)
	}
	err := lab.Run(c.Context, lab.Options{Dir: dir, Args: p.Args[1:], NoRA: true}, func(ctx context.Context, r *lab.Rack) error {
		self, err := selfPath()
		if err != nil {
			return err
		}
		d := &demo{p: p, rack: r, self: self, site: labSite(dir), keep: c.Bool("keep"), start: time.Now(), where: map[string][]phase{}}
		return d.run(ctx, cache)
	})
	var exit *lab.ExitError
	if errors.As(err, &exit) {
		return silent{exit.Code} // the process inside has said why
	}
	return labErr(err)
}

// clear removes what a demo leaves in its state directory: the site, the disks
// and the copy of n2. Consoles and logs stay.
func (d *demo) clear() error {
	disks, err := filepath.Glob(filepath.Join(d.rack.Dir(), "*.img"))
	if err != nil {
		return err
	}
	vars, err := filepath.Glob(filepath.Join(d.rack.Dir(), "*.vars.fd"))
	if err != nil {
		return err
	}
	for _, path := range append(append(disks, vars...), d.site, d.before()) {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) run(ctx context.Context, cache string) error {
	if err := d.clear(); err != nil { // the machines are to be empty
		return err
	}
	for name, fw := range map[string]lab.Firmware{"n1": lab.BIOS, "n2": lab.UEFI} {
		if err := d.rack.AddMachine(lab.Machine{Name: name, Firmware: fw, Disks: []lab.Disk{{SizeBytes: labDisk}}}); err != nil {
			return err
		}
	}
	d.image = "debian:" + recipe()
	if err := makeLabSite(d.rack, d.site, goldenStore(cache), d.image); err != nil {
		return err
	}
	err := d.all(ctx)
	d.table(err)
	if err == nil && d.keep {
		d.p.say("the rack stays up until you press Ctrl-C: `ingot lab exec --dir %s n1 -- uptime`", d.rack.Dir())
		<-ctx.Done()
	}
	if err != nil {
		return err
	}
	for _, n := range d.rack.Machines() {
		if err := d.rack.PowerOff(n); err != nil && !errors.Is(err, lab.ErrOff) {
			return err
		}
	}
	return d.clear()
}

// demoPackages are in the image besides what every image has.
const demoPackages = "busybox,rsync"

// recipe is a tag that changes when the image that the demo builds would.
func recipe() string {
	return "12-" + digest.Of([]byte(strings.Join(basePackages(), ",") + demoPackages + "3")).Short()[:8]
}

func (d *demo) all(ctx context.Context) error {
	for _, s := range []struct {
		what string
		fn   func(context.Context) (string, error)
	}{
		{"check the site", d.check},
		{"arm n1 (BIOS) and n2 (UEFI)", d.arm},
		{"install both at once, to login", d.install},
		{"what differs by class", d.classes},
		{"power cycle: from the disk", d.cycle},
		{"new release on n1, captured", d.capture},
		{"push it to n2", d.push},
		{"break n2 on purpose", d.breakIt},
		{"roll n2 back", d.rollback},
		{"n2 is what it was before", d.same},
		{"bad release on n1, captured", d.captureBad},
		{"push it to n2, which goes back by itself", d.pushBad},
		{"n2 is what it was before, again", d.same},
	} {
		d.p.say("\n--- %s", s.what)
		start := time.Now()
		detail, err := s.fn(ctx)
		d.steps = append(d.steps, step{s.what, time.Since(start), detail})
		if err != nil {
			return fmt.Errorf("demo: %s: %w", s.what, err)
		}
	}
	return nil
}

func (d *demo) table(err error) {
	rows := [][]string{{"STEP", "SECONDS", "RESULT"}}
	if took, result, ok := strings.Cut(os.Getenv(goldenTook), "\t"); ok {
		rows = append(rows, []string{"golden image of Debian 12", took, result})
	}
	for i, s := range d.steps {
		detail := s.detail
		if err != nil && i == len(d.steps)-1 {
			detail = "FAILED"
		}
		rows = append(rows, []string{s.what, fmt.Sprintf("%.1f", s.took.Seconds()), detail})
	}
	rows = append(rows, []string{"in all", fmt.Sprintf("%.1f", time.Since(d.start).Seconds()), ""})
	fmt.Fprintln(d.p.Stdout)
	_ = d.p.table(rows)
	for _, n := range []string{"n1", "n2"} {
		if len(d.where[n]) > 0 {
			fmt.Fprintf(d.p.Stdout, "\nWhere the time of the installation of %s went, both at once:\n", n)
			_ = d.p.table(phaseRows(d.where[n]))
		}
	}
}

// ingot types one public command and returns its answer.
func (d *demo) ingot(ctx context.Context, args ...string) (string, error) {
	d.p.say("$ ingot %s", strings.Join(args, " "))
	c := commandContext(ctx, d.self, args...)
	c.Env = append(os.Environ(), "INGOT_SITE="+d.site)
	var out bytes.Buffer
	c.Stdout = &out
	c.Stderr = d.p.Stderr
	err := c.Run()
	if err != nil {
		err = fmt.Errorf("ingot %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(out.String()), err
}

// show is ingot with its answer shown.
func (d *demo) show(ctx context.Context, args ...string) (string, error) {
	out, err := d.ingot(ctx, args...)
	d.p.say("%s", out)
	return out, err
}

// ssh runs a command on a node as its operator.
func (d *demo) ssh(ctx context.Context, node, script string) (string, error) {
	argv := sshCommand(d.site, d.self, node, []string{script})
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	c := commandContext(ctx, argv[0], argv[1:]...)
	var errOut bytes.Buffer
	c.Stderr = &errOut
	out, err := c.Output()
	if err != nil {
		err = fmt.Errorf("ssh %s %q: %w: %s", node, script, err, strings.TrimSpace(errOut.String()))
	}
	return strings.TrimSpace(string(out)), err
}

func (d *demo) check(ctx context.Context) (string, error) {
	if out, err := d.show(ctx, "check"); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	_, err := d.show(ctx, "class", "explain", "n1")
	return "no problems", err
}

// goldenTook tells the run inside the rack how long the image took outside.
const goldenTook = "INGOT_DEMO_GOLDEN"

func goldenStore(cache string) string { return filepath.Join(cache, "site", ".ingot", "store") }

// goldenImage builds the lab's image in a site of its own, which is kept for
// the next time. It runs once, before the program enters the rack's namespaces:
// out here Debian's mirror can be reached, in there nothing but the rack.
func (p *program) goldenImage(ctx context.Context, cache string) error {
	if os.Getenv(goldenTook) != "" {
		return nil
	}
	d := &demo{p: p, site: filepath.Join(cache, "site")}
	var err error
	if d.self, err = selfPath(); err != nil {
		return err
	}
	image := "debian:" + recipe()
	start := time.Now()
	if _, err := os.Stat(d.site); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(cache, 0o755); err != nil {
			return err
		}
		if _, err := d.ingot(ctx, "init", d.site); err != nil {
			return err
		}
	}
	p.say("--- golden image of Debian 12")
	result := "from the cache"
	if out, err := exec.CommandContext(ctx, d.self, "image", "show", image, "--site", d.site).CombinedOutput(); err == nil {
		p.say("%s", out)
	} else if result, err = d.show(ctx, "image", "build", image, "--debian", "bookworm", "--include", demoPackages); err != nil {
		return err
	}
	return os.Setenv(goldenTook, fmt.Sprintf("%.1f\t%s", time.Since(start).Seconds(), result))
}

func (d *demo) arm(ctx context.Context) (string, error) {
	if _, err := d.show(ctx, "node", "set", "all", "--install"); err != nil {
		return "", err
	}
	if _, err := startServer(ctx, d.rack, d.site); err != nil {
		return "", err
	}
	return "verified, armed; the server runs", nil
}

func (d *demo) install(ctx context.Context) (string, error) {
	start := time.Now()
	for _, n := range []string{"n1", "n2"} {
		if err := d.rack.PowerOn(n); err != nil {
			return "", err
		}
	}
	took, err := d.logins(ctx, start, 15*time.Minute)
	if err != nil {
		return "", err
	}
	for _, n := range []string{"n1", "n2"} {
		view, err := d.timeline(ctx, n, false)
		if err != nil {
			return "", err
		}
		d.where[n] = view.Phases
	}
	_, err = d.show(ctx, "node", "timeline", "n1")
	return took, err
}

// identity is what must differ between two nodes of one image.
const identity = "hostname; cat /etc/machine-id; cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub"

func (d *demo) classes(ctx context.Context) (string, error) {
	a, err := d.ssh(ctx, "n1", identity)
	if err != nil {
		return "", err
	}
	b, err := d.ssh(ctx, "n2", identity)
	if err != nil {
		return "", err
	}
	d.p.say("n1: %s\nn2: %s", strings.ReplaceAll(a, "\n", " · "), strings.ReplaceAll(b, "\n", " · "))
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	if len(x) != 3 || len(y) != 3 {
		return "", errors.New("host name, machine-id or host key is missing")
	}
	for i, what := range []string{"host name", "machine-id", "host key"} {
		if x[i] == y[i] {
			return "", fmt.Errorf("both nodes have the %s %q", what, x[i])
		}
	}
	for _, want := range []struct{ node, motd, page, port string }{
		{"n1", "This is a web server.", "web", "80"}, {"n2", "This is a database server.", "db", "5432"},
	} {
		out, err := d.ssh(ctx, want.node, "cat /etc/motd; systemctl is-active hello; busybox wget -qO- http://127.0.0.1:"+want.port+"/")
		if err != nil {
			return "", err
		}
		d.p.say("%s: %s", want.node, strings.ReplaceAll(out, "\n", " · "))
		if got := strings.Split(out, "\n"); len(got) != 3 || got[0] != want.motd || got[1] != "active" || got[2] != want.page {
			return "", fmt.Errorf("%s: file and service are not those of its class: %q", want.node, out)
		}
	}
	return "name, machine-id, host key, file and service", nil
}

func (d *demo) cycle(ctx context.Context) (string, error) {
	before := map[string]string{}
	for _, n := range []string{"n1", "n2"} {
		var err error
		if before[n], err = d.ssh(ctx, n, identity); err != nil {
			return "", err
		}
		if _, err := d.ssh(ctx, n, "sync"); err != nil {
			return "", err
		}
	}
	start := time.Now()
	for _, n := range []string{"n1", "n2"} {
		if err := d.rack.Cycle(n); err != nil {
			return "", err
		}
	}
	took, err := d.logins(ctx, start, 8*time.Minute)
	if err != nil {
		return "", err
	}
	for _, n := range []string{"n1", "n2"} {
		after, err := d.ssh(ctx, n, identity)
		if err != nil {
			return "", err
		}
		if after != before[n] {
			return "", fmt.Errorf("%s was %q and is %q: it was installed again", n, before[n], after)
		}
	}
	return took + ", not reinstalled", nil
}

// newRelease changes n1 in every way that an image can tell: content, mode,
// owner, links, names added and removed.
const newRelease = `set -e
mkdir -p /opt/app/lib; echo 'release 2' > /opt/app/version; printf '#!/bin/sh\necho release 2\n' > /usr/local/bin/app; chmod 755 /usr/local/bin/app
for i in $(seq 200); do echo "module $i of release 2" > /opt/app/lib/$i; done
ln -sf ../opt/app/version /etc/app-version; ln /opt/app/lib/1 /opt/app/lib/same; chown 33:33 /opt/app/version; chmod 640 /opt/app/version
rm -rf /usr/share/doc/busybox; echo 'release 2' > /srv/www/release; sync`

func (d *demo) capture(ctx context.Context) (string, error) {
	if _, err := d.ssh(ctx, "n1", newRelease); err != nil {
		return "", err
	}
	return d.show(ctx, "image", "capture", "root@n1:/", "app:2")
}

func (d *demo) before() string { return filepath.Join(d.rack.Dir(), "n2.before") }

func (d *demo) push(ctx context.Context) (string, error) {
	if _, err := d.ssh(ctx, "n2", "sync"); err != nil {
		return "", err
	}
	if err := d.copyOf(ctx, "n2", d.before()); err != nil {
		return "", err
	}
	plan, err := d.ingot(ctx, "push", "app:2", "n2", "--dry-run")
	if err != nil {
		return "", err
	}
	lines := strings.Split(plan, "\n")
	d.p.say("%s\n... %s", strings.Join(lines[:min(8, len(lines))], "\n"), lines[len(lines)-1])
	out, err := d.show(ctx, "push", "app:2", "n2")
	if err != nil {
		return "", err
	}
	got, err := d.ssh(ctx, "n2", "app; cat /etc/app-version; stat -c '%u:%g %a %h' /opt/app/version /opt/app/lib/same; cat /etc/motd; hostname; ls -d /usr/share/doc/busybox 2>/dev/null || true")
	if err != nil {
		return "", err
	}
	want := "release 2\nrelease 2\n33:33 640 1\n0:0 644 2\nThis is a database server.\nn2"
	if got != want {
		return "", fmt.Errorf("n2 shows %q, want %q", got, want)
	}
	return out, nil
}

func (d *demo) breakIt(ctx context.Context) (string, error) {
	_, err := d.ssh(ctx, "n2", "rm -rf /opt/app/lib /usr/local/bin/app; echo broken > /opt/app/version; echo broken > /srv/www/release; chmod 000 /etc/app-version 2>/dev/null; rm -f /etc/app-version")
	if err != nil {
		return "", err
	}
	if out, err := d.ssh(ctx, "n2", "app"); err == nil {
		return "", fmt.Errorf("the application still answers %q", out)
	}
	return "the application is gone", nil
}

func (d *demo) rollback(ctx context.Context) (string, error) {
	out, err := d.show(ctx, "rollback", "n2", "--take", "/**")
	if err != nil {
		return "", err
	}
	if _, err := d.show(ctx, "node", "show", "n2"); err != nil {
		return "", err
	}
	got, err := d.ssh(ctx, "n2", "systemctl is-active hello; busybox wget -qO- http://127.0.0.1:5432/")
	if err == nil && got != "active\ndb" {
		err = fmt.Errorf("the service says %q", got)
	}
	return out, err
}

// badRelease has a program that does not run; n1 itself goes on with its own.
const badRelease = `set -e
cp -a /usr/bin/busybox /run/busybox; echo 'release 3' > /opt/app/version
printf '#!/bin/sh\necho release 3 lacks a library >&2\nexit 1\n' > /usr/bin/busybox.3; chmod 755 /usr/bin/busybox.3; mv /usr/bin/busybox.3 /usr/bin/busybox; sync`

func (d *demo) captureBad(ctx context.Context) (string, error) {
	if _, err := d.ssh(ctx, "n1", badRelease); err != nil {
		return "", err
	}
	out, err := d.show(ctx, "image", "capture", "root@n1:/", "app:3")
	if err != nil {
		return "", err
	}
	_, err = d.ssh(ctx, "n1", "cp -a /run/busybox /usr/bin/busybox.2; mv /usr/bin/busybox.2 /usr/bin/busybox")
	return out, err
}

// pushBad pushes what does not work: the node's check finds out, and the node
// goes back before anybody has to say so.
func (d *demo) pushBad(ctx context.Context) (string, error) {
	if out, err := d.show(ctx, "push", "app:3", "n2"); err == nil {
		return "", fmt.Errorf("a release that does not work was taken: %s", out)
	}
	out, err := d.show(ctx, "deployment", "show", "last")
	if err != nil {
		return "", err
	}
	if !strings.Contains(out, "reverted") || !strings.Contains(out, "hello") {
		return "", errors.New("the record does not say that the check of hello reverted it")
	}
	if _, err := d.show(ctx, "node", "show", "n2"); err != nil {
		return "", err
	}
	got, err := d.ssh(ctx, "n2", "systemctl is-active hello; busybox wget -qO- http://127.0.0.1:5432/")
	if err == nil && got != "active\ndb" {
		err = fmt.Errorf("after the revert the service says %q", got)
	}
	return "reverted: the check of hello failed; it runs again", err
}
