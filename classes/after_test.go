package classes

import (
	"errors"
	"strings"
	"testing"
	"time"

	"ingot/internal/health"
	"ingot/internal/problem"
)

func TestChecksAndRestarts(t *testing.T) {
	s := space(t, map[string]string{
		"profile/DEFAULT.yaml": "boot: local\ncheck: [{unit: ssh.service}]\n",
		"profile/WEB.yaml": "check:\n- {unit: nginx.service, retry_for: 1m}\n- {tcp: \"{address}:22\", from: controller}\n" +
			"- {http: \"https://localhost/\", status: 503, insecure: true, name: front}\n- exec: |\n    a\n    b\n  timeout: 5s\n" +
			"restart: reload\nrestart_except: [\"postgresql@*\", x.service]\n",
	})
	r, err := s.Resolve("n1", []string{"WEB"})
	if err != nil {
		t.Fatal(err)
	}
	c := r.Profile.Check
	if len(c) != 4 || c[0] != (health.Check{Unit: "nginx.service", RetryFor: time.Minute}) || c[1].From != health.Controller ||
		c[2] != (health.Check{HTTP: "https://localhost/", Status: 503, Insecure: true, Name: "front"}) || c[3].Exec != "a\nb\n" || c[3].Timeout != 5*time.Second {
		t.Errorf("checks: %+v", c)
	}
	if r.Profile.Restart != "reload" || len(r.Profile.RestartExcept) != 2 {
		t.Errorf("restart: %+v", r.Profile)
	}
	want := `[{unit: nginx.service, retry_for: 1m}, {tcp: {address}:22, from: controller}, {http: https://localhost/, status: 503, insecure: true, name: front}, {exec: a\nb, timeout: 5s}]`
	seen := false
	for _, v := range r.Values {
		if v.Key == "check" {
			seen = v.Value == want && v.Class == "WEB" && len(v.Overridden) == 1
			t.Logf("%+v", v)
		}
	}
	if !seen {
		t.Errorf("explained otherwise than as\n%s", want)
	}
	if r, err := space(t, map[string]string{}).Resolve("n1", nil); err != nil || r.Profile.Restart != "report" {
		t.Errorf("without a word: %v %v", r, err)
	}
}

func TestChecksAreJudged(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"check: [{}]", "1:9: a check is one of"},
		{"check: [{unit: a.service, exec: b}]", "1:9: a check is one of"},
		{"check: [{unit: nginx}]", "1:16: \"nginx\" has no type: write nginx.service"},
		{"check: [{unit: nginx.servcie}]", "1:16: \"nginx.servcie\" does not end in a type of unit: .service .socket .target .device .mount .automount .swap .timer .path .slice .scope (did you mean \".service\"?)"},
		{"check: [{tcp: \"22\"}]", "1:15: \"22\" is not HOST:PORT"},
		{"check: [{http: \"localhost:80\"}]", "1:16: "},
		{"check: [{exec: x, timeout: 0s}]", "1:28: must be more than 0"},
		{"check: [{exec: x, retry_for: 0}]", "1:30: must be more than 0"},
		{"check: [{exec: x, timeout: -1s}]", "1:28: \"-1s\" is not a duration"},
		{"check: [{exec: x, timeout: 2h}]", "1:28: timeout: 2h0m0s is not a time between"},
		{"check: [{exec: x, timeot: 2s}]", "1:19: unknown key \"timeot\" (did you mean \"timeout\"?)"},
		{"check: [{http: \"http://a/\", status: 0}]", "1:37: must be more than 0"},
		{"check: [{http: \"http://a/\", status: 99}]", "1:37: 99 is not a status"},
		{"check: [{exec: x, from: controller}]", "1:25: from: controller belongs to tcp and http"},
		{"check: [{tcp: \"localhost:22\", from: controller}]", "1:15: \"localhost\" would be the server itself: write {address}"},
		{"check: {unit: a.service}", "1:8: wants a list"},
		{"restart: always", "1:10: restart: \"always\" is not one of report, reload, restart"},
		{"restart_except: [nginx]", "1:18: \"nginx\" matches no unit: write nginx.service"},
		{"restart_except: [\"a[\"]", "1:18: \"a[\" is not a pattern"},
	} {
		_, err := space(t, map[string]string{"profile/DEFAULT.yaml": tt.text + "\n"}).Resolve("n1", nil)
		var probs problem.List
		if !errors.As(err, &probs) || len(probs) != 1 || !strings.HasPrefix(err.Error(), "profile/DEFAULT.yaml:"+tt.want) {
			t.Errorf("%s: %v\nwant %s", tt.text, err, tt.want)
		}
	}
}
