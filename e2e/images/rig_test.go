package images

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// agent is the agent for this machine.
const agent = "ingot-agent-" + runtime.GOARCH

// built is a program under test; INGOT_BIN names another ingot.
func built(name string) string {
	if p := os.Getenv("INGOT_BIN"); p != "" && name == "ingot" {
		return p
	}
	p, err := filepath.Abs("../../bin/" + name)
	if err != nil {
		return name
	}
	return p
}

// need skips the test where it cannot run, or fails it when INGOT_NO_SKIP is set.
func need(t *testing.T, tools ...string) {
	t.Helper()
	missing := func(why string) {
		t.Helper()
		if os.Getenv("INGOT_NO_SKIP") != "" {
			t.Fatalf("must not skip (INGOT_NO_SKIP is set): %s", why)
		}
		t.Skip(why)
	}
	if os.Geteuid() != 0 {
		missing("owners and devices need root")
	}
	for _, tool := range append(tools, built("ingot"), built(agent)) {
		if _, err := exec.LookPath(tool); err != nil {
			missing(err.Error() + ": run `make build`")
		}
	}
}

// A site is a site with a store, and the program that works on it.
type site struct {
	t   testing.TB
	dir string
}

func newSite(t testing.TB) site {
	t.Helper()
	return siteIn(t, t.TempDir())
}

func siteIn(t testing.TB, dir string) site {
	t.Helper()
	s := site{t, filepath.Join(dir, "site")}
	s.must("init", s.dir)
	return s
}

func (s site) store() string { return filepath.Join(s.dir, ".ingot/store") }

// at is the same site as another directory, such as a copy.
func (s site) at(dir string) site { return site{s.t, dir} }

type result struct {
	code     int
	out, err string
	args     []string
}

func (r result) said() string { return r.out + r.err }

func (s site) ingot(args ...string) result {
	s.t.Helper()
	return runProgram(s.t, built("ingot"), append([]string{"--site", s.dir}, args...)...)
}

func (s site) must(args ...string) result {
	s.t.Helper()
	r := s.ingot(args...)
	if r.code != 0 {
		s.t.Fatalf("ingot %s: exit %d\n%s", strings.Join(args, " "), r.code, r.said())
	}
	return r
}

func runProgram(t testing.TB, name string, args ...string) result {
	t.Helper()
	var out, err bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &err
	fault := cmd.Run()
	var exit *exec.ExitError
	if fault != nil && !errors.As(fault, &exit) {
		t.Fatal(fault)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), err.String(), args}
}

// rsyncSame lets rsync judge, in both directions.
func rsyncSame(t testing.TB, a, b string, extra ...string) {
	t.Helper()
	for _, d := range [][2]string{{a, b}, {b, a}} {
		args := append([]string{"-aHAXSn", "-@-1", "--numeric-ids", "--checksum", "--delete", "--itemize-changes", "--exclude=/.ingot"}, extra...)
		if r := runProgram(t, "rsync", append(args, d[0]+"/", d[1]+"/")...); r.code != 0 || r.said() != "" {
			t.Errorf("rsync %s to %s: exit %d\n%.3000s", d[0], d[1], r.code, r.said())
		}
	}
}
