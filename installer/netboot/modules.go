package netboot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"ingot/installer/netboot/modload"
)

// module is a module that goes into the environment.
type module struct {
	modload.Module
	body     []byte // decompressed
	firmware []string
}

// moduleSet gathers modules and what they need from a kernel's tree.
type moduleSet struct {
	kernel  *kernel
	files   map[string]string // name -> path in the tree, of every module there is
	builtin []string
	mods    map[string]*module // chosen
	algs    map[string][]string
	missing []string // soft or default names that this kernel does not have
}

// newModuleSet lists the modules of a kernel.
func newModuleSet(k *kernel) (*moduleSet, error) {
	s := &moduleSet{kernel: k, files: make(map[string]string), mods: make(map[string]*module)}
	err := k.tree.Walk(k.modules, func(name string, typ fs.FileMode) error {
		if mod, ok := moduleName(name); ok && typ.IsRegular() {
			s.files[mod] = name
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list modules of kernel %q: %w", k.version, err)
	}
	builtin, err := readTree(k.tree, path.Join(k.modules, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, line := range strings.Fields(string(builtin)) {
		if mod, ok := moduleName(line); ok {
			s.builtin = append(s.builtin, mod)
		}
	}
	slices.Sort(s.builtin)
	return s, nil
}

// add chooses modules and what they need. With must, a name that the kernel does not have is an error.
func (s *moduleSet) add(ctx context.Context, names []string, must bool) error {
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := s.one(modload.Normal(name))
		switch {
		case errors.Is(err, modload.ErrMissing) && !must:
			s.missing = append(s.missing, modload.Normal(name))
		case err != nil:
			return fmt.Errorf("kernel %q: %w", s.kernel.version, err)
		}
	}
	return nil
}

// one chooses a module and what it needs.
func (s *moduleSet) one(name string) error {
	if _, ok := s.mods[name]; ok || s.hasBuiltin(name) {
		return nil
	}
	file, ok := s.files[name]
	if !ok {
		return fmt.Errorf("module %q: %w", name, modload.ErrMissing)
	}
	body, info, err := s.read(file)
	if err != nil {
		return err
	}
	rel := strings.TrimPrefix(plainName(file), s.kernel.modules+"/")
	m := &module{body: body, firmware: info.firmware}
	m.Name, m.File, m.Depends, m.Aliases = name, rel, info.depends, info.aliases
	s.mods[name] = m // before its dependencies: soft ones have cycles
	for _, dep := range info.depends {
		if err := s.one(dep); err != nil {
			delete(s.mods, name)
			return fmt.Errorf("module %q needs: %w", name, err)
		}
	}
	m.Depends = s.loadable(info.depends)
	if m.Pre, err = s.soft(info.pre); err != nil {
		return err
	}
	m.Post, err = s.soft(info.post)
	return err
}

func (s *moduleSet) hasBuiltin(name string) bool {
	_, ok := slices.BinarySearch(s.builtin, name)
	return ok
}

// loadable leaves out names that are built in.
func (s *moduleSet) loadable(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), s.hasBuiltin)
}

// read reads, decompresses and parses a module.
func (s *moduleSet) read(file string) ([]byte, modinfo, error) {
	raw, err := readTree(s.kernel.tree, file)
	if err != nil {
		return nil, modinfo{}, err
	}
	body, err := expand(file, raw)
	if err != nil {
		return nil, modinfo{}, fmt.Errorf("decompress %q: %w", file, err)
	}
	info, err := readModinfo(body)
	if err != nil {
		return nil, modinfo{}, fmt.Errorf("read module %q: %w", file, err)
	}
	return body, info, nil
}

// soft chooses soft dependencies: names of modules, or of algorithms that modules have as alias (crc32c
// is in crc32c_generic, crc32c_intel and others). What the kernel does not have is left out.
func (s *moduleSet) soft(names []string) ([]string, error) {
	var got []string
	for _, name := range names {
		providers := []string{name}
		if _, ok := s.files[name]; !ok && !s.hasBuiltin(name) {
			var err error
			if providers, err = s.providers(name); err != nil {
				return nil, err
			}
		}
		for _, p := range providers {
			switch err := s.one(p); {
			case errors.Is(err, modload.ErrMissing):
				s.missing = append(s.missing, p)
			case err != nil:
				return nil, err
			default:
				got = append(got, p)
			}
		}
	}
	return s.loadable(got), nil
}

// providers returns the modules with the alias. Only where algorithms live is looked: an unpacked
// package has no modules.alias, and reading all 4,000 modules takes seconds.
func (s *moduleSet) providers(alias string) ([]string, error) {
	if s.algs == nil {
		s.algs = make(map[string][]string)
		for name, file := range s.files {
			if !strings.Contains(file, "/kernel/crypto/") && !strings.Contains(file, "/kernel/lib/") && !strings.Contains(file, "/kernel/arch/") {
				continue
			}
			_, info, err := s.read(file)
			if err != nil {
				return nil, err
			}
			for _, a := range info.aliases {
				s.algs[modload.Normal(a)] = append(s.algs[modload.Normal(a)], name)
			}
		}
	}
	slices.Sort(s.algs[alias])
	return slices.Compact(s.algs[alias]), nil
}

// sorted returns what was chosen by name.
func (s *moduleSet) sorted() []*module {
	var all []*module
	for _, m := range s.mods {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b *module) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// index describes the chosen modules for the node.
func (s *moduleSet) index() *modload.Index {
	x := &modload.Index{Kernel: s.kernel.version, Builtin: s.builtin}
	for _, m := range s.sorted() {
		x.Modules = append(x.Modules, m.Module)
	}
	return x
}

// writeTo puts the modules, their index, a modules.dep for modprobe in a rescue shell, and what firmware
// of theirs the tree has into the environment.
func (s *moduleSet) writeTo(l layout) error {
	dir := path.Join("lib/modules", s.kernel.version)
	var dep strings.Builder
	for _, m := range s.sorted() {
		l.file(path.Join(dir, m.File), 0o644, m.body)
		fmt.Fprintf(&dep, "%s:", m.File)
		for _, d := range s.closure(m, nil) {
			fmt.Fprintf(&dep, " %s", s.mods[d].File)
		}
		dep.WriteByte('\n')
		if err := s.firmware(l, m); err != nil {
			return err
		}
	}
	l.file(path.Join(dir, modload.IndexName), 0o644, s.index().Encode())
	l.file(path.Join(dir, "modules.dep"), 0o644, []byte(dep.String()))
	return nil
}

// closure lists what m needs, directly or not: modules.dep(5) wants all, the nearest first.
func (s *moduleSet) closure(m *module, got []string) []string {
	for _, d := range m.Depends {
		if !slices.Contains(got, d) {
			got = s.closure(s.mods[d], append(got, d))
		}
	}
	return got
}

// firmware copies the firmware that m names, where the tree has it: as it is, or compressed.
func (s *moduleSet) firmware(l layout, m *module) error {
	for _, name := range m.firmware {
		for _, ext := range []string{"", ".xz", ".zst"} {
			file := path.Join(s.kernel.lib, "firmware", path.Clean("/"+name)+ext)
			body, err := readTree(s.kernel.tree, file)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			l.file(path.Join("lib/firmware", path.Clean("/"+name)+ext), 0o644, body)
		}
	}
	return nil
}
