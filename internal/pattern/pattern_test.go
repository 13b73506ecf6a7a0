package pattern

import (
	"strings"
	"testing"
)

func TestMatch(t *testing.T) {
	tests := []struct {
		name string
		list string
		yes  string
		no   string
	}{
		{"exact", "/etc/hostname", "etc/hostname", "etc hostname etc/hostname2 x/etc/hostname ."},
		{"exact directory takes what is in it", "/opt/data", "opt/data opt/data/a opt/data/a/b", "opt opt/data2 opt/data2/a"},
		{"trailing slash", "/opt/data/", "opt/data opt/data/a", "opt"},
		{"below, not itself", "/x/**", "x/a x/a/b", "x . y y/x/a"},
		{"star stays within a component", "/etc/ssh/ssh_host_*", "etc/ssh/ssh_host_rsa_key etc/ssh/ssh_host_", "etc/ssh/ssh_config etc/ssh_host_x"},
		{"star matches dot files", "/root/.*_history", "root/.bash_history", "root/.bashrc root/x/.bash_history"},
		{"question mark and class", "/d/[ab]?", "d/a1 d/bz d/ax/below", "d/c1 d/a d/abc"},
		{"double star in the middle", "/a/**/z", "a/z a/b/z a/b/c/z a/z/more", "z a a/b"},
		{"double star in front", "/**/core", "core a/core a/b/core", "a/cores"},
		{"everything", "/**", "a a/b", "."},
		{"last wins", "/var/lib/** !/var/lib/dpkg/**", "var/lib/x var/lib/dpkg var/lib/dpkgx/a", "var/lib var/lib/dpkg/status"},
		{"order matters", "!/var/lib/dpkg/** /var/lib/**", "var/lib/dpkg/status", "var/lib"},
		{"put back in", "/a/** !/a/b /a/b/c", "a/x a/b/c a/b/c/d", "a/b a/b/x"},
		{"raw bytes", "/b/*", "b/\xff\xfe", "b"},
		{"escaped star", `/b/\*`, "b/*", "b/x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, err := Parse(strings.Fields(tt.list))
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range strings.Fields(tt.yes) {
				if !l.Match(p) {
					t.Errorf("%q does not match %q", tt.list, p)
				}
			}
			for _, p := range strings.Fields(tt.no) {
				if l.Match(p) {
					t.Errorf("%q matches %q", tt.list, p)
				}
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	for _, s := range []string{"", "etc", "!etc", "/", "!/", "//", "/a//b", "/a/../b", "/./a", "/a**", "/a/b**c", "/[", `/a\`, "!!/a"} {
		if _, err := Parse([]string{"/ok", s}); err == nil {
			t.Errorf("Parse(%q) succeeded", s)
		} else if s != "" && !strings.Contains(err.Error(), "pattern") {
			t.Errorf("Parse(%q): error does not name it: %v", s, err)
		}
	}
}

func TestCovers(t *testing.T) {
	tests := []struct {
		list, dir string
		want      bool
	}{
		{"/home/**", "home", true},
		{"/home/**", "home/joe", true},
		{"/home/**", ".", false},
		{"/**", ".", true},
		{"/opt", "opt", true},
		{"/var/lib/** !/var/lib/dpkg/**", "var/lib", false},
		{"/var/lib/** !/var/lib/dpkg/**", "var/lib/docker", true},
		{"/var/lib/** !/var/lib/dpkg/**", "var/lib/dpkg", false},
		{"/var/lib/** !/var/lib/dpkg/**", "var/lib/dpkg/info", false},
		{"!/var/lib/dpkg/** /var/lib/**", "var/lib/dpkg", true},
		{"/home/** !/**/keep", "home/joe", false},
		{"/home/*/cache", "home", false},
		{"/home/*/cache", "home/joe/cache", true},
	}
	for _, tt := range tests {
		l, err := Parse(strings.Fields(tt.list))
		if err != nil {
			t.Fatal(err)
		}
		if got := l.Covers(tt.dir); got != tt.want {
			t.Errorf("Covers(%q) of %q = %v", tt.dir, tt.list, got)
		}
	}
}

func TestQuote(t *testing.T) {
	for _, path := range []string{"etc/hosts", "a*b", `back\slash`, "[x]", "what?", "**", "!x", "sp ace\nline"} {
		l, err := Parse([]string{Quote(path)})
		if err != nil || !l.Match(path) || l.Match("etc/axb") || l.Match("x") {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func TestBuiltin(t *testing.T) {
	tests := []struct {
		list List
		path string
		want bool
	}{
		{NodeOwned(), "etc/hostname", true},
		{NodeOwned(), "etc/ssh/ssh_host_ed25519_key.pub", true},
		{NodeOwned(), "etc/ssh/sshd_config", false},
		{NodeOwned(), "home", false},
		{NodeOwned(), "home/joe", true},
		{NodeOwned(), "root/.ssh/authorized_keys", true},
		{NodeOwned(), "root/.bashrc", false},
		{NodeOwned(), "var/lib/mysql/ibdata1", true},
		{NodeOwned(), "var/lib/dpkg/status", false},
		{NodeOwned(), "var/lib/apt/extended_states", false},
		{NodeOwned(), "var/lib/apt/lists", true},
		{NodeOwned(), "var/lib/rpm/Packages", false},
		{NodeOwned(), "var/log", false},
		{Volatile(), "var/log", false},
		{Volatile(), "var/log/syslog", true},
		{Volatile(), ".ingot", true},
		{Volatile(), ".ingot/journal", true},
		{Volatile(), "proc", false},
		{Volatile(), "proc/1", true},
		{Volatile(), "root/.bash_history", true},
		{Volatile(), "home/joe/.python_history", true},
		{Volatile(), "home/joe/notes", false},
		{Volatile(), "usr/bin/env", false},
	}
	for _, tt := range tests {
		if got := tt.list.Match(tt.path); got != tt.want {
			t.Errorf("Match(%q) = %v, want %v", tt.path, got, tt.want)
		}
	}
}

// FuzzCovers holds Covers to its promise: what it covers is matched.
func FuzzCovers(f *testing.F) {
	f.Add("/a/** !/a/b/**", "a", "b/c")
	f.Add("/**/x /a", "a/b", "x")
	f.Add("/a/*/c !/a/b", "a/b", "c")
	f.Add("/**", ".", "x")
	f.Fuzz(func(t *testing.T, list, dir, below string) {
		l, err := Parse(strings.Fields(list))
		if err != nil || !clean(dir) || !clean(below) || below == "." {
			return
		}
		p := dir + "/" + below
		if dir == "." {
			p = below
		}
		if l.Covers(dir) && !l.Match(p) {
			t.Errorf("%q covers %q but does not match %q", list, dir, p)
		}
	})
}

func clean(p string) bool {
	if p == "." {
		return true
	}
	for _, c := range strings.Split(p, "/") {
		if c == "" || c == "." || c == ".." {
			return false
		}
	}
	return true
}
