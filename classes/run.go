package classes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"ingot/internal/slogx"
)

// ClassRun runs the class scripts of a config space, on the node.
type ClassRun struct {
	Space    *Space
	Host     string
	Explicit []string          // the node's written classes
	Env      map[string]string // besides the process's own: LOGDIR, disklist, ...
	Log      *slog.Logger
}

// ParseClasses reads what a class script printed, as FAI does: all words, whatever the
// lines. When the very first character is # nothing counts; a later # is a word like others.
func ParseClasses(output string) []string {
	if strings.HasPrefix(output, "#") {
		return nil
	}
	return strings.Fields(output)
}

// classScript: two digits and anything after, but no backup and no source.
func classScript(name string) bool {
	return numbered(name) && !strings.HasSuffix(name, ".bak") && !strings.HasSuffix(name, ".source")
}

// Run gives the complete class list of the node: Join of the explicit list, what the
// scripts class/NN* print, in bytewise order, and class/HOST. Programs are run with class/
// as their directory; NN*.sh are sourced by bash and say their classes in newclasses. A
// script that fails is logged, its classes count nevertheless, as in FAI.
func (c ClassRun) Run(ctx context.Context) ([]string, error) {
	entries, err := c.Space.readDir("class")
	if err != nil {
		return nil, fmt.Errorf("run class scripts: %w", err)
	}
	var added []string
	for _, e := range entries {
		file := filepath.Join(c.Space.Dir, "class", e.Name())
		if !classScript(e.Name()) {
			continue
		}
		info, err := os.Stat(file)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		if info.Mode().Perm()&0o111 == 0 {
			slogx.Or(c.Log).Warn("class script is not executable: skipped", slogx.Path, e.Name())
			continue
		}
		sofar := Join(c.Explicit, added, "")
		words, err := c.script(ctx, e.Name(), sofar[:len(sofar)-1]) // without LAST
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			slogx.Or(c.Log).Warn("class script failed; its classes count", slogx.Path, e.Name(), slogx.Err, err)
		}
		for _, w := range words {
			if !slices.Contains(added, w) && !slices.Contains(c.Explicit, w) && w != "DEFAULT" {
				added = append(added, w)
			}
		}
	}
	text, err := c.Space.readFile("class/" + c.Host)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("run class scripts: %w", err)
	}
	return Join(c.Explicit, append(added, hostClasses(text)...), c.Host), nil
}

// script runs one script and returns the classes that it names.
func (c ClassRun) script(ctx context.Context, name string, sofar []string) ([]string, error) {
	cmd := exec.CommandContext(ctx, "./"+name)
	if strings.HasSuffix(name, ".sh") {
		cmd = exec.CommandContext(ctx, "bash", "-c", `newclasses=; . "./$1" >&2; printf '%s' "$newclasses"`, "bash", name)
	}
	cmd.Dir = filepath.Join(c.Space.Dir, "class")
	cmd.Env = append(os.Environ(), "PATH=.:/usr/local/sbin:/usr/local/bin:/usr/lib/fai:/usr/sbin:/usr/bin:/sbin:/bin",
		"FAI="+c.Space.Dir, "HOSTNAME="+c.Host, "classes="+strings.Join(sofar, "\n"), "cmdlineclasses="+strings.Join(c.Explicit, " "))
	for k, v := range c.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(errs.String()))
	}
	if errors.Is(err, fs.ErrNotExist) || strings.Contains(fmt.Sprint(err), "exec format error") {
		// Without a #! line the shell runs it.
		cmd2 := exec.CommandContext(ctx, "bash", "./"+name)
		cmd2.Dir, cmd2.Env = cmd.Dir, cmd.Env
		out.Reset()
		cmd2.Stdout = &out
		err = cmd2.Run()
	}
	return ParseClasses(out.String()), err
}
