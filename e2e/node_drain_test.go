package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func drainCases() map[string]func(*testing.T, *base) {
	return map[string]func(*testing.T, *base){
		"drained for its switch":         testDrained,
		"a drain that ends otherwise":    testDrainEnds,
		"drained, and not right":         testDrainStays,
		"a drain of more than a minute":  testLongDrain,
		"behind HAProxy, never an error": testBalanced,
	}
}

// drained is a node whose hooks write down that they were run and what the node
// had then.
type drained struct {
	*rig
	dir   string
	extra string // of the profile
}

func (b *base) drained(t *testing.T) *drained {
	t.Helper()
	r := &drained{rig: b.rig(t, ""), dir: t.TempDir()}
	node := filepath.Join(r.site, "nodes", r.name+".yaml")
	ok(t, os.WriteFile(node, []byte("classes: ["+strings.ToUpper(r.name)+"]\n"+read(t, node)), 0o644))
	r.profile("")
	return r
}

// profile writes the node's profile: the hooks, and what else there is to be.
// Files in dir make steps fail or wait.
func (r *drained) profile(extra string) {
	r.t.Helper()
	step := func(verb string) string {
		return fmt.Sprintf(`echo "%s $INGOT_VERB $(cat %s/etc/motd)" >>%s/log; echo "$INGOT_NODE $INGOT_ADDRESS $INGOT_DEPLOYMENT" >%[3]s/env; test ! -e %[3]s/%[1]s-fails`, verb, r.node.root, r.dir)
	}
	put(r.t, r.site, "profile/"+strings.ToUpper(r.name)+".yaml", fmt.Sprintf("drain:\n- run: %q\n- {until: 'test ! -e %s/wait', timeout: 30s}\nundrain: [{run: %q}]\n%s",
		step("drain"), r.dir, step("undrain"), extra))
}

// log is what the hooks wrote since the last time.
func (r *drained) log() string {
	r.t.Helper()
	path := filepath.Join(r.dir, "log")
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		r.t.Fatal(err)
	}
	_ = os.Remove(path) // or it was not there
	return strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", "; ")
}

func (r *drained) logs(what, want string) {
	r.t.Helper()
	if got := r.log(); got != want {
		r.t.Errorf("%s: the hooks were run as %q, want %q", what, got, want)
	}
}

func (r *drained) flag(name string, on bool) {
	r.t.Helper()
	if on {
		put(r.t, r.dir, name, "")
		return
	}
	ok(r.t, os.Remove(filepath.Join(r.dir, name)))
}

// out asserts what `node show` says of the node's service.
func (r *drained) out(what string, want bool) {
	r.t.Helper()
	if got := strings.Contains(r.must("node", "show", r.name).out, "\ndrained "); got != want {
		r.t.Errorf("%s: recorded as drained: %v, want %v", what, got, want)
	}
}

// A node is taken out when it has staged all and before anything changes, and
// put back afterwards; one that is right already is not touched.
func testDrained(t *testing.T, b *base) {
	r := b.drained(t)
	r.must("push", "web:1", r.name, "--confirm", "30s")
	r.logs("a push", "drain push found; undrain push release 1")
	if env := strings.Fields(read(t, filepath.Join(r.dir, "env"))); len(env) != 3 || env[0] != r.name || env[1] != fmt.Sprintf("10.9.%d.3", r.node.number) || env[2] == "0" {
		t.Errorf("the hooks know %q", env)
	}
	r.out("after a push", false)
	r.must("push", "web:1", r.name)
	r.must("push", "web:2", r.name, "--dry-run")
	r.logs("nothing to do, and a dry run", "")
	r.must("push", "web:2", r.name)
	r.logs("a push", "drain push release 1; undrain push release 2")
	r.must("rollback", r.name)
	r.logs("a rollback", "drain rollback release 2; undrain rollback release 1")
	r.must("push", "web:2", r.name, "--no-drain")
	r.logs("--no-drain", "")
	r.must("rollback", r.name, "--dry-run")
	r.logs("a dry run of a rollback", "")

	// Who was taken out by hand stays out.
	r.must("drain", r.name)
	r.logs("by hand", "drain drain release 2")
	r.out("by hand", true)
	if res := r.must("rollback", r.name); !strings.Contains(res.err, "it stays drained, since") {
		t.Errorf("nobody says that it stays drained: %s", res)
	}
	r.logs("after it was taken out by hand", "drain rollback release 2")
	r.is(b.v1)
	r.out("after a rollback", true)
	r.must("undrain", r.name)
	r.logs("by hand", "undrain undrain release 1")
	r.out("by hand", false)
}

