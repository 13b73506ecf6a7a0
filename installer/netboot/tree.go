package netboot

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Tree is an unpacked operating system: a directory (Dir) or an image in a store. Names are relative and
// clean, with slashes.
type Tree interface {
	// Open opens a regular file. No part of name is a symlink.
	Open(name string) (io.ReadCloser, error)
	// Walk calls fn for everything below dir, in any order; a dir that is not there is fs.ErrNotExist.
	Walk(dir string, fn func(name string, typ fs.FileMode) error) error
	// Readlink returns the target of a symlink, or an error when name is no symlink.
	Readlink(name string) (string, error)
}

// Dir is the tree in a directory of this machine.
type Dir string

// Open implements Tree.
func (d Dir) Open(name string) (io.ReadCloser, error) {
	return os.OpenInRoot(string(d), filepath.FromSlash(name))
}

// Walk implements Tree.
func (d Dir) Walk(dir string, fn func(name string, typ fs.FileMode) error) error {
	return fs.WalkDir(os.DirFS(string(d)), dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || name == dir {
			return err
		}
		return fn(name, e.Type())
	})
}

// Readlink implements Tree.
func (d Dir) Readlink(name string) (string, error) {
	return os.Readlink(filepath.Join(string(d), filepath.FromSlash(name)))
}

// readTree reads a file of the tree.
func readTree(t Tree, name string) ([]byte, error) {
	f, err := t.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", name, err)
	}
	return b, nil
}

// libDir returns where the tree keeps lib: usr/lib where lib is a symlink to it (usrmerge).
func libDir(t Tree) string {
	target, err := t.Readlink("lib")
	if err != nil {
		return "lib"
	}
	return strings.TrimPrefix(path.Clean(target), "/")
}
