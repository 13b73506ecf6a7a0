package units

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ingot/internal/pattern"
	"ingot/internal/systemd/systemdtest"
)

const holdFiles = "INGOT_TEST_HOLD"

// TestMain is also a daemon that maps files and lives until its input ends.
func TestMain(m *testing.M) {
	files, ok := os.LookupEnv(holdFiles)
	if !ok {
		os.Exit(m.Run())
	}
	for file := range strings.FieldsSeq(files) {
		f, err := os.Open(file)
		if err == nil {
			_, err = unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
			f.Close()
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("INGOT_NO_SKIP") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tree is one with a daemon, a library, and what a switch has made.
type tree struct {
	t   *testing.T
	top string
}

func newTree(t *testing.T) *tree {
	tr := &tree{t, t.TempDir()}
	for _, d := range []string{"usr/bin", "usr/lib", "tmp", ".ingot/generations/3/undo", "proc"} {
		must(t, os.MkdirAll(filepath.Join(tr.top, d), 0o755))
	}
	self, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	tr.write("usr/bin/daemon", self)
	tr.write("usr/lib/libx.so", make([]byte, 4096))
	return tr
}

// write makes a program that nobody else has open for writing: see systemdtest.
func (tr *tree) write(name string, b []byte) {
	tr.t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	must(tr.t, os.WriteFile(filepath.Join(tr.top, name), b, 0o755))
}

// start starts the daemon, which maps files of the tree, and waits until it has.
func (tr *tree) start(attr *syscall.SysProcAttr, files ...string) (pid int) {
	tr.t.Helper()
	path, base := filepath.Join(tr.top, "usr/bin/daemon"), tr.top
	if attr != nil && attr.Chroot != "" {
		path, base = "/usr/bin/daemon", "/"
	}
	for i := range files {
		files[i] = filepath.Join(base, files[i])
	}
	cmd := &exec.Cmd{Path: path, Args: []string{"daemon"}, Env: []string{holdFiles + "=" + strings.Join(files, " ")}, SysProcAttr: attr}
	in, err := cmd.StdinPipe()
	must(tr.t, err)
	out, err := cmd.StdoutPipe()
	must(tr.t, err)
	if err := cmd.Start(); err != nil {
		if attr != nil {
			skip(tr.t, "needs namespaces: "+err.Error())
		}
		tr.t.Fatal(err)
	}
	tr.t.Cleanup(func() { in.Close(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		tr.t.Fatalf("the daemon says %q, %v", line, err)
	}
	return cmd.Process.Pid
}

// change is that of a path as it is now.
func (tr *tree) change(path, kind string) Change {
	tr.t.Helper()
	at, err := statInode(filepath.Join(tr.top, path))
	must(tr.t, err)
	return Change{Path: path, Kind: kind, Dev: at.dev, Ino: at.ino}
}

// displace does what a switch does to a file that is replaced.
func (tr *tree) displace(path, slot string) {
	tr.t.Helper()
	to := filepath.Join(tr.top, ".ingot/generations/3/undo", slot)
	tr.write(".ingot/generations/3/undo/"+slot, []byte("new"))
	must(tr.t, unix.Renameat2(unix.AT_FDCWD, to, unix.AT_FDCWD, filepath.Join(tr.top, path), unix.RENAME_EXCHANGE))
}

// find looks at the node and returns what it knows of a process.
func (tr *tree) find(pid int, changes ...Change) (Process, Report) {
	tr.t.Helper()
	s := Survey{Top: tr.top, Manager: systemdtest.New(tr.t).Manager(), Ignore: pattern.Volatile()}
	f, err := s.facts(tr.t.Context(), newChanged(changes))
	must(tr.t, err)
	i := slices.IndexFunc(f.processes, func(p Process) bool { return p.PID == pid })
	if i < 0 {
		return Process{}, Report{Elsewhere: f.elsewhere, Kernel: f.kernel}
	}
	return f.processes[i], Report{}
}

func TestARunningProgramIsFound(t *testing.T) {
	tr := newTree(t)
	pid := tr.start(nil, "usr/lib/libx.so")
	if p, _ := tr.find(pid); p.stale() {
		t.Fatalf("nothing has changed: %+v", p)
	}
	changes := []Change{tr.change("usr/bin/daemon", Replaced), tr.change("usr/lib/libx.so", Replaced)}
	want := Process{PID: pid, Name: "daemon", Runs: "/usr/bin/daemon", Maps: []string{"/usr/lib/libx.so"}}
	same := func(when string, p Process) {
		t.Helper()
		p.Unit = "" // where the test itself runs
		if p.String() != want.String() || !slices.Equal(p.Maps, want.Maps) || p.Runs != want.Runs {
			t.Errorf("%s: %+v", when, p)
		}
	}
	p, _ := tr.find(pid, changes...)
	same("before the switch", p)
	tr.displace("usr/bin/daemon", "0")
	tr.displace("usr/lib/libx.so", "1")
	p, _ = tr.find(pid, changes...)
	same("after it", p)
	if fresh := tr.top + "/.ingot/generations/3/undo/0"; true {
		p, _ = tr.find(pid)
		if p.Runs != fresh || len(p.Maps) != 1 {
			t.Errorf("by another switch: %+v", p)
		}
	}
	must(t, os.RemoveAll(filepath.Join(tr.top, ".ingot/generations/3")))
	if p, _ = tr.find(pid); p.Runs != tr.top+"/.ingot/generations/3/undo/0" {
		t.Errorf("when the generation is retired: %+v", p)
	}
}

func TestADeletedLibraryIsFound(t *testing.T) {
	tr := newTree(t)
	tr.write("tmp/scratch", make([]byte, 4096))
	pid := tr.start(nil, "usr/lib/libx.so", "tmp/scratch")
	must(t, os.Remove(filepath.Join(tr.top, "usr/lib/libx.so")))
	must(t, os.Remove(filepath.Join(tr.top, "tmp/scratch")))
	p, _ := tr.find(pid)
	if p.Runs != "" || !slices.Equal(p.Maps, []string{tr.top + "/usr/lib/libx.so"}) {
		t.Errorf("%+v", p)
	}
	other := newTree(t)
	if p, _ := other.find(pid); p.stale() {
		t.Errorf("it is of another tree: %+v", p)
	}
}

// A service with PrivateTmp= and the like has a mount namespace; a container has another root, or another PID namespace.
func TestNamespaces(t *testing.T) {
	if os.Geteuid() != 0 {
		skip(t, "needs root: namespaces")
	}
	for name, tt := range map[string]struct {
		attr  func(*tree) *syscall.SysProcAttr
		found bool
	}{
		"a sandbox of systemd": {func(*tree) *syscall.SysProcAttr { return &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS} }, true},
		"a chroot":             {func(tr *tree) *syscall.SysProcAttr { return &syscall.SysProcAttr{Chroot: tr.top} }, true},
		"a container": {func(tr *tree) *syscall.SysProcAttr {
			return &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Chroot: tr.top}
		}, false},
		"a container by its processes": {func(*tree) *syscall.SysProcAttr { return &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTree(t)
			pid := tr.start(tt.attr(tr))
			change := tr.change("usr/bin/daemon", Replaced)
			tr.displace("usr/bin/daemon", "0")
			p, r := tr.find(pid, change)
			if tt.found && p.Runs != "/usr/bin/daemon" || !tt.found && (p.stale() || r.Elsewhere == 0) {
				t.Errorf("%+v, %d elsewhere", p, r.Elsewhere)
			}
		})
	}
}

// What /proc holds may be gone or unreadable at any time.
func TestAProcOfLies(t *testing.T) {
	proc := t.TempDir()
	put := func(name, text string) {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(proc, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(proc, name), []byte(text), 0o644))
	}
	put("2/stat", "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0")
	put("10/stat", "10 (gone) S 1")
	put("11/maps", strings.Repeat("x", 1<<20)+" /\n")
	put("12/maps", "1-2 r-xp 0 0:1 7 /usr/lib/l.so (deleted)\n1-2 r-xp 0 0:1 7 /usr/lib/l.so (deleted)\n")
	put("12/comm", "ser\x07ver\n")
	put("12/cgroup", "0::/system.slice/a.service\n")
	put("x/maps", "1-2 r-xp 0 0:1 7 /usr/lib/l.so (deleted)\n")
	f := systemdtest.New(t)
	f.Unit("a.service")
	s := Survey{Proc: proc, Manager: f.Manager()}
	r, err := s.Look(t.Context(), nil)
	must(t, err)
	if len(r.Units) != 1 || r.Units[0].String() != "a.service: process 12 (ser?ver) uses the old /usr/lib/l.so" || r.Kernel != 1 || len(r.Loose) != 0 {
		t.Errorf("%+v", r)
	}
	s.Proc = filepath.Join(proc, "none")
	if r, err := s.Look(t.Context(), nil); err != nil || len(r.Notes) != 1 || !strings.HasPrefix(r.Notes[0], "processes: ") {
		t.Errorf("without /proc: %+v %v", r, err)
	}
}