// A drain that fails, or in which the operator gives up, leaves the node as it
// was and in service; a controller that is killed in it leaves a record.
func testDrainEnds(t *testing.T, b *base) {
	r := b.drained(t)
	r.must("push", "web:1", r.name)
	r.log()

	r.flag("drain-fails", true)
	r.fails(1, []string{"drain: step 1", "exit status 1"}, "push", "web:2", r.name)
	r.logs("a drain that fails", "drain push release 1; undrain push release 1")
	if d := r.deployed(); d.State != "failed" || !strings.HasPrefix(d.Reason, "drain: step 1") {
		t.Errorf("recorded: %+v", d)
	}
	r.is(b.v1)
	r.out("after a drain that failed", false)
	r.flag("undrain-fails", true)
	r.fails(1, []string{"drain: step 1", "still out of service: undrain: step 1", "stays drained until `ingot undrain " + r.name + "`"}, "push", "web:2", r.name)
	r.log()
	r.out("when nothing works", true)
	r.flag("undrain-fails", false)
	r.flag("drain-fails", false)
	r.must("undrain", r.name)
	r.log()

	waiting := func(sig syscall.Signal) result {
		r.flag("wait", true)
		cmd, ended := r.start("push", "web:2", r.name, "--confirm", "30s")
		eventually(t, "it is drained", func() bool { _, err := os.Stat(filepath.Join(r.dir, "log")); return err == nil })
		r.out("while it is drained", true)
		ok(t, cmd.Process.Signal(sig))
		res := <-ended
		r.flag("wait", false)
		r.node.idle()
		if g := r.last(); g.Ref != "web:1" || len(r.guards()) > 0 {
			t.Errorf("it has switched, or is guarded: %+v", g)
		}
		r.is(b.v1)
		return res
	}
	res := waiting(syscall.SIGINT)
	if res.code != 130 || res.took > 20*time.Second {
		t.Errorf("interrupted: %s", res)
	}
	r.logs("interrupted", "drain push release 1; undrain push release 1")
	if d := r.deployed(); d.State != "interrupted" || d.Reason != "interrupted before its switch: nothing was changed" {
		t.Errorf("recorded: %+v", d)
	}
	r.out("after an interrupt", false)

	waiting(syscall.SIGKILL)
	r.logs("killed", "drain push release 1")
	r.out("after the controller was killed", true)
	list := r.must("deployment", "list", "--json").out
	if !strings.Contains(list, `"drained": true`) {
		t.Errorf("the deployment does not know: %s", list)
	}
	r.must("push", "web:1", r.name) // it is right, and was left out
	r.logs("the next push", "undrain push release 1")
	r.out("after the next push", false)
}

