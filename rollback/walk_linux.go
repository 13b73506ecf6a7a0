package rollback

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"ingot/internal/entry"
)

// walker reads directories, several at once.
type walker struct {
	s    *scanner
	ctx  context.Context
	todo chan visit
	open sync.WaitGroup // visits that wait or are under way

	once   sync.Once
	failed error
}

// visit is a directory that is to be read.
type visit struct {
	fd    int
	at    *item // what becomes of it
	base  int   // where the as-done manifest has it; -1: nowhere
	rules leaves
}

// walk reads the whole tree, or what scope names. The result is the top and,
// in it, what there is.
func (s *scanner) walk(ctx context.Context, sc *scope) ([]item, error) {
	w := &walker{s: s, ctx: ctx, todo: make(chan visit, 64)}
	var workers sync.WaitGroup
	for range min(4, runtime.GOMAXPROCS(0)) {
		workers.Go(w.work)
	}
	items, err := w.start(sc)
	w.open.Wait()
	close(w.todo)
	workers.Wait()
	if err == nil {
		err = w.failed
	}
	return slices.DeleteFunc(items, func(it item) bool { return it.Entry == nil }), err
}

func (w *walker) work() {
	k := &looker{}
	for v := range w.todo {
		if err := w.dir(k, v); err != nil {
			w.once.Do(func() { w.failed = err })
		}
		w.open.Done()
	}
}

func (w *walker) start(sc *scope) ([]item, error) {
	k := &looker{}
	k.Set(".")
	base := w.s.base.at(".")
	items := make([]item, 1)
	var err error
	if items[0], err = w.read(k, w.s.n.top, k.All[0], ".", base, leaves{}, 0); err != nil {
		return nil, err
	}
	w.s.dev = items[0].stat.Dev
	if sc != nil {
		return w.scoped(items[0], sc)
	}
	return items, w.enter(k, w.s.n.top, &items[0], base, w.s.rules.leaves)
}

// enter reads the directory it, which is in dir, here or elsewhere.
func (w *walker) enter(k *looker, dir int, it *item, base int, rules leaves) error {
	fd, err := unix.Openat(dir, nameOf(it.Path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if notThere(err) || errors.Is(err, unix.ELOOP) {
		return nil // gone or replaced since it was listed
	}
	if err != nil {
		return fmt.Errorf("open %q: %w", it.Path, err)
	}
	v := visit{fd, it, base, rules}
	w.open.Add(1)
	select {
	case w.todo <- v:
		return nil
	default:
		defer w.open.Done()
		return w.dir(k, v)
	}
}

// dir reads one directory and closes it.
func (w *walker) dir(k *looker, v visit) error {
	defer unix.Close(v.fd)
	path := v.at.Path
	if err := w.ctx.Err(); err != nil {
		return err
	}
	err := k.Names.Read(v.fd)
	if notThere(err) {
		return nil // removed since it was opened
	}
	if err != nil {
		return fmt.Errorf("list %q: %w", path, err)
	}
	if v.rules.covers(path) {
		v.at.anchored = len(k.All) > 0
		return nil
	}
	items := make([]item, 0, len(k.All)) // does not grow: pointers into it stay good
	bases := make([]int32, 0, len(k.All))
	known := w.s.base.children(v.base)
	for _, i := range k.All {
		base := known.find(k.Text(i))
		it, err := w.read(k, v.fd, i, path, base, v.rules, v.at.stat.Dev)
		if notThere(err) {
			continue // gone since it was listed
		}
		if err != nil {
			return err
		}
		if it.alone != "" {
			v.at.anchored = true
		}
		items, bases = append(items, it), append(bases, int32(base))
	}
	v.at.in = items
	for i := range items {
		it := &items[i]
		if it.Type != entry.Dir || it.alone == Mount {
			continue
		}
		if err := w.enter(k, v.fd, it, int(bases[i]), v.rules.below(it.Path)); err != nil {
			return err
		}
	}
	return nil
}

// read reads the entry of a name. An inode in the state in which
// it was recorded is what the as-done manifest says; others cost more calls.
// dev is the file system of the directory.
func (w *walker) read(k *looker, fd int, i entry.Name, dir string, base int, rules leaves, dev uint64) (item, error) {
	s := w.s
	if err := k.stat(fd, i); err != nil {
		return item{}, err
	}
	it := item{stat: k.state(), immutable: k.immutable()}
	var path string
	if base >= 0 {
		it.base = &s.base.m.Entries[base]
		path = it.base.Path
	} else {
		path = join(dir, strings.Clone(k.Text(i)))
	}
	it.alone = rules.left(path)
	if path != "." && (k.mount() || it.stat.Dev != dev) && !s.crosses(path, it.stat.Dev) {
		it.alone = Mount
	}
	was := s.cache.of(base)
	switch {
	case k.kind() == 0:
		it.alone = Socket
		fallthrough
	case it.alone != "":
		it.Entry = k.entry(path)
	case was.meta && !s.full && was.Stat == it.stat && k.shows(it.base, it.stat):
		it.Entry = it.base
	default:
		e, st, err := entry.ReadAt(fd, nameOf(path))
		if errors.Is(err, entry.ErrSocket) { // since it was looked at
			return w.read(k, fd, i, dir, base, rules, dev)
		}
		if err != nil {
			return item{}, fmt.Errorf("%q: %w", path, err)
		}
		e.Path = path
		it.Entry, it.stat = &e, st
	}
	it.sameBase = it.Type == entry.File && it.alone == "" && !s.full && was.Ino != 0 && was.Stat == it.stat && it.base.Type == entry.File
	return it, nil
}

// scoped reads what the scope names, several parts of it at once. What is not
// there leaves a gap.
func (w *walker) scoped(top item, sc *scope) ([]item, error) {
	const part = 256
	paths := slices.DeleteFunc(sc.sorted(), func(path string) bool { return path == "." || sc.within(path) })
	all := make([]item, 1+len(paths)) // pointers into it stay good
	all[0] = top
	all[0].anchored = true
	return all, w.s.n.spread(w.ctx, (len(paths)+part-1)/part, func(_ *localReader, i int) error {
		from, to := i*part, min((i+1)*part, len(paths))
		return w.scopedPart(sc, paths[from:to], all[1+from:1+to])
	})
}

func (w *walker) scopedPart(sc *scope, paths []string, out []item) error {
	k := &looker{}
	at := openDir{fd: -1}
	defer at.close()
	for i, path := range paths {
		dir, name, err := at.open(w.s.n, 0, path)
		if notThere(err) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV) {
			continue // a parent is gone or no directory: the path does not exist
		}
		if err != nil {
			return fmt.Errorf("open the directory of %q: %w", path, err)
		}
		k.Set(name)
		base := w.s.base.at(path)
		it, err := w.read(k, dir, k.All[0], at.path, base, w.s.rules.leaves, w.s.devOf(at.path))
		if notThere(err) {
			continue
		}
		if err != nil {
			return err
		}
		out[i] = it
		switch {
		case it.Type != entry.Dir:
		case !sc.deep[path]:
			out[i].anchored = true // not listed: it may hold anything
		case it.alone != Mount:
			if err := w.enter(k, dir, &out[i], base, w.s.rules.leaves); err != nil {
				return err
			}
		}
	}
	return nil
}
