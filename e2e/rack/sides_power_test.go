package rack

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ingot/internal/writelog"
	"ingot/lab"
	"ingot/rollback/sides"
)

// A node with two sides is pushed to another image, with another kernel,
// confirms it by itself and is taken back, while its disk logs every write and
// every flush. The power is cut at each flush, and between: on the disk as it
// was then GRUB finds a side whose kernel is whole and which is exactly one
// generation, with nothing to finish; the other side the recovery makes exactly
// one, and fsck finds all of it clean. Some of these disks are booted, and the
// first boot of a side on trial is cut off five times in a row.
func TestSidesPower(t *testing.T) {
	if !long() {
		t.Skip("make campaign runs it")
	}
	for _, tt := range []struct {
		name string
		fw   lab.Firmware
		layout
	}{{"slots", lab.BIOS, slots}, {"btrfs", lab.UEFI, subvolumes}} {
		t.Run(tt.name, func(t *testing.T) { sidesPower(t, tt.fw, tt.layout) })
	}
}

func sidesPower(t *testing.T, fw lab.Firmware, l layout) {
	b := newBench(t, true, lab.Machine{Name: "n1", Firmware: fw})
	b.needs("mkfs.xfs", "mount", "debugfs", "e2fsck", "sfdisk", "busybox", "btrfs")
	b.slim("app:1")
	if l.update == "btrfs" { // the kernel here cannot read a FAT
		l.sides = "sides: {env: /env}\n"
		l.disks = strings.Replace(l.disks, "primary / ", "primary /env 16M ext2 rw\nprimary / ", 1)
	}
	b.sidesProfile(l)
	j := &sidesJudge{judge: judge{agent: binary() + "-agent-amd64"}, subvolumes: l.update == "btrfs"}
	j.old, j.next = b.secondOf("app:1", "app:2")
	b.installed("app:1")
	b.must(json.Unmarshal([]byte(b.ssh("n1", "cat /.ingot/sides.json")), &j.conf))
	b.shutdown("n1")
	m, err := b.rack.Machine("n1")
	b.must(err)
	base := filepath.Join(b.rack.Dir(), "base.img")
	b.copyDisk(m.Disks[0].Path, base)
	const logged = "n1-logged"
	b.must(b.rack.AddMachine(lab.Machine{Name: logged, Firmware: fw, MAC: m.MAC, DiskFirst: true, Disks: []lab.Disk{{Path: m.Disks[0].Path, WriteLog: "n1.writes"}}}))
	b.restarted(logged, b.rack.PowerOn)
	begin := b.logged(logged)
	t.Log(b.run("push", "app:2", "n1", "--confirm", "0"))
	pushed := b.logged(logged)
	t.Log(b.run("rollback", "n1", "--confirm", "0"))
	end := b.logged(logged)
	b.ssh("n1", "systemctl --no-block poweroff")
	b.must(b.rack.Wait(t.Context(), logged))
	j.h = b.replay(logged, base, begin, end)
	c := &sidesCampaign{sidesJudge: j, t: t, pushed: pushed, exact: map[int]sidesState{}, seen: map[string]int{}}
	c.prepare()
	c.all()
	c.report()
	c.boots(m)
}

// slim makes an image without the drivers and firmware that no machine of the
// rack has: what is judged some hundred times has half the size.
func (b *bench) slim(ref string) {
	b.t.Helper()
	dir := filepath.Join(b.rack.Dir(), "slim")
	b.must(os.Mkdir(dir, 0o755))
	b.run("push", image, "--dir", dir)
	b.must(os.RemoveAll(filepath.Join(dir, ".ingot")))
	b.command("sh", "-c", `cd "$1" && rm -rf usr/lib/modules/*/kernel/sound usr/lib/modules/*/kernel/drivers/[gim]* usr/lib/modules/*/kernel/drivers/net/wireless usr/lib/modules/*/kernel/drivers/staging usr/lib/firmware`, "sh", dir)
	b.run("image", "capture", dir, ref)
	b.must(os.RemoveAll(dir))
}

