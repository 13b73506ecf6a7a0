package rack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ingot/internal/digest"
	"ingot/lab"
	"ingot/rollback"
)

// A node is pushed to another image, with another kernel, and taken back,
// while its disk logs every write and every flush. Then the power is cut at
// each flush, and between: the disk as it was then, with any of the later
// writes, has a file system that fsck finds clean, and the recovery makes it
// exactly one of the generations. Some of these disks are booted.
func TestPowerCuts(t *testing.T) {
	b := newInstalled(t, lab.Machine{Name: "n1", Firmware: lab.BIOS, Disks: []lab.Disk{{SizeBytes: 8 << 30, WriteLog: "n1.writes"}}})
	b.needs("mkfs.xfs", "mount", "debugfs", "e2fsck", "sfdisk", "busybox")
	j := &judge{agent: binary() + "-agent-amd64"}
	j.old, j.next = b.second("app:2")
	b.on("n1")
	j.mounts = strings.Fields(b.ssh("n1", "findmnt -rno TARGET | grep -v '^/$'"))
	begin := b.logged("n1")
	t.Log(b.run("push", "app:2", "n1", "--confirm", "0")) // a trial would be taken back by the boots
	pushed := b.logged("n1")
	t.Log(b.run("rollback", "n1"))
	end := b.logged("n1")
	b.shutdown("n1")
	j.h = b.replay("n1", installedDisk("n1"), begin, end)
	c := &campaign{judge: j, t: t, pushed: pushed, exact: map[int]verdict{}, seen: map[string]int{}}
	c.prepare()
	if long() {
		c.all()
	}
	c.some()
	c.report()
	c.boots()
}

// needs skips, or fails, without these programs.
func (b *bench) needs(programs ...string) {
	b.t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err == nil {
			continue
		}
		if os.Getenv("INGOT_NO_SKIP") != "" {
			b.t.Fatalf("%s is missing", p)
		}
		b.t.Skipf("%s is missing", p)
	}
}

// shutdown stops a machine as its administrator would.
func (b *bench) shutdown(name string) {
	b.t.Helper()
	b.ssh(name, "systemctl --no-block poweroff")
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*time.Minute)
	defer cancel()
	b.must(b.rack.Wait(ctx, name))
}

// campaign goes through the points of a history.
type campaign struct {
	*judge
	t      *testing.T
	pushed int64 // entries of the log when the push had ended

	exact map[int]verdict // by point, without any later write
	tries int
	seen  map[string]int // verdicts, and how often
}

// prepare finds out what the generations are in the end.
func (c *campaign) prepare() {
	c.t.Helper()
	c.manifests = map[int]digest.ID{}
	c.dir = filepath.Join(c.h.dir, "judge")
	c.must(os.Mkdir(c.dir, 0o700))
	mnt := filepath.Join(c.dir, "mnt")
	c.must(os.Mkdir(mnt, 0o700))
	_, err := output("mount", "-t", "ext4", "-o", c.h.loop(), c.h.at(len(c.h.points)-1), mnt)
	c.must(err)
	c.must(errors.Join(c.generations(mnt), unmount(mnt)))
	if len(c.manifests) != 3 {
		c.t.Fatalf("the node has the generations %v, want three", c.manifests)
	}
	c.t.Logf("%d flush points from entry %d to %d of %d", len(c.h.points), c.h.points[0].flush, c.h.points[len(c.h.points)-1].flush, c.h.log.Entries)
}

func (c *campaign) generations(top string) error {
	n, err := rollback.Open(top, nil)
	if err != nil {
		return err
	}
	defer n.Close()
	list, err := n.Generations()
	for _, g := range list {
		c.manifests[g.Number] = g.Manifest
	}
	return err
}

// unmount waits for what a fork of ours holds until its exec: a copy of every
// descriptor, those on the mount among them.
func unmount(dir string) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Unmount(dir, 0)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return os.NewSyscallError("umount "+dir, err)
		}
	}
}

