package health

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestFaults(t *testing.T) {
	for _, tt := range []struct {
		name  string
		check Check
		want  string // key and the beginning of the text; "" is none
	}{
		{"unit", Check{Unit: "nginx.service"}, ""},
		{"instance", Check{Unit: "getty@tty1.service"}, ""},
		{"the root mount", Check{Unit: "-.mount"}, ""},
		{"template", Check{Unit: "getty@.service"}, `unit "getty@.service" is a template`},
		{"no suffix", Check{Unit: "nginx"}, `unit "nginx" has no type: write nginx.service`},
		{"bad suffix", Check{Unit: "nginx.srevice"}, `unit "nginx.srevice" does not end in a type of unit`},
		{"option", Check{Unit: "--all"}, `unit "--all" has no type`},
		{"only suffix", Check{Unit: ".service"}, `unit ".service" has no name`},
		{"glob", Check{Unit: "*.service"}, `unit "*.service" is not the name`},
		{"long", Check{Unit: strings.Repeat("x", 250) + ".service"}, `unit "xxx`},
		{"tcp", Check{TCP: "127.0.0.1:22"}, ""},
		{"tcp 6", Check{TCP: "[::1]:22"}, ""},
		{"tcp name", Check{TCP: "db_1.example:5432"}, ""},
		{"tcp address", Check{TCP: "{address}:22", From: Controller}, ""},
		{"tcp port", Check{TCP: "a:0"}, `tcp "0" is not a port`},
		{"tcp big port", Check{TCP: "a:65536"}, `tcp "65536" is not a port`},
		{"tcp service", Check{TCP: "a:ssh"}, `tcp "ssh" is not a port`},
		{"tcp no host", Check{TCP: ":22"}, `tcp ":22" is not HOST:PORT`},
		{"tcp no port", Check{TCP: "a"}, `tcp "a" is not HOST:PORT`},
		{"tcp bare 6", Check{TCP: "::1:22"}, `tcp "::1:22" is not HOST:PORT`},
		{"tcp half address", Check{TCP: "127.0.0:22"}, `tcp "127.0.0:22" is not HOST:PORT`},
		{"tcp space", Check{TCP: "a b:22"}, `tcp "a b:22" is not HOST:PORT`},
		{"http", Check{HTTP: "http://localhost:8080/x?y=1", Status: 404}, ""},
		{"http address", Check{HTTP: "https://{address}:8443/", Insecure: true}, ""},
		{"http address twice", Check{HTTP: "https://{address}/{address}"}, `http "https://{address}/{address}": {address} stands for the host only`},
		{"http address elsewhere", Check{HTTP: "https://a/{address}"}, `http "https://a/{address}": {address} stands for the host only`},
		{"http in address", Check{HTTP: "https://x{address}/"}, `http "https://x{address}/": {address} stands`},
		{"http scheme", Check{HTTP: "ftp://a/"}, `http "ftp://a/" is not an URL that begins with`},
		{"http no scheme", Check{HTTP: "localhost/x"}, `http "localhost/x" is not an URL that begins with`},
		{"http host", Check{HTTP: "http:///x"}, `http "http:///x" is not an URL with a host`},
		{"http port", Check{HTTP: "http://a:99999/"}, `http "99999" is not a port`},
		{"http no port", Check{HTTP: "http://a:/"}, `http "" is not a port`},
		{"http control", Check{HTTP: "http://a/\n"}, `http "http://a/\n" is not an URL`},
		{"http password", Check{HTTP: "http://u:secret@a/"}, `http the URL of "a" holds a user or password`},
		{"exec", Check{Exec: "/usr/local/bin/smoke --fast"}, ""},
		{"exec space", Check{Exec: " "}, `exec " " is not a command`},
		{"exec nul", Check{Exec: "a\x00b"}, `exec "a\x00b" is not a command`},
		{"nothing", Check{}, " a check is one of"},
		{"two", Check{Exec: "a", TCP: "a:1"}, " a check is one of"},
		{"status", Check{Exec: "a", Status: 200}, "status status belongs to http"},
		{"odd status", Check{HTTP: "http://a/", Status: 100}, "status 100 is not a status"},
		{"insecure", Check{HTTP: "http://a/", Insecure: true}, "insecure insecure belongs to an URL that begins with https://"},
		{"negative", Check{Exec: "a", Timeout: -1}, "timeout timeout: -1ns is not a time"},
		{"too long", Check{Exec: "a", RetryFor: Longest + 1}, "retry_for retry_for: 1h0m0.000000001s is not a time"},
		{"too short", Check{Unit: "a.service", Timeout: settle}, "timeout timeout: 2s is too short"},
		{"from", Check{Exec: "a", From: "controler"}, `from from: "controler" is not one of node, controller (did you mean "controller"?)`},
		{"unit from the server", Check{Unit: "a.service", From: Controller}, "from from: controller belongs to tcp and http"},
		{"loopback from the server", Check{TCP: "127.1.2.3:22", From: Controller}, `tcp "127.1.2.3" would be the server itself`},
		{"any from the server", Check{TCP: "0.0.0.0:22", From: Controller}, `tcp "0.0.0.0" would be the server itself`},
		{"localhost from the server", Check{HTTP: "http://LOCALHOST/", From: Controller}, `http "LOCALHOST" would be the server itself`},
		{"another host from the server", Check{HTTP: "http://balancer.example/", From: Controller}, ""},
		{"name", Check{Exec: "a", Name: "a\x1b[0m"}, `name "a\x1b[0m" is not a name`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := tt.check.Faults()
			if tt.want == "" {
				if len(f) > 0 {
					t.Errorf("faults %q", f)
				}
			} else if len(f) != 1 || !strings.HasPrefix(f[0].Key+" "+f[0].Text, tt.want) {
				t.Errorf("faults %q\nwant   %q", f, tt.want)
			}
		})
	}
}

func TestSplit(t *testing.T) {
	checks := []Check{
		{TCP: "{address}:22", From: Controller}, {HTTP: "http://{address}:80/{x}"}, {Exec: "echo {address}"}, {TCP: "other:1", From: Controller},
	}
	for address, want := range map[string][]string{
		"10.0.0.7":     {"http://10.0.0.7:80/{x}", "echo {address}", "10.0.0.7:22", "other:1"},
		"fe80::1%eth0": {"http://[fe80::1%25eth0]:80/{x}", "echo {address}", "[fe80::1%eth0]:22", "other:1"},
	} {
		node, controller := Split(checks, address)
		var got []string
		for _, c := range slices.Concat(node, controller) {
			got = append(got, c.HTTP+c.Exec+c.TCP)
		}
		if !slices.Equal(got, want) || len(node) != 2 {
			t.Errorf("%s: %q", address, got)
		}
	}
	if checks[0].TCP != "{address}:22" {
		t.Error("Split changed what it was given")
	}
}

func TestChecksTravelAsJSON(t *testing.T) {
	in := []Check{{Name: "n", Unit: "a.service", TCP: "t", HTTP: "h", Exec: "e", Status: 1, Insecure: true, Timeout: time.Second, RetryFor: time.Minute, From: Node}, {Exec: "x"}}
	raw, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out []Check
	if err := json.Unmarshal(raw, &out); err != nil || !slices.Equal(in, out) {
		t.Errorf("%s gives %+v, %v", raw, out, err)
	}
	if string(raw[len(raw)-14:]) != `,{"exec":"x"}]` {
		t.Errorf("what is not said is sent: %s", raw)
	}
}
