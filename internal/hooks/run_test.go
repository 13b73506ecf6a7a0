package hooks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ingot/internal/command"
)

func path() []string { return []string{"PATH=/usr/bin:/bin", "INGOT_NODE=n1"} }

// Steps are done in order, know the node, and the first that fails is the last.
func TestRun(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	var begun []string
	r := &Runner{Env: path(), Begin: func(s Step) { begun = append(begun, s.String()) }}
	done, err := r.Run(t.Context(), []Step{
		{Name: "one", Run: "echo $INGOT_NODE >>" + log},
		{Name: "two", Run: "echo two >>" + log + "; echo first; echo 'why \x1b[31mnot' >&2; exit 3"},
		{Name: "three", Run: "echo three >>" + log},
	})
	var bad *StepError
	if !errors.As(err, &bad) || bad.Number != 2 || strings.Join(bad.Output, "|") != "first|why not" || err.Error() != "step 2 (two): exit status 3: why not" {
		t.Errorf("%v, %+v", err, bad)
	}
	if b, _ := os.ReadFile(log); string(b) != "n1\ntwo\n" || len(done) != 2 || done[0].Err != nil || done[1].Err == nil || strings.Join(begun, " ") != "one two" {
		t.Errorf("%q, %+v, %q", b, done, begun)
	}
	if done, err := r.Run(t.Context(), nil); err != nil || len(done) != 0 {
		t.Errorf("no steps: %v", err)
	}
	if _, err := r.Run(t.Context(), []Step{{}}); err == nil || !strings.Contains(err.Error(), "cannot be run: a step is one of") {
		t.Errorf("a step of nothing: %v", err)
	}
}

// A condition is tried until it holds; one that never does costs its time, and
// the last try says why.
func TestUntil(t *testing.T) {
	count := filepath.Join(t.TempDir(), "count")
	r := &Runner{Env: path(), pause: time.Millisecond}
	if _, err := r.Run(t.Context(), []Step{{Until: "echo x >>" + count + "; test $(wc -l <" + count + ") -ge 5"}}); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(count); len(b) != 10 {
		t.Errorf("%d tries, want 5", len(b)/2)
	}
	begun := time.Now()
	_, err := r.Run(t.Context(), []Step{{Until: "echo 7 sessions; false", Timeout: 300 * time.Millisecond}})
	var limit *command.LimitError
	if !errors.As(err, &limit) || !strings.HasSuffix(err.Error(), "not done within 300ms: exit status 1: 7 sessions") || time.Since(begun) > 5*time.Second {
		t.Errorf("%v after %s", err, time.Since(begun))
	}
}

// At the limit, and when the operator gives up, all that a step has started is
// killed.
func TestStepsEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		step   func(script string) Step
		giveUp bool
	}{
		"a command at its limit":             {func(s string) Step { return Step{Run: s, Timeout: 500 * time.Millisecond} }, false},
		"a condition at its limit":           {func(s string) Step { return Step{Until: s, Timeout: 500 * time.Millisecond} }, false},
		"a command, and the operator goes":   {func(s string) Step { return Step{Run: s} }, true},
		"a condition, and the operator goes": {func(s string) Step { return Step{Until: s} }, true},
	} {
		pid := filepath.Join(t.TempDir(), "pid")
		ctx, cancel := context.WithCancel(t.Context())
		if tc.giveUp {
			go func() {
				for ctx.Err() == nil {
					if _, err := os.Stat(pid); err == nil {
						cancel()
					}
					time.Sleep(5 * time.Millisecond)
				}
			}()
		}
		begun := time.Now()
		_, err := (&Runner{Env: path()}).Run(ctx, []Step{tc.step("sh -c 'trap \"\" TERM INT; echo $$ >" + pid + ".new; mv " + pid + ".new " + pid + "; sleep 600; :' & wait")})
		cancel()
		var limit *command.LimitError
		if took := time.Since(begun); took > 10*time.Second || errors.As(err, &limit) == tc.giveUp || errors.Is(err, context.Canceled) != tc.giveUp {
			t.Errorf("%s: %v after %s", name, err, took)
		}
		var n int
		b, _ := os.ReadFile(pid)
		fmt.Sscan(string(b), &n)
		for end := time.Now().Add(5 * time.Second); n == 0 || syscall.Kill(n, 0) == nil; time.Sleep(5 * time.Millisecond) {
			if stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n)); strings.Contains(string(stat), ") Z ") {
				break // dead; its new parent has not looked yet
			}
			if n == 0 || time.Now().After(end) {
				t.Errorf("%s: process %d of a step lives on", name, n)
				break
			}
		}
	}
}

