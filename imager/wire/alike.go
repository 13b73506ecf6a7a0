package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"runtime"

	"github.com/klauspost/compress/zstd"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

// A difference is one zstd frame that is compressed with what the node has as
// its dictionary (RFC 8878, section 5: raw content), whose ID is diffDict.

// Bounds of one question about differences.
const (
	maxGroups    = 64      // in one question
	maxLikeBytes = 4 << 20 // of one group, what is like it
	maxDiffBytes = 4 << 20 // of one group, what is wanted
)

// Group is what is asked for in one piece: chunks, and the IDs of chunks that
// the asker has and that are probably much like them.
type Group struct {
	Wanted, Like []digest.ID
}

// Groups decodes a KindLike frame.
func (c *Conn) Groups(f Frame) ([]Group, error) {
	var out []Group
	b := f.Payload
	list := func() (ids []digest.ID, err error) {
		n, k := binary.Uvarint(b)
		if k <= 0 || n > uint64(len(b)-k)/digest.Size {
			return nil, errors.New("receive groups of chunks: cut short")
		}
		b = b[k:]
		for range n {
			ids = append(ids, digest.ID(b[:digest.Size]))
			b = b[digest.Size:]
		}
		return ids, nil
	}
	for len(b) > 0 {
		if len(out) == maxGroups {
			return nil, fmt.Errorf("receive groups of chunks: over %d", maxGroups)
		}
		var g Group
		var err error
		if g.Wanted, err = list(); err == nil {
			g.Like, err = list()
		}
		if err != nil {
			return nil, err
		}
		out = append(out, g)
	}
	return out, nil
}

func appendIDs(b []byte, list []entry.Chunk) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for i := range list {
		b = append(b, list[i].ID[:]...)
	}
	return b
}

// SendGroups answers a question with what diff makes of each group (see
// Difference); empty where the group is to be asked for in another way.
// Several are made at once.
func (c *Conn) SendGroups(groups []Group, diff func(Group) ([]byte, error)) error {
	return InOrder(len(groups), func(i int) ([]byte, error) { return diff(groups[i]) }, func(d []byte) error { return c.SendRaw(KindDiff, d) })
}

// InOrder makes n things, several at once, and uses them in their order. After
// the first error no more are begun; it does not wait for those that were.
func InOrder[T any](n int, produce func(i int) (T, error), use func(T) error) error {
	type made struct {
		it  T
		err error
	}
	turns := make([]chan made, n)
	room := make(chan struct{}, max(2, runtime.GOMAXPROCS(0)))
	stop := make(chan struct{})
	defer close(stop)
	for i := range turns {
		turns[i] = make(chan made, 1)
	}
	go func() {
		for i := range turns {
			select {
			case room <- struct{}{}:
			case <-stop:
				return
			}
			go func() {
				var m made
				m.it, m.err = produce(i)
				turns[i] <- m
			}()
		}
	}()
	for _, turn := range turns {
		m := <-turn
		<-room
		if m.err != nil {
			return m.err
		}
		if err := use(m.it); err != nil {
			return err
		}
	}
	return nil
}

// Difference compresses what is wanted with what is like it as its dictionary.
// It is empty where that is too much for the receiver.
func Difference(like, wanted []byte) ([]byte, error) {
	if len(like) > maxLikeBytes || len(wanted) > maxDiffBytes {
		return nil, nil
	}
	// The encoder begins by clearing memory for all of its window.
	window := max(zstd.MinWindowSize, 1<<bits.Len(uint(len(like)+len(wanted))))
	options := []zstd.EOption{zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(min(window, maxLikeBytes+maxDiffBytes)), zstd.WithLowerEncoderMem(true)}
	if len(like) >= minDict {
		options = append(options, zstd.WithEncoderDictRaw(diffDict, like))
	}
	enc, err := zstd.NewWriter(nil, options...)
	if err != nil {
		return nil, fmt.Errorf("compress a difference: %w", err)
	}
	return enc.EncodeAll(wanted, nil), nil
}

// diffDict is the ID of every dictionary: there is one for each frame.
const diffDict = 1

// minDict is the shortest dictionary that the encoder takes.
const minDict = 8

// Alike is a Group of the asker: it knows sizes, and has the content.
type Alike struct {
	Wanted, Like []entry.Chunk
	Content      func() ([]byte, error) // the concatenation of Like
}

// FetchAlike asks for groups. fn gets the chunks of those that the peer can
// make a difference of, verified and valid only during the call.
func (p Puller) FetchAlike(ctx context.Context, groups []Alike, fn func(id digest.ID, data []byte) error) error {
	for len(groups) > 0 {
		n := min(len(groups), maxGroups)
		var question []byte
		for _, g := range groups[:n] {
			question = appendIDs(appendIDs(question, g.Wanted), g.Like)
		}
		if err := p.C.SendRaw(KindLike, question); err != nil {
			return err
		}
		for _, g := range groups[:n] {
			if err := ctx.Err(); err != nil {
				return err
			}
			f, err := p.C.Next(nil)
			if err == nil {
				err = f.is(KindDiff)
			}
			if err == nil && len(f.Payload) > 0 {
				err = g.apply(f.Payload, fn)
			}
			if err != nil {
				return fmt.Errorf("fetch differences: %w", err)
			}
		}
		groups = groups[n:]
	}
	return nil
}

// apply makes the chunks of a difference.
func (g *Alike) apply(diff []byte, fn func(id digest.ID, data []byte) error) error {
	like, err := g.Content()
	if err != nil {
		return err
	}
	size := 0
	for _, c := range g.Wanted {
		size += int(c.Size)
	}
	options := []zstd.DOption{zstd.WithDecoderMaxWindow(maxLikeBytes + maxDiffBytes)}
	if len(like) >= minDict {
		options = append(options, zstd.WithDecoderDictRaw(diffDict, like))
	}
	dec := newDecoder(nil, maxLikeBytes+maxDiffBytes, options...)
	defer dec.Close()
	data, err := dec.DecodeAll(diff, make([]byte, 0, size))
	if err != nil {
		return err
	}
	if len(data) != size {
		return fmt.Errorf("%d bytes where %d were asked for", len(data), size)
	}
	for _, c := range g.Wanted {
		if got := digest.Of(data[:c.Size]); got != c.ID {
			return fmt.Errorf("chunk %s: its content is %s", c.ID.Short(), got.Short())
		}
		if err := fn(c.ID, data[:c.Size]); err != nil {
			return err
		}
		data = data[c.Size:]
	}
	return nil
}
