// Package classes says which classes a node has and what they say: the values of its
// profile, variables, disks, files and scripts. A config space may be an existing FAI one,
// unchanged; profile/CLASS.yaml is what ingot adds to it.
//
// Everything is resolved from files alone: Resolve gives the same answer on the server,
// which knows the written classes, and on the node, which adds what its class scripts say
// (RunClassScripts). Whatever is wrong is reported at once, with file and line.
package classes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"ingot/internal/problem"
	"ingot/internal/strict"
)

// Space is a config space: the directory with class/, profile/, disk_config/, files/, scripts/.
type Space struct {
	Dir string

	// CheckDisk judges a disk_config file; nil: they are not read by Lint. Its error may be
	// a problem.List.
	CheckDisk func(file string, text []byte) error
}

// Resolved is what the classes of one node add up to.
type Resolved struct {
	Node    string
	Classes []string // in order; later ones win
	Profile Profile
	Values  []Value // of profile, variables, disks, files and scripts: what class explain shows
	Vars    map[string]string
	Disk    *DiskConfig  // nil: none of the classes has one
	Files   []File       // by path
	Scripts []Script     // in the order of running
	Notes   problem.List // what is right but does less than it seems, such as a .var line that needs a shell
}

// DiskConfig is the disk_config file that was chosen.
type DiskConfig struct {
	Class string
	File  string // relative to the space
	Text  []byte
}

// Value is one thing that the classes say, where, and what it displaced.
type Value struct {
	Kind       string // profile | var | disk | file | script
	Key        string // kernel.args, a variable, a path
	Value      string
	Class      string
	File       string  // relative to the space
	Line       int     // 0: the file as a whole
	Overridden []Value // by lower classes, the nearest first
}

// List is the class list of a node: DEFAULT, the explicit list, what is written in
// class/HOST, the host name, LAST. Repetitions keep their first place.
func (s *Space) List(explicit []string, host string) ([]string, error) {
	text, err := s.readFile("class/" + host)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list classes of %q: %w", host, err)
	}
	return Join(explicit, hostClasses(text), host), nil
}

// Join puts a class list together from the explicit classes, those that files and scripts
// on the node added, and the host name.
func Join(explicit, added []string, host string) []string {
	list := append([]string{"DEFAULT"}, explicit...)
	list = append(list, added...)
	list = slices.DeleteFunc(list, func(c string) bool { return c == "LAST" || c == host || c == "" })
	var out []string
	for _, c := range append(list, host, "LAST") {
		if c != "" && !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

// hostClasses reads class/HOST: words of the lines that do not begin with #.
func hostClasses(text []byte) []string {
	var out []string
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			out = append(out, strings.Fields(line)...)
		}
	}
	return out
}

// Resolve says what the classes of a node add up to. list is the explicit list of the node;
// DEFAULT, class/HOST, the host name and LAST are added. What people wrote wrongly is a
// problem.List with everything at once.
func (s *Space) Resolve(nodeName string, list []string) (*Resolved, error) {
	classes, err := s.List(list, nodeName)
	if err != nil {
		return nil, err
	}
	return s.ResolveClasses(nodeName, classes)
}

// ResolveClasses is Resolve for a complete class list, as a node reports it.
func (s *Space) ResolveClasses(nodeName string, classes []string) (*Resolved, error) {
	r := &Resolved{Node: nodeName, Classes: classes, Vars: map[string]string{}}
	var probs problem.List
	steps := []func(*Resolved, *problem.List) error{s.profile, s.vars, s.disk, s.files, s.scripts}
	for _, step := range steps {
		if err := step(r, &probs); err != nil {
			return nil, fmt.Errorf("resolve the classes of %q: %w", nodeName, err)
		}
	}
	if r.Disk == nil && r.Profile.Boot == "image" && len(probs) == 0 {
		probs.Add(problem.Problem{File: "disk_config", Text: fmt.Sprintf("node %q: no file for any of its classes %s", nodeName, strings.Join(classes, " "))})
	}
	if err := probs.Err(); err != nil {
		return nil, err
	}
	r.Notes = r.Notes.Sorted()
	return r, nil
}

// Explain is every value that a node gets, with the class and the line it came from.
func (s *Space) Explain(nodeName string, list []string) ([]Value, error) {
	r, err := s.Resolve(nodeName, list)
	if err != nil {
		return nil, err
	}
	return r.Values, nil
}

// disk chooses disk_config/CLASS of the highest class that has one.
func (s *Space) disk(r *Resolved, probs *problem.List) error {
	var found []Value
	for _, class := range slices.Backward(r.Classes) {
		file := "disk_config/" + class
		text, err := s.readFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		found = append(found, Value{Kind: "disk", Key: "disk_config", Value: class, Class: class, File: file})
		if r.Disk == nil {
			r.Disk = &DiskConfig{Class: class, File: file, Text: text}
			s.checkDisk(file, text, probs)
		}
	}
	if len(found) > 0 {
		found[0].Overridden = found[1:]
		r.Values = append(r.Values, found[0])
	}
	return nil
}

func (s *Space) checkDisk(file string, text []byte, probs *problem.List) {
	if s.CheckDisk == nil {
		return
	}
	err := s.CheckDisk(file, text)
	var list problem.List
	switch {
	case errors.As(err, &list):
		probs.Add(list...)
	case err != nil:
		probs.Add(problem.Problem{File: file, Text: err.Error()})
	}
}

// readFile reads a regular file of the space. Links may lead to other files of the space,
// never out of it. What is no regular file is taken as not there.
func (s *Space) readFile(name string) ([]byte, error) {
	root, err := os.OpenRoot(s.Dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	info, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
	}
	return root.ReadFile(name)
}

// readDir lists a directory of the space, sorted bytewise as the shell's C collation does;
// one that is not there is empty.
func (s *Space) readDir(name string) ([]fs.DirEntry, error) {
	root, err := os.OpenRoot(s.Dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, err
}

// parseYAML reads a profile.
func (s *Space) parseYAML(file string, probs *problem.List) (*strict.Node, error) {
	text, err := s.readFile(file)
	if err != nil {
		return nil, err
	}
	return strict.Parse(file, text, probs), nil
}