// What a step says does not grow, however much it is.
func TestOutputIsBounded(t *testing.T) {
	_, err := (&Runner{Env: path()}).Run(t.Context(), []Step{{Run: "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; exit 1"}})
	var bad *StepError
	if !errors.As(err, &bad) || len(bad.Output) != maxLines || bad.Output[maxLines-1] != "line 2999" {
		t.Errorf("%d lines: %v", len(bad.Output), err)
	}
}

func TestRequests(t *testing.T) {
	var got string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, _ := io.ReadAll(q.Body)
		got = fmt.Sprintf("%s %s %s %q", q.Method, q.RequestURI, q.Header.Get("X-Token"), body)
		switch q.URL.Path {
		case "/moved":
			http.Redirect(w, q, "/there", http.StatusFound)
		case "/busy":
			w.WriteHeader(http.StatusConflict)
			fmt.Fprintf(w, "n1 is\nlocked by \x1b[1mann\n")
		case "/gone":
			w.WriteHeader(http.StatusNoContent)
		case "/hangs":
			<-q.Context().Done()
		}
	}))
	defer s.Close()
	for _, tc := range []struct {
		name      string
		step      Step
		got, want string // what the server saw; the error
	}{
		{"GET", Step{HTTP: &Request{URL: s.URL + "/x?n={node}"}}, `GET /x?n=n1  ""`, ""},
		{"POST", Step{HTTP: &Request{URL: s.URL + "/{node}", Body: `{"a": "{address}"}`, Header: map[string]string{"x-token": "s {node}"}}}, `POST /n1 s n1 "{\"a\": \"10.0.0.7\"}"`, ""},
		{"a status", Step{HTTP: &Request{URL: s.URL + "/gone", Method: "DELETE", Expect: 204}}, `DELETE /gone  ""`, ""},
		{"another status", Step{HTTP: &Request{URL: s.URL + "/x", Expect: 204}}, `GET /x  ""`, "status 200"},
		{"refused, and why", Step{HTTP: &Request{URL: s.URL + "/busy", Method: "PUT"}}, `PUT /busy  ""`, "status 409: locked by ann"},
		{"a change is not redirected", Step{HTTP: &Request{URL: s.URL + "/moved", Method: "POST"}}, `POST /moved  ""`, "status 302"},
		{"a question is", Step{HTTP: &Request{URL: s.URL + "/moved"}}, `GET /there  ""`, ""},
		{"no answer", Step{Timeout: 200 * time.Millisecond, HTTP: &Request{URL: s.URL + "/hangs"}}, `GET /hangs  ""`, "not done within 200ms"},
	} {
		step, err := tc.step.For(Node{Name: "n1", Address: "10.0.0.7"})
		if err != nil {
			t.Fatal(err)
		}
		got = ""
		_, err = (&Runner{}).Run(t.Context(), []Step{step})
		text := ""
		if err != nil {
			_, text, _ = strings.Cut(err.Error(), "): ")
		}
		if got != tc.got || text != tc.want {
			t.Errorf("%s: the server saw %s, want %s; error %q, want %q", tc.name, got, tc.got, text, tc.want)
		}
	}
}
