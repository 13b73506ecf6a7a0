package rollback

import (
	"context"

	"golang.org/x/sys/unix"
)

// inParts does something with each of so many steps, parts of them at once;
// those of a part come one after the other, with the directory of the one before.
func (n *Node) inParts(ctx context.Context, steps int, fn func(at *openDir, i int) error) error {
	const part = 128
	return n.spread(ctx, (steps+part-1)/part, func(_ *localReader, i int) error {
		at := openDir{fd: -1}
		defer at.close()
		for k := i * part; k < min((i+1)*part, steps); k++ {
			if err := fn(&at, k); err != nil {
				return err
			}
		}
		return nil
	})
}

// openDir is the directory of the step before, kept open: mostly the next one
// is in it, too, and nothing came between.
type openDir struct {
	vol  int
	path string
	fd   int // -1: none
}

func (d *openDir) close() {
	if d.fd >= 0 {
		unix.Close(d.fd)
		d.fd = -1
	}
}

// of opens the directory that a step is in.
func (d *openDir) of(s *jstep, vols reach) (dir int, name string, err error) {
	path := s.path
	if s.vol > 0 {
		path = relative(path, vols[s.vol].at)
	}
	return d.open(vols[s.vol].Node, s.vol, path)
}

// open opens the directory of a path of the volume of n, which has the number vol.
func (d *openDir) open(n *Node, vol int, path string) (dir int, name string, err error) {
	up := parentOf(path)
	if d.fd >= 0 && d.vol == vol && d.path == up && up != "" {
		return d.fd, nameOf(path), nil
	}
	d.close()
	if dir, name, err = n.parent(path); err == nil {
		*d = openDir{vol, up, dir}
	}
	return dir, name, err
}
