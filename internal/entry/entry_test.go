package entry

import (
	"errors"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestBeforeIsTreeOrder(t *testing.T) {
	want := []string{".", "a", "a/b", "a/b/c", "a/b-c", "a-b", "a.b", "ab", "b", "b\x00c", "é", "\xff"}
	for i := range want {
		for j := range want {
			if got := Before(want[i], want[j]); got != (i < j) {
				t.Errorf("Before(%q, %q) = %v", want[i], want[j], got)
			}
		}
	}
	shuffled := []string{"ab", "b", "a/b-c", ".", "\xff", "a-b", "a", "é", "a/b/c", "a.b", "a/b", "b\x00c"}
	sort.Slice(shuffled, func(i, j int) bool { return Before(shuffled[i], shuffled[j]) })
	if !reflect.DeepEqual(shuffled, want) {
		t.Errorf("sorted: %q", shuffled)
	}
}

// openDir opens a directory of the test with umask and inherited ACLs out of the way.
func openDir(t *testing.T, dir string) int {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("INGOT_NO_SKIP") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root: owners, devices, trusted and security xattrs")
	}
}

func TestSetThenRead(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	fd := openDir(t, dir)
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x07\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
	tests := []struct {
		name string
		make func(string) error
		e    Entry
	}{
		{"file", touch, Entry{Type: File, Mode: 06755, UID: 1234, GID: 5678, ModTime: 1_700_000_000_123_456_789,
			Xattrs: []Xattr{{"security.capability", capability}, {"user.a", ""}, {"user.b", "x\x00y"}}}},
		{"acl", touch, Entry{Type: File, Mode: 0670, ModTime: 1, Xattrs: []Xattr{{"system.posix_acl_access", acl}}}},
		{"old", touch, Entry{Type: File, Mode: 0, UID: math.MaxUint32 - 1, ModTime: -1_500_000_001}},
		{"dir", func(p string) error { return os.Mkdir(p, 0700) }, Entry{Type: Dir, Mode: 03777, GID: 7, ModTime: 0}},
		{"symlink", func(p string) error { return os.Symlink("nowhere\n\xff", p) },
			Entry{Type: Symlink, Mode: 0777, UID: 5, GID: 6, ModTime: 999_999_999, Target: "nowhere\n\xff",
				Xattrs: []Xattr{{"trusted.t", "1"}}}},
		{"fifo", func(p string) error { return unix.Mkfifo(p, 0600) }, Entry{Type: FIFO, Mode: 01666, UID: 3, ModTime: 5}},
		{"char", func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0600, int(unix.Mkdev(300, 70000))) },
			Entry{Type: CharDevice, Mode: 0620, GID: 5, Major: 300, Minor: 70000, ModTime: 4}},
		{"block", func(p string) error { return unix.Mknod(p, unix.S_IFBLK|0600, int(unix.Mkdev(8, 1))) },
			Entry{Type: BlockDevice, Mode: 0660, GID: 6, Major: 8, Minor: 1, ModTime: 3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := filepath.Join(dir, tt.name)
			if err := tt.make(p); err != nil {
				t.Fatal(err)
			}
			// What is there and not wanted has to go.
			if tt.e.Type != Symlink && tt.e.Type != FIFO {
				_ = unix.Setxattr(p, "trusted.stale", []byte("x"), 0)
			}
			if err := SetMetaAt(fd, tt.name, &tt.e); err != nil {
				t.Fatal(err)
			}
			got, st, err := ReadAt(fd, tt.name)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.e) {
				t.Errorf("read\n%+v, set\n%+v", got, tt.e)
			}
			if st.Ino == 0 || st.CTime == 0 || st.MTime != tt.e.ModTime {
				t.Errorf("stat %+v", st)
			}
			if tt.e.Type == File {
				setByFd(t, fd, tt.name, tt.e)
			}
		})
	}
}

