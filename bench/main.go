// Command bench measures ingot beside the tools that do the same work, on the
// same trees and in the same run: rsync, tar with zstd, casync, desync,
// restic and borg. docs/BENCHMARKS.md is what it wrote last.
//
// It builds two Debian trees once and keeps them in the user's cache. It drives
// programs and is no part of them: it imports none of our packages.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// options are what the command line says.
type options struct {
	works  []string // empty: all
	tools  []string // empty: all
	cache  string
	ingot  string
	out    string // where the document goes; empty: nowhere
	part   string // where the parts of works apart go; empty: nowhere
	strict bool
	runs   int // of each tool; 0: the usual number
}

// insideEnv says that this process is the one in namespaces of its own.
const insideEnv = "INGOT_BENCH_INSIDE"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	var exit *exec.ExitError
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case errors.As(err, &exit) && os.Getenv(insideEnv) == "":
		os.Exit(max(1, exit.ExitCode())) // the process inside has said why
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if os.Getenv(insideEnv) != "" {
		return inside(ctx, o)
	}
	if os.Geteuid() != 0 {
		return errors.New("owners of files and namespaces need root")
	}
	lock, err := alone(o.cache)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := measureApart(ctx, o); err != nil {
		if o.onlyApart() {
			return err
		}
		fmt.Fprintln(os.Stderr, "bench: goes on without", err)
	}
	if o.onlyApart() {
		return nil
	}
	if _, err := buildTrees(ctx, o.cache); err != nil {
		return err
	}
	if err := installDesync(ctx, o.cache); err != nil {
		fmt.Fprintln(os.Stderr, "bench: goes on without desync:", err)
	}
	return enter(ctx, args)
}

// alone takes the cache for this run, and removes what one that was killed left.
func alone(cache string) (*os.File, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: another run is measuring: %w", cache, err), lock.Close())
	}
	left, err := filepath.Glob(filepath.Join(cache, "run-*"))
	for _, dir := range left {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

func parse(args []string) (options, error) {
	home, err := os.UserCacheDir()
	if err != nil {
		return options{}, err
	}
	o := options{}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	works := fs.String("work", "", "only these works, of "+strings.Join(workNames(), ", "))
	tools := fs.String("tools", "", "only these `tools`, such as ingot,restic")
	fs.StringVar(&o.cache, "cache", filepath.Join(home, "ingot", "bench"), "`directory` of the trees, and of what a run leaves for its time")
	fs.StringVar(&o.ingot, "ingot", "bin/ingot", "the `program` that is measured")
	fs.StringVar(&o.out, "out", "", "`file` that the report is written to (default docs/BENCHMARKS.md, of a whole run alone)")
	fs.IntVar(&o.runs, "runs", 0, "measure each tool `N` times (default 3, those that take long 2)")
	fs.BoolVar(&o.strict, "strict", false, "fail when a goal is missed")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	o.works, o.tools = words(*works), words(*tools)
	o.part = o.out
	if o.out == "" && len(o.tools) == 0 && o.runs == 0 {
		o.part = page
	}
	if o.out == "" && o.whole() {
		o.out = page
	}
	for _, w := range o.works {
		if !slices.Contains(workNames(), w) {
			return o, fmt.Errorf("no work is called %q: there are %s", w, strings.Join(workNames(), ", "))
		}
	}
	return o, nil
}

// page is where the figures stand.
const page = "docs/BENCHMARKS.md"

// words splits what people list with commas or spaces.
func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

// does reports whether a work was asked for.
func (o options) does(work string) bool { return len(o.works) == 0 || slices.Contains(o.works, work) }

func (o options) whole() bool { return len(o.works) == 0 && len(o.tools) == 0 && o.runs == 0 }

// enter starts the program again in network, mount and process namespaces of
// its own: whatever a run leaves behind ends with it.
func enter(ctx context.Context, args []string) error {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	runtime.LockOSThread() // Pdeathsig means the thread
	return cmd.Run()
}

// inside measures, and tells.
func inside(ctx context.Context, o options) error {
	err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("proc", "/proc", "proc", 0, ""), exec.Command("ip", "link", "set", "lo", "up").Run())
	if err != nil {
		return fmt.Errorf("prepare the namespaces: %w", err)
	}
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer b.clean()
	if err := b.all(ctx); err != nil {
		return err
	}
	r := b.report(ctx)
	fmt.Print(r.text())
	if o.out != "" {
		was, err := os.ReadFile(o.out)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(o.out, []byte(r.markdown()+parts(string(was))), 0o644); err != nil {
			return err
		}
		b.say("wrote %s", o.out)
	}
	if n := r.failed(); o.strict && n > 0 {
		return fmt.Errorf("%d goals are missed", n)
	}
	return nil
}
