package modload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/slogx"
)

// Loader loads the modules of one index. It is safe for concurrent use.
type Loader struct {
	Log *slog.Logger // nil discards

	dir   string
	index *Index
	table table
	args  map[string]string // module -> parameters of the kernel command line
	deny  map[string]bool   // modprobe.blacklist of the kernel command line
	slots chan struct{}     // one a module that is being loaded

	mu    sync.Mutex
	tasks map[string]*task
	seen  map[string]bool // modaliases that were looked up
}

// task is the one attempt at loading a module.
type task struct {
	done chan struct{}
	err  error // valid after done
}

// Open reads the index in dir; an empty dir is that of the running kernel, /lib/modules/`uname -r`.
// Parameters are taken from the kernel command line ("module.parameter=value"), as modprobe(8) does.
func Open(dir string) (*Loader, error) {
	if dir == "" {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return nil, fmt.Errorf("read kernel version: %w", err)
		}
		dir = "/lib/modules/" + unix.ByteSliceToString(u.Release[:])
	}
	text, err := os.ReadFile(filepath.Join(dir, IndexName))
	if err != nil {
		return nil, fmt.Errorf("read module index: %w", err)
	}
	x, err := Decode(text)
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", filepath.Join(dir, IndexName), err)
	}
	cmdline, _ := os.ReadFile("/proc/cmdline") // without /proc there are no parameters
	args, deny := parameters(string(cmdline))
	return &Loader{
		dir: dir, index: x, table: newTable(x), args: args, deny: deny,
		slots: make(chan struct{}, runtime.NumCPU()+1),
		tasks: make(map[string]*task), seen: make(map[string]bool),
	}, nil
}

// Load loads the named modules and what they need from the index in dir (see Open). Names that are
// built in or loaded already are done.
func Load(ctx context.Context, dir string, names ...string) error {
	l, err := Open(dir)
	if err != nil {
		return err
	}
	return l.Load(ctx, names...)
}

// Auto loads the modules of the running kernel whose aliases match a device that is present.
func Auto(ctx context.Context) error {
	l, err := Open("")
	if err != nil {
		return err
	}
	_, err = l.Auto(ctx)
	return err
}

// Load loads the named modules and what they need.
func (l *Loader) Load(ctx context.Context, names ...string) error {
	steps, err := l.table.plan(names...)
	if err != nil {
		return err
	}
	l.start(steps)
	var errs []error
	for _, name := range names {
		errs = append(errs, l.wait(ctx, Normal(name)))
	}
	return errors.Join(errs...)
}

// start begins a task for every step that has none yet. All of a plan are entered under one lock: two
// plans with opposite soft dependencies would otherwise wait for one another.
func (l *Loader) start(steps []step) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range steps {
		if l.tasks[s.mod.Name] != nil {
			continue
		}
		t := &task{done: make(chan struct{})}
		l.tasks[s.mod.Name] = t
		before := make([]*task, len(s.after))
		for i, name := range s.after {
			before[i] = l.tasks[name]
		}
		go func() {
			defer close(t.done)
			t.err = l.run(s, before)
		}()
	}
}

// wait waits for the task of name; a name without one is built in.
func (l *Loader) wait(ctx context.Context, name string) error {
	l.mu.Lock()
	t := l.tasks[name]
	l.mu.Unlock()
	if t == nil {
		return nil
	}
	select {
	case <-t.done:
		return t.err
	case <-ctx.Done():
		return fmt.Errorf("load kernel module %q: %w", name, ctx.Err())
	}
}

// run loads one module when those before it have been tried.
func (l *Loader) run(s step, before []*task) error {
	for i, t := range before {
		<-t.done
		if t.err != nil && slices.Contains(s.hard, s.after[i]) {
			return fmt.Errorf("load kernel module %q: %w", s.mod.Name, t.err)
		}
	}
	l.slots <- struct{}{}
	defer func() { <-l.slots }()
	begin := time.Now()
	err := insert(filepath.Join(l.dir, s.mod.File), l.args[s.mod.Name])
	slogx.Or(l.Log).Debug("load kernel module", "module", s.mod.Name, slogx.Dur, time.Since(begin), slogx.Err, err)
	if err != nil {
		return fmt.Errorf("load kernel module %q: %w", s.mod.Name, err)
	}
	return nil
}

// insert gives the module to the kernel; finit_module(2). A module that is there already is no error.
func insert(file, args string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), args, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// Auto loads the modules that match the devices that are present, again and again until no driver
// brought up a device that is new, and returns the names of the modules that matched, sorted. A driver
// that finds its device not to be its own (ENODEV) is no error; others do not stop the rest.
func (l *Loader) Auto(ctx context.Context) ([]string, error) {
	var matched []string
	var errs []error
	for ctx.Err() == nil {
		fresh, err := l.fresh()
		if err != nil {
			return matched, err
		}
		names, err := l.devices(ctx, fresh)
		matched = append(matched, names...)
		errs = append(errs, err)
		if len(names) == 0 {
			break
		}
	}
	slices.Sort(matched)
	return slices.Compact(matched), errors.Join(append(errs, ctx.Err())...)
}

// devices loads the modules for the modaliases.
func (l *Loader) devices(ctx context.Context, modaliases []string) ([]string, error) {
	var names []string
	for _, a := range modaliases {
		for _, name := range l.index.Match(a) {
			if !l.deny[name] && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	var errs []error
	for _, name := range names { // begin all, so that they run side by side
		steps, err := l.table.plan(name)
		errs = append(errs, err)
		l.start(steps)
	}
	for _, name := range names {
		if err := l.wait(ctx, name); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, err)
		}
	}
	return names, errors.Join(errs...)
}

// fresh returns the modaliases in /sys that were not looked up before.
func (l *Loader) fresh() ([]string, error) {
	buses, err := os.ReadDir("/sys/bus")
	if err != nil {
		return nil, fmt.Errorf("find devices: %w", err)
	}
	var all []string
	for _, bus := range buses {
		dir := filepath.Join("/sys/bus", bus.Name(), "devices")
		devs, err := os.ReadDir(dir)
		if err != nil {
			continue // the bus went away
		}
		for _, dev := range devs {
			if a, err := os.ReadFile(filepath.Join(dir, dev.Name(), "modalias")); err == nil {
				all = append(all, strings.TrimSpace(string(a)))
			}
		}
	}
	return l.unseen(all), nil
}

// unseen filters the modaliases that were looked up before, and remembers the others.
func (l *Loader) unseen(all []string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var fresh []string
	for _, a := range all {
		if a != "" && !l.seen[a] {
			l.seen[a] = true
			fresh = append(fresh, a)
		}
	}
	return fresh
}

// parameters reads module parameters and modprobe.blacklist off a kernel command line.
func parameters(cmdline string) (args map[string]string, deny map[string]bool) {
	args, deny = make(map[string]string), make(map[string]bool)
	for _, word := range strings.Fields(cmdline) {
		mod, param, ok := strings.Cut(word, ".")
		if !ok || strings.Contains(mod, "=") {
			continue
		}
		if list, ok := strings.CutPrefix(word, "modprobe.blacklist="); ok {
			for _, name := range strings.Split(list, ",") {
				deny[Normal(name)] = true
			}
			continue
		}
		mod = Normal(mod)
		args[mod] = strings.TrimSpace(args[mod] + " " + param)
	}
	return args, deny
}
