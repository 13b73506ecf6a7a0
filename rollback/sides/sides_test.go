package sides

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/pattern"
)

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// GRUB's own tool reads our block, and we read what it made of it.
func TestEnvIsGRUBs(t *testing.T) {
	dir := t.TempDir()
	ok(t, NewEnv(dir, Env{Side: A}))
	ok(t, WriteEnv(dir, Env{Side: B, Try: A}))
	file := filepath.Join(dir, EnvFile)
	out, err := exec.Command("grub-editenv", file, "list").CombinedOutput()
	if err != nil || string(out) != "ingot_side=b\ningot_try=a\n" {
		t.Errorf("grub-editenv lists %q, %v", out, err)
	}
	if out, err := exec.Command("grub-editenv", file, "set", "ingot_try=", "other=1").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if e, err := ReadEnv(dir); err != nil || e != (Env{Side: B}) {
		t.Errorf("after GRUB wrote it: %+v, %v", e, err)
	}
	if st, err := os.Stat(file); err != nil || st.Size() != envSize {
		t.Errorf("%v, %v", st, err)
	}
}

func TestEnvRefused(t *testing.T) {
	dir := t.TempDir()
	for _, b := range []string{"", envSignature, strings.Repeat("#", envSize), string(Env{Side: "c"}.Encode()), string(Env{Side: A, Try: "x"}.Encode()), string(Env{Side: A}.Encode()) + "#"} {
		if e, err := DecodeEnv([]byte(b)); !errors.Is(err, ErrEnv) {
			t.Errorf("%q is %+v, %v", b, e, err)
		}
	}
	if err := WriteEnv(dir, Env{Side: A}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a block that is not there: %v", err)
	}
	ok(t, os.Mkdir(dir+"/ingot", 0o755))
	ok(t, os.WriteFile(dir+"/"+EnvFile, []byte("short"), 0o600))
	if err := WriteEnv(dir, Env{Side: A}); !errors.Is(err, ErrEnv) {
		t.Errorf("a short block: %v", err)
	}
	if err := WriteEnv(dir, Env{}); !errors.Is(err, ErrEnv) {
		t.Errorf("no side: %v", err)
	}
}

func FuzzDecodeEnv(f *testing.F) {
	f.Add(Env{Side: A, Try: B}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEnv(b)
		if err != nil {
			return
		}
		if again, err := DecodeEnv(e.Encode()); err != nil || again != e {
			t.Errorf("%+v became %+v, %v", e, again, err)
		}
	})
}

func TestShare(t *testing.T) {
	for _, tt := range []struct{ owned, trees, own, err string }{
		{"", "var/log", "", ""},
		{"/home/** /etc/hostname /root/.ssh/**", "home var/log", "", ""},
		{"/var/lib/** !/var/lib/dpkg/** !/var/lib/apt/extended_states", "var/lib var/log", "var/lib/apt var/lib/dpkg", ""},
		{"/srv/** /srv/data/**", "srv var/log", "", ""},
		{"/var/**", "var", "", ""},
		{"!/opt/x/**", "var/log", "", ""},
		{"/srv/*/data/**", "", "", `"/srv/*/data/**" is no whole directory`},
		{"/opt/app.db", "", "", `"/opt/app.db" is no whole directory`},
		{"/srv/** !/srv/www/** /srv/www/up/**", "", "", `"/srv/www/up/**" is the node's own, in a directory that is not`},
		{"/**", "", "", "no whole directory"},
	} {
		trees, own, err := Share(strings.Fields(tt.owned))
		if got := strings.Join(trees, " "); got != tt.trees {
			t.Errorf("%q shares %q, want %q", tt.owned, got, tt.trees)
		}
		if got := strings.Join(own, " "); got != tt.own {
			t.Errorf("%q has of its own %q, want %q", tt.owned, got, tt.own)
		}
		if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: %v, want %q", tt.owned, err, tt.err)
		}
	}
	trees, own, err := Share(pattern.NodeOwned().Strings())
	if err != nil || !slices.Equal(trees, []string{"home", "var/lib", "var/log"}) || !slices.Equal(own, []string{"var/lib/apt", "var/lib/dpkg", "var/lib/rpm"}) {
		t.Errorf("the built-in ones: %q, %q, %v", trees, own, err)
	}
}

func TestAtStart(t *testing.T) {
	now := time.Now()
	open := Trial{Side: B, Generation: 5, From: 4, Made: now}
	with := func(fn func(*Trial)) *Trial { x := open; fn(&x); return &x }
	for _, tt := range []struct {
		name string
		t    *Trial
		side string
		env  Env
		act  Act
		why  string
	}{
		{"none", nil, A, Env{Side: A}, Nothing, ""},
		{"over", with(func(t *Trial) { t.Ended = now }), B, Env{Side: B}, Nothing, ""},
		{"tried", &open, B, Env{Side: A}, Guard, ""},
		{"confirmed but for the record", &open, B, Env{Side: B}, Finish, ""},
		{"the loader cannot write", &open, A, Env{Side: A, Try: B}, CameBack, "boot loader did not start"},
		{"a kernel that dies", &open, A, Env{Side: A}, CameBack, "did not come as far as its init"},
		{"an init that dies", with(func(t *Trial) { t.Starts = []time.Time{now} }), A, Env{Side: A}, CameBack, "not to the end of its start"},
		{"reset", with(func(t *Trial) { t.Starts, t.Up = []time.Time{now}, now }), A, Env{Side: A}, CameBack, "before it was confirmed"},
		{"given up", with(func(t *Trial) { t.Starts, t.Reason = []time.Time{now}, "check x: no" }), A, Env{Side: A}, CameBack, "check x: no"},
	} {
		act, why := tt.t.AtStart(tt.side, tt.env)
		if act != tt.act || (why == "") != (tt.why == "") || !strings.Contains(why, tt.why) {
			t.Errorf("%s: %v, %q", tt.name, act, why)
		}
	}
}

