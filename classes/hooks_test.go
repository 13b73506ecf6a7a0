package classes

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"ingot/internal/problem"
)

func TestHooks(t *testing.T) {
	s := space(t, map[string]string{
		"profile/DEFAULT.yaml": "boot: local\ndrain: [{run: from-default}]\nundrain: []\n",
		"profile/WEB.yaml": "drain:\n- run: echo drain | socat - /run/haproxy.sock\n- {until: 'test a = b', timeout: 2m, name: idle}\n" +
			"- http:\n    url: \"http://lb/api/{node}\"\n    method: PUT\n    body: '{\"state\": \"drain\"}'\n    header: {X-Token: abc}\n    expect: 204\nundrain: [{run: back}]\n",
		"profile/OUT.yaml": "drain:\nundrain:\n",
	})
	r, err := s.Resolve("n1", []string{"WEB"})
	if err != nil {
		t.Fatal(err)
	}
	d := r.Profile.Drain
	if len(d) != 3 || d[0].Run != "echo drain | socat - /run/haproxy.sock" || d[1].Until != "test a = b" || d[1].Timeout != 2*time.Minute || d[1].Name != "idle" ||
		d[2].HTTP == nil || d[2].HTTP.URL != "http://lb/api/{node}" || d[2].HTTP.Method != "PUT" || d[2].HTTP.Body != `{"state": "drain"}` || d[2].HTTP.Header["X-Token"] != "abc" || d[2].HTTP.Expect != 204 {
		t.Errorf("drain: %+v", d)
	}
	if u := r.Profile.Undrain; len(u) != 1 || u[0].Run != "back" {
		t.Errorf("undrain: %+v", u)
	}
	if r, err := s.Resolve("n1", []string{"WEB", "OUT"}); err != nil || len(r.Profile.Drain)+len(r.Profile.Undrain) != 0 {
		t.Errorf("taken back: %v", err)
	}
	if r, err := s.Resolve("n1", nil); err != nil || len(r.Profile.Drain) != 1 || len(r.Profile.Undrain) != 0 {
		t.Errorf("nothing to be done afterwards: %v", err)
	}
}

func TestHooksAreJudged(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"drain: [{}]\nundrain: []", "1:9: a step is one of"},
		{"drain: [{run: a, until: b}]\nundrain: []", "1:9: a step is one of"},
		{"drain: [{run: a, timeout: 0}]\nundrain: []", "1:27: must be more than 0"},
		{"drain: [{run: a, timeout: 48h}]\nundrain: []", "1:27: timeout: 48h0m0s is not"},
		{"drain: [{http: {url: lb}}]\nundrain: []", "1:22: \"lb\" is not an URL"},
		{"drain: [{http: {url: \"http://lb/\", metod: PUT}}]\nundrain: []", "1:36: unknown key \"metod\" (did you mean \"method\"?)"},
		{"drain: [{http: {url: \"http://lb/\", expect: 0}}]\nundrain: []", "1:44: must be more than 0"},
		{"drain: [{http: {url: \"http://lb/\", header: {Host: a}}}]\nundrain: []", "1:51: the host is that of the url"},
		{"drain: [{http: \"http://lb/\"}]\nundrain: []", "1:16: wants a map of keys"},
		{"drain: [{run: a}]", "1:8: drain: without undrain:"},
		{"drain: [{run: a}]\nundrain:", "1:8: drain: without undrain:"},
		{"undrain: [{run: a}]", "1:10: undrain: without drain:"},
		{"drain: [{run: a}]\nundrain: [{exec: b}]", "2:12: unknown key \"exec\""},
	} {
		_, err := space(t, map[string]string{"profile/DEFAULT.yaml": "boot: local\n", "profile/WEB.yaml": tt.text + "\n"}).Resolve("n1", []string{"WEB"})
		var probs problem.List
		if !errors.As(err, &probs) || !strings.Contains(err.Error(), "profile/WEB.yaml:"+tt.want) {
			t.Errorf("%q: %v\nwant %s", tt.text, err, tt.want)
		}
	}
}

// What people copy from the documents is a profile.
func TestExamplesOfHooks(t *testing.T) {
	b, err := os.ReadFile("../docs/DRAIN.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(b), "```yaml\n")[1:]
	if len(blocks) < 5 {
		t.Fatalf("only %d examples", len(blocks))
	}
	for _, text := range blocks {
		text, _, _ := strings.Cut(text, "```\n")
		r, err := space(t, map[string]string{"profile/DEFAULT.yaml": "boot: local\n", "profile/WEB.yaml": text}).Resolve("n1", []string{"WEB"})
		if err != nil || len(r.Profile.Drain)+len(r.Profile.Check) == 0 {
			t.Errorf("%v in\n%s", err, text)
		}
	}
}
