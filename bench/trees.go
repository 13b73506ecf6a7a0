package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const debianRelease = "bookworm"

// packagesA are those of the golden machine; packagesB are installed in B, when
// the updates have been.
func packagesA() []string {
	return []string{"linux-image-amd64", "linux-headers-amd64", "gcc", "python3", "openssh-server", "rsync", "curl", "git", "ca-certificates", "busybox-static"}
}

func packagesB() []string { return []string{"nginx-light", "tmux"} }

// scriptB makes B of a copy of A. `apt-get upgrade` installs no new packages, so
// the kernel stays.
const scriptB = `set -eu
cd "$ROOT"
mount -t proc proc proc
mount -t tmpfs -o mode=755 dev dev
mknod -m 666 dev/null c 1 3; mknod -m 666 dev/zero c 1 5; mknod -m 666 dev/urandom c 1 9; mknod -m 666 dev/random c 1 8
ln -s /proc/self/fd dev/fd
cp /etc/resolv.conf etc/resolv.conf
printf '#!/bin/sh\nexit 101\n' >usr/sbin/policy-rc.d; chmod 755 usr/sbin/policy-rc.d
cp etc/apt/sources.list "$KEEP"
printf '%s' "$SOURCES" >etc/apt/sources.list
printf '%s' "$APTCONF" >etc/apt/apt.conf.d/00bench
export DEBIAN_FRONTEND=noninteractive
chroot . apt-get -q update
chroot . apt-get -q -y -o Dpkg::Options::=--force-confnew upgrade
chroot . apt-get -q -y install --no-install-recommends $PACKAGES
chroot . apt-get clean
rm -rf var/lib/apt/lists/* etc/apt/apt.conf.d/00bench usr/sbin/policy-rc.d etc/resolv.conf
cp "$KEEP" etc/apt/sources.list
umount dev proc
`

// repository is one that apt knows, as `apt-get indextargets` prints it.
type repository struct{ uri, release, components string }

func (r repository) line() string { return "deb " + r.uri + " " + r.release + " " + r.components }

// repositories reads `apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)'`
// and returns the release's own repository and the pockets beside it. Debian's
// own mirror stands in where apt knows none.
func repositories(out, release string) (main repository, pockets []repository) {
	main = repository{"http://deb.debian.org/debian", release, "main"}
	known := false
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "main" {
			continue
		}
		r := repository{strings.TrimSuffix(f[0], "/"), f[1], f[2]}
		switch {
		case r.release == release && !known:
			main, known = r, true
		case (r.release == release+"-updates" || r.release == release+"-security") && !slices.Contains(pockets, r):
			pockets = append(pockets, r)
		}
	}
	return main, pockets
}

// aptSettings picks from `apt-config dump` what says how to reach a mirror.
func aptSettings(dump string) string {
	var b strings.Builder
	for line := range strings.Lines(dump) {
		name, _, _ := strings.Cut(line, " ")
		low := strings.ToLower(name)
		if strings.HasPrefix(low, "acquire::") && (strings.Contains(low, "proxy") || strings.Contains(low, "check-")) && !strings.Contains(line, `""`) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// trees are the directories that all tools work on.
type trees struct{ a, b string }

// buildTrees makes trees A and B, or finds them: they are kept under a key of
// their recipe.
func buildTrees(ctx context.Context, cache string) (trees, error) {
	targets, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages").Output()
	if err != nil {
		return trees{}, fmt.Errorf("ask apt for its mirrors: %w", err)
	}
	dump, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return trees{}, fmt.Errorf("ask apt for its settings: %w", err)
	}
	mirror, pockets := repositories(string(targets), debianRelease)
	settings := aptSettings(string(dump))
	key := recipeKey(mirror, pockets)
	t := trees{filepath.Join(cache, "trees-"+key, "A"), filepath.Join(cache, "trees-"+key, "B")}
	if err := os.MkdirAll(filepath.Dir(t.a), 0o755); err != nil {
		return t, err
	}
	if err := once(t.a, func(dir string) error { return buildA(ctx, dir, mirror, settings) }); err != nil {
		return t, fmt.Errorf("build tree A: %w", err)
	}
	if err := once(t.b, func(dir string) error {
		return buildB(ctx, t.a, dir, append([]repository{mirror}, pockets...), settings)
	}); err != nil {
		return t, fmt.Errorf("build tree B: %w", err)
	}
	return t, nil
}

// recipeKey names trees by what they are made of.
func recipeKey(mirror repository, pockets []repository) string {
	h := sha256.New()
	fmt.Fprint(h, mirror, pockets, packagesA(), packagesB(), scriptB)
	return fmt.Sprintf("%x", h.Sum(nil)[:6])
}

// once makes a directory unless it is there; half-made ones do not count.
func once(dir string, do func(dir string) error) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	fmt.Fprintf(os.Stderr, "bench: building %s, which is kept\n", dir)
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	if err := do(part); err != nil {
		return err
	}
	return os.Rename(part, dir)
}

func buildA(ctx context.Context, dir string, mirror repository, settings string) error {
	args := []string{"--variant=important", "--include=" + strings.Join(packagesA(), ",")}
	for line := range strings.Lines(settings) {
		args = append(args, "--aptopt="+strings.TrimSpace(line))
	}
	args = append(args, `--customize-hook=rm -f "$1"/etc/hostname "$1"/etc/resolv.conf "$1"/etc/ssh/ssh_host_*`, debianRelease, dir, mirror.line())
	return tool(ctx, nil, "mmdebstrap", args...)
}

func buildB(ctx context.Context, a, dir string, sources []repository, settings string) error {
	if err := tool(ctx, nil, "cp", "-a", a, dir); err != nil {
		return err
	}
	var lines strings.Builder
	for _, r := range sources {
		lines.WriteString(r.line() + "\n")
	}
	env := []string{"ROOT=" + dir, "KEEP=" + dir + ".sources", "SOURCES=" + lines.String(), "APTCONF=" + settings, "PACKAGES=" + strings.Join(packagesB(), " ")}
	defer os.Remove(dir + ".sources")
	return tool(ctx, env, "unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", scriptB)
}

// tool runs a program that must succeed; what it said is shown when it does not.
func tool(ctx context.Context, env []string, name string, args ...string) error {
	cmd := command(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, tail(out, 2000))
	}
	return nil
}

// tail is the end of what a program said.
func tail(out []byte, n int) string {
	out = bytes.TrimSpace(out)
	return string(out[max(0, len(out)-n):])
}

// count is how large a tree is.
type count struct {
	entries, files int
	bytes          int64 // of regular files, each hard-linked file once
}

func measureTree(dir string) (count, error) {
	var c count
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		c.entries++
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("lstat %q: %w", path, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return nil
		}
		c.files++
		if !seen[st.Ino] {
			seen[st.Ino] = true
			c.bytes += st.Size
		}
		return nil
	})
	return c, err
}
