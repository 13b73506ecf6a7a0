package site

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"ingot/internal/durable"
)

//go:embed all:example
var example embed.FS

// ErrNotEmpty refuses to make a site where other files are.
var ErrNotEmpty = errors.New("the directory is not empty and not a site")

// Init writes an example site, commented and correct, into dir, which is made when needed.
// A directory that holds a site (ErrExists) or other files (ErrNotEmpty) is refused; files
// whose name begins with a dot, such as .git, do not count.
func Init(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("init site: %w", err)
	}
	for _, e := range entries {
		if e.Name() == configFile {
			return fmt.Errorf("init site %q: %w", dir, ErrExists)
		}
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			return fmt.Errorf("init site %q: %w (it has %q)", dir, ErrNotEmpty, e.Name())
		}
	}
	// ingot.yaml comes last: a directory that has it is complete.
	var files []string
	err = fs.WalkDir(example, "example", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Base(path) != configFile {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("init site: %w", err)
	}
	for _, f := range append(files, "example/"+configFile) {
		if err := writeExample(dir, f); err != nil {
			return fmt.Errorf("init site %q: %w", dir, err)
		}
	}
	return nil
}

func writeExample(dir, path string) error {
	data, err := example.ReadFile(path)
	if err != nil {
		return err
	}
	name := strings.TrimPrefix(path, "example/")
	if name == "gitignore" {
		name = ".gitignore"
	}
	perm := os.FileMode(0o644)
	if strings.HasPrefix(string(data), "#!") {
		perm = 0o755
	}
	out := filepath.Join(dir, filepath.FromSlash(name))
	if _, err := os.Lstat(out); err == nil {
		return nil // a .gitignore that was there
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	return durable.WriteFile(out, data, perm)
}
