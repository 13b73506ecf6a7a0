package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The service of the nodes behind a balancer is this test's own program under
// another name: it supervises a web server, which it kills and starts anew
// whenever the release that is on the node changes, as systemd would, but
// without any grace: whoever is in the middle of a request loses it.
const (
	webd        = "var/lib/webd/webd" // the node's own
	webdRelease = "srv/web/release"   // the image's
	webdPort    = 8080
	webdStart   = 300 * time.Millisecond // that the server needs to start
	uploadTime  = 10 * time.Second
)

// isWebd says that this process is the service of a node.
func isWebd() bool { return filepath.Base(os.Args[0]) == filepath.Base(webd) }

func runWebd() int {
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, serveWeb())
		return 1
	}
	for {
		cmd := exec.Command("/"+webd, "serve")
		was := releaseState()
		if err := cmd.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		for releaseState() == was {
			time.Sleep(10 * time.Millisecond)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		time.Sleep(webdStart)
	}
}

// releaseState tells one release from another.
func releaseState() string {
	st, err := os.Stat("/" + webdRelease)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(st.ModTime().UnixNano(), st.Size())
}

// serveWeb answers with the release that was there when it was started, and
// takes uploads.
func serveWeb() error {
	release, err := os.ReadFile("/" + webdRelease)
	if err != nil {
		return err
	}
	return http.ListenAndServe(fmt.Sprintf(":%d", webdPort), http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		n, err := io.Copy(io.Discard, q.Body)
		if err != nil {
			return // the other side has lost it
		}
		time.Sleep(20 * time.Millisecond)
		fmt.Fprintf(w, "%d bytes to release %s", n, release)
	}))
}

// balancer is a HAProxy before nodes.
type balancer struct {
	t         *testing.T
	url, sock string
}

