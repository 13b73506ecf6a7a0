// Package templates renders what machines are given as text: iPXE scripts, and the files of
// a node that follow from nodes/NAME.yaml (host name, hosts, systemd-networkd).
//
// Templates are text/template with sprig's functions, less those that read the server's
// environment. A file of the site's templates/ folder replaces the built-in one of the same
// name. What a template does not know is an error, never an empty word.
package templates

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig/v3"

	"ingot/classes/disks"
	"ingot/internal/problem"
	"ingot/site"
)

//go:embed default
var builtin embed.FS

// Set is the built-in templates under those of a site.
type Set struct {
	Dir string // the site's templates/; empty or absent: the built-in ones alone
}

// Boot is what the boot scripts see. Which fields are needed is up to the script; install
// needs all but Reason.
type Boot struct {
	Node    *site.Node // nil for an unknown machine
	Site    *site.Site
	Vars    map[string]string
	Classes []string

	MAC    string
	UUID   string
	Serial string
	IP     string

	Ref     string // the image as the operator named it
	Attempt int
	Kernel  string // URL
	Initrd  string // URL
	Args    []string
	Reason  string // why the last installation failed
}

// The names of the boot scripts.
const (
	Install = "install.ipxe"
	Local   = "local.ipxe"
	Failed  = "failed.ipxe"
	Unknown = "unknown.ipxe"
)

// Names lists the templates there are, of the site and built in, sorted.
func (s *Set) Names() ([]string, error) {
	files, err := s.read()
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// read gathers the texts by name, a site's over the built-in ones.
func (s *Set) read() (map[string]string, error) {
	files := map[string]string{}
	entries, err := fs.ReadDir(builtin, "default")
	if err != nil {
		return nil, fmt.Errorf("read built-in templates: %w", err)
	}
	for _, e := range entries {
		text, err := builtin.ReadFile("default/" + e.Name())
		if err != nil {
			return nil, fmt.Errorf("read built-in templates: %w", err)
		}
		files[e.Name()] = string(text)
	}
	if s.Dir == "" {
		return files, nil
	}
	own, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read templates: %w", err)
	}
	for _, e := range own {
		if !ours(e.Name()) || e.IsDir() {
			continue
		}
		text, err := os.ReadFile(filepath.Join(s.Dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("read templates: %w", err)
		}
		files[e.Name()] = string(text)
	}
	return files, nil
}

// ours: hidden files, backups and README are no templates.
func ours(name string) bool {
	return !strings.HasPrefix(name, ".") && !strings.HasSuffix(name, "~") && !strings.HasPrefix(name, "README")
}

// Render renders one template with all others at hand for {{template}}.
func (s *Set) Render(name string, data any) ([]byte, error) {
	files, err := s.read()
	if err != nil {
		return nil, fmt.Errorf("render %q: %w", name, err)
	}
	if _, ok := files[name]; !ok {
		return nil, fmt.Errorf("render %q: there is no such template: %w", name, fs.ErrNotExist)
	}
	root := template.New("").Funcs(functions()).Option("missingkey=error")
	for n, text := range files {
		if _, err := root.New(n).Parse(text); err != nil && n == name {
			return nil, fmt.Errorf("render %q: %w", name, err)
		}
	}
	var out bytes.Buffer
	if err := root.ExecuteTemplate(&out, name, data); err != nil {
		return nil, fmt.Errorf("render %q: %w", name, err)
	}
	return out.Bytes(), nil
}

// Lint parses every template of the site. Its error is a problem.List.
func (s *Set) Lint() error {
	files, err := s.read()
	if err != nil {
		return err
	}
	var probs problem.List
	for name, text := range files {
		if _, err := template.New(name).Funcs(functions()).Parse(text); err != nil {
			probs.Add(templateProblem(name, text, err))
		}
	}
	return probs.Err()
}

// templateProblem reads the place from `template: NAME:LINE: message`.
func templateProblem(name, text string, err error) problem.Problem {
	src := &problem.Source{Name: "templates/" + name, Data: []byte(text)}
	rest := strings.TrimPrefix(err.Error(), "template: "+name+":")
	var line int
	if _, scanErr := fmt.Sscanf(rest, "%d:", &line); scanErr == nil {
		_, rest, _ = strings.Cut(rest, ": ")
	}
	return src.At(line, 0, "%s", rest)
}

// functions are sprig's without those that read the server's environment or network.
func functions() template.FuncMap {
	f := sprig.TxtFuncMap()
	for _, name := range []string{"env", "expandenv", "getHostByName"} {
		delete(f, name)
	}
	f["ipxe"] = ipxeText
	f["ipxearg"] = ipxeWord
	f["ipxeargs"] = ipxeWords
	f["lines"] = lines
	f["espLabel"] = func() string { return disks.ESPLabel }
	return f
}
