package rollback

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"ingot/internal/digest"
)

// comparing is a source that makes use of what the node has, of every other group.
type comparing struct {
	*memory
	t           testing.TB
	groups, got int
	before      func(*Alike) // each is read
}

func (c *comparing) FetchAlike(ctx context.Context, groups []*Alike, fn func(digest.ID, []byte) error) error {
	for i, g := range groups {
		c.groups++
		if c.before != nil {
			c.before(g)
		}
		like, err := g.Content()
		if err != nil {
			return err
		}
		size := 0
		for _, k := range g.Like {
			if got := digest.Of(like[size : size+int(k.Size)]); got != k.ID {
				c.t.Errorf("what is said to be chunk %s is %s", k.ID.Short(), got.Short())
			}
			size += int(k.Size)
		}
		if size != len(like) || size == 0 || size > likeBytes {
			c.t.Errorf("%d bytes of chunks, %d of content", size, len(like))
		}
		size = 0
		for _, k := range g.Wanted {
			size += int(k.Size)
		}
		if size == 0 || size > wantedBytes {
			c.t.Errorf("a group of %d bytes", size)
		}
		if i%2 == 1 {
			continue
		}
		for _, k := range g.Wanted {
			c.got++
			if err := c.Fetch(ctx, []digest.ID{k.ID}, fn); err != nil {
				return err
			}
		}
	}
	return nil
}

// mixed is a world with files of many chunks that change here and there.
func mixed(t *testing.T) *world {
	t.Helper()
	top := scratch(t)
	w := &world{t: t, old: top + "/old", new: top + "/new", dir: top + "/node"}
	r := rand.New(rand.NewPCG(8, 8))
	g := &garden{t: t, dir: w.old, r: r}
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	ok(t, os.MkdirAll(w.old, 0o755))
	for i := range 60 {
		ok(t, os.WriteFile(fmt.Sprintf("%s/f%d", w.old, i), noise([]int{10, 5000, 200_000}[i%3]), 0o644))
	}
	ok(t, os.WriteFile(w.old+"/large", noise(6<<20), 0o644))
	write(t, w.old+"/empty", "")
	g.age()
	copyTree(t, w.old, w.new)
	for i := range 60 {
		p := fmt.Sprintf("%s/f%d", w.new, i)
		b, err := os.ReadFile(p)
		ok(t, err)
		copy(b[len(b)/2:], noise(3))
		ok(t, os.Remove(p))
		ok(t, os.WriteFile(p, append(b, "more"...), 0o644))
	}
	b, err := os.ReadFile(w.new + "/large")
	ok(t, err)
	for at := 100_000; at < len(b); at += 900_000 {
		copy(b[at:], noise(2000))
	}
	ok(t, os.WriteFile(w.new+"/large", append(noise(5000), b...), 0o644))
	write(t, w.new+"/empty", "no longer")
	write(t, w.new+"/added", "new")
	g.dir = w.new
	ageSome(g, w.old)
	w.mold, w.mnew, w.target = snapshot(t, w.old), snapshot(t, w.new), snapshot(t, w.new)
	w.src = chunked(t, w.new, w.target, 64<<10)
	copyTree(t, w.old, w.dir)
	return w
}

func TestAlike(t *testing.T) {
	w := mixed(t)
	n := w.node()
	src := &comparing{memory: w.src, t: t}
	_, err := push(n, w.goal(), src)
	ok(t, err)
	same(t, "pushed", w.mnew, snapshot(t, w.dir))
	if src.groups < 5 || src.got < 20 || src.asked <= src.got {
		t.Errorf("%d groups, %d chunks by difference, %d in all", src.groups, src.got, src.asked)
	}
	// What came by way of a difference is not asked for again.
	for id := range w.src.chunks {
		delete(w.src.chunks, id)
	}
	ok(t, errOf(n.Rollback(bg(), 0, Policy{}, "x")))
	same(t, "back", w.mold, snapshot(t, w.dir))
}

func errOf(_ Generation, err error) error { return err }

// A file that is not what it was when the plan was made is not offered as
// such; nor is one that the node had changed before.
func TestAlikeChanges(t *testing.T) {
	w := mixed(t)
	n := w.node()
	src := &comparing{memory: w.src, t: t}
	src.before = func(g *Alike) {
		src.before = nil
		ok(t, os.WriteFile(filepath.Join(w.dir, g.parts[0].path), []byte("other"), 0o644))
	}
	if _, err := push(n, w.goal(), src); !errors.Is(err, ErrChanged) {
		t.Errorf("a file that changes while it is compared: %v", err)
	}
	p, err := n.Plan(bg(), Target{Manifest: w.target, Image: "new:2", Policy: Policy{Default: Take}})
	ok(t, err)
	src.before = func(g *Alike) {
		for _, part := range g.parts {
			if read(t, filepath.Join(w.dir, part.path)) == "other" {
				t.Errorf("%q is offered, which the node changed", part.path)
			}
		}
	}
	ok(t, n.Stage(bg(), p, src))
	ok(t, errOf(n.Switch(bg(), p)))
	same(t, "pushed", w.mnew, snapshot(t, w.dir))
}