func newBalancer(t *testing.T, nodes []*rig) *balancer {
	t.Helper()
	for _, tool := range []string{"haproxy", "socat"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("INGOT_NO_SKIP") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	dir, err := os.MkdirTemp("", "lb") // the path of a socket is short
	ok(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &balancer{t: t, url: "http://127.0.0.1:8088/", sock: filepath.Join(dir, "sock")}
	conf := fmt.Sprintf("global\n stats socket %s mode 600 level admin\ndefaults\n mode http\n timeout connect 5s\n timeout client 1m\n timeout server 1m\nfrontend www\n bind 127.0.0.1:8088\n default_backend web\nbackend web\n balance roundrobin\n", b.sock)
	for _, r := range nodes {
		conf += fmt.Sprintf(" server %s %s:%d\n", r.name, r.node.addr, webdPort)
	}
	put(t, dir, "cfg", conf)
	cmd := exec.Command("haproxy", "-db", "-f", filepath.Join(dir, "cfg"))
	out := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = out, out
	ok(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	eventually(t, "HAProxy answers", func() bool { return request(t.Context(), b.url, nil) == nil })
	return b
}

// profile is the one of docs/DRAIN.md for HAProxy, and a check that the service
// runs what is on the node; log gets a line for each try that found sessions.
func (b *balancer) profile(log string) string {
	b.t.Helper()
	_, text, found := strings.Cut(read(b.t, "../docs/DRAIN.md"), "\n## HAProxy\n")
	_, text, yaml := strings.Cut(text, "```yaml\n")
	text, _, closed := strings.Cut(text, "```\n")
	for old, to := range map[string]string{
		"/run/haproxy/admin.sock": b.sock,
		`test "$busy" = 0`:        fmt.Sprintf(`test "$busy" = 0 || { echo "$INGOT_NODE $busy" >>%s; exit 1; }`, log),
	} {
		if !found || !yaml || !closed || !strings.Contains(text, old) {
			b.t.Fatalf("docs/DRAIN.md has no profile for HAProxy with %s", old)
		}
		text = strings.ReplaceAll(text, old, to)
	}
	return text + fmt.Sprintf("check:\n- {name: web, exec: '/bin/busybox wget -qO- http://127.0.0.1:%d/ | /bin/busybox grep -q \" $(/bin/busybox cat /%s)$\"', retry_for: 30s}\n", webdPort, webdRelease)
}

// request asks once; body is nil for a question.
func request(ctx context.Context, url string, body io.Reader) error {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if body != nil {
		q, err = http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	}
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != 200 || !strings.Contains(string(said), " bytes to release ")) {
		err = fmt.Errorf("status %d: %q", resp.StatusCode, said)
	}
	return err
}

// trickle is an upload that takes its time: a piece each tenth of a second.
type trickle struct{ left int }

func (u *trickle) Read(p []byte) (int, error) {
	if u.left == 0 {
		return 0, io.EOF
	}
	u.left--
	time.Sleep(uploadTime / 100)
	return copy(p, strings.Repeat("x", 100)), nil
}

// load is what the users of a service do meanwhile.
type load struct {
	requests, uploads atomic.Int64 // that have ended well
	mu                sync.Mutex
	failed            []string
	stop              context.CancelFunc
	ended             sync.WaitGroup
}

// begin starts some who ask again and again, and some who upload.
func begin(t *testing.T, url string) *load {
	ctx, stop := context.WithCancel(t.Context())
	l := &load{stop: stop}
	work := func(count *atomic.Int64, late, pause time.Duration, body func() io.Reader) {
		l.ended.Go(func() {
			for time.Sleep(late); ctx.Err() == nil; time.Sleep(pause) {
				if err := request(t.Context(), url, body()); err != nil && !errors.Is(err, context.Canceled) {
					l.mu.Lock()
					l.failed = append(l.failed, err.Error())
					l.mu.Unlock()
				} else {
					count.Add(1)
				}
			}
		})
	}
	for range 4 {
		work(&l.requests, 0, 20*time.Millisecond, func() io.Reader { return nil })
	}
	for i := range 8 {
		work(&l.uploads, time.Duration(i)*uploadTime/8, 0, func() io.Reader { return &trickle{100} })
	}
	return l
}

// end waits for what is under way and says how many failed.
func (l *load) end() (failed []string) {
	l.stop()
	l.ended.Wait()
	return l.failed
}

// Six nodes behind a HAProxy, with users who ask and upload all the time: with
// drain hooks none of them sees a push or a rollback; without, they do.
func testBalanced(t *testing.T, b *base) {
	trees := map[string]string{}
	for _, v := range []string{"1", "2"} {
		trees[v] = copyTree(t, b.v1, filepath.Join(b.dir, "svc"+v))
		put(t, trees[v], webdRelease, v)
	}
	var nodes []*rig
	var names []string
	for range 6 {
		r := b.rig(t, "")
		node := filepath.Join(r.site, "nodes", r.name+".yaml")
		ok(t, os.WriteFile(node, []byte("classes: [BALANCED]\n"+read(t, node)), 0o644))
		nodes, names = append(nodes, r), append(names, r.name)
	}
	r, all := nodes[0], strings.Join(names, ",")
	for v, tree := range trees {
		r.must("image", "capture", tree, "svc:"+v)
	}
	r.must("push", "svc:1", all, "--parallel", "2")
	self, err := os.Executable()
	ok(t, err)
	for _, n := range nodes {
		ok(t, os.MkdirAll(filepath.Join(n.node.root, filepath.Dir(webd)), 0o755))
		run(t, "cp", self, filepath.Join(n.node.root, webd))
		ok(t, n.node.command("/"+webd).Start())
		eventually(t, "the service answers", func() bool {
			return request(t.Context(), fmt.Sprintf("http://%s:%d/", n.node.addr, webdPort), nil) == nil
		})
	}
	lb := newBalancer(t, nodes)
	waits := filepath.Join(t.TempDir(), "waits")
	put(t, r.site, "profile/BALANCED.yaml", lb.profile(waits))

	change := func(args ...string) (l *load, took time.Duration) {
		l = begin(t, lb.url)
		time.Sleep(uploadTime) // until there are uploads everywhere, at every stage
		before, ups := l.requests.Load(), l.uploads.Load()
		res := r.must(append(args, "--parallel", "2", "--confirm", "30s")...)
		t.Logf("%s: %.1f s, %d requests and %d uploads ended well meanwhile", args, res.took.Seconds(), l.requests.Load()-before, l.uploads.Load()-ups)
		return l, res.took
	}
	serves := func(want string) {
		t.Helper()
		for _, n := range nodes {
			if got := n.node.do("/bin/busybox", "wget", "-qO-", fmt.Sprintf("http://127.0.0.1:%d/", webdPort)); !strings.HasSuffix(got, " "+want) {
				t.Errorf("%s serves %q, want release %s", n.name, got, want)
			}
		}
	}
	l, _ := change("push", "svc:2", all, "--no-drain")
	failed := l.end()
	if serves("2"); len(failed) == 0 {
		t.Fatal("without drain hooks no request failed: this test cannot fail")
	}
	t.Logf("without drain hooks %d requests failed, such as %s", len(failed), failed[0])
	r.must("rollback", all, "--no-drain")
	serves("1")

	for _, args := range [][]string{{"push", "svc:2", all}, {"rollback", all}} {
		l, took := change(args...)
		serves(map[string]string{"push": "2", "rollback": "1"}[args[0]])
		failed := l.end()
		tries := strings.Count(read(t, waits), "\n")
		ok(t, os.Remove(waits))
		t.Logf("%s: %d requests, %d uploads of %s, %d failed; sessions were waited for %d times", args[0], l.requests.Load(), l.uploads.Load(), uploadTime, len(failed), tries)
		if len(failed) > 0 {
			t.Errorf("%s: %d requests failed, such as %s", args[0], len(failed), failed[0])
		}
		if l.requests.Load() < 500 || l.uploads.Load() < 16 || tries < 6 || took < uploadTime {
			t.Errorf("%s: there was no load to speak of", args[0])
		}
	}
}
