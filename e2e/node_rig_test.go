package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ingot/imager/wire"
	"ingot/inventory"
)

// base is what all nodes of a test run share: trees, a site and its images.
type base struct {
	dir     string
	bin     string // a copy of ingot, so that a build meanwhile does no harm
	found   string // the tree that ingot did not install
	v1, v2  string // what web:1 and web:2 are made of
	site    string
	numbers numbers
}

// rig is one test's node and the controller before it.
type rig struct {
	t    *testing.T
	base *base
	site string
	name string
	node *node
	was  string // copy of the node's tree as it was found
}

func newBase(t *testing.T) *base {
	t.Helper()
	b := &base{dir: t.TempDir()}
	b.bin = filepath.Join(b.dir, "ingot")
	run(t, "cp", builtIngot(), b.bin)
	b.site = filepath.Join(b.dir, "site")
	for _, d := range []string{"nodes", ".ingot/keys"} {
		ok(t, os.MkdirAll(filepath.Join(b.site, d), 0o700))
	}
	put(t, b.site, "ingot.yaml", "state: .ingot/state.db\nstore: .ingot/store\nnetworks:\n  - {name: rack, subnet: 10.9.0.0/16, address: 10.9.0.1}\n")
	run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(b.site, ".ingot/keys/id_ed25519"))

	b.found = filepath.Join(b.dir, "found")
	plantTree(t, b.found)
	b.v1 = copyTree(t, b.found, filepath.Join(b.dir, "v1"))
	release(t, b.v1, 1)
	b.v2 = copyTree(t, b.v1, filepath.Join(b.dir, "v2"))
	release(t, b.v2, 2)
	r := &rig{t: t, base: b, site: b.site}
	r.must("image", "capture", b.v1, "web:1")
	r.must("image", "capture", b.v2, "web:2")

	run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(b.found, "etc/ssh/ssh_host_ed25519_key"))
	run(t, "cp", filepath.Join(b.site, ".ingot/keys/id_ed25519.pub"), filepath.Join(b.found, "root/.ssh/authorized_keys"))
	age(t, b.found)
	return b
}

// rig boots a node of its own for one test; root is where its tree goes, ""
// for any place.
func (b *base) rig(t *testing.T, root string) *rig {
	t.Helper()
	number := int(b.numbers.next.Add(1))
	r := &rig{t: t, base: b, site: b.site, name: fmt.Sprintf("n%d", number), was: b.found}
	if root == "" {
		root = filepath.Join(b.dir, r.name)
	}
	copyTree(t, b.found, root)
	r.node = boot(t, root, number)
	r.write(r.name, fmt.Sprintf("10.9.%d.3", number), number)
	r.pin(r.name, r.node.key)
	return r
}

// write writes the file of a node of the site.
func (r *rig) write(name, address string, number int) {
	r.t.Helper()
	text := fmt.Sprintf("nics:\n  - {name: eth0, mac: \"52:54:00:00:%02x:%02x\", network: rack, address: %s, boot: true}\n", number>>8, number&255, address)
	path := filepath.Join(r.site, "nodes", name+".yaml")
	ok(r.t, os.WriteFile(path+".new", []byte(text), 0o644))
	ok(r.t, os.Rename(path+".new", path))
}

// direct adds a name for the node that leads past the proxy.
func (r *rig) direct() string {
	r.t.Helper()
	name := "d" + r.name
	r.write(name, r.node.addr, 100+r.node.number)
	r.pin(name, r.node.key)
	return name
}

func (r *rig) unwrite(name string) {
	r.t.Helper()
	ok(r.t, os.Remove(filepath.Join(r.site, "nodes", name+".yaml")))
}

func (r *rig) pin(name, key string) {
	r.t.Helper()
	db, err := inventory.Open(r.t.Context(), filepath.Join(r.site, ".ingot/state.db"))
	ok(r.t, err)
	err = db.AddHostKey(r.t.Context(), name, inventory.HostKey{Type: strings.Fields(key)[0], Public: key})
	ok(r.t, errors.Join(err, db.Close()))
}

// start runs ingot in the background; the channel tells how it ended.
func (r *rig) start(args ...string) (*exec.Cmd, <-chan result) {
	r.t.Helper()
	cmd, out, errOut := r.command(args...)
	begin := time.Now()
	ok(r.t, cmd.Start())
	ended := make(chan result, 1)
	go func() {
		_ = cmd.Wait() // the code tells
		ended <- result{out.String(), errOut.String(), cmd.ProcessState.ExitCode(), time.Since(begin)}
	}()
	return cmd, ended
}

// stuck starts a push that comes to a halt while the node stages: what comes
// next from the controller does not arrive until the proxy is told so.
func (r *rig) stuck(image string) (*exec.Cmd, <-chan result) {
	r.t.Helper()
	r.node.proxy.reset()
	r.node.proxy.stallUp.Store(400 << 10)
	cmd, ended := r.start("push", image, r.name)
	eventually(r.t, "the node is staging", func() bool { return r.node.proxy.stalled.Load() && r.node.staging() })
	return cmd, ended
}

