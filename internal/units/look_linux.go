package units

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/pattern"
	"ingot/internal/systemd"
)

// Survey looks at a running node. The zero value is right for the one that it runs on.
type Survey struct {
	Manager systemd.Manager
	Top     string        // of the tree that changes; "" is /
	Proc    string        // "" is /proc
	Ignore  pattern.List  // deleted files that no image has; empty: the built-in node-owned and volatile paths
	Ask     time.Duration // limit of a question to systemd; 0 is 10 s

	perJob time.Duration // 0: the constant
}

// facts is what a node is like at a moment.
type facts struct {
	processes []Process // stale ones
	states    []state   // loaded units; nil: not known
	release   string    // of the running kernel
	own       string    // unit of this process
	elsewhere int
	kernel    int
	notes     []string
}

// Look finds out what a change concerns. Before a switch, changes are those of its plan; after it, the
// same ones. What cannot be found out is in Report.Notes. The error is that of ctx.
func (s *Survey) Look(ctx context.Context, changes []Change) (Report, error) {
	c := newChanged(changes)
	f, err := s.facts(ctx, c)
	if err != nil {
		return Report{}, fmt.Errorf("look at running units: %w", err)
	}
	return decide(c, f), nil
}

func (s *Survey) facts(ctx context.Context, c *changed) (facts, error) {
	ignore := s.Ignore
	if ignore.Empty() {
		ignore = pattern.NodeOwned().With(pattern.Volatile())
	}
	v := visit{proc: s.proc(), judge: newJudge(c, s.Top, ignore), self: os.Getpid()}
	if err := v.all(ctx); err != nil {
		return facts{}, err
	}
	v.facts.own = parseCgroup(v.read("self", "cgroup"))
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		v.facts.release = unix.ByteSliceToString(name.Release[:])
	}
	states, err := s.states(ctx, "*")
	if ctx.Err() != nil {
		return facts{}, context.Cause(ctx)
	}
	if err != nil {
		v.facts.notes = append(v.facts.notes, fmt.Sprintf("units: %v", err))
	}
	v.facts.states = states
	return v.facts, nil
}

func (s *Survey) proc() string {
	if s.Proc != "" {
		return s.Proc
	}
	return "/proc"
}

// visit goes through the processes.
type visit struct {
	proc  string
	judge *judge
	self  int

	facts facts
	here  place // where this process is
	root  inode // of this process
	blind int   // processes that may not be looked at
}

// place is where a process lives: its namespaces, as readlink(2) of /proc/PID/ns shows them.
type place struct{ mnt, pid string }

func (v *visit) all(ctx context.Context) error {
	list, err := os.ReadDir(v.proc)
	if err != nil {
		v.facts.notes = append(v.facts.notes, fmt.Sprintf("processes: %v", err))
		return nil
	}
	v.here = v.place("self")
	v.root, _ = statInode(filepath.Join(v.proc, "self/root"))
	for _, e := range list {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == v.self {
			continue
		}
		v.process(pid)
	}
	if v.blind > 0 {
		v.facts.notes = append(v.facts.notes, fmt.Sprintf("%d processes: not permitted to look at them", v.blind))
	}
	slices.SortFunc(v.facts.processes, func(a, b Process) int { return a.PID - b.PID })
	return nil
}

// process looks at one process. It may end meanwhile: then it is not stale.
func (v *visit) process(pid int) {
	id := strconv.Itoa(pid)
	if isKernel(v.read(id, "stat")) {
		v.facts.kernel++
		return
	}
	if v.elsewhere(id) {
		v.facts.elsewhere++
		return
	}
	p := Process{PID: pid}
	v.program(&p, id)
	switch err := v.maps(&p, id); {
	case errors.Is(err, fs.ErrPermission):
		v.blind++
	case p.stale():
		p.Name = strings.TrimSpace(v.read(id, "comm"))
		p.Unit = parseCgroup(v.read(id, "cgroup"))
		v.facts.processes = append(v.facts.processes, p)
	}
}

// elsewhere says whether a process is of a container: in another PID namespace, or in another mount namespace with another root.
// A mount namespace alone makes no container: systemd gives one to every service with PrivateTmp= and the like.
func (v *visit) elsewhere(id string) bool {
	at := v.place(id)
	if at.pid != "" && at.pid != v.here.pid {
		return true
	}
	if at.mnt == "" || at.mnt == v.here.mnt {
		return false
	}
	root, err := statInode(filepath.Join(v.proc, id, "root"))
	return err == nil && root != v.root
}

func (v *visit) place(id string) place {
	mnt, _ := os.Readlink(filepath.Join(v.proc, id, "ns/mnt"))
	pid, _ := os.Readlink(filepath.Join(v.proc, id, "ns/pid"))
	return place{mnt, pid}
}

// statInode follows links, also those of /proc that lead to other namespaces.
func statInode(p string) (inode, error) {
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err != nil {
		return inode{}, err
	}
	return inode{uint64(st.Dev), st.Ino}, nil
}

// program judges what a process executes.
func (v *visit) program(p *Process, id string) {
	exe := filepath.Join(v.proc, id, "exe")
	target, err := os.Readlink(exe)
	if err != nil {
		return
	}
	m := mapping{exec: true}
	m.path, m.deleted = strings.CutSuffix(target, deletedMark)
	if at, err := statInode(exe); err == nil {
		m.dev, m.ino = at.dev, at.ino
	}
	if file, ok := v.judge.stale(m); ok {
		p.uses(file, true)
	}
}

// maps judges the files that a process maps.
func (v *visit) maps(p *Process, id string) error {
	f, err := os.Open(filepath.Join(v.proc, id, "maps"))
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if !bytes.Contains(lines.Bytes(), []byte(" /")) {
			continue
		}
		m, ok := parseMapping(lines.Text())
		if !ok {
			continue
		}
		if file, ok := v.judge.stale(m); ok {
			p.uses(file, false)
		}
	}
	return lines.Err()
}

// read reads a small file of a process; "" when it is gone.
func (v *visit) read(id, name string) string {
	b, err := os.ReadFile(filepath.Join(v.proc, id, name))
	if err != nil {
		return ""
	}
	return string(b)
}
