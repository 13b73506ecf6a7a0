package units

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ingot/internal/pattern"
	"ingot/internal/systemd"
)

func TestParseMapping(t *testing.T) {
	dev := unix.Mkdev(0xfd, 1)
	for line, want := range map[string]mapping{
		"7f1c000-7f1d000 r-xp 00002000 fd:01 1234                       /usr/lib/libx.so.1": {true, dev, 1234, "/usr/lib/libx.so.1", false},
		"7f1c000-7f1d000 r--p 00002000 fd:01 1234   /usr/lib/lib x.so (deleted)":            {false, dev, 1234, "/usr/lib/lib x.so", true},
		"7f1c000-7f1d000 r-xs 0 103:12345 18446744073709551615 /a\\012b":                    {true, unix.Mkdev(0x103, 0x12345), 1<<64 - 1, "/a\\012b", false},
		"7f1c000-7f1d000 rw-s 00000000 00:01 2053 /memfd:x (deleted)":                       {false, unix.Mkdev(0, 1), 2053, "/memfd:x", true},
		"7f1c000-7f1d000 rw-p 00000000 00:00 0":                                             {}, "7f1c000-7f1d000 rw-p 00000000 00:00 0   [heap]": {},
		"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]": {},
		"7f1c000-7f1d000 r-xp 0 fd:01 0 /zero":                                                {}, "7f1c000-7f1d000 r-xp 0 fd01 1 /nodev": {}, "7f1c000-7f1d000 rx 0 fd:01 1 /perm": {}, "": {}, " /": {},
		"7f1c000-7f1d000 r-xp 0 fd:01 99999999999999999999 /big": {},
	} {
		if got, ok := parseMapping(line); got != want || ok != (want != mapping{}) {
			t.Errorf("%q: %+v %v", line, got, ok)
		}
	}
}

func FuzzParseMapping(f *testing.F) {
	for _, s := range []string{"", "7f1c-7f1d r-xp 00002000 fd:00 1234      /usr/lib/libx.so.1 (deleted)", "a b c d:e f /g", "    ", "1-2 r-xp 0 ffffffff:ffffffff 1 /", "1-2 r-xp 0 0:0 1 / (deleted) (deleted)"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		m, ok := parseMapping(line)
		if !ok {
			return
		}
		mark := ""
		if m.deleted {
			mark = deletedMark
		}
		perm := "r--p"
		if m.exec {
			perm = "r-xp"
		}
		again := fmt.Sprintf("1-2 %s 0 %x:%x %d %s%s", perm, unix.Major(m.dev), unix.Minor(m.dev), m.ino, m.path, mark)
		if twice, ok := parseMapping(again); !ok || twice != m {
			t.Errorf("%q: %+v, then %+v", line, m, twice)
		}
	})
}

func TestParseCgroup(t *testing.T) {
	for text, want := range map[string]string{
		"0::/system.slice/nginx.service\n":                                         "nginx.service",
		"0::/system.slice/system-getty.slice/getty@tty1.service\n":                 "getty@tty1.service",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.scope\n": "user@1000.service",
		"0::/user.slice/user-0.slice/session-3.scope\n":                            "session-3.scope",
		"0::/init.scope\n": "init.scope",
		"0::/system.slice/docker.service/sub/deeper.service\n": "docker.service",
		"0::/system.slice/_x.service\n":                        "x.service",
		"0::/\n":                                               "",
		"0::/../../other.slice/x.service\n":                    "",
		"0::/kubepods/pod1/x.service\n":                        "",
		"12:memory:/a.service\n1:name=systemd:/system.slice/b.service\n0::/system.slice/b.service": "b.service",
		"1:name=systemd:/system.slice/b.service\n0::/\n":                                           "b.service",
		"4:cpu:/system.slice/x.service\n":                                                          "",
		"nonsense":                                                                                 "", "": "",
	} {
		if got := parseCgroup(text); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}

func FuzzParseCgroup(f *testing.F) {
	for _, s := range []string{"", "0::/a.slice/b.service", "1:name=systemd:/x.scope\n0::/", "0::", "0::/_.service/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if unit := parseCgroup(text); unit != "" && (systemd.Suffix(unit) == "" || strings.ContainsAny(unit, "/\n") || !strings.Contains(text, unit)) {
			t.Errorf("%q: %q", text, unit)
		}
	})
}

