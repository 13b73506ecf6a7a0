package templates

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ingot/classes"
	"ingot/classes/disks"
	"ingot/internal/problem"
	"ingot/site"
)

// golden compares with testdata/NAME; UPDATE=1 writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if os.Getenv("UPDATE") != "" {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got:\n%s\nwant:\n%s", name, got, want)
	}
}

func boot() Boot {
	return Boot{
		Node: &site.Node{Name: "n1"}, MAC: "52:54:00:12:34:56", Serial: "S;1 ${evil}", Ref: "debian-12:stable", Attempt: 2,
		Kernel: "http://10.77.0.1:8080/netboot/x/vmlinuz?node=n1&mac=52:54:00:12:34:56", Initrd: "http://10.77.0.1:8080/netboot/x/initrd?node=n1&mac=52:54:00:12:34:56",
		Args:   []string{"console=ttyS0,115200", "ingot.nonce=abc"},
		Reason: "write \"etc/fstab\": no space left on device\nhint: the root partition of disk_config/DEFAULT is too small || reboot ${net0/ip} # x",
	}
}

func TestBootScripts(t *testing.T) {
	for _, name := range []string{Install, Local, Failed, Unknown} {
		text, err := (&Set{}).Render(name, boot())
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, string(text))
		if !strings.HasPrefix(string(text), "#!ipxe\n") {
			t.Errorf("%s is no iPXE script", name)
		}
	}
}

// TestReasonsCannotSpeakToIPXE: whatever a failed node says, the lines only echo.
func TestReasonsCannotSpeakToIPXE(t *testing.T) {
	b := boot()
	plain := countLines(t, b, "x")
	for _, evil := range []string{"a\nreboot", "a\r\nchain x", "|| reboot", "${cmd}", "x && y", "; shell", "# x", "a\\", "\x1b[2J", "é ü", strings.Repeat("w", 5000), strings.Repeat("a\n", 100), "{{.}}"} {
		b.Reason = evil
		text, err := (&Set{}).Render(Failed, b)
		if err != nil {
			t.Fatal(err)
		}
		others := 0
		for line := range strings.Lines(string(text)) {
			rest, isReason := strings.CutPrefix(line, "echo ingot:   ")
			if !isReason {
				others++
				continue
			}
			for _, w := range strings.Fields(rest) {
				if w == "||" || w == "&&" || w == ";" || w[0] == '#' || strings.ContainsAny(w, "${\\\x1b") {
					t.Errorf("reason %q: %q", evil, line)
				}
			}
			if len(line) > 90 {
				t.Errorf("reason %q: a line of %d characters", evil, len(line))
			}
		}
		if others != plain {
			t.Errorf("reason %q changes the script: %d lines, want %d:\n%s", evil, others, plain, text)
		}
	}
}

func countLines(t *testing.T, b Boot, reason string) int {
	t.Helper()
	b.Reason = reason
	text, err := (&Set{}).Render(Failed, b)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), "\n") - 1
}

func TestArgumentsAreExactOrRefused(t *testing.T) {
	for _, bad := range []string{"a=${b}", "a\nreboot", "a=é", "||", "x && y", "#c", "a  b", "", "a\\", "tab\tx"} {
		b := boot()
		b.Args = []string{bad}
		if text, err := (&Set{}).Render(Install, b); err == nil {
			t.Errorf("argument %q was passed on:\n%s", bad, text)
		}
	}
	b := boot()
	b.Args = []string{`dyndbg="file x +p"`, "a=$b", "ip=1:2;3", "console=ttyS0,115200n8"}
	text, err := (&Set{}).Render(Install, b)
	if err != nil || !strings.Contains(string(text), ` initrd=initrd dyndbg="file x +p" a=$b ip=1:2;3 console=ttyS0,115200n8 ||`) {
		t.Errorf("%v\n%s", err, text)
	}
	b.Kernel = "http://x/a b"
	if _, err := (&Set{}).Render(Install, b); err == nil {
		t.Error("an URL with a blank was passed on")
	}
}

