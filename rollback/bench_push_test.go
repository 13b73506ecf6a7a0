package rollback

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// TestPushOfSome measures a push of 1,849 files of 20 kB and its rollback on
// the tree of TestPlanOfNothing, each in a process of its own.
func TestPushOfSome(t *testing.T) {
	dir := os.Getenv("INGOT_BENCH_TREE")
	if dir == "" {
		t.Skip("INGOT_BENCH_TREE is not set: it names the tree to be measured")
	}
	n := open(t, dir)
	if _, err := n.Current(); err != nil {
		m := snapshot(t, dir)
		ok(t, n.Record(bg(), Generation{Image: "bench:1"}, m, m, statsOf(t, dir, m)))
	}
	for _, op := range []string{"push", "back"} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), killOp+"="+op, killIn+"="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		t.Logf("%s, user %v, system %v", out, cmd.ProcessState.UserTime(), cmd.ProcessState.SystemTime())
	}
}

// made delivers chunks that are made of the path they are for.
type made map[digest.ID]string

func madeOf(path string) []byte { return bytes.Repeat([]byte(path+"\n"), 20000/(len(path)+1)) }

func (m made) Fetch(_ context.Context, ids []digest.ID, fn func(digest.ID, []byte) error) error {
	for _, id := range ids {
		if err := fn(id, madeOf(m[id])); err != nil {
			return err
		}
	}
	return nil
}

// pushSome and backSome are the children of TestPushOfSome.
func pushSome(n *Node) error {
	cur, err := n.Current()
	if err != nil {
		return err
	}
	base, err := n.Manifest(cur.Number)
	if err != nil {
		return err
	}
	target, src, left := &manifest.Manifest{Entries: append([]entry.Entry(nil), base.Entries...)}, made{}, 1849
	for i := range target.Entries {
		e := &target.Entries[i]
		if left == 0 || i%9 != 0 || e.Type != entry.File || e.Link != "" {
			continue
		}
		b := madeOf(e.Path)
		id := digest.Of(b)
		src[id] = e.Path
		e.Size, e.Holes, e.Chunks, e.ModTime = int64(len(b)), nil, []entry.Chunk{{ID: id, Size: uint32(len(b))}}, 1e18
		left--
	}
	start := time.Now()
	p, err := n.Plan(bg(), Target{Manifest: target, Image: "bench:2"})
	if err != nil {
		return err
	}
	return carry(n, p, src, start)
}

func backSome(n *Node) error {
	start := time.Now()
	p, err := n.PlanRollback(bg(), 0, Policy{}, "bench")
	if err != nil {
		return err
	}
	return carry(n, p, nil, start)
}

func carry(n *Node, p *Plan, src Source, start time.Time) error {
	planned := time.Since(start)
	if err := n.Stage(bg(), p, src); err != nil {
		return err
	}
	staged := time.Since(start)
	if _, err := n.Switch(bg(), p); err != nil {
		return err
	}
	took := time.Since(start)
	status, err := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if hwm, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			fmt.Printf("%d steps: %v (plan %v, stage %v, switch %v), VmHWM %s", len(p.Steps), took, planned, staged-planned, took-staged, strings.Join(strings.Fields(hwm), " "))
		}
	}
	return err
}
