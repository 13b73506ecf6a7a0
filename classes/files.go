package classes

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"ingot/internal/problem"
)

// File is one file that a node gets: files/PATH/CLASS of its highest class.
//
// Without a line in file-modes it belongs to root:root and has mode 0755 when the source
// is executable, else 0644: version control keeps no more than that either.
type File struct {
	Path       string // on the node: /etc/motd
	Source     string // relative to the space: files/etc/motd/WEB
	Class      string
	Mode       uint32 // permission, setuid, setgid and sticky bits
	Owner      string // name or number, resolved on the node's own tree
	Group      string
	UID        int // -1 where only the node's tree knows the name
	GID        int
	Size       int64 // of the source, before substitution
	Substitute bool  // {%NAME%} is to be replaced (a file _substitute is beside it)

	dir string
}

// Open reads the source.
func (f File) Open() (io.ReadCloser, error) {
	file, err := os.OpenInRoot(f.dir, f.Source)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", f.Source, err)
	}
	return file, nil
}

// Content is the whole source.
func (f File) Content() ([]byte, error) {
	r, err := f.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// leaf is a directory below files/ without directories in it: the target of a file.
type leaf struct {
	dir   string // files/etc/motd
	names []string
}

// leaves walks files/. Directories with directories in them are no targets, as for fcopy -r.
func (s *Space) leaves() ([]leaf, error) {
	root, err := os.OpenRoot(s.Dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	tree := root.FS()
	var out []leaf
	var walk func(dir string) error
	walk = func(dir string) error {
		entries, err := fs.ReadDir(tree, dir)
		if err != nil {
			return err
		}
		l, isLeaf := leaf{dir: dir}, true
		for _, e := range entries {
			if e.IsDir() {
				if !slices.Contains([]string{"CVS", ".svn", ".arch-ids", "{arch}", ".git"}, e.Name()) {
					isLeaf = false
					if err := walk(dir + "/" + e.Name()); err != nil {
						return err
					}
				}
				continue
			}
			l.names = append(l.names, e.Name())
		}
		if isLeaf && dir != "files" {
			out = append(out, l)
		}
		return nil
	}
	if err := walk("files"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	slices.SortFunc(out, func(a, b leaf) int { return cmp.Compare(a.dir, b.dir) })
	return out, nil
}

// files chooses the file of the highest class for every target.
func (s *Space) files(r *Resolved, probs *problem.List) error {
	leaves, err := s.leaves()
	if err != nil {
		return err
	}
	for _, l := range leaves {
		var chosen []string
		for _, class := range slices.Backward(r.Classes) {
			if slices.Contains(l.names, class) && !special(class) {
				chosen = append(chosen, class)
			}
		}
		if len(chosen) == 0 {
			continue
		}
		f, ok, err := s.file(l, chosen[0], probs)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		r.Files = append(r.Files, f)
		v := Value{Kind: "file", Key: f.Path, Value: f.describe(), Class: f.Class, File: f.Source}
		for _, c := range chosen[1:] {
			v.Overridden = append(v.Overridden, Value{Kind: "file", Key: f.Path, Class: c, File: l.dir + "/" + c})
		}
		r.Values = append(r.Values, v)
		for _, hook := range []string{"preinst", "postinst"} {
			if slices.Contains(l.names, hook) {
				r.Notes.Add(problem.Problem{File: l.dir + "/" + hook, Text: "runs when a script calls fcopy; ingot puts the file in place without it"})
			}
		}
	}
	return nil
}

// special are the names that have a meaning of their own beside the classes.
func special(name string) bool {
	return slices.Contains([]string{"file-modes", "preinst", "postinst", "_substitute"}, name)
}

func (f File) describe() string {
	text := fmt.Sprintf("%s:%s %04o", f.Owner, f.Group, f.Mode)
	if f.Substitute {
		text += " substituted"
	}
	return text
}

func (s *Space) file(l leaf, class string, probs *problem.List) (f File, ok bool, err error) {
	source := l.dir + "/" + class
	root, err := os.OpenRoot(s.Dir)
	if err != nil {
		return f, false, err
	}
	defer root.Close()
	info, err := root.Stat(source)
	if err != nil {
		probs.Add(problem.Problem{File: source, Text: "cannot be read: it is a link that leads nowhere or out of the site"})
		return f, false, nil
	}
	if !info.Mode().IsRegular() {
		probs.Add(problem.Problem{File: source, Text: "is not a regular file"})
		return f, false, nil
	}
	f = File{
		Path: "/" + strings.TrimPrefix(l.dir, "files/"), Source: source, Class: class, Mode: 0o644, Owner: "root", Group: "root",
		Size: info.Size(), Substitute: slices.Contains(l.names, "_substitute"), dir: s.Dir,
	}
	if info.Mode().Perm()&0o111 != 0 {
		f.Mode = 0o755
	}
	if slices.Contains(l.names, "file-modes") {
		modes, err := s.fileModes(l.dir+"/file-modes", probs)
		if err != nil {
			return f, false, err
		}
		f.apply(modes)
	}
	f.UID, f.GID = id(f.Owner), id(f.Group)
	return f, true, nil
}

// id is a number, or root's; -1: a name that only the node's tree knows.
func id(name string) int {
	if name == "root" {
		return 0
	}
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(n)
	}
	return -1
}

// modeLine is `owner group octal [class]`.
type modeLine struct {
	owner, group string
	mode         uint32
	class        string
}

// apply uses the line of the file's class, else the one without a class.
func (f *File) apply(modes []modeLine) {
	for _, class := range []string{f.Class, ""} {
		for _, m := range modes {
			if m.class == class {
				f.Owner, f.Group, f.Mode = m.owner, m.group, m.mode
				return
			}
		}
	}
}

func (s *Space) fileModes(file string, probs *problem.List) ([]modeLine, error) {
	text, err := s.readFile(file)
	if err != nil {
		return nil, err
	}
	src := &problem.Source{Name: file, Data: text}
	var out []modeLine
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		mode, err := strconv.ParseUint(strings.TrimPrefix(fields[min(2, len(fields)-1)], "0o"), 8, 32)
		if len(fields) < 3 || len(fields) > 4 || err != nil || mode > 0o7777 {
			probs.Add(src.At(n, 1, "a line of file-modes is: owner group octal-mode [class]"))
			continue
		}
		m := modeLine{owner: fields[0], group: fields[1], mode: uint32(mode)}
		if len(fields) == 4 {
			m.class = fields[3]
		}
		out = append(out, m)
	}
	return out, nil
}

// Script is one program of scripts/ that runs on the node.
type Script struct {
	Class string
	Path  string // relative to the space: scripts/WEB/10-motd
}

// scripts lists scripts/ in the order of running.
func (s *Space) scripts(r *Resolved, _ *problem.List) error {
	list, notes, err := s.Programs("scripts", r.Classes)
	r.Scripts = list
	r.Notes.Add(notes...)
	for _, sc := range list {
		r.Values = append(r.Values, Value{Kind: "script", Key: sc.Path, Class: sc.Class, File: sc.Path})
	}
	return err
}

// Programs lists the programs of dir (scripts, tests) as fai-do-scripts runs them: for every
// class in order, CLASS when it is an executable file, else in the directory CLASS the
// executable files whose names begin with two digits, bytewise sorted. What is there and
// does not run is noted.
func (s *Space) Programs(dir string, classes []string) (list []Script, notes problem.List, err error) {
	root, err := os.OpenRoot(s.Dir)
	if err != nil {
		return nil, nil, err
	}
	defer root.Close()
	add := func(class, file string) {
		info, err := root.Stat(file)
		if err != nil || !info.Mode().IsRegular() {
			return
		}
		if info.Mode().Perm()&0o111 == 0 {
			notes.Add(problem.Problem{File: file, Text: "is not executable: it does not run (chmod +x)"})
			return
		}
		list = append(list, Script{class, file})
	}
	for _, class := range classes {
		file := path.Join(dir, class)
		info, err := root.Stat(file)
		if err != nil {
			continue
		}
		if !info.IsDir() {
			add(class, file)
			continue
		}
		entries, err := fs.ReadDir(root.FS(), file)
		if err != nil {
			return nil, nil, err
		}
		for _, e := range entries {
			if numbered(e.Name()) {
				add(class, path.Join(file, e.Name()))
			}
		}
	}
	return list, notes, nil
}

// numbered: two digits and anything after, and no file that an editor or dpkg left.
func numbered(name string) bool {
	for _, s := range []string{"~", ".dpkg-old", ".dpkg-new", ".dpkg-inst", ".dpkg-tmp", ".dpkg-dist"} {
		if strings.HasSuffix(name, s) {
			return false
		}
	}
	return len(name) > 2 && digit(name[0]) && digit(name[1])
}

func digit(c byte) bool { return '0' <= c && c <= '9' }
