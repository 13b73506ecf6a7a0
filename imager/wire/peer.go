package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"ingot/internal/digest"
)

// Puller is a source of chunks at the other end: Fetch asks for them and the
// peer sends them. One Fetch at a time.
type Puller struct{ C *Conn }

// UnsentError says that the peer does not have all that was asked for.
type UnsentError struct {
	IDs map[digest.ID]bool // the chunks that did not come
	Of  int                // so many that were asked for
}

func (e *UnsentError) Error() string {
	return fmt.Sprintf("fetch chunks: the peer ended with %d of %d chunks unsent", len(e.IDs), e.Of)
}

// Fetch implements the chunk sources of rollback and tree.
func (p Puller) Fetch(ctx context.Context, ids []digest.ID, fn func(id digest.ID, data []byte) error) error {
	want := make(map[digest.ID]bool, len(ids))
	var distinct []digest.ID
	for _, id := range ids {
		if !want[id] {
			want[id] = true
			distinct = append(distinct, id)
		}
	}
	if len(distinct) == 0 {
		return nil
	}
	if err := p.C.SendIDs(KindWant, distinct); err != nil {
		return err
	}
	for in := p.C.stream(); ; {
		id, data, err := in.next()
		if errors.Is(err, io.EOF) && in.err == nil {
			break
		}
		if err == nil && !want[id] {
			err = fmt.Errorf("the peer sent %s unasked", id.Short())
		}
		if err == nil {
			delete(want, id)
			err = fn(id, data)
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("fetch chunks: %w", err)
		}
	}
	if len(want) > 0 {
		return &UnsentError{want, len(distinct)}
	}
	return nil
}

// Pusher is a sink of chunks at the other end. It is safe for concurrent use:
// several questions can be on their way at once.
type Pusher struct {
	c     *Conn
	batch *Batch

	mu   sync.Mutex
	sent int64
	last chan struct{} // closed when the answer to the last question has been read
}

// NewPusher returns a sink that sends over c.
func NewPusher(c *Conn) *Pusher { return &Pusher{c: c, batch: c.NewBatch()} }

// Missing asks which of ids the peer lacks. Answers come in the order of the
// questions: each call reads its own once those before have theirs.
func (p *Pusher) Missing(_ context.Context, ids []digest.ID) ([]digest.ID, error) {
	read := make(chan struct{})
	defer close(read)
	before, err := p.ask(ids, read)
	if err != nil {
		return nil, err
	}
	if before != nil {
		<-before
	}
	f, err := p.c.Next(nil)
	if err != nil {
		return nil, err
	}
	if f.Kind != KindMissing {
		return nil, fmt.Errorf("ask for missing chunks: unexpected frame %q", byte(f.Kind))
	}
	return p.c.IDs(f)
}

// ask sends a question and returns what is closed when it is its turn to read.
func (p *Pusher) ask(ids []digest.ID, read chan struct{}) (before chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before, p.last = p.last, read
	return before, p.c.SendIDs(KindHave, ids)
}

// Put queues one chunk.
func (p *Pusher) Put(_ context.Context, id digest.ID, data []byte) error {
	p.mu.Lock()
	p.sent += int64(len(data))
	p.mu.Unlock()
	return p.batch.Add(id, data)
}

// Close sends what is queued and returns the bytes of all chunks sent.
func (p *Pusher) Close() (int64, error) { return p.sent, p.batch.Flush() }