func TestWaits(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		t    *Trial
		want bool
	}{
		{nil, false}, {&Trial{Side: B}, false}, {&Trial{Side: B, Later: true}, true},
		{&Trial{Side: B, Later: true, Starts: []time.Time{now}}, false}, {&Trial{Side: B, Later: true, Ended: now}, false},
	} {
		if got := tt.t.Waits(); got != tt.want {
			t.Errorf("%+v waits: %v", tt.t, got)
		}
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	if tr, err := ReadTrial(dir); tr != nil || err != nil {
		t.Errorf("no trial: %v, %v", tr, err)
	}
	ok(t, (&Trial{Side: B, Generation: 3}).Write(dir))
	if tr, err := ReadTrial(dir); err != nil || tr.Generation != 3 || !tr.Open() {
		t.Errorf("%+v, %v", tr, err)
	}
	ok(t, os.WriteFile(filepath.Join(dir, trialFile), []byte("{}"), 0o600))
	if _, err := ReadTrial(dir); err == nil {
		t.Error("the trial of no side")
	}
	c := &Config{Side: A, Roots: map[string]Device{A: {FSType: "ext4", UUID: "1"}, B: {FSType: "ext4", UUID: "2"}}, Shared: Device{FSType: "ext4", UUID: "3"}, Env: Device{FSType: "ext2", UUID: "4"}, Trees: []string{"home"}}
	ok(t, c.On(B).Write(dir))
	if got, err := Read(dir); err != nil || got.Side != B || got.Roots[A].UUID != "1" {
		t.Errorf("%+v, %v", got, err)
	}
	c.Trees = []string{"../x"}
	if err := c.Write(dir); err == nil {
		t.Error("a tree outside was taken")
	}
}

// Without what is shared nothing can be written in its place.
func TestHide(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts")
	}
	top := t.TempDir()
	c := &Config{Trees: []string{"home", "var/lib"}}
	for _, tree := range c.Trees {
		ok(t, os.MkdirAll(filepath.Join(top, tree, "old"), 0o755))
	}
	ok(t, c.Hide(top))
	for _, tree := range c.Trees {
		dir := filepath.Join(top, tree)
		if err := os.WriteFile(dir+"/new", nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("a write to %q: %v", tree, err)
		}
		if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
			t.Errorf("%q has %v, %v", tree, list, err)
		}
		ok(t, unix.Unmount(dir, 0))
	}
	c.Trees = []string{"nowhere", "home"}
	if err := c.Hide(top); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("a tree that is not there: %v", err)
	}
	ok(t, unix.Unmount(filepath.Join(top, "home"), 0)) // the others are hidden
}

// Both sides show the shared trees, and each what it has for itself.
func TestMountTrees(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts")
	}
	dir := t.TempDir()
	shared := filepath.Join(dir, "disk")
	ok(t, os.Mkdir(shared, 0o755))
	c := &Config{Trees: []string{"home", "var/lib"}, Own: []string{"var/lib/dpkg"}}
	put := func(path, text string) {
		t.Helper()
		ok(t, os.MkdirAll(filepath.Dir(path), 0o755))
		ok(t, os.WriteFile(path, []byte(text), 0o644))
	}
	for _, side := range []string{A, B} {
		top := filepath.Join(dir, side)
		put(top+"/var/lib/dpkg/status", side)
		ok(t, os.Mkdir(top+"/home", 0o750))
		ok(t, os.MkdirAll(filepath.Join(top, SharedDir), 0o700))
		ok(t, unix.Mount(shared, filepath.Join(top, SharedDir), "", unix.MS_BIND, ""))
		made, err := c.MountTrees(top)
		t.Cleanup(func() {
			for _, at := range slices.Backward(append([]string{filepath.Join(top, SharedDir)}, made...)) {
				if err := unix.Unmount(at, 0); err != nil {
					t.Errorf("unmount %q: %v", at, err)
				}
			}
		})
		ok(t, err)
		if len(made) != 3 {
			t.Errorf("side %s: mounted %q", side, made)
		}
		put(top+"/home/of-"+side, side)
		put(top+"/var/lib/mysql/of-"+side, side)
		put(top+"/var/lib/dpkg/of-"+side, side)
	}
	var got []string
	for _, side := range []string{A, B} {
		for _, pat := range []string{"/home/*", "/var/lib/*/*"} {
			list, err := filepath.Glob(filepath.Join(dir, side) + pat)
			ok(t, err)
			for _, path := range list {
				got = append(got, strings.TrimPrefix(path, dir+"/"))
			}
		}
	}
	want := "a/home/of-a a/home/of-b a/var/lib/dpkg/of-a a/var/lib/dpkg/status a/var/lib/mysql/of-a a/var/lib/mysql/of-b " +
		"b/home/of-a b/home/of-b b/var/lib/dpkg/of-b b/var/lib/dpkg/status b/var/lib/mysql/of-a b/var/lib/mysql/of-b"
	if strings.Join(got, " ") != want {
		t.Errorf("there is\n%q, want\n%q", strings.Join(got, " "), want)
	}
	if b, _ := os.ReadFile(dir + "/b/var/lib/dpkg/status"); string(b) != B {
		t.Errorf("b's own file is %q", b)
	}
	if st, err := os.Stat(shared + "/trees/home"); err != nil || st.Mode().Perm() != 0o750 {
		t.Errorf("a new tree is not like the side's: %v %v", st, err)
	}
}
