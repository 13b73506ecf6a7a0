package netboot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"ingot/internal/digest"
)

// kernel is a kernel and its modules in a tree.
type kernel struct {
	tree    Tree
	version string
	image   string // path of vmlinuz
	modules string // path of lib/modules/VERSION
	lib     string // lib or usr/lib
}

// findKernel finds the kernel of the version, or the newest that has modules when version is empty.
func findKernel(t Tree, version string) (*kernel, error) {
	lib := libDir(t)
	best := ""
	err := t.Walk("boot", func(name string, typ fs.FileMode) error {
		v, ok := strings.CutPrefix(name, "boot/vmlinuz-")
		if !ok || !typ.IsRegular() || strings.Contains(v, "/") || version != "" && v != version {
			return nil
		}
		if hasModules(t, path.Join(lib, "modules", v)) && (best == "" || versionLess(best, v)) {
			best = v
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("find kernel: %w", err)
	}
	if best == "" {
		return nil, fmt.Errorf("find kernel %q: %w", path.Join("boot/vmlinuz-"+orStar(version)), ErrNoKernel)
	}
	return &kernel{tree: t, version: best, lib: lib, image: "boot/vmlinuz-" + best, modules: path.Join(lib, "modules", best)}, nil
}

func orStar(s string) string {
	if s == "" {
		return "*"
	}
	return s
}

var errFound = errors.New("found")

// hasModules reports whether dir holds anything.
func hasModules(t Tree, dir string) bool {
	err := t.Walk(dir, func(string, fs.FileMode) error { return errFound })
	return errors.Is(err, errFound)
}

// versionLess compares kernel versions: digits by value, the rest by bytes.
func versionLess(a, b string) bool {
	for a != "" && b != "" {
		da, db := digits(a), digits(b)
		if da != "" && db != "" {
			a, b = a[len(da):], b[len(db):]
			da, db = strings.TrimLeft(da, "0"), strings.TrimLeft(db, "0")
			if len(da) != len(db) {
				return len(da) < len(db)
			}
			if da != db {
				return da < db
			}
			continue
		}
		if a[0] != b[0] {
			return a[0] < b[0]
		}
		a, b = a[1:], b[1:]
	}
	return a == "" && b != ""
}

func digits(s string) string { return s[:len(s)-len(strings.TrimLeft(s, "0123456789"))] }

// unpackDeb unpacks a kernel's Debian package below cache, once, and returns the tree. dpkg-deb does it:
// decompressing 400 MB of xz in Go takes a minute.
func unpackDeb(ctx context.Context, deb, cache string) (Tree, error) {
	id, err := fileDigest(deb)
	if err != nil {
		return nil, fmt.Errorf("unpack kernel package: %w", err)
	}
	dir := filepath.Join(cache, "deb-"+id.Short())
	if _, err := os.Stat(dir); err == nil {
		return Dir(dir), nil
	}
	dpkg, err := exec.LookPath("dpkg-deb")
	if err != nil {
		return nil, fmt.Errorf("unpack kernel package %q: dpkg-deb not found: install the package %q", deb, "dpkg")
	}
	tmp, err := os.MkdirTemp(cache, ".deb-")
	if err != nil {
		return nil, fmt.Errorf("unpack kernel package: %w", err)
	}
	defer os.RemoveAll(tmp)
	if out, err := exec.CommandContext(ctx, dpkg, "-x", deb, tmp).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("unpack kernel package %q: %w: %s", deb, err, strings.TrimSpace(string(out)))
	}
	if err := os.Rename(tmp, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("unpack kernel package %q: %w", deb, err)
	}
	return Dir(dir), nil
}

// fileDigest returns the digest of a file's content.
func fileDigest(name string) (digest.ID, error) {
	f, err := os.Open(name)
	if err != nil {
		return digest.ID{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return digest.ID{}, err
	}
	return digest.Of(b), nil
}
