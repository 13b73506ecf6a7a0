//go:build linux && amd64

package images

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"ingot/imager/store"
	"ingot/internal/steps"
	"ingot/internal/torture"
)

// TestMain: some processes of this program watch over another.
func TestMain(m *testing.M) {
	if status, mine := steps.Main(); mine {
		os.Exit(status)
	}
	os.Exit(m.Run())
}

// An ordeal is a command that is broken at each of its steps in turn, each
// time in a fresh copy of a site.
type ordeal struct {
	site  site
	more  []string                                           // directories beside the site's whose changes are steps
	args  func(s site) []string                              // the command
	whole func(s site) error                                 // what must be true however it ended
	done  func(s site) error                                 // what must be true after it was repeated
	wants map[string][]string                                // images, and the digests that they may have
	brief bool                                               // but for the long form, it is only killed, at every second step
	runs  func(s site, f steps.Fault) (result, steps.Result) // instead of args: the command
}

// mishaps are the ways to break a step.
func mishaps() map[string]steps.Fault {
	m := map[string]steps.Fault{
		"killed":       {Do: steps.Kill},
		"torn":         {Do: steps.Tear},
		"EIO":          {Do: steps.Fail, Errno: int(unix.EIO)},
		"disk is full": {Do: steps.Stay, Errno: int(unix.ENOSPC)},
	}
	if campaign() {
		m["ENOSPC once"] = steps.Fault{Do: steps.Fail, Errno: int(unix.ENOSPC)}
		m["bad disk"] = steps.Fault{Do: steps.Stay, Errno: int(unix.EIO)}
	}
	return m
}

// with runs ingot with a fault.
func (s site) with(f steps.Fault, args ...string) (result, steps.Result) {
	s.t.Helper()
	f.Within, f.Report = append(f.Within, s.dir), s.dir+".report"
	f.Argv = append([]string{built("ingot"), "--site", s.dir}, args...)
	cmd, err := steps.Command(f)
	ok(s.t, err)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.Run() // its exit status is in the report
	r, err := f.Read()
	if err != nil {
		s.t.Fatalf("%v\n%s%s", err, &out, &said)
	}
	return result{r.Code, out.String(), said.String(), args}, r
}

// copied is the site again, in a directory of its own.
func (s site) copied(dir string) site {
	s.t.Helper()
	if out, err := exec.Command("cp", "-a", s.dir, dir).CombinedOutput(); err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
	return s.at(dir)
}

// carry carries the command out.
func (o ordeal) carry(s site, f steps.Fault) (result, steps.Result) {
	if o.runs != nil {
		return o.runs(s, f)
	}
	return s.with(f, o.args(s)...)
}

// stride is how many steps the short form goes on by: it kills at every step,
// where it is brief at every second, and has the other mishaps at every eighth.
func stride(name string, brief bool) int {
	switch {
	case campaign(), name == "killed" && !brief:
		return 1
	case name == "killed":
		return 2
	}
	return 8
}

// run breaks every step in every way; but see stride.
func (o ordeal) run(t *testing.T) {
	scratch := quickDir(t)
	plain := o.site.copied(filepath.Join(scratch, "count"))
	r, all := o.carry(plain, steps.Fault{Within: o.more})
	if r.code != 0 {
		t.Fatalf("without a fault: %+v", r)
	}
	plain.must("image", "verify")
	ok(t, errors.Join(o.wholeness(plain), o.done(plain)))
	for name, f := range mishaps() {
		if o.brief && name != "killed" && !campaign() {
			continue
		}
		t.Run(name, func(t *testing.T) {
			f.Within = o.more
			hit := o.everyStep(t, filepath.Join(scratch, strings.ReplaceAll(name, " ", "-")), f, stride(name, o.brief))
			if stride(name, o.brief) > 1 {
				return
			}
			for _, step := range all.Steps {
				key := steady(plain, step)
				if hit[key] || t.Failed() {
					continue
				}
				// Threads take turns as they like: this one came at another time.
				key, _, _ = strings.Cut(key, random)
				call, path, _ := strings.Cut(key, " ")
				again := plain.at(filepath.Join(scratch, "again"))
				f.Prefix = call + " " + again.dir + path
				if strings.HasPrefix(path, "(") {
					f.Prefix = key
				}
				if o.breakOne(t, again.dir, f) == "" {
					t.Errorf("never broken: %s", key)
				}
			}
		})
	}
}

