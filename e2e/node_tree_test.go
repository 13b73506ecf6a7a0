package e2e

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/pattern"
)

// programs are what a node has of this machine; with the libraries they need.
func programs() []string {
	return []string{"/usr/sbin/sshd", "/usr/lib/openssh/sftp-server", "/bin/bash", "/bin/dash", "/bin/busybox",
		"/usr/bin/sha256sum", "/usr/bin/touch", "/usr/bin/stat", "/usr/bin/mkdir", "/usr/bin/mktemp", "/usr/bin/cat", "/usr/bin/rm", "/usr/bin/mv", "/usr/bin/chmod", "/usr/bin/sync", "/usr/bin/find", "/usr/bin/sleep", "/usr/bin/true", "/usr/bin/uname", "/usr/bin/diff", "/usr/bin/diff3"}
}

// plantTree makes the tree of a small machine that has a real sshd and a
// bit of everything a file system can hold.
func plantTree(t *testing.T, root string) {
	t.Helper()
	for _, d := range []string{"usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc/ssh", "root/.ssh", "proc", "sys", "dev", "run", "tmp", "var/log", "var/lib/dpkg", "var/lib/app", "var/cache", "home/joe", "srv", "opt"} {
		ok(t, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	for link, to := range map[string]string{"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64", "var/run": "/run"} {
		ok(t, os.Symlink(to, filepath.Join(root, link)))
	}
	copied := map[string]bool{}
	lib := regexp.MustCompile(`(/\S+) \(0x`)
	for _, p := range programs() {
		files := []string{p}
		out, _ := exec.Command("ldd", p).Output() // a static program has none
		for _, m := range lib.FindAllStringSubmatch(string(out), -1) {
			files = append(files, m[1])
		}
		for _, f := range files {
			if !copied[f] {
				copied[f] = true
				ok(t, os.MkdirAll(filepath.Join(root, filepath.Dir(f)), 0o755))
				run(t, "cp", "-pL", f, filepath.Join(root, f))
			}
		}
	}
	ok(t, os.Symlink("dash", filepath.Join(root, "usr/bin/sh")))
	for path, text := range map[string]string{
		"etc/passwd":           "root:x:0:0:root:/root:/bin/bash\nsshd:x:100:65534::/run/sshd:/bin/false\njoe:x:1000:1000::/home/joe:/bin/bash\n",
		"etc/group":            "root:x:0:\nnogroup:x:65534:\njoe:x:1000:\n",
		"etc/hostname":         "old-name\n",
		"etc/machine-id":       "0123456789abcdef0123456789abcdef\n",
		"etc/motd":             "found\n",
		"etc/app.conf":         "level = 1\n",
		"etc/nsswitch.conf":    "passwd: files\ngroup: files\n",
		"etc/ssh/sshd_config":  "UsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nHostKey /etc/ssh/ssh_host_ed25519_key\nPidFile /run/sshd.pid\nMaxStartups 100\nSubsystem sftp /usr/lib/openssh/sftp-server\n",
		"var/lib/app/data":     "the node's own\n",
		"var/lib/dpkg/status":  "Package: old\n",
		"home/joe/letter":      "dear ann\n",
		"var/log/syslog":       "boring\n",
		"opt/becomes-a-dir":    "still a file\n",
		"srv/dir-to-file/a/b":  "deep\n",
		"srv/extra/one":        "1\n",
		"srv/extra/two":        "2\n",
		"opt/odd \n\xffname":   "odd\n",
		"opt/linked/first":     "hard\n",
		"opt/acl":              "acl\n",
		"opt/capable":          "cap\n",
		"opt/user-xattr":       "xattr\n",
		"opt/setuid":           "setuid\n",
		"root/.ssh/known":      "mine\n",
		"opt/empty":            "",
		"opt/owned-by-joe":     "joe\n",
		"opt/read-only":        "0400\n",
		"opt/same/in-both":     "same\n",
		"opt/deep/a/b/c/d/e/f": "deep\n",
	} {
		put(t, root, path, text)
	}
	ok(t, os.Chmod(filepath.Join(root, "root/.ssh"), 0o700))
	ok(t, os.Chmod(filepath.Join(root, "root"), 0o700))
	ok(t, os.Chmod(filepath.Join(root, "tmp"), 0o1777))
	ok(t, os.Chown(filepath.Join(root, "home/joe/letter"), 1000, 1000))
	ok(t, os.Chown(filepath.Join(root, "opt/owned-by-joe"), 1000, 1000))
	ok(t, os.Chmod(filepath.Join(root, "opt/setuid"), 0o755|os.ModeSetuid))
	ok(t, os.Chmod(filepath.Join(root, "opt/read-only"), 0o400))
	ok(t, os.Link(filepath.Join(root, "opt/linked/first"), filepath.Join(root, "opt/linked/second")))
	ok(t, os.Link(filepath.Join(root, "opt/linked/first"), filepath.Join(root, "srv/third")))
	ok(t, unix.Mkfifo(filepath.Join(root, "opt/fifo"), 0o640))
	ok(t, unix.Mknod(filepath.Join(root, "opt/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	run(t, "setfacl", "-m", "u:1000:rwx", filepath.Join(root, "opt/acl"))
	run(t, "setcap", "cap_net_raw+ep", filepath.Join(root, "opt/capable"))
	run(t, "setfattr", "-n", "user.color", "-v", "blue", filepath.Join(root, "opt/user-xattr"))
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 200 {
		put(t, root, fmt.Sprintf("usr/share/doc/p%02d/f%d", i/10, i), noise(r, 200+r.IntN(3000)))
	}
	put(t, root, "usr/share/large", noise(r, 3<<20))
	f, err := os.Create(filepath.Join(root, "opt/sparse"))
	ok(t, err)
	_, err = f.WriteAt([]byte("end"), 8<<20)
	ok(t, err)
	ok(t, f.Close())
	age(t, root)
}

func put(t *testing.T, root, path, text string) {
	t.Helper()
	path = filepath.Join(root, path)
	ok(t, os.MkdirAll(filepath.Dir(path), 0o755))
	ok(t, os.WriteFile(path, []byte(text), 0o644))
}

func noise(r *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// age gives everything a time of its own, to the nanosecond.
func age(t *testing.T, root string) {
	t.Helper()
	start, i := time.Date(2024, 1, 2, 3, 4, 5, 123456789, time.UTC), 0
	var paths []string
	ok(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error { paths = append(paths, path); return err }))
	for j := len(paths) - 1; j >= 0; j-- {
		i++
		ts := unix.NsecToTimespec(start.Add(time.Duration(i) * 1234567891).UnixNano())
		ok(t, unix.UtimesNanoAt(unix.AT_FDCWD, paths[j], []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// release changes a tree as a new version of an image would: v tells which.
func release(t *testing.T, root string, v int) {
	t.Helper()
	r := rand.New(rand.NewPCG(2, uint64(v)))
	in := func(p string) string { return filepath.Join(root, p) }
	put(t, root, "etc/motd", fmt.Sprintf("release %d\n", v))
	put(t, root, "etc/app.conf", fmt.Sprintf("level = %d\n", v*10))
	put(t, root, "var/lib/dpkg/status", fmt.Sprintf("Package: new-%d\n", v))
	put(t, root, "var/lib/app/data", "the image's: must not arrive\n")
	put(t, root, "home/joe/letter", "the image's: must not arrive\n")
	put(t, root, fmt.Sprintf("usr/lib/app/lib%d.so", v), noise(r, 700<<10))
	for i := range 40 {
		put(t, root, fmt.Sprintf("usr/share/doc/p%02d/f%d", i/2, i*5), noise(r, 100+r.IntN(2000)))
	}
	if v%2 == 1 {
		ok(t, os.RemoveAll(in("opt/becomes-a-dir")))
		put(t, root, "opt/becomes-a-dir/inside", "now a directory\n")
		ok(t, os.RemoveAll(in("srv/dir-to-file")))
		put(t, root, "srv/dir-to-file", "now a file\n")
		ok(t, os.RemoveAll(in("srv/extra")))
		ok(t, os.Remove(in("opt/linked/second")))
		put(t, root, "opt/linked/second", "alone\n")
		ok(t, os.Chmod(in("opt/setuid"), 0o711))
		run(t, "setcap", "-r", in("opt/capable"))
		run(t, "setfattr", "-n", "user.color", "-v", "red", in("opt/user-xattr"))
		ok(t, os.Chown(in("opt/owned-by-joe"), 0, 1000))
		ok(t, os.Symlink("acl", in("opt/new-link")))
	}
	age(t, root)
}

// copyTree copies everything that can be copied.
func copyTree(t *testing.T, from, to string) string {
	t.Helper()
	ok(t, os.MkdirAll(to, 0o755))
	run(t, "rsync", "-aHAXS", "-@-1", "--numeric-ids", "--one-file-system", from+"/", to+"/")
	return to
}

// volatile are what neither a push nor a judge looks at, for rsync; rsync
// compares the directory itself when only what is in it is left out.
func volatile() []string {
	out := []string{"--exclude=/.ingot", "--exclude=/run", "--exclude=/dev", "--exclude=/proc", "--exclude=/sys"}
	for _, p := range pattern.Volatile().Strings() {
		out = append(out, "--exclude="+strings.Replace(p, "/**", "/*", 1))
	}
	return out
}

// differences asks rsync, in both directions, what differs between two trees.
func differences(t *testing.T, a, b string, extra ...string) string {
	t.Helper()
	var out string
	for _, p := range [][2]string{{a, b}, {b, a}} {
		args := append([]string{"-aHAXn", "-@-1", "--numeric-ids", "--checksum", "--delete", "--itemize-changes", "--one-file-system"}, append(extra, volatile()...)...)
		out += run(t, "rsync", append(args, p[0]+"/", p[1]+"/")...)
	}
	return out
}

func same(t *testing.T, what, a, b string, extra ...string) {
	t.Helper()
	if d := differences(t, a, b, extra...); d != "" {
		t.Errorf("%s: the trees differ:\n%s", what, d)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	ok(t, err)
	return string(b)
}
