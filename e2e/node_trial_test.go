package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ingot/imager/wire"
)

func trialCases() map[string]func(*testing.T, *base) {
	return map[string]func(*testing.T, *base){
		"confirmed over a new connection":    testConfirmed,
		"sshd does not come back":            testNotConfirmed,
		"controller killed after the switch": testOrphan,
		"agent killed, its guard recovers":   testGuardRecovers,
		"the same push again confirms":       testConfirmedLater,
		"the guard is told to go":            testGuardEnds,
		"a check fails":                      testChecks,
	}
}

// last is the newest generation of the node.
func (r *rig) last() wire.Generation {
	r.t.Helper()
	list := r.generations()
	return list[len(list)-1]
}

// deaf starts a push on trial during which the node's sshd ends: the
// connection that there is goes on, and no other comes. It returns when the
// node has switched.
func (r *rig) deaf(window string) (kill func(), ended <-chan result) {
	r.t.Helper()
	before := r.last().Number
	r.node.proxy.reset()
	r.node.proxy.stallUp.Store(400 << 10)
	cmd, ended := r.start("push", "web:2", r.name, "--confirm", window)
	eventually(r.t, "the node is staging", func() bool { return r.node.proxy.stalled.Load() && r.node.staging() })
	r.node.stopSSHD()
	r.node.proxy.reset()
	r.node.proxy.stalled.Store(false)
	eventually(r.t, "the node has switched", func() bool {
		_, err := os.Stat(filepath.Join(r.node.root, ".ingot/generations", strconv.Itoa(before+1), "meta.json"))
		return err == nil
	})
	return func() { ok(r.t, cmd.Process.Kill()); <-ended }, ended
}

// guards are the guards that live on the node.
func (r *rig) guards() []int { return r.agents("guard") }

// agents are the processes of the agent with a verb.
func (r *rig) agents(verb string) (out []int) {
	for _, pid := range r.node.processes("agent") {
		line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		if err == nil && strings.Contains(string(line), "\x00"+verb) {
			out = append(out, pid)
		}
	}
	return out
}

// deployed is what `deployment show last` says of this node.
func (r *rig) deployed() (n struct {
	Node, State, Reason string
	Was, Generation     int
}) {
	r.t.Helper()
	var list []struct {
		Nodes []json.RawMessage
	}
	ok(r.t, json.Unmarshal([]byte(r.must("deployment", "list", "--last", "0", "--json").out), &list))
	for _, d := range list { // newest first; other tests have theirs
		for _, raw := range d.Nodes {
			ok(r.t, json.Unmarshal(raw, &n))
			if n.Node == r.name {
				return n
			}
		}
	}
	r.t.Fatalf("no deployment of %s", r.name)
	return n
}

func testConfirmed(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name, "--confirm", "30s")
	res := r.mustJSON("push", "web:2", r.name, "--confirm", "30s")
	r.is(b.v2)
	if g := r.last(); g.Trial != 0 || g.Kind != "push" || g.Number != res.Done.Generation.Number || res.Done.Trial {
		t.Errorf("the node says %+v, the controller %+v", g, res.Done)
	}
	eventually(t, "the guard has gone", func() bool { return len(r.guards()) == 0 })
	if d := r.deployed(); d.State != "done" || d.Was != 2 || d.Generation != 3 {
		t.Errorf("recorded: %+v", d)
	}
	r.must("rollback", r.name, "--confirm", "30s")
	r.is(b.v1)
	eventually(t, "the guard has gone", func() bool { return len(r.guards()) == 0 })
}

func testNotConfirmed(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	_, ended := r.deaf("4s")
	r.is(b.v2)
	if g := r.last(); g.Trial == 0 {
		t.Errorf("not on trial: %+v", g)
	}
	eventually(t, "the node goes back by itself", func() bool { return r.last().Kind == "revert" })
	r.is(b.v1)
	r.node.sshd()
	res := <-ended
	if res.code != 1 || !strings.Contains(res.err, "reverted, as generation 4: nobody confirmed it within 4s") {
		t.Errorf("the controller: %s", res)
	}
	if d := r.deployed(); d.State != "reverted" || !strings.Contains(d.Reason, "nobody confirmed it") || d.Generation != 4 {
		t.Errorf("recorded: %+v", d)
	}
	r.must("push", "web:2", r.name)
	r.is(b.v2)
}

func testOrphan(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	kill, _ := r.deaf("3s")
	kill()
	eventually(t, "the node goes back by itself", func() bool { return r.last().Kind == "revert" })
	r.is(b.v1)
	r.node.sshd()
	r.must("push", "web:1", r.name) // so that the server hears of it
	if out := r.must("node", "show", r.name).out; !strings.Contains(out, "revert") || !strings.Contains(out, "nobody confirmed it within 3s") {
		t.Errorf("node show does not tell: %s", out)
	}
}