// everyStep breaks step after step, or one of so many, until the command ends
// before it comes to the one that is to be broken, and returns which there were.
func (o ordeal) everyStep(t *testing.T, scratch string, f steps.Fault, stride int) map[string]bool {
	var next atomic.Int64
	next.Store(int64(len(t.Name()) % stride)) // other steps for each mishap
	var mu sync.Mutex
	var all sync.WaitGroup
	hit, n := map[string]bool{}, 0
	for range 2 {
		all.Go(func() {
			for !t.Failed() {
				f := f
				f.At = int(next.Add(int64(stride)))
				key := o.breakOne(t, fmt.Sprintf("%s-%d", scratch, f.At), f)
				if key == "" {
					return
				}
				mu.Lock()
				hit[key] = true
				n++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	t.Logf("%d steps", n)
	return hit
}

// breakOne runs the command with a fault in a new copy of the site, and
// returns which step it was; none if the command did not come to it.
func (o ordeal) breakOne(t *testing.T, dir string, f steps.Fault) string {
	s := o.site.copied(dir)
	defer os.RemoveAll(s.dir)
	r, st := o.carry(s, f)
	if st.Hit == 0 {
		return ""
	}
	step := st.Steps[st.Hit-1]
	if f.Do != steps.Tear || strings.Contains(step.Call, "write") { // else it is the same as killed
		if err := o.survived(s, f, r); err != nil {
			t.Errorf("step %d, %s: %v\nexit %d: %s", st.Hit, step, err, r.code, r.said())
		}
	}
	return steady(s, step)
}

// survived checks the site after a fault, repeats the command, and checks again.
func (o ordeal) survived(s site, f steps.Fault, r result) error {
	switch killed := f.Do == steps.Kill || f.Do == steps.Tear; {
	case strings.Contains(r.err, "goroutine "):
		return errors.New("it panicked")
	case killed && r.code != 128+int(unix.SIGKILL):
		return errors.New("it was not killed")
	}
	if err := o.wholeness(s); err != nil {
		return fmt.Errorf("afterwards: %w", err)
	}
	if r.code == 0 { // it could do without
		if err := o.done(s); err != nil {
			return fmt.Errorf("it said that it had succeeded: %w", err)
		}
	}
	if again, _ := o.carry(s, steps.Fault{}); again.code != 0 {
		return fmt.Errorf("the repeat: exit %d: %s", again.code, again.said())
	}
	return errors.Join(o.wholeness(s), o.done(s), s.strays())
}

// wholeness checks that the store verifies and that every image is what it should be.
func (o ordeal) wholeness(s site) error {
	images, err := store.Open(s.store()) // as `image verify` does, without a process each time
	if err != nil {
		return err
	}
	report, err := images.Verify(s.t.Context(), store.VerifyOptions{})
	if err := errors.Join(err, report.Err()); err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	names, err := images.Refs(s.t.Context())
	if err != nil {
		return err
	}
	for _, n := range names {
		image := n.Ref.String()
		if got, err := s.restored(image); err != nil || !slices.Contains(o.wants[image], got) {
			return fmt.Errorf("image %s: %q, %v", image, got, err)
		}
	}
	return o.whole(s)
}

// strays finds temporary files.
func (s site) strays() error {
	var found []error
	err := filepath.WalkDir(s.dir, func(p string, _ fs.DirEntry, err error) error {
		if base := filepath.Base(p); strings.HasPrefix(base, ".tmp-") || strings.HasPrefix(base, "new-") || strings.HasSuffix(base, ".tmp") && base != "statcache.tmp" { // of that one there is never more than one
			found = append(found, fmt.Errorf("%s was left", p))
		}
		return err
	})
	return errors.Join(append(found, err)...)
}

// has checks that images are there.
func (s site) has(names ...string) error {
	images, err := store.Open(s.store())
	if err != nil {
		return err
	}
	for _, image := range names {
		if _, err := manifestOf(s, images, image); err != nil {
			return fmt.Errorf("image %s: %w", image, err)
		}
	}
	return nil
}

// random stands for what is random in the name of a file.
const random = "*"

// steady is a step with what is random in it taken out.
func steady(s site, step steps.Step) string {
	path := strings.TrimPrefix(step.Path, s.dir)
	path = regexp.MustCompile(`(\.tmp-|stage/)[A-Z0-9]{26}|(#|new-)[0-9]+`).ReplaceAllString(path, "$1$2"+random)
	return step.Call + " " + path
}

// quickDir is in memory where it can be: nobody waits for a disk, and no test
// here is about what a power cut leaves.
func quickDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "ingot-steps-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func tinyTree(t testing.TB, dir string) {
	t.Helper()
	ok(t, os.MkdirAll(filepath.Join(dir, "d"), 0o755))
	ok(t, os.WriteFile(filepath.Join(dir, "d/small"), []byte("small\n"), 0o640))
	ok(t, os.WriteFile(filepath.Join(dir, "large"), torture.Noise(3, 300<<10), 0o600))
	ok(t, os.Symlink("large", filepath.Join(dir, "link")))
	ok(t, os.Link(filepath.Join(dir, "large"), filepath.Join(dir, "d/hard")))
}

// captured captures and returns the digest.
func (s site) captured(dir, image string) string {
	s.t.Helper()
	var made struct{ Digest string }
	ok(s.t, json.Unmarshal([]byte(s.must("image", "capture", dir, image, "--json").out), &made))
	return made.Digest
}

// A capture that is broken at any step, in any way, has published its image
// whole or not at all, has harmed no other, and can be repeated.
func TestBrokenCapture(t *testing.T) {
	need(t, "cp")
	src, old := t.TempDir(), t.TempDir()
	tinyTree(t, src)
	ok(t, os.WriteFile(filepath.Join(old, "old"), torture.Noise(4, 5000), 0o600))
	for name, prepare := range map[string]func(s site) []string{
		"first": func(site) []string { return nil },
		"later": func(s site) []string { s.captured(old, "old:1"); return []string{"old:1"} },
	} {
		t.Run(name, func(t *testing.T) {
			s, scratch := siteIn(t, quickDir(t)), newSite(t)
			s.must("image", "list") // makes the database
			there := prepare(s)
			wants := map[string][]string{"new:1": {scratch.captured(src, "new:1")}, "old:1": {scratch.captured(old, "old:1")}}
			ordeal{site: s, wants: wants, brief: name == "first",
				args:  func(site) []string { return []string{"image", "capture", src, "new:1"} },
				whole: func(s site) error { return s.has(there...) },
				done:  func(s site) error { return s.has("new:1") },
			}.run(t)
		})
	}
}

// A prune that is broken has removed nothing that an image needs.
func TestBrokenPrune(t *testing.T) {
	need(t, "cp")
	keep, gone := t.TempDir(), t.TempDir()
	for _, dir := range []string{keep, gone} {
		ok(t, os.WriteFile(filepath.Join(dir, "shared"), torture.Noise(5, 100<<10), 0o600))
		ok(t, os.WriteFile(filepath.Join(dir, "own"), append(torture.Noise(6, 200<<10), dir...), 0o600))
	}
	s := siteIn(t, quickDir(t))
	removed := s.captured(gone, "gone:1") // the pack of what is shared
	wants := map[string][]string{"keep:1": {s.captured(keep, "keep:1")}}
	s.must("image", "rm", "gone:1")
	ordeal{site: s, wants: wants,
		args:  func(site) []string { return []string{"image", "prune", "--max-unused", "0"} },
		whole: func(s site) error { return s.has("keep:1") },
		done: func(s site) error {
			if r := s.ingot("image", "show", removed); r.code != 5 {
				return fmt.Errorf("the image that was removed: exit %d: %s", r.code, r.said())
			}
			return nil
		},
	}.run(t)
}

// A name that is moved belongs to the one image or to the other.
func TestBrokenTag(t *testing.T) {
	need(t, "cp")
	src := t.TempDir()
	s := siteIn(t, quickDir(t))
	tinyTree(t, src)
	first := s.captured(src, "web:1")
	ok(t, os.Remove(filepath.Join(src, "link")))
	second := s.captured(src, "web:2")
	s.must("image", "tag", "web:1", "web:stable")
	ordeal{site: s, wants: map[string][]string{"web:1": {first}, "web:2": {second}, "web:stable": {first, second}},
		args:  func(site) []string { return []string{"image", "tag", "--force", "web:2", "web:stable"} },
		whole: func(s site) error { return s.has("web:1", "web:2", "web:stable") },
		done: func(s site) error {
			if got, err := s.restored("web:stable"); err != nil || got != second {
				return fmt.Errorf("the tag was not moved: %s, %v", got, err)
			}
			if r := s.ingot("image", "prune"); r.code != 0 { // a tag does not look for what crashes left
				return fmt.Errorf("prune: %s", r.said())
			}
			return nil
		},
	}.run(t)
}
