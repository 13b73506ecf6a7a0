package pxe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// LoaderDir is where Debian's package ipxe puts its programs.
const LoaderDir = "/usr/lib/ipxe"

// Loaders are the programs that firmware fetches from us, by lower-case name. The zero value has none.
type Loaders struct {
	dir   string
	names map[string]string // lower case -> file name in dir
}

// FindLoaders looks into dir; empty means LoaderDir. Every file that can be a loader is served; undionly.kpxe, snponly.efi and
// ipxe.efi must be there.
func FindLoaders(dir string) (Loaders, error) {
	if dir == "" {
		dir = LoaderDir
	}
	l := Loaders{dir: dir, names: map[string]string{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Loaders{}, fmt.Errorf("find boot loaders: %w (Debian: apt install ipxe)", err)
	}
	for _, e := range entries {
		switch strings.ToLower(filepath.Ext(e.Name())) {
		case ".efi", ".kpxe", ".kkpxe", ".pxe", ".lkrn", ".0":
			// Through a symbolic link too: sites link shim and GRUB into this folder.
			if fi, err := os.Stat(filepath.Join(dir, e.Name())); err == nil && fi.Mode().IsRegular() {
				l.names[strings.ToLower(e.Name())] = e.Name()
			}
		}
	}
	var errs []error
	for _, want := range []string{"undionly.kpxe", "snponly.efi", "ipxe.efi"} {
		if !l.Has(want) {
			errs = append(errs, fmt.Errorf("find boot loaders: %q is not in %q (Debian: apt install ipxe)", want, dir))
		}
	}
	return l, errors.Join(errs...)
}

// Has reports whether name, in any case, is there.
func (l Loaders) Has(name string) bool { return l.names[strings.ToLower(name)] != "" }

// Empty reports whether there is no loader at all.
func (l Loaders) Empty() bool { return len(l.names) == 0 }

// Open opens a loader by its name in any case. Loaders is an fs.FS of one directory, for TFTP and HTTP alike.
func (l Loaders) Open(name string) (fs.File, error) {
	file := l.names[strings.ToLower(name)]
	if file == "" {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return os.Open(filepath.Join(l.dir, file))
}

// CleanName makes the name that a firmware asks for into a path of ours: "\\boot\\\\UNDIONLY.KPXE\xff" is
// "boot/undionly.kpxe". Dell and Intel ROMs send what stood behind the name in the option when it had no NUL; some relays
// append ";traceparent"; Windows loaders use backslashes. It never leaves the root: ".." stops there.
func CleanName(name string) string {
	if i := strings.IndexAny(name, "\x00\xff;\r\n"); i >= 0 {
		name = name[:i]
	}
	name = strings.ReplaceAll(strings.TrimSpace(name), `\`, "/")
	return strings.ToLower(strings.TrimPrefix(path.Clean("/"+name), "/"))
}