// result is how a run of ingot ended.
type result struct {
	out, err string
	code     int
	took     time.Duration
}

func (r result) String() string {
	return fmt.Sprintf("exit %d after %s\n%s%s", r.code, r.took, r.out, r.err)
}

// command is a run of ingot. Pushes are not on trial, unless they say so: what
// is tested of those are their own cases.
func (r *rig) command(args ...string) (*exec.Cmd, *bytes.Buffer, *bytes.Buffer) {
	if args[0] == "push" && !slices.Contains(args, "--confirm") && !slices.Contains(args, "--dir") {
		args = append(args, "--confirm", "0")
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), 100*time.Second)
	r.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, r.base.bin, append([]string{"--site", r.site}, args...)...)
	cmd.Env = []string{"HOME=" + r.base.dir, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.Getenv("TMPDIR")}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	return cmd, &out, &errOut
}

func (r *rig) ingot(args ...string) result {
	start := time.Now()
	cmd, out, errOut := r.command(args...)
	_ = cmd.Run() // the code tells
	return result{out.String(), errOut.String(), cmd.ProcessState.ExitCode(), time.Since(start)}
}

func (r *rig) must(args ...string) result {
	r.t.Helper()
	res := r.ingot(args...)
	if res.code != 0 {
		r.t.Fatalf("ingot %s: %s", strings.Join(args, " "), res)
	}
	return res
}

// fails runs ingot, which must fail with a code and say each of the words.
func (r *rig) fails(code int, words []string, args ...string) result {
	r.t.Helper()
	res := r.ingot(args...)
	if res.code != code {
		r.t.Errorf("ingot %s: want exit %d: %s", strings.Join(args, " "), code, res)
	}
	for _, w := range words {
		if !strings.Contains(res.err, w) {
			r.t.Errorf("ingot %s: does not say %q: %s", strings.Join(args, " "), w, res)
		}
	}
	return res
}

// outcome is the JSON answer of push and rollback for one node.
type outcome struct {
	Node, State, Error string
	Plan               wire.Plan
	Done               wire.Done
	Sent               int64 `json:"sent_bytes"`
	Received           int64 `json:"received_bytes"`
}

func (r *rig) mustJSON(args ...string) outcome {
	r.t.Helper()
	res := r.must(append(args, "--json")...)
	list := nodeLines(r.t, res)
	if len(list) != 1 {
		r.t.Fatalf("ingot %s: not one outcome: %.500s", strings.Join(args, " "), res)
	}
	return list[0]
}

// nodeLines are the outcomes of nodes among the lines of JSON of a deployment.
func nodeLines(t *testing.T, res result) (list []outcome) {
	t.Helper()
	for line := range strings.Lines(res.out) {
		var x struct {
			Event string
			outcome
		}
		if err := json.Unmarshal([]byte(line), &x); err != nil || x.Event == "" {
			t.Fatalf("not an event: %v: %.200q", err, line)
		}
		if x.Event == "node" {
			list = append(list, x.outcome)
		}
	}
	return list
}

// generations asks the node itself.
func (r *rig) generations() []wire.Generation {
	r.t.Helper()
	var list []wire.Generation
	ok(r.t, json.Unmarshal([]byte(r.node.do("/.ingot/agent", "generations", "--json")), &list))
	return list
}

// nodeOwned are the paths where a node differs from its image: its own ones and those of its overlay.
func nodeOwned() []string {
	return []string{"--exclude=/etc/hostname", "--exclude=/etc/machine-id", "--exclude=/etc/hosts", "--exclude=/etc/resolv.conf", "--exclude=/etc/ssh/ssh_host_*",
		"--exclude=/home/*", "--exclude=/root/.ssh/*", "--exclude=/var/lib/app", "--exclude=/etc/systemd"}
}

// is asserts that the node's tree is that of an image.
func (r *rig) is(tree string) {
	r.t.Helper()
	same(r.t, "node "+r.name+" against its image", tree, r.node.root, nodeOwned()...)
	for path, want := range map[string]string{"var/lib/app/data": "the node's own\n", "home/joe/letter": "dear ann\n", "etc/machine-id": "0123456789abcdef0123456789abcdef\n"} {
		if got := read(r.t, filepath.Join(r.node.root, path)); got != want {
			r.t.Errorf("node-owned %q is %q", path, got)
		}
	}
}

// oneOf asserts that the node's tree is exactly one of two images and says whether it is the second.
func (r *rig) oneOf(a, b string) bool {
	r.t.Helper()
	da := differences(r.t, a, r.node.root, nodeOwned()...)
	if da == "" {
		return false
	}
	if db := differences(r.t, b, r.node.root, nodeOwned()...); db != "" {
		r.t.Errorf("node %s is neither the old nor the new tree: against the old one:\n%s\nagainst the new one:\n%s", r.name, da, db)
	}
	return true
}

// isFound asserts that the node's tree is as it was found, byte for byte and
// in every piece of metadata.
func (r *rig) isFound() {
	r.t.Helper()
	same(r.t, "node "+r.name+" against what it was", r.was, r.node.root)
}
