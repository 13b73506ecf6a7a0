package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"ingot/installer"
	"ingot/internal/digest"
	"ingot/inventory"
)

// fakeBoots hands out one script and one job.
type fakeBoots struct {
	broken    error // what Job says
	seen      Machine
	installed int
}

func (f *fakeBoots) Script(_ context.Context, m Machine) (string, error) {
	f.seen = m
	return "#!ipxe\n", nil
}

func (f *fakeBoots) Job(_ context.Context, in inventory.Install) (installer.Job, error) {
	return installer.Job{Node: in.Node, Ref: in.Ref}, f.broken
}

func (f *fakeBoots) Installed(context.Context, inventory.Install, installer.Ending) error {
	f.installed++
	return nil
}

// fakeImages has one image of one pack.
type fakeImages struct{ image, pack digest.ID }

func (f fakeImages) RawManifest(context.Context, digest.ID) ([]byte, error) {
	return []byte("manifest"), nil
}
func (f fakeImages) RawIndex(context.Context, digest.ID) ([]byte, error) { return []byte("index"), nil }

func (f fakeImages) OpenPack(_ context.Context, image, pack digest.ID) (io.ReadSeekCloser, error) {
	if image != f.image || pack != f.pack {
		return nil, errors.New("not a pack of this image")
	}
	return struct {
		io.ReadSeeker
		io.Closer
	}{strings.NewReader("0123456789"), io.NopCloser(strings.NewReader(""))}, nil
}

