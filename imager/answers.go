package imager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
)

// answers makes things once for all that ask for them, and keeps them in a
// file without a name.
type answers struct {
	dir  string
	room chan struct{} // as many are made at once
	into chan []byte   // memory to make them in

	mu      sync.Mutex
	made    map[digest.ID]*answer
	file    *os.File
	mapped  []byte // the file, also what it has not become yet
	size    int64
	limit   int64
	why     error // nothing more is kept
	closed  bool
	making  sync.WaitGroup
	reading sync.WaitGroup
}

// answer is one of them. Once done is closed, all but asking is as it stays.
type answer struct {
	asking int // who waits for it
	stop   context.CancelFunc
	done   chan struct{}
	err    error
	data   []byte
	pages  []byte // of the file, that it is in; nil: it is not kept
}

// maxKept bounds what is kept, in bytes; half of the disk's free space does, too.
const maxKept = 4 << 30

func newAnswers(dir string) *answers {
	n := runtime.GOMAXPROCS(0)
	return &answers{dir: dir, room: make(chan struct{}, n), into: make(chan []byte, n), made: map[digest.ID]*answer{}, limit: maxKept}
}

// producer makes an answer. It may append it to into.
type producer func(ctx context.Context, into []byte) ([]byte, error)

// get returns the answer that key names, made by produce where nobody has
// asked for it before. It is for reading only, by guarded, until close. Who
// stops waiting does not disturb others: what is made is given up when nobody
// waits for it any more. Failures are not kept.
func (a *answers) get(ctx context.Context, key digest.ID, produce producer) ([]byte, error) {
	x := a.ask(ctx, key, produce)
	var err error
	select {
	case <-x.done:
		err = x.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	a.leave(key, x)
	switch {
	case err != nil:
		return nil, err
	case x.pages == nil:
		return x.data, nil
	case !a.read():
		return nil, errOver
	}
	defer a.reading.Done()
	if err := present(x.pages); err != nil {
		a.giveUp(err)
		return produce(ctx, nil)
	}
	return x.data, nil
}

// read says that something kept is read now, which close waits for; false after that.
func (a *answers) read() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.closed {
		a.reading.Add(1)
	}
	return !a.closed
}

var (
	errOver = errors.New("BUG: asked for after the end of the run")
	errLost = errors.New("what was kept of it cannot be read again")
)

// present has the kernel read pages of the file which are not in memory.
func present(pages []byte) error {
	switch err := unix.Madvise(pages, unix.MADV_POPULATE_READ); err {
	case nil:
		return nil
	case unix.EINVAL: // before Linux 5.14
		return guarded(func() error {
			var sum byte
			for i := 0; i < len(pages); i += os.Getpagesize() {
				sum += pages[i]
			}
			runtime.KeepAlive(sum)
			return nil
		})
	default:
		return fmt.Errorf("%w: %w", errLost, err)
	}
}

// guarded calls fn, which reads what was kept: what a disk does not give back is
// a fault there (mmap(2), SIGBUS) and an error here.
func guarded(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch fault := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }:
			err = errLost
		default:
			panic(fault)
		}
	}()
	return fn()
}

// ask joins those that wait for an answer, or begins to make it.
func (a *answers) ask(ctx context.Context, key digest.ID, produce producer) *answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	x := a.made[key]
	if x == nil {
		ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
		x = &answer{done: make(chan struct{}), stop: stop}
		if a.closed {
			x.err = errOver
			close(x.done)
			return x
		}
		a.made[key] = x
		a.making.Go(func() {
			defer stop()
			a.make(ctx, key, x, produce)
		})
	}
	x.asking++
	return x
}

func (a *answers) leave(key digest.ID, x *answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if x.asking--; x.asking > 0 {
		return
	}
	select {
	case <-x.done:
	default:
		x.stop()
		a.drop(key, x)
	}
}

func (a *answers) drop(key digest.ID, x *answer) {
	if a.made[key] == x {
		delete(a.made, key)
	}
}

func (a *answers) make(ctx context.Context, key digest.ID, x *answer, produce producer) {
	defer close(x.done)
	select {
	case a.room <- struct{}{}:
		x.data, x.err = produce(ctx, a.memory())
		<-a.room
	case <-ctx.Done():
		x.err = ctx.Err()
	}
	if x.err == nil {
		if off, ok := a.keep(x.data); ok {
			end := off + int64(len(x.data))
			a.memoryBack(x.data)
			x.data = a.mapped[off:end:end]
			x.pages = a.mapped[off&^int64(os.Getpagesize()-1) : end]
			return
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.drop(key, x)
}

// memory returns some to append to, perhaps none.
func (a *answers) memory() []byte {
	select {
	case b := <-a.into:
		return b
	default:
		return nil
	}
}

// memoryBack takes what nobody reads any more.
func (a *answers) memoryBack(b []byte) {
	select {
	case a.into <- b[:0]:
	default:
	}
}

// keep writes b into the file and returns where: all that get it share the
// memory, which the kernel may have back.
func (a *answers) keep(b []byte) (off int64, ok bool) {
	a.mu.Lock()
	if a.file == nil && a.why == nil {
		if a.file, a.limit, a.why = unnamed(a.dir, a.limit); a.limit > 0 && a.why == nil {
			a.mapped, a.why = unix.Mmap(int(a.file.Fd()), 0, int(a.limit), unix.PROT_READ, unix.MAP_SHARED)
		}
	}
	if a.why == nil && a.size+int64(len(b)) > a.limit {
		a.why = fmt.Errorf("%d bytes are kept, which is the limit", a.size)
	}
	if a.why != nil {
		a.mu.Unlock()
		return 0, false
	}
	off = a.size
	a.size += int64(len(b))
	a.mu.Unlock()
	if _, err := a.file.WriteAt(b, off); err != nil {
		a.giveUp(err)
		return 0, false
	}
	return off, true
}

func (a *answers) giveUp(why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.why == nil {
		a.why = why
	}
}

// unnamed makes a file that is gone when it is closed, and says how long it may become.
func unnamed(dir string, limit int64) (*os.File, int64, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, 0, err
	}
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err != nil { // not every file system can
		if f, err = os.CreateTemp(dir, "answers-"); err != nil {
			return nil, 0, err
		}
		if err := os.Remove(f.Name()); err != nil {
			return nil, 0, errors.Join(err, f.Close())
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, 0, errors.Join(fmt.Errorf("look for room in %q: %w", dir, err), f.Close())
	}
	return f, min(limit, int64(st.Bavail)*st.Bsize/2), nil
}

// close ends what is being made and frees what is kept, which nobody reads any
// more; it returns why not all was.
func (a *answers) close() error {
	a.mu.Lock()
	a.closed = true
	for _, x := range a.made {
		x.stop()
	}
	a.mu.Unlock()
	a.making.Wait()
	a.reading.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file != nil {
		_ = a.file.Close() // nothing in it is of use any more
	}
	if a.mapped != nil {
		_ = unix.Munmap(a.mapped)
	}
	if a.why != nil {
		return fmt.Errorf("what is compressed once for all nodes was not all kept, and some of it made for each: %w", a.why)
	}
	return nil
}
