// Package store keeps images: chunks in packs, manifests, and the names that
// point to them. docs/FORMAT.md describes every byte.
//
// A writer makes chunks durable, then the manifest, then the name; a reader
// goes the other way, so that what it finds is always whole. Everything is
// checked against its digest when it is read.
package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"runtime"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"ingot/imager/chunk"
	"ingot/internal/digest"
)

// Format is what config.json says of itself; Version is raised by any change
// of layout or formats.
const (
	Format  = "ingot store"
	Version = 1
)

// Store is a set of images. It is safe for concurrent use, and several
// processes may use one directory at once.
type Store struct {
	Log *slog.Logger // nil discards

	// state
	b     Backend
	enc   *zstd.Encoder
	spare *spare

	mu         sync.Mutex
	index      index
	unreadable map[digest.ID]error // packs that cannot be indexed, and why; replaced, never changed
	read       time.Time           // when the index was last compared with the backend; zero: never
	reading    sync.Mutex
}

type config struct {
	Format  string       `json:"format"`
	Version int          `json:"version"`
	Chunker chunk.Params `json:"chunker"`
}

const configName = "config.json"

func (c config) encode() ([]byte, error) {
	raw, err := json.MarshalIndent(c, "", "  ")
	return append(raw, '\n'), err
}

// Open opens the store in dir. A directory without one gives ErrMissing.
func Open(dir string) (*Store, error) {
	s, err := OpenBackend(context.Background(), NewDir(dir))
	if err != nil {
		return nil, fmt.Errorf("open store %q: %w", dir, err)
	}
	return s, nil
}

// Init makes an empty store in dir, which is made when it is not there.
// A store that is already there is an error.
func Init(dir string) (*Store, error) {
	s, err := InitBackend(context.Background(), NewDir(dir))
	if err != nil {
		return nil, fmt.Errorf("make store %q: %w", dir, err)
	}
	return s, nil
}

// OpenOrInit opens the store in dir, or makes it.
func OpenOrInit(dir string) (*Store, error) {
	s, err := Open(dir)
	if errors.Is(err, ErrMissing) {
		return Init(dir)
	}
	return s, err
}

// NewMem returns an empty store in memory, for tests.
func NewMem() *Store {
	s, err := InitBackend(context.Background(), NewMemory())
	if err != nil {
		panic(fmt.Sprintf("BUG: memory: %v", err))
	}
	return s
}

// OpenBackend opens the store that b holds.
func OpenBackend(ctx context.Context, b Backend) (*Store, error) {
	raw, err := readAll(ctx, b, configName, 1<<16)
	if err != nil {
		return nil, err
	}
	var c config
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, &CorruptError{Where: configName, Err: err}
	}
	switch {
	case c.Format != Format:
		return nil, fmt.Errorf("read %s: this is not a store of images", configName)
	case c.Version != Version:
		return nil, fmt.Errorf("the store has version %d, this program knows %d", c.Version, Version)
	case c.Chunker != chunk.Default():
		return nil, fmt.Errorf("the store cuts files as %+v, this program as %+v", c.Chunker, chunk.Default())
	}
	if want, err := c.encode(); err != nil || !bytes.Equal(raw, want) {
		return nil, &CorruptError{Where: configName, Err: errors.New("it has other bytes than a store of this version begins with")}
	}
	return newStore(b)
}

// InitBackend makes an empty store in b.
func InitBackend(ctx context.Context, b Backend) (*Store, error) {
	c := config{Format: Format, Version: Version, Chunker: chunk.Default()}
	if o, err := b.Open(ctx, configName); err == nil {
		o.Close()
		return nil, errors.New("there is one already")
	} else if !errors.Is(err, ErrMissing) {
		return nil, err
	}
	raw, err := c.encode()
	if err != nil {
		return nil, err
	}
	if err := b.Put(ctx, configName, raw); err != nil {
		return nil, err
	}
	return newStore(b)
}

func newStore(b Backend) (*Store, error) {
	// Both are used for whole frames only, from many goroutines.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)),
		// Twice a frame; the default is 4 MiB, of which an encoder holds two.
		zstd.WithWindowSize(2*frameTarget), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, err
	}
	spare, err := newSpare(runtime.GOMAXPROCS(0))
	if err != nil {
		return nil, err
	}
	return &Store{b: b, enc: enc, spare: spare}, nil
}

// newDecoder returns a decoder that never makes more than limit bytes of one input.
func newDecoder(parallel int, limit uint64, more ...zstd.DOption) (*zstd.Decoder, error) {
	return zstd.NewReader(nil, append(more, zstd.WithDecoderConcurrency(parallel), zstd.WithDecoderMaxMemory(limit))...)
}

// The names of objects.
func packName(id digest.ID) string  { h := id.String(); return "packs/" + h[:2] + "/" + h }
func indexName(id digest.ID) string { return "index/" + id.String() }
func manifestName(id digest.ID) string {
	h := id.String()
	return "manifests/" + h[:2] + "/" + h + ".zst"
}

// readAll reads a whole object of at most limit bytes.
func readAll(ctx context.Context, b Backend, name string, limit int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	o, err := b.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	if o.Size() > limit {
		return nil, fmt.Errorf("read %q: %d bytes are too many", name, o.Size())
	}
	buf := make([]byte, o.Size())
	if _, err := io.ReadFull(io.NewSectionReader(o, 0, o.Size()), buf); err != nil {
		return nil, fmt.Errorf("read %q: %w", name, err)
	}
	return buf, nil
}

// walkFan lists the objects of a directory that is fanned out by the first
// two digits of the digest.
func walkFan(ctx context.Context, b Backend, dir, suffix string) ([]digest.ID, error) {
	subs, err := b.List(ctx, dir)
	if err != nil {
		return nil, err
	}
	var ids []digest.ID
	for _, sub := range subs {
		if len(sub) != 3 || sub[2] != '/' {
			continue
		}
		names, err := b.List(ctx, path.Join(dir, sub))
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if len(n) != 2*digest.Size+len(suffix) || n[2*digest.Size:] != suffix {
				continue
			}
			if id, err := digest.Parse(n[:2*digest.Size]); err == nil {
				ids = append(ids, id)
			}
		}
	}
	return ids, nil
}