func (c *campaign) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// try cuts the power once.
func (c *campaign) try(i int, seed uint64) verdict {
	c.t.Helper()
	if v, done := c.exact[i]; done && seed == 0 {
		return v
	}
	v, err := c.cut(i, seed)
	c.note(i, seed, v, err)
	return v
}

// note takes in what a cut came to. The generations that may be are those of
// the operation that was going on.
func (c *campaign) note(i int, seed uint64, v verdict, err error) {
	c.t.Helper()
	if err != nil {
		c.t.Error(err)
	}
	c.tries++
	c.seen[v.String()]++
	if seed == 0 {
		c.exact[i] = v
	}
	first := 1
	if c.h.points[i].flush >= c.pushed {
		first = 2
	}
	if err == nil && v.generation != first && v.generation != first+1 {
		c.t.Errorf("flush at entry %d, seed %d: %s, want %d or %d", c.h.points[i].flush, seed, v, first, first+1)
	}
	if v.boot != "" && v.boot != "old" && v.boot != "new" {
		c.t.Errorf("flush at entry %d, seed %d: %s: a boot loader that replays no journal would start a broken system", c.h.points[i].flush, seed, v)
	}
}

// first finds the first point from one on at which something is so, halving
// the distance: what is asked for does not change back there.
func (c *campaign) first(from int, so func(verdict) bool) int {
	to := len(c.h.points) - 1
	for from < to {
		mid := (from + to) / 2
		if so(c.try(mid, 0)) {
			to = mid
		} else {
			from = mid + 1
		}
	}
	return from
}

// switched are the points of one switch: the first at which a boot loader
// sees what it made, and the first at which it counts.
type switched struct{ turn, commit int }

// switches finds those of the push and of the rollback.
func (c *campaign) switches() []switched {
	push := switched{c.first(0, func(v verdict) bool { return v.boot == "new" || v.generation >= 2 }), c.first(0, func(v verdict) bool { return v.generation >= 2 })}
	back := switched{c.first(push.commit, func(v verdict) bool { return v.boot == "old" || v.generation == 3 }), c.first(push.commit, func(v verdict) bool { return v.generation == 3 })}
	return []switched{push, back}
}

// some tries the moments around both commits, those in which what a boot
// loader sees is brought to its place, and an even spread of others.
func (c *campaign) some() {
	for _, s := range c.switches() {
		for seed := range uint64(3) {
			c.try(max(0, s.turn-1), seed)
		}
		for i := max(0, s.commit-2); i <= s.commit; i++ {
			c.try(i, 0)
			c.try(i, 1)
		}
	}
	const spread = 4
	for k := range spread {
		c.try(k*(len(c.h.points)-1)/(spread-1), uint64(k%2))
	}
}

// all tries every point: as it was, and with three choices of later writes.
func (c *campaign) all() {
	type result struct {
		i    int
		seed uint64
		v    verdict
		err  error
	}
	results := make(chan result)
	todo := make(chan result)
	var g errgroup.Group
	for w := range 2 {
		own := *c.judge
		own.dir = filepath.Join(c.dir, fmt.Sprint(w))
		c.must(os.Mkdir(own.dir, 0o700))
		g.Go(func() error {
			for r := range todo {
				r.v, r.err = own.cut(r.i, r.seed)
				results <- r
			}
			return nil
		})
	}
	go func() {
		for i := range c.h.points {
			for seed := range uint64(4) {
				todo <- result{i: i, seed: seed}
			}
		}
		close(todo)
		g.Wait()
		close(results)
	}()
	for r := range results {
		c.note(r.i, r.seed, r.v, r.err)
	}
}

