package ingot

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// An arrow says which of our packages a folder may import. The first entry
// whose folder matches decides.
type arrow struct {
	folder string   // of the importing package; "x/..." includes what is below
	may    []string // folders of ours, "/..." as above; internal/... is always allowed
	why    string
}

func arrows() []arrow {
	all := []string{"..."}
	return []arrow{
		{"cmd/ingot", all, "joins everything"},
		{"cmd/ingot-agent", []string{"classes/...", "imager/...", "rollback/...", "installer/..."}, "the node's program must stay small: no server, no SSH, no SQL"},
		{"e2e/...", all, "tests from outside; nothing imports them"},
		{"bench", nil, "a judge drives programs from outside, ours and the others'"},
		{"lab/...", nil, "the rack is a tool: it drives programs, it is no part of them"},
		{"pxe/pxetest", []string{"pxe"}, "a fake ROM speaks to the server it tests"},
		{"pxe", nil, "answers machines; what they get is decided elsewhere"},
		{"classes/disks", nil, "a language and a plan know nothing of servers"},
		{"classes", nil, "what classes say depends on files alone"},
		{"site", nil, "what people write is read before anything else exists"},
		{"templates", []string{"classes/...", "inventory", "site"}, "renders what classes and nodes say"},
		{"fleet", nil, "decisions about nodes need no nodes"},
		{"inventory", nil, "the only package that speaks SQL has no opinions"},
		{"imager", []string{"imager/..."}, "orchestration of its own parts only"},
		{"imager/chunk", nil, "a chunker depends on its parameters alone"},
		{"imager/...", []string{"imager/..."}, "the parts of the imager"},
		{"rollback/...", nil, "must work with everything else broken"},
		{"installer/...", []string{"classes/...", "imager/...", "rollback/...", "installer/..."}, "runs on the node"},
		{"web", []string{"installer", "inventory"}, "serves; decides nothing"},
		{"internal/...", nil, "plumbing imports plumbing only"},
	}
}

// A fence keeps a third-party library inside some folders.
type fence struct {
	module  string
	folders []string
	why     string
}

func fences() []fence {
	return []fence{
		{"github.com/insomniacslk/dhcp", []string{"pxe/...", "lab", "installer"}, "DHCP is the boot server's; the installer asks for its own lease"},
		{"github.com/pin/tftp", []string{"pxe/...", "lab"}, "TFTP is the boot server's"},
		{"golang.org/x/crypto/ssh", []string{"imager/remote", "lab", "internal/sshkey"}, "one place speaks SSH; one makes its keys"},
		{"github.com/pkg/sftp", []string{"imager/remote", "lab"}, "one place speaks SFTP"},
		{"github.com/urfave/cli", []string{"cmd/..."}, "libraries do not parse command lines"},
		{"database/sql", []string{"inventory"}, "one package speaks SQL"},
		{"modernc.org/sqlite", []string{"inventory"}, "one package speaks SQL"},
		{"github.com/pressly/goose", []string{"inventory"}, "one package speaks SQL"},
	}
}

const module = "ingot"

// maxLines is where a file has become two.
const maxLines = 500

type source struct {
	path, folder string // from the module's root
	file         *ast.File
	fset         *token.FileSet
	lines        int
}

func sources(t *testing.T) []source {
	t.Helper()
	var out []source
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go"):
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, b, parser.ParseComments)
		if err != nil {
			return err
		}
		out = append(out, source{path, filepath.ToSlash(filepath.Dir(path)), f, fset, strings.Count(string(b), "\n")})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 50 {
		t.Fatalf("only %d source files found: the walk is broken", len(out))
	}
	return out
}

func (s source) test() bool { return strings.HasSuffix(s.path, "_test.go") }

func matches(pattern, folder string) bool {
	if pattern == "..." {
		return true
	}
	base, deep := strings.CutSuffix(pattern, "/...")
	return folder == base || deep && strings.HasPrefix(folder, base+"/")
}

func allowed(patterns []string, folder string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, folder) })
}