func TestIsKernel(t *testing.T) {
	for stat, want := range map[string]bool{
		"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0":            true,
		"9 (a) b) S 0 0 0 0 -1 2129984 0":                  true,
		"1 (systemd) S 0 1 1 0 -1 4194560 8 9":             false,
		"7 (x 1 1 1 1 2129984 S) S 0 1 1 0 -1 4194560 8 9": false,
		"7 (x)": false, "": false, "7 (x) S 0 0 0 0 -1 x": false,
	} {
		if got := isKernel(stat); got != want {
			t.Errorf("%q: %v", stat, got)
		}
	}
}

func TestParseExec(t *testing.T) {
	for value, want := range map[string][]string{
		"{ path=/usr/sbin/nginx ; argv[]=/usr/sbin/nginx -g daemon on; master_process on; ; ignore_errors=no ; start_time=[n/a] ; pid=1 ; status=0/0 }": {"/usr/sbin/nginx"},
		"{ path=/usr/bin/python3 ; argv[]=/usr/bin/python3 -u /opt/app.py --x=/y ; ignore_errors=no ; start_time=[n/a] }":                               {"/usr/bin/python3", "/opt/app.py"},
		"{ path=/a b/c ; argv[]=x }": {"/a b/c"}, "": nil, "nonsense": nil, "{ path= ; }": nil,
	} {
		if got := parseExec(value); !slices.Equal(got, want) {
			t.Errorf("%q: %q", value, got)
		}
	}
}

func FuzzNewState(f *testing.F) {
	for _, s := range []string{"", "Id=a\nExecStart={ path=/a ; argv[]=/a /b ; ignore_errors=no ; }\nEnvironmentFiles=/x (ignore_errors=yes)\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, p := range systemd.ParseShow(b) {
			s := newState(p)
			for _, w := range s.programs {
				if !strings.HasPrefix(w, "/") {
					t.Errorf("program %q", w)
				}
			}
			if !slices.Contains(s.names, s.name) {
				t.Errorf("%+v", s)
			}
		}
	})
}

func TestPartOf(t *testing.T) {
	for p, want := range map[string]part{
		"etc/systemd/system/x.service":                         {"x.service", "", true},
		"lib/systemd/system/x.service":                         {"x.service", "", true},
		"usr/lib/systemd/system/getty@.service":                {"getty@.service", "", true},
		"usr/local/lib/systemd/system/x.timer":                 {"x.timer", "", true},
		"etc/systemd/system/x.service.d/10-a.conf":             {"x.service", "", true},
		"etc/systemd/system/service.d/10-a.conf":               {"", "", true},
		"etc/systemd/system/foo-.service.d/10-a.conf":          {"foo-.service", "", true},
		"etc/systemd/system/x.service.d/readme":                {},
		"etc/systemd/system/x.service.d":                       {"", "", true},
		"etc/systemd/system/multi-user.target.wants/x.service": {"x.service", "multi-user.target", true},
		"etc/systemd/system/x.service.requires/y.mount":        {"y.mount", "x.service", true},
		"etc/systemd/system/multi-user.target.wants":           {"", "", true},
		"etc/systemd/system":                                   {},
		"etc/systemd/system/readme":                            {},
		"etc/systemd/user/x.service":                           {},
		"usr/lib/systemd/systemd":                              {},
		"etc/fstab":                                            {"", "", true},
		"etc/init.d/x":                                         {"", "", true},
		"usr/lib/systemd/system-generators/g":                  {"", "", true},
		"etc/systemd/system.conf":                              {"", "", true},
		"home/x/etc/systemd/system/x.service":                  {},
		"etc/systemd/system/a/b/x.service":                     {},
	} {
		if got := partOf(p); got != want {
			t.Errorf("%s: %+v", p, got)
		}
	}
}

func TestNamed(t *testing.T) {
	s := state{names: []string{"foo-bar@1.service", "alias.service"}}
	for file, want := range map[string]bool{
		"foo-bar@1.service": true, "foo-bar@.service": true, "alias.service": true, "foo-.service": true,
		"foo.service": false, "bar-.service": false, "foo-.timer": false, "foo-bar@2.service": false, "-.service": false,
	} {
		if got := s.named(file); got != want {
			t.Errorf("%s: %v", file, got)
		}
	}
}