// sidesCampaign goes through the points of a history.
type sidesCampaign struct {
	*sidesJudge
	t      *testing.T
	pushed int64 // entries of the log when the push had ended
	exact  map[int]sidesState
	tries  int
	alone  int // of these, looked at for what is shared alone
	seen   map[string]int
}

func (c *sidesCampaign) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *sidesCampaign) prepare() {
	c.t.Helper()
	c.manifests = nil // generations have other manifests on a side that is being written
	c.dir = filepath.Join(c.h.dir, "judge")
	c.must(os.Mkdir(c.dir, 0o700))
	c.must(c.find(filepath.Join(c.h.dir, "work.img")))
	c.t.Logf("%d flush points from entry %d to %d of %d", len(c.h.points), c.h.points[0].flush, c.h.points[len(c.h.points)-1].flush, c.h.log.Entries)
}

// touched reports whether anything but what both sides share was written between
// a point and the one before.
func (c *sidesCampaign) touched(i int) bool {
	if i == 0 || c.subvolumes {
		return true
	}
	return slices.ContainsFunc(c.h.points[i-1].later, func(e writelog.Entry) bool {
		return e.Off < c.shared.start || e.Off+e.Length > c.shared.start+c.shared.length
	})
}

// all judges every point as it was, and with three choices of later writes those
// at which what starts or what is on the other side changes. Where only what is
// shared was written the sides are those of the point before: of such a point
// the shared file system alone is looked at.
func (c *sidesCampaign) all() {
	type job struct {
		i      int
		seed   uint64
		shared bool // that alone
		s      sidesState
		err    error
	}
	workers := 2
	if c.subvolumes {
		workers = 1 // the kernel mounts a btrfs once
	}
	run := func(jobs []job) {
		todo, done := make(chan job), make(chan job)
		for w := range workers {
			own := *c.sidesJudge
			own.dir = filepath.Join(c.dir, fmt.Sprint(w))
			c.must(os.MkdirAll(own.dir, 0o700))
			go func() {
				for x := range todo {
					x.s, x.err = own.cut(x.i, x.seed, x.shared)
					done <- x
				}
			}()
		}
		go func() {
			for _, x := range jobs {
				todo <- x
			}
			close(todo)
		}()
		for range jobs {
			x := <-done
			c.tries++
			if x.seed == 0 {
				c.exact[x.i] = x.s
			}
			if x.err != nil {
				c.t.Error(x.err)
				continue
			}
			if !x.shared {
				c.seen[x.s.String()]++
			}
		}
	}
	var first, more []job
	for i := range c.h.points {
		first = append(first, job{i: i, shared: !c.touched(i)})
	}
	run(first)
	for i, x := range first {
		if s := c.exact[i]; x.shared {
			before := c.exact[i-1]
			before.trial = s.trial
			c.exact[i] = before
			c.alone++
		}
	}
	for i := range c.h.points {
		here, next := c.exact[i], c.exact[min(i+1, len(c.h.points)-1)]
		if here.String() != next.String() {
			for seed := range uint64(3) {
				more = append(more, job{i: i, seed: seed + 1})
			}
		}
	}
	run(more)
}

// phases are the points at which the boot loader has been told something else
// than at the one before.
func (c *sidesCampaign) phases() (out []int) {
	for i := 1; i < len(c.h.points); i++ {
		if c.exact[i].words() != c.exact[i-1].words() {
			out = append(out, i)
		}
	}
	return out
}

// report prints the figures, and checks that the boot loader was told one thing
// after the other.
func (c *sidesCampaign) report() {
	var words []string
	for _, i := range append([]int{0}, c.phases()...) {
		words = append(words, c.exact[i].words())
	}
	if got, want := strings.Join(words, "; "), "a; a, tries b; a; b; b, tries a; b; a"; got != want {
		c.t.Errorf("the boot loader was told %q, want %q", got, want)
	}
	var list []string
	for _, text := range slices.Sorted(maps.Keys(c.seen)) {
		list = append(list, fmt.Sprintf("%d times %s", c.seen[text], text))
	}
	c.t.Logf("%d flush points, %d disks judged, %d of them for what is shared alone: %s", len(c.h.points), c.tries, c.alone, strings.Join(list, "; "))
}

