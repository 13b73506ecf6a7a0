package imager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
)

// answers makes things once for all that ask for them, and keeps them in a
// file without a name.
type answers struct {
	dir  string
	room chan struct{} // as many are made at once

	mu     sync.Mutex
	made   map[digest.ID]*answer
	file   *os.File
	size   int64
	limit  int64
	why    error // nothing more is kept
	closed bool
	making sync.WaitGroup
}

// answer is one of them. Once done is closed, all but asking is as it stays.
type answer struct {
	asking int // who waits for it
	stop   context.CancelFunc
	done   chan struct{}
	err    error
	data   []byte // where it is not kept
	kept   bool
	off, n int64
}

// loader reads an answer, into buf where it has to be read: what it returns is
// for reading only, and good until buf is used again.
type loader func(buf *[]byte) ([]byte, error)

// maxKept bounds what is kept, in bytes; half of the disk's free space does, too.
const maxKept = 4 << 30

func newAnswers(dir string) *answers {
	return &answers{dir: dir, room: make(chan struct{}, runtime.GOMAXPROCS(0)), made: map[digest.ID]*answer{}, limit: maxKept}
}

// get returns the answer that key names, made by produce where nobody has
// asked for it before. Who stops waiting does not disturb others: what is made
// is given up when nobody waits for it any more. Failures are not kept.
func (a *answers) get(ctx context.Context, key digest.ID, produce func(context.Context) ([]byte, error)) (loader, error) {
	x := a.ask(ctx, key, produce)
	var err error
	select {
	case <-x.done:
		err = x.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	a.leave(key, x)
	if err != nil {
		return nil, err
	}
	return func(buf *[]byte) ([]byte, error) {
		if !x.kept {
			return x.data, nil
		}
		if int64(len(*buf)) < x.n {
			*buf = make([]byte, x.n+x.n/4)
		}
		b := (*buf)[:x.n]
		if _, err := a.file.ReadAt(b, x.off); err != nil {
			a.giveUp(fmt.Errorf("read it again: %w", err))
			return produce(ctx)
		}
		return b, nil
	}, nil
}

// ask joins those that wait for an answer, or begins to make it.
func (a *answers) ask(ctx context.Context, key digest.ID, produce func(context.Context) ([]byte, error)) *answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	x := a.made[key]
	if x == nil {
		ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
		x = &answer{done: make(chan struct{}), stop: stop}
		if a.closed {
			x.err = errors.New("BUG: asked for after the end of the run")
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

func (a *answers) make(ctx context.Context, key digest.ID, x *answer, produce func(context.Context) ([]byte, error)) {
	defer close(x.done)
	select {
	case a.room <- struct{}{}:
		x.data, x.err = produce(ctx)
		<-a.room
	case <-ctx.Done():
		x.err = ctx.Err()
	}
	if x.err == nil {
		if x.off, x.kept = a.keep(x.data); x.kept {
			x.n, x.data = int64(len(x.data)), nil
			return
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.drop(key, x)
}

// keep writes b into the file and returns where.
func (a *answers) keep(b []byte) (off int64, ok bool) {
	a.mu.Lock()
	if a.file == nil && a.why == nil {
		a.file, a.limit, a.why = unnamed(a.dir, a.limit)
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

// close ends what is being made and frees what is kept; it returns why not all was.
func (a *answers) close() error {
	a.mu.Lock()
	a.closed = true
	for _, x := range a.made {
		x.stop()
	}
	a.mu.Unlock()
	a.making.Wait()
	if a.file != nil {
		_ = a.file.Close() // nothing in it is of use any more
	}
	if a.why != nil {
		return fmt.Errorf("what is compressed once for all nodes was not all kept, and some of it made for each: %w", a.why)
	}
	return nil
}