func TestSiteTemplatesWin(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := &Set{Dir: dir}
	put("disk.ipxe", "exit\n")
	put("mine", "{{.Node.Name | upper}}")
	put("README", "{{")
	put("old~", "{{")
	text, err := s.Render(Local, boot())
	if err != nil || !strings.HasSuffix(string(text), "boots its disk\nexit\n\n") {
		t.Errorf("%q %v", text, err)
	}
	if text, err = s.Render("mine", boot()); err != nil || string(text) != "N1" {
		t.Errorf("%q %v", text, err)
	}
	if err := s.Lint(); err != nil {
		t.Error(err)
	}
	if _, err := s.Render("none", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
	put("bad", "a\n{{.Node | nope}}\n")
	put("env", `{{env "HOME"}}`)
	err = s.Lint()
	if err == nil || !strings.Contains(err.Error(), `templates/bad:2: function "nope" not defined`) || !strings.Contains(err.Error(), "templates/env:1:") {
		t.Errorf("lint: %v", err)
	}
	if _, err := s.Render(Local, boot()); err != nil {
		t.Errorf("another template's mistake stops the boot of a disk: %v", err)
	}
	put("typo", "{{.Vars.NOPE}}")
	if _, err := s.Render("typo", boot()); err == nil {
		t.Error("an undefined variable renders")
	}
	names, err := s.Names()
	if err != nil || !strings.Contains(strings.Join(names, " "), "mine") || strings.Contains(strings.Join(names, " "), "README") {
		t.Errorf("names %v %v", names, err)
	}
}

const config = `networks:
  - {name: rack, interface: eth1, subnet: 10.77.0.0/24, address: 10.77.0.1, router: 10.77.0.254, dns: [10.77.0.1], domain: rack.example}
  - {name: store, subnet: 10.88.0.0/24, router: 10.88.0.254}
`

func load(t *testing.T, node string) (*site.Site, *site.Node) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"ingot.yaml": config, "nodes/n1.yaml": node} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	st, err := site.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return st, st.Node("n1")
}