// The process that switches is killed in the middle; the guard puts the tree
// right before anybody looks, and nobody can confirm what was not looked at.
func testGuardRecovers(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	tries, met := 4, 0
	if campaign() {
		tries = 40
	}
	for i := range tries {
		was := r.last().Number
		_, ended := r.start("push", "web:2", r.name, "--confirm", "3s")
		var res result
		for done := false; !done; {
			select {
			case res = <-ended:
				done = true
			default:
				if _, err := os.Lstat(r.node.root + "/.ingot/journal"); err == nil {
					time.Sleep(time.Duration(i%8) * 500 * time.Microsecond)
					for _, pid := range r.agents("receive") {
						ok(t, syscall.Kill(pid, syscall.SIGKILL))
					}
					met++
					res, done = <-ended, true
				}
			}
		}
		eventually(t, "no journal is left", func() bool {
			_, err := os.Lstat(r.node.root + "/.ingot/journal")
			return os.IsNotExist(err)
		})
		eventually(t, "no guard is left", func() bool { return len(r.guards()) == 0 })
		if g := r.last(); res.code == 0 && g.Number == was+1 && g.Trial == 0 { // it was done before the signal came
			r.must("rollback", r.name)
		} else if res.code == 0 {
			t.Errorf("ingot said done, the node says %+v: %s", g, res)
		}
		r.is(b.v1)
	}
	if met == 0 {
		t.Error("no agent was killed in its switch")
	}
}

func testConfirmedLater(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	kill, _ := r.deaf("60s")
	kill()
	r.node.sshd()
	r.fails(4, []string{"generation 3 waits for confirmation", "hint:"}, "push", "web:1", r.name)
	r.must("push", "web:2", r.name, "--confirm", "60s")
	if g := r.last(); g.Trial != 0 || g.Number != 3 {
		t.Errorf("the node says %+v", g)
	}
	r.is(b.v2)
	eventually(t, "the guard has gone", func() bool { return len(r.guards()) == 0 })
}

// A guard that is ended before the confirmation, as in a shutdown, leaves no
// generation on trial behind.
func testGuardEnds(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	kill, _ := r.deaf("60s")
	kill()
	for _, pid := range r.guards() {
		ok(t, syscall.Kill(pid, syscall.SIGTERM))
	}
	eventually(t, "the node goes back", func() bool { return r.last().Kind == "revert" })
	r.is(b.v1)
}

// A release that fails a check of the profile goes back at once, and the record
// says why: a check on the node, and one from the controller.
func testChecks(t *testing.T, b *base) {
	r := b.rig(t, "")
	class := strings.ToUpper(r.name)
	node := filepath.Join(r.site, "nodes", r.name+".yaml")
	text := read(t, node)
	ok(t, os.WriteFile(node, []byte("classes: ["+class+"]\n"+text), 0o644))
	profile := func(checks string) { put(t, r.site, "profile/"+class+".yaml", "check: ["+checks+"]\n") }
	profile(`{name: ssh, tcp: "127.0.0.1:22"}, {name: here, tcp: "{address}:22", from: controller}`)
	r.must("push", "web:1", r.name, "--confirm", "30s")
	for _, confirm := range []string{"30s", "0"} {
		was := r.last().Number
		profile(`{name: smoke, exec: "echo it does not burn; exit 3", retry_for: 1ms}, {name: ssh, tcp: "127.0.0.1:22"}`)
		res := r.fails(1, []string{"reverted", "smoke", "it does not burn"}, "push", "web:2", r.name, "--confirm", confirm)
		r.is(b.v1)
		if g := r.last(); g.Kind != "revert" || g.Number != was+2 || !strings.Contains(g.Reason, "it does not burn") {
			t.Errorf("the node says %+v: %s", g, res)
		}
		if d := r.deployed(); d.State != "reverted" || !strings.Contains(d.Reason, "it does not burn") {
			t.Errorf("recorded: %+v", d)
		}
		shown := r.must("node", "show", r.name).out
		for num, words := range map[int][]string{was + 1: {"push", "web:2"}, was + 2: {"revert", "web:1", "it does not burn"}} {
			_, line, found := strings.Cut(shown, fmt.Sprintf("\n%d ", num))
			line, _, _ = strings.Cut(line, "\n")
			for _, word := range words {
				if !found || !strings.Contains(line, word) {
					t.Errorf("node show says of generation %d %q, want %q in it", num, line, word)
				}
			}
		}
		eventually(t, "the guard has gone", func() bool { return len(r.guards()) == 0 })
	}
	profile(`{name: nobody, tcp: "{address}:9", from: controller, retry_for: 1ms}`)
	r.fails(1, []string{"reverted", "nobody", "from the controller"}, "push", "web:2", r.name, "--confirm", "30s")
	r.is(b.v1)
	profile(`{name: ssh, tcp: "127.0.0.1:22"}`)
	r.must("push", "web:2", r.name, "--confirm", "0")
	r.is(b.v2)
	if g := r.last(); g.Trial != 0 {
		t.Errorf("nobody confirmed what its checks had: %+v", g)
	}
	out := r.must("deployment", "show", "last").out
	if !strings.Contains(out, "ok      check ssh") && !strings.Contains(r.must("deployment", "list").out, "push") {
		t.Errorf("deployment show: %s", out)
	}
}
