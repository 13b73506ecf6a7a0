package rollback

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLargeRollback measures a rollback of 1,849 changes on a tree of 35,000
// entries against rsync from a full local copy; INGOT_BENCH=1 runs it.
func TestLargeRollback(t *testing.T) {
	if os.Getenv("INGOT_BENCH") == "" {
		t.Skip("INGOT_BENCH is not set: it takes a minute")
	}
	top := t.TempDir()
	w := &world{t: t, old: top + "/old", new: top + "/new", dir: top + "/node"}
	g := &garden{t: t, dir: w.old}
	for d := range 500 {
		dir := filepath.Join(w.old, fmt.Sprintf("usr/d%d", d))
		ok(t, os.MkdirAll(dir, 0o755))
		for f := range 69 {
			write(t, fmt.Sprintf("%s/f%d", dir, f), fmt.Sprintf("%d %d %01000d", d, f, f))
		}
	}
	r := rand.New(rand.NewPCG(1, 1))
	g.r = r
	g.age()
	copyTree(t, w.old, w.new)
	for i := range 1849 {
		p := fmt.Sprintf("%s/usr/d%d/f%d", w.new, i%500, i/500)
		switch i % 10 {
		case 0:
			ok(t, os.Remove(p))
		case 1:
			write(t, p+"new", "added")
		default:
			write(t, p, fmt.Sprintf("new %0*d", 2000+i, i))
		}
	}
	g.dir = w.new
	ageSome(g, "")
	w.mold, w.mnew, w.target = snapshot(t, w.old), snapshot(t, w.new), snapshot(t, w.new)
	w.src = chunked(t, w.new, w.target, pieceSize)
	copyTree(t, w.old, w.dir)
	n := w.node()
	w.push(n)
	copyTree(t, w.dir, top+"/other")

	unix.Sync() // what making the trees left to be written
	start := time.Now()
	p, err := n.PlanRollback(bg(), 0, Policy{}, "bench")
	ok(t, err)
	planned := time.Since(start)
	ok(t, n.Stage(bg(), p, nil))
	staged := time.Since(start)
	_, err = n.Switch(bg(), p)
	ok(t, err)
	took := time.Since(start)
	w.isOld("after the rollback")

	start = time.Now()
	out, err := exec.Command("rsync", "-aHAX", "--numeric-ids", "--delete", "--exclude=/.ingot", w.old+"/", top+"/other/").CombinedOutput()
	if err != nil {
		t.Fatalf("rsync: %v: %s", err, out)
	}
	rsync := time.Since(start)
	t.Logf("%d steps of %d entries: %v (plan %v, stage %v, switch %v); rsync without --checksum %v",
		len(p.Steps), len(w.mold.Entries), took, planned, staged-planned, took-staged, rsync)
}

// TestPlanOfNothing measures the plan of what a tree already is, in a process
// of its own: INGOT_BENCH_TREE names a copy of a real root, which gets a .ingot.
func TestPlanOfNothing(t *testing.T) {
	dir := os.Getenv("INGOT_BENCH_TREE")
	if dir == "" {
		t.Skip("INGOT_BENCH_TREE is not set: it names the tree to be measured")
	}
	n := open(t, dir)
	n.Log = slog.Default()
	if _, err := n.Current(); errors.Is(err, ErrNoGeneration) {
		m := snapshot(t, dir)
		ok(t, n.Record(bg(), Generation{Image: "bench:1"}, m, m, statsOf(t, dir, m)))
	}
	for range 5 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), killOp+"=plan", killIn+"="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		t.Logf("%s, user %v, system %v", out, cmd.ProcessState.UserTime(), cmd.ProcessState.SystemTime())
	}
}

// planNothing is the child of TestPlanOfNothing.
func planNothing(n *Node) error {
	start := time.Now()
	cur, err := n.Current()
	if err != nil {
		return err
	}
	target, found, err := n.Known(cur.Target)
	if err != nil || !found {
		return fmt.Errorf("no target: %w", err)
	}
	known := time.Since(start)
	p, err := n.Plan(bg(), Target{Manifest: target, ID: cur.Target})
	if err != nil {
		return err
	}
	took := time.Since(start)
	status, err := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if hwm, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			fmt.Printf("%d entries, %d steps: %v, of it target %v, VmHWM %s", len(target.Entries), len(p.Steps), took, known, strings.Join(strings.Fields(hwm), " "))
		}
	}
	if f := os.Getenv("INGOT_BENCH_PROFILE"); f != "" {
		w, err := os.Create(f)
		if err != nil {
			return err
		}
		defer w.Close()
		if err := pprof.StartCPUProfile(w); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
		for range 20 {
			if target, _, err = n.Known(cur.Target); err != nil {
				return err
			}
			if _, err = n.Plan(bg(), Target{Manifest: target, ID: cur.Target}); err != nil {
				return err
			}
		}
	}
	return err
}
