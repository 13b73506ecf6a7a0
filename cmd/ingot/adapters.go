package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"

	"ingot/imager/store"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// storeImages shows the image store to web.
type storeImages struct {
	s *store.Store

	mu    sync.Mutex
	packs map[digest.ID]map[digest.ID]bool // image -> the packs that it needs
}

func (i *storeImages) RawManifest(ctx context.Context, image digest.ID) ([]byte, error) {
	return i.s.RawManifest(ctx, image)
}

func (i *storeImages) RawIndex(ctx context.Context, image digest.ID) ([]byte, error) {
	x, err := i.s.Index(ctx, image)
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.note(image, x)
	return x.Encode(), nil
}

// note remembers which packs an index sends its reader to. Earlier ones stay
// good: while an image is installed no prune touches its packs.
func (i *storeImages) note(image digest.ID, x *store.Index) {
	if i.packs == nil || len(i.packs) > 100 {
		i.packs = map[digest.ID]map[digest.ID]bool{}
	}
	if i.packs[image] == nil {
		i.packs[image] = map[digest.ID]bool{}
	}
	for _, p := range x.Packs {
		i.packs[image][p.ID] = true
	}
}

// needs reports whether image has chunks in pack.
func (i *storeImages) needs(ctx context.Context, image, pack digest.ID) (bool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.packs[image] == nil {
		x, err := i.s.Index(ctx, image)
		if err != nil {
			return false, err
		}
		i.note(image, x)
	}
	return i.packs[image][pack], nil
}

func (i *storeImages) OpenPack(ctx context.Context, image, pack digest.ID) (io.ReadSeekCloser, error) {
	ok, err := i.needs(ctx, image, pack)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("pack %s is not of image %s: %w", pack.Short(), image.Short(), store.ErrMissing)
	}
	o, err := i.s.OpenPack(ctx, pack)
	if err != nil {
		return nil, err
	}
	return struct {
		io.ReadSeeker
		io.Closer
	}{io.NewSectionReader(o, 0, o.Size()), o}, nil
}

// imageTree shows an image of the store to netboot as a tree of files.
type imageTree struct {
	ctx context.Context // of the build that reads it
	s   *store.Store
	m   *manifest.Manifest
}

func (t imageTree) lookup(op, name string) (*entry.Entry, error) {
	e, ok := t.m.Lookup(name)
	if ok && e.Link != "" {
		e, ok = t.m.Lookup(e.Link)
	}
	if !ok {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	return e, nil
}

// Open reads a whole file into memory: kernels and modules are small.
func (t imageTree) Open(name string) (io.ReadCloser, error) {
	e, err := t.lookup("open", name)
	if err != nil {
		return nil, err
	}
	if e.Type != entry.File || len(e.Holes) > 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("not a plain file")}
	}
	ids := make([]digest.ID, len(e.Chunks))
	for i, c := range e.Chunks {
		ids[i] = c.ID
	}
	var b strings.Builder
	parts, err := fetchAll(t.ctx, t.s, ids)
	if err != nil {
		return nil, fmt.Errorf("read %q of the image: %w", name, err)
	}
	for _, id := range ids {
		b.Write(parts[id])
	}
	return io.NopCloser(strings.NewReader(b.String())), nil
}

func (t imageTree) Walk(dir string, fn func(name string, typ fs.FileMode) error) error {
	if _, err := t.lookup("walk", dir); err != nil {
		return err
	}
	types := map[entry.Type]fs.FileMode{entry.Dir: fs.ModeDir, entry.Symlink: fs.ModeSymlink, entry.CharDevice: fs.ModeDevice | fs.ModeCharDevice, entry.BlockDevice: fs.ModeDevice, entry.FIFO: fs.ModeNamedPipe}
	for _, e := range t.m.Entries {
		if strings.HasPrefix(e.Path, dir+"/") {
			if err := fn(e.Path, types[e.Type]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t imageTree) Readlink(name string) (string, error) {
	e, err := t.lookup("readlink", name)
	if err == nil && e.Type != entry.Symlink {
		err = &fs.PathError{Op: "readlink", Path: name, Err: errors.New("not a symlink")}
	}
	if err != nil {
		return "", err
	}
	return e.Target, nil
}

// fetchAll reads chunks into memory.
func fetchAll(ctx context.Context, s *store.Store, ids []digest.ID) (map[digest.ID][]byte, error) {
	var mu sync.Mutex
	out := make(map[digest.ID][]byte, len(ids))
	err := s.Fetch(ctx, ids, func(id digest.ID, data []byte) error {
		mu.Lock()
		defer mu.Unlock()
		out[id] = bytes.Clone(data)
		return nil
	})
	return out, err
}
