package rack

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"ingot/imager/tree"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/pattern"
	"ingot/rollback"
)

// judge says what a disk is after a power cut.
type judge struct {
	h         *history
	old, next pair              // what a boot loader finds in the two images
	manifests map[int]digest.ID // of each generation, as it was in the end
	agent     string            // the program that recovers
	mounts    []string          // on which the running node has other file systems
	dir       string            // what it mounts and copies to
}

// verdict is what one disk turned out to be.
type verdict struct {
	journal    bool   // a switch had not ended
	did        string // by the recovery
	generation int
	boot       string // what GRUB would have started: old, new, or what is wrong
}

func (v verdict) String() string {
	return fmt.Sprintf("generation %d, %s, GRUB sees the %s kernel", v.generation, v.did, v.boot)
}

// cut makes the disk after a power cut and judges it. It fails when the disk
// is not exactly one generation; the image is then kept beside the rack's logs.
func (j *judge) cut(i int, seed uint64) (verdict, error) {
	img := filepath.Join(j.dir, "cut.img")
	if err := j.h.cut(i, seed, img); err != nil {
		return verdict{}, err
	}
	v, err := j.disk(img)
	if err == nil {
		return v, nil
	}
	return v, fmt.Errorf("flush at entry %d, seed %d: %w%s", j.h.points[i].flush, seed, err, j.keep(i, seed, img))
}

// keep copies an image that failed to where it outlives the test: the first few of them.
func (j *judge) keep(i int, seed uint64, img string) string {
	const few = 3
	dir := j.h.b.rack.Dir()
	if have, _ := filepath.Glob(filepath.Join(dir, "flush-*.img")); len(have) >= few {
		return ""
	}
	kept := filepath.Join(dir, fmt.Sprintf("flush-%d-seed-%d.img", j.h.points[i].flush, seed))
	err := j.h.cut(i, seed, img)
	if err == nil {
		_, err = output("cp", "--sparse=always", img, kept)
	}
	if err != nil {
		return fmt.Sprintf(" (not kept: %v)", err)
	}
	return fmt.Sprintf(" (kept as %q)", kept)
}

// disk looks at what a boot loader sees, then lets the kernel replay the
// journal of the file system and the agent recover, and compares.
func (j *judge) disk(img string) (v verdict, err error) {
	if v.boot, err = j.bootable(j.h.view(img)); err != nil {
		return v, err
	}
	mnt := filepath.Join(j.dir, "mnt")
	if err := os.MkdirAll(mnt, 0o700); err != nil {
		return v, err
	}
	if _, err := output("mount", "-t", "ext4", "-o", j.h.loop(), img, mnt); err != nil {
		return v, err
	}
	err = j.tree(mnt, &v)
	if uerr := unmount(mnt); uerr != nil {
		return v, errors.Join(err, uerr)
	}
	if err != nil {
		return v, err
	}
	_, err = output("e2fsck", "-f", "-n", j.h.view(img))
	return v, err
}

// tree recovers and compares.
func (j *judge) tree(mnt string, v *verdict) error {
	_, err := os.Lstat(filepath.Join(mnt, ".ingot", "journal"))
	v.journal = err == nil
	out, err := output(j.agent, "recover", "--dir", mnt)
	if err != nil {
		return err
	}
	for _, did := range []rollback.Did{rollback.Nothing, rollback.PutBack, rollback.Finished} {
		if strings.Contains(out, string(did)) {
			v.did = string(did)
		}
	}
	if _, err := os.Lstat(filepath.Join(mnt, ".ingot", "journal")); v.did == "" || !strings.Contains(out, " []") || err == nil {
		return fmt.Errorf("the recovery says %q, and the journal is there still: %v", out, err == nil)
	}
	n, err := rollback.Open(mnt, nil)
	if err != nil {
		return err
	}
	defer n.Close()
	g, err := n.Current()
	if err != nil {
		return err
	}
	v.generation = g.Number
	if id, known := j.manifests[g.Number]; known && id != g.Manifest {
		return fmt.Errorf("generation %d has the manifest %s, and had %s in the end", g.Number, g.Manifest.Short(), id.Short())
	}
	m, err := n.Manifest(g.Number)
	if err != nil {
		return err
	}
	if err := drift(mnt, m, append(g.Owned, j.mounts...)); err != nil {
		return fmt.Errorf("%s, but: %w", *v, err)
	}
	return nil
}