// report prints the figures, and checks that the exact states only go forward.
func (c *campaign) report() {
	last := 0
	for _, i := range slices.Sorted(maps.Keys(c.exact)) {
		v := c.exact[i]
		if v.generation < last {
			c.t.Errorf("flush at entry %d: %s, and %d had been reached", c.h.points[i].flush, v, last)
		}
		last = max(last, v.generation)
	}
	var list []string
	for _, text := range slices.Sorted(maps.Keys(c.seen)) {
		list = append(list, fmt.Sprintf("%d times %s", c.seen[text], text))
	}
	c.t.Logf("%d flush points, %d of them tried, %d disks judged: %s", len(c.h.points), len(c.exact), c.tries, strings.Join(list, "; "))
}

// moments are the points that are worth a boot: those right before and after
// the commit of the push, and in the long form of both switches, with the first and
// a middle one that had a journal, and the last that had to be tidied up.
func (c *campaign) moments() []int {
	var out []int
	for _, s := range c.switches() {
		out = append(out, s.commit-1, s.commit)
		if !long() {
			return out
		}
		first, last := s.commit-1, s.commit
		for first > 0 && c.exact[first-1].journal {
			first--
		}
		for last+1 < len(c.h.points) && c.exact[last+1].journal {
			last++
		}
		out = append(out, first, (first+s.commit)/2, last)
	}
	slices.Sort(out)
	return out
}

// long says that every point is tried.
func long() bool { return os.Getenv("INGOT_CAMPAIGN") != "" }

// boots starts some of the disks and asks them what they are.
func (c *campaign) boots() {
	b := c.h.b
	m, err := b.rack.Machine("n1")
	c.must(err)
	again := lab.Machine{Name: "n1-again", Firmware: m.Firmware, MAC: m.MAC, Disks: []lab.Disk{{Path: filepath.Join(c.dir, "boot.img"), SizeBytes: c.h.size}}}
	c.must(b.rack.AddMachine(again))
	c.t.Cleanup(func() { // before its disk goes
		if err := b.rack.PowerOff(again.Name); err != nil && !errors.Is(err, lab.ErrOff) {
			c.t.Error(err)
		}
	})
	for _, i := range c.moments() {
		want := c.exact[i]
		c.must(c.h.cut(i, 0, again.Disks[0].Path))
		start := time.Now()
		logins := b.logins("n1")
		c.must(b.rack.PowerOn(again.Name))
		b.seen(loginWait, "n1", "login", "", logins+1, "alarm")
		c.booted(i, want)
		c.must(b.rack.PowerOff(again.Name))
		v, err := c.disk(again.Disks[0].Path)
		if err != nil || v.generation != want.generation || v.journal {
			c.t.Errorf("flush at entry %d, booted: %s, %v", c.h.points[i].flush, v, err)
		}
		c.t.Logf("booted the flush at entry %d in %.0f s: %s", c.h.points[i].flush, time.Since(start).Seconds(), want)
	}
}

// booted asks a machine that has come up.
func (c *campaign) booted(i int, want verdict) {
	b := c.h.b
	var list []struct {
		Number  int  `json:"number"`
		Current bool `json:"current"`
	}
	c.must(json.Unmarshal([]byte(b.ssh("n1", "/.ingot/agent generations --json")), &list))
	if last := list[len(list)-1]; last.Number != want.generation || !last.Current {
		c.t.Errorf("flush at entry %d: the machine says that it is %+v, want %s", c.h.points[i].flush, last, want)
	}
	state := b.ssh("n1", fmt.Sprintf("ls -d /.ingot/journal %s 2> /dev/null; cat /etc/issue.net | tail -1; true", bootMark))
	if strings.Contains(state, "journal") {
		c.t.Errorf("flush at entry %d: the journal is there still", c.h.points[i].flush)
	}
	// Where GRUB found the other kernel than that of the tree, the recovery booted the machine once more.
	if strings.Contains(state, bootMark) != (want.generation == 2) {
		c.t.Errorf("flush at entry %d: %s, and the machine says %q", c.h.points[i].flush, want, state)
	}
	if strings.Contains(state, "release 2") != (want.generation == 2) {
		c.t.Errorf("flush at entry %d: %s, and the machine says %q", c.h.points[i].flush, want, state)
	}
}
