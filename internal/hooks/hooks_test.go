package hooks

import (
	"maps"
	"strings"
	"testing"
	"time"
)

func TestFaults(t *testing.T) {
	http := func(q Request) Step { return Step{HTTP: &q} }
	lb := "http://lb.example/api/{node}"
	for _, tc := range []struct {
		name string
		step Step
		want string // KEY: beginning of the text; "" is none
	}{
		{"a command", Step{Run: "true"}, ""},
		{"a condition", Step{Until: "test 1 = 1", Timeout: time.Hour, Name: "idle"}, ""},
		{"a request", http(Request{URL: lb + "?ip={address}", Method: "PUT", Body: `{"state": "{node}"}`, Header: map[string]string{"X-Token": "a b"}, Expect: 204}), ""},
		{"the node itself", http(Request{URL: "https://{address}:8443/drain", Insecure: true}), ""},
		{"the node by name", http(Request{URL: "http://{node}.rack.example/"}), ""},
		{"nothing", Step{}, ": a step is one of"},
		{"two", Step{Run: "true", Until: "true"}, ": a step is one of"},
		{"an empty command", Step{Run: " \n"}, `run: " \n" is not a command`},
		{"a condition with a NUL", Step{Until: "a\x00"}, "until: "},
		{"too long", Step{Run: "true", Timeout: 25 * time.Hour}, "timeout: "},
		{"a name of two lines", Step{Run: "true", Name: "a\nb"}, "name: "},
		{"no URL", http(Request{}), `http.url: "" is not an URL`},
		{"a file", http(Request{URL: "file:///etc/passwd"}), `http.url: "file:///etc/passwd" is not an URL that begins with`},
		{"a password", http(Request{URL: "http://u:p@lb/"}), "http.url: the URL of"},
		{"another placeholder", http(Request{URL: "http://lb/{nod}"}), `http.url: "http://lb/{nod}": only {node} and {address}`},
		{"a fragment", http(Request{URL: "http://lb/#x"}), "http.url: "},
		{"a port that is none", http(Request{URL: "http://lb:99999/"}), "http.url: "},
		{"a method that is none", http(Request{URL: lb, Method: "post"}), `http.method: method: "post" is not one of GET, POST`},
		{"a GET with a body", http(Request{URL: lb, Method: "GET", Body: "x"}), "http.body: "},
		{"a header that is none", http(Request{URL: lb, Header: map[string]string{"a b": "x"}}), `http.header.a b: "a b" is not`},
		{"another host", http(Request{URL: lb, Header: map[string]string{"host": "x"}}), "http.header.host: "},
		{"a header of two lines", http(Request{URL: lb, Header: map[string]string{"X": "a\r\nY: b"}}), "http.header.X: "},
		{"a status that is none", http(Request{URL: lb, Expect: 100}), "http.expect: "},
		{"a certificate of nothing", http(Request{URL: lb, Insecure: true}), "http.insecure: "},
	} {
		var got []string
		for _, f := range tc.step.Faults() {
			got = append(got, f.Key+": "+f.Text)
		}
		if tc.want == "" && len(got) > 0 || tc.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], tc.want)) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// A node's name and address are escaped as the place where they stand needs it.
func TestFor(t *testing.T) {
	plain := Node{Name: "n1", Address: "10.0.0.7"}
	odd := Node{Name: "a/b c&d", Address: "fe80::1%eth0"}
	for _, tc := range []struct {
		node           Node
		url, want      string
		body, wantBody string
	}{
		{plain, "http://lb/api/{node}/drain?ip={address}", "http://lb/api/n1/drain?ip=10.0.0.7", `{"n": "{node}", "a": "{address}"}`, `{"n": "n1", "a": "10.0.0.7"}`},
		{plain, "http://{address}:8080/drain", "http://10.0.0.7:8080/drain", "", ""},
		{plain, "http://{node}.example", "http://n1.example", "", ""},
		{odd, "http://{address}:8080/x", "http://[fe80::1%25eth0]:8080/x", "", ""},
		{odd, "http://lb/{node}/x?n={node}&a={address}", "http://lb/a%2Fb%20c&d/x?n=a%2Fb+c%26d&a=fe80%3A%3A1%25eth0", "{node}", "a/b c&d"},
		{odd, "http://lb?n={node}", "http://lb?n=a%2Fb+c%26d", "", ""},
	} {
		was := Request{URL: tc.url, Body: tc.body, Header: map[string]string{"X-Node": "{node}"}}
		s, err := Step{HTTP: &was}.For(tc.node)
		if err != nil || s.HTTP.URL != tc.want || s.HTTP.Body != tc.wantBody || s.HTTP.Header["X-Node"] != tc.node.Name {
			t.Errorf("%s: %+v, %v; want %s", tc.url, s.HTTP, err, tc.want)
		}
		if was.URL != tc.url || !maps.Equal(was.Header, map[string]string{"X-Node": "{node}"}) {
			t.Errorf("%s: the step of the profile has changed: %+v", tc.url, was)
		}
	}
	nowhere := Node{Name: "n1"}
	for _, q := range []Request{{URL: "http://{address}/"}, {URL: "http://lb/", Body: "{address}"}, {URL: "http://lb/", Header: map[string]string{"X": "{address}"}}} {
		if _, err := (Step{HTTP: &q}).For(nowhere); err == nil || !strings.Contains(err.Error(), `node "n1" has no address`) {
			t.Errorf("%+v without an address: %v", q, err)
		}
	}
	if s, err := (Step{HTTP: &Request{URL: "http://lb/{node}"}}).For(nowhere); err != nil || s.HTTP.URL != "http://lb/n1" {
		t.Errorf("an address that is not needed: %v, %v", s, err)
	}
	if s, err := (Step{Run: "echo {address}"}).For(nowhere); err != nil || s.Run != "echo {address}" {
		t.Errorf("a command has its own braces: %v, %v", s, err)
	}
}

func TestString(t *testing.T) {
	for want, s := range map[string]Step{
		"idle":                 {Name: "idle", Until: "x"},
		"until test a = b ...": {Until: "test a = b\ntest c"},
		"echo x":               {Run: "\n echo\tx\n"},
		"GET http://lb/":       {HTTP: &Request{URL: "http://lb/"}},
		"POST http://lb/":      {HTTP: &Request{URL: "http://lb/", Body: "x"}},
		"DELETE http://lb/":    {HTTP: &Request{URL: "http://lb/", Method: "DELETE", Body: "x"}},
	} {
		if got := s.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