func TestArrowsPointOneWay(t *testing.T) {
	for _, s := range sources(t) {
		if s.test() || s.folder == "." {
			continue
		}
		i := slices.IndexFunc(arrows(), func(a arrow) bool { return matches(a.folder, s.folder) })
		if i < 0 {
			t.Errorf("%s: the folder %s has no arrow: say in rules_test.go what it may import", s.path, s.folder)
			continue
		}
		a := arrows()[i]
		for _, spec := range s.file.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			ours, ok := strings.CutPrefix(path, module+"/")
			if !ok || matches("internal/...", ours) || allowed(a.may, ours) {
				continue
			}
			t.Errorf("%s imports %s: %s %s", s.path, ours, s.folder, a.why)
		}
	}
}

func TestLibrariesStayBehindTheirFences(t *testing.T) {
	for _, s := range sources(t) {
		for _, spec := range s.file.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range fences() {
				if (path == f.module || strings.HasPrefix(path, f.module+"/")) && !allowed(f.folders, s.folder) && !s.test() {
					t.Errorf("%s imports %s: %s", s.path, path, f.why)
				}
			}
		}
	}
}

func TestEveryPackageSaysWhatItIsOnce(t *testing.T) {
	comments := map[string][]string{}
	folders := map[string]bool{}
	for _, s := range sources(t) {
		if s.test() {
			continue
		}
		folders[s.folder] = true
		if s.file.Doc != nil {
			comments[s.folder] = append(comments[s.folder], s.path)
		}
	}
	for f := range folders {
		if n := len(comments[f]); n != 1 {
			t.Errorf("%s has %d package comments %v, want one: a reader looks in one place", f, n, comments[f])
		}
	}
}

func TestNothingHappensBeforeMain(t *testing.T) {
	for _, s := range sources(t) {
		if s.test() {
			continue
		}
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil && d.Name.Name == "init" {
					t.Errorf("%s: init runs before anybody can stop it", s.path)
				}
			case *ast.GenDecl:
				if d.Tok == token.VAR {
					checkVars(t, s, d)
				}
			}
		}
	}
}

// checkVars allows package variables that nobody changes: errors, interface
// assertions, embedded files, compiled patterns, and what the linker sets.
func checkVars(t *testing.T, s source, d *ast.GenDecl) {
	t.Helper()
	if d.Doc != nil && strings.Contains(commentText(d.Doc), "go:embed") {
		return
	}
	for _, spec := range d.Specs {
		v := spec.(*ast.ValueSpec)
		for i, name := range v.Names {
			if name.Name == "_" || strings.HasPrefix(name.Name, "Err") || strings.HasPrefix(name.Name, "err") || name.Name == "version" {
				continue
			}
			if v.Doc != nil && strings.Contains(commentText(v.Doc), "go:embed") {
				continue
			}
			if i < len(v.Values) && callOf(v.Values[i], "regexp", "MustCompile") {
				continue
			}
			t.Errorf("%s: package variable %s: state belongs to a value that somebody made", s.fset.Position(name.Pos()), name.Name)
		}
	}
}

func commentText(g *ast.CommentGroup) string {
	var b strings.Builder
	for _, c := range g.List {
		b.WriteString(c.Text + "\n")
	}
	return b.String()
}

func callOf(e ast.Expr, pkg, fn string) bool {
	c, ok := e.(*ast.CallExpr)
	if !ok {
		return false
	}
	sel, ok := c.Fun.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != fn {
		return false
	}
	id, ok := sel.X.(*ast.Ident)
	return ok && id.Name == pkg
}

func TestFilesAreOneThing(t *testing.T) {
	for _, s := range sources(t) {
		if s.lines > maxLines {
			t.Errorf("%s has %d lines: past %d a file is two", s.path, s.lines, maxLines)
		}
	}
}

func TestOnlyMainExits(t *testing.T) {
	for _, s := range sources(t) {
		if s.test() || (strings.HasPrefix(s.folder, "cmd/") || s.folder == "bench") && filepath.Base(s.path) == "main.go" {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			c, ok := n.(*ast.CallExpr)
			if ok && callOf(c, "os", "Exit") {
				t.Errorf("%s: os.Exit skips every defer of every caller", s.fset.Position(c.Pos()))
			}
			return true
		})
	}
}
