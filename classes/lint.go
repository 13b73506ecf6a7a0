package classes

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"ingot/internal/problem"
)

// Lint judges every file of the space, also those that no node uses yet. err is a
// problem.List of what is wrong; notes are what is right but does less than it seems.
func (s *Space) Lint() (notes problem.List, err error) {
	var probs problem.List
	for _, step := range []func(notes, probs *problem.List) error{s.lintProfiles, s.lintClass, s.lintDisks, s.lintFiles, s.lintPrograms} {
		if err := step(&notes, &probs); err != nil {
			return nil, fmt.Errorf("check the config space: %w", err)
		}
	}
	return notes.Sorted(), probs.Err()
}

func (s *Space) lintProfiles(_, probs *problem.List) error {
	entries, err := s.readDir("profile")
	for _, e := range entries {
		file := "profile/" + e.Name()
		class, isYAML := strings.CutSuffix(e.Name(), ".yaml")
		switch {
		case strings.HasPrefix(e.Name(), ".") || strings.HasSuffix(e.Name(), "~"):
		case !isYAML || !ClassName(class):
			probs.Add(problem.Problem{File: file, Text: "is not read: profiles are called CLASS.yaml"})
		default:
			root, err := s.parseYAML(file, probs)
			if err != nil {
				return err
			}
			checkProfile(root, probs)
		}
	}
	return err
}

// ClassName says whether a word can be a class: letters, digits and _ . + -, not beginning
// with one of the last three.
func ClassName(s string) bool {
	const first = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"
	return s != "" && strings.Contains(first, s[:1]) && strings.Trim(s, first+".+-") == ""
}

func (s *Space) lintClass(notes, _ *problem.List) error {
	entries, err := s.readDir("class")
	for _, e := range entries {
		file := "class/" + e.Name()
		if strings.HasSuffix(e.Name(), ".var") {
			text, err := s.readFile(file)
			if err != nil {
				return err
			}
			_, _, n := ParseVars(file, text, nil)
			notes.Add(n...)
			continue
		}
		if !classScript(e.Name()) {
			continue
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 == 0 {
			notes.Add(problem.Problem{File: file, Text: "is not executable: it defines no classes (chmod +x)"})
		}
	}
	return err
}

func (s *Space) lintDisks(_, probs *problem.List) error {
	entries, err := s.readDir("disk_config")
	for _, e := range entries {
		if !ClassName(e.Name()) || e.IsDir() || strings.HasSuffix(e.Name(), ".bak") {
			continue
		}
		file := "disk_config/" + e.Name()
		text, err := s.readFile(file)
		if err != nil {
			return err
		}
		s.checkDisk(file, text, probs)
	}
	return err
}

func (s *Space) lintFiles(notes, probs *problem.List) error {
	leaves, err := s.leaves()
	if err != nil {
		return err
	}
	for _, l := range leaves {
		for _, name := range l.names {
			if special(name) || !ClassName(name) {
				continue
			}
			if _, _, err := s.file(l, name, probs); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Space) lintPrograms(notes, _ *problem.List) error {
	entries, err := s.readDir("scripts")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !ClassName(e.Name()) {
			continue
		}
		_, n, err := s.Programs("scripts", []string{e.Name()})
		if err != nil {
			return err
		}
		notes.Add(n...)
	}
	return nil
}

// Known lists the classes that any file of the space is for, sorted: a class of a node that
// is not among them does nothing, most likely because it is misspelt.
func (s *Space) Known() ([]string, error) {
	seen := map[string]bool{"DEFAULT": true, "LAST": true}
	add := func(entries []fs.DirEntry, suffix string) {
		for _, e := range entries {
			if name, ok := strings.CutSuffix(e.Name(), suffix); ok && ClassName(name) {
				seen[name] = true
			}
		}
	}
	for dir, suffix := range map[string]string{"profile": ".yaml", "class": ".var", "disk_config": "", "scripts": "", "package_config": "", "tests": "", "debconf": ""} {
		entries, err := s.readDir(dir)
		if err != nil {
			return nil, err
		}
		add(entries, suffix)
	}
	for dir, sep := range map[string]string{"hooks": ".", "basefiles": "."} {
		entries, err := s.readDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			parts := strings.Split(e.Name(), sep)
			for _, p := range parts[:min(2, len(parts))] {
				if ClassName(p) {
					seen[p] = true
				}
			}
		}
	}
	leaves, err := s.leaves()
	if err != nil {
		return nil, err
	}
	for _, l := range leaves {
		for _, n := range l.names {
			if !special(n) && ClassName(path.Base(n)) {
				seen[n] = true
			}
		}
	}
	var out []string
	for c := range seen {
		out = append(out, c)
	}
	slices.Sort(out)
	return out, nil
}
