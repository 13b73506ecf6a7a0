package classes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ingot/internal/problem"
)

// space writes a config space; files whose text begins with #! are executable.
func space(t *testing.T, files map[string]string) *Space {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		perm := os.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			perm = 0o755
		}
		if err := os.WriteFile(path, []byte(text), perm); err != nil {
			t.Fatal(err)
		}
	}
	return &Space{Dir: dir}
}

func example() map[string]string {
	return map[string]string{
		"profile/DEFAULT.yaml":     "boot: image\nimage: debian-12:stable\nkernel:\n  args: [a, b]\nnode_owned: [/srv/**]\n",
		"profile/WEB.yaml":         "image: web:1\nkernel:\n  args: [c]\n  from: image\n",
		"profile/LAST.yaml":        "node_owned:\n",
		"profile/OTHER.yaml":       "image: other\n",
		"class/DEFAULT.var":        "A=1\nB=one\nROOTPW='$6$x'\n",
		"class/WEB.var":            "B=\"$A two\" # why\nC=$(date)\n",
		"class/n1":                 "# no\nHOSTCLASS SECOND\n",
		"disk_config/DEFAULT":      "default\n",
		"disk_config/WEB":          "web\n",
		"files/etc/motd/DEFAULT":   "d\n",
		"files/etc/motd/WEB":       "w\n",
		"files/etc/x/DEFAULT":      "#! x\n",
		"files/etc/y/WEB":          "y\n",
		"files/etc/y/file-modes":   "www-data 33 0640\nroot root 2755 WEB # c\n",
		"files/etc/z/OTHER":        "z\n",
		"files/etc/s/n1":           "{%A%}\n",
		"files/etc/s/_substitute":  "",
		"scripts/WEB/20-b":         "#! b\n",
		"scripts/WEB/10-a":         "#! a\n",
		"scripts/WEB/9-never":      "#! a\n",
		"scripts/WEB/30-backup~":   "#! a\n",
		"scripts/WEB/40-x.bak":     "#! a\n",
		"scripts/WEB/50-not-exec":  "text\n",
		"scripts/DEFAULT":          "#! d\n",
		"scripts/WEB/60-dir/x":     "#! no\n",
		"scripts/LAST/10-l":        "#! l\n",
		"files/etc/y/._junk":       "",
		"files/etc/.git/x/DEFAULT": "",
	}
}

