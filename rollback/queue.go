package rollback

import (
	"errors"
	"runtime"
	"sync"

	"ingot/internal/digest"
)

// queue hands chunks to workers, so that receiving and writing overlap.
type queue struct {
	fn   func(digest.ID, []byte) error
	todo chan arrival // nil: whoever calls put does the work
	done sync.WaitGroup

	room   *sync.Cond // guards what follows
	queued int        // bytes
	failed error
}

type arrival struct {
	id   digest.ID
	data []byte
}

// queueBytes bounds what has arrived and is not written yet.
const queueBytes = 8 << 20

// errQueueFailed stops the source; the error of the writer is what counts.
var errQueueFailed = errors.New("writing what arrived failed")

// newQueue starts the workers; under a hook, which wants to see one call after
// the other, there are none.
func (n *Node) newQueue(fn func(digest.ID, []byte) error) *queue {
	q := &queue{fn: fn, room: sync.NewCond(&sync.Mutex{})}
	if n.sys.hook != nil {
		return q
	}
	q.todo = make(chan arrival, 256)
	for range min(4, runtime.GOMAXPROCS(0)) {
		q.done.Go(func() {
			for a := range q.todo {
				q.write(a)
			}
		})
	}
	return q
}

// put takes a chunk; the caller may use data again. It may be called concurrently.
func (q *queue) put(id digest.ID, data []byte) error {
	if q.todo == nil {
		q.write(arrival{id, data})
		return q.failed
	}
	q.room.L.Lock()
	for q.queued > 0 && q.queued+len(data) > queueBytes && q.failed == nil {
		q.room.Wait()
	}
	failed := q.failed != nil
	q.queued += len(data)
	q.room.L.Unlock()
	if failed {
		return errQueueFailed
	}
	q.todo <- arrival{id, append([]byte(nil), data...)}
	return nil
}

func (q *queue) write(a arrival) {
	q.room.L.Lock()
	failed := q.failed
	q.room.L.Unlock()
	if failed == nil {
		failed = q.fn(a.id, a.data)
	}
	q.room.L.Lock()
	if q.failed == nil {
		q.failed = failed
	}
	q.queued -= len(a.data)
	q.room.L.Unlock()
	q.room.Broadcast()
}

// close waits until all is written, and says what failed.
func (q *queue) close() error {
	if q.todo != nil {
		close(q.todo)
		q.done.Wait()
	}
	return q.failed
}
