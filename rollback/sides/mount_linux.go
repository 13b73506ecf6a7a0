package sides

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// MountTrees makes the shared trees appear in the side whose top is top, where
// the shared file system is mounted at SharedDir: by bind mounts, through which
// what each side has for itself shows again. It returns the mount points, in
// order, also with an error.
func (c *Config) MountTrees(top string) (made []string, err error) {
	for _, tree := range c.Trees {
		keep := map[string]int{}
		for _, own := range c.Own {
			if strings.HasPrefix(own, tree+"/") {
				if keep[own], err = hold(filepath.Join(top, own)); err != nil {
					return made, fmt.Errorf("share %q: %w", "/"+tree, errors.Join(err, release(keep)))
				}
			}
		}
		at, err := c.bind(top, tree)
		if err == nil {
			made = append(made, at)
			var more []string
			more, err = show(top, keep)
			made = append(made, more...)
		}
		if err = errors.Join(err, release(keep)); err != nil {
			return made, fmt.Errorf("share %q: %w", "/"+tree, err)
		}
	}
	return made, nil
}

// hiddenName is what findmnt(8) says that a hidden tree is of.
const hiddenName = "shared-file-system-is-missing"

// Hide makes the shared trees of the side whose top is top empty and read-only:
// for a machine whose shared file system cannot be mounted, and whose services
// are not to begin anew with what they find instead.
func (c *Config) Hide(top string) error {
	var errs []error
	for _, tree := range c.Trees {
		if err := unix.Mount(hiddenName, filepath.Join(top, tree), "tmpfs", unix.MS_RDONLY, "size=4k,mode=755"); err != nil {
			errs = append(errs, fmt.Errorf("hide %q: %w", "/"+tree, err))
		}
	}
	return errors.Join(errs...)
}

// hold keeps hold of a directory, which it makes where it is missing, as a
// mount of its own that is nowhere yet (open_tree(2)).
func hold(dir string) (int, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return -1, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open_tree %q: %w", dir, err)
	}
	return fd, nil
}

func release(held map[string]int) error {
	var errs []error
	for path, fd := range held {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
		delete(held, path)
	}
	return errors.Join(errs...)
}

// show mounts what is held where it was (move_mount(2)).
func show(top string, held map[string]int) (made []string, err error) {
	var paths []string
	for path := range held {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	for _, path := range paths {
		dir := filepath.Join(top, path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return made, err
		}
		if err := unix.MoveMount(held[path], "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return made, fmt.Errorf("move_mount %q: %w", dir, err)
		}
		made = append(made, dir)
	}
	return made, nil
}

// bind mounts one shared tree. One that is new is like the side's directory.
func (c *Config) bind(top, tree string) (string, error) {
	at, from := filepath.Join(top, tree), filepath.Join(top, SharedDir, treesDir, tree)
	if err := os.MkdirAll(at, 0o755); err != nil {
		return at, err
	}
	if _, err := os.Lstat(from); errors.Is(err, os.ErrNotExist) {
		var st unix.Stat_t
		if err := unix.Stat(at, &st); err != nil {
			return at, err
		}
		err := os.MkdirAll(from, 0o755)
		if err == nil {
			err = os.Chown(from, int(st.Uid), int(st.Gid))
		}
		if err == nil {
			err = unix.Chmod(from, st.Mode&0o7777)
		}
		if err != nil {
			return at, err
		}
	}
	if err := unix.Mount(from, at, "", unix.MS_BIND, ""); err != nil {
		return at, fmt.Errorf("bind %q to %q: %w", from, at, err)
	}
	return at, nil
}