// drift compares a tree with the manifest of its generation in everything but
// what a node has for itself, or forgets.
func drift(dir string, want *manifest.Manifest, owned []string) error {
	own, err := pattern.Parse(owned)
	if err != nil {
		return err
	}
	volatile, own := pattern.Volatile(), pattern.NodeOwned().With(own)
	leave := func(p string) bool { return volatile.Match(p) || own.Match(p) }
	covers := func(p string) bool { return volatile.Covers(p) || own.Covers(p) }
	got, _, err := tree.Capture(context.Background(), dir, tree.CaptureOptions{OneFileSystem: true,
		Exclude: func(p string, _ bool) bool { return leave(p) }, Within: func(p string) bool { return !covers(p) }})
	if err != nil {
		return err
	}
	busy, err := holders(dir, leave)
	if err != nil {
		return err
	}
	var bad []string
	for _, c := range manifest.Diff(without(want, leave), without(got, leave)) {
		if c.Kind == manifest.Meta && c.A.Type == entry.Dir && (busy[c.Path] || leave(path.Join(c.Path, "x"))) {
			then, now := *c.A, *c.B
			if then.ModTime = now.ModTime; entry.SameMeta(&then, &now) {
				continue // what the node makes there moves it
			}
		}
		bad = append(bad, fmt.Sprintf("%s %q", c.Kind, c.Path))
	}
	if len(bad) > 0 {
		return fmt.Errorf("%d differences: %s", len(bad), strings.Join(bad[:min(len(bad), 12)], ", "))
	}
	return nil
}

func without(m *manifest.Manifest, leave func(string) bool) *manifest.Manifest {
	return &manifest.Manifest{Entries: slices.DeleteFunc(slices.Clone(m.Entries), func(e entry.Entry) bool { return leave(e.Path) })}
}

// holders lists the directories in which something is left alone.
func holders(dir string, leave func(string) bool) (map[string]bool, error) {
	out := map[string]bool{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		if rel := strings.TrimPrefix(p, dir+"/"); leave(rel) {
			out[path.Dir(rel)] = true
		}
		return nil
	})
	return out, err
}

// bootable says what GRUB would start from a file system: it replays no journal,
// and neither does debugfs. It follows installer's grub.cfg.
func (j *judge) bootable(view string) (string, error) {
	fs := grubView{view}
	kernel, initrd := fs.link("/vmlinuz"), fs.link("/initrd.img")
	if kernel == "" || initrd == "" || !fs.isFile(kernel) || !fs.isFile(initrd) {
		version, err := fs.lastKernel()
		if err != nil || version == "" {
			return "no", err
		}
		kernel, initrd = "/boot/vmlinuz-"+version, "/boot/initrd.img-"+version
	}
	k, err := fs.sum(kernel)
	if err != nil {
		return "", err
	}
	i, err := fs.sum(initrd)
	if err != nil {
		return "", err
	}
	return j.which(pair{k, i}), nil
}

// which says of which image a kernel and its initramfs are.
func (j *judge) which(p pair) string {
	switch p {
	case j.old:
		return "old"
	case j.next:
		return "new"
	}
	name := map[[sha256.Size]byte]string{j.old.kernel: "old", j.old.initrd: "old", j.next.kernel: "new", j.next.initrd: "new"}
	return fmt.Sprintf("%q-with-%q", name[p.kernel], name[p.initrd])
}

// grubView is a file system that nobody has mounted.
type grubView struct{ spec string }

// ask runs one command of debugfs(8), which says what is wrong on its other stream.
func (g grubView) ask(request string) ([]byte, error) {
	out, err := exec.Command("debugfs", "-n", "-R", request, g.spec).Output()
	if err != nil {
		return nil, fmt.Errorf("debugfs %q of %q: %w", request, g.spec, err)
	}
	return out, nil
}

// link returns the target of a symbolic link at the top, "" when there is none.
func (g grubView) link(name string) string {
	out, err := g.ask("stat " + name)
	m := regexp.MustCompile(`Fast link dest: "(.*)"`).FindSubmatch(out)
	if err != nil || m == nil {
		return ""
	}
	return path.Join("/", string(m[1]))
}

func (g grubView) isFile(name string) bool {
	out, err := g.ask("stat " + name)
	return err == nil && strings.Contains(string(out), "Type: regular")
}

// lastKernel returns the version of the last kernel in /boot that GRUB's pattern finds.
func (g grubView) lastKernel() (string, error) {
	out, err := g.ask("ls -p /boot")
	var versions []string
	for _, m := range regexp.MustCompile(`(?m)^/[0-9]+/[0-7]+/[0-9]+/[0-9]+/vmlinuz-([^/]+)/`).FindAllSubmatch(out, -1) {
		versions = append(versions, string(m[1]))
	}
	if err != nil || len(versions) == 0 {
		return "", err
	}
	slices.Sort(versions)
	return versions[len(versions)-1], nil
}

func (g grubView) sum(name string) (out [sha256.Size]byte, err error) {
	text, err := g.ask("cat " + name)
	return sha256.Sum256(text), err
}
