package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"ingot/internal/digest"
)

// Backend is where the objects of a store are. Names are slash-separated and
// clean. Put and Commit are durable and atomic: the object has all its bytes
// under its name, or is not there. What is not there gives ErrMissing.
type Backend interface {
	// Put writes a small object, replacing what has its name.
	Put(ctx context.Context, name string, data []byte) error
	// Create begins a large object whose name is known only at its end.
	Create(ctx context.Context) (Upload, error)
	Open(ctx context.Context, name string) (Object, error)
	// List returns the names in a directory, sorted, those of directories
	// with a slash at their end. A missing directory is an empty one.
	List(ctx context.Context, dir string) ([]string, error)
	Remove(ctx context.Context, name string) error
	// Lock waits for a lock between all users of the store.
	Lock(ctx context.Context, exclusive bool) (release func(), err error)
}

// Upload is an object that is being written. Abort after Commit does nothing.
type Upload interface {
	io.Writer
	Commit(name string) error
	Abort()
}

// Object is an object that is open for reading. Its methods are safe for
// concurrent use.
type Object interface {
	io.ReaderAt
	io.Closer
	Size() int64
	ModTime() time.Time
	// Stamp identifies this state of the object: it changes when the content
	// may have changed. Empty means that nothing is known, or not yet.
	Stamp() string
}

// ErrMissing is what an object, a chunk or a name that is not in the store gives.
var ErrMissing = errors.New("not in the store")

// CorruptError is content that is not what its digest says.
type CorruptError struct {
	ID    digest.ID // what should be there; zero when nothing tells
	Got   digest.ID // what is; zero when it could not even be decoded
	Where string    // object and offset
	Err   error     // what decoding said, if it failed
}

func (e *CorruptError) Error() string {
	switch {
	case e.ID.IsZero():
		return fmt.Sprintf("corrupt %s: %v", e.Where, e.Err)
	case e.Err != nil:
		return fmt.Sprintf("corrupt %s: %s: %v", e.ID.Short(), e.Where, e.Err)
	case e.Got.IsZero():
		return fmt.Sprintf("corrupt %s: %s", e.ID.Short(), e.Where)
	}
	return fmt.Sprintf("corrupt %s: %s: its content is %s", e.ID.Short(), e.Where, e.Got.Short())
}

func (e *CorruptError) Unwrap() error { return e.Err }
