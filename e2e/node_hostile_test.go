package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

func hostileCases() map[string]func(*testing.T, *base) {
	return map[string]func(*testing.T, *base){"a hostile agent": testHostile, "an agent that never speaks": testMute, "a shell that never ends": testEndless}
}

// impostor makes the node run a program of the test's in the agent's place:
// the node is the one who says what the digest of its agent is.
func (r *rig) impostor(script string) {
	r.t.Helper()
	agent := filepath.Join(r.node.root, ".ingot/agent")
	sum := filepath.Join(r.node.root, "usr/bin/sha256sum")
	if st, err := os.Stat(sum); err == nil && st.Size() > 1000 {
		line := r.node.do("/usr/bin/sha256sum", "/.ingot/agent")
		ok(r.t, os.Remove(sum))
		ok(r.t, os.WriteFile(sum, []byte("#!/bin/sh\ncat <<'.'\n"+line+".\n"), 0o755))
	}
	ok(r.t, os.WriteFile(agent+".x", []byte("#!/bin/bash\n"+script+"\n"), 0o700))
	ok(r.t, os.Rename(agent+".x", agent))
}

// says is what a real agent of this version would send, frame by frame.
func (r *rig) says(frames ...func(*wire.Conn)) []byte {
	r.t.Helper()
	version := strings.TrimSpace(strings.TrimPrefix(r.must("--version").out, "ingot version "))
	var buf bytes.Buffer
	c := wire.New(strings.NewReader(""), &buf)
	_ = c.Greet(version) // nobody answers
	for _, f := range frames {
		f(c)
	}
	return buf.Bytes()
}

func frame(kind wire.Kind, payload []byte) func(*wire.Conn) {
	return func(c *wire.Conn) { _ = c.SendRaw(kind, payload) }
}

func object(kind wire.Kind, v any) func(*wire.Conn) {
	return func(c *wire.Conn) { _ = c.Send(kind, v) }
}

func blob(b []byte) func(*wire.Conn) { return func(c *wire.Conn) { _ = c.SendBlob(b) } }

func bomb(t *testing.T, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b)
	ok(t, err)
	_, err = io.CopyN(w, zeros{}, int64(n))
	ok(t, err)
	ok(t, w.Close())
	return b.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func testHostile(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	var lost digest.ID
	lost[0] = 7
	half := &manifest.Manifest{Entries: []entry.Entry{{Path: ".", Type: entry.Dir, Mode: 0o755},
		{Path: "a", Type: entry.File, Mode: 0o644, Size: 5, Chunks: []entry.Chunk{{ID: lost, Size: 5}}}}}
	escape := &manifest.Manifest{Entries: []entry.Entry{{Path: ".", Type: entry.Dir, Mode: 0o755}, {Path: "../../etc/cron.d/x", Type: entry.Dir, Mode: 0o755}}}
	ids := make([]byte, 4<<20)
	pushes := []string{"push", "web:2", r.name}
	capture := []string{"image", "capture", "root@" + r.name + ":/", "hostile:1"}
	kept := func(c *wire.Conn) {
		_ = c.SendKept(wire.Kept{Has: true, Generations: []wire.Generation{{Number: 1, Kind: "push\x1b[2J", Ref: "\x1b[2J", By: "\x1b[2J"}}})
	}
	planOf := func(p wire.Plan) func(*wire.Conn) { return func(c *wire.Conn) { _ = c.SendPlan(p) } }
	plan := planOf(wire.Plan{Notes: []string{"\x1b[2Jall is well"}, Changes: []wire.Change{{Path: "x\x1b[2J", Kind: "add\x1b[2J", Why: "\x1b[2J"}}})
	for name, tc := range map[string]struct {
		args []string
		say  []byte
		then string // what the program does afterwards
		want string
	}{
		"noise":                   {pushes, []byte(noise(rand.New(rand.NewPCG(4, 4)), 300<<10)), "", "no ingot answers there"},
		"zeros without end":       {pushes, nil, "exec cat /dev/zero", "no ingot answers there"},
		"ends at once":            {pushes, nil, "", ""},
		"ends after the hello":    {pushes, r.says(), "", ""},
		"a frame of 4 GiB":        {pushes, append(r.says(), 'A', 0xff, 0xff, 0xff, 0xff), "cat /dev/zero", "limit"},
		"a frame that never ends": {pushes, append(r.says(), binary.BigEndian.AppendUint32([]byte{'A'}, 1<<20)...), "", "broke"},
		"not JSON":                {pushes, r.says(frame(wire.KindAnswer, []byte("{{{"))), "sleep 30", ""},
		"deep JSON":               {pushes, r.says(frame(wire.KindAnswer, bytes.Repeat([]byte{'['}, 8<<20))), "sleep 30", ""},
		"an unknown frame":        {pushes, r.says(frame('?', nil)), "sleep 30", ""},
		"escapes in an error":     {pushes, r.says(object(wire.KindError, wire.Error{Kind: "failed", Text: "ok\x1b[2J\x1b[1;1H", Hint: "\x1b]0;x\x07"})), "sleep 30", "ok"},
		"escapes on stderr":       {pushes, nil, "printf 'ok\\033[2J' >&2", "ok"},
		"escapes in a plan":       {append(pushes, "--dry-run"), r.says(kept, plan), "sleep 1", ""},
		"asks for everything":     {pushes, append(r.says(kept, planOf(wire.Plan{})), bytes.Repeat(r.frameOf(frame(wire.KindWant, ids)), 20)...), "sleep 30", ""},
		"asks for others' chunk":  {pushes, r.says(kept, planOf(wire.Plan{}), frame(wire.KindWant, lost[:])), "sleep 30", "not part of the image"},
		"knows what is not": {pushes, r.says(func(c *wire.Conn) {
			_ = c.SendKept(wire.Kept{Knows: &wire.Made{}})
		}, frame('?', nil)), "sleep 30", "want"},
		"a bomb of what is kept": {pushes, r.says(frame(wire.KindBlob, bomb(t, 1<<30))), "sleep 30", "receive what is kept"},
		"no architecture":        {pushes, append([]byte("\x00ingot\x00U\x00\x00\x00\x40"), bytes.Repeat([]byte("\x1b"), 64)...), "sleep 30", "x86_64"},
		"a bomb of a plan":       {pushes, r.says(kept, frame(wire.KindBlob, bomb(t, 1<<30))), "sleep 30", "receive blob"},
		"a bomb of chunks":       {capture, r.says(frame(wire.KindChunks, bomb(t, 1<<30))), "sleep 30", "size"},
		"chunks nobody asked for": {capture, r.says(func(c *wire.Conn) {
			x := c.NewBatch()
			_ = x.Add(digest.Of([]byte("x")), []byte("x"))
			_ = x.Flush()
		}), "sleep 30", "unasked"},
		"an image that is half true": {capture, r.says(object(wire.KindAnswer, wire.Captured{}), blob(half.Encode())), "sleep 30", "chunks"},
		"an image of other places":   {capture, r.says(object(wire.KindAnswer, wire.Captured{}), blob(escape.Encode())), "sleep 30", ".."},
		"escapes in a capture":       {[]string{"image", "capture", "root@" + r.name + ":/", "hostile:2"}, r.says(object(wire.KindAnswer, wire.Captured{Notes: []string{"\x1b[2J"}}), blob((&manifest.Manifest{Entries: half.Entries[:1]}).Encode())), "sleep 1", ""},
	} {
		ok(t, os.WriteFile(filepath.Join(r.node.root, "says"), tc.say, 0o644))
		r.impostor("cat /says; " + tc.then)
		cmd, out, errOut := r.command(tc.args...)
		start := time.Now()
		rss := weighed(t, cmd).mb
		res := result{out.String(), errOut.String(), cmd.ProcessState.ExitCode(), time.Since(start)}
		if (res.code == 0) != (name == "escapes in a plan" || name == "escapes in a capture") || res.took > 15*time.Second || rss > 400 || !strings.Contains(res.err, tc.want) {
			t.Errorf("%s: want %q; %d MB of memory: %.2000s", name, tc.want, rss, fmt.Sprintf("%q", res.String()))
		}
		if strings.ContainsAny(res.out+res.err, "\x1b\x07\r") {
			t.Errorf("%s: what a node said reached the terminal as it was: %.2000q", name, res.String())
		}
		if strings.HasPrefix(name, "an image") {
			r.fails(5, nil, "image", "show", "hostile:1")
		}
	}
}

