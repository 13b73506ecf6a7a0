package command

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// run runs a script of /bin/sh, far from its limit when nothing is wrong.
func run(ctx context.Context, limit time.Duration, script string) (string, error) {
	out := &Ends{}
	err := Run(ctx, Command{Argv: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin", "A=b"}, Limit: limit, Out: out, Err: out})
	return string(out.Bytes()), err
}

// alive says whether a process runs; a zombie does not.
func alive(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	_, state, _ := strings.Cut(string(b), ") ")
	return err == nil && !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

// mustDie waits until the process whose number a script wrote into a file is gone.
func mustDie(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
	for end := time.Now().Add(20 * time.Second); alive(pid); {
		if time.Now().After(end) {
			t.Fatalf("process %d lives on", pid)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestRun(t *testing.T) {
	out, err := run(t.Context(), time.Minute, "pwd; env | grep -c .; echo $A; cat; echo err >&2; exit 3")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.HasPrefix(out, "/\n") || !strings.HasSuffix(out, "b\nerr\n") {
		t.Errorf("%q %v", out, err)
	}
	if out, err := run(t.Context(), time.Minute, "true"); err != nil || out != "" {
		t.Errorf("%q %v", out, err)
	}
	if _, err := run(t.Context(), time.Minute, "kill -9 $$"); err == nil || err.Error() != "signal: killed" {
		t.Errorf("killed: %v", err)
	}
	if err := Run(t.Context(), Command{Argv: []string{"/nowhere/sh"}, Limit: time.Minute}); err == nil || err.Error() != `start "/nowhere/sh": no such file or directory` {
		t.Errorf("missing: %v", err)
	}
	t.Setenv("SECRET", "1")
	if out, _ := run(t.Context(), time.Minute, "env"); strings.Contains(out, "SECRET") {
		t.Error("the environment of the test is handed on")
	}
	bare := &Ends{}
	if err := Run(t.Context(), Command{Argv: []string{"/bin/sh", "-c", "echo ${SECRET-none}"}, Limit: time.Minute, Out: bare}); err != nil || string(bare.Bytes()) != "none\n" {
		t.Errorf("without an environment: %q %v", bare.Bytes(), err)
	}
}

func TestTheGroupDiesAtTheLimit(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	begun := time.Now()
	out, err := run(t.Context(), 500*time.Millisecond, `(trap "" TERM INT HUP; echo up; exec sh -c 'trap "" TERM; echo $$ > `+pid+`; while :; do sleep 1; done') & wait`)
	var limit *LimitError
	if !errors.As(err, &limit) || limit.Limit != 500*time.Millisecond || out != "up\n" {
		t.Fatalf("%q %v", out, err)
	}
	if took := time.Since(begun); took > grace+10*time.Second {
		t.Errorf("took %s", took)
	}
	mustDie(t, pid)
}

func TestWhatIsLeftRunningDies(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	out, err := run(t.Context(), time.Minute, `(trap "" HUP TERM; sleep 600) & echo $! > `+pid+`; echo done`)
	if err != nil || out != "done\n" {
		t.Fatalf("%q %v", out, err)
	}
	mustDie(t, pid)
}

// A process that left the group keeps the output open, and is not waited for.
func TestWhoLeavesIsNotWaitedFor(t *testing.T) {
	if _, err := exec.LookPath("setsid"); err != nil {
		if os.Getenv("INGOT_NO_SKIP") != "" {
			t.Fatal("setsid is not installed")
		}
		t.Skip("setsid is not installed")
	}
	pid := filepath.Join(t.TempDir(), "pid")
	begun := time.Now()
	out, err := run(t.Context(), time.Minute, `setsid sh -c 'echo $$ > `+pid+`.new; mv `+pid+`.new `+pid+`; exec sleep 600' & while ! test -f `+pid+`; do sleep 0.05; done; echo left`)
	if err != nil || out != "left\n" || time.Since(begun) > 40*time.Second {
		t.Errorf("%q %v after %s", out, err, time.Since(begun))
	}
	b, _ := os.ReadFile(pid)
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	if n == 0 || !alive(n) {
		t.Errorf("process %d of another group was killed", n)
	} else {
		syscall.Kill(n, syscall.SIGKILL)
	}
}

func TestEndlessOutput(t *testing.T) {
	out, err := run(t.Context(), 500*time.Millisecond, "echo first; exec yes $(printf %0100d 7)")
	var limit *LimitError
	if !errors.As(err, &limit) || !strings.HasPrefix(out, "first\n") || len(out) > 2*keepEach+100 || !strings.Contains(out, "bytes left out]") {
		t.Errorf("%d bytes, %v", len(out), err)
	}
}

func TestTheCallerGivesUp(t *testing.T) {
	why := errors.New("the operator went home")
	ctx, cancel := context.WithCancelCause(t.Context())
	up := filepath.Join(t.TempDir(), "up")
	go func() {
		for {
			if _, err := os.Stat(up); err == nil {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		cancel(why)
	}()
	if _, err := run(ctx, time.Minute, "touch "+up+"; sleep 600"); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	if _, err := run(ctx, time.Minute, "true"); !errors.Is(err, why) {
		t.Errorf("begun after the end: %v", err)
	}
}

func TestEnds(t *testing.T) {
	for _, size := range []int{1, 3, 7, 100} {
		e := &Ends{Keep: 10}
		var all []byte
		for i := range 200 {
			piece := bytes.Repeat([]byte{byte('a' + i%26)}, size)
			all = append(all, piece...)
			e.Write(piece)
			got := e.Bytes()
			if lost := int64(len(all) - 20); lost <= 0 {
				if !bytes.Equal(got, all) || e.Lost() != 0 {
					t.Fatalf("size %d after %d: %q", size, i, got)
				}
			} else if !bytes.HasPrefix(got, all[:10]) || !bytes.HasSuffix(got, all[len(all)-10:]) || e.Lost() != lost {
				t.Fatalf("size %d after %d: %q, %d lost of %d", size, i, got, e.Lost(), lost)
			}
		}
	}
}

func TestLine(t *testing.T) {
	for in, want := range map[string]string{
		"  plain\ttext\r\n": "plain text", "\x1b[31;1mred\x1b[0m!": "red!", "\x1b]0;title\x07x": "x", "\x1b]0;title\x1b\\x": "x",
		"a\x00b\x07\x7f": "a?b??", "bad\xff utf": "bad? utf", "rtl\u202eevil": "rtl?evil", "\x1b(Bx\x1bM": "x", "": "",
		strings.Repeat("é", 150): strings.Repeat("é", 98) + "...",
	} {
		if got := Line(in); got != want {
			t.Errorf("Line(%q) = %q, want %q", in, got, want)
		}
	}
	if got := LastLine([]byte("one\n10%\r50%\r100%\r\n\x1b[0m\n \n")); got != "100%" {
		t.Errorf("last line %q", got)
	}
}

func FuzzLine(f *testing.F) {
	for _, s := range []string{"", "a", "\x1b[", "\x1b]0;", strings.Repeat("\u20ac", 300), "\xff\xfe", "\x1b\x1b[m"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, got := range []string{Line(s), LastLine([]byte(s))} {
			if len(got) > MaxLine || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) || got != Line(got) {
				t.Errorf("%q gives %q", s, got)
			}
		}
	})
}