// A node that is what it is to be and cannot be put back is told of as drained;
// one of which it is not known stays out; one that has gone back is put back.
func testDrainStays(t *testing.T, b *base) {
	r := b.drained(t)
	r.must("push", "web:1", r.name)
	r.log()
	r.flag("undrain-fails", true)
	r.fails(1, []string{"it is generation 3, and still out of service: undrain: step 1", "hint: `ingot undrain " + r.name + "` tries again"}, "push", "web:2", r.name, "--confirm", "30s")
	r.is(b.v2)
	if d := r.deployed(); d.State != "drained" || d.Generation != 3 || !strings.Contains(d.Reason, "undrain") {
		t.Errorf("recorded: %+v", d)
	}
	r.out("when it cannot be put back", true)
	r.fails(1, []string{"undrain: step 1"}, "undrain", r.name)
	r.out("nor by hand", true)
	r.flag("undrain-fails", false)
	r.log()
	r.must("push", "web:2", r.name) // tries again
	r.logs("the same push again", "undrain push release 2")
	r.out("in the end", false)

	const failing = "check: [{name: smoke, exec: 'echo it burns; exit 3', retry_for: 1ms}]\n"
	r.must("rollback", r.name)
	r.profile(failing)
	r.log()
	r.fails(1, []string{"reverted", "it burns"}, "push", "web:2", r.name, "--confirm", "30s")
	r.logs("a release that fails its check", "drain push release 1; undrain push release 1")
	r.is(b.v1)
	r.out("one that has gone back", false)

	r.fails(1, []string{"it stays as it is, but", "it burns", "it stays drained until `ingot undrain " + r.name + "`"}, "rollback", r.name)
	r.logs("a rollback that is not right", "drain rollback release 1")
	if d := r.deployed(); d.State != "failed" || !strings.Contains(d.Reason, "it stays drained") {
		t.Errorf("recorded: %+v", d)
	}
	r.profile("")
	if res := r.must("push", "web:2", r.name); !strings.Contains(res.err, "it is still drained, since") || !strings.Contains(res.out, "unchanged") {
		t.Errorf("somebody has to look first: %s", res)
	}
	r.logs("nobody has looked", "")
	r.out("nobody has looked", true)
	r.must("push", "web:1", r.name) // another release makes it right
	r.logs("another release", "drain push release 2; undrain push release 1")
	r.out("another release", false)
}

// A node waits for its drain longer than for anything else: longer than a guard
// waits for the switch that it was started for, and than a peer may be silent.
// Then it is guarded all the same: here nobody can confirm it.
func testLongDrain(t *testing.T, b *base) {
	r := b.drained(t)
	r.must("push", "web:1", r.name)
	const long = 65 * time.Second
	started := filepath.Join(r.dir, "started")
	put(t, r.site, "profile/"+strings.ToUpper(r.name)+".yaml", fmt.Sprintf("drain: [{run: 'touch %s; sleep %d', timeout: 2m}]\nundrain: [{run: 'echo back >%s/back'}]\n", started, int(long.Seconds()), r.dir))
	_, ended := r.start("push", "web:2", r.name, "--confirm", "4s")
	eventually(t, "it is drained", func() bool { _, err := os.Stat(started); return err == nil })
	begun := time.Now()
	r.node.stopSSHD()
	for r.last().Ref != "web:2" && time.Since(begun) < long+20*time.Second {
		time.Sleep(100 * time.Millisecond)
	}
	if took := time.Since(begun); took < long-time.Second || r.last().Ref != "web:2" {
		t.Fatalf("after %s it is %+v", took, r.last())
	}
	if _, err := os.Stat(filepath.Join(r.dir, "back")); err == nil || len(r.guards()) != 1 {
		t.Errorf("on trial it is in service (%v), with %d guards", err == nil, len(r.guards()))
	}
	eventually(t, "the node goes back by itself", func() bool { return r.last().Kind == "revert" })
	r.is(b.v1)
	r.node.sshd()
	res := <-ended
	if res.code != 1 || !strings.Contains(res.err, "nobody confirmed it within 4s") {
		t.Errorf("the controller: %s", res)
	}
	if _, err := os.Stat(filepath.Join(r.dir, "back")); err != nil {
		t.Errorf("it has gone back, and is not in service: %s", res)
	}
	r.out("one that has gone back", false)
}
