package netboot

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// closure copies programs of a system and what they need to run into the environment: the loader and the
// shared libraries (read off the ELF files, nothing is run), the interpreters of scripts, and the symlinks
// on the way.
type closure struct {
	root string // of the system the programs are taken from
	into layout
	libs []string // directories of ld.so, in its order
	done map[string]bool
}

func newClosure(root string, into layout) *closure {
	c := &closure{root: root, into: into, done: make(map[string]bool)}
	c.libs = append(c.ldConf("/etc/ld.so.conf", 0),
		"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
		"/lib64", "/usr/lib64", "/lib", "/usr/lib")
	// The shape of the root: whether /bin is /usr/bin decides what names work in the environment.
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64"} {
		if target, err := os.Readlink(filepath.Join(root, name)); err == nil {
			into.link(name, target)
			into.dir(path.Clean("/" + target)[1:], 0o755)
		} else {
			into.dir(name, 0o755)
		}
	}
	return c
}

// ldConf reads the directories of an ld.so.conf and of those it includes; ldconfig(8).
func (c *closure) ldConf(name string, depth int) []string {
	b, err := os.ReadFile(filepath.Join(c.root, name))
	if err != nil || depth > 5 {
		return nil
	}
	var dirs []string
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		words := strings.Fields(line)
		if len(words) == 2 && words[0] == "include" {
			pattern := words[1]
			if !path.IsAbs(pattern) {
				pattern = path.Join(path.Dir(name), pattern)
			}
			files, _ := filepath.Glob(filepath.Join(c.root, pattern)) // a bad pattern matches nothing
			for _, f := range files {
				rel, err := filepath.Rel(c.root, f)
				if err == nil {
					dirs = append(dirs, c.ldConf("/"+rel, depth+1)...)
				}
			}
			continue
		}
		if len(words) == 1 && path.IsAbs(words[0]) {
			dirs = append(dirs, words[0])
		}
	}
	return dirs
}

// tool adds a program by its name or absolute path.
func (c *closure) tool(name string) error {
	candidates := []string{name}
	if !path.IsAbs(name) {
		candidates = []string{"/usr/sbin/" + name, "/usr/bin/" + name, "/sbin/" + name, "/bin/" + name}
	}
	for _, file := range candidates {
		if _, err := c.stat(file); err != nil {
			continue
		}
		if err := c.add(file); err != nil {
			return fmt.Errorf("take in tool %q: %w", name, err)
		}
		return c.companions(path.Base(name))
	}
	return &MissingToolError{Tool: name, Root: c.root, Package: packageOf(path.Base(name))}
}

// companions adds the files without which a tool runs but does not do what it does on the server.
func (c *closure) companions(tool string) error {
	if !strings.HasPrefix(tool, "mkfs.ext") && tool != "mke2fs" {
		return nil
	}
	const conf = "/etc/mke2fs.conf" // the features of new file systems
	if _, err := c.stat(conf); err != nil {
		return nil
	}
	return c.add(conf)
}

// stat follows a name inside the root.
func (c *closure) stat(name string) (os.FileInfo, error) {
	real, err := c.walk(name, nil)
	if err != nil {
		return nil, err
	}
	return os.Lstat(filepath.Join(c.root, real))
}

// walk resolves name as it would be in a chroot of the root, and calls link for every symlink on the way.
func (c *closure) walk(name string, link func(name, target string)) (string, error) {
	done, rest := "/", strings.Split(strings.Trim(path.Clean(name), "/"), "/")
	for hops := 0; len(rest) > 0; {
		next := path.Join(done, rest[0])
		rest = rest[1:]
		fi, err := os.Lstat(filepath.Join(c.root, next))
		if err != nil {
			return "", err
		}
		if fi.Mode()&os.ModeSymlink == 0 {
			done = next
			continue
		}
		if hops++; hops > 40 {
			return "", fmt.Errorf("resolve %q: too many symlinks", name)
		}
		target, err := os.Readlink(filepath.Join(c.root, next))
		if err != nil {
			return "", err
		}
		if link != nil {
			link(next, target)
		}
		if path.IsAbs(target) {
			done = "/"
		}
		rest = append(strings.FieldsFunc(target, func(r rune) bool { return r == '/' }), rest...)
	}
	return done, nil
}