func TestRebootFor(t *testing.T) {
	for _, tt := range []struct {
		change Change
		want   string
	}{
		{Change{Path: "lib/modules/6.1.0/kernel/x.ko", Kind: Replaced}, "modules of the running kernel 6.1.0 changed"},
		{Change{Path: "usr/lib/modules/6.1.0/modules.dep", Kind: Deleted}, "modules of the running kernel 6.1.0 changed"},
		{Change{Path: "usr/lib/modules/6.1.0/new.ko", Kind: Added}, ""},
		{Change{Path: "usr/lib/modules/6.1.0-2/x.ko", Kind: Deleted}, ""},
		{Change{Path: "boot/vmlinuz-6.2", Kind: Added}, "a kernel changed: /boot/vmlinuz-6.2"},
		{Change{Path: "boot/initrd.img-6.1", Kind: Replaced}, "an initramfs changed: /boot/initrd.img-6.1"},
		{Change{Path: "boot/grub/grub.cfg", Kind: Replaced}, ""},
	} {
		if got := rebootFor(tt.change, "6.1.0"); got != tt.want {
			t.Errorf("%+v: %q", tt.change, got)
		}
	}
	if got := rebootFor(Change{Path: "usr/lib/modules//x", Kind: Deleted}, ""); got != "" {
		t.Errorf("without a release: %q", got)
	}
}

func TestStale(t *testing.T) {
	c := newChanged([]Change{
		{Path: "lib/libx.so", Kind: Replaced, Dev: 1, Ino: 10}, {Path: "usr/bin/a", Kind: Deleted, Dev: 1, Ino: 11},
		{Path: "usr/bin/new", Kind: Added, Dev: 1, Ino: 12}, {Path: "usr/bin/owner", Kind: "meta", Dev: 1, Ino: 13}, {Path: "usr/bin/none", Kind: Deleted},
	})
	ignore := pattern.NodeOwned().With(pattern.Volatile())
	for _, tt := range []struct {
		name string
		m    mapping
		want string
	}{
		{"before the switch", mapping{true, 1, 10, "/usr/lib/libx.so", false}, "/lib/libx.so"},
		{"data, too", mapping{false, 1, 10, "/usr/lib/libx.so", false}, "/lib/libx.so"},
		{"another device", mapping{true, 2, 10, "/usr/lib/libother.so", false}, ""},
		{"a device that is hidden", mapping{true, 2, 10, "/usr/lib/libx.so", false}, "/lib/libx.so"},
		{"what is new", mapping{true, 1, 12, "/usr/bin/new", false}, ""},
		{"metadata", mapping{true, 1, 13, "/usr/bin/owner", false}, ""},
		{"no inode", mapping{true, 0, 0, "/usr/bin/none", false}, ""},
		{"after it", mapping{true, 1, 11, "/.ingot/generations/3/undo/7", false}, "/usr/bin/a"},
		{"after it, device hidden", mapping{true, 9, 11, "/.ingot/generations/3/undo/7", false}, "/usr/bin/a"},
		{"during it", mapping{true, 1, 11, "/.ingot/stage/x/undo/7", false}, "/usr/bin/a"},
		{"of an older one", mapping{true, 1, 99, "/.ingot/generations/1/undo/7", false}, "/.ingot/generations/1/undo/7"},
		{"of a retired one", mapping{false, 1, 99, "/.ingot/generations/1/undo/7", true}, "/.ingot/generations/1/undo/7"},
		{"the agent", mapping{true, 1, 98, "/.ingot/agent", false}, ""},
		{"the agent before", mapping{true, 1, 98, "/.ingot/agent", true}, ""},
		{"deleted program", mapping{true, 1, 50, "/usr/bin/b", true}, "/usr/bin/b"},
		{"deleted data", mapping{false, 1, 50, "/usr/share/b", true}, ""},
		{"not deleted", mapping{true, 1, 50, "/usr/bin/b", false}, ""},
		{"memory", mapping{true, 1, 50, "/memfd:jit", true}, ""},
		{"shared memory", mapping{true, 1, 50, "/SYSV00000000", true}, ""},
		{"requests", mapping{true, 1, 50, "/[aio]", true}, ""},
		{"temporary", mapping{true, 1, 50, "/tmp/x", true}, ""},
		{"of a home", mapping{true, 1, 50, "/home/u/bin/x", true}, ""},
		{"runtime", mapping{true, 1, 50, "/run/x", true}, ""},
	} {
		if got, ok := newJudge(c, "/", ignore).stale(tt.m); got != tt.want || ok != (tt.want != "") {
			t.Errorf("%s: %q", tt.name, got)
		}
	}
	j := newJudge(c, "/srv/x/", ignore)
	for p, want := range map[string]string{"/srv/x/usr/bin/b": "/srv/x/usr/bin/b", "/srv/x/tmp/b": "", "/usr/bin/b": "", "/srv/xy/b": ""} {
		if got, _ := j.stale(mapping{true, 1, 50, p, true}); got != want {
			t.Errorf("below another top: %s: %q", p, got)
		}
	}
}