type bench struct {
	t     *testing.T
	db    *inventory.DB
	boots *fakeBoots
	srv   *httptest.Server
	s     *Server
	image digest.ID
	pack  digest.ID
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	db, err := inventory.Open(t.Context(), filepath.Join(dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	b := &bench{t: t, db: db, boots: &fakeBoots{}, image: digest.Of([]byte("image")), pack: digest.Of([]byte("pack"))}
	b.s = &Server{State: db, Boots: b.boots, Images: fakeImages{b.image, b.pack}, Netboot: filepath.Join(dir, "netboot"), Logs: filepath.Join(dir, "logs"),
		Loaders: fstest.MapFS{"snponly.efi": {Data: []byte("MZ")}}}
	b.srv = httptest.NewServer(b.s.Handler())
	t.Cleanup(b.srv.Close)
	return b
}

// call makes one request and returns status and body.
func (b *bench) call(method, path, token string, body any, header ...string) (int, string) {
	b.t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		b.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(b.t.Context(), method, b.srv.URL+path, bytes.NewReader(raw))
	if err != nil {
		b.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp.StatusCode, string(out)
}

func (b *bench) want(code int, what string, got int, body string) {
	b.t.Helper()
	if got != code {
		b.t.Errorf("%s: status %d, want %d: %s", what, got, code, body)
	}
}

func (b *bench) arm(ip string) string {
	b.t.Helper()
	if err := b.db.Arm(b.t.Context(), "n1", "web:1", b.image.String(), "key", "root"); err != nil {
		b.t.Fatal(err)
	}
	in, err := b.db.BeginAttempt(b.t.Context(), "n1", ip)
	if err != nil {
		b.t.Fatal(err)
	}
	return in.Nonce
}

func TestOneInstallationFromClaimToEnd(t *testing.T) {
	b := newBench(t)
	for _, path := range []string{installer.PathManifest, installer.PathIndex, installer.PathPack + b.pack.String()} {
		code, body := b.call("GET", path, "", nil)
		b.want(http.StatusUnauthorized, path+" without a session", code, body)
		code, body = b.call("GET", path, "guessed", nil)
		b.want(http.StatusConflict, path+" with a wrong token", code, body)
	}
	nonce := b.arm("127.0.0.1")
	code, body := b.call("POST", installer.PathClaim, "", installer.Claim{Node: "n1", Nonce: "x", Client: "c"})
	b.want(http.StatusConflict, "claim with a wrong nonce", code, body)
	code, body = b.call("POST", installer.PathClaim, "", installer.Claim{Node: "n9", Nonce: nonce, Client: "c"})
	b.want(http.StatusNotFound, "claim of another node", code, body)
	code, body = b.call("POST", installer.PathClaim, "", installer.Claim{Node: "n1", Nonce: nonce, Client: "c", Facts: map[string]string{"serial": "S1"}})
	b.want(http.StatusOK, "claim", code, body)
	var got installer.Claimed
	if err := json.Unmarshal([]byte(body), &got); err != nil || got.Token == "" || got.Job.Ref != "web:1" {
		t.Fatalf("claim answered %q, %v", body, err)
	}
	code, body = b.call("POST", installer.PathClaim, "", installer.Claim{Node: "n1", Nonce: nonce, Client: "thief"})
	b.want(http.StatusForbidden, "second claimant", code, body)

	code, body = b.call("GET", installer.PathPack+b.pack.String(), got.Token, nil, "Range", "bytes=2-4")
	b.want(http.StatusPartialContent, "range of a pack", code, body)
	if body != "234" {
		t.Errorf("range of a pack is %q", body)
	}
	code, body = b.call("GET", installer.PathPack+digest.Of([]byte("other")).String(), got.Token, nil)
	b.want(http.StatusGone, "pack of another image", code, body)
	code, body = b.call("POST", installer.PathProgress, got.Token, installer.Progress{Task: "write the image", Done: 1, Total: 2, Writing: true})
	b.want(http.StatusOK, "progress", code, body)
	if in, err := b.db.Install(t.Context(), "n1"); err != nil || in.State != inventory.Writing {
		t.Errorf("after progress: %+v, %v", in, err)
	}
	for range 2 { // the answer may be lost: a repeat is no error and no second generation
		code, body = b.call("POST", installer.PathEnd, got.Token, installer.Ending{Log: "all well"})
		b.want(http.StatusOK, "end", code, body)
	}
	if b.boots.installed != 2 {
		t.Errorf("Installed was called %d times: a server that died between the two would lack a generation", b.boots.installed)
	}
	code, body = b.call("GET", installer.PathPack+b.pack.String(), got.Token, nil)
	b.want(http.StatusConflict, "pack after the end", code, body)
	logs, err := filepath.Glob(filepath.Join(b.s.Logs, "n1", "*.log"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("no log is kept: %v", err)
	}
	if text, err := os.ReadFile(logs[0]); err != nil || string(text) != "all well" {
		t.Errorf("the log says %q, %v", text, err)
	}
}

func TestClaimFromAnotherAddressIsAnAlarm(t *testing.T) {
	b := newBench(t)
	nonce := b.arm("10.0.0.7")
	code, body := b.call("POST", installer.PathClaim, "", installer.Claim{Node: "n1", Nonce: nonce, Client: "c"})
	b.want(http.StatusForbidden, "claim from another address", code, body)
	events, err := b.db.Events(t.Context(), "n1", nil, 0, 0)
	if err != nil || len(events) == 0 || events[len(events)-1].Stage != "alarm" {
		t.Errorf("events %+v, %v: no alarm", events, err)
	}
}

func TestBootScriptAsFirmwareWantsIt(t *testing.T) {
	b := newBench(t)
	resp, err := http.Get(b.srv.URL + "/boot/52:54:00:00:00:01.ipxe?uuid=u&serial=s")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.ContentLength != 7 || resp.TransferEncoding != nil {
		t.Errorf("status %d, length %d, encoding %v: some firmware takes neither redirects nor chunks", resp.StatusCode, resp.ContentLength, resp.TransferEncoding)
	}
	want := Machine{MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}, IP: "127.0.0.1", UUID: "u", Serial: "s", Server: b.srv.URL}
	if got := b.boots.seen; got.MAC.String() != want.MAC.String() || got.IP != want.IP || got.UUID != want.UUID || got.Serial != want.Serial || got.Server != want.Server {
		t.Errorf("the decider saw %+v, want %+v", got, want)
	}
	code, body := b.call("GET", "/boot/nonsense.ipxe", "", nil)
	b.want(http.StatusBadRequest, "no MAC", code, body)
	code, body = b.call("GET", "/loader/SNPONLY.EFI", "", nil)
	b.want(http.StatusOK, "loader by HTTP", code, body)
}

func TestNetbootServesTwoNamesAndNoPaths(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(b.s.Netboot, "key")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"vmlinuz", "build.json"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("bytes"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	code, body := b.call("GET", "/netboot/key/vmlinuz?node=n1&mac=52:54:00:00:00:01", "", nil)
	b.want(http.StatusOK, "kernel", code, body)
	for _, path := range []string{"/netboot/key/build.json", "/netboot/..%2Fkey/vmlinuz", "/netboot/.key/vmlinuz", "/netboot/nokey/initrd"} {
		code, body = b.call("GET", path, "", nil)
		b.want(http.StatusNotFound, path, code, body)
	}
	events, err := b.db.Events(t.Context(), "n1", nil, 0, 0)
	if err != nil || len(events) != 1 || events[0].Stage != "kernel" {
		t.Errorf("events %+v, %v", events, err)
	}
}

func TestTooLargeAReportIsRefused(t *testing.T) {
	b := newBench(t)
	nonce := b.arm("127.0.0.1")
	_, body := b.call("POST", installer.PathClaim, "", installer.Claim{Node: "n1", Nonce: nonce, Client: "c"})
	var got installer.Claimed
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	code, body := b.call("POST", installer.PathEnd, got.Token, installer.Ending{Reason: "r", Log: strings.Repeat("x", maxBody)})
	b.want(http.StatusBadRequest, "a log over the limit", code, body)
}

func TestBrokenProfileEndsTheAttempt(t *testing.T) {
	b := newBench(t)
	nonce := b.arm("127.0.0.1")
	if _, body := b.call("GET", installer.PathArmed+"?node=n1", "", nil); body != "false" {
		t.Errorf("an attempt that has begun looks as if somebody had armed again: %s", body)
	}
	b.boots.broken = errors.New("files/etc/motd/WEB is gone")
	code, body := b.call("POST", installer.PathClaim, "", installer.Claim{Node: "n1", Nonce: nonce, Client: "c"})
	b.want(http.StatusUnprocessableEntity, "claim of a broken profile", code, body)
	in, err := b.db.Install(t.Context(), "n1")
	if err != nil || in.State != inventory.Failed || !strings.Contains(in.Reason, "motd") {
		t.Errorf("the server says %+v, %v", in, err)
	}
	if err := b.db.Arm(t.Context(), "n1", "web:1", b.image.String(), "key", "root"); err != nil {
		t.Fatal(err)
	}
	if _, body := b.call("GET", installer.PathArmed+"?node=n1", "", nil); body != "true" {
		t.Errorf("armed again, and the waiting installer hears %s", body)
	}
}