// setByFd sets other metadata first, so that setting by descriptor has work to do.
func setByFd(t *testing.T, dirfd int, name string, e Entry) {
	t.Helper()
	other := Entry{Type: File, Mode: 0600, ModTime: 77, Xattrs: []Xattr{{"trusted.x", "y"}}}
	if err := SetMetaAt(dirfd, name, &other); err != nil {
		t.Fatal(err)
	}
	f, err := OpenBeneath(dirfd, name, unix.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(f)
	if err := SetMetaFd(f, &e); err != nil {
		t.Fatal(err)
	}
	if got, _, err := ReadAt(dirfd, name); err != nil || !reflect.DeepEqual(got, e) {
		t.Errorf("by descriptor: %v\n%+v, set\n%+v", err, got, e)
	}
	modes := []uint32{e.Mode}
	if len(e.Xattrs) == 0 { // an ACL has its say in the mode
		modes = append(modes, 0600)
	}
	for _, mode := range modes {
		if err := unix.Unlinkat(dirfd, "fresh", 0); err != nil && !errors.Is(err, unix.ENOENT) {
			t.Fatal(err)
		}
		g, err := OpenBeneath(dirfd, "fresh", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0600)
		if err != nil {
			t.Fatal(err)
		}
		have := Entry{Mode: 0600, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
		want := e
		want.Mode = mode
		if err := SetFreshFd(g, &have, &want); err != nil {
			t.Fatal(err)
		}
		if got, _, err := ReadFd(g); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("fresh: %v\n%+v, set\n%+v", err, got, want)
		}
		unix.Close(g)
	}
}

func touch(p string) error { return os.WriteFile(p, nil, 0600) }

func TestSetMetaDoesNotFollowLinks(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, nil, 0600); err != nil {
		t.Fatal(err)
	}
	before, _, err := ReadAt(unix.AT_FDCWD, victim)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("victim", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	fd := openDir(t, dir)
	// The lie about the type is what a racing attacker would cause.
	lie := Entry{Type: File, Mode: 04777, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), ModTime: 1}
	_ = SetMetaAt(fd, "link", &lie)
	after, _, err := ReadAt(unix.AT_FDCWD, victim)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(before, after) {
		t.Errorf("the link was followed: %+v became %+v", before, after)
	}
}

func TestSetuidNeedsItsOwner(t *testing.T) {
	var mode uint32
	err := apply(&Entry{Type: File, Mode: 06755, UID: 0}, setter{
		chown: func(int, int) error { return unix.EPERM },
		list:  func([]byte) (int, error) { return 0, nil },
		chmod: func(m uint32) error { mode = m; return nil },
		times: func(*[2]unix.Timespec) error { return unix.EROFS },
	})
	if mode != 0755 {
		t.Errorf("mode %#o for a file of somebody else", mode)
	}
	var me *MetaError
	if !errors.As(err, &me) || me.What != "owner" || !errors.Is(err, unix.EROFS) {
		t.Errorf("error %v does not hold both", err)
	}
}

func TestReadAtErrors(t *testing.T) {
	dir := t.TempDir()
	fd := openDir(t, dir)
	if _, _, err := ReadAt(fd, "gone"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, _, err := ReadAt(fd, "s"); !errors.Is(err, ErrSocket) {
		t.Errorf("socket: %v", err)
	}
}

func TestLongSymlinkAndBigXattr(t *testing.T) {
	dir := t.TempDir()
	fd := openDir(t, dir)
	target := strings.Repeat("x/", 2000) + "y"
	if err := os.Symlink(target, filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	if e, _, err := ReadAt(fd, "l"); err != nil || e.Target != target {
		t.Errorf("long target: %v, %d bytes", err, len(e.Target))
	}
	p := filepath.Join(dir, "f")
	if err := touch(p); err != nil {
		t.Fatal(err)
	}
	v := strings.Repeat("v", 1500)
	if err := unix.Setxattr(p, "user.big", []byte(v), 0); err != nil {
		t.Skipf("file system of %s has no user xattrs: %v", dir, err)
	}
	if e, _, err := ReadAt(fd, "f"); err != nil || len(e.Xattrs) != 1 || e.Xattrs[0].Value != v {
		t.Errorf("big xattr: %v", err)
	}
}

func TestHolesOf(t *testing.T) {
	const blk = 1 << 20 // larger than any file system's block
	tests := []struct {
		name string
		data []Extent
		size int64
		want []Extent
	}{
		{"empty", nil, 0, nil},
		{"full", []Extent{{0, blk}}, blk, nil},
		{"all hole", nil, 3 * blk, []Extent{{0, 3 * blk}}},
		{"hole first", []Extent{{blk, blk}}, 2 * blk, []Extent{{0, blk}}},
		{"hole last", []Extent{{0, blk}}, 5 * blk, []Extent{{blk, 4 * blk}}},
		{"between", []Extent{{0, blk}, {4 * blk, blk}}, 5 * blk, []Extent{{blk, 3 * blk}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "f"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for _, d := range tt.data {
				if _, err := f.WriteAt(make([]byte, d.Len), d.Off); err != nil {
					t.Fatal(err)
				}
			}
			if err := f.Truncate(tt.size); err != nil {
				t.Fatal(err)
			}
			got, err := HolesOf(f, tt.size)
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("holes %v, %v; want %v", got, err, tt.want)
			}
			e := Entry{Size: tt.size, Holes: got}
			if d := e.Data(); !reflect.DeepEqual(d, tt.data) {
				t.Errorf("data %v, want %v", d, tt.data)
			}
		})
	}
}

func TestOpenBeneath(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "in")
	for _, d := range []string{"in/a/b", "out"} {
		if err := os.MkdirAll(filepath.Join(top, d), 0700); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"in/a/b/f", "out/f"} {
		if err := touch(filepath.Join(top, f)); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"abs": filepath.Join(top, "out"), "up": "../out", "inside": "a/b", "last": "a/b/f"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	fd := openDir(t, dir)
	openers := map[string]func(int, string, int, uint32) (int, error){"openat2": OpenBeneath, "walking": openWalking}
	for how, open := range openers {
		for path, ok := range map[string]bool{
			"a/b/f": true, "a/b": true, ".": true, "a/./b/f": true,
			"abs/f": false, "up/f": false, "inside/f": false, "last": false, "../out/f": false,
			"a/../../out/f": false, filepath.Join(top, "out/f"): false, "a/b/gone": false, "": false,
		} {
			got, err := open(fd, path, unix.O_RDONLY, 0)
			if (err == nil) != ok {
				t.Errorf("%s %q: %v", how, path, err)
			}
			if err == nil {
				unix.Close(got)
			}
		}
		got, err := open(fd, "a/new"+how, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0640)
		if err != nil {
			t.Errorf("%s create: %v", how, err)
			continue
		}
		unix.Close(got)
	}
}

func TestOpenBeneathDeeperThanPathMax(t *testing.T) {
	fd := openDir(t, t.TempDir())
	name := strings.Repeat("n", 200)
	path, at := name, fd
	for range 50 {
		if err := unix.Mkdirat(at, name, 0700); err != nil {
			t.Fatal(err)
		}
		next, err := OpenBeneath(at, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(next) })
		at = next
		path += "/" + name
	}
	f, err := OpenBeneath(fd, path, unix.O_WRONLY|unix.O_CREAT, 0600)
	if err != nil {
		t.Fatalf("path of %d bytes: %v", len(path), err)
	}
	unix.Close(f)
	if err := unix.Faccessat(at, name, unix.F_OK, 0); err != nil {
		t.Error(err)
	}
}