// add copies a file, the symlinks on the way to it and what it needs.
func (c *closure) add(name string) error {
	real, err := c.walk(name, func(link, target string) { c.into.link(strings.TrimPrefix(link, "/"), target) })
	if err != nil {
		return err
	}
	if c.done[real] {
		return nil
	}
	c.done[real] = true
	file := filepath.Join(c.root, real)
	fi, err := os.Stat(file)
	if err != nil {
		return err
	}
	body, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	// Without setuid: everybody in the environment is root.
	c.into.file(strings.TrimPrefix(real, "/"), uint32(fi.Mode().Perm())&0o755, body)
	if err := c.needs(real, body); err != nil {
		return fmt.Errorf("%q: %w", real, err)
	}
	return nil
}

// needs adds what the file needs to run.
func (c *closure) needs(real string, body []byte) error {
	if line, ok := bytes.CutPrefix(body, []byte("#!")); ok {
		line, _, _ = bytes.Cut(line, []byte("\n"))
		if words := strings.Fields(string(line)); len(words) > 0 {
			return c.add(words[0])
		}
		return nil
	}
	if !bytes.HasPrefix(body, []byte(elf.ELFMAG)) {
		return nil
	}
	f, err := elf.NewFile(bytes.NewReader(body))
	if err != nil {
		return err
	}
	if interp := interpreter(f); interp != "" {
		if err := c.add(interp); err != nil {
			return err
		}
	}
	libs, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	dirs := append(runpath(f, path.Dir(real)), c.libs...)
	for _, lib := range libs {
		if err := c.library(lib, dirs, f.FileHeader); err != nil {
			return err
		}
	}
	return nil
}

// library adds the first file called lib in dirs that is for the same machine.
func (c *closure) library(lib string, dirs []string, want elf.FileHeader) error {
	if strings.Contains(lib, "/") {
		return c.add(lib)
	}
	for _, dir := range dirs {
		name := path.Join(dir, lib)
		real, err := c.walk(name, nil)
		if err != nil {
			continue
		}
		f, err := elf.Open(filepath.Join(c.root, real))
		if err != nil {
			continue
		}
		same := f.Class == want.Class && f.Machine == want.Machine
		_ = f.Close() // read only
		if same {
			return c.add(name)
		}
	}
	return fmt.Errorf("shared library %q not found in %q", lib, c.root)
}

// interpreter returns the program header's loader, or "".
func interpreter(f *elf.File) string {
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP || p.Filesz > 4096 {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err == nil {
			return strings.TrimRight(string(b), "\x00")
		}
	}
	return ""
}

// runpath returns the directories that the file itself names; ld.so(8).
func runpath(f *elf.File, origin string) []string {
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		values, err := f.DynString(tag)
		if err != nil {
			continue // no dynamic section
		}
		for _, v := range values {
			v = strings.NewReplacer("$ORIGIN", origin, "${ORIGIN}", origin).Replace(v)
			dirs = append(dirs, strings.Split(v, ":")...)
		}
	}
	return slices.DeleteFunc(dirs, func(d string) bool { return !path.IsAbs(d) })
}

// MissingToolError says that a tool is not on the server.
type MissingToolError struct {
	Tool    string
	Root    string
	Package string // of Debian
}

func (e *MissingToolError) Error() string {
	return fmt.Sprintf("tool %q not found in %q: install the package %q", e.Tool, e.Root, e.Package)
}

// MissingPackages returns the Debian packages that the tools which err says are missing come from.
func MissingPackages(err error) []string {
	var pkgs []string
	for _, e := range unjoin(err) {
		var missing *MissingToolError
		if errors.As(e, &missing) {
			pkgs = append(pkgs, missing.Package)
		}
	}
	slices.Sort(pkgs)
	return slices.Compact(pkgs)
}

// unjoin returns the errors that errors.Join put together.
func unjoin(err error) []error {
	for e := err; e != nil; e = errors.Unwrap(e) {
		if many, ok := e.(interface{ Unwrap() []error }); ok {
			return many.Unwrap()
		}
	}
	return []error{err}
}