func TestResolve(t *testing.T) {
	files := example()
	files["files/etc/y/file-modes"] = "www-data 33 0640\n# c\nroot root 2755 OTHER\n"
	r, err := space(t, files).Resolve("n1", []string{"WEB"})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(r.Classes, " "); got != "DEFAULT WEB HOSTCLASS SECOND n1 LAST" {
		t.Errorf("classes %s", got)
	}
	p := r.Profile
	if p.Image != "web:1" || strings.Join(p.Kernel.Args, " ") != "c" || p.Update != "live" || len(p.Check) != 0 || p.Network != "networkd" {
		t.Errorf("profile %+v", p)
	}
	if r.Vars["A"] != "1" || r.Vars["B"] != "1 two" {
		t.Errorf("vars %v", r.Vars)
	}
	if r.Disk == nil || r.Disk.Class != "WEB" || string(r.Disk.Text) != "web\n" {
		t.Errorf("disk %+v", r.Disk)
	}
	var got []string
	for _, f := range r.Files {
		got = append(got, fmt.Sprintf("%s=%s %s:%s(%d:%d) %04o %v", f.Path, f.Class, f.Owner, f.Group, f.UID, f.GID, f.Mode, f.Substitute))
	}
	want := []string{"/etc/motd=WEB root:root(0:0) 0644 false", "/etc/s=n1 root:root(0:0) 0644 true", "/etc/x=DEFAULT root:root(0:0) 0755 false", "/etc/y=WEB www-data:33(-1:33) 0640 false"}
	if !slices.Equal(got, want) {
		t.Errorf("files\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if text, err := r.Files[0].Content(); err != nil || string(text) != "w\n" {
		t.Errorf("content %q %v", text, err)
	}
	got = nil
	for _, s := range r.Scripts {
		got = append(got, s.Path)
	}
	if want := "scripts/DEFAULT scripts/WEB/10-a scripts/WEB/20-b scripts/WEB/40-x.bak scripts/LAST/10-l"; strings.Join(got, " ") != want {
		t.Errorf("scripts %v", got)
	}
	if !strings.Contains(r.Notes.Error(), "class/WEB.var:2:1: needs a shell") || !strings.Contains(r.Notes.Error(), "50-not-exec: is not executable") {
		t.Errorf("notes %v", r.Notes)
	}
}

func TestExplain(t *testing.T) {
	files := example()
	delete(files, "files/etc/y/file-modes")
	values, err := space(t, files).Explain("n1", []string{"WEB"})
	if err != nil {
		t.Fatal(err)
	}
	find := func(key string) Value {
		for _, v := range values {
			if v.Key == key {
				return v
			}
		}
		t.Errorf("%s is not explained", key)
		return Value{Overridden: []Value{{}}}
	}
	if v := find("image"); v.Value != "web:1" || v.Class != "WEB" || v.File != "profile/WEB.yaml" || v.Line != 1 || v.Overridden[0].Value != "debian-12:stable" || v.Overridden[0].Line != 2 {
		t.Errorf("image: %+v", v)
	}
	if v := find("kernel.args"); v.Value != "[c]" || v.Line != 3 || v.Overridden[0].Value != "[a, b]" || v.Overridden[0].Line != 4 {
		t.Errorf("args: %+v", v)
	}
	if v := find("node_owned"); v.Value != "" || v.Class != "LAST" {
		t.Errorf("node_owned: %+v", v)
	}
	if v := find("B"); v.Kind != "var" || v.Value != "1 two" || v.Line != 1 || v.Overridden[0].File != "class/DEFAULT.var" {
		t.Errorf("B: %+v", v)
	}
	if v := find("ROOTPW"); v.Value != "********" {
		t.Errorf("a secret is shown: %+v", v)
	}
	if v := find("/etc/motd"); v.File != "files/etc/motd/WEB" || v.Overridden[0].Class != "DEFAULT" {
		t.Errorf("motd: %+v", v)
	}
	if v := find("disk_config"); v.Class != "WEB" || len(v.Overridden) != 1 {
		t.Errorf("disk: %+v", v)
	}
}

func TestResolveReportsEverything(t *testing.T) {
	s := space(t, map[string]string{
		"profile/DEFAULT.yaml":   "bot: image\nboot: packages\nupdate: zfs\nkernel: {args: [\"a\\tb\"], from: disk}\nsides: {other: x, shared: /b, env: /b}\n",
		"profile/WEB.yaml":       "image: [x]\ncheck: [{unit: a.service, http: \"http://b/\"}]\nnetwork: netplan\nimage: y\n",
		"profile/n1.yaml":        "image: 'a b'\nnode_owned: [\"\"]\nnever_roll_back: [/etc/shadow, etc]\nlocal_changes: {keep: [/a], take: [/b, x], merge: [{path: z, command: c}, {path: /z}]}\ngenerations: {keep: 1, space: 12}\n",
		"files/etc/y/WEB":        "y\n",
		"files/etc/y/file-modes": "root\nroot root 99999\n",
		"disk_config/WEB":        "x\n",
	})
	s.CheckDisk = func(file string, text []byte) error { return problem.List{{File: file, Line: 1, Text: "bad disk"}} }
	_, err := s.Resolve("n1", []string{"WEB"})
	var probs problem.List
	if !errors.As(err, &probs) {
		t.Fatal(err)
	}
	for _, want := range []string{
		`profile/DEFAULT.yaml:1:1: unknown key "bot" (did you mean "boot"?)`, "profile/DEFAULT.yaml:2:7: boot: packages is not supported yet",
		"profile/DEFAULT.yaml:3:9: update: \"zfs\" is not one of", "profile/DEFAULT.yaml:4:17: ", "kernel.from: \"disk\" is not one of", "\"x\" is not a mount point", "/b is sides.shared already",
		"profile/WEB.yaml:1:8: wants a text", "profile/WEB.yaml:2:9: a check is one of", "profile/WEB.yaml:3:10: network:", "profile/WEB.yaml:4:1: \"image\" is written twice",
		"profile/n1.yaml:1:8: ", "profile/n1.yaml:2:14:", "profile/n1.yaml:3:32:", "profile/n1.yaml:4:40:", `profile/n1.yaml:4:59: "z" is not a pattern`, "a command is missing, such as diff3", "profile/n1.yaml:5:21: 1 generations", `"12" is not a size such as`, "files/etc/y/file-modes:1:1:", "files/etc/y/file-modes:2:1:", "disk_config/WEB:1: bad disk",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in\n%v", want, err)
		}
	}
}

