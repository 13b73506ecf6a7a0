package rollback

import (
	"context"
	"errors"
	"fmt"

	"ingot/internal/digest"
	"ingot/internal/entry"
)

// A file that is replaced is mostly much like the one that replaces it. A
// source that is told what the node has can send a difference.

// Alike is chunks that are wanted, and content of the node that is probably
// much like them.
type Alike struct {
	Wanted []entry.Chunk // distinct
	Like   []entry.Chunk // in order; each is on the node

	parts []likeness
	n     *Node
}

// likeness is a run of chunks of one file of the node.
type likeness struct {
	path    string
	content *entry.Entry
	off     int64 // in its data stream
	chunks  []entry.Chunk
}

// AlikeSource is a Source that can make use of what the node has. FetchAlike
// calls fn as Fetch does, for the chunks of some of the groups, whole groups
// only; the others are left to Fetch.
type AlikeSource interface {
	Source
	FetchAlike(ctx context.Context, groups []*Alike, fn func(id digest.ID, data []byte) error) error
}

// Bounds of a group, in bytes: a difference is made and applied in memory.
const (
	wantedBytes = 1 << 20
	likeBytes   = 2 << 20
	around      = 256 << 10 // before and behind the place of what is wanted
)

// Content reads what the group has to offer: the concatenation of Like. Each
// chunk is verified; a file that was changed since the plan gives ErrChanged.
func (a *Alike) Content() ([]byte, error) {
	size := 0
	for _, c := range a.Like {
		size += int(c.Size)
	}
	out := make([]byte, 0, size)
	for i := range a.parts {
		var err error
		if out, err = a.parts[i].read(a.n, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (p *likeness) read(n *Node, out []byte) ([]byte, error) {
	f, err := n.openFile(p.path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrChanged, err)
	}
	defer f.Close()
	data, off := p.content.Data(), p.off
	for _, c := range p.chunks {
		at := len(out)
		out = out[:at+int(c.Size)]
		err := readPieces(f, pieces(data, off, int64(c.Size)), out[at:])
		if err == nil && digest.Of(out[at:]) != c.ID {
			err = errors.New("its content is another")
		}
		if err != nil {
			return nil, fmt.Errorf("read %q: %w: %w", p.path, ErrChanged, err)
		}
		off += int64(c.Size)
	}
	return out, nil
}

// alike groups missing chunks with what they are probably like. What is not in
// a group has nothing of the kind.
func (st *stager) alike(p *Plan) []*Alike {
	g := &grouping{n: st.n, missing: st.missing, taken: map[digest.ID]bool{}}
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.like != nil {
			g.file(s, s.like)
		}
	}
	g.end()
	return g.out
}

// grouping puts chunks into groups, in the order of the tree.
type grouping struct {
	n       *Node
	missing map[digest.ID][]spot
	taken   map[digest.ID]bool
	out     []*Alike

	now          *Alike // nil: none is open
	wanted, like int64  // its bytes
}

func (g *grouping) end() {
	if g.now != nil {
		g.out = append(g.out, g.now)
	}
	g.now, g.wanted, g.like = nil, 0, 0
}

// file groups what is missing of one file, run by run.
func (g *grouping) file(s *Step, base *entry.Entry) {
	var run []entry.Chunk
	off, from, size := int64(0), int64(0), int64(0)
	flush := func() {
		if len(run) > 0 {
			g.run(s.Path, base, run, from, size)
		}
		run, size = nil, 0
	}
	for _, c := range s.content.Chunks {
		if g.missing[c.ID] != nil && !g.taken[c.ID] {
			if size+int64(c.Size) > wantedBytes {
				flush()
			}
			if len(run) == 0 {
				from = off
			}
			g.taken[c.ID] = true
			run, size = append(run, c), off+int64(c.Size)-from
		}
		off += int64(c.Size)
	}
	flush()
}

// run adds some chunks of a file that are from from on within size bytes, and
// what the base has around there.
func (g *grouping) run(path string, base *entry.Entry, run []entry.Chunk, from, size int64) {
	part := likeness{path: path, content: base}
	off, bytes := int64(0), int64(0)
	for _, c := range base.Chunks {
		if end := off + int64(c.Size); end > from-around && off < from+size+around && bytes+int64(c.Size) <= likeBytes {
			if len(part.chunks) == 0 {
				part.off = off
			}
			part.chunks = append(part.chunks, c)
			bytes += int64(c.Size)
		} else if len(part.chunks) > 0 {
			break
		}
		off += int64(c.Size)
	}
	if bytes == 0 {
		return // it was empty, or is much longer now
	}
	want := int64(0)
	for _, c := range run {
		want += int64(c.Size)
	}
	if g.now != nil && (g.wanted+want > wantedBytes || g.like+bytes > likeBytes) {
		g.end()
	}
	if g.now == nil {
		g.now = &Alike{n: g.n}
	}
	g.wanted, g.like = g.wanted+want, g.like+bytes
	g.now.Wanted = append(g.now.Wanted, run...)
	g.now.Like = append(g.now.Like, part.chunks...)
	g.now.parts = append(g.now.parts, part)
}