func TestSame(t *testing.T) {
	base := Entry{Path: "p", Type: File, Mode: 0644, UID: 1, GID: 2, ModTime: 3, Size: 4,
		Xattrs: []Xattr{{"user.a", "b"}}, Chunks: []Chunk{{Size: 4}}}
	tests := []struct {
		name          string
		change        func(*Entry)
		meta, content bool
	}{
		{"nothing", func(*Entry) {}, true, true},
		{"path", func(e *Entry) { e.Path = "q" }, true, true},
		{"mode", func(e *Entry) { e.Mode = 0600 }, false, true},
		{"uid", func(e *Entry) { e.UID = 9 }, false, true},
		{"gid", func(e *Entry) { e.GID = 9 }, false, true},
		{"mtime", func(e *Entry) { e.ModTime++ }, false, true},
		{"xattr", func(e *Entry) { e.Xattrs = nil }, false, true},
		{"type", func(e *Entry) { e.Type = Dir }, true, false},
		{"size", func(e *Entry) { e.Size = 5 }, true, false},
		{"chunks", func(e *Entry) { e.Chunks = []Chunk{{Size: 3}, {Size: 1}} }, true, false},
		{"holes", func(e *Entry) { e.Holes = []Extent{{0, 1}} }, true, false},
		{"target", func(e *Entry) { e.Target = "x" }, true, false},
		{"major", func(e *Entry) { e.Major = 1 }, true, false},
		{"minor", func(e *Entry) { e.Minor = 1 }, true, false},
		{"link", func(e *Entry) { e.Link = "x" }, true, false},
	}
	for _, tt := range tests {
		b := base
		tt.change(&b)
		if m, c := SameMeta(&base, &b), SameContent(&base, &b); m != tt.meta || c != tt.content {
			t.Errorf("%s: meta %v content %v", tt.name, m, c)
		}
	}
}

// A label that is there and that the entry does not have goes, as any other attribute.
func TestLabelIsRemoved(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("labels need root")
	}
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(name, "security.selinux", []byte("system_u:object_r:etc_t:s0\x00"), 0); err != nil {
		t.Skip("no labels on this file system: ", err)
	}
	fd := openDir(t, dir)
	if err := SetMetaAt(fd, "f", &Entry{Path: "f", Type: File, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if e, _, err := ReadAt(fd, "f"); err != nil || len(e.Xattrs) != 0 {
		t.Errorf("%v, %v: the label is still there", e.Xattrs, err)
	}
}
