package main

import (
	"context"
	"errors"
	"sync"

	"ingot/imager"
	"ingot/imager/store"
	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/pattern"
	"ingot/site"
)

// release is an image that is to be pushed to some nodes. Its manifest is read
// when a node needs something of it: for one that has it all the digest is enough.
type release struct {
	w    *world
	ref  string
	id   digest.ID
	arch string // of its programs, as Go calls it; "" for anything

	load   func() (*manifest.Manifest, error)
	known  targetCache
	shared *imager.Shared // nil for one node, which would gain nothing

	mu    sync.Mutex
	bases map[digest.ID]*manifest.Manifest // images that nodes have now
}

// openRelease finds an image of the store, whole: that is found out before any
// node is looked at. ref is what people call it.
func openRelease(ctx context.Context, w *world, ref string, id digest.ID) (i *release, err error) {
	i = &release{w: w, ref: ref, id: id, known: targetCache{cacheFiles{w.private("cache", "targets")}}, bases: map[digest.ID]*manifest.Manifest{}}
	if i.arch, err = archOfImage(ctx, w.images, id); err != nil {
		return nil, err
	}
	i.load = sync.OnceValues(func() (*manifest.Manifest, error) {
		m, err := w.images.Manifest(ctx, id)
		return m, damaged(err, i)
	})
	return i, damaged(i.complete(ctx), i)
}

// share has so many nodes answered together, until close is called. It
// returns why that was not done to the end.
func (i *release) share(nodes int) (close func() error) {
	if nodes > 1 {
		i.shared = imager.NewShared(i.load, i.w.images, i.w.private("cache"))
	}
	return i.shared.Close
}

// archOfImage is the architecture of an image's programs by what is recorded
// under its names; "" where none says.
func archOfImage(ctx context.Context, s *store.Store, id digest.ID) (string, error) {
	names, err := s.Refs(ctx)
	for _, n := range names {
		if n.Digest == id && n.Arch != "" {
			return n.Arch, nil
		}
	}
	var bad *store.NameError
	if errors.As(err, &bad) { // of other images
		return "", nil
	}
	return "", err
}

// damaged tells what the store should have and has not from a name that is
// not there: it is no mistake of the operator's.
func damaged(err error, i *release) error {
	if errors.Is(err, store.ErrMissing) {
		return store.Damage{Object: "image", ID: i.id.Short(), Err: err, Images: []string{i.ref}}
	}
	return err
}

// complete finds out whether all packs of the image are there; it does not
// read them. Where they were is remembered, as the manifest takes long to read.
func (i *release) complete(ctx context.Context) error {
	cache := packCache{cacheFiles{i.w.private("cache", "packs")}}
	if packs, ok := cache.get(i.id); ok && i.have(ctx, packs) == nil {
		if ok, err := i.w.images.HasManifest(ctx, i.id); ok && err == nil {
			return nil
		}
	}
	m, err := i.load()
	if err != nil {
		return err
	}
	locs, err := i.w.images.Locate(ctx, store.Chunks(m))
	if err != nil {
		return err
	}
	var packs []digest.ID
	for _, p := range store.IndexOf(locs).Packs {
		packs = append(packs, p.ID)
	}
	if err := i.have(ctx, packs); err != nil {
		return err
	}
	cache.put(i.id, packs)
	return nil
}

func (i *release) have(ctx context.Context, packs []digest.ID) error {
	for _, id := range packs {
		o, err := i.w.images.OpenPack(ctx, id)
		if err != nil {
			return err
		}
		if err := o.Close(); err != nil {
			return err
		}
	}
	return nil
}

// target is what a push brings a node to.
type target struct {
	imager.Target
	ref       string
	image     digest.ID
	overlay   digest.ID
	nodeOwned []string
	laid      []string // patterns: what the overlay has of pattern.Derived
	after     *aftercare
}

// target renders what a node is to become: the image, the node's overlay over
// it, and where the chunks of both are.
func (i *release) target(ctx context.Context, w *world, n *site.Node) (*target, error) {
	r, err := resolveProfile(w.Site, n)
	if err != nil {
		return nil, err
	}
	over, err := renderOverlay(ctx, w, n, r, i.id)
	if err != nil {
		return nil, err
	}
	t := &target{ref: i.ref, image: i.id, overlay: over.Manifest.ID(), nodeOwned: r.Profile.NodeOwned, laid: laid(over.Manifest), after: afterOf(ctx, w, n, &r.Profile)}
	t.Source = imager.Layered{Data: over.Data, Below: w.images}
	t.Shared = i.shared
	t.Manifest = sync.OnceValues(func() (*manifest.Manifest, error) {
		m, err := i.load()
		if err != nil {
			return nil, err
		}
		return imager.Lay(m, over.Manifest), nil
	})
	made := wire.Made{Image: i.id, Overlay: t.overlay}
	if known, ok := i.known.get(made); ok {
		t.ID = known.target
	} else {
		m, err := t.Manifest()
		if err != nil {
			return nil, err
		}
		t.ID = m.ID()
		i.known.put(made, knownTarget{target: t.ID, overlay: over.Manifest})
	}
	t.Base = func(made wire.Made) *manifest.Manifest { return i.base(ctx, made, t.overlay, over.Manifest) }
	return t, nil
}

// laid are the paths that an overlay has of what is made for a machine, as patterns.
func laid(overlay *manifest.Manifest) (out []string) {
	list := pattern.Derived()
	for i := range overlay.Entries {
		if e := &overlay.Entries[i]; e.Type != entry.Dir && list.Match(e.Path) {
			out = append(out, pattern.Quote(e.Path))
		}
	}
	return out
}

// base lays an overlay that a node got over the image that it got, when both
// are still known: one of now, or one that was sent before.
func (i *release) base(ctx context.Context, made wire.Made, now digest.ID, overlay *manifest.Manifest) *manifest.Manifest {
	if made.Overlay != now {
		known, ok := i.known.get(made)
		if !ok {
			return nil
		}
		overlay = known.overlay
	}
	if m := i.baseImage(ctx, made.Image); m != nil {
		return imager.Lay(m, overlay)
	}
	return nil
}

// maxBases bounds the manifests that are held for deltas.
const maxBases = 4

func (i *release) baseImage(ctx context.Context, id digest.ID) *manifest.Manifest {
	if id == i.id {
		m, _ := i.load() // without it nothing is sent in any case
		return m
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if m, ok := i.bases[id]; ok {
		return m
	}
	m, err := i.w.images.Manifest(ctx, id)
	if err != nil {
		m = nil // it was pruned, or is damaged: the node gets the manifest whole
	}
	if len(i.bases) >= maxBases {
		clear(i.bases)
	}
	i.bases[id] = m
	return m
}
