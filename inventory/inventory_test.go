package inventory

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func open(t *testing.T) *DB {
	t.Helper()
	d, err := Open(t.Context(), filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestLeasesSurviveReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a dir", "state?.db")
	want := Lease{MAC: "52:54:00:00:00:01", IP: netip.MustParseAddr("10.77.0.100"), State: "bound", Iface: "eth0", Expires: time.Unix(2000000000, 0)}
	d, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SaveLease(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	// A second process reads it while the first has not closed anything: what a kill -9 leaves.
	other, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := other.Leases(t.Context())
	if err != nil || len(got) != 1 || got[0] != want {
		t.Fatalf("Leases = %+v, %v; want %+v", got, err, want)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("state file mode = %v, %v; want 0600: it holds host keys", st.Mode(), err)
	}
	if err := other.DeleteLease(t.Context(), want.IP); err != nil {
		t.Fatal(err)
	}
	if got, _ := d.Leases(t.Context()); len(got) != 0 {
		t.Errorf("after DeleteLease: %+v", got)
	}
	d.Close()
	other.Close()
}

func TestInstallTakesEachStepOnce(t *testing.T) {
	ctx, d := t.Context(), open(t)
	if _, err := d.BeginAttempt(ctx, "n1", "10.0.0.1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("BeginAttempt of a node never armed: %v, want ErrNotFound", err)
	}
	must(t, d.Arm(ctx, "n1", "web:1", "abc", "key", "root"))
	in, err := d.BeginAttempt(ctx, "n1", "10.0.0.1")
	must(t, err)
	if in.Attempt != 1 || in.Nonce == "" || in.State != Armed {
		t.Fatalf("first attempt: %+v", in)
	}
	if _, err := d.Claim(ctx, "n1", "wrong", "client-a", "10.0.0.1"); !errors.Is(err, ErrStale) {
		t.Errorf("claim with a wrong nonce: %v, want ErrStale", err)
	}
	a, err := d.Claim(ctx, "n1", in.Nonce, "client-a", "10.0.0.1")
	must(t, err)
	again, err := d.Claim(ctx, "n1", in.Nonce, "client-a", "10.0.0.1")
	must(t, err)
	if a.Token == "" || again.Token != a.Token {
		t.Errorf("a repeated claim got token %q, the first %q", again.Token, a.Token)
	}
	if _, err := d.Claim(ctx, "n1", in.Nonce, "client-b", "10.0.0.1"); !errors.Is(err, ErrClaimed) {
		t.Errorf("second claimant: %v, want ErrClaimed", err)
	}
	if _, err := d.Claim(ctx, "n1", in.Nonce, "client-a", "10.0.0.9"); !errors.Is(err, ErrForeign) {
		t.Errorf("claimant from another address: %v, want ErrForeign", err)
	}
	for _, text := range []string{"a second machine", "10.0.0.9"} {
		if !hasEvent(t, d, "n1", "alarm", text) {
			t.Errorf("no alarm with %q", text)
		}
	}
	must(t, d.Progress(ctx, a.Token, Step{Task: "write", Done: 5, Total: 10, Writing: true}))
	if got, _ := d.Install(ctx, "n1"); got.State != Writing || got.Done != 5 {
		t.Errorf("after progress: %+v", got)
	}
	must(t, d.Finish(ctx, a.Token, ""))
	must(t, d.Finish(ctx, a.Token, ""))
	if err := d.Finish(ctx, a.Token, "late failure"); !errors.Is(err, ErrNotArmed) {
		t.Errorf("failure after success: %v, want ErrNotArmed", err)
	}
	if err := d.Progress(ctx, a.Token, Step{Task: "write", Done: 6, Total: 10, Writing: true}); !errors.Is(err, ErrNotArmed) {
		t.Errorf("progress after the end: %v, want ErrNotArmed", err)
	}
	if _, err := d.BeginAttempt(ctx, "n1", "10.0.0.1"); !errors.Is(err, ErrNotArmed) {
		t.Errorf("an installed node was installed again: %v", err)
	}
	if _, err := d.Session(ctx, ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("the empty token opened a session: %v", err)
	}
}

func TestRetriesAreBounded(t *testing.T) {
	ctx, d := t.Context(), open(t)
	must(t, d.Arm(ctx, "n1", "web:1", "abc", "key", "root"))
	var last Install
	for i := 1; i <= MaxAttempts; i++ {
		in, err := d.BeginAttempt(ctx, "n1", "10.0.0.1")
		must(t, err)
		if in.State != Armed || in.Attempt != i {
			t.Fatalf("attempt %d: %+v", i, in)
		}
		if in.Nonce == last.Nonce {
			t.Fatal("two attempts share a nonce")
		}
		if last, err = d.Claim(ctx, "n1", in.Nonce, "c", "10.0.0.1"); err != nil {
			t.Fatal(err)
		}
		must(t, d.Progress(ctx, last.Token, Step{Task: "write the image", Done: 1, Total: 2, Writing: true}))
	}
	in, err := d.BeginAttempt(ctx, "n1", "10.0.0.1")
	must(t, err)
	if in.State != Failed || !strings.Contains(in.Reason, "write the image") {
		t.Fatalf("after %d attempts: %+v, want failed with the task it stopped at", MaxAttempts, in)
	}
	if err := d.Progress(ctx, last.Token, Step{Task: "x", Done: 0, Total: 0, Writing: true}); err == nil {
		t.Error("the session of a given-up attempt still works")
	}
	must(t, d.Arm(ctx, "n1", "web:1", "abc", "key", "root"))
	if in, err := d.BeginAttempt(ctx, "n1", "10.0.0.1"); err != nil || in.Attempt != 1 {
		t.Errorf("armed again: %+v, %v", in, err)
	}
}

func TestOnlyOneOfManyClaimantsWins(t *testing.T) {
	ctx, d := t.Context(), open(t)
	must(t, d.Arm(ctx, "n1", "web:1", "abc", "key", "root"))
	in, err := d.BeginAttempt(ctx, "n1", "10.0.0.1")
	must(t, err)
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := map[string]bool{}
	for i := range 8 {
		wg.Go(func() {
			got, err := d.Claim(ctx, "n1", in.Nonce, string(rune('a'+i)), "10.0.0.1")
			if err == nil {
				mu.Lock()
				won[got.Token] = true
				mu.Unlock()
			} else if !errors.Is(err, ErrClaimed) {
				t.Errorf("claim: %v", err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("%d claimants got a session, want 1", len(won))
	}
}

func TestHostKeyStaysWhenOfferedAgain(t *testing.T) {
	ctx, d := t.Context(), open(t)
	must(t, d.AddHostKey(ctx, "n1", HostKey{"ed25519", "private-1", "public-1"}))
	must(t, d.AddHostKey(ctx, "n1", HostKey{"ed25519", "private-2", "public-2"}))
	got, err := d.HostKeys(ctx, "n1")
	if err != nil || len(got) != 1 || got[0].Public != "public-1" {
		t.Errorf("HostKeys = %+v, %v; want the first key", got, err)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	d, err := Open(t.Context(), path)
	must(t, err)
	_, err = d.db.Exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)`)
	must(t, err)
	d.Close()
	if _, err := Open(t.Context(), path); err == nil || !strings.Contains(err.Error(), "newer ingot") {
		t.Errorf("Open = %v, want a refusal that names the way out", err)
	}
}

func TestGenerationsBeginAnewWithAnInstall(t *testing.T) {
	ctx, d := t.Context(), open(t)
	must(t, d.AddGeneration(ctx, Generation{Node: "n1", Number: 1, Kind: "install"}))
	must(t, d.AddGeneration(ctx, Generation{Node: "n1", Number: 2, Kind: "push"}))
	must(t, d.AddGeneration(ctx, Generation{Node: "n1", Number: 1, Kind: "install", Ref: "web:2"}))
	got, err := d.Generations(ctx, "n1")
	if err != nil || len(got) != 1 || got[0].Ref != "web:2" {
		t.Errorf("Generations = %+v, %v", got, err)
	}
}

func hasEvent(t *testing.T, d *DB, node, stage, text string) bool {
	t.Helper()
	evs, err := d.Events(context.Background(), node, nil, 0, 0)
	must(t, err)
	for _, e := range evs {
		if e.Stage == stage && strings.Contains(e.Detail, text) {
			return true
		}
	}
	return false
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestDisarmForgetsWhatHasNotBegun(t *testing.T) {
	ctx, d := t.Context(), open(t)
	if err := d.Disarm(ctx, "n1", "root"); !errors.Is(err, ErrNotArmed) {
		t.Errorf("Disarm of a node never armed: %v", err)
	}
	must(t, d.Arm(ctx, "n1", "web:1", "abc", "key", "root"))
	must(t, d.Disarm(ctx, "n1", "root"))
	if _, err := d.Install(ctx, "n1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after Disarm: %v, want ErrNotFound", err)
	}
	must(t, d.Arm(ctx, "n1", "web:1", "abc", "key", "root"))
	in, err := d.BeginAttempt(ctx, "n1", "10.0.0.1")
	must(t, err)
	in, err = d.Claim(ctx, "n1", in.Nonce, "c", "10.0.0.1")
	must(t, err)
	must(t, d.Progress(ctx, in.Token, Step{Task: "partition", Done: 0, Total: 0, Writing: true}))
	if err := d.Disarm(ctx, "n1", "root"); !errors.Is(err, ErrNotArmed) {
		t.Errorf("Disarm while the disk is written: %v, want ErrNotArmed", err)
	}
	// After a power cut the next attempt is armed again, and the disk is no better.
	if _, err := d.BeginAttempt(ctx, "n1", "10.0.0.1"); err != nil {
		t.Fatal(err)
	}
	if err := d.Disarm(ctx, "n1", "root"); !errors.Is(err, ErrNotArmed) {
		t.Errorf("Disarm of a half-written disk: %v, want ErrNotArmed", err)
	}
}

func TestFailEndsOnlyTheAttemptItNames(t *testing.T) {
	ctx, d := t.Context(), open(t)
	must(t, d.Arm(ctx, "n1", "web:1", "abc", "key", "root"))
	in, err := d.BeginAttempt(ctx, "n1", "")
	must(t, err)
	if err := d.Fail(ctx, "n1", "other", "why"); !errors.Is(err, ErrStale) {
		t.Errorf("Fail with a wrong nonce: %v", err)
	}
	must(t, d.Fail(ctx, "n1", in.Nonce, "the profile is broken"))
	if got, _ := d.Install(ctx, "n1"); got.State != Failed || got.Reason != "the profile is broken" {
		t.Errorf("after Fail: %+v", got)
	}
	if _, err := d.Claim(ctx, "n1", in.Nonce, "c", "10.0.0.1"); !errors.Is(err, ErrNotArmed) {
		t.Errorf("Claim after Fail: %v", err)
	}
}

func TestOldEventsAreForgotten(t *testing.T) {
	ctx, d := t.Context(), open(t)
	must(t, d.AddEvent(ctx, Event{Node: "n1", Stage: "old", Time: time.Now().Add(-100 * 24 * time.Hour)}))
	must(t, d.AddEvent(ctx, Event{Node: "n1", Stage: "new"}))
	must(t, d.ForgetEvents(ctx, time.Now().Add(-90*24*time.Hour)))
	if evs, err := d.Events(ctx, "n1", nil, 0, 0); err != nil || len(evs) != 1 || evs[0].Stage != "new" {
		t.Errorf("Events = %+v, %v", evs, err)
	}
}