func TestNodeFiles(t *testing.T) {
	tests := []struct{ name, node string }{
		{"static", "nics: [{name: lan0, mac: '52:54:00:00:00:01', network: rack, address: 10.77.0.11, boot: true}]\n"},
		{"dhcp", "nics: [{mac: '52:54:00:00:00:01', boot: true}, {mac: '52:54:00:00:00:02', mtu: 9000}]\n"},
		{"bond", `nics:
  - {name: p0, mac: '52:54:00:00:00:01', boot: true, network: rack}
  - {name: p1, mac: '52:54:00:00:00:02'}
bonds:
  - {name: bond0, nics: [p0, p1], mode: 802.3ad, mtu: 9000, network: rack, address: 10.77.0.11}
vlans:
  - {on: bond0, id: 20, address: 192.168.20.11/24}
  - {name: san, on: bond0, id: 30, network: store, dhcp: true}
gateway: 192.168.20.1
dns: [9.9.9.9]
domain: other.example
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			st, n := load(t, tt.node)
			files, err := (&Set{}).Node(st, n, &classes.Resolved{Profile: classes.Profile{Network: "networkd"}})
			if err != nil {
				t.Fatal(err)
			}
			var all strings.Builder
			for _, f := range files {
				all.WriteString("=== " + f.Path + "\n" + string(f.Data))
			}
			golden(t, "node-"+tt.name, all.String())
			files, err = (&Set{}).Node(st, n, &classes.Resolved{Profile: classes.Profile{Network: "none"}})
			for _, f := range files {
				if strings.Contains(f.Path, "systemd") {
					t.Errorf("network: none makes %s", f.Path)
				}
			}
			if err != nil || len(files) == 0 {
				t.Errorf("%v %v", files, err)
			}
		})
	}
}

func TestSubstitute(t *testing.T) {
	vars := map[string]string{"A": "1", "LONG_NAME": "{%A%}"}
	tests := []struct{ text, want, err string }{
		{"x{%A%}y{%A%}", "x1y1", ""},
		{"{%LONG_NAME%}", "{%A%}", ""},
		{"{% if %} {%{%A%} 100%} {%", "{% if %} {%1 100%} {%", ""},
		{"{%A", "{%A", ""},
		{"a\n b {%LONG_NAEM%}\n{%B%}", "", "f:2:4: {%LONG_NAEM%}: no class and no node defines this variable (did you mean \"LONG_NAME\"?)"},
		{"a\n{%B%}", "", "f:2:1: {%B%}"},
	}
	for _, tt := range tests {
		got, err := Substitute("f", []byte(tt.text), vars)
		var probs problem.List
		if tt.err == "" && (err != nil || string(got) != tt.want) || tt.err != "" && (!errors.As(err, &probs) || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%q: %q %v", tt.text, got, err)
		}
	}
}

func FuzzSubstitute(f *testing.F) {
	for _, s := range []string{"{%A%}", "{%", "%}", "{%{%A%}%}", "{%B%}\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		out, err := Substitute("f", data, map[string]string{"A": ""})
		if err == nil && len(out) > len(data) {
			t.Errorf("%q grew to %q", data, out)
		}
	})
}

// TestExampleSite: what `ingot init` writes works from one end to the other.
func TestExampleSite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "site")
	if err := site.Init(dir); err != nil {
		t.Fatal(err)
	}
	st, err := site.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	space := &classes.Space{Dir: dir, CheckDisk: disks.Check}
	notes, err := space.Lint()
	if err != nil || len(notes) > 0 {
		t.Fatalf("lint: %v %v", notes, err)
	}
	n := st.Node("n1")
	r, err := space.Resolve(n.Name, n.Classes)
	if err != nil || len(r.Notes) > 0 {
		t.Fatalf("resolve: %v %v", r, err)
	}
	if r.Profile.Image != "debian-12:stable" || len(r.Scripts) != 1 || len(r.Files) != 1 || strings.Join(r.Profile.Kernel.Args, "") != "quiet" {
		t.Errorf("resolved %+v", r)
	}
	text, err := r.Files[0].Content()
	if err != nil {
		t.Fatal(err)
	}
	motd, err := Substitute(r.Files[0].Source, text, Vars(st, n, r))
	if err != nil || string(motd) != "Welcome to an ingot site. This is a web server; questions go to root@localhost.\n" {
		t.Errorf("motd %q %v", motd, err)
	}
	layout, err := disks.Parse(r.Disk.File, r.Disk.Text)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := layout.Plan([]disks.Device{{Name: "vda", Path: "/dev/vda", Size: 3 << 30}}, disks.Options{})
	if err != nil || plan.Result.ESPDevice != "/dev/vda1" || !plan.Result.BIOSBoot {
		t.Errorf("plan %+v %v", plan, err)
	}
	set := &Set{Dir: filepath.Join(dir, "templates")}
	if err := set.Lint(); err != nil {
		t.Error(err)
	}
	files, err := set.Node(st, n, r)
	if err != nil || len(files) != 5 {
		t.Errorf("node files %v %v", files, err)
	}
	known, err := space.Known()
	for _, c := range n.Classes {
		if err != nil || !strings.Contains(" "+strings.Join(known, " ")+" ", " "+c+" ") {
			t.Errorf("class %s is not known: %v %v", c, known, err)
		}
	}
	list, err := classes.ClassRun{Space: space, Host: n.Name, Explicit: n.Classes}.Run(t.Context())
	if err != nil || list[1] != "WEB" {
		t.Errorf("class scripts: %v %v", list, err)
	}
}