// boots starts the disks at both sides of each change of what the boot loader
// has been told, and cuts the first boots of a side on trial.
func (c *sidesCampaign) boots(m lab.Machine) {
	b := c.h.b
	again := lab.Machine{Name: "n1-again", Firmware: m.Firmware, MAC: m.MAC, DiskFirst: true, Disks: []lab.Disk{{Path: filepath.Join(c.dir, "boot.img"), SizeBytes: c.h.size}}}
	c.must(b.rack.AddMachine(again))
	c.t.Cleanup(func() { // before its disk goes
		if err := b.rack.PowerOff(again.Name); err != nil && !errors.Is(err, lab.ErrOff) {
			c.t.Error(err)
		}
	})
	disk, booted := again.Disks[0].Path, 0
	for _, i := range c.phases() {
		for _, at := range []int{i - 1, i} {
			c.must(c.h.cut(at, 0, disk))
			c.booted(again, at, c.exact[at].starts())
			booted++
		}
	}
	if booted < 10 {
		c.t.Errorf("only %d disks were booted", booted)
	}
	for _, i := range c.phases() {
		if s := c.exact[i]; s.env.Try != "" {
			c.must(c.h.cut(i, 0, disk))
			for n := range 5 {
				c.must(b.rack.PowerOn(again.Name))
				c.starting(again.Name, time.Duration(n)*3*time.Second)
				c.must(b.rack.PowerOff(again.Name))
			}
			c.booted(again, i, "")
		}
	}
}

// starting waits until a kernel has begun, and then some.
func (c *sidesCampaign) starting(name string, more time.Duration) {
	c.t.Helper()
	b := c.h.b
	count := func() (n int) {
		lines, err := b.rack.Lines(name)
		c.must(err)
		for _, l := range lines {
			if strings.Contains(l.Text, "Linux version") {
				n++
			}
		}
		return n
	}
	before := count()
	b.within(2*time.Minute, "a kernel starts", func() bool { return count() > before })
	time.Sleep(more)
}

// booted starts a machine, waits until it is on one of its sides for good, and
// switches it off: on side want, where that is known.
func (c *sidesCampaign) booted(m lab.Machine, i int, want string) {
	c.t.Helper()
	b := c.h.b
	start := time.Now()
	b.restarted(m.Name, b.rack.PowerOn)
	state := ""
	b.within(2*time.Minute, "the trial is over", func() bool {
		state = b.ssh("n1", "cat /.ingot/shared/ingot/trial.json 2> /dev/null || echo none")
		return state == "none" || strings.Contains(state, `"ended"`)
	})
	side := strings.TrimPrefix(b.ssh("n1", "tr ' ' '\\n' < /proc/cmdline | grep ingot.side="), "ingot.side=")
	if want != "" && side != want {
		c.t.Errorf("flush at entry %d: side %s runs, want %s", c.h.points[i].flush, side, want)
	}
	is := b.ssh("n1", "test -e "+bootMark+" && echo 2 || echo 1; grep -c 'release 2' /etc/issue.net; ls -d /.ingot/journal 2> /dev/null; true")
	if is != "1\n0" && is != "2\n1" {
		c.t.Errorf("flush at entry %d: side %s says %q", c.h.points[i].flush, side, is)
	}
	c.must(b.rack.PowerOff(m.Name))
	s, err := c.disk(m.Disks[0].Path)
	if err != nil || s.env != (sides.Env{Side: side}) || s.trial == "open" {
		c.t.Errorf("flush at entry %d, booted: %s, %v", c.h.points[i].flush, s, err)
	}
	c.t.Logf("booted the flush at entry %d (%s) in %.0f s: side %s, %s", c.h.points[i].flush, c.exact[i], time.Since(start).Seconds(), side, s)
}
