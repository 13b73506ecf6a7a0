package imager

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/imager/wire"
	"ingot/internal/digest"
)

// load is what comes of asking.
func load(ctx context.Context, a *answers, key digest.ID, produce producer) (string, error) {
	b, err := a.get(ctx, key, produce)
	return string(b), err
}

// Who gives up does not take the answer from those that wait for it, even when
// it was made for him.
func TestWhoAskedFirstGivesUp(t *testing.T) {
	a := newAnswers(t.TempDir())
	key := digest.ID{1}
	begun, goOn := make(chan struct{}), make(chan struct{})
	var times atomic.Int32
	produce := func(ctx context.Context, _ []byte) ([]byte, error) {
		times.Add(1)
		close(begun)
		select {
		case <-goOn:
			return []byte("made"), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	first, giveUp := context.WithCancel(t.Context())
	errs := make(chan error, 1)
	go func() { _, err := load(first, a, key, produce); errs <- err }()
	<-begun
	got := make(chan string, 1)
	go func() { b, err := load(t.Context(), a, key, produce); got <- b; errs <- err }()
	waitFor(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.made[key].asking == 2 })
	giveUp()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up: %v", err)
	}
	close(goOn)
	if b, err := <-got, <-errs; b != "made" || err != nil || times.Load() != 1 {
		t.Errorf("who waited: %q, %v, made %d times", b, err, times.Load())
	}
	if err := a.close(); err != nil {
		t.Error(err)
	}
}

// What nobody waits for any more is given up, and made when somebody asks again.
func TestAllGiveUp(t *testing.T) {
	a := newAnswers(t.TempDir())
	key := digest.ID{1}
	ended := make(chan struct{})
	ctx, giveUp := context.WithCancel(t.Context())
	_, err := load(ctx, a, key, func(ctx context.Context, _ []byte) ([]byte, error) {
		giveUp()
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up: %v", err)
	}
	<-ended
	if b, err := load(t.Context(), a, key, func(context.Context, []byte) ([]byte, error) { return []byte("again"), nil }); b != "again" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if err := a.close(); err != nil {
		t.Error(err)
	}
	if _, err := load(t.Context(), a, digest.ID{2}, nil); err == nil {
		t.Error("an answer after the end")
	}
}

// A failure is told to all that wait, and not kept.
func TestFailureIsNotKept(t *testing.T) {
	a := newAnswers(t.TempDir())
	defer a.close()
	key, broken := digest.ID{1}, errors.New("broken")
	if _, err := load(t.Context(), a, key, func(context.Context, []byte) ([]byte, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("err = %v", err)
	}
	for range 2 {
		if b, err := load(t.Context(), a, key, func(context.Context, []byte) ([]byte, error) { return nil, nil }); b != "" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	}
	if b, err := load(t.Context(), a, key, func(context.Context, []byte) ([]byte, error) { return []byte("other"), nil }); b != "" || err != nil {
		t.Errorf("an empty answer is one: %q, %v", b, err)
	}
}

// The end of a run waits for what is being made.
func TestCloseEndsTheMaking(t *testing.T) {
	a := newAnswers(t.TempDir())
	begun := make(chan struct{})
	var ended atomic.Bool
	go load(t.Context(), a, digest.ID{1}, func(ctx context.Context, _ []byte) ([]byte, error) {
		close(begun)
		<-ctx.Done()
		time.Sleep(20 * time.Millisecond)
		ended.Store(true)
		return nil, ctx.Err()
	})
	<-begun
	if err := a.close(); err != nil || !ended.Load() {
		t.Errorf("ended %v, %v", ended.Load(), err)
	}
}

// A file that cannot be read while it is sent is an error of whoever sends it.
func TestLostWhileItIsSent(t *testing.T) {
	a := newAnswers(t.TempDir())
	defer a.close()
	b, err := a.get(t.Context(), digest.ID{1}, func(context.Context, []byte) ([]byte, error) { return make([]byte, 100_000), nil })
	if err != nil || len(b) != 100_000 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if err := a.file.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if err := guarded(func() error { _ = bytes.Clone(b); return nil }); !errors.Is(err, errLost) {
		t.Errorf("err = %v", err)
	}
	defer func() {
		if recover() == nil {
			t.Error("another panic is hidden")
		}
	}()
	_ = guarded(func() error { panic("another") })
}

// hooked calls once, when so much was read, what is to happen then.
type hooked struct {
	r    io.Reader
	left int
	then func()
}

func (h *hooked) Read(p []byte) (int, error) {
	if h.left -= len(p); h.left < 0 && h.then != nil {
		h.then()
		h.then = nil
	}
	return h.r.Read(p[:min(len(p), 16<<10)])
}

// An answer whose file is lost while it is sent ends the push of that node with
// an error. The next node gets all, made again.
func TestNodeOfALostAnswer(t *testing.T) {
	image, content := fleetImage(40, 700)
	shared := sharedOf(image, content, t.TempDir())
	push := func(then func()) error {
		t.Helper()
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := os.NewFile(uintptr(fds[0]), "node"), os.NewFile(uintptr(fds[1]), "its end")
		ended := make(chan error, 1)
		go func() {
			defer theirs.Close()
			ended <- agent(wire.New(&opened{r: &hooked{theirs, 600_000, then}, aead: fleetCipher()}, theirs), wire.Kept{}, all)
		}()
		c := wire.New(ours, &sealed{w: ours, aead: fleetCipher()})
		_, _, pushed := Push(t.Context(), c, wire.Request{}, targetOf(t, image, content, shared, 1), Talk{Decide: func(wire.Plan) error { return nil }})
		ours.Close()
		if asked := <-ended; (asked == nil) != (pushed == nil) {
			t.Errorf("the node says %v, the controller %v", asked, pushed)
		}
		return pushed
	}
	lose := func() {
		shared.answers.mu.Lock()
		defer shared.answers.mu.Unlock()
		if err := shared.answers.file.Truncate(0); err != nil {
			t.Error(err)
		}
	}
	if err := push(nil); err != nil { // all is made: a write would fill what is lost with zeros
		t.Errorf("the first: %v", err)
	}
	if err := push(lose); !errors.Is(err, errLost) {
		t.Errorf("err = %v", err)
	}
	if err := push(nil); err != nil {
		t.Errorf("the next one: %v", err)
	}
	if err := shared.Close(); err == nil {
		t.Error("all was kept")
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come to that")
		}
	}
}
