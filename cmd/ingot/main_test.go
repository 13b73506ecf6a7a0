package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"ingot/imager"
	"ingot/imager/store"
	"ingot/installer/netboot"
	"ingot/inventory"
	"ingot/site"
)

// TestMain makes this test binary the command ingot of the scripts.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ingot": func() {
		p := &program{Args: os.Args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
		os.Exit(p.Run(context.Background()))
	}})
}

// TestScripts shows the command line as people see it; see testdata/script.
//
// Besides testscript's own commands there are:
//
//	status CODE ingot ARG...   runs ingot, which must end with CODE
//	json [lines]               standard output is one JSON value, or one a line, of lower-case keys
//	damage flip|cut|remove     damages the largest pack of .ingot/store; its name is $PACK
//	unarmed                    no node of the site is armed, nor has an installation begun
//	runs NODE IMAGE            records that NODE has been brought to IMAGE
//	held CODE ingot ARG...     as status, while another process reads the store
//	overlay NODE IMAGE         writes what NODE has on top of IMAGE below overlay/
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"status": scriptStatus, "json": scriptJSON, "damage": scriptDamage, "overlay": scriptOverlay, "unarmed": scriptUnarmed,
			"runs": scriptRuns, "held": scriptHeld,
		},
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("INGOT_SITE", "")
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond != "installer" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			why := noInstaller()
			if why == "" {
				return true, nil
			}
			if os.Getenv("INGOT_NO_SKIP") != "" {
				return false, errors.New(why)
			}
			t.Logf("some steps are skipped: %s", why)
			return false, nil
		},
	})
}

// noInstaller says why the environment that installs cannot be built here.
func noInstaller() string {
	if _, err := agentBinary("amd64"); err != nil {
		return err.Error() + ": run `make bin/ingot`"
	}
	for _, tool := range netboot.DefaultTools() {
		path := "/usr/sbin:/usr/bin:/sbin:/bin"
		found := false
		for _, dir := range filepath.SplitList(path) {
			_, err := os.Stat(filepath.Join(dir, tool))
			found = found || err == nil
		}
		if !found {
			return tool + " is not installed"
		}
	}
	return ""
}

func scriptStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status CODE COMMAND [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
	stdout, stderr := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	switch {
	case strings.Contains(stderr, "panic:") || strings.Contains(stderr, "BUG:") || strings.Contains(stderr, "%!"):
		ts.Fatalf("that is a bug")
	case want != exitDone && !strings.Contains("\n"+stderr, "\ningot: "):
		ts.Fatalf("a failure that says nothing")
	case want == exitUsage && stdout != "":
		ts.Fatalf("wrong usage answers on standard output")
	}
}

func scriptJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 1 || len(args) == 1 && args[0] != "lines" {
		ts.Fatalf("usage: json [lines]")
	}
	texts := []string{ts.ReadFile("stdout")}
	if len(args) == 1 {
		texts = slices.Collect(strings.Lines(texts[0]))
	}
	for _, text := range texts {
		dec := json.NewDecoder(strings.NewReader(text))
		dec.UseNumber()
		var v any
		ts.Check(dec.Decode(&v))
		if dec.More() {
			ts.Fatalf("more than one JSON value")
		}
		if key := badKey(v); key != "" {
			ts.Fatalf("the key %q is spelled as in Go", key)
		}
	}
}

// badKey returns a key with an upper-case first letter; names of variables are
// people's own.
func badKey(v any) string {
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			if k := badKey(x); k != "" {
				return k
			}
		}
	case map[string]any:
		for k, x := range v {
			if k == "vars" {
				continue
			}
			if strings.ToLower(k) != k {
				return k
			}
			if k := badKey(x); k != "" {
				return k
			}
		}
	}
	return ""
}

func scriptDamage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: damage flip|cut|remove")
	}
	packs, err := filepath.Glob(ts.MkAbs(".ingot/store/packs/*/*"))
	ts.Check(err)
	var path string
	var data []byte
	for _, p := range packs {
		b, err := os.ReadFile(p)
		ts.Check(err)
		if len(b) > len(data) {
			path, data = p, b
		}
	}
	if len(data) < 100 {
		ts.Fatalf("no pack to damage in %q", packs)
	}
	ts.Setenv("PACK", filepath.Base(path))
	ts.Check(os.Chmod(path, 0o600))
	switch args[0] {
	case "flip":
		data = bytes.Clone(data)
		data[len(data)/3] ^= 1
		ts.Check(os.WriteFile(path, data, 0o600))
	case "cut":
		ts.Check(os.Truncate(path, int64(len(data)/2)))
	case "remove":
		ts.Check(os.Remove(path))
	default:
		ts.Fatalf("damage %q?", args[0])
	}
}

func scriptUnarmed(ts *testscript.TestScript, neg bool, args []string) {
	db, err := inventory.Open(context.Background(), ts.MkAbs(".ingot/state.db"))
	ts.Check(err)
	defer db.Close()
	installs, err := db.Installs(context.Background())
	ts.Check(err)
	if neg || len(args) > 0 || len(installs) > 0 {
		ts.Fatalf("installations: %v", installs)
	}
}

func scriptRuns(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: runs NODE IMAGE")
	}
	ctx := context.Background()
	s, err := site.Load(ts.MkAbs("."))
	ts.Check(err)
	w, err := openWorldOf(ctx, s)
	ts.Check(err)
	defer w.Close()
	id, err := w.images.Resolve(ctx, args[1])
	ts.Check(err)
	list, err := w.state.Generations(ctx, args[0])
	ts.Check(err)
	ts.Check(w.state.AddGeneration(ctx, inventory.Generation{Node: args[0], Number: len(list) + 1, Ref: args[1], Image: id.String(), Kind: "push", Mode: "live", By: "test"}))
}

func scriptHeld(ts *testscript.TestScript, neg bool, args []string) {
	s, err := store.Open(ts.MkAbs(".ingot/store"))
	ts.Check(err)
	release, err := s.Lock(context.Background(), false)
	ts.Check(err)
	defer release()
	scriptStatus(ts, neg, args)
}

func scriptOverlay(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: overlay NODE IMAGE")
	}
	ctx := context.Background()
	s, err := site.Load(ts.MkAbs("."))
	ts.Check(err)
	w, err := openWorldOf(ctx, s)
	ts.Check(err)
	defer w.Close()
	id, err := resolveImage(ctx, w, args[1])
	ts.Check(err)
	i, err := openRelease(ctx, w, args[1], id)
	ts.Check(err)
	t, err := i.target(ctx, w, s.Node(args[0]))
	ts.Check(err)
	top := ts.MkAbs("overlay")
	ts.Check(os.RemoveAll(top))
	data := t.Source.(imager.Layered).Data
	m, err := t.Manifest()
	ts.Check(err)
	for _, e := range m.Entries {
		var content []byte
		for _, c := range e.Chunks {
			content = append(content, data[c.ID]...)
		}
		if len(content) == 0 {
			continue // a directory, or the image's own
		}
		path := filepath.Join(top, e.Path)
		ts.Check(os.MkdirAll(filepath.Dir(path), 0o755))
		ts.Check(os.WriteFile(path, content, 0o644))
	}
}