// weigh names the file into which runMain writes how much memory the command
// in its arguments had, in MB.
const weigh = "INGOT_E2E_WEIGH"

// weight is what a command had: its peak memory in MB, and processor time.
type weight struct {
	mb  int64
	cpu time.Duration
}

// weighed runs a command and returns its weight, by way of a process that is
// small: until its execve a child counts the pages of its parent.
func weighed(t *testing.T, cmd *exec.Cmd) (w weight) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "weight")
	cmd.Path, cmd.Args = "/proc/self/exe", append([]string{"weigh", cmd.Path}, cmd.Args[1:]...)
	cmd.Env = append(cmd.Env, weigh+"="+file)
	_ = cmd.Run() // the code tells
	_, err := fmt.Sscan(read(t, file), &w.mb, &w.cpu)
	ok(t, err)
	return w
}

// weighing is the small process.
func weighing(file string) int {
	cmd := exec.Command(os.Args[1], os.Args[2:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig means the thread
	_ = cmd.Run()          // the code tells
	if cmd.ProcessState == nil {
		return 127
	}
	peak, cpu := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss>>10, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()
	if err := os.WriteFile(file, fmt.Appendln(nil, peak, int64(cpu)), 0o600); err != nil {
		return 126
	}
	return cmd.ProcessState.ExitCode()
}

// frameOf is one frame alone.
func (r *rig) frameOf(f func(*wire.Conn)) []byte {
	return bytes.TrimPrefix(r.says(f), r.says())
}

func testMute(t *testing.T, b *base) {
	r := b.rig(t, "")
	r.must("push", "web:1", r.name)
	r.impostor("exec sleep 100")
	res := r.fails(1, []string{r.name, "did not greet", "/root/.bashrc"}, "push", "web:2", r.name)
	if res.took > 40*time.Second {
		t.Errorf("took %s", res.took)
	}
}

// The very first command floods the controller and does not end.
func testEndless(t *testing.T, b *base) {
	r := b.rig(t, "")
	put(t, r.node.root, "root/.bashrc", "exec cat /dev/zero\n")
	cmd, out, errOut := r.command("push", "web:1", r.name)
	start := time.Now()
	rss := weighed(t, cmd).mb
	if took := time.Since(start); cmd.ProcessState.ExitCode() != 1 || took > 5*time.Second || rss > 300 {
		t.Errorf("%s, %d MB: %s%s", took, rss, out, errOut)
	}
}