func TestWhatANodeNeeds(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  string // "" is fine
	}{
		{"no profile: boots its disk", map[string]string{}, ""},
		{"local", map[string]string{"profile/DEFAULT.yaml": "boot: local\n"}, ""},
		{"image without image", map[string]string{"profile/DEFAULT.yaml": "boot: image\n"}, "profile/DEFAULT.yaml:1:7: boot: image needs image"},
		{"image without disk", map[string]string{"profile/DEFAULT.yaml": "image: x:y\n"}, "no file for any of its classes DEFAULT n1 LAST"},
	} {
		r, err := space(t, tt.files).Resolve("n1", nil)
		if tt.want == "" && (err != nil || r.Profile.Boot != "local") || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v %v", tt.name, r, err)
		}
	}
}

func TestLinksStayInTheSpace(t *testing.T) {
	s := space(t, map[string]string{"files/etc/a/DEFAULT": "a\n"})
	secret := filepath.Join(t.TempDir(), "shadow")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := func(target, name string) {
		path := filepath.Join(s.Dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	link("../a/DEFAULT", "files/etc/b/DEFAULT")
	r, err := s.Resolve("n1", nil)
	if err != nil || len(r.Files) != 2 {
		t.Fatalf("a link within the space: %v %v", r, err)
	}
	link(secret, "files/etc/c/DEFAULT")
	if _, err = s.Resolve("n1", nil); err == nil || !strings.Contains(err.Error(), "files/etc/c/DEFAULT: cannot be read") {
		t.Errorf("a link out of the space: %v", err)
	}
	if _, err := s.Lint(); err == nil {
		t.Error("lint does not see it")
	}
}

func TestJoin(t *testing.T) {
	for _, tt := range []struct{ explicit, added, host, want string }{
		{"", "", "h", "DEFAULT h LAST"},
		{"A B", "C A DEFAULT LAST", "h", "DEFAULT A B C h LAST"},
		{"h A", "", "h", "DEFAULT A h LAST"},
	} {
		if got := strings.Join(Join(strings.Fields(tt.explicit), strings.Fields(tt.added), tt.host), " "); got != tt.want {
			t.Errorf("%v: %s", tt, got)
		}
	}
}

func TestLint(t *testing.T) {
	files := example()
	files["profile/x.yml"] = ""
	files["class/10-a"] = "echo A\n"
	s := space(t, files)
	seen := 0
	s.CheckDisk = func(string, []byte) error { seen++; return nil }
	notes, err := s.Lint()
	if err == nil || !strings.Contains(err.Error(), "profile/x.yml: is not read") || !strings.Contains(err.Error(), "file-modes:2:1") {
		t.Errorf("lint: %v", err)
	}
	if !strings.Contains(notes.Error(), "class/10-a: is not executable") || seen != 2 {
		t.Errorf("notes %v, %d disk files", notes, seen)
	}
	known, err := s.Known()
	if err != nil || !slices.Contains(known, "OTHER") || !slices.Contains(known, "WEB") || slices.Contains(known, "file-modes") {
		t.Errorf("known %v %v", known, err)
	}
}

func TestParseVars(t *testing.T) {
	tests := []struct{ text, want, shell string }{
		{"A=1\n", "A=1", ""},
		{"A='it''s $x' B=\"a \\\"q\\\" \\$x\"\n", "A=its $x|B=a \"q\" $x", ""},
		{"export A=x # c\n\n#c\n  B=y", "A=x|B=y", ""},
		{"A=a\\ b\nC=x;D=y\n", "A=a b|C=x|D=y", ""},
		{"A=1\nB=${A}2\nC=$A$B\n", "A=1|B=12|C=112", ""},
		{"A='two\nlines'\nB=2\n", "A=two\nlines|B=2", ""},
		{"A=$UNKNOWN\nB=1\n", "B=1", "A"},
		{"A=1\nif true; then\n  A=2\nfi\nB=3\n", "A=1|B=3", "A"},
		{"A=`x`\n[ -n \"$B\" ] && C=1\n", "", "A C"},
		{"f() {\n A=1\n}\nB=1\n", "B=1", "A"},
		{"A=\"$(cat <<E\nB=1\nE\n)\"\nC=1\n", "C=1", "A B"},
		{"cat <<E\nB=1\nE\nC=1\n", "C=1", "B"},
		{"A=x cmd\nA+=y\nB[0]=z\n", "", "A B"},
		{"ifclass X && A=1\n", "", "A"},
		{"A=", "A=", ""},
		{"PW='$6$ab$cd'\n", "PW=$6$ab$cd", ""},
	}
	for _, tt := range tests {
		assigned, shell, notes := ParseVars("f", []byte(tt.text), nil)
		var got []string
		for _, a := range assigned {
			got = append(got, a.Name+"="+a.Value)
		}
		if strings.Join(got, "|") != tt.want || strings.Join(shell, " ") != tt.shell {
			t.Errorf("%q: %q and %q, want %q and %q", tt.text, got, shell, tt.want, tt.shell)
		}
		if (tt.shell != "") && len(notes) == 0 {
			t.Errorf("%q: no note", tt.text)
		}
	}
}

// FuzzParseVars lets bash judge: a file that needs no shell means the same to it.
func FuzzParseVars(f *testing.F) {
	if _, err := exec.LookPath("bash"); err != nil {
		f.Skip("needs bash")
	}
	seeds := []string{"A=1\n", "A='a b' B=\"c\\\"d\"\n", "A=x\\\ny\n", "A=1 # c\nB=$A\n", "export A=\"q\\q\"\n", "A=a#b;B=c\n", "A=1\n\tB=${A}x\n", "A=\"x\\\ny\"\n"}
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.ContainsAny(text, "\x00\r") || len(text) > 60 {
			return
		}
		assigned, _, notes := ParseVars("f", []byte(text), nil)
		if len(notes) > 0 || len(assigned) == 0 {
			return
		}
		want := map[string]string{}
		for _, a := range assigned {
			want[a.Name] = a.Value
		}
		script := text + "\n"
		var names []string
		for n := range want {
			if len(n) < 2 || !strings.HasPrefix("ABCDEFGH", n[:1]) {
				return // variables that bash itself uses
			}
			names = append(names, n)
		}
		for _, n := range names {
			script += "printf '%s\\0' \"$" + n + "\"\n"
		}
		out, err := exec.Command("bash", "-c", script).Output()
		var expect string
		for _, n := range names {
			expect += want[n] + "\x00"
		}
		if err != nil || string(out) != expect {
			t.Errorf("%q: bash says %q (%v), we %q", text, out, err, expect)
		}
	})
}

func TestClassScripts(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("needs bash")
	}
	s := space(t, map[string]string{
		"class/10-a":        "#! /bin/sh\necho A B; echo C\n",
		"class/20-comment":  "#! /bin/sh\necho '# X'; echo Y\n",
		"class/30-env":      "#! /bin/sh\nfor c in $classes; do [ $c = B ] && echo SAW_B; done\n[ \"$cmdlineclasses\" = 'E1 E2' ] && echo E1 CMD; exit 3\n",
		"class/40-s.sh":     "#! /bin/bash\nnewclasses=\"S1 S2\"\necho noise\n",
		"class/50-x.bak":    "#! /bin/sh\necho NO\n",
		"class/60-off":      "echo NO\n",
		"class/9-no":        "#! /bin/sh\necho NO\n",
		"class/n1":          "#c\nH1\n",
		"class/70-noheader": "#!\necho Z\n",
	})
	got, err := ClassRun{Space: s, Host: "n1", Explicit: []string{"E1", "E2"}}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := "DEFAULT E1 E2 A B C SAW_B CMD S1 S2 Z H1 n1 LAST"; strings.Join(got, " ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, " "), want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (ClassRun{Space: s, Host: "n1"}).Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
